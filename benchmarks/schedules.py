"""What does a short schedule cost?

Image AUROC of every trained detector with half, all, twice and four times the updates of a profile, and the loss on
held-out parts at its end.

A budget is chosen by this table, so it reads calibration splits and no test split. Everything else is the profile's:
training may end before the budget is used up, when the loss on held-out parts no longer falls. Fits are kept in the
cache folder.
The interval is that of the difference to the profile's own budget on the same images, resampled by physical part.

    python benchmarks/schedules.py --profile paper --methods autoencoder dfr --factors 1 4 --out schedules.csv
"""
import argparse, dataclasses
from pathlib import Path

import joblib
import numpy as np
import pandas as pd

from thesis_ad.evaluation.metrics import image_auroc

from thesis_ad.evaluation.statistics import paired_difference
from thesis_ad.evaluation.protocol import fit_cached, on_calibration, tasks_for
from thesis_ad.models.detector import read_bundle
from thesis_ad.settings import get_profile, one_of

SCHEDULES = ({name: f"{name}_steps" for name in ("dfr", "dfr_attention", "featcae", "stfpm", "efficientad")}
    | dict.fromkeys(("autoencoder", "autoencoder_plain", "cae_l1", "vae"), "autoencoder_steps"))


def measured(task):
    "(scores of the calibration images, seconds of the fit, facts of the training) of a task."
    scores, seconds = on_calibration(task)
    facts = read_bundle(fit_cached(task)[0])[0]["facts"]
    held, steps = facts["loss_held_out"], facts["steps"]
    return scores, seconds, {"updates": facts["updates"], "held_out_loss": held[-1], "fall_in_last_quarter":
        1 - held[-1] / np.interp(0.75 * steps[-1], steps, held), "no_longer_fell": "no longer fell" in facts["stopped"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=["prefilter_b", "elpv_mono"])
    parser.add_argument("--methods", nargs="+", default=list(SCHEDULES), help="default: all trained detectors")
    parser.add_argument("--profile", default="demo", help="the profile with the usual budget (default: demo)")
    parser.add_argument("--factors", type=float, nargs="+", default=[0.5, 1, 2, 4])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the table here as CSV")
    options, rows = parser.parse_args(), []
    profile = get_profile(options.profile)
    profile = dataclasses.replace(profile, seeds=profile.seeds[:1])
    for method in options.methods:
        field = SCHEDULES[one_of(method, SCHEDULES, "trained detector")]
        profiles = {factor: dataclasses.replace(profile, **{field: max(1, round(factor * getattr(profile, field)))})
            for factor in sorted({1.0, *options.factors})}
        tasks = {(task.dataset, factor): task for factor, longer in profiles.items()
            for task in tasks_for(longer, [method], options.datasets)}
        found = dict(zip(tasks,
            joblib.Parallel(n_jobs=options.workers)(joblib.delayed(measured)(task) for task in tasks.values())))
        for dataset in options.datasets:
            usual, *_ = found[dataset, 1.0]
            for factor, longer in profiles.items():
                one, seconds, training = found[dataset, factor]
                value, low, high = paired_difference(usual.label, one.score, usual.score, usual.group,
                    seed=profile.seeds[0], replicates=profile.replicates)
                rows.append({"dataset": dataset, "method": method, "budget": getattr(longer, field), "factor": factor}
                    | training | {"calibration_auroc": image_auroc(one.label, one.score), "difference": value,
                    "low": low, "high": high, "fit_seconds": round(seconds, 1)})
        print(pd.DataFrame(rows[-len(profiles) * len(options.datasets):]).round(3).to_string(index=False), flush=True)
    if options.out: pd.DataFrame(rows).round(5).to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
