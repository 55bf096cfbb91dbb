"""Tiles cover an image, blend without seams, and every detector with maps works on large and on long images."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thesis_ad.data import datasets
from thesis_ad.data.datasets import ImageSet
from thesis_ad.images.tiles import Blend, tile_starts, tiled
from thesis_ad.models.detector import Detector, create, native_size, predict_each, predict_set
from thesis_ad.settings import UserError, rng

LENGTHS = st.integers(1, 700)


@given(LENGTHS, st.integers(1, 300), st.floats(0, 0.9))
def test_tiles_cover_and_overlap(length, tile, overlap):
    starts = tile_starts(length, tile, overlap)
    covered = np.zeros(max(length, tile), int)
    for start in starts: covered[start:start + tile] += 1
    assert covered.min() >= 1, "a pixel lies in no tile"
    assert (starts == sorted(set(starts)) and starts[-1] + tile == max(length,
        tile)), "tiles end with the image and none is there twice"
    shared = [a + tile - b for a, b in zip(starts, starts[1:])]
    assert all(n >= int(overlap * tile) - 1
        for n in shared), f"an overlap of {min(shared, default=tile)} pixels is less than {overlap:.2f} of {tile}"


@settings(max_examples=40, deadline=None)
@given(st.integers(5, 80), st.integers(5, 80), st.integers(3, 40), st.integers(3, 40), st.floats(0, 0.8),
    st.integers(0, 10))
def test_tiles_that_agree_are_reproduced(height, width, h, w, overlap, seed):
    size = max(height, h), max(width, w)
    heat = rng("heat", seed).standard_normal(size).astype(np.float32)
    blend = Blend(size)
    for top in tile_starts(size[0], h, overlap):
        for left in tile_starts(size[1], w, overlap): blend.add(heat[top:top + h, left:left + w], top, left)
    assert np.allclose(blend.mean(), heat, atol=1e-4)
    assert blend.mean().min() >= heat.min() - 1e-4 and blend.mean().max() <= heat.max() + 1e-4


def test_tiles_of_a_set_name_their_images():
    arrays = rng("tiles").integers(0, 256, (3, 50, 70, 3)).astype(np.uint8)
    images = ImageSet.from_arrays(arrays, labels=[0, 0, 1])
    tiles = tiled(images, (32, 32))
    assert (np.bincount(tiles.table.image) == len(tiles.of(0))).all() and tiles.labels[-1] == 1
    shuffled = tiles.shuffled(rng("order"))
    assert sorted(shuffled) == list(range(len(tiles))) and (np.diff(shuffled) != 1).any()
    for i in shuffled:
        row = tiles.table.iloc[i]
        assert np.array_equal(tiles.image(i), arrays[row.image, row.top:row.top + 32, row.left:row.left + 32])
    with pytest.raises(UserError, match="overlap"): tiled(images, (32, 32), 1.0)


def test_another_view_of_tiles_forgets_the_images_of_the_first():
    images = ImageSet.from_arrays(rng("view").integers(0, 200, (2, 50, 70, 3)).astype(np.uint8))
    tiles = tiled(images.view(transform=lambda image, draw: image + 50), (32, 32))
    assert np.array_equal(tiles.image(0), images.image(0)[:32, :32] + 50)
    assert np.array_equal(tiles.view(transform=None).image(0), images.image(0)[:32, :32])
    assert np.array_equal(tiles.image(0), images.image(0)[:32, :32] + 50)


def test_a_shuffled_training_prepares_each_image_once_an_epoch(monkeypatch):
    monkeypatch.setattr(datasets, "_images", datasets._Images())
    prepared, images = [], ImageSet.from_arrays(rng("once").integers(0, 256, (30, 50, 70, 3)).astype(np.uint8))
    tiles = tiled(images.view(transform=lambda image, draw: prepared.append(image.tobytes()) or image), (32, 32))
    order = tiles.shuffled(rng("order"))
    for _ in tiles.batches(4, order=order): pass
    assert len(prepared) == 30 == len(set(prepared))
    assert np.ptp(order[:16]) > len(tiles.of(0)), "the first tiles are all of one image"
    for _ in tiles.batches(4, epoch=1): pass
    assert len(prepared) == 60, "another epoch varies its images anew"


@pytest.mark.parametrize("room", [1, 3])
def test_tiles_keep_no_more_images_in_memory_than_there_is_room_for(room, monkeypatch):
    images = rng("room").integers(0, 256, (8, 50, 70, 3)).astype(np.uint8)
    monkeypatch.setattr(datasets, "_images", kept := datasets._Images())
    datasets.keep_images(room * images[0].nbytes)
    tiles = tiled(ImageSet.from_arrays(images).view(transform=lambda image, draw: image + 1), (32, 32))
    for i in range(8):
        part = tiles.of(i)
        for n in range(len(part)):
            row = part.table.iloc[n]
            assert np.array_equal(part.image(n), (images[i] + 1)[row.top:row.top + 32, row.left:row.left + 32])
            assert kept.nbytes <= kept.limit


def test_a_image_larger_than_the_memory_for_images_is_prepared_once(monkeypatch):
    monkeypatch.setattr(datasets, "_images", kept := datasets._Images())
    datasets.keep_images(100)
    prepared = []
    tiles = tiled(ImageSet.from_arrays(np.zeros((1, 50, 70, 3), np.uint8))
        .view(transform=lambda image, draw: prepared.append(1) or image), (32, 32))
    for _ in tiles.batches(2): pass
    assert len(prepared) == 1 == len(kept)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 24), st.integers(1, 24))
def test_a_image_narrower_than_a_tile_goes_on_as_its_mirror_image(height, width, h, w):
    image = rng("mirror", height, width).integers(0, 256, (height, width, 3)).astype(np.uint8)
    wide = np.pad(image, ((0, max(0, h - height)), (0, max(0, w - width)), (0, 0)), mode="symmetric")
    tiles = tiled(ImageSet.from_arrays(image[None]), (h, w))
    for i, row in tiles.table.iterrows():
        assert np.array_equal(tiles.image(i), wide[row.top:row.top + h, row.left:row.left + w])


@given(st.integers(32, 600), st.integers(32, 600), st.floats(0.2, 5))
def test_native_size_keeps_area_and_shape(height, width, ratio):
    h, w = native_size((height, width), [(round(1000 * ratio), 1000)])
    assert h % 32 == w % 32 == 0 and min(h, w) >= 32
    if min((height * width * ratio) ** 0.5, (height * width / ratio) ** 0.5) > 160:
        assert 0.6 < h * w / (height * width) < 1.6 and 0.75 < h / w / ratio < 1.34


SMALL = {"dfr": {"steps": 5}, "autoencoder": {"epochs": 1, "width": 4}}
SHAPES = {"native": {"size": (128, 128), "native_aspect": True}, "own size": {"size": (64, 64), "canvas": (0, 0)},
    "canvas": {"size": (64, 64), "canvas": (96, 288)}}


@pytest.fixture(scope="module")
def strips():
    images = (90 + 8 * rng("strips").standard_normal((8, 100, 300, 3))).clip(0, 255).astype(np.uint8)
    images[7, 40:60, 140:160] = 255
    return ImageSet.from_arrays(images, [0] * 7 + [1])


@pytest.mark.parametrize("method, shape", [("patchcore", "native"), ("padim", "own size"), ("gaussian", "canvas"),
    ("dfr", "canvas"), ("autoencoder", "own size")])
def test_long_images_at_their_own_shape(strips, method, shape, tmp_path):
    options = SMALL.get(method, {}) | SHAPES[shape]
    if method == "dfr": options["cells"] = tuple(n // 4 for n in options["size"])
    detector = create(method, **options, device="cpu").fit(strips.take(range(6)), strips.take([6]))
    scores, maps = predict_set(detector, strips)
    assert scores.argmax() == 7 and all(heat.shape == (100, 300) for heat in maps)
    row, column = np.unravel_index(maps[7].argmax(), maps[7].shape)
    assert 32 <= row < 68 and 132 <= column < 168, f"the map's maximum ({row}, {column}) is not at the defect"
    again = Detector.load(detector.save(tmp_path / "bundle"), device="cpu")
    assert again.input_size == detector.input_size and (predict_set(again, strips)[0] == scores).all()


def test_a_tiled_image_has_the_score_of_its_worst_tile(strips):
    detector = create("gaussian", size=(64, 64), canvas=0, overlap=0.5, device="cpu").fit(strips.take(range(6)))
    tiles = detector.prepare(strips).of(7)
    each = np.concatenate([detector.predict(batch)[0] for _, batch in tiles.batches(4)])
    assert next(predict_each(detector, strips.take([7])))[0] == each.max()


@pytest.mark.parametrize("wrong", [{"canvas": (0, 300)}, {"canvas": (-1, 5)}, {"canvas": (1, 2, 3)}])
def test_a_canvas_that_is_none_is_refused(wrong):
    with pytest.raises(UserError, match="canvas"): create("gaussian", **wrong)
