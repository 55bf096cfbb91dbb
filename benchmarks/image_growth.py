"""How time and memory grow with the number of images, up to the thesis's 11,250 + 1,225: rendered, fitted (bank and
DFR) and evaluated.

    python benchmarks/image_growth.py [--out benchmarks/image_growth.csv] [--counts 500 2000 11250] [--size 64]

The images are small, 64 pixels, since the question is how time grows with their number and whether memory does.
Beside COUNT training images, 1,225 / 11,250 of that number are rendered for scoring, of the calibration split, half
of them NOK. Each stage is a process of its own on one thread. Columns: processor seconds, those an image, and the
peak resident memory of the process in MiB; a row is written as soon as it is measured. DFR's number of updates is
fixed, so its fit grows by the features alone."""
import argparse, json, resource, subprocess, sys, tempfile, time
from pathlib import Path

import pandas as pd

STAGES = ("render", "patchcore", "dfr", "evaluate patchcore", "evaluate dfr")


def dataset(folder, count, size):
    "The rendered dataset with `count` training images in `folder`; what is there is not rendered again."
    from thesis_ad.data.datasets import COLUMNS, Dataset
    from thesis_ad.data.prefilter import Recipe, render_dataset
    test = max(2, round(count * 1225 / 11_250 / 2 / 4))                             # 4 images a part: 2 zooms, 2 views
    recipe = Recipe(size=size, train_parts=count // 10, calibration_ok_parts=test, calibration_nok_parts=test,
        test_ok_parts=0, test_nok_parts=0)
    table = render_dataset(recipe, folder / "data", workers=1, progress=None)[COLUMNS]
    return Dataset("prefilter", folder / "data", table, "CC BY 4.0", True, True, "", published=True)


def measure(stage, folder, count, size):
    "The row of one stage."
    from thesis_ad.evaluation.protocol import evaluate
    from thesis_ad.models.detector import create, load_bundle
    from thesis_ad.settings import pin_threads, processor
    pin_threads(1)
    start = time.process_time()
    data = dataset(folder, count, size)
    images = data.train if stage in ("patchcore", "dfr") else data.development
    if stage == "render": number = len(data.train) + len(data.development)
    elif stage.startswith("evaluate"):
        number = len(images)
        evaluate(load_bundle(folder / stage.split()[1], "cpu"), images, data.name, replicates=100)
    else:
        number = len(images)
        create(stage, device="cpu", size=(size, size)).fit(images).save(folder / stage)
    seconds = time.process_time() - start
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    return {"train": count, "stage": stage, "images": number, "size": size, "cpu_s": round(seconds, 2),
            "cpu_ms_an_image": round(1000 * seconds / number, 2), "peak_mib": round(peak), "processor": processor()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[500, 2000, 11_250])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options, rows = parser.parse_args(), []
    if options.one:
        return print(json.dumps(measure(options.one[0], Path(options.one[1]), options.counts[0], options.size)))
    for count in options.counts:
        with tempfile.TemporaryDirectory() as folder:
            for stage in STAGES:
                command = [sys.executable, __file__, "--one", stage, folder, "--counts", str(count), "--size",
                    str(options.size)]
                rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE,
                    text=True).stdout.splitlines()[-1]))
                print(rows[-1], flush=True)
                pd.DataFrame(rows).to_csv(options.out, index=False)
    print(f"largest process: {max(row['peak_mib'] for row in rows)} MiB of 4096, "
        f"{'met' if max(row['peak_mib'] for row in rows) < 4096 else 'not met'}")


if __name__ == "__main__": main()
