"""DFR beside a plain nearest-neighbour bank on the same features and the same block-grouped splits of ELPV.

The bank holds 20,000 standardised feature vectors of the training images; an image's score is the mean of its 20
largest cell distances. Both read the same cells: once with the border levelled, and once with the thesis's crop. The
sealed test split takes no part: its blocks are left out, and the other blocks are split into training and held-out
blocks anew. Splits differ in their seed alone.

    python benchmarks/dfr_vs_bank.py --splits 0 1 2
"""
import argparse

import pandas as pd
import torch

from thesis_ad.data.datasets import Dataset, open_dataset
from thesis_ad.data.manifest import elpv_table, nearly_all_bad
from thesis_ad.evaluation.metrics import image_auroc
from thesis_ad.evaluation.statistics import auroc_interval, paired_difference
from thesis_ad.features.backbones import kept_features
from thesis_ad.models.border import border, border_level, image_scores, levelled
from thesis_ad.models.detector import create
from thesis_ad.models.linear import collect_rows
from thesis_ad.settings import pin_threads


def bank_of(dfr, images, size=20_000):
    """A function from images [B, 3, H, W] to nearest distances [B, h, w],
    on the features and the standardisation of a fitted DFR."""
    rows = collect_rows(dfr.features, images, size).float()
    mean, scale = rows.mean(0), rows.std(0) + 1e-6
    bank = (rows - mean) / scale
    def distances(images):
        return torch.stack([torch.cdist(((cells - mean) / scale).flatten(0, 1), bank).min(1).values.view(dfr.cells)
            for cells in dfr.features(images)])
    return distances


def scores_of(heat, dfr, train, held):
    "Image scores of `held` by heat maps `heat(images)`, by border: levelled by training images, and cropped."
    maps = {name: torch.cat([heat(batch) for _, batch in dfr.prepare(images).batches(4)])
        for name, images in (("level", train.evenly(40)), ("held", held))}
    return {"levelled": image_scores(levelled(maps["held"], border_level(maps["level"])), (0, 0), dfr.top),
        "cropped": image_scores(maps["held"], border(dfr.cells), dfr.top)}


def resplit(known, kind, seed):
    "The cells of ELPV outside the blocks of the sealed test split, as training and calibration blocks by `seed`."
    labels, sealed = (known.root / "labels.csv").read_text(), set(known.table[known.table.split == "test"].group)
    every = elpv_table(labels, kind, {"calibration": 1})
    open_cells = set(every[~every.group.isin(sealed)].path)
    lines = [line for line in labels.splitlines() if line.split()[:1] and line.split()[0] in open_cells]
    return Dataset(f"split {seed}", known.root,
        elpv_table("\n".join(lines), kind, {"train": 0.65, "calibration": 0.35}, seed), published=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kind", default="mono")
    options = parser.parse_args()
    pin_threads(1)
    known = open_dataset(f"elpv_{options.kind}")
    lines = []
    for seed in options.splits:
        data = resplit(known, options.kind, seed)
        with kept_features():
            dfr = create("dfr", device="cpu").fit(data.train)
            found = {name: scores_of(heat, dfr, data.train, data.calibration)
                for name, heat in (("dfr", dfr.residuals), ("bank", bank_of(dfr, dfr.prepare(data.train))))}
        truth, groups, kept = data.calibration.labels, data.calibration.groups, ~nearly_all_bad(data.calibration.table)
        for way in ("levelled", "cropped"):
            ours, bank = found["dfr"][way], found["bank"][way]
            difference = paired_difference(truth, ours, bank, groups)
            lines.append({"split": seed, "border": way, "dfr": image_auroc(truth, ours),
                "bank": image_auroc(truth, bank), "dfr - bank": difference[0], "low": difference[1],
                "high": difference[2], "dfr interval": "{:.2f}-{:.2f}".format(*auroc_interval(truth, ours, groups)),
                "dfr without bad blocks": image_auroc(truth[kept], ours[kept]),
                "bank without": image_auroc(truth[kept], bank[kept])})
        print(pd.DataFrame(lines[-2:]).round(3).to_string(index=False, header=len(lines) == 2), flush=True)
    print(pd.DataFrame(lines).groupby("border")["dfr - bank"].mean().round(3).rename("mean difference").to_string())


if __name__ == "__main__": main()
