"""Does the ranking of detectors on artificial defects agree with that on real ones? The question of the evaluation
notebook *66_choosing* for further datasets.

    OMP_NUM_THREADS=1 python benchmarks/choosing.py elpv_poly ./cookies ./magnetic_tile         # writes choosing.csv

As in the notebook, one artificial defect is drawn on a copy of each of at most 40 OK calibration images, and Kendall's
tau compares the detectors' image AUROC on copies and originals with that on real defects. The latter is that of the
study on six datasets (six_datasets.csv, profile `paper`, mean over seeds); no test split is opened here. The 95 %
interval of tau resamples the parts of the artificial side alone. Fits are those of profile `demo`, one seed. A folder
in MVTec layout is named as a path. Columns: dataset, method, image AUROC on artificial and on real defects, and, equal
in all rows of a dataset, tau with its interval. Datasets that the table has are not measured again.
"""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from growing import grown
from scipy import stats

from thesis_ad.evaluation.metrics import image_auroc
from thesis_ad.evaluation.protocol import dataset_for, fit_cached, tasks_for
from thesis_ad.evaluation.statistics import replicate_weights, weighted_auroc
from thesis_ad.images.pseudo import with_pseudo_defects
from thesis_ad.models.detector import load_bundle, predict_set
from thesis_ad.settings import get_profile, pin_threads

HERE = Path(__file__).parent
METHODS = ["patchcore", "gaussian", "padim", "global_knn", "pca", "dfr", "autoencoder"]


def agreement(name, profile, study):
    "Rows of one dataset."
    images, dataset = dataset_for(name, profile).calibration.ok().evenly(40), Path(name).name
    both = with_pseudo_defects(images)
    scores = [predict_set(load_bundle(fit_cached(task)[0]), both)[0] for task in tasks_for(profile, METHODS)]
    artificial = [image_auroc(both.labels, one) for one in scores]
    real = study[study.dataset == dataset].groupby("detector").value.mean()[METHODS].to_numpy()
    weights = replicate_weights(both.labels, np.tile(images.groups, 2), 400, 0)
    drawn = np.stack([weighted_auroc(both.labels, one, weights) for one in scores], 1)
    low, high = np.nanquantile([stats.kendalltau(one, real).statistic for one in drawn], [0.025, 0.975])
    return pd.DataFrame({"dataset": dataset, "method": METHODS, "artificial": artificial, "real": real,
        "tau": stats.kendalltau(artificial, real).statistic, "tau_low": low, "tau_high": high})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("datasets", nargs="+")
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--out", type=Path, default=HERE / "choosing.csv")
    given = parser.parse_args()
    pin_threads(1)
    study = pd.read_csv(HERE / "six_datasets.csv").query("metric == 'image_auroc'")
    named = {Path(name).name: name for name in given.datasets}
    grown(given.out, ["dataset"], [(name,) for name in named],
        lambda name: agreement(named[name], get_profile(given.profile, datasets=[named[name]], seeds=[0]), study))


if __name__ == "__main__": main()
