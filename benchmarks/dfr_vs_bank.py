"""DFR beside a plain nearest-neighbour bank on the same features and the same block-grouped splits of ELPV.

The bank holds 20,000 standardised feature vectors of the training pictures; a picture's score is the mean of its 20 largest
cell distances inside the same border crop that DFR uses, so both read the same cells. Splits differ in their seed alone.

    python benchmarks/dfr_vs_bank.py --splits 0 1 2

Measured on splits 0, 1 and 2 (elpv_mono, default settings; difference with a 95 % interval over blocks): dfr 0.952, 0.875 and 0.943, bank
0.948, 0.878 and 0.946, difference +0.005 (-0.011 to 0.031), -0.003 (-0.048 to 0.027) and -0.002 (-0.016 to 0.002), 0.000 in the mean;
without nearly all-bad blocks dfr 0.829, 0.590 and 0.829, bank 0.805, 0.577 and 0.840. Splits differ far more than the two detectors do.
"""
import argparse

import numpy as np
import pandas as pd
import torch

from thesis_ad.data.datasets import Dataset, open_dataset
from thesis_ad.data.manifest import elpv_table, nearly_all_bad
from thesis_ad.evaluation.metrics import auroc_interval, image_auroc, paired_difference
from thesis_ad.models.detector import create, predict_set
from thesis_ad.models.dfr import border, collect_rows, image_scores
from thesis_ad.settings import pin_threads


def bank_scores(dfr, data, size=20_000):
    "Image scores of a nearest-neighbour bank on the features, standardisation and crop of a fitted DFR."
    rows = collect_rows(dfr.features, dfr.prepare(data.train), size).float()
    mean, scale = rows.mean(0), rows.std(0) + 1e-6
    bank = (rows - mean) / scale
    found = []
    for _, images in dfr.prepare(data.test).batches(4):
        cells = (dfr.features(images) - mean) / scale
        nearest = torch.stack([torch.cdist(picture.flatten(0, 1), bank).min(1).values.view(dfr.cells) for picture in cells])
        found.append(image_scores(nearest, border(dfr.cells, dfr.crop), dfr.top))
    return np.concatenate(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kind", default="mono")
    options = parser.parse_args()
    pin_threads(1)
    known = open_dataset(f"elpv_{options.kind}")
    labels, lines = (known.root / "labels.csv").read_text(), []
    for seed in options.splits:
        data = Dataset(f"split {seed}", known.root, elpv_table(labels, options.kind, seed=seed))
        dfr = create("dfr", device="cpu").fit(data.train)
        ours, bank = predict_set(dfr, data.test)[0], bank_scores(dfr, data)
        truth, groups = data.test.labels, data.test.groups
        kept = ~nearly_all_bad(data.test.table)
        difference = paired_difference(truth, ours, bank, groups)
        lines.append({"split": seed, "dfr": image_auroc(truth, ours), "bank": image_auroc(truth, bank), "dfr - bank": difference[0],
                      "low": difference[1], "high": difference[2], "dfr interval": "{:.2f}-{:.2f}".format(*auroc_interval(truth, ours, groups)),
                      "dfr without bad blocks": image_auroc(truth[kept], ours[kept]), "bank without": image_auroc(truth[kept], bank[kept])})
        print(pd.DataFrame(lines[-1:]).round(3).to_string(index=False, header=len(lines) == 1), flush=True)
    print("mean difference:", round(float(np.mean([line["dfr - bank"] for line in lines])), 3))


if __name__ == "__main__":
    main()
