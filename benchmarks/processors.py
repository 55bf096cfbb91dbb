"""How far do the results move on another processor? One run's metrics beside the published ones.

    make reproduce ARGS='--profile paper'     # on the other machine, in a clone OTHER
    python benchmarks/processors.py OTHER/figures/paper/tables/metrics.csv --processor NAME --out processors.csv

A metric is inside where it lies within the published interval, which covers new parts and new seeds. processors.csv
holds the run that the discussion reads: the metrics of all five seeds of profile paper on a processor with AVX2 alone,
where the published results come from one with AVX-512 and bfloat16 instructions.
"""
import argparse
from pathlib import Path

import pandas as pd

from thesis_ad.settings import processor, repository_root

KEY = ["dataset", "method", "metric"]


def compared(run, published):
    """`run` (metrics.csv of one processor) with the published value of the same seed and the published interval.

    published: the folder with metrics.csv and summary.csv."""
    same = pd.read_csv(published / "metrics.csv")[[*KEY, "seed", "value"]].rename(columns={"value": "published"})
    intervals = pd.read_csv(published / "summary.csv")[[*KEY, "mean", "ci_low", "ci_high"]]
    table = run.merge(same, on=[*KEY, "seed"]).merge(intervals, on=KEY).dropna(subset=["value", "ci_low"])
    return table.assign(moved=table.value - table.published, inside=table.value.between(table.ci_low, table.ci_high))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="metrics.csv of a run of profile paper on this processor")
    parser.add_argument("--processor", default=processor(), help="what to call it (default: that of this machine)")
    parser.add_argument("--out", type=Path, help="write the run's metrics here as CSV")
    options = parser.parse_args()
    run = pd.read_csv(options.run)[[*KEY, "seed", "value"]].dropna().assign(processor=options.processor)
    table = compared(run, repository_root() / "figures" / "paper" / "tables")
    print(table.groupby("metric").agg(largest_move=("moved", lambda m: m.abs().max()), inside=("inside", "sum"),
        of=("inside", "size")).round(4).to_string())
    print("\noutside:", table[~table.inside][[*KEY, "value", "ci_low", "ci_high"]].round(4).to_string(index=False))
    if options.out: run.to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
