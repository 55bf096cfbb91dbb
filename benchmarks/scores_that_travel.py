"""What moves the score of an OK image besides a defect, and what takes it off? Candidates on images of which no test
result depends.

    OMP_NUM_THREADS=1 python benchmarks/scores_that_travel.py prefilter_a prefilter_b elpv_mono elpv_poly \\
        ./cookies ./magnetic_tile -o benchmarks/scores_that_travel.csv

A dataset of the manifest is scored on its calibration split, a folder (here two links beside this call) on its labelled
test images, which makes that folder development data; no sealed test split is opened. The image score is the mean of
the highest half percent of the map, which is taken

    as it is
    less its median         each image's own typical level taken off
    over its median         the same as a ratio
    over its spread         less the median, divided by the distance from the median to the 84th percentile
    light                   as it is, after each channel of each image got the mean and deviation of the training images

`image_auroc` and `fnr_at_fpr5` (misses where 5 % of the OK images would be false alarms), and the difference of the
AUROC to the map as it is with a 95 % interval over parts. `auto` takes off the median; its chapter says so.
"""
import argparse
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
from growing import grown

from thesis_ad.data.datasets import open_dataset
from thesis_ad.evaluation.metrics import image_auroc, miss_rate_at
from thesis_ad.evaluation.protocol import settings_for
from thesis_ad.evaluation.statistics import paired_difference
from thesis_ad.evaluation.trials import changed
from thesis_ad.features.backbones import kept_features
from thesis_ad.models.detector import create, predict_set
from thesis_ad.settings import get_profile, pin_threads


def highest(values): return float(np.mean(np.sort(values)[-max(1, len(values) // 200):]))


def candidates(heat):
    "{candidate: image score} of one map."
    values = np.asarray(heat, np.float64).ravel()
    middle, upper = np.quantile(values, [0.5, 0.84])
    top = highest(values)
    return {"as it is": top, "less its median": top - middle, "over its median": top / max(middle, 1e-12),
        "over its spread": (top - middle) / max(upper - middle, 1e-12)}


def one_light(images, train):
    "`images` with each channel's mean and standard deviation of the median training image."
    some = [train.image(i).reshape(-1, 3).astype(float) for i in range(len(train))]
    mean, deviation = (np.median([f(one, 0) for one in some], 0) for f in (np.mean, np.std))
    def change(image):
        flat = image.reshape(-1, 3).astype(float)
        standard = (flat - flat.mean(0)) / np.maximum(flat.std(0), 1e-6)
        return (standard * deviation + mean).clip(0, 255).astype(np.uint8).reshape(image.shape)
    return changed(images, change, "one-light")


def scores_of(method, profile, data, train, images):
    "{candidate: scores of `images`} of a detector fitted on `train`."
    detector = create(method, **settings_for(method, profile, data.enhance), device="cpu")
    with kept_features():
        detector.fit(train, None)
        maps = predict_set(detector, images)[1]
    return pd.DataFrame([candidates(heat) for heat in maps]).to_dict("list")


def measure(method, data, profile):
    "A row a candidate."
    images = data.development
    scores = scores_of(method, profile, data, data.train, images)
    scores["light"] = scores_of(method, profile, data, one_light(data.train, data.train),
        one_light(images, data.train))["as it is"]
    for name, values in scores.items():
        gain, low, high = paired_difference(images.labels, np.array(values), np.array(scores["as it is"]),
            images.groups, profile.seed, profile.replicates)
        yield {"dataset": data.name, "method": method, "candidate": name,
            "image_auroc": image_auroc(images.labels, values),
            "fnr_at_fpr5": miss_rate_at(images.labels, values, 0.05), "gain": gain, "gain_low": low,
            "gain_high": high, "ok": len(images.ok()), "nok": len(images.nok()), "parts": len(set(images.groups))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", metavar="DATA", help="name of a dataset, or a folder in MVTec layout")
    parser.add_argument("--methods", nargs="+", default=["patchcore", "gaussian", "padim", "pca", "dfr"])
    parser.add_argument("--profile", default="demo")
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments = parser.parse_args()
    pin_threads(1)
    profile = get_profile(arguments.profile)
    opened = {data.name: data for data in map(open_dataset, arguments.data)}
    table = grown(arguments.out, ["dataset", "method"], list(itertools.product(opened, arguments.methods)),
        lambda name, method: measure(method,
            opened[name].at_most(train=profile.train_images, calibration=180, test=180), profile))
    print(table.pivot_table(index="candidate", columns="method", values="gain").round(3).to_string())


if __name__ == "__main__": main()
