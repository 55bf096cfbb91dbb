"""What `thesis-ad fit auto` costs on 100 photos of 256 x 256 pixels, and one image of its bundle, on one thread.

    OMP_NUM_THREADS=1 python benchmarks/auto_cost.py             # auto_cost.csv; about four minutes of one processor

The photos are training images of `elpv_mono` (real) and `prefilter_a` (rendered) in a flat folder. A fit is a new
process with an empty cache: start, features, out-of-fold scores and threshold included. An image is measured in this
process, from decoded pixels to decision and map, in PyTorch and exported to ONNX and OpenVINO, in turns; median.
Columns are processor seconds, or milliseconds, and the peak of the fit's memory. A processor's rows replace its old
ones.
"""
import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from growing import renewed
from latency import judged

from thesis_ad.data.datasets import open_dataset
from thesis_ad.inspection.export import export_bundle
from thesis_ad.models.detector import load_bundle
from thesis_ad.settings import pin_threads, processor

HERE = Path(__file__).parent
COUNT, EDGE, ROUNDS = 100, 256, 30
RUNTIMES = ("onnx", "openvino")


def photos(name, folder):
    "`COUNT` training images of a dataset as files of `EDGE` x `EDGE` pixels; the images."
    images = open_dataset(name).train.evenly(COUNT)
    some = [cv2.resize(images.image(i), (EDGE, EDGE), interpolation=cv2.INTER_AREA) for i in range(len(images))]
    for i, image in enumerate(some): cv2.imwrite(str(folder / f"{i:03}.png"), image[..., ::-1])
    return some


def fit(folder, bundle, cache):
    "(processor seconds, MiB at most) of `thesis-ad fit auto` in a new process."
    command = [sys.executable, "-c", "from thesis_ad.cli import main; main()", "fit", "auto", folder, "-o", bundle]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | {"THESIS_AD_CACHE": str(cache), "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, after.ru_maxrss / 1024


def milliseconds(bundle, folder, images):
    "Median processor time of an image by runtime."
    detectors = {"torch": load_bundle(bundle)}
    for runtime in RUNTIMES:
        export_bundle(bundle, folder / runtime, format=runtime)
        detectors[runtime] = load_bundle(folder / runtime)
    found = {name: [] for name in detectors}
    for image in images[:ROUNDS]:
        for name, detector in detectors.items():
            start = time.process_time()
            judged(detector, image)
            found[name].append(time.process_time() - start)
    return {f"{name}_ms": round(1000 * float(np.median(some[2:])), 1) for name, some in found.items()}


def row(name):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "photos").mkdir()
        images = photos(name, folder / "photos")
        seconds, peak = fit(folder / "photos", folder / "bundle", folder / "cache")
        return {"dataset": name, "photos": len(images), "edge": EDGE, "fit_cpu_s": round(seconds, 1),
            "peak_mib": round(peak), **milliseconds(folder / "bundle", folder, images), "processor": processor()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "auto_cost.csv")
    given = parser.parse_args()
    pin_threads(1)
    rows = pd.DataFrame([row(name) for name in ("elpv_mono", "prefilter_a")])
    print(renewed(given.out, rows, "processor").to_string(index=False))


if __name__ == "__main__": main()
