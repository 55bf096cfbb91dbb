"""No leak: nothing that is fitted depends on the test split, and no part and no image is on two sides of a split."""
import dataclasses
import functools
import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from thesis_ad.data.datasets import ImageSet, _table, open_dataset
from thesis_ad.data.manifest import SPLITS, manifest_names, read_manifest
from thesis_ad.data.prefilter import RECIPES, render_dataset
from thesis_ad.decision.fusion import fit_fusion, fit_normal_fusion, with_map_scales
from thesis_ad.decision.threshold import calibrate
from thesis_ad.evaluation.protocol import Task, run
from thesis_ad.files import sha256
from thesis_ad.models.detector import bundle_facts, create, methods, predict_set
from thesis_ad.settings import get_profile, rng

TINY = {"size": (64, 64), "width": 4, "steps": 2, "warmup": 1, "cells": (8, 8), "rows": 64, "batch": 2, "batch_size": 2}


def tiny(method):
    "A detector of that name at settings that only have to run."
    fields = {field.name: field.default for field in dataclasses.fields(methods()[method])}
    return create(method, device="cpu",
        **{name: value for name, value in TINY.items() if name in fields and type(fields[name]) is type(value)})


def image_set(key, n_ok, n_nok):
    "Stripes, and stripes with a bright disc; two photos a part."
    r, images, masks = rng("leak", key), [], []
    y, x = np.mgrid[:64, :64]
    for i in range(n_ok + n_nok):
        image = 110 + 40 * np.sin((x + r.uniform(-2, 2)) / 5) + 8 * r.standard_normal((64, 64))
        mask = ((y - r.integers(16, 48)) ** 2 + (x - r.integers(16, 48)) ** 2 < 60) & (i >= n_ok)
        image[mask] += 60
        images.append(np.repeat(image[..., None], 3, 2).clip(0, 255).astype(np.uint8))
        masks.append(mask)
    return ImageSet.from_arrays(np.stack(images), [0] * n_ok + [1] * n_nok, masks,
        [f"{key}-{i // 2}" for i in range(n_ok + n_nok)])


def scrambled(images):
    "Other pixels, other labels, other masks, in the same number."
    r, n = rng("scramble"), len(images)
    labels = np.roll(1 - images.labels, 1)
    return ImageSet.from_arrays(r.integers(0, 256, (n, 64, 64, 3)).astype(np.uint8), labels,
        list(r.random((n, 64, 64)) < 0.2), r.permutation(images.groups))


@pytest.fixture(scope="module")
def data():
    train, calibration, test = image_set("train", 8, 0), image_set("calibration", 6, 6), image_set("test", 6, 6)
    return (SimpleNamespace(train=train, calibration=calibration, test=test),
        SimpleNamespace(train=train, calibration=calibration, test=scrambled(test)))


# What is fitted

def state(detector):
    "Everything a fitted detector knows, as hashes by name: tensors, facts, threshold, sigmoid."
    blob = {f"tensor {name}": sha256(tensor.detach().cpu().contiguous().numpy().tobytes())
        for name, tensor in detector.tensors().items()}
    facts = bundle_facts(detector, b"")
    return blob | {name: json.dumps(facts[name], sort_keys=True, default=str)
        for name in ("facts", "threshold", "sigmoid", "data")}


def pipeline(data, names, leak=None):
    "All that is fitted on a dataset, by name. `leak` is a function (detector, data) that a careless person might add."
    fitted, scores, streams = {}, [], []
    ok = data.calibration.labels == 0
    for name in names:
        detector = tiny(name).fit(data.train, data.calibration)
        calibrate(detector, data.calibration, alpha=0.2)
        if leak is not None: leak(detector, data)
        fitted |= {f"{name}: {key}": value for key, value in state(detector).items()}
        found, maps = predict_set(detector, data.calibration)
        scores.append(found)
        streams.append(None if maps is None else [heat for heat, good in zip(maps, ok) if good])
    scores = np.stack(scores, axis=1)
    for kind, fusion in (("fusion", fit_fusion(scores, data.calibration.labels, data.calibration.groups, names,
            replicates=5)), ("fusion without NOK", fit_normal_fusion(scores[ok], names))):
        fitted |= {f"{kind}: {key}": repr(value)
            for key, value in dataclasses.asdict(with_map_scales(fusion, streams)).items()}
    return fitted


def differences(one, other):
    "Names of fitted things that are not bit-identical."
    return sorted(name for name in one | other if one.get(name) != other.get(name))


def test_every_fitted_thing_is_the_same_whatever_the_test_split_holds(data):
    names = sorted(methods())
    one, other = (pipeline(which, names) for which in data)
    assert all(any(key.startswith(f"{name}: ") for key in one) for name in names)
    for wanted in ("dfr: facts", "dfr: threshold", "dfr: sigmoid", "fusion: weights", "fusion: scales", "fusion: maps",
            "fusion: final", "fusion without NOK: scales"):
        assert wanted in one
    assert {"latent", "updates", "stopped",
        "kept_update"} <= set(json.loads(one["dfr: facts"])), "the schedule and the stop take part in the comparison"
    assert not differences(one, other), f"fitted on the test split: {', '.join(differences(one, other))}"


def test_the_check_sees_a_changed_calibration_split(data):
    honest, _ = data
    moved = SimpleNamespace(train=honest.train, calibration=image_set("other calibration", 6, 6), test=honest.test)
    found = differences(pipeline(honest, ["padim"]), pipeline(moved, ["padim"]))
    assert {"padim: threshold", "padim: sigmoid", "fusion: scales", "fusion without NOK: scales"} <= set(found), found
    assert not [name for name in found
        if name.startswith("padim: tensor")], "PaDiM's Gaussians depend on the calibration split"


def normalised_by_test(detector, data):
    "The normaliser of a well-known mistake: scores min–max scaled by the extremes of the test split."
    scores, _ = predict_set(detector, data.test)
    detector.facts["scale"] = [float(scores.min()), float(scores.max())]


def threshold_from_test(detector, data):
    "The threshold with the best F1 on the test split."
    scores, _ = predict_set(detector, data.test)
    alarms = scores[:, None] > scores[None]
    f1 = 2 * alarms[data.test.labels == 1].sum(0) / (alarms.sum(0) + data.test.labels.sum())
    detector.threshold = {"value": float(scores[f1.argmax()]), "how": "best F1"}


def sigmoid_from_test(detector, data):
    honest = detector.threshold
    calibrate(detector, data.test, alpha=0.2)
    detector.threshold = honest


@pytest.mark.parametrize("leak, what",
    [(normalised_by_test, "facts"), (threshold_from_test, "threshold"), (sigmoid_from_test, "sigmoid")])
def test_a_leaking_pipeline_is_caught(data, leak, what):
    one, other = (pipeline(which, ["gaussian"], leak) for which in data)
    assert differences(one, other) == [f"gaussian: {what}"]


def test_fusion_fitted_on_test_is_caught(data):
    def fitted(which):
        return {"weights": repr(fit_fusion(np.stack([which.test.labels + rng("s").random(12), rng("t").random(12)],
            axis=1), which.test.labels, which.test.groups, replicates=3))}
    assert differences(fitted(data[0]), fitted(data[1])) == ["weights"]


def test_the_protocol_fits_the_same_bundle_on_a_folder_with_another_test_split(tmp_path, monkeypatch):
    "The same through the folders, the cache and the bundles of a real run, in two caches so that nothing is shared."
    recipe = dataclasses.replace(RECIPES["prefilter_a"], size=64, train_parts=2, calibration_ok_parts=2,
        calibration_nok_parts=2, test_ok_parts=2, test_nok_parts=2, train_orientations=2, zooms=(1,))
    profile, bundles = get_profile("smoke", size=(64, 64), replicates=20), []
    for name in ("honest", "other"):
        folder = tmp_path / name / "set"
        table = render_dataset(recipe, folder, workers=1, progress=None)
        for i, row in enumerate(table[table.split == "test"].itertuples() if name == "other" else ()):
            cv2.imwrite(str(folder / row.path), rng("noise", i).integers(0, 256, (64, 64, 3)).astype(np.uint8))
            if row.mask:
                cv2.imwrite(str(folder / row.mask), rng("mask", i).integers(0, 2, (64, 64)).astype(np.uint8) * 255)
        monkeypatch.setenv("THESIS_AD_CACHE", str(tmp_path / name / "cache"))
        one = run(Task(str(folder), "gaussian", profile))
        bundles.append(((one.bundle / "bundle.json").read_bytes(), (one.bundle / "tensors.safetensors").read_bytes(),
            one.calibration.score.tolist()))
        if name == "honest": honest = one.scores.score.tolist()
    assert one.scores.score.tolist() != honest, "the test split was not scrambled"
    assert bundles[0] == bundles[1]


# No part and no image on two sides

@pytest.mark.parametrize("name", [name for name in manifest_names() if not read_manifest(name).public])
def test_no_part_is_in_two_splits(name):
    table = _table(read_manifest(name))
    assert set(table.split) == set(SPLITS) and (table.groupby("group").split.nunique() == 1).all()
    assert table.path.is_unique
    assert (table[table.split == "train"].label == 0).all()


def fingerprint(images):
    """float32 [N, D] of length 1: the brightness steps of a 64×64 thumbnail;
    blind to brightness and contrast, and little moved by recompression."""
    small = np.stack([cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (64, 64), interpolation=cv2.INTER_AREA)
        for image in images]).astype(np.float32)
    steps = np.concatenate([np.diff(small, axis=axis).reshape(len(small), -1) for axis in (1, 2)], axis=1)
    steps -= steps.mean(1, keepdims=True)
    return steps / np.linalg.norm(steps, axis=1, keepdims=True)


def duplicates(splits, likeness):
    """Pairs (split, i, other split, j) of images in different splits whose fingerprints correlate by more than
    `likeness`."""
    prints, found = {name: fingerprint(images) for name, images in splits.items()}, []
    for n, one in enumerate(splits):
        for other in list(splits)[n + 1:]:
            found += [(one, int(i), other, int(j)) for i, j in np.argwhere(prints[one] @ prints[other].T > likeness)]
    return found


@functools.cache
def _opened(name):
    data = open_dataset(name, size=64, parts=2, workers=1)
    splits = zip(SPLITS, (data.train, data.calibration, data.open_test()), strict=True)
    return {split: [images.image(i) for i in range(len(images))] for split, images in splits}


def opened(name):
    "The images of each split; 64 pixels and two parts of each role where they are rendered."
    return {split: list(images) for split, images in _opened(name).items()}


# At 64 pixels the noise of a render is a good part of its steps, so a copy is less like its original than on a photo,
# and other parts are less alike still.
LIKENESS = {"elpv_mono": 0.993, "elpv_poly": 0.993, "prefilter_a": 0.92, "prefilter_b": 0.92}


@pytest.mark.parametrize("name", LIKENESS)
def test_no_image_is_in_two_splits(name):
    splits = opened(name)
    assert duplicates(splits, LIKENESS[name]) == []
    copy = splits["train"][3]
    _, blob = cv2.imencode(".jpg", np.clip(copy * 1.05 + 3, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 92])
    splits["test"][1] = cv2.imdecode(blob, cv2.IMREAD_COLOR)
    assert ("train", 3, "test", 1) in duplicates(splits, LIKENESS[name]), "a brightened, recompressed copy is not found"


def test_no_brother_of_a_polycrystalline_cell_is_in_another_split():
    assert duplicates(opened("elpv_poly"), 0.95) == []
