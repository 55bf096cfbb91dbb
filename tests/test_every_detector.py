"""What holds for every registered detector, one that is added tomorrow included."""
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from thesis_ad.data.datasets import ImageSet
from thesis_ad.features import backbones
from thesis_ad.models.detector import FORMAT, METHODS, Detector, create, methods, predict_set, register, settings_of
from thesis_ad.models.training import Trained
from thesis_ad.settings import UserError, pin_threads, rng

SMALL = {"size": (64, 96), "steps": 4, "width": 8, "cells": (16, 24), "autoencoder_width": 8,
    "rows_per_step": 256, "cap": 60}
NAMES = sorted(methods())
FLIPS = [name for name in NAMES if name in ("patchcore", "gaussian")]      # no position, no trained kernel
# nothing but the vectors of single cells, and their places
SEES_VECTORS = ("patchcore", "padim", "gaussian", "global_knn", "pca", "dfr", "featcae")


def small(name, **changes):
    known = settings_of(methods()[name]())
    return create(name, **{key: value for key, value in (SMALL | changes).items() if key in known}, device="cpu")


def image_set(count, key="every", defect=False):
    images = 110 + 12 * rng(key).standard_normal((count, 80, 120, 3)) + 30 * np.sin(np.arange(120) / 9)[:, None]
    if defect: images[:, 30:46, 50:66] = 250
    return images.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module", autouse=True)
def one_thread(): pin_threads(1)


@pytest.fixture(scope="module")
def test_set():
    return ImageSet.from_arrays(np.concatenate([image_set(3, "ok"), image_set(3, "nok", defect=True)]),
        labels=[0, 0, 0, 1, 1, 1])


@pytest.fixture(scope="module")
def fitted():
    train, found = ImageSet.from_arrays(image_set(6)), {}
    held = ImageSet.from_arrays(np.concatenate([image_set(2, "held"), image_set(2, "held NOK", defect=True)]),
        labels=[0, 0, 1, 1])
    def get(name):
        if name not in found: found[name] = small(name).fit(train, held)
        return found[name]
    return get


@pytest.mark.parametrize("name", NAMES)
def test_scores_maps_and_bundle(name, fitted, test_set, tmp_path):
    detector = fitted(name)
    scores, maps = predict_set(detector, test_set)
    assert scores.dtype == np.float64 and scores.shape == (6,) and np.isfinite(scores).all()
    if maps is not None:
        assert all(heat.shape == (80, 120) and heat.dtype == np.float32 and np.isfinite(heat).all() for heat in maps)
    again, redrawn = predict_set(Detector.load(detector.save(tmp_path / "bundle"), device="cpu"), test_set)
    assert (again == scores).all(), "a bundle gives other scores than the detector it was saved from"
    assert maps is None or all((a == b).all() for a, b in zip(maps, redrawn))


@pytest.mark.parametrize("shape", [{"native_aspect": True}, {"canvas": (0, 0)}],
    ids=["native aspect", "own size in tiles"])
@pytest.mark.parametrize("name", NAMES)
def test_long_images_keep_their_shape(name, shape, tmp_path):
    strips = ImageSet.from_arrays((90 + 8 * rng("strips").standard_normal((5, 70, 210, 3))).clip(0,
        255).astype(np.uint8))
    detector = small(name, size=(64, 64), cells=(16, 16), **shape).fit(strips.take(range(4)), strips.take([4]))
    scores, maps = predict_set(detector, strips)
    assert np.isfinite(scores).all()
    if maps is not None: assert all(heat.shape == (70, 210) and np.isfinite(heat).all() for heat in maps)
    again = Detector.load(detector.save(tmp_path / "bundle"), device="cpu")
    assert again.input_size == detector.input_size and (predict_set(again, strips)[0] == scores).all()


@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize("name", NAMES)
def test_a_constant_image_has_a_finite_score(name, level, fitted):
    scores, maps = predict_set(fitted(name), ImageSet.from_arrays(np.full((2, 80, 120, 3), level, np.uint8)))
    assert np.isfinite(scores).all() and scores[0] == scores[1]
    if maps is not None: assert np.isfinite(maps).all()


def small_facts(detector): return {key: value for key, value in detector.facts.items() if not key.startswith("loss")}


@pytest.mark.parametrize("name", NAMES)
def test_a_fit_depends_on_its_training_images_alone(name, fitted, test_set, tmp_path, monkeypatch):
    """Neither on an earlier fit, nor on the calibration split that the fixture's detectors were given, nor on the
    process's generator; and half of a fit is none."""
    detector = small(name).fit(ImageSet.from_arrays(image_set(3, "another part")))
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    held = [image_set(2, "held")] * (name == "auto")         # the one detector that learns from the OK images of both
    detector.fit(ImageSet.from_arrays(image_set(6)), *map(ImageSet.from_arrays, held))
    assert torch.equal(state, torch.random.get_rng_state()), "the process's generator was moved"
    ours, theirs = detector.tensors(), fitted(name).tensors()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert small_facts(detector) == small_facts(fitted(name))
    assert (predict_set(detector, test_set)[0] == predict_set(fitted(name), test_set)[0]).all()
    def interrupted(self, images): raise KeyboardInterrupt
    monkeypatch.setattr(type(detector), "_fit", lambda self, train, calibration: None)
    monkeypatch.setattr(type(detector), "predict", interrupted)
    with pytest.raises(KeyboardInterrupt): detector.fit(ImageSet.from_arrays(image_set(4, "others")))
    monkeypatch.undo()
    with pytest.raises(UserError, match="has not been fitted yet"): detector.predict(torch.rand(1, 3, 64, 96))
    with pytest.raises(UserError, match="has not been fitted yet"): detector.save(tmp_path / "bundle")


@pytest.mark.parametrize("name", NAMES)
def test_a_image_is_judged_by_itself(name, fitted, test_set):
    detector = fitted(name)
    together = predict_set(detector, test_set, batch_size=6)[0]
    one_by_one = predict_set(detector, test_set, batch_size=1)[0]
    assert np.allclose(together, one_by_one, rtol=1e-5), "the score of an image depends on its company"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["one image", "one colour"])
def test_little_to_learn_from(name, kind, test_set):
    train = ImageSet.from_arrays(image_set(1) if kind == "one image" else np.full((4, 80, 120, 3), 128, np.uint8))
    try: scores, maps = predict_set(small(name).fit(train), test_set)
    except UserError as error: assert len(str(error)) > 20; return
    assert np.isfinite(scores).all() and (maps is None or all(np.isfinite(heat).all() for heat in maps))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 1e30])
def test_pixels_that_are_no_numbers(name, broken, fitted, test_set):
    batch = next(fitted(name).prepare(test_set).batches(2))[1].clone()
    batch[1, 0, 10, 10] = broken
    with pytest.raises(UserError, match="NaN or infinite|pixels lie in"): fitted(name).predict(batch)


@pytest.mark.parametrize("name", NAMES)
def test_predict_takes_any_number_type_and_refuses_what_is_no_batch(name, fitted, test_set):
    batch = next(fitted(name).prepare(test_set).batches(2))[1]
    scores = fitted(name).predict(batch)[0]
    assert (fitted(name).predict(batch.double())[0] == scores).all()
    assert (fitted(name).predict(batch.numpy())[0] == scores).all()
    assert (fitted(name).predict(batch.flip(3).numpy()[..., ::-1])[0] == scores).all()          # negative strides
    for wrong in (batch[:0], batch[0], batch[:, :1]):
        with pytest.raises(UserError, match=r"\[B, 3, H, W\]"): fitted(name).predict(wrong)
    with pytest.raises(UserError, match="floating-point numbers in 0 … 1, not uint8"):
        fitted(name).predict((255 * batch).byte())


@pytest.mark.parametrize("name", NAMES)
def test_what_has_not_learned_neither_judges_nor_is_saved(name, tmp_path):
    with pytest.raises(UserError, match=f"{name} has not been fitted yet"):
        small(name).predict(torch.rand(1, 3, 64, 96))
    with pytest.raises(UserError, match=f"{name} has not been fitted yet"): small(name).save(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("name", [name for name in NAMES if issubclass(methods()[name], Trained)])
def test_a_fit_that_diverges_in_its_last_step_is_refused(name):
    with pytest.raises(UserError, match="diverged.*learning_rate"):
        small(name, steps=1, learning_rate=1e30).fit(ImageSet.from_arrays(image_set(4)))


def test_a_bundle_of_another_format_is_said_to_be_one(fitted, tmp_path):
    "Whatever else differs: fields, files, seal."
    path = fitted("gaussian").save(tmp_path / "bundle")
    facts = json.loads((path / "bundle.json").read_text())
    for other in (facts | {"format": FORMAT + 1}, {"format": 1, "model": "gaussian"}):
        (path / "bundle.json").write_text(json.dumps(other))
        with pytest.raises(UserError, match=f"bundle format {other['format']} and this version reads format {FORMAT}"):
            Detector.load(path)
    (path / "tensors.safetensors").unlink()
    with pytest.raises(UserError, match="bundle format 1"): Detector.load(path)
    (path / "bundle.json").write_text(json.dumps(facts | {"seed": 3}))
    with pytest.raises(UserError, match="was changed"): Detector.load(path)


def test_a_class_of_this_session_goes_before_the_exported_one():
    "A chapter that is being written is what `create` makes, also once the library has been imported."
    before = methods()["gaussian"]
    try:
        mine = register("gaussian", "another one")(type("Mine", (before,), {}))
        assert type(create("gaussian")) is mine
    finally: METHODS["gaussian"] = before


@pytest.mark.parametrize("name, settings, words", [
    ("dfr", {"size": "auto"}, "size"), ("dfr", {"size": 256.5}, "size"), ("dfr", {"size": "256.5,3"}, "size"),
    ("patchcore", {"canvas": "auto"}, "canvas"),
    ("patchcore", {"size": True}, "size"), ("patchcore", {"size": [["a"]]}, "size"),
    ("patchcore", {"cap": "1e999"}, "cap"), ("patchcore", {"stages": "last"}, "stages"),
    ("patchcore", {"candidates": 0}, "candidates"), ("patchcore", {"projection": -1}, "projection"),
    ("patchcore", {"cap": -1}, "cap"), ("patchcore", {"ratio": 2}, "ratio"),
    ("padim", {"eps": 0}, "eps"), ("gaussian", {"eps": -0.1}, "eps"),
    ("featcae", {"rows_per_step": 1}, "rows_per_step"), ("dfr", {"rows_per_step": 1}, "rows_per_step"),
    ("padim", {"channels": -1}, "channels"), ("patchcore", {"overlap": 1.5}, "overlap"),
    ("patchcore", {"overlap": -0.1}, "overlap"),
    ("patchcore", {"size": "64,6000000000"}, "1 to 100,000"), ("patchcore", {"canvas": 10**7}, "canvas"),
    ("patchcore", {"sigma": True}, "sigma"),
    ("patchcore", {"canvas": "1,2,3"}, r"not \(1, 2, 3\)"), ("vae", {"blur": 1e9}, "blur"),
    ("patchcore", {"sigma": "nan"}, "sigma"), ("patchcore", {"sigma": "inf"}, "sigma"),
    *((name, {"sigma": value}, "sigma lies in 0 … 1000") for name in ("patchcore", "padim", "gaussian")
        for value in (-1, 1e9))])
def test_settings_that_cannot_work_are_refused_in_a_sentence(name, settings, words):
    with pytest.raises(UserError, match=words): create(name, **settings)


def test_a_number_is_taken_as_people_write_it():
    assert [create("patchcore", overlap=text).overlap for text in (".3", "3e-1", "0.3", 0.3)] == [0.3] * 4
    assert create("patchcore", sigma="4").sigma == 4.0
    assert create("padim", named_channels=" [1, 2] ").named_channels == create("padim",
        named_channels="1,2").named_channels == (1, 2)


def test_a_student_that_would_see_one_cell_a_step_is_refused_before_it_trains():
    with pytest.raises(UserError, match="batch is at least 2"):
        small("stfpm", size=(8, 8), batch=1).fit(ImageSet.from_arrays(image_set(3)))


def test_a_covariance_without_an_inverse_is_refused_in_a_sentence():
    with pytest.raises(UserError, match="raise eps"): small("padim", eps=1e-30).fit(ImageSet.from_arrays(image_set(4)))


@pytest.mark.parametrize("name", ["gaussian", "efficientad"])
def test_maps_are_scaled_by_images_as_they_are_judged(name, monkeypatch):
    seen, view = [], Detector.as_judged
    monkeypatch.setattr(Detector, "as_judged", lambda self, train: seen.append(view(self, train)) or seen[-1])
    detector = small(name, enhance=True).fit(ImageSet.from_arrays(image_set(6)))
    assert seen and all(len(one) == detector.facts["held_out"] for one in seen)
    for one in seen:
        assert repr(one.transform) == repr(detector.prepare(ImageSet.from_arrays(
            image_set(1))).transform), "held-out images are prepared in another way than judged ones"


class Symmetric:
    """A backbone whose features do not know left from right: brightness,
    its square and its difference from the neighbours, averaged."""
    name, strides, channels, margin, weight_hash = "symmetric", [8, 16], [9, 9], 0, "0" * 64

    def stages_at(self, *strides): return [0, 1]

    def __call__(self, images, stages=None):
        around = F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
        seen = torch.cat([images, images.square(), (images - around).abs()], 1)
        return [F.avg_pool2d(seen, stride) for stride in self.strides]


@pytest.mark.parametrize("name", SEES_VECTORS)
@pytest.mark.parametrize("axis", [2, 3])
def test_with_a_symmetric_backbone_the_map_of_a_mirrored_image_is_the_mirrored_map(name, axis, test_set):
    train = image_set(6)
    detector = small(name, augment=False)
    if name in ("pca", "dfr"): detector.frozen = Symmetric()
    else: detector.network = Symmetric()
    detector.fit(ImageSet.from_arrays(np.concatenate([train, np.flip(train, axis - 1)])))
    batch = next(detector.prepare(test_set).batches(6))[1]
    (scores, maps), (again, flipped) = detector.predict(batch), detector.predict(batch.flip(axis))
    assert np.allclose(scores, again, rtol=1e-3), "a mirrored image has another score"
    if maps is not None:
        assert np.allclose(np.flip(flipped, axis - 1), maps, rtol=1e-3,
            atol=1e-3 * np.ptp(maps)), "the map of a mirrored image is not the mirrored map"


@pytest.mark.parametrize("name", FLIPS)
@pytest.mark.parametrize("axis", [2, 3])
def test_maps_turn_over_with_the_image(name, axis, test_set):
    """Fitted on images and their mirror images on a backbone whose first stages are all that is asked;
    equality up to what its strides shift."""
    train = image_set(6)
    both = ImageSet.from_arrays(np.concatenate([train, np.flip(train, axis - 1)]))
    detector = small(name, margin=32).fit(both)
    batch = next(detector.prepare(test_set.nok()).batches(3))[1]
    (_, maps), (_, flipped) = detector.predict(batch), detector.predict(batch.flip(axis))
    for heat, other in zip(maps, np.flip(flipped, axis - 1)):
        assert np.corrcoef(heat.ravel(),
            other.ravel())[0, 1] > 0.9, "the map of a mirrored image is not the mirrored map"


@pytest.mark.parametrize("name", NAMES)
def test_unknown_settings_and_a_one_line_summary(name):
    with pytest.raises(UserError, match="unknown setting"): create(name, no_such_setting=1)
    assert methods()[name].summary and "\n" not in methods()[name].summary


def test_detectors_on_one_backbone_compute_its_features_once(tmp_path, monkeypatch):
    "The first one's maps serve all that follow, whatever they do with them."
    train, held, runs, run = ImageSet.from_arrays(image_set(4)), ImageSet.from_arrays(image_set(2)), [], backbones._run
    shared = ("dfr", "patchcore", "padim", "gaussian", "global_knn", "featcae")
    detectors = {name: small(name, augment=False) for name in shared}
    for detector in detectors.values(): assert detector.weight_hash                # loaded before it is counted
    monkeypatch.setattr(backbones, "_run", lambda *arguments: runs.append(1) or run(*arguments))
    with backbones.kept_features(tmp_path):
        for name, detector in detectors.items():
            detector.fit(train, held)
            assert runs if name == "dfr" else not runs, f"{name} ran the backbone {len(runs)} times"
            runs.clear()
