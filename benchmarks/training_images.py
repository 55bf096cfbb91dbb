"""How many OK images does a detector need?

Image AUROC on the calibration split after learning from 25, 50, 100 and all training images.

The number of training images of the profile `demo` is chosen by this table, so it reads no test split. Training images
are spaced evenly over the table; settings are those of `demo`, so every count has the same budget of updates.
Fits are kept in the cache folder.

    python benchmarks/training_images.py --out benchmarks/training_images.csv

Measured once, one seed, gaussian and patchcore (training_images.csv): from 25 images to all, gaussian stays within
0.771-0.800 on elpv_mono and 0.862-0.881 on prefilter_b, patchcore within 0.808-0.835 and 0.870-0.929.
Each 95 % interval includes the values at the other three counts.
"""
import argparse
from pathlib import Path

import joblib
import pandas as pd

from thesis_ad.evaluation.metrics import image_auroc

from thesis_ad.evaluation.statistics import auroc_interval
from thesis_ad.evaluation.protocol import dataset_for, on_calibration, tasks_for
from thesis_ad.settings import get_profile


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=["prefilter_b", "elpv_mono"])
    parser.add_argument("--methods", nargs="+", default=["gaussian", "patchcore", "dfr", "autoencoder"])
    parser.add_argument("--counts", type=int, nargs="+", default=[25, 50, 100, 0], help="training images; 0: all")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the table here as CSV")
    options = parser.parse_args()
    rows = []
    for count in options.counts:
        profile = get_profile("demo", train_images=count, judged_images=0)
        tasks = tasks_for(profile, options.methods, options.datasets)
        for task, (one, seconds) in zip(tasks,
                joblib.Parallel(n_jobs=options.workers)(joblib.delayed(on_calibration)(task) for task in tasks)):
            low, high = auroc_interval(one.label, one.score, one.group)
            rows.append({"dataset": task.dataset, "method": task.method,
                "training_images": len(dataset_for(task.dataset, profile).train),
                "calibration_auroc": image_auroc(one.label, one.score),
                "ci_low": low, "ci_high": high, "fit_seconds": round(seconds, 1)})
    table = pd.DataFrame(rows).sort_values(["dataset", "method", "training_images"])
    print(table.round(3).to_string(index=False))
    if options.out: table.to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
