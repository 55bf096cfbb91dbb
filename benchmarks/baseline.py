"""The pixel autoencoder at other widths, sizes and skips: does a better setting of the baseline exist?

    OMP_NUM_THREADS=1 python benchmarks/baseline.py prefilter_b elpv_mono

Fitted on the training split with the budget of the profile (default: paper) and scored on the calibration split, so the
test split stays sealed. A row a dataset and variant; a row that is there is not measured again. `gain` is the
difference of the image AUROC to the usual settings, with its 95 % interval over parts; `held_out_loss` is that of
held-out OK parts, comparable at equal size only.
"""
import argparse
from pathlib import Path

from growing import grown

from thesis_ad.data.datasets import open_dataset
from thesis_ad.evaluation.metrics import image_auroc
from thesis_ad.evaluation.protocol import settings_for
from thesis_ad.evaluation.statistics import paired_difference
from thesis_ad.models.detector import create, predict_set
from thesis_ad.settings import get_profile, pin_threads

VARIANTS = {"usual": {}, "half the width": {"width": 8}, "twice the width": {"width": 32},
    "64 pixels": {"size": (64, 64)},
    "256 pixels": {"size": (256, 256)}, "no skip": {"skip": 0}, "skip at stride 4": {"skip": 4},
    "no attention": {"attention": False}}


def measure(data, profile, variant, usual):
    "One row of the table; `usual` keeps the scores of the usual settings by dataset."
    def scored(change):
        detector = create("autoencoder", **settings_for("autoencoder", profile, data.enhance) | change, device="cpu")
        return detector.fit(data.train), predict_set(detector, data.calibration)[0]
    if data.name not in usual: usual[data.name] = scored({})
    detector, scores = scored(VARIANTS[variant]) if VARIANTS[variant] else usual[data.name]
    images = data.calibration
    gain, low, high = paired_difference(images.labels, scores, usual[data.name][1], images.groups, profile.seed,
        profile.replicates)
    return [{"dataset": data.name, "variant": variant, "updates": detector.facts["updates"],
        "held_out_loss": detector.facts["loss_held_out"][-1], "image_auroc": image_auroc(images.labels, scores),
        "gain": gain, "gain_low": low, "gain_high": high, "ok": len(images.ok()), "nok": len(images.nok())}]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", metavar="DATA",
        help="name of a dataset whose calibration split holds OK and NOK images")
    parser.add_argument("--profile", default="paper")
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments, usual = parser.parse_args(), {}
    pin_threads(1)
    profile = get_profile(arguments.profile)
    opened = {name: open_dataset(name) for name in arguments.data}
    grown(arguments.out, ["dataset", "variant"], [(name, variant) for name in opened for variant in VARIANTS],
        lambda name, variant: measure(opened[name], profile, variant, usual))


if __name__ == "__main__": main()
