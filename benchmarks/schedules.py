"""What does a short schedule cost?

Image AUROC of every trained detector with half, all, twice and four times the updates of the profile `demo`.

A budget is chosen by this table, so it reads calibration splits and no test split. Everything else is the profile's:
training may end before the budget is used up, when the loss on held-out parts no longer falls. Fits are kept in the
cache folder.
The interval is that of the difference to the profile's own budget on the same images, resampled by physical part.

    python benchmarks/schedules.py --factors 1 2 4 --out schedules.csv
"""
import argparse, dataclasses
from pathlib import Path

import joblib
import pandas as pd

from thesis_ad.evaluation.metrics import image_auroc

from thesis_ad.evaluation.statistics import paired_difference
from thesis_ad.evaluation.protocol import on_calibration, tasks_for
from thesis_ad.settings import get_profile, one_of

SCHEDULES = ({name: f"{name}_steps" for name in ("dfr", "dfr_attention", "featcae", "stfpm", "efficientad")}
    | dict.fromkeys(("autoencoder", "autoencoder_plain", "cae_l1", "vae"), "autoencoder_steps"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=["prefilter_b", "elpv_mono"])
    parser.add_argument("--methods", nargs="+", default=list(SCHEDULES), help="default: all trained detectors")
    parser.add_argument("--factors", type=float, nargs="+", default=[0.5, 1, 2, 4])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the table here as CSV")
    options, demo, rows = parser.parse_args(), get_profile("demo"), []
    for method in options.methods:
        field = SCHEDULES[one_of(method, SCHEDULES, "trained detector")]
        profiles = {factor: dataclasses.replace(demo, **{field: max(1, round(factor * getattr(demo, field)))})
            for factor in sorted({1.0, *options.factors})}
        tasks = {(task.dataset, factor): task for factor, profile in profiles.items()
            for task in tasks_for(profile, [method], options.datasets)}
        found = dict(zip(tasks,
            joblib.Parallel(n_jobs=options.workers)(joblib.delayed(on_calibration)(task) for task in tasks.values())))
        for dataset in options.datasets:
            usual, _ = found[dataset, 1.0]
            for factor, profile in profiles.items():
                one, seconds = found[dataset, factor]
                value, low, high = paired_difference(usual.label, one.score, usual.score, usual.group, seed=demo.seed,
                    replicates=demo.replicates)
                rows.append({"dataset": dataset, "method": method, "updates": getattr(profile, field), "factor": factor,
                    "calibration_auroc": image_auroc(one.label, one.score), "difference": value, "low": low,
                    "high": high, "fit_seconds": round(seconds, 1)})
        print(pd.DataFrame(rows[-len(profiles) * len(options.datasets):]).round(3).to_string(index=False), flush=True)
    if options.out: pd.DataFrame(rows).round(5).to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
