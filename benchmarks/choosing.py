"""Does the ranking of detectors on artificial defects agree with that on real ones? The question of the evaluation
notebook *66_choosing* for further datasets.

    OMP_NUM_THREADS=1 python benchmarks/choosing.py elpv_poly ./cookies ./magnetic_tile         # writes choosing.csv

As in the notebook, one artificial defect is drawn on a copy of each of at most 40 OK calibration images, and Kendall's
tau compares the detectors' image AUROC on copies and originals with that on the test split. Its 95 % interval resamples
parts of both. Nothing is chosen here: like the notebook, this is an evaluation and opens the test split. Fits are those
of profile `demo`, one seed. A folder in MVTec layout is named as a path; its images are development data. Columns:
dataset, method, image AUROC on artificial and on real defects, and, equal in all rows of a dataset, tau with its
interval. A dataset's rows replace its old ones.
"""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from thesis_ad.evaluation.metrics import image_auroc
from thesis_ad.evaluation.protocol import dataset_for, run_all, tasks_for
from thesis_ad.evaluation.statistics import replicate_weights, weighted_auroc
from thesis_ad.images.pseudo import with_pseudo_defects
from thesis_ad.models.detector import predict_set
from thesis_ad.settings import get_profile, pin_threads

HERE = Path(__file__).parent
METHODS = ["patchcore", "gaussian", "padim", "global_knn", "pca", "dfr", "autoencoder"]


def resampled(labels, groups, scores, seed, replicates=400):
    "Image AUROC by resampled parts, [replicates, methods]."
    weights = replicate_weights(labels, groups, replicates, seed)
    return np.stack([weighted_auroc(labels, scores[method], weights) for method in METHODS], 1)


def agreement(name, profile):
    "Rows of one dataset."
    runs = run_all(tasks_for(profile, METHODS))
    evaluations = {method: one for (_, method, _), one in runs.items()}
    both = with_pseudo_defects(images := dataset_for(name, profile).calibration.ok().evenly(40))
    artificial = {method: predict_set(one.detector(), both)[0] for method, one in evaluations.items()}
    real = {method: one.scores.score.to_numpy() for method, one in evaluations.items()}
    test = evaluations[METHODS[0]].scores
    drawn = (resampled(both.labels, np.tile(images.groups, 2), artificial, 0),
        resampled(test.label.to_numpy(), test.group.to_numpy(str), real, 1))
    values = [[image_auroc(labels, scores[method]) for method in METHODS]
        for labels, scores in ((both.labels, artificial), (test.label.to_numpy(), real))]
    low, high = np.nanquantile([stats.kendalltau(a, b).statistic for a, b in zip(*drawn)], [0.025, 0.975])
    return pd.DataFrame({"dataset": Path(name).name, "method": METHODS, "artificial": values[0], "real": values[1],
        "tau": stats.kendalltau(*values).statistic, "tau_low": low, "tau_high": high})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("datasets", nargs="+")
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--out", type=Path, default=HERE / "choosing.csv")
    given = parser.parse_args()
    pin_threads(1)
    for name in given.datasets:
        found = agreement(name, get_profile(given.profile, datasets=[name], seeds=[0]))
        old = pd.read_csv(given.out) if given.out.exists() else found.iloc[:0]
        pd.concat([old[old.dataset != found.dataset.iloc[0]], found]).to_csv(given.out, index=False)
        print(found.to_string(index=False))


if __name__ == "__main__": main()
