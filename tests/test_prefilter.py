"""The rendered set: deterministic, exact masks, and nothing but the mask tells OK from NOK."""
import dataclasses

import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from thesis_ad.data import prefilter
from thesis_ad.data.datasets import _recipe
from thesis_ad.data.manifest import read_manifest
from thesis_ad.data.prefilter import (BLUR_RADIUS, DEFECTS, RECIPES, ZOOMS, Part, parse_name, recipe_table,
    render, render_dataset)
from thesis_ad.files import read_image, read_mask
from thesis_ad.settings import UserError

TINY = dataclasses.replace(RECIPES["prefilter_a"], size=64).first(2)


def near(mask):
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * BLUR_RADIUS + 1,) * 2)) > 0


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serial")
    return folder, render_dataset(TINY, folder, workers=1, progress=False)


def test_serial_and_parallel_write_the_same_bytes(rendered, tmp_path):
    folder, table = rendered
    again = render_dataset(TINY, tmp_path, workers=2, progress=False)
    assert table.equals(again)
    assert contents(folder) == contents(tmp_path)


def test_a_image_does_not_depend_on_where_memory_was_free():
    scene = lambda: prefilter._layers(Part(7, "scratch"), 3, 3, 256, 2, True)[0]  # in float32, where the last bit shows
    first, kept = scene(), []
    for size in (1, 17, 4_099, 65_537, 1_000_003) * 4:
        kept.append(np.empty(size, np.uint8))
        assert np.array_equal(scene(), first), f"another image after {size} bytes more were taken"


def test_a_killed_run_continues(rendered, tmp_path):
    folder, table = rendered
    whole = contents(folder)
    first = render_dataset(TINY.first(1), tmp_path, workers=1, progress=False)          # a smaller run came first
    assert set(first.path) < set(table.path)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    lost = [tmp_path / first.path.iloc[0], tmp_path / first["mask"].iloc[-1]]
    for path in lost: path.unlink()
    render_dataset(TINY, tmp_path, workers=1, progress=False)
    assert contents(tmp_path) == whole, "an image or a mask was not made up for"
    untouched = [path for path in kept if path not in lost and path != tmp_path / first.path.iloc[-1]]
    assert all(path.stat().st_mtime_ns == kept[path] for path in untouched), "a finished file was written again"
    assert not list(tmp_path.rglob("*.part*")), "a temporary file was left behind"


def test_a_complete_set_starts_no_process(rendered, monkeypatch):
    folder, table = rendered
    def refuse(*_, **__): raise AssertionError("nothing is missing, and yet there is a pool of processes")
    monkeypatch.setattr(prefilter.joblib, "Parallel", refuse)
    assert render_dataset(TINY, folder, progress=False).equals(table)


def test_files_are_what_the_table_says(rendered):
    folder, table = rendered
    assert set(contents(folder)) == set(table.path) | (set(table["mask"]) - {""})
    for row in table.itertuples():
        assert read_image(folder / row.path).shape == (64, 64, 3)
        if row.mask: assert read_mask(folder / row.mask).any(), f"{row.mask} is empty"


def test_another_size_in_the_same_folder_is_refused(rendered):
    with pytest.raises(UserError, match="other settings"):
        render_dataset(dataclasses.replace(TINY, size=96), rendered[0], progress=False)


@pytest.mark.parametrize("name", RECIPES)
def test_tables(name):
    table = recipe_table(RECIPES[name])
    assert table.path.is_unique
    assert (table.groupby("group").split.nunique() == 1).all(), "a part crosses splits"
    assert (table.groupby("group").part_seed.nunique() == 1).all()
    assert table.groupby("part_seed").group.nunique().max() == 1
    assert ((table["mask"] != "") == (table.label == 1)).all()
    assert ((table.defect == "good") == (table.label == 0)).all()
    assert set(table[table.split == "train"].label) == {0}
    assert set(table[table.split == "train"].orientation) == set(range(5))
    names = table.path.map(parse_name)
    assert (names.str[0] == table.zoom).all() and (names.str[2] == table.group).all()
    captures = table.assign(stamp=names.str[1]).groupby(["group", "orientation"]).stamp.nunique()
    assert (captures == 1).all(), "the zooms of a capture have more than one time stamp"
    stamps = names.str[1]
    assert stamps.nunique() == len(captures), "two captures share a time stamp"
    assert (table[table.label == 1]["mask"].map(lambda path: path.split("/")[-1])
        == table[table.label == 1].path.map(lambda path: path.split("/")[-1])).all()
    test = table[table.split == "test"]
    share = test.groupby("label").orientation.value_counts(normalize=True).unstack("label")
    assert (set(share.index) == set(range(7))
        and np.allclose(share[0], share[1])), "OK and NOK are seen from different orientations"


def test_sizes_of_the_sets():
    tables = {name: recipe_table(recipe) for name, recipe in RECIPES.items()}
    full = [tables["prefilter_a_full"], tables["prefilter_b_full"]]
    assert sum((t.label == 0).sum() for t in full) == 11250 and sum((t.label == 1).sum() for t in full) == 1225
    assert full[0][full[0].label == 0].group.nunique() == 450 and full[0][full[0].label == 1].group.nunique() == 35
    assert tables["prefilter_a"].groupby("split").size().to_dict() == {"train": 100, "calibration": 60, "test": 144}
    assert set(recipe_table(RECIPES["prefilter_a"].first(3)).path) < set(
        tables["prefilter_a"].path), "a small set is no subset"


def shared(one, other):
    """The columns in which two tables of a recipe have a value in common, of those that identify a part,
    a capture or a file."""
    stamps = lambda table: set(table.path.map(parse_name).str[1])
    return ([name for name in ("path", "group", "part_seed") if set(one[name]) & set(other[name])]
        + ["time stamp"] * bool(stamps(one) & stamps(other)))


def test_a_and_b_show_different_parts():
    a, b = ([recipe_table(RECIPES[name]) for name in (f"prefilter_{which}", f"prefilter_{which}_full")]
        for which in "ab")
    for one in a:
        for other in b: assert shared(one, other) == []
    same_seed = recipe_table(dataclasses.replace(RECIPES["prefilter_b"], seed=RECIPES["prefilter_a"].seed))
    assert shared(a[0], same_seed) == ["group", "part_seed", "time stamp"], "a part that both sets show is not noticed"
    traits = [prefilter._traits(int(table.part_seed[0])) for table in (a[0], b[0])]
    assert traits[0].scale != traits[1].scale and not np.array_equal(traits[0].texture, traits[1].texture)


@pytest.mark.parametrize("name", RECIPES)
def test_the_manifest_holds_the_recipe(name):
    assert _recipe(read_manifest(name)) == RECIPES[name]


@pytest.mark.parametrize("kind", DEFECTS)
@pytest.mark.parametrize("zoom", ZOOMS)
def test_a_defect_changes_its_mask_and_nothing_else(kind, zoom):
    for seed, size in ((11, 128), (12, 192), (13, 128)):
        orientation = (seed + zoom) % 7
        nok, mask = render(Part(seed, kind), orientation, zoom, size)
        ok, none = render(Part(seed, kind), orientation, zoom, size, defects=False)
        assert np.array_equal(ok,
            render(Part(seed), orientation, zoom, size)[0]), "without its defect a part is the good part"
        assert mask.any() and not none.any()
        assert (nok != ok).any(), "the defect is not to be seen"
        assert mask.mean() < .12, "the mask is not local"
        assert np.array_equal(nok[~near(mask)], ok[~near(mask)]), "OK and NOK differ outside mask and blur"


def test_every_nok_image_has_a_mask():
    for name in ("prefilter_a", "prefilter_b"):
        table = recipe_table(RECIPES[name])
        for row in table[(table.label == 1)].drop_duplicates(["group", "zoom"]).itertuples():
            _, mask = prefilter._layers(Part(row.part_seed, row.defect), row.orientation, row.zoom, 64, 4, True)
            assert mask.any(), f"{row.path} has an empty mask"


def test_the_scene_is_the_same_at_every_size():
    def light(image):
        "Linear light at 128 pixels an edge, blurred past noise and lens."
        linear = ((image / 255) ** 2.2).astype(np.float32)
        return cv2.GaussianBlur(cv2.resize(linear, (128, 128), interpolation=cv2.INTER_AREA), (0, 0), 1.5)
    difference = lambda a, b: np.abs(light(a) - light(b)).mean() / light(a).mean()
    for zoom in (3, 5):
        (small, small_mask), (large, large_mask) = (render(Part(5, "burn"), 3, zoom, size) for size in (128, 512))
        other = render(Part(6, "burn"), 3, zoom, 128)[0]
        assert difference(small, large) < .06 < .12 < difference(small, other), "size changes more than the resolution"
        share = cv2.resize(large_mask.astype(np.float32), (128, 128), interpolation=cv2.INTER_AREA)
        assert small_mask[share > .99].mean() > .95 and not small_mask[cv2.dilate(share, np.ones((3, 3))) == 0].any()


def statistics(image, outside):
    "Mean colour, spread, quantiles and edge energy of the pixels outside a mask."
    pixels = image[outside].astype(float)
    grey = image.mean(axis=2)
    edges = np.abs(cv2.Laplacian(grey, cv2.CV_64F))[outside]
    return [*pixels.mean(0), *pixels.std(0), *np.quantile(pixels.mean(1), (.05, .25, .5, .75, .95)),
        edges.mean(), edges.std()]


@pytest.fixture(scope="module")
def outside_features():
    "Independent OK and NOK parts at zoom_3; an OK part wears the mask of a NOK part of its own, so masking is no tell."
    features, labels, groups = [], [], []
    for index in range(120):
        kind, orientation = DEFECTS[index % 3], (index // 3) % 7
        nok, mask = render(Part(20_000 + index, kind), orientation, 3, 64)
        ok = render(Part(10_000 + index), orientation, 3, 64)[0]
        outside = ~near(mask)
        features += [statistics(ok, outside), statistics(nok, outside)]
        labels += [0, 1]; groups += [index, index]
    return np.array(features), np.array(labels), np.array(groups)


def grouped_auroc(features, labels, groups):
    model = make_pipeline(StandardScaler(), LogisticRegression(C=.1))
    scores = cross_val_predict(model, features, labels, groups=groups, cv=GroupKFold(5), method="decision_function")
    return roc_auc_score(labels, scores)


@pytest.fixture(scope="module")
def chance(outside_features):
    "The AUROC that 60 random exchanges of OK and NOK within their pairs reach: 99 % of them lie below it."
    features, labels, groups = outside_features
    swaps = np.random.default_rng(0).integers(2, size=(60, len(labels) // 2))
    return np.quantile([grouped_auroc(features, labels ^ np.repeat(swap, 2), groups) for swap in swaps], .99)


def test_a_linear_classifier_stays_at_chance_outside_the_masks(outside_features, chance):
    auroc = grouped_auroc(*outside_features)
    assert (auroc <= chance
        < .65), f"image statistics outside the masks tell OK from NOK: AUROC {auroc:.2f}, by chance up to {chance:.2f}"


def test_that_classifier_would_notice_a_tell(outside_features, chance):
    features, labels, groups = outside_features
    # NOK two grey levels brighter
    told = features + labels[:, None] * np.array([2.] * 3 + [0.] * (features.shape[1] - 3))
    assert grouped_auroc(told, labels, groups) > chance + .1


def test_bad_arguments_are_named():
    with pytest.raises(UserError, match="zoom"): render(Part(1), 0, 2)
    with pytest.raises(UserError, match="orientation"): render(Part(1), 7, 0)
    with pytest.raises(UserError, match="defect"): render(Part(1, "dent"), 0, 0)
    with pytest.raises(UserError, match="32 pixels"): render(Part(1), 0, 0, size=8)
    with pytest.raises(UserError, match="0 to 999"): dataclasses.replace(TINY, seed=1000)
