"""Autoencoders of pixels (cae_l1, vae) and of features (featcae, dfr_attention): their parts by other means,
and end to end on tiny images."""
import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings as budget, strategies as st

from thesis_ad.data.datasets import ImageSet
from thesis_ad.models.autoencoder import CBAM, ConvAutoencoder
from thesis_ad.models.convolutional import (L1Autoencoder, VariationalAutoencoder, VariationalNetwork,
    huber, kl_divergence)
from thesis_ad.models.detector import Detector, create, predict_set, settings_of
from thesis_ad.models.dfr import DFR, Convolution
from thesis_ad.models.dfr_attention import AttentionDFR
from thesis_ad.models.featcae import neighbourhoods, three_sigma
from thesis_ad.settings import UserError, pin_threads, rng

pin_threads(1)
PIXELS = dict(size=(32, 48), width=4, epochs=2, batch=4, device="cpu")
QUICK = {"cae_l1": PIXELS, "vae": PIXELS | dict(latent=4),
         "featcae": dict(size=(64, 96), latent=8, steps=6, rows_per_step=64, passes=1, device="cpu"),
         "dfr_attention": dict(size=(64, 96), cells=(8, 12), latent=6, epochs=1, top=5, device="cpu")}
every = pytest.mark.parametrize("name", QUICK)


def image_set(n, nok=0, shape=(64, 96), seed=0):
    "n OK images, stripes of varying brightness, and `nok` more with a dark square."
    random, (height, width) = rng("test convolutional", seed), shape
    stripes = 120 + 60 * np.sin(np.arange(width) / 3)[None, None, :, None] + random.normal(0, 8, (n + nok, 1, 1, 1))
    images = stripes + random.normal(0, 3, (n + nok, height, width, 3))
    for image in images[n:]: image[height // 4:height // 2 + 1, width // 4:width // 2 + 1] = 10
    return ImageSet.from_arrays(images.clip(0, 255).astype(np.uint8), labels=[0] * n + [1] * nok)


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def batch_of(detector, n=4, seed=3): return next(detector.prepare(image_set(n, seed=seed)).batches(n))[1]


@pytest.fixture(scope="module")
def fitted():
    pin_threads(1)
    train, calibration = image_set(5), image_set(2, 2, seed=1)
    return {name: create(name, **settings).fit(train, calibration) for name, settings in QUICK.items()}


# ---- parts

@budget(max_examples=40, deadline=None)
@given(beta=st.floats(1e-3, 2), seed=st.integers(0, 99), spread=st.floats(1e-4, 1))
def test_huber_is_hubers(beta, seed, spread):
    x = torch.from_numpy(rng("huber", seed).random((3, 40)))
    y = x + torch.from_numpy(rng("huber", seed, 1).normal(0, spread, (3, 40)))
    d = (y - x).numpy()
    loss = huber(x, y.requires_grad_(), beta)
    assert np.allclose(loss.detach().numpy(),
        np.where(np.abs(d) < beta, d ** 2 / (2 * beta), np.abs(d) - beta / 2), atol=1e-12)
    slope, = torch.autograd.grad(loss.sum(), y)
    assert np.allclose(slope.numpy(), np.clip(d / beta, -1, 1), atol=1e-9), "the slope is d / β, and never beyond 1"


@budget(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99), shape=st.sampled_from([(1, 1), (2, 7), (3, 4, 5), (2, 3, 2, 2)]), low=st.floats(-6, 0),
    high=st.floats(0, 4))
def test_divergence_is_that_of_torch(seed, shape, low, high):
    random = rng("kl", seed)
    mean, log_variance = (torch.from_numpy(values)
        for values in (random.normal(0, 2, shape), random.uniform(low, high, shape)))
    theirs = torch.distributions.kl_divergence(torch.distributions.Normal(mean, (log_variance / 2).exp()),
        torch.distributions.Normal(0.0, 1.0))
    ours = kl_divergence(mean, log_variance)
    assert ours.shape == shape[:1] and torch.allclose(ours, theirs.flatten(1).sum(1)) and (ours >= -1e-12).all()


def test_a_draw_has_the_mean_and_the_variance_of_the_encoder():
    torch.manual_seed(0)
    network, x, drawn = VariationalNetwork(4, 3).eval(), torch.rand(1, 3, 32, 32), []
    mean, log_variance = network.encode(x)
    hook = network.from_latent.register_forward_hook(lambda module, given, out: drawn.append(given[0].detach()))
    network.training = True                                     # the draw, with batch normalisation left in eval
    with torch.no_grad():
        for _ in range(1500): network(x)
    hook.remove()
    drawn = torch.cat(drawn)
    assert torch.allclose(drawn.mean(0), mean[0], atol=0.12)
    assert torch.allclose(drawn.var(0).log(), log_variance[0], atol=0.2)
    network.eval()
    with torch.no_grad():
        assert torch.equal(network(x)[0], network.decode(mean, (32, 32))), "in eval() the latent is its mean"


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (33, 17), (48, 32)])
def test_variational_network_keeps_any_size(size):
    y, mean, log_variance = VariationalNetwork(4, 3).eval()(torch.rand(2, 3, *size))
    assert y.shape == (2, 3, *size) and 0 <= y.min() and y.max() <= 1 and mean.shape == log_variance.shape
    assert mean.shape[:2] == (2, 3)


@budget(max_examples=30, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=3),
    window=st.sampled_from([1, 3, 5]), seed=st.integers(0, 99))
def test_neighbourhoods_by_brute_force(sizes, window, seed):
    maps = [torch.from_numpy(rng("pool", seed, k).normal(size=(1, 2, *size))) for k, size in enumerate(sizes)]
    ours, (h, w) = neighbourhoods(maps, window).numpy(), sizes[0]
    assert ours.shape == (1, 2 * len(maps), h, w)
    for k, channel in enumerate(m[0, c].numpy() for m in maps for c in range(2)):
        a, b = (min(window, n) for n in channel.shape)
        inner = np.lib.stride_tricks.sliding_window_view(channel, (a, b)).mean((2, 3))
        for i in range(h):
            rows = inner[i * len(inner) // h:-(-(i + 1) * len(inner) // h)]
            for j in range(w):
                n = inner.shape[1]
                assert np.isclose(ours[0, k, i, j], rows[:, j * n // w:-(-(j + 1) * n // w)].mean())


def test_three_sigma():
    errors = rng("errors").random(50)
    assert np.isclose(three_sigma(errors)["error_line"], errors.mean() + 3 * errors.std())


# ---- what makes each of them what it is

def test_pixel_detectors_score_by_their_own_error(fitted):
    x = batch_of(fitted["cae_l1"])
    network = fitted["cae_l1"].network.eval()
    with torch.no_grad(): y = torch.cat([network(one) for one in x.split(1)])
    scores, maps = fitted["cae_l1"].predict(x)
    assert type(network) is ConvAutoencoder and np.allclose(maps, huber(x, y, 0.02).mean(1).numpy(), atol=1e-6)
    assert np.allclose(scores,
        np.sort(maps.reshape(4, -1).astype(float), axis=1)[:, -9:].mean(1)), "0.57 % of 32 × 48 pixels"
    raw, smooth = (copy.copy(fitted["vae"]) for _ in range(2))
    raw.blur, smooth.blur = 0.0, 3.0
    (_, raw), (_, smooth) = raw.predict(x), smooth.predict(x)
    assert np.allclose(raw.mean((1, 2)), smooth.mean((1, 2)), rtol=1e-3)
    assert (smooth.max((1, 2)) < raw.max((1, 2))).all()


def test_settings_without_a_meaning_are_gone():
    assert "mse_share" not in settings_of(L1Autoencoder())
    assert {"beta", "skip", "width"} <= set(settings_of(L1Autoencoder()))
    assert not {"mse_share", "skip", "attention"} & set(settings_of(VariationalAutoencoder()))


def test_the_divergence_is_in_the_loss():
    detector = VariationalAutoencoder(**QUICK["vae"], kl_weight=0.5)
    x, y, mean = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8), torch.randn(2, 4, 1, 1)
    log_variance = torch.randn(2, 4, 1, 1)
    wanted = ((x - y) ** 2).mean() + 0.5 * kl_divergence(mean, log_variance).mean() / 192
    assert torch.isclose(detector.loss(x, (y, mean, log_variance)), wanted)


def test_attention_variant_is_the_larger_network(fitted):
    network = fitted["dfr_attention"].network
    assert {m.kernel_size for m in network.modules() if isinstance(m, Convolution)} == {(3, 3)}
    assert isinstance(network.attention, CBAM) and network.skips and AttentionDFR().training == "maps"
    assert (DFR().training == "rows" and DFR().kernel == 1 and not DFR().attention
        and not DFR().skips), "plain DFR is untouched"
    with pytest.raises(UserError, match="maps"): create("dfr_attention", training="rows")


def test_featcae_records_the_training_error_and_sets_no_threshold(fitted):
    detector = fitted["featcae"]
    scores = detector.predict(torch.stack(list(detector.prepare(image_set(5)))))[0]
    assert {key: detector.facts[key]
        for key in ("error_mean", "error_std", "error_line")} == pytest.approx(three_sigma(scores))
    assert detector.threshold is None
    assert detector.features(torch.rand(1, 3, 64, 96)).shape == (1, 152, 8, 12)


# ---- all of them, end to end

@every
def test_nok_scores_higher(name):
    "A dark square, after a somewhat longer training than the rest of these tests."
    longer = {"cae_l1": dict(epochs=25, augment=False), "vae": dict(epochs=25, augment=False),
        "featcae": dict(steps=60), "dfr_attention": dict(epochs=4)}
    detector = create(name, **QUICK[name] | longer[name]).fit(image_set(8))
    scores, maps = predict_set(detector, image_set(4, 4, seed=7))
    assert scores[4:].min() > scores[:4].max()
    assert [m.shape for m in maps] == [(64, 96)] * 8 and all(np.isfinite(m).all() for m in maps)
    inside = np.zeros((64, 96), bool); inside[16:33, 24:49] = True
    assert all(m[inside].mean() > 1.5 * m[~inside].mean() for m in maps[4:])


@every
def test_bundle_and_company(name, fitted, tmp_path):
    detector, x = fitted[name], batch_of(fitted[name])
    scores, maps = detector.predict(x)
    assert scores.dtype == np.float64 and maps.dtype == np.float32 and maps.shape == (4, *detector.size)
    again = Detector.load(detector.save(tmp_path / "bundle"), device="cpu")
    assert again == detector and again.facts == detector.facts and type(again) is type(detector)
    assert (again.predict(x)[0] == scores).all() and (again.predict(x)[1] == maps).all()
    for i in (0, 3):
        alone = detector.predict(x[i:i + 1])
        assert alone[0][0] == scores[i] and (alone[1][0] == maps[i]).all()
    assert (detector.predict(x.flip(0))[0][::-1] == scores).all()


@every
def test_losses_are_logged(name, fitted):
    facts = fitted[name].facts
    assert len(facts["loss_train"]) == len(facts["loss_ok"]) == len(facts["loss_nok"]) > 0
    assert np.isfinite(facts["loss_nok"]).all()


@every
def test_tiny_images_give_numbers_or_a_sentence(name):
    more = {"cells": (4, 4)} if name == "dfr_attention" else {}
    try: detector = create(name, **QUICK[name] | more | {"size": (8, 8)}).fit(image_set(2))
    except UserError as refusal:
        assert name in ("featcae", "dfr_attention"), refusal
        return
    scores, maps = detector.predict(torch.cat([torch.rand(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)]))
    assert np.isfinite(scores).all() and np.isfinite(maps).all() and maps.shape == (2, 8, 8)


@pytest.mark.parametrize("name, wrong, words", [
    ("cae_l1", dict(beta=0), "beta"), ("cae_l1", dict(mse_share=0.2), "mse_share"),
    ("vae", dict(latent=0), "latent"), ("vae", dict(kl_weight=-1), "kl_weight"),
    ("vae", dict(blur=-1), "blur"), ("vae", dict(attention=True), "attention"), ("vae", dict(size=(0, 8)), "size"),
    ("featcae", dict(latent=0), "latent"), ("dfr_attention", dict(kernel=2), "odd")])
def test_settings_that_cannot_work_are_refused(name, wrong, words):
    with pytest.raises(UserError, match=words): create(name, **QUICK[name] | wrong)
