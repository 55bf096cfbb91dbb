"""What does a short schedule cost? Image AUROC of every trained detector with half, all, twice and four times the steps of the profile `demo`.

Everything else is the profile's. Fits and scores are kept in the cache folder. The interval is that of the difference to the profile's
own schedule on the same pictures, resampled by physical part.

    python benchmarks/schedules.py --factors 1 2 4 --out benchmarks/schedules.csv

Measured once (schedules.csv), when the profile had 400 steps of dfr and 500 of featcae. `calibration_auroc`, not the test split, moved these
two to 800 and 1,000, where it stands 2.4, 0.3 and -0.3 points higher for dfr and 2.8, 3.0 and 2.8 for featcae (prefilter_a, prefilter_b,
elpv_mono), and the default of stfpm outside the profile to 300 steps (7.2, 4.9 and 0.5 points above 75). It gave no reason for more steps of
efficientad (-11.6, 2.8 and -7.1 points at four times), none that the three agree on for dfr_attention, and cae_l1 and vae move without order.

On the test split four times the schedule gains what can be told from none on prefilter_b for stfpm (14.2 points), dfr_attention (8.8),
efficientad (8.3), featcae (2.8) and dfr (2.0), on prefilter_a for featcae (5.9) and dfr (5.6), on elpv_mono for efficientad (4.5).
"""
import argparse, dataclasses
from pathlib import Path

import pandas as pd

from thesis_ad.evaluation.metrics import image_auroc, paired_difference
from thesis_ad.evaluation.protocol import run_all, tasks_for
from thesis_ad.settings import get_profile, one_of

SCHEDULES = {"dfr": "dfr_steps", "dfr_attention": "dfr_attention_epochs", "featcae": "featcae_steps", "stfpm": "stfpm_steps", "efficientad": "efficientad_steps",
             "cae_l1": "cae_l1_epochs", "vae": "vae_epochs", "autoencoder": "autoencoder_epochs", "autoencoder_plain": "autoencoder_epochs"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=["prefilter_b", "elpv_mono"])
    parser.add_argument("--methods", nargs="+", default=[name for name in SCHEDULES if not name.startswith("autoencoder")], help="default: all but the two baselines, which keep the thesis's epochs")
    parser.add_argument("--factors", type=float, nargs="+", default=[0.5, 1, 2, 4])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the table here as CSV")
    options, demo, rows = parser.parse_args(), get_profile("demo"), []
    for method in options.methods:
        field = SCHEDULES[one_of(method, SCHEDULES, "trained detector")]
        profiles = {factor: dataclasses.replace(demo, **{field: max(1, round(factor * getattr(demo, field)))}) for factor in sorted({1.0, *options.factors})}
        found = {factor: run_all(tasks_for(profile, [method], options.datasets), options.workers) for factor, profile in profiles.items()}
        for dataset in options.datasets:
            usual = found[1.0][dataset, method].scores
            for factor, profile in profiles.items():
                one = found[factor][dataset, method]
                value, low, high = paired_difference(usual.label, one.scores.score, usual.score, usual.group, seed=demo.seed, replicates=demo.replicates)
                rows.append({"dataset": dataset, "method": method, "steps_or_epochs": getattr(profile, field), "factor": factor, "calibration_auroc": image_auroc(one.calibration.label, one.calibration.score),
                             "image_auroc": image_auroc(usual.label, one.scores.score), "difference": value, "low": low, "high": high, "fit_seconds": round(one.seconds["fit"], 1)})
        print(pd.DataFrame(rows[-len(profiles) * len(options.datasets):]).round(3).to_string(index=False), flush=True)
    if options.out: pd.DataFrame(rows).round(5).to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
