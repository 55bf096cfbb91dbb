"""What should a detector be trained on: images enhanced as in the test or 15 % of them (the thesis), augmented or not?

Image AUROC on calibration splits; no test split is opened. The first command asks every trained detector on the two
rendered datasets, which are enhanced, with the budget of profile `demo`. In its table three detectors do better without
augmentation on both: `featcae`, `autoencoder_plain` and `dfr_attention`. The second command asks `featcae`, the only
one of the three that is far above chance level on both, once more with the budget of profile `paper` and two seeds, and
on the two real datasets, too, which are not enhanced. A default would follow the second table only where the mean over
seeds is higher on every dataset; it is not, so no default changes.

    python benchmarks/training_mixture.py --out benchmarks/training_mixture.csv
    python benchmarks/training_mixture.py --profile paper --seeds 0 1 --shares 1 --methods featcae \
        --datasets prefilter_a prefilter_b elpv_mono elpv_poly --out benchmarks/training_mixture_paper.csv
"""
import argparse, itertools, time
from pathlib import Path

import pandas as pd

from thesis_ad.evaluation.metrics import image_auroc
from thesis_ad.evaluation.protocol import dataset_for, settings_for
from thesis_ad.features.backbones import kept_features
from thesis_ad.models.detector import create, predict_set
from thesis_ad.settings import get_profile, pin_threads

METHODS = ("pca", "dfr", "featcae", "autoencoder", "autoencoder_plain", "cae_l1", "vae", "dfr_attention",
    "stfpm", "efficientad")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=["prefilter_a", "prefilter_b"])
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--shares", nargs="+", type=float, default=[1.0, 0.15])
    parser.add_argument("--out", type=Path, help="write the table here as CSV, after every row")
    options, rows = parser.parse_args(), []
    profile = get_profile(options.profile)
    pin_threads(1)
    for seed, dataset, method, augment, share in itertools.product(options.seeds, options.datasets, options.methods,
            (True, False), options.shares):
        data = dataset_for(dataset, profile)
        detector = create(method,
            **settings_for(method, profile, data.enhance, seed) | dict(augment=augment, enhance_share=share),
            device="cpu")
        start = time.process_time()
        with kept_features():
            detector.fit(data.train, data.calibration)
            seconds = time.process_time() - start
            scores, _ = predict_set(detector, data.calibration)
        rows.append({"dataset": dataset, "method": method, "augment": augment, "enhance_share": share, "seed": seed,
            "calibration_auroc": image_auroc(data.calibration.labels, scores), "held_out_loss": min(
                detector.facts.get("loss_held_out") or [float("nan")]), "fit_cpu_seconds": round(seconds, 1)})
        print(*rows[-1].values(), flush=True)
        if options.out: pd.DataFrame(rows).to_csv(options.out, index=False)


if __name__ == "__main__": main()
