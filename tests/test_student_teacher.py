"""Student and teacher: what is more than a notebook's assert."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file
from torch import nn

from thesis_ad.data.datasets import ImageSet
from thesis_ad.models import efficientad, student_teacher
from thesis_ad.models.border import border_level, levelled
from thesis_ad.models.detector import Detector, create, predict_set
from thesis_ad.models.efficientad import (PDN, GlobalAutoencoder, find_pdn, hard_loss, map_quantiles, map_statistics,
    normalise_map, read_pdn, scaling)
from thesis_ad.models.student_teacher import product_map, squared_distance
from thesis_ad.settings import UserError, rng

QUICK = {"stfpm": dict(size=(48, 64), steps=4, device="cpu"),
         "efficientad": dict(size=(48, 64), steps=6, width=8, teacher_steps=6, device="cpu")}


def image_set(n_ok, n_nok=0, shape=(48, 64), seed=0):
    "Grey waves with noise are OK; NOK ones have a bright square."
    draw = rng("test student", seed, shape)
    rows, columns = np.mgrid[:shape[0], :shape[1]]
    images = [120 + 40 * np.sin(rows / 5 + draw.random() * 6)[..., None] + 8 * draw.standard_normal((*shape, 3))
        for _ in range(n_ok + n_nok)]
    for image in images[n_ok:]: image[20:34, 30:44] = 250
    return ImageSet.from_arrays(np.stack(images).clip(0, 255).astype(np.uint8), [0] * n_ok + [1] * n_nok)


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module", params=["stfpm", "efficientad"])
def fitted(request):
    return create(request.param, **QUICK[request.param]).fit(image_set(6), image_set(5, 3, seed=1))


# ---- formulas ----

@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 8), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_distance_is_half_the_squared_distance_of_unit_vectors(B, C, h, w, seed):
    t, s = rng("distance", seed).standard_normal((2, B, C, h, w)) + 0.01
    by_hand = np.empty((B, h, w))
    for b, i, j in np.ndindex(B, h, w):
        u, v = t[b, :, i, j], s[b, :, i, j]
        by_hand[b, i, j] = 0.5 * ((u / np.sqrt(u @ u) - v / np.sqrt(v @ v)) ** 2).sum()
    assert np.allclose(squared_distance(torch.from_numpy(t), torch.from_numpy(s)), by_hand, atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.95, 0.999]))
def test_hard_loss_is_the_mean_at_or_above_the_quantile_ties_included(values, p):
    values = np.array(values, np.float64)
    kept = values[values >= np.quantile(values, p) - 1e-9]
    assert np.isclose(float(hard_loss(torch.from_numpy(values), p)), kept.mean() if p else values.mean())


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(2, 20), st.floats(0.01, 100), st.floats(-50, 50), st.integers(0, 99))
def test_normalised_maps_do_not_depend_on_units(n, side, factor, shift, seed):
    maps = torch.from_numpy(rng("units", seed).gamma(2, 3, (n, side, side)))
    one = normalise_map(maps, map_quantiles(maps))
    other = normalise_map(factor * maps + shift, map_quantiles(factor * maps + shift))
    assert np.allclose(np.quantile(one, (0.9, 0.995)), (0, 0.1), atol=1e-6) and torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 4), (32, 48), (8, 100)])
def test_pdn_is_its_convolutions_and_keeps_the_grid(shape):
    torch.manual_seed(0)
    network, x = PDN(5, 8).double(), torch.rand(2, 3, *shape, dtype=torch.float64)
    y = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    y = torch.from_numpy(np.pad(y.numpy(), ((0, 0), (0, 0), (15, 17), (15, 17)), mode="edge"))
    convolutions = [m for m in network if isinstance(m, nn.Conv2d)]
    for k, convolution in enumerate(convolutions):
        y = nn.functional.conv2d(y, convolution.weight, convolution.bias)
        if k < 3: y = y.clamp(min=0)
        if k < 2: y = nn.functional.avg_pool2d(y, 2)
    assert y.shape == (2, 5, shape[0] // 4, shape[1] // 4) and torch.allclose(network(x), y, atol=1e-5)


def test_global_autoencoder_has_nothing_but_its_latent():
    "Two images with one latent vector have one map: no skip lets a defect through."
    torch.manual_seed(0)
    network, x = GlobalAutoencoder(4, (5, 7)).eval(), torch.rand(2, 3, 40, 56)
    network.encoder[-1].register_forward_hook(lambda module, before, after: torch.ones_like(after))
    with torch.no_grad(): a, b = network(x)
    assert a.shape == (4, 5, 7) and torch.equal(a, b)


def test_statistics_of_maps_are_numpys():
    m = torch.from_numpy(5 + rng("stats").standard_normal((11, 3, 4, 5)).astype(np.float32))
    m[:, 2] = 7
    mean, covariance, mean_map = map_statistics(m.split(4))
    rows = m.transpose(0, 1).flatten(1).numpy()
    assert np.allclose(mean[0, :, 0, 0], rows.mean(1), atol=1e-5)
    assert np.allclose(mean_map[0], m.numpy().mean(0), atol=1e-5)
    assert np.allclose(covariance, np.cov(rows.astype(np.float64)), atol=1e-5)
    # a dead channel is not divided by zero
    for whiten in (False, True): assert torch.isfinite(scaling(covariance, whiten)).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.floats(0.1, 20), st.integers(0, 99))
def test_scaling_is_the_inverse_of_the_regularised_correlation(channels, spread, seed):
    draw = rng("scaling", seed)
    rows = (draw.standard_normal((channels, channels)) @ draw.standard_normal((channels, 400))) * np.geomspace(1,
        spread, channels)[:, None]
    covariance = torch.from_numpy(np.cov(rows))
    D, R = np.diag(rows.std(1, ddof=1)), np.corrcoef(rows)
    W = scaling(covariance).double().numpy()
    assert np.allclose(W.T @ W, np.linalg.inv(D @ (R + 0.01 * np.eye(channels)) @ D), rtol=1e-3,
        atol=1e-3 * abs(W.T @ W).max())
    assert np.allclose(scaling(covariance, False), np.linalg.inv(D), rtol=1e-5)


def test_product_map_needs_every_stage():
    a, b = torch.ones(1, 6, 6), torch.ones(1, 3, 3)
    b[0, :, 2] = 0
    heat = product_map([a, b], (12, 12))
    assert (heat[..., -1] == 0).all() and (heat[..., 0] == 1).all()


# ---- detectors ----

def test_scores_are_alone_and_survive_a_bundle(fitted, tmp_path):
    x = torch.stack(list(image_set(2, 2, seed=2)))
    scores, maps = fitted.predict(x)
    assert scores.dtype == np.float64 and maps.dtype == np.float32 and maps.shape == (4, 48, 64)
    assert np.allclose(scores, maps.max((1, 2))) and np.isfinite(maps).all()
    for i in range(4): assert fitted.predict(x[i:i + 1])[0][0] == scores[i]
    again = Detector.load(fitted.save(tmp_path / "bundle"), device="cpu")
    assert all((a == b).all() for a, b in zip(again.predict(x), (scores, maps))) and again.facts == fitted.facts


def test_a_longer_fit_finds_the_square():
    for name, more in (("stfpm", dict(steps=30)), ("efficientad", dict(steps=80, width=16))):
        detector = create(name, **QUICK[name] | more).fit(image_set(16), image_set(8, 2, seed=1))
        test = image_set(6, 6, seed=3)
        scores, maps = predict_set(detector, test)
        assert scores[6:].min() > scores[:6].max(), name
        inside = np.mean([m[20:34, 30:44].mean() for m in maps[6:]])
        assert inside > np.mean([m[:, :16].mean() for m in maps[6:]]), name


def test_quantiles_come_from_training_images_that_the_student_did_not_learn_from():
    train, calibration = image_set(10), image_set(5, 3, seed=1)
    detector = create("efficientad", **QUICK["efficientad"]).fit(train, calibration)
    learned, held = detector.split(train)
    maps = efficientad._maps(detector, torch.stack(list(held)))
    levels = [border_level(m) for m in maps]
    assert torch.allclose(torch.stack(levels), detector.level, rtol=1e-3) and detector.facts["held_out"] == 2
    assert np.allclose([map_quantiles(levelled(m, level)) for m, level in zip(maps, levels)],
        detector.facts["quantiles"], rtol=1e-2)
    found = map_statistics([efficientad._seen(detector, torch.stack(list(learned)))])[0]
    assert torch.allclose(found, detector.mean, rtol=1e-3,
        atol=1e-4), "the teacher was not standardised by the images that are learned"


def test_the_published_teacher_is_taken_where_it_is_at_hand(tmp_path, monkeypatch):
    monkeypatch.delenv("THESIS_AD_WEIGHTS", raising=False)
    assert create("efficientad").teacher == "backbone"
    monkeypatch.setenv("THESIS_AD_WEIGHTS", str(tmp_path))
    assert create("efficientad").teacher == "backbone"
    assert create("efficientad", teacher="backbone").backbone != "pdn_small"
    torch.save(efficientad.PDN().state_dict(), tmp_path / "pdn_small.pth")
    detector = create("efficientad", **QUICK["efficientad"])
    assert (detector.teacher, detector.backbone) == ("published", "pdn_small")
    assert create("efficientad", teacher="backbone").teacher == "backbone"
    detector.fit(image_set(6)).save(tmp_path / "bundle")
    (tmp_path / "pdn_small.pth").unlink()
    again = Detector.load(tmp_path / "bundle", device="cpu")
    assert again.teacher == "published"
    assert (predict_set(again, image_set(2, seed=3))[0] == predict_set(detector, image_set(2, seed=3))[0]).all()


@pytest.mark.parametrize("whiten", [False, True])
def test_mean_reference_is_the_distance_to_the_training_mean(whiten):
    train = image_set(5)
    detector = create("efficientad", **QUICK["efficientad"], reference="mean", whiten=whiten, rim=0,
        window=1).fit(train, image_set(4, seed=1))
    see = lambda images: efficientad._seen(detector, torch.stack(list(images))).double()
    train = detector.split(train)[0]
    rows, test = see(train).transpose(0, 1).flatten(1), image_set(1, 1, seed=4)
    std = rows.std(1).clamp(min=1e-3)
    off = (see(test) - see(train).mean(0)) / std[:, None, None]
    inverse = (torch.linalg.inv(torch.corrcoef(rows) + 0.01 * torch.eye(len(rows))) if whiten
        else torch.eye(len(rows), dtype=torch.float64))
    by_hand = torch.einsum("bchw,cd,bdhw->bhw", off, inverse, off) / len(rows)
    assert torch.allclose(efficientad._maps(detector, torch.stack(list(test)))[0].double(), by_hand, rtol=2e-2,
        atol=1e-3 * float(by_hand.max()))
    assert set(detector.tensors()) == {"mean", "scaling", "mean_map", "level"}


def test_the_rim_never_decides():
    "The score is the largest value of a map whose rim repeats the nearest inner cell."
    detector = create("efficientad", **QUICK["efficientad"] | dict(rim=0.25, window=1, size=(64, 64))).fit(image_set(4,
        shape=(64, 64)), image_set(3, seed=1, shape=(64, 64)))
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    local, whole = efficientad._maps(detector, x)
    assert local.shape == whole.shape == (2, 4, 4)                      # of 8 x 8 cells
    cells = torch.stack([efficientad.normalise_map(levelled(m, level), q)
        for m, level, q in zip((local, whole), detector.level, detector.facts["quantiles"])]).mean(0)
    _, maps = detector.predict(x)
    assert np.allclose(maps[:, 0, 0], cells[:, 0, 0]) and np.allclose(maps[:, -1, -1], cells[:, -1, -1])
    assert maps.max() <= cells.max() + 1e-5


@pytest.mark.parametrize("name", QUICK)
def test_margin_and_kept_maps(name, monkeypatch):
    """Mirrored surroundings change the maps and not their shape;
    maps that are kept in memory change nothing that can be seen."""
    train, held = image_set(5), image_set(3, seed=1)
    x = torch.stack(list(image_set(1, 1, seed=5)))
    plain, wide = (create(name, **QUICK[name], margin=margin).fit(train, held) for margin in (0, 32))
    assert plain.predict(x)[1].shape == wide.predict(x)[1].shape
    assert not np.allclose(plain.predict(x)[1], wide.predict(x)[1])
    monkeypatch.setattr(student_teacher, "MAP_LIMIT", 0)
    asked = create(name, **QUICK[name]).fit(train, held)
    assert np.allclose(asked.predict(x)[1], plain.predict(x)[1], rtol=0.1, atol=0.05 * np.ptp(plain.predict(x)[1]))


def test_the_pupil_sees_the_teachers_surroundings():
    "A student made of the teacher's own layers agrees with it everywhere, with and without a margin."
    for margin in (0, 32):
        detector = create("stfpm", **QUICK["stfpm"], margin=margin).fit(image_set(2))
        detector.student.chain = nn.ModuleList(nn.Sequential(*stage)
            for stage in detector.network._stages[:1 + max(detector.used_stages)])
        images = torch.stack(list(image_set(2, 1)))
        assert all(float(d.max()) < 1e-5 for d in student_teacher._distances(detector, images))


def test_other_image_sizes():
    detector = create("efficientad", **QUICK["efficientad"]).fit(image_set(3), image_set(2, seed=1))
    with pytest.raises(UserError, match="cells"): detector.predict(torch.rand(1, 3, 96, 64))
    with pytest.raises(UserError, match="NaN"): detector.predict(torch.full((1, 3, 48, 64), float("nan")))


# ---- published weights ----

def test_published_weights_are_read_whatever_their_names_and_format(tmp_path, monkeypatch):
    torch.manual_seed(0)
    network = PDN()
    names = [f"conv{k}.{part}" for k in (1, 2, 3, 4) for part in ("weight", "bias")]
    save_file({name: tensor.contiguous() for name, tensor in zip(names, network.state_dict().values())},
        tmp_path / "pdn_small.safetensors")  # sorted by name: bias first
    monkeypatch.setenv("THESIS_AD_WEIGHTS", str(tmp_path))
    assert same(read_pdn(find_pdn("published")).state_dict(), network.state_dict())
    detector = create("efficientad", **QUICK["efficientad"] | dict(size=(32, 32), steps=1),
        teacher="published").fit(image_set(2), image_set(1, seed=1))
    assert detector.facts["grid"] == [8, 8] and detector.facts["channels"] == 384 and detector.backbone == "pdn_small"
    path = detector.save(tmp_path / "bundle")
    (tmp_path / "pdn_small.safetensors").unlink()
    x = torch.stack(list(detector.prepare(image_set(2))))
    assert (Detector.load(path, device="cpu").predict(x)[0] == detector.predict(x)[0]).all()
    with pytest.raises(UserError, match="published"): find_pdn("published")


def test_unfitting_weights_are_refused(tmp_path):
    for outputs, width in ((384, 64), (128, 128)):
        torch.save(PDN(outputs, width).state_dict(), tmp_path / "other.pth")
        with pytest.raises(UserError, match="other.pth"): read_pdn(tmp_path / "other.pth")
    torch.save({"a.weight": torch.ones(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="8"): read_pdn(tmp_path / "other.pth")
