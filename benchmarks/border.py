"""DFR's border on images from which no fit learns, the test split left sealed: image AUROC on calibration splits, by
what is done about the border.

    OMP_NUM_THREADS=1 python benchmarks/border.py elpv_mono elpv_poly prefilter_a prefilter_b -o benchmarks/border.csv

crop: the thesis's; whole: none; levelled: cells of the border measured by OK training cells as far from the sides.
    One network is judged
in all three ways. A row a dataset and seed; a row that is there is not measured again. `gain` is levelled - crop, with
its 95 % interval over parts.

Measured once, three seeds (border.csv): whole 0.53, crop 0.80, levelled 0.63 on elpv_mono; 0.94, 0.91, 0.95 on
elpv_poly; 0.72, 0.75, 0.76 on prefilter_a; 0.84, 0.93, 0.92 on prefilter_b. Every interval of the gain includes 0;
on the solar cells it is 47 to 64 points wide, since either split has five modules.
"""
import argparse
import itertools
from pathlib import Path

import torch
from growing import grown

from thesis_ad.data.datasets import open_dataset
from thesis_ad.evaluation.metrics import image_auroc
from thesis_ad.evaluation.statistics import paired_difference
from thesis_ad.evaluation.protocol import settings_for
from thesis_ad.features.backbones import kept_features
from thesis_ad.models.border import border, image_scores, levelled
from thesis_ad.models.detector import create
from thesis_ad.settings import get_profile, pin_threads


def measure(name, seed, profile, replicates):
    "One row of the table."
    data = open_dataset(name).at_most(train=profile.train_images)
    detector = create("dfr", **settings_for("dfr", profile, data.enhance) | {"seed": seed, "level": True}, device="cpu")
    images = data.calibration
    with kept_features():
        detector.fit(data.train)
        heat = torch.cat([detector.residuals(batch) for _, batch in detector.prepare(images).batches(8, progress=name)])
    scores = {"crop": image_scores(heat, border(heat.shape[-2:])), "whole": image_scores(heat),
        "levelled": image_scores(levelled(heat, detector.border_level))}
    gain, low, high = paired_difference(images.labels, scores["levelled"], scores["crop"], images.groups,
        seed, replicates)
    return {"dataset": name, "seed": seed} | {way: round(image_auroc(images.labels, values), 4)
        for way, values in scores.items()} | {"gain": round(gain, 4), "gain_low": round(low, 4),
        "gain_high": round(high, 4), "ok": len(images.ok()), "nok": len(images.nok()), "parts": len(set(images.groups)),
        "train": len(data.train), "profile": profile.name}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", metavar="DATA",
        help="name of a dataset whose calibration split holds OK and NOK images")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments = parser.parse_args()
    pin_threads(1)
    profile = get_profile(arguments.profile)
    grown(arguments.out, ["dataset", "seed"], list(itertools.product(arguments.data, range(arguments.seeds))),
        lambda name, seed: [measure(name, seed, profile, arguments.replicates)])


if __name__ == "__main__": main()
