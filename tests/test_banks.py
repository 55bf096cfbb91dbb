"""Memory banks and Gaussians: patchcore, padim, gaussian, global_knn."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from thesis_ad.data.datasets import ImageSet
from thesis_ad.features.patches import sample_patches, smooth_map
from thesis_ad.features.search import NearestNeighbours
from thesis_ad.models.detector import Detector, methods, predict_set
from thesis_ad.models.padim import PositionGaussians, draw_channels, whitening
from thesis_ad.models.patchcore import reweight
from thesis_ad.models.training import hold_out
from thesis_ad.settings import UserError, pin_threads, rng

pin_threads(1)
BANKS = ["patchcore", "padim", "gaussian", "global_knn"]


def make(name, **settings): return methods()[name](**({"size": (48, 80)} | settings))


def parts(count, key, defect=False):
    "Stripes that lie a little differently each time; with a bright disc if defective."
    g, (y, x) = rng("parts", key), np.mgrid[:48, :80]
    images, masks = [], []
    for _ in range(count):
        image = 110 + 40 * np.sin((x + g.uniform(-2, 2)) / 5) + 5 * g.standard_normal((48, 80))
        mask = (y - g.integers(12, 36)) ** 2 + (x - g.integers(12, 68)) ** 2 < 50
        if defect: image[mask] = 250
        images.append(np.repeat(image[..., None], 3, 2).clip(0, 255).astype(np.uint8))
        masks.append(mask if defect else None)
    return ImageSet.from_arrays(np.stack(images), labels=[int(defect)] * count, masks=masks)


train, ok, nok = parts(14, "train"), parts(5, "ok"), parts(5, "nok", True)
grey = ImageSet.from_arrays(np.full((1, 40, 40, 3), 128, np.uint8))


@pytest.fixture(scope="module")
def fitted(): return {name: make(name).fit(train, ok) for name in BANKS}


@pytest.mark.parametrize("name", BANKS)
def test_finds_the_disc_and_where_it_is(fitted, name):
    (good, _), (bad, maps) = predict_set(fitted[name], ok), predict_set(fitted[name], nok)
    assert bad.min() > good.max(), f"{name}: NOK {bad.min():.3g}, OK {good.max():.3g}"
    if name == "global_knn": assert maps is None
    else:
        for i, heat in enumerate(maps):
            assert heat.shape == (48, 80) and heat[nok.mask(i)].mean() > heat[~nok.mask(i)].mean()


@pytest.mark.parametrize("name", BANKS)
def test_the_same_seed_gives_the_same_numbers_and_so_does_a_bundle(fitted, name, tmp_path):
    batch = next(fitted[name].prepare(nok).batches(5))[1]
    again = make(name).fit(train, ok)
    loaded = Detector.load(fitted[name].save(tmp_path / name))
    for other in (again, loaded):
        for a, b in zip(other.predict(batch), fitted[name].predict(batch)):
            assert a is b is None or (a == b).all(), name
    assert loaded.facts == fitted[name].facts and loaded.weight_hash == fitted[name].weight_hash


@pytest.mark.parametrize("name", BANKS)
@pytest.mark.parametrize("size", [(8, 8), (40, 40), (17, 61)])
def test_one_grey_training_image(name, size):
    detector = make(name, size=size).fit(grey)
    batch = torch.stack([detector.prepare(grey)[0], torch.from_numpy(rng("noise").random((3, *size), np.float32))])
    scores, maps = detector.predict(batch)
    assert scores.shape == (2,) and scores.dtype == np.float64 and np.isfinite(scores).all() and scores[1] > scores[0]
    if maps is not None: assert maps.shape == (2, *size) and maps.dtype == np.float32 and np.isfinite(maps).all()


@pytest.mark.parametrize("name", BANKS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_that_are_no_numbers_are_refused_in_one_sentence(fitted, name, value):
    batch = next(fitted[name].prepare(ok).batches(2))[1]
    batch[1, 0, 3, 3] = value
    with pytest.raises(UserError, match="image 1 .*NaN or infinite"): fitted[name].predict(batch)


@pytest.mark.parametrize("name", BANKS)
def test_a_batch_or_one_by_one(fitted, name):
    batch = next(fitted[name].prepare(nok).batches(5))[1]
    together = fitted[name].predict(batch)[0]
    single = np.concatenate([fitted[name].predict(one[None])[0] for one in batch])
    assert np.allclose(together, single, rtol=1e-3), name


@pytest.mark.parametrize("settings", [{"score": "best"}, {"neighbours": 0}, {"search": "quick"}])
def test_wrong_settings_are_refused(settings):
    with pytest.raises(UserError): make("patchcore", **settings)


def test_fewer_patches_than_the_cap_are_all_kept():
    detector = make("patchcore", cap=10_000).fit(train.take([0, 1]))
    assert len(detector.bank) == 2 * 6 * 10 == detector.facts["patches"]
    rows, _ = sample_patches(detector.features, detector.prepare(train.take([0, 1])))
    assert torch.equal(rows.sort(dim=0).values, detector.bank.sort(dim=0).values)
    scores, _ = detector.predict(next(detector.prepare(train).batches(2))[1])
    assert (scores < 1e-2).all()                                    # it remembers every patch it has seen


def test_patchcore_by_hand():
    detector = make("patchcore", cap=60).fit(train)
    batch = next(detector.prepare(nok).batches(3))[1]
    scores, maps = detector.predict(batch)
    q, m = detector.features(batch).flatten(2).transpose(1, 2).double(), detector.bank.double()
    for i in range(3):
        distance = torch.cdist(q[i], m, compute_mode="donot_use_mm_for_euclid_dist")
        worst = int(distance.amin(1).argmax())
        nearest = int(distance[worst].argmin())
        around = torch.cdist(m[nearest][None], m)[0].argsort()[:9]
        weight = 1 - 1 / torch.exp(distance[worst, around] - distance[worst, nearest]).sum()
        assert np.isclose(scores[i], float(weight * distance[worst, nearest]), rtol=1e-5)
        assert np.allclose(maps[i], smooth_map(distance.amin(1).reshape(1, 6, 10), (48, 80))[0], rtol=1e-4)
    mean = make("patchcore", cap=60, score="mean_knn", neighbours=3).fit(train)
    by_hand = torch.cdist(q, m[None]).topk(3, largest=False).values.square().mean(2).amax(1)
    assert np.allclose(mean.predict(batch)[0], by_hand, rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 5), st.integers(0, 10 ** 6),
    st.sampled_from([1e-6, 1.0, 100.0, 1e5]), st.booleans())
def test_weights_lie_between_one_minus_one_bth_and_one(count, b, dimensions, key, scale, copies):
    bank = torch.from_numpy(rng("weights", key).standard_normal((count, dimensions)).astype(np.float32)) * scale
    if copies: bank = bank[torch.arange(count) // 3]
    query = torch.from_numpy(rng("queries", key).standard_normal((7, dimensions)).astype(np.float32)) * 2 * scale
    search = NearestNeighbours(bank)
    weight = reweight(query, search(query)[1][:, 0], bank, search, b)
    b = min(b, count)
    assert (weight >= (1 - 1 / b if b > 1 else 1) - 1e-6).all() and (weight <= 1).all(), weight


def test_the_coreset_may_be_chosen_in_a_projection_and_by_ratio():
    detector = make("patchcore", ratio=0.1, projection=16).fit(train)
    assert detector.bank.shape == (84, 152) and detector.facts["candidates"] == 840


def test_fit_keeps_a_bounded_sample_that_the_batch_size_does_not_change():
    extract = lambda batch: torch.nn.functional.avg_pool2d(batch, 8)
    a, total = sample_patches(extract, train, limit=100, seed=1, batch_size=3)
    b, _ = sample_patches(extract, train, limit=100, seed=1, batch_size=8)
    c, _ = sample_patches(extract, train, limit=100, seed=2)
    assert total == 14 * 60 and a.shape == (100, 3) and torch.equal(a, b) and not torch.equal(a, c)
    assert make("patchcore", candidates=50).fit(train).facts["bank"] == 50


def test_padim_by_hand():
    detector = make("padim", channels=5).fit(train)
    idx, x = detector.facts["channels"], next(detector.prepare(train).batches(14))[1]
    maps = detector.features(x)[:, idx].double()
    q = detector.features(next(detector.prepare(nok).batches(1))[1])[0, idx].double()
    grid = torch.empty(6, 10)
    for r, c in np.ndindex(6, 10):
        v = maps[:, :, r, c]
        inverse = torch.linalg.inv(torch.cov(v.T) + 0.01 * torch.eye(5))
        grid[r, c] = ((q[:, r, c] - v.mean(0)) @ inverse @ (q[:, r, c] - v.mean(0))).sqrt()
    assert np.allclose(detector.predict(next(detector.prepare(nok).batches(1))[1])[1][0],
        smooth_map(grid[None], (48, 80))[0], rtol=1e-3)


def test_padim_refuses_images_of_another_size(fitted):
    with pytest.raises(UserError, match="padim was fitted"): fitted["padim"].predict(torch.zeros(1, 3, 64, 64))


def test_channels_are_seeded_or_named():
    assert len(draw_channels(152, 100, seed=0)) == 100 == len(set(draw_channels(152, 100, seed=0)))
    assert make("padim", named_channels=(3, 1)).fit(train).facts["channels"] == [1, 3]
    with pytest.raises(UserError): draw_channels(10, named=(10,))


def test_gaussian_scales_by_training_parts_it_has_not_learned_and_leaves_calibration_alone():
    alone = make("gaussian").fit(train)
    assert alone.facts["held_out"] == 3 and alone.facts["images"] == 11
    both = ImageSet.from_arrays(np.stack([s.image(i) for s in (ok, nok) for i in range(5)]), labels=[0] * 5 + [1] * 5)
    assert make("gaussian").fit(train, both).facts == alone.facts
    learned, held = hold_out(train)
    assert len(learned) == 11 and len(held) == 3 and not set(learned.groups) & set(held.groups)
    assert make("gaussian").fit(train.take([0])).facts["held_out"] == 0, "an image that was learned is no held-out one"


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 4), st.floats(-1e4, 1e4))
def test_position_gaussians_are_those_of_all_images_at_once(count, positions, channels, shift):
    x = torch.from_numpy(rng("gauss", count, positions, channels).standard_normal((count, positions, channels))) + shift
    streamed = PositionGaussians()
    for part in x.split(3): streamed.partial_fit(part)
    assert torch.allclose(streamed.mean, x.mean(0))
    for p in range(positions):
        wanted = (torch.cov(x[:, p].T).reshape(channels, channels) if count > 1
            else torch.zeros(channels, channels, dtype=torch.float64))
        assert torch.allclose(streamed.covariance(slice(p, p + 1))[0], wanted, atol=1e-6)


def test_whitening_gives_unit_covariance():
    x = torch.from_numpy(rng("white").standard_normal((400, 6)) @ rng("mix").standard_normal((6, 6)))
    W = whitening(torch.cov(x.T), 0.0)
    assert torch.allclose(torch.cov((x @ W.double().T).T), torch.eye(6, dtype=torch.float64), atol=1e-4)
    assert torch.equal(W, W.tril())
