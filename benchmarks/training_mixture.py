"""What should a detector be trained on: images enhanced as in the test or 15 % of them (the thesis), augmented or not?

Image AUROC on the calibration splits of the two rendered datasets, which are enhanced; no test split is opened.
Settings are those of the profile `demo`, one seed. A default follows this table only where both datasets agree.

    python benchmarks/training_mixture.py --out benchmarks/training_mixture.csv
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
    parser.add_argument("--out", type=Path, help="write the table here as CSV, after every row")
    options, profile, rows = parser.parse_args(), get_profile("demo"), []
    pin_threads(1)
    for dataset, method, augment, share in itertools.product(options.datasets, options.methods,
            (True, False), (1.0, 0.15)):
        data = dataset_for(dataset, profile)
        detector = create(method,
            **settings_for(method, profile, data.enhance) | dict(augment=augment, enhance_share=share), device="cpu")
        start = time.process_time()
        with kept_features():
            detector.fit(data.train, data.calibration)
            seconds = time.process_time() - start
            scores, _ = predict_set(detector, data.calibration)
        rows.append({"dataset": dataset, "method": method, "augment": augment, "enhance_share": share,
            "calibration_auroc": image_auroc(data.calibration.labels, scores), "held_out_loss": min(
                detector.facts.get("loss_held_out") or [float("nan")]), "fit_cpu_seconds": round(seconds, 1)})
        print(*rows[-1].values(), flush=True)
        if options.out: pd.DataFrame(rows).to_csv(options.out, index=False)


if __name__ == "__main__": main()
