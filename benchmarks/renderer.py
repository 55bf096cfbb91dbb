"""Images a second of the pre-filter renderer, on all cores as `data make` uses them.

    python benchmarks/renderer.py --size 512 --parts 6
"""
import argparse
import dataclasses
import os
import tempfile
import time

from thesis_ad.data.prefilter import RECIPES, render_dataset


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--parts", type=int, default=6)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    for name in ("prefilter_a", "prefilter_b"):
        recipe = dataclasses.replace(RECIPES[name], size=options.size).first(options.parts)
        with tempfile.TemporaryDirectory() as folder:
            render_dataset(dataclasses.replace(recipe, size=32).first(1), f"{folder}/warm",
                options.workers, progress=False)  # start the processes
            start = time.perf_counter()
            count = len(render_dataset(recipe, f"{folder}/timed", options.workers, progress=False))
            seconds = time.perf_counter() - start
        print(f"{name}: {count} images of {options.size} px in {seconds:.1f} s, {count / seconds:.1f} images/s on "
            f"{options.workers} processes")


if __name__ == "__main__": main()
