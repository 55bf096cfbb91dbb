"""Does the 95 % interval of the image AUROC hold the true value 95 % of the time?

Scores are drawn with a known AUROC (two normals, a share of the variance between parts), the interval is computed, and
hits are counted. Beside the shipped interval (`auroc_interval`) stand two common ones: logit-DeLong that takes every
photo for a part of its own, and the plain percentile bootstrap over parts.

    python benchmarks/auroc_coverage.py                      # 1,000 runs a cell, about 3 minutes of one core; writes
    benchmarks/auroc_coverage.csv python benchmarks/auroc_coverage.py --runs 100 --out coverage.csv
"""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import special, stats

from thesis_ad.evaluation.metrics import image_auroc

from thesis_ad.evaluation.statistics import auroc_interval
from thesis_ad.settings import rng

# name: (OK parts, NOK parts, shared parts, share of the variance between parts); 0 parts = every photo its own
DESIGNS = {
    "independent": (0, 0, False, 0.0),
    "10 OK + 10 NOK parts, 0.3": (10, 10, False, 0.3),
    "10 OK + 10 NOK parts, 0.6": (10, 10, False, 0.6),
    "5 OK + 5 NOK parts, 0.3": (5, 5, False, 0.3),
    "5 OK + 5 NOK parts, 0.6": (5, 5, False, 0.6),
    "6 OK + 4 NOK parts, 0.3": (6, 4, False, 0.3),
    "10 parts with both, 0.3": (10, 10, True, 0.3),
}
SIZES, AUROCS = ((50, 30), (170, 150)), (0.80, 0.90, 0.97)


def groups_of(design, n_ok, n_nok):
    "Group numbers [n_ok + n_nok]."
    ok_parts, nok_parts, shared, _ = DESIGNS[design]
    if not ok_parts: return np.arange(n_ok + n_nok)
    return np.r_[np.arange(n_ok) % ok_parts, np.arange(n_nok) % nok_parts + (0 if shared else ok_parts)]


def draw(generator, labels, groups, auroc, between, spread=1.0):
    "Scores of which two images of different parts have this AUROC; NOK scores have `spread` times the deviation."
    noise = (np.sqrt(between) * generator.normal(size=groups.max() + 1)[groups]
        + np.sqrt(1 - between) * generator.normal(size=len(labels)))
    return np.where(labels == 1, spread * noise + stats.norm.ppf(auroc) * np.hypot(1, spread), noise)


def logit_delong(labels, scores, level=0.95):
    "DeLong et al. (1988) on the logit scale, photos independent."
    auroc = image_auroc(labels, scores)
    if auroc in (0.0, 1.0): return auroc, auroc
    wins = _wins(labels, scores)
    se = (np.sqrt(wins.mean(1).var(ddof=1) / wins.shape[0] + wins.mean(0).var(ddof=1) / wins.shape[1])
        / (auroc * (1 - auroc)))
    return tuple(special.expit(special.logit(auroc) + stats.norm.ppf((1 + level) / 2) * se * np.array([-1, 1])))


def percentile_bootstrap(generator, labels, scores, groups, replicates=400):
    "Plain 95 % percentiles; parts drawn with replacement, OK and NOK parts apart unless parts hold both."
    n = groups.max() + 1
    size = [np.bincount(groups[labels == c], minlength=n) for c in (0, 1)]
    ok, nok = (np.flatnonzero(s) for s in size)
    # sums of wins, part by part
    pairs = (groups[labels == 1] == nok[:, None]) @ _wins(labels, scores) @ (groups[labels == 0][:, None] == ok)
    strata = [np.arange(n)] if np.intersect1d(ok, nok).size else [ok, nok]
    w = np.zeros((replicates, n))
    for stratum in strata:
        w[:, stratum] = generator.multinomial(len(stratum), np.full(len(stratum), 1 / len(stratum)), replicates)
    return np.quantile(((w[:, nok] @ pairs) * w[:, ok]).sum(1) / ((w @ size[0]) * (w @ size[1])), [0.025, 0.975])


def _wins(labels, scores):
    difference = scores[labels == 1][:, None] - scores[labels == 0]
    return (difference > 0) + 0.5 * (difference == 0)


def cell(design, n_ok, n_nok, auroc, runs, spread):
    "One row of the table: coverage of each interval and the mean width of the shipped one."
    generator = rng("auroc_coverage", design, n_ok, n_nok, auroc, spread)
    labels, groups = np.repeat([0, 1], [n_ok, n_nok]), groups_of(design, n_ok, n_nok)
    hits, width = np.zeros(3), 0.0
    for _ in range(runs):
        scores = draw(generator, labels, groups, auroc, DESIGNS[design][3], spread)
        bounds = (auroc_interval(labels, scores, groups), logit_delong(labels, scores),
            percentile_bootstrap(generator, labels, scores, groups))
        hits += [low <= auroc <= high for low, high in bounds]
        width += bounds[0][1] - bounds[0][0]
    shares = (hits / runs).round(3)
    return {"groups": design, "ok": n_ok, "nok": n_nok, "auroc": auroc, "nok_spread": spread, "runs": runs,
        "auroc_interval": shares[0], "photo_by_photo": shares[1], "percentile_bootstrap": shares[2],
        "mean_width": round(width / runs, 3)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--spread", type=float, default=1.0,
        help="standard deviation of NOK scores in units of that of OK scores")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments = parser.parse_args()
    rows = [cell(design, *size, auroc, arguments.runs, arguments.spread) for design in DESIGNS for size in SIZES
        for auroc in AUROCS]
    table = pd.DataFrame(rows)
    table.to_csv(arguments.out, index=False)
    print(table.to_string(index=False))
    print(f"lowest coverage: {table['auroc_interval'].min():.3f} (nominal 0.95)")
