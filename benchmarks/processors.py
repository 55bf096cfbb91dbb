"""How far do the results move on another processor? Image AUROCs of two runs of one commit on two machines.

Without arguments, what `make reproduce` wrote here is held against the tables of the last commit,
which another machine may have made:

    make reproduce
    python benchmarks/processors.py
    python benchmarks/processors.py --first A/metrics.csv --second B/metrics.csv --out benchmarks/processors.csv

Measured once (processors.csv), 100 training images a dataset, on an Intel processor with bfloat16 tiles (AMX) and an
AMD one with bfloat16 vectors (AVX-512) and no tiles: 0.12 points in the median of 48 results. The banks and Gaussians
stay where they are (padim moves by 0.01 points on prefilter_b).
Of what is trained, dfr, dfr_fine and dfr_attention move by at most 0.15 points, featcae and efficientad by 0.3 and
0.4, the autoencoders by 0.4 and 1.7, vae by 1.9, cae_l1 by 4.2, stfpm by 6.2.
"""
import argparse
import io
import subprocess
from pathlib import Path

import pandas as pd

from thesis_ad.settings import repository_root


def committed(path):
    "The file at `path` as the last commit has it."
    name = path.relative_to(repository_root()).as_posix()
    return io.StringIO(subprocess.run(["git", "show", f"HEAD:{name}"], cwd=repository_root(), capture_output=True,
        text=True, check=True).stdout)


def image_aurocs(source):
    "Image AUROCs of a metrics table by dataset, method and seed."
    metrics = pd.read_csv(source)
    return metrics[metrics.metric == "image_auroc"].set_index(["dataset", "method", "seed"]).value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = repository_root() / "figures" / "demo" / "tables" / "metrics.csv"
    parser.add_argument("--first", type=Path, help="metrics.csv of one machine (default: that of the last commit)")
    parser.add_argument("--second", type=Path, default=here,
        help="metrics.csv of the other one (default: figures/demo)")
    parser.add_argument("--out", type=Path, help="write the table here as CSV")
    options = parser.parse_args()
    table = pd.DataFrame({"first": image_aurocs(options.first or committed(here)),
        "second": image_aurocs(options.second)}).dropna()
    table["points"] = 100 * (table.second - table["first"])
    largest = table.points.abs().groupby("method").max().sort_values()
    print(table.reset_index().round(4).to_string(index=False))
    print("\nlargest change of a method in points of image AUROC:",
        ", ".join(f"{name} {value:.2f}" for name, value in largest.items()))
    if options.out: table.reset_index().to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
