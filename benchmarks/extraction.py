"""Feature maps by PyTorch and by OpenVINO: processor time of an image, largest difference, and what it does to scores.

Run again:  python benchmarks/extraction.py [--out FILE]        # about three minutes of one processor

Times are medians of runs in turns on one thread. Scores are those of the calibration split of `elpv_mono`; the
difference that the runtime makes stands beside the spread between seeds of the same detector. Columns: `what,torch,
openvino,unit,processor`; of a difference or a spread, `torch` is the one between two seeds and `openvino` the one
between the runtimes. Compare the rows of one processor."""
import argparse, os, time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from thesis_ad.data.datasets import open_dataset
from thesis_ad.evaluation.metrics import image_auroc
from thesis_ad.features.backbones import load_backbone
from thesis_ad.models.detector import create, predict_set
from thesis_ad.settings import pin_threads, processor

RUNTIMES = ("torch", "openvino")


def by(runtime, call):
    "What `call` returns while `runtime` computes the maps."
    os.environ["THESIS_AD_EXTRACTION"] = runtime
    try: return call()
    finally: del os.environ["THESIS_AD_EXTRACTION"]


def forward(name, size, repeats=30):
    "({runtime: median processor ms of an image}, largest relative difference of a map)."
    backbone, image = load_backbone(name), torch.rand(1, 3, size, size)
    run = lambda: backbone(image, backbone.stages_at(8, 16))
    first = [by(runtime, run) for runtime in RUNTIMES]
    times = {runtime: [] for runtime in RUNTIMES}
    for _ in range(repeats):
        for runtime in RUNTIMES:
            start = time.process_time()
            by(runtime, run)
            times[runtime].append(1000 * (time.process_time() - start))
    return ({runtime: np.median(some) for runtime, some in times.items()},
            max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*first)))


def scores(method, data, seed, **settings):
    "Image scores of the calibration split."
    return predict_set(create(method, device="cpu", seed=seed, **settings).fit(data.train), data.calibration)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    pin_threads(1)
    rows = []
    for name in ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2"):
        for size in (256, 384):
            times, difference = forward(name, size)
            rows.append((f"{name}, {size} px", *(round(times[one], 2) for one in RUNTIMES), "ms"))
            rows.append((f"{name}, {size} px, largest difference of a map", 0.0, float(f"{difference:.2g}"),
                "relative"))
    data = open_dataset("elpv_mono", size=256).at_most(train=75)
    for method, settings in (("patchcore", {}), ("pca", {}), ("dfr", {"steps": 100})):
        run = lambda seed: scores(method, data, seed, **settings)
        own, other, seeded = by("torch", lambda: run(0)), by("openvino", lambda: run(0)), by("torch", lambda: run(1))
        change = lambda a: float(f"{np.abs(a - own).max() / np.abs(own).max():.2g}")
        rows.append((f"{method}, largest difference of a score", change(seeded), change(other), "relative"))
        auroc = lambda a: image_auroc(data.calibration.labels, a)
        rows.append((f"{method}, difference of image AUROC", *(round(abs(auroc(a) - auroc(own)), 6)
            for a in (seeded, other)), "AUROC"))
    table = pd.DataFrame([(*row, processor()) for row in rows], columns=["what", *RUNTIMES, "unit", "processor"])
    if options.out.exists():
        before = pd.read_csv(options.out)
        table = pd.concat([before[before.processor != processor()], table])
    table.to_csv(options.out, index=False)
    print(table.to_string())


if __name__ == "__main__": main()
