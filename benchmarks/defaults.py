"""Which settings of the untrained detectors do calibration splits and development data support?

Image AUROC by setting and dataset.

    python benchmarks/defaults.py --out benchmarks/defaults.csv [FOLDER ...]

Each detector is fitted on at most 100 OK training images and scores at most 60 OK and 60 NOK images: of the calibration
split for datasets of the manifest, of the development data (test folders that are used for nothing else) for any FOLDER
in MVTec layout. One setting is changed at a time. `mean` rows average over the datasets; a default is kept unless
another setting is better by more than `spread`, the standard error of the paired
differences over datasets. No test split of the manifest is opened.
"""
import argparse

import numpy as np
import pandas as pd

from thesis_ad.data.datasets import open_dataset
from thesis_ad.evaluation.metrics import image_auroc
from thesis_ad.features.backbones import kept_features
from thesis_ad.models.detector import create, predict_set
from thesis_ad.settings import pin_threads

DATASETS = ("prefilter_a", "prefilter_b", "elpv_mono", "elpv_poly")
CHANGES = {                       # detector: its default first, then one change at a time
    "patchcore": ({}, {"lengths": "raw"}, {"lengths": "unit"}, {"score": "mean_knn"}, {"window": 1}, {"window": 5}),
    "gaussian": ({}, {"lengths": "raw"}, {"lengths": "unit"}, {"window": 1}),
    "pca": ({}, {"level": False}, {"augment": False}, {"variance": 0.8}, {"variance": 0.95}),
}


def development(name):
    "(training images, OK and NOK images to choose by, enhance) of a dataset or a folder."
    data = open_dataset(name).at_most(train=100)
    some = data.development
    picked = np.concatenate([np.flatnonzero(some.labels == label)[:: max(1, (some.labels == label).sum() // 60)][:60]
        for label in (0, 1)])
    return data.train, some.take(picked), data.enhance


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", help="development data, folders in MVTec layout")
    parser.add_argument("--out", default="benchmarks/defaults.csv")
    options = parser.parse_args()
    pin_threads(1)
    rows = []
    for name in (*DATASETS, *options.folders):
        train, some, enhance = development(name)
        for method, changes in CHANGES.items():
            for change in changes:
                with kept_features():
                    scores, _ = predict_set(create(method, enhance=enhance, device="cpu", **change).fit(train), some)
                rows.append({"dataset": open_dataset(name).name, "method": method,
                    "setting": ", ".join(f"{key}={value}" for key, value in change.items()) or "default",
                    "image_auroc": image_auroc(some.labels, scores)})
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    wide = table.pivot(index="dataset", columns=["method", "setting"], values="image_auroc")
    for (method, setting), column in wide.items():
        difference = column - wide[method, "default"]
        rows.append({"dataset": "mean", "method": method, "setting": setting, "image_auroc": column.mean(),
            "against_default": difference.mean(), "spread": difference.std(ddof=1) / np.sqrt(len(difference))})
    table = pd.DataFrame(rows)
    table.to_csv(options.out, index=False, float_format="%.4f")
    print(table[table.dataset == "mean"].to_string(index=False))


if __name__ == "__main__":
    main()
