"""The autoencoder end to end on tiny images, and its parts against independent implementations."""
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings as budget, strategies as st
from scipy.ndimage import gaussian_filter

from thesis_ad.data.datasets import ImageSet
from thesis_ad.models import training
from thesis_ad.models.autoencoder import (CBAM, Autoencoder, ConvAutoencoder, PlainAutoencoder, mean_of_largest,
                                          reconstruction_loss, ssim_map)
from thesis_ad.models.detector import Detector, predict_set
from thesis_ad.settings import UserError, pin_threads, rng

pin_threads(1)
TINY = dict(size=(32, 48), width=4, epochs=2, batch=4, device="cpu")


@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)


def image_set(n, size=(32, 48), nok=0, seed=0):
    "n OK images, stripes of varying brightness, and `nok` more with a dark square."
    random, (height, width) = rng("test autoencoder", seed), size
    stripes = 120 + 60 * np.sin(np.arange(width) / 3)[None, None, :, None] + random.normal(0, 8, (n + nok, 1, 1, 1))
    images = np.broadcast_to(stripes, (n + nok, height, width, 3)) + random.normal(0, 3, (n + nok, height, width, 3))
    for image in images[n:]: image[height // 4:height // 2 + 1, width // 4:width // 2 + 1] = 10
    return ImageSet.from_arrays(images.clip(0, 255).astype(np.uint8), labels=[0] * n + [1] * nok)


def equal(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


# ---- SSIM

def scipy_ssim(x, y):
    "SSIM by SciPy with an 11-tap window whose part outside the image is left out."
    inside = gaussian_filter(np.ones_like(x), 1.5, radius=5, mode="constant")
    blur = lambda z: gaussian_filter(z, 1.5, radius=5, mode="constant") / inside
    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx ** 2, blur(y * y) - my ** 2, blur(x * y) - mx * my
    return (2 * mx * my + 0.01 ** 2) * (2 * vxy + 0.03 ** 2) / ((mx ** 2 + my ** 2 + 0.01 ** 2) * (vx + vy + 0.03 ** 2))


@budget(max_examples=25, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), spread=st.floats(0, 0.5), seed=st.integers(0, 99))
def test_ssim_is_wangs(height, width, spread, seed):
    random = rng("ssim", seed)
    x = random.random((2, 3, height, width))
    y = np.clip(x + random.normal(0, spread, x.shape), 0, 1)
    ours = ssim_map(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    theirs = np.array([[scipy_ssim(a, b) for a, b in zip(*pair)] for pair in zip(x, y)])
    assert ours.dtype == np.float32 and ours.shape == x.shape
    assert np.abs(ours - theirs).max() < 1e-3
    assert np.abs(ours).max() <= 1 + 1e-4


def test_ssim_identity_symmetry_and_known_value():
    x, y = torch.rand(2, 2, 3, 20, 13)
    assert (ssim_map(x, x) == 1).all(), "an image is exactly like itself"
    assert torch.equal(ssim_map(x, y), ssim_map(y, x))
    # no structure: the first factor alone
    flat = ssim_map(torch.full((1, 1, 9, 9), 0.5), torch.full((1, 1, 9, 9), 0.25))
    assert torch.allclose(flat, torch.tensor((2 * 0.5 * 0.25 + 1e-4) / (0.5 ** 2 + 0.25 ** 2 + 1e-4)), atol=1e-3)


def test_loss_shares_and_gradient():
    x, y = torch.rand(2, 2, 3, 20, 20)
    mse, likeness = ((x - y) ** 2).mean(), ssim_map(x, y).mean()
    assert torch.isclose(reconstruction_loss(x, y), 0.15 * mse + 0.85 * (1 - likeness))
    for target in (x, torch.full_like(x, 0.5)):
        y = torch.full_like(x, 0.4).requires_grad_()
        reconstruction_loss(target, y).backward()
        assert y.grad.isfinite().all() and y.grad.abs().max() > 0
        with torch.no_grad():
            assert reconstruction_loss(target, y - 1e-2 * y.grad / y.grad.abs().max()) < reconstruction_loss(target, y)


def test_loss_is_float32_under_autocast():
    x, y = torch.rand(2, 1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16): inside = ssim_map(x, y.bfloat16())
    assert inside.dtype == torch.float32 and torch.equal(inside, ssim_map(x, y.bfloat16().float()))


def test_a_loss_looked_at_without_gradients_leaves_training_alone():
    x, y = torch.rand(2, 1, 3, 37, 41)
    with torch.inference_mode(): reconstruction_loss(x, y)
    reconstruction_loss(x, y.requires_grad_()).backward()
    assert y.grad.abs().sum() > 0


# ---- the network

def test_cbam_with_zero_weights_halves_twice():
    block = CBAM(16)
    with torch.no_grad():
        for parameter in block.parameters(): parameter.zero_()
        x = torch.randn(2, 16, 5, 7)
        assert torch.allclose(block(x), x / 4), "σ(0) = 1/2 for the channels and 1/2 for the places"


def test_cbam_channels_then_places():
    "With the channel gates open for one channel only, the spatial gates must see that channel alone."
    block = CBAM(4)
    with torch.no_grad():
        for parameter in block.parameters(): parameter.zero_()
        block.channels.mlp[2].bias.copy_(torch.tensor([20., -20, -20, -20]))
        block.places.conv.weight[0, 1, 3, 3] = 1.0                         # the maximum over channels, centre tap
        x = torch.rand(1, 4, 6, 6)
        expected = torch.sigmoid(x[:, :1]) * x[:, :1]
        assert torch.allclose(block(x)[:, :1], expected, atol=1e-5) and block(x)[:, 1:].abs().max() < 1e-5


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (16, 16), (33, 17), (48, 32)])
@pytest.mark.parametrize("skip", [0, 2, 4, 8])
def test_network_keeps_any_size(size, skip):
    network, x = ConvAutoencoder(4, skip=skip), torch.rand(1, 3, *size)
    for learning in (True, False):
        y = network.train(learning)(x)
        assert y.shape == x.shape and y.dtype == torch.float32 and 0 <= y.min() and y.max() <= 1


def test_attention_only_where_asked():
    has = lambda network: any(isinstance(module, CBAM) for module in network.decoder.modules())
    assert has(ConvAutoencoder(4)) and not has(ConvAutoencoder(4, attention=False))
    assert not any(isinstance(module, CBAM)
        for module in ConvAutoencoder(4).encoder.modules()), "attention sits in the decoder"
    assert Autoencoder().attention and not PlainAutoencoder().attention


@pytest.mark.parametrize("size, count",
    [((512, 512), 1500), ((128, 128), 94), ((64, 256), 94), ((8, 8), 1), ((1, 1), 1)])
def test_score_takes_the_largest_errors(size, count):
    maps = torch.rand(2, *size)
    expected = np.sort(maps.flatten(1).double().numpy(), axis=1)[:, -count:].mean(1)
    assert np.allclose(mean_of_largest(maps, 1500), expected, rtol=1e-12)


# ---- the detector, end to end

@pytest.mark.parametrize("cls, size", [(Autoencoder, (33, 17)), (Autoencoder, (1, 1)), (PlainAutoencoder, (32, 48))])
def test_fit_predict_save_load(cls, size, tmp_path):
    train, calibration = image_set(5), image_set(3, nok=2, seed=1)
    detector = cls(**TINY | {"size": size}).fit(train, calibration)
    scores, maps = detector.predict(torch.rand(3, 3, *size))
    assert scores.dtype == np.float64 and scores.shape == (3,) and np.isfinite(scores).all()
    assert maps.dtype == np.float32 and maps.shape == (3, *size) and maps.min() >= 0
    assert [len(detector.facts[name]) for name in ("loss_train", "loss_ok", "loss_nok")] == [2, 2, 2]
    again = Detector.load(detector.save(tmp_path / "bundle"), device="cpu")
    assert type(again) is cls and json.loads(json.dumps(detector.facts)) == again.facts
    assert equal(detector.tensors(), again.tensors())
    before, after = predict_set(detector, calibration), predict_set(again, calibration)
    assert (before[0] == after[0]).all() and all(np.array_equal(a, b) for a, b in zip(before[1], after[1]))
    assert before[1][0].shape == (32, 48), "maps come back at the file's size"


def test_map_is_the_squared_error_averaged_over_channels():
    detector = Autoencoder(**TINY).fit(image_set(4))
    x = torch.rand(2, 3, 32, 48)
    with torch.no_grad(): expected = ((detector.network.eval()(x) - x) ** 2).mean(1).numpy()
    scores, maps = detector.predict(x)
    assert np.allclose(maps, expected, atol=1e-6)
    assert np.allclose(scores, [np.sort(one.ravel())[-9:].mean() for one in maps]), "1500 · 32 · 48 / 512² = 8.8 pixels"


def test_it_finds_a_dark_square():
    train, test = image_set(8), image_set(4, nok=4, seed=2)
    detector = Autoencoder(**TINY | dict(epochs=40, width=8, augment=False)).fit(train)
    scores, maps = predict_set(detector, test)
    assert detector.facts["loss_train"][-1] < 0.5 * detector.facts["loss_train"][0], "the loss did not fall"
    assert scores[4:].min() > scores[:4].max(), "a NOK image scores below an OK one"
    for heat in maps[4:]:
        inside = heat[8:17, 12:25].mean()
        assert inside > 3 * (heat.sum() - heat[8:17, 12:25].sum()) / (heat.size
            - 9 * 13), "the error is not at the defect"


@pytest.mark.parametrize("bf16", [True, False])
def test_same_seed_same_weights(bf16):
    first, again, other = (Autoencoder(**TINY, bf16=bf16, seed=seed).fit(image_set(5)).tensors() for seed in (0, 0, 1))
    assert equal(first, again) and not torch.equal(first["last.weight"], other["last.weight"])


def test_bf16_is_used_only_where_it_is_computed(monkeypatch):
    plain = Autoencoder(**TINY, bf16=False).fit(image_set(4))
    monkeypatch.setattr(training, "computes_bf16", lambda device: False)
    without = Autoencoder(**TINY, bf16=True).fit(image_set(4))
    assert plain.facts["precision"] == without.facts["precision"] == "float32"
    assert equal(plain.tensors(), without.tensors())
    monkeypatch.setattr(training, "computes_bf16", lambda device: True)
    used = Autoencoder(**TINY, bf16=True).fit(image_set(4))
    assert used.facts["precision"] == "bfloat16" and not equal(plain.tensors(), used.tensors())
    assert all(tensor.dtype != torch.bfloat16 for tensor in used.tensors().values()), "weights are kept in float32"


def test_augmentation_reaches_training_only():
    with_, without = (Autoencoder(**TINY, augment=augment).fit(image_set(4), image_set(3, seed=1))
        for augment in (True, False))
    assert not equal(with_.tensors(), without.tensors())
    assert with_.prepare(image_set(2)).transform is None


def test_a_score_does_not_depend_on_the_batch():
    detector = Autoencoder(**TINY | dict(size=(70, 50))).fit(image_set(4))
    x = torch.rand(7, 3, 70, 50)
    scores, maps = detector.predict(x)
    for chosen in ([3], [6, 0], [5, 4, 3, 2, 1, 0]):
        alone, heat = detector.predict(x[chosen])
        assert (alone == scores[chosen]).all() and (heat == maps[chosen]).all()


@pytest.mark.parametrize("size", [(32, 48), (8, 8)])
def test_one_image_and_a_constant_one(size):
    for images in (image_set(1), ImageSet.from_arrays(np.full((1, 20, 20, 3), 77, np.uint8)),
            ImageSet.from_arrays(np.zeros((3, 9, 9, 3), np.uint8))):
        detector = Autoencoder(**TINY | dict(size=size, batch=1)).fit(images)
        scores, maps = predict_set(detector, images)
        assert np.isfinite(scores).all() and np.isfinite(detector.facts["loss_train"]).all()
        assert detector.facts["loss_ok"] == []


# ---- what a person is told

def test_divergence_is_a_sentence():
    with pytest.raises(UserError, match="autoencoder diverged at update [12].*learning_rate"):
        Autoencoder(**TINY, learning_rate=1e30).fit(image_set(5))


def test_nan_in_a_image_is_not_hidden():
    detector = Autoencoder(**TINY).fit(image_set(4))
    x = torch.rand(2, 3, 32, 48)
    x[1, 0, 5, 5] = float("nan")
    with pytest.raises(UserError, match="image 1 of the batch has pixels that are NaN"): detector.predict(x)


@pytest.mark.parametrize("wrong", [dict(width=0), dict(top=0), dict(mse_share=1.5), dict(skip=16), dict(size=(0, 5)),
    dict(size=(5,))])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))): Autoencoder(**TINY | wrong)


def test_not_fitted_and_nok_in_training():
    with pytest.raises(UserError, match="has not been fitted"): Autoencoder(**TINY).predict(torch.rand(1, 3, 32, 48))
    with pytest.raises(UserError, match="NOK"): Autoencoder(**TINY).fit(image_set(2, nok=1))
