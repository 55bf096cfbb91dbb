"""`auto` as an engineer uses it: a folder of OK photos, a bundle that decides,
what it says of itself and of a batch that has drifted."""
import json

import numpy as np
import pytest
from conftest import write_image
from hypothesis import given, settings, strategies as st
from PIL import Image
from test_threshold import refused, thesis_ad

from thesis_ad.data.datasets import ImageSet, open_dataset
from thesis_ad.decision.drift import drift_of_scores
from thesis_ad.decision.threshold import calibrate, conformal_threshold, grouped_threshold, held_scores
from thesis_ad.images.pseudo import KINDS, pseudo_defect
from thesis_ad.models.auto import folds_of, joined, number_of_folds
from thesis_ad.models.detector import create, load_bundle
from thesis_ad.settings import UserError, rng

SMALL = ("--set", "size=96", "--set", "cap=60", "--set", "folds=3")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A flat folder of 12 OK photos, 12 new ones, one with a bright square, 12 dark ones;
    and the bundle that `fit auto` makes of the first."""
    root = tmp_path_factory.mktemp("auto")
    for i in range(12): write_image(root / f"photos/{i:02d}.png", rng("auto", i))
    for i in range(12):
        write_image(root / f"new/{i:02d}.png", rng("auto new", i))
        dark = np.asarray(Image.open(root / f"new/{i:02d}.png")) // 5
        (root / "dark").mkdir(exist_ok=True)
        Image.fromarray(dark).save(root / f"dark/{i:02d}.png")
    write_image(root / "nok/square.png", rng("auto nok"), square=True)
    result = thesis_ad("fit", "auto", root / "photos", "-o", root / "bundle", *SMALL)
    assert result.returncode == 0, result.stderr
    return root, result


@pytest.mark.parametrize("first, second",
    [("files", "files"), ("memory", "files"), ("files", "memory"), ("memory", "memory")])
def test_images_in_files_and_in_memory_are_joined(first, second, mvtec_folder):
    data = open_dataset(mvtec_folder)
    def held(images, where):
        if where == "files": return images
        return ImageSet.from_arrays([images.image(i) for i in range(len(images))], labels=images.labels)
    both = joined(held(data.train, first), held(data.calibration, second))
    expected = [images.image(i) for images in (data.train, data.calibration.ok()) for i in range(len(images))]
    assert len(both) == len(expected)
    assert all(np.array_equal(both.image(i), image) for i, image in enumerate(expected)) and not both.labels.any()


def test_a_flat_folder_of_twelve_photos_becomes_a_bundle_that_decides(photos):
    root, fitted = photos
    assert "fitted auto on 12 OK images" in fitted.stdout and "12 scores are out of fold" in fitted.stdout
    result = thesis_ad("inspect", root / "bundle", root / "new", root / "nok")
    status = [line.split()[0] for line in result.stdout.splitlines()]
    assert result.returncode == 1 and status[-1] == "NOK" and status.count("OK") >= 10, result.stdout


def test_each_member_says_what_it_sees_and_their_mean_is_the_score(photos):
    root, _ = photos
    result = thesis_ad("inspect", root / "bundle", root / "nok", "--explain")
    score = float(result.stdout.split()[1])
    members = [float(value) for value in result.stdout.splitlines()[-1].replace(str(root / "nok/square.png"),
        "").split() if value.replace(".", "").replace("-", "").isdigit()]
    assert len(members) == 3 and np.isclose(np.mean(members), score, atol=0.01)


def test_a_batch_under_another_light_is_decided_and_the_drift_is_said(photos, tmp_path):
    root, _ = photos
    result = thesis_ad("inspect", root / "bundle", root / "dark", "-o", tmp_path / "out")
    facts = json.loads((tmp_path / "out/drift.json").read_text())
    assert "warning: drift: the scores of these 12 images are higher" in result.stderr
    assert facts["direction"] == "higher" and facts["sentence"] in result.stderr
    assert len((tmp_path / "out/decisions.csv").read_text().splitlines()) == 13
    assert "drift" not in thesis_ad("inspect", root / "bundle", root / "new").stderr


def test_calibrating_again_on_the_same_photos_takes_their_out_of_fold_scores(photos, tmp_path):
    root, _ = photos
    detector = load_bundle(root / "bundle", "cpu")
    own = np.array([score for score, *_ in held_scores(detector).values()])
    assert len(own) == 12 and detector.threshold["value"] == conformal_threshold(own).value
    result = thesis_ad("calibrate", root / "bundle", root / "photos", "--alpha", "0.2")
    assert (result.returncode == 0 and load_bundle(root / "bundle",
        "cpu").threshold["value"] == conformal_threshold(own, 0.2).value), result.stderr


def test_too_few_photos_are_refused_with_a_sentence(tmp_path):
    for i in range(2): write_image(tmp_path / f"photos/{i}.png", rng("few", i))
    refused(thesis_ad("fit", "auto", tmp_path / "photos", "-o", tmp_path / "b", *SMALL),
        "auto needs 3 OK images or more")


@pytest.mark.parametrize("kinds", [1, 2])
def test_photos_of_one_part_and_of_two_kinds_of_parts(kinds):
    images = np.stack([np.roll(Image.effect_noise((96, 72), 20), i, 0)[..., None].repeat(3, 2) // (1 + i % kinds)
        for i in range(20)]).astype(np.uint8)
    train = ImageSet.from_arrays(images, groups=["one part"] * 20 if kinds == 1
        else [f"kind {i % 2}-{i // 4}" for i in range(20)])
    detector = create("auto", size=(96, 96), cap=60, folds=4, device="cpu").fit(train)
    assert detector.facts["folds_by"] == ("image" if kinds == 1 else "part")
    threshold = calibrate(detector, train)
    assert np.isfinite(threshold.value) and threshold.n == 20


# ---- the rules ----

SETTINGS = settings(max_examples=100, deadline=None)


@SETTINGS
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(2, 8), st.integers(0, 3))
def test_no_part_is_in_two_folds_and_folds_are_even(counts, folds, seed):
    groups = np.repeat([f"part {i}" for i in range(len(counts))], counts)
    fold = folds_of(groups, folds, seed)
    assert ((0 <= fold) & (fold < folds)).all() and (folds_of(groups, folds, seed) == fold).all()
    if len(counts) > 1: assert all(len(set(fold[groups == group])) == 1 for group in set(groups))
    sizes = np.bincount(fold, minlength=folds)
    assert sizes.max() - sizes.min() <= (max(counts) if len(counts) > 1 else 1)
    assert 5 <= number_of_folds(len(groups)) <= 15


@SETTINGS
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 40).map(float)), min_size=3, max_size=80),
    st.floats(0.05, 0.6))
def test_a_threshold_for_new_parts_leaves_at_most_alpha_of_the_weight_above_it(rows, alpha):
    groups, scores = np.array(rows).T
    G = len(set(groups))
    if alpha * (G + 1) < 1:
        with pytest.raises(UserError, match=f"there are {G}; they can promise 1 in {G + 1}"):
            grouped_threshold(scores, alpha, groups)
        return
    t = grouped_threshold(scores, alpha, groups)
    above = sum((scores[groups == g] > t.value).mean() for g in set(groups)) / (G + 1) + 1 / (G + 1)
    assert above <= alpha + 1e-9 and np.isclose(t.expected, above) and t.value in scores
    lower = scores[scores < t.value]
    if len(lower):
        assert (sum((scores[groups == g] > lower.max()).mean() for g in set(groups)) / (G + 1) + 1 / (G + 1)
            > alpha - 1e-9), "a lower threshold would do"


@SETTINGS
@given(st.integers(10, 60), st.integers(3, 80), st.floats(-5, 5), st.integers(0, 5))
def test_drift_depends_on_the_order_of_scores_alone(n, N, shift, seed):
    draw = rng("drift test", seed, n, N)
    ok, new = draw.standard_normal(N), draw.standard_normal(n) + shift
    one, other = drift_of_scores(ok, new), drift_of_scores(np.exp(ok), np.exp(new))
    assert one.direction == other.direction and np.isclose(one.p, other.p) and bool(one) == (one.p <= one.alpha)
    if one.direction == "higher": assert drift_of_scores(ok, new + 1).direction == "higher"


@SETTINGS
@given(st.sampled_from(KINDS), st.integers(0, 1000), st.integers(24, 80), st.integers(24, 80))
def test_a_pseudo_defect_changes_what_its_mask_marks_and_little_else(kind, seed, height, width):
    image = rng("pseudo test", seed).integers(60, 200, (height, width, 3)).astype(np.uint8)
    changed, mask, named = pseudo_defect(image, rng(seed), kind)
    assert named == kind and changed.shape == image.shape and mask.shape == image.shape[:2]
    assert changed.dtype == np.uint8 and mask.any()
    assert (pseudo_defect(image, rng(seed), kind)[0] == changed).all()
    assert (changed != image).any(2)[~mask].mean() < 0.35
