"""Does the 95 % interval of a mean over training seeds contain the true value 95 % of the time?

Scores of S networks on the same images are simulated with a known expected AUROC over parts and seeds: normal scores
whose separation differs from seed to seed, with part effects and image effects of which a fraction is common to all
seeds. Beside the shipped interval (`over_seeds` on the seeds' `auroc_interval`)
stand the interval of the first seed alone, and the same mean with the interval for new parts only.

    python benchmarks/seed_coverage.py                 # 400 runs a row, about 40 CPU-seconds; writes
    benchmarks/seed_coverage.csv python benchmarks/seed_coverage.py --runs 100 --out coverage.csv
"""
import argparse
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from thesis_ad.evaluation.metrics import image_auroc

from thesis_ad.evaluation.statistics import auroc_interval, over_seeds
from thesis_ad.settings import rng

PARTS, IMAGES, BETWEEN = 12, 6, 0.3  # parts of each class, images a part, fraction of the variance between parts
AUROCS, SEPARATIONS, COMMON, SEEDS = (0.80, 0.95), (0.0, 0.15, 0.5), (0.5, 0.9), (3, 5)


def simulate(generator, labels, part, auroc, spread, common, seeds):
    """Scores [S, N] whose AUROC is `auroc` in expectation over parts and seeds;
    `spread`: standard deviation of the separation between seeds."""
    separation = stats.norm.ppf(auroc) * np.sqrt(2 + spread**2) + spread * generator.normal(size=(seeds, 1))
    def effect(count):
        return (np.sqrt(common) * generator.normal(size=count)
            + np.sqrt(1 - common) * generator.normal(size=(seeds, count)))
    return (labels * separation + np.sqrt(BETWEEN) * effect(2 * PARTS)[:, part]
        + np.sqrt(1 - BETWEEN) * effect(len(labels)))


def row(auroc, spread, common, seeds, runs):
    "Coverage of the three intervals and mean width of the shipped one."
    generator, part = rng("seed_coverage", auroc, spread, common, seeds), np.arange(2 * PARTS).repeat(IMAGES)
    labels, hits, width, deviation = (part >= PARTS).astype(int), np.zeros(3), 0.0, 0.0
    for _ in range(runs):
        scores = simulate(generator, labels, part, auroc, spread, common, seeds)
        values = np.array([image_auroc(labels, one) for one in scores])
        ends = np.array([auroc_interval(labels, one, part) for one in scores])
        bounds = over_seeds(values.mean(), *ends.mean(0), values), ends[0], ends.mean(0)
        hits += [low <= auroc <= high for low, high in bounds]
        width, deviation = width + bounds[0][1] - bounds[0][0], deviation + values.std(ddof=1)
    parts = (hits / runs).round(3)
    return {"auroc": auroc, "seeds": seeds, "separation_sd": spread, "common": common,
        "runs": runs, "sd_seeds": round(deviation / runs, 3), "over_seeds": parts[0], "first_seed_alone": parts[1],
        "mean_for_new_parts_only": parts[2], "mean_width": round(width / runs, 3)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments = parser.parse_args()
    table = pd.DataFrame([row(*cell, arguments.runs) for cell in itertools.product(AUROCS, SEPARATIONS, COMMON, SEEDS)])
    table.to_csv(arguments.out, index=False)
    print(table.to_string(index=False))
    print(f"lowest coverage: {table.over_seeds.min():.3f} (nominal 0.95)")
