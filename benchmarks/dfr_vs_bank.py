"""DFR beside a plain nearest-neighbour bank on the same features and the same block-grouped splits of ELPV.

The bank holds 20,000 standardised feature vectors of the training pictures; a picture's score is the mean of its 20 largest cell
distances. Both read the same cells: once with the border levelled, as DFR does by default, and once with the thesis's crop. Splits
differ in their seed alone.

    python benchmarks/dfr_vs_bank.py --splits 0 1 2

Measured on splits 0, 1 and 2 (elpv_mono, default settings). With the border levelled: dfr 0.956, 0.794 and 0.952, bank 0.957, 0.799 and 0.952;
difference with a 95 % interval over blocks -0.001 (-0.020 to 0.010), -0.005 (-0.053 to 0.018) and 0.001 (-0.020 to 0.014). With the crop: dfr
0.953, 0.875 and 0.945, bank 0.948, 0.878 and 0.946; difference 0.006 (-0.008 to 0.033), -0.003 (-0.049 to 0.025) and -0.001 (-0.013 to
0.003). Splits differ far more than the two detectors do, and on split 1 the levelled border costs both of them eight points.
"""
import argparse

import pandas as pd
import torch

from thesis_ad.data.datasets import Dataset, open_dataset
from thesis_ad.data.manifest import elpv_table, nearly_all_bad
from thesis_ad.evaluation.metrics import auroc_interval, image_auroc, paired_difference
from thesis_ad.features.backbones import kept_features
from thesis_ad.models.detector import create
from thesis_ad.models.dfr import border, border_level, collect_rows, image_scores, levelled
from thesis_ad.settings import pin_threads


def bank_of(dfr, images, size=20_000):
    "A function from pictures [B, 3, H, W] to nearest distances [B, h, w], on the features and the standardisation of a fitted DFR."
    rows = collect_rows(dfr.features, images, size).float()
    mean, scale = rows.mean(0), rows.std(0) + 1e-6
    bank = (rows - mean) / scale
    def distances(pictures): return torch.stack([torch.cdist(((cells - mean) / scale).flatten(0, 1), bank).min(1).values.view(dfr.cells) for cells in dfr.features(pictures)])
    return distances


def scores_of(heat, dfr, train, test):
    "Image scores of `test` by heat maps `heat(pictures)`, by border: levelled by training pictures, and cropped."
    maps = {name: torch.cat([heat(batch) for _, batch in dfr.prepare(images).batches(4)]) for name, images in (("level", train.evenly(40)), ("test", test))}
    return {"levelled": image_scores(levelled(maps["test"], border_level(maps["level"])), (0, 0), dfr.top), "cropped": image_scores(maps["test"], border(dfr.cells), dfr.top)}


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
        with kept_features():
            dfr = create("dfr", device="cpu").fit(data.train)
            found = {name: scores_of(heat, dfr, data.train, data.test) for name, heat in (("dfr", dfr.residuals), ("bank", bank_of(dfr, dfr.prepare(data.train))))}
        truth, groups, kept = data.test.labels, data.test.groups, ~nearly_all_bad(data.test.table)
        for way in ("levelled", "cropped"):
            ours, bank = found["dfr"][way], found["bank"][way]
            difference = paired_difference(truth, ours, bank, groups)
            lines.append({"split": seed, "border": way, "dfr": image_auroc(truth, ours), "bank": image_auroc(truth, bank), "dfr - bank": difference[0],
                          "low": difference[1], "high": difference[2], "dfr interval": "{:.2f}-{:.2f}".format(*auroc_interval(truth, ours, groups)),
                          "dfr without bad blocks": image_auroc(truth[kept], ours[kept]), "bank without": image_auroc(truth[kept], bank[kept])})
        print(pd.DataFrame(lines[-2:]).round(3).to_string(index=False, header=len(lines) == 2), flush=True)
    print(pd.DataFrame(lines).groupby("border")["dfr - bank"].mean().round(3).rename("mean difference").to_string())


if __name__ == "__main__": main()
