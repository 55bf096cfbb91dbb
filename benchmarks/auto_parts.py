"""What does each part of `auto` contribute? Measured on images of which no test result depends.

    OMP_NUM_THREADS=1 python benchmarks/auto_parts.py prefilter_a prefilter_b elpv_mono elpv_poly \\
        ./cookies ./magnetic_tile

A dataset of the manifest is scored on its calibration split, a folder (here two links beside this call) on its labelled
test images, which makes that folder development data; no sealed test split is opened. `auto` is fitted once on the
training images alone; its out-of-fold maps and those of the scored images are then combined in other ways, one change
at a time: the share of its typical level that each map loses, the borders, the members, the fraction of cells that is
averaged. `image_auroc`, `fnr_at_fpr5`, and the difference of the AUROC to `auto` as it is with its 95 % interval over
parts.
"""
import argparse
from pathlib import Path

import numpy as np
import torch
from growing import grown

from thesis_ad.data.datasets import open_dataset
from thesis_ad.evaluation.metrics import image_auroc, miss_rate_at
from thesis_ad.evaluation.protocol import settings_for
from thesis_ad.evaluation.statistics import paired_difference
from thesis_ad.features.backbones import kept_features
from thesis_ad.models import auto
from thesis_ad.models.border import levelled
from thesis_ad.models.detector import create
from thesis_ad.settings import get_profile, pin_threads

USUAL = {"share": 1.0, "borders": True, "members": ("fine bank", "coarse bank", "deep Gaussians"), "top": 0.003}
CHANGES = {"auto": {}, "half of the level": {"share": 0.5}, "with its level": {"share": 0.0},
    "borders as they are": {"borders": False}, "without the fine bank": {"members": USUAL["members"][1:]},
    "without the coarse bank": {"members": USUAL["members"][::2]}, "banks alone": {"members": USUAL["members"][:2]},
    "fine bank alone": {"members": ("fine bank",)}, "coarse bank alone": {"members": ("coarse bank",)},
    "deep Gaussians alone": {"members": ("deep Gaussians",)}, "top 0.1 %": {"top": 0.001}, "top 1 %": {"top": 0.01},
    "top 0.1 %, with its level": {"top": 0.001, "share": 0.0},
    "banks alone, with their level": {"members": USUAL["members"][:2], "share": 0.0}}


def maps_of(data, profile):
    "(out-of-fold maps, maps of the scored images, border levels), each by member."
    detector = create("auto", **settings_for("auto", profile, data.enhance), device="cpu")
    kept, original = {}, auto._out_of_fold
    def out_of_fold(d, train):
        kept["found"] = original(d, train)
        return kept["found"]
    auto._out_of_fold = out_of_fold
    with kept_features():
        try: detector.fit(data.train)
        finally: auto._out_of_fold = original
        found = {}
        for _, batch in detector.prepare(data.development).batches(8, progress=data.name):
            for name, cells in auto._cells(detector.members, batch).items(): found.setdefault(name, []).append(cells)
    return kept["found"][1], {name: torch.cat(cells) for name, cells in found.items()}, detector.levels


def scores_of(maps, levels, share, borders, members, top):
    "{member: score of each image}."
    found = {}
    for name in members:
        z = levelled(maps[name], levels[name]) if borders else maps[name]
        found[name] = auto.top_mean(z - share * z.flatten(1).median(1).values[:, None, None], top)
    return found


def measure(data, profile):
    "A row a change."
    folds, judged, levels = maps_of(data, profile)
    images, scores = data.development, {}
    for name, change in CHANGES.items():
        ok, some = (scores_of(maps, levels, **USUAL | change) for maps in (folds, judged))
        scores[name] = np.mean([(some[m] - ok[m].mean()) / ok[m].std() for m in some], axis=0)
    for name, values in scores.items():
        gain, low, high = paired_difference(images.labels, values, scores["auto"], images.groups, profile.seed,
            profile.replicates)
        yield {"dataset": data.name, "change": name, "image_auroc": image_auroc(images.labels, values),
            "fnr_at_fpr5": miss_rate_at(images.labels, values, 0.05), "gain": gain, "gain_low": low,
            "gain_high": high, "train": len(data.train), "ok": len(images.ok()), "nok": len(images.nok())}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", metavar="DATA", help="name of a dataset, or a folder in MVTec layout")
    parser.add_argument("--profile", default="demo")
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments = parser.parse_args()
    pin_threads(1)
    profile = get_profile(arguments.profile)
    opened = {data.name: data for data in map(open_dataset, arguments.data)}
    table = grown(arguments.out, ["dataset"], [(name,) for name in opened], lambda name: measure(
        opened[name].at_most(train=profile.train_images, calibration=240, test=240), profile))
    print((100 * table.pivot_table(index="change", columns="dataset", values="image_auroc")).assign(
        mean=lambda t: t.mean(axis=1)).round(1).loc[list(CHANGES)].to_string())


if __name__ == "__main__": main()
