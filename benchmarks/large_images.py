"""What does a large image cost when it is cut into tiles?

Peak memory and processor time of one prediction, by the image's size.

    python benchmarks/large_images.py --out benchmarks/large_images.csv

A detector is fitted on tiles of 256 x 256 of rendered images (demo backbone) and predicts one image at its own
size, in a process of its own; `peak_mib` is the largest resident memory of that process.
Without tiles the image is resized to 256 x 256.

Measured once, one image a process, before dfr levelled its border (large_images.csv; one thread, the other core
busy): the process takes 870 to 930 MiB for an image of 256 x 256, torch
included. In tiles up to 50 MiB more for 1024 x 1024, 80 to 105 for 2000 x 1334 and about 360 for 4000 x 2668; resized
to one tile the last takes 150 to 180 more. What grows is the image with its copies and map, not what the network
holds; tiles add the sum and the weight of their maps.
Time grows with the number of tiles: at 2000 x 1334 2.4 s for patchcore, 1.6 s for padim, 5.1 s for dfr.
"""
import argparse
import multiprocessing
import re
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from thesis_ad.data.datasets import ImageSet, open_dataset
from thesis_ad.files import resize, sha256
from thesis_ad.models.detector import Detector, create, predict_each
from thesis_ad.settings import pin_threads

IMAGES = 3
SIZES = ((256, 256), (1024, 1024), (2000, 1334), (4000, 2668))      # (height, width)


def enlarged(images, size, folder):
    "An `ImageSet` of the first `IMAGES` images at `size`, as files in `folder`."
    images = images.take(range(IMAGES))
    for i in range(IMAGES):
        Image.fromarray(np.ascontiguousarray(resize(images.image(i), size))).save(folder / f"{i}.png")
    return ImageSet(images.table.assign(path=[f"{i}.png" for i in range(IMAGES)], height=size[0], width=size[1],
        sha256=[sha256(folder / f"{i}.png") for i in range(IMAGES)]), folder)


def peak_mib():
    """Largest resident memory of this process so far;
    Linux alone tells it apart from that of the process which started it."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1)) / 1024


def predict(folder, images, queue):
    """Seconds of processor time an image and peak MiB of predicting `images` one after another by the bundle in
    `folder`, put into `queue`."""
    pin_threads(1)
    detector = Detector.load(folder, device="cpu")
    start = time.process_time()
    for score, heat in predict_each(detector, images): assert np.isfinite(score) and heat.shape == images.shape(0)
    seconds = (time.process_time() - start) / len(images)
    queue.put((seconds, peak_mib()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["patchcore", "padim", "dfr"])
    parser.add_argument("--out", type=Path, help="write the table here as CSV")
    options = parser.parse_args()
    pin_threads(1)
    context, rows = multiprocessing.get_context("spawn"), []
    data = open_dataset("prefilter_b", size=512, parts=2)
    for method in options.methods:
        for tiles in (False, True):
            detector = create(method, canvas=(0, 0) if tiles else (), device="cpu").fit(data.train, data.calibration)
            with tempfile.TemporaryDirectory() as folder:
                bundle = detector.save(Path(folder) / "bundle")
                for size in SIZES:
                    queue, images = context.Queue(), Path(folder) / f"{size[0]}"
                    images.mkdir()
                    process = context.Process(target=predict,
                        args=(bundle, enlarged(data.calibration, size, images), queue))
                    process.start()
                    seconds, peak = queue.get()
                    process.join()
                    rows.append({"method": method, "tiles": tiles, "height": size[0], "width": size[1],
                        "seconds": round(seconds, 2), "peak_mib": round(peak)})
                    print(rows[-1], flush=True)
    if options.out: pd.DataFrame(rows).to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
