"""DFR trained on cached rows against DFR trained on whole maps (the thesis's way), at 64 × 64 cells on one thread.

Same images, same network, same seeds; image AUROC on development data (the calibration split of a dataset of the
manifest, or the labelled test images of a folder), mean and spread over seeds, and seconds of CPU time for the fit.

Run again:  OMP_NUM_THREADS=1 python benchmarks/dfr_training.py [elpv_mono | FOLDER] [--images 40] [--epochs 16]
[--steps 400] [--seeds 3] [--held 40] With --choices: instead,
what standardising and augmentation change when training on rows.
"""
import argparse, platform, time

import numpy as np
import torch

from thesis_ad.data.datasets import open_dataset
from thesis_ad.evaluation.metrics import image_auroc
from thesis_ad.models.detector import create, predict_set
from thesis_ad.settings import pin_threads


def measure(settings, train, ok, nok):
    "(image AUROC, CPU seconds of the fit, CPU milliseconds a predicted image)."
    detector = create("dfr", **settings)
    assert detector.weight_hash                                  # load the backbone before the clock starts
    start = time.process_time()
    detector.fit(train)
    middle = time.process_time()
    scores = [predict_set(detector, images)[0] for images in (ok, nok)]
    end = time.process_time()
    auroc = image_auroc(np.repeat([0, 1], [len(ok), len(nok)]), np.concatenate(scores))
    return auroc, middle - start, 1e3 * (end - middle) / (len(ok) + len(nok))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="elpv_mono")
    for name, default in (("images", 40), ("epochs", 16), ("steps", 400), ("seeds", 3), ("held", 40)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--choices", action="store_true")
    args = parser.parse_args()
    pin_threads(1)
    data = open_dataset(args.data)
    train, ok = data.train.evenly(args.images), data.development.ok().evenly(args.held)
    nok = data.development.nok().evenly(args.held)
    print(f"1 thread | torch {torch.__version__}, Python {platform.python_version()} | "
        f"{torch.backends.cpu.get_cpu_capability()}")
    print(f"{data.name}: {len(train)} training images, development data {len(ok)} OK and {len(nok)} NOK, "
        f"{args.seeds} seeds")
    ways = {f"rows, {args.steps} steps": dict(training="rows", steps=args.steps),
        f"rows, {args.steps} steps, bfloat16 where there are instructions for it": dict(training="rows",
            steps=args.steps, bf16=True), f"maps, {args.epochs} epochs": dict(training="maps", epochs=args.epochs)}
    if args.choices:
        ways = {f"{'standardised' if standardise else 'raw'}, {'augmented' if augment else 'as they are'}": dict(
            steps=args.steps, standardise=standardise, augment=augment) for standardise in (True, False)
            for augment in (True, False)}
    found = {}
    print("training | image AUROC of each seed | mean | largest − smallest | fit, CPU s | predict, CPU ms an image")
    for name, settings in ways.items():
        runs = found[name] = np.array([measure(settings | dict(device="cpu", seed=seed), train, ok, nok)
            for seed in range(args.seeds)])
        auroc, fit, predict = runs.T
        print(f"{name} | {' '.join(f'{value:.4f}' for value in auroc)} | {auroc.mean():.4f} | {np.ptp(auroc):.4f} | "
            f"{fit.mean():.1f} | {predict.mean():.0f}", flush=True)
    if args.choices: return
    rows, maps = list(found.values())[0], list(found.values())[-1]
    print(f"rows − maps: {rows[:, 0].mean() - maps[:, 0].mean():+.4f} AUROC; maps take "
        f"{maps[:, 1].mean() / rows[:, 1].mean():.1f} times as long")


if __name__ == "__main__": main()
