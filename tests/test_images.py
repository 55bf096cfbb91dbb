"Augmentation and enhancement: what every transform promises, measured on images of many shapes."
import hashlib
from dataclasses import FrozenInstanceError, replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from thesis_ad.images.augmentation import (Augment, Compose, add_noise, blur, blur_kernel, gamma_table, is_grey,
    minimal_noise, tone_table, turn)
from thesis_ad.images.enhancement import Enhance, clahe, unsharp
from thesis_ad.settings import UserError, rng

NOTHING = Augment(gamma_p=0, brightness_p=0, contrast_p=0, noise_p=0, blur_p=0, flip_p=0, rotation_p=0)
TRANSFORMS = [Augment(), Augment(flips=False, rotations=False), NOTHING, replace(NOTHING, minimal=0), Enhance(),
    Enhance(share=0.0), Enhance(share=0.5), Enhance(smooth=0.8), Compose(Augment(), Enhance(share=0.15)), Compose()]


def random_image(seed, height=48, width=48, grey=False):
    "Noise over a slope, so that every grey level and some structure is there."
    generator = np.random.default_rng(seed)
    slope = np.linspace(0, 255, width)[None, :, None] * np.ones((height, 1, 1))
    noise = generator.normal(0, 25, (height, width, 1 if grey else 3))
    return np.broadcast_to(np.clip(slope + noise, 0, 255), (height, width, 3)).astype(np.uint8)


def flat(value, height=64, width=64): return np.full((height, width, 3), value, np.uint8)


def only(**fields):
    "An `Augment` that does what `fields` say and nothing else, not even the minimal noise."
    return replace(NOTHING, minimal=0, **fields)


def digest(image): return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def within_binomial(count, n, p, what):
    "The count lies within four standard deviations of a binomial one."
    assert abs(count / n - p) <= 4 * np.sqrt(p * (1 - p) / n), f"{what}: {count / n:.3f} of the draws, expected {p:.3f}"


# ---------------------------------------------------------------- what every transform promises

@settings(max_examples=30, deadline=None)
@given(st.sampled_from(TRANSFORMS), st.integers(1, 40), st.integers(1, 40), st.booleans(), st.integers(0, 10 ** 6))
def test_same_kind_same_shape_input_untouched_and_repeatable(transform, height, width, grey, seed):
    image = random_image(seed, height, width, grey)
    before = image.copy()
    out = transform(image, rng(seed))
    assert out.dtype == np.uint8 and out.shape == image.shape
    assert np.array_equal(image, before), "the input was changed"
    assert not np.shares_memory(out, image), "the output is the input"
    assert np.array_equal(out, transform(image, rng(seed))), "the same rng gave another image"
    assert out.flags.c_contiguous
    out[:] = 0                                             # writable


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
def test_views_and_read_only_images_are_taken(transform):
    image = random_image(1, 40, 56)
    image.flags.writeable = False
    for view in (image, image[::-1, ::-1], image[..., ::-1], image[3:35, 5:45], image.transpose(1, 0, 2)):
        assert np.array_equal(transform(view, rng(2)), transform(np.array(view, order="C"), rng(2)))


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
def test_repr_makes_it_again_and_fields_are_frozen(transform):
    assert eval(repr(transform)) == transform and hash(transform) == hash(eval(repr(transform)))
    with pytest.raises(FrozenInstanceError): setattr(transform, next(iter(transform.__dict__)), 1)


def test_every_setting_shows_in_the_repr():
    for base, changed in (
            (Augment(), dict(gamma=(0.8, 1.1), gamma_p=0.1, brightness=(0.9, 1.0), brightness_p=0.1,
                contrast=(0.9, 1.0), contrast_p=0.1, noise=(3.0,), noise_p=0.1, blur=(3,), blur_p=0.1,
                flips=False, flip_p=0.1, rotations=False, rotation_p=0.1, minimal=0.1)),
            (Enhance(), dict(share=0.15, clip=4.0, tiles=(4, 4), gamma=0.9, amount=1.0, sigma=2.0, smooth=1.0))):
        assert set(changed) == set(base.__dict__), "a field is missing from this test"
        reprs = {repr(replace(base, **{name: value})) for name, value in changed.items()} | {repr(base)}
        assert len(reprs) == len(changed) + 1


@pytest.mark.parametrize("transform", [Augment(), Enhance(), Compose(Enhance())], ids=repr)
@pytest.mark.parametrize("image", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8),
    np.zeros((8, 8, 4), np.uint8)], ids=["float", "2-D", "RGBA"])
def test_other_arrays_are_refused(transform, image):
    with pytest.raises(ValueError, match=r"uint8 image \[H, W, 3\]"): transform(image, rng(0))


@pytest.mark.parametrize("make, word", [
    (lambda: Augment(flip_p=-0.1), "flip_p"), (lambda: Augment(minimal=2), "minimal"),
    (lambda: Augment(contrast=(1.2, 0.8)), "contrast"),
    (lambda: Augment(noise=(0.0,)), "noise"), (lambda: Augment(blur=(2.5,)), "blur"),
    (lambda: Enhance(share=1.1), "share"),
    (lambda: Enhance(clip=0), "clip"), (lambda: Enhance(smooth=-1), "smooth")])
def test_impossible_settings_are_refused_by_name(make, word):
    with pytest.raises(UserError, match=word): make()


# ---------------------------------------------------------------- the thesis's recipe

def test_defaults_are_the_thesis_recipe():
    a = Augment()
    assert (a.gamma, a.brightness, a.contrast) == ((0.7, 1.25), (0.8, 1.05), (0.8, 1.2))
    assert (len(a.noise), a.noise_p, a.blur, a.blur_p, a.flip_p, a.rotation_p) == (3, 0.3, (3, 4, 5), 0.2, 0.4, 0.15)
    e = Enhance()
    assert (e.gamma, e.clip, e.share, e.smooth) == (0.8, 2.0, 1.0, 0.0)


def test_frequencies_and_ranges_of_what_is_drawn():
    a, n = Augment(), 6000
    draws = [a.draw(rng("frequency", i)) for i in range(n)]
    for name, p in dict(gamma=a.gamma_p, brightness=a.brightness_p, contrast=a.contrast_p, noise=0.3, blur=0.2,
            hflip=0.4, vflip=0.4, rotation=0.15).items():
        within_binomial(sum(name in d for d in draws), n, p, name)
    for name in ("gamma", "brightness", "contrast"):
        low, high = getattr(a, name)
        values = np.array([d[name] for d in draws if name in d])
        assert (low <= values.min() < low + 0.02 * (high - low)
            and high - 0.02 * (high - low) < values.max() <= high), name
        assert (abs(values.mean() - (low + high) / 2)
            < 4 * (high - low) / np.sqrt(12 * len(values))), f"{name} is not uniform"
    for name, choices in dict(noise=a.noise, blur=a.blur, rotation=(90, 180, 270)).items():
        values = [d[name] for d in draws if name in d]
        for choice in choices: within_binomial(values.count(choice), len(values), 1 / 3, f"{name} {choice}")
    together = sum("hflip" in d and "vflip" in d for d in draws)
    within_binomial(together, n, 0.16, "both flips: they must be independent")


def test_frequencies_measured_on_the_pixels():
    "What is drawn is also done: the pose of a marked image tells which flips and turns it went through."
    image = np.arange(12 * 12 * 3, dtype=np.uint32).reshape(12, 12, 3).astype(np.uint8)
    poses = {digest(turn(image, hflip=h, rotation=r)): (h, r) for h in (False, True) for r in (0, 90, 180, 270)}
    n, p_same, p_turn = 3000, 0.6 ** 2 * 0.85 + 0.4 ** 2 * 0.05, 0.05 * 2
    seen = [poses[digest(only(flip_p=0.4, rotation_p=0.15)(image, rng("pose", i)))] for i in range(n)]
    assert set(seen) == set(poses.values())
    # no flips and no turn, or both flips (180°) and a turn by 180°
    within_binomial(seen.count((False, 0)), n, p_same, "as it was")
    within_binomial(sum(r in (90, 270) for _, r in seen), n, p_turn, "lying across")


def test_each_step_alone_is_the_step_that_was_drawn():
    image = random_image(3, 64, 64)
    flat_grey = flat(100)
    for i in range(20):
        g, b, k, s = (only(**{f"{name}_p": 1.0}) for name in ("gamma", "brightness", "blur", "noise"))
        gamma = g.draw(rng(i))["gamma"]
        assert np.array_equal(g(image, rng(i)),
            np.rint(255 * (image / 255) ** gamma).astype(np.uint8)), f"gamma {gamma}"
        brightness = b.draw(rng(i))["brightness"]
        assert np.array_equal(b(image, rng(i)),
            np.clip(np.rint(image * brightness), 0, 255).astype(np.uint8)), f"brightness {brightness}"
        size = k.draw(rng(i))["blur"]
        assert np.array_equal(k(image, rng(i)), blur(image, size))
        sigma = s.draw(rng(i))["noise"]
        # 4096 pixels: 5 % is 4.5 σ
        assert abs(s(flat_grey, rng(i)).std() / np.sqrt(sigma ** 2 + 1 / 12) - 1) < 0.05, f"noise {sigma}"
        contrast = only(contrast_p=1.0)
        c = contrast.draw(rng(i))["contrast"]
        wanted = np.clip(image.mean() + c * (image - image.mean()), 0, 255)
        assert np.abs(contrast(image, rng(i)) - wanted).max() <= 0.5 + 1e-9, f"contrast {c}"


def test_measured_range_of_gamma_and_brightness():
    "On a plate of 128 the result of one change tells its number; it stays in the thesis's range and fills it."
    out = np.array([only(gamma_p=1.0)(flat(128, 4, 4), rng(i))[0, 0, 0] for i in range(400)])
    gamma = np.log(out / 255) / np.log(128 / 255)
    assert 0.69 < gamma.min() < 0.72 and 1.23 < gamma.max() < 1.26, (gamma.min(), gamma.max())
    factor = np.array([only(brightness_p=1.0)(flat(200, 4, 4), rng(i))[0, 0, 0] for i in range(400)]) / 200
    assert 0.795 <= factor.min() < 0.81 and 1.04 < factor.max() <= 1.055, (factor.min(), factor.max())


def test_switching_geometry_off_keeps_the_light_and_the_pose():
    image = flat(90, 32, 32)
    image[:16, :8] = 200                                   # a mark in one corner
    still = Augment(flips=False, rotations=False, noise_p=0, minimal=0)
    for i in range(200):
        assert not {"hflip", "vflip", "rotation"} & set(still.draw(rng(i)))
        out = still(image, rng(i)).astype(int)[..., 0]
        assert out[:12, :4].mean() > out[20:, 20:].mean() and out[:12, :4].mean() > out[:12, 20:].mean()
        moving = {k: v for k, v in replace(still, flips=True, rotations=True).draw(rng(i)).items()
            if k not in ("hflip", "vflip", "rotation")}
        assert moving == still.draw(rng(i)), "switching geometry off must not change the light"


def test_an_image_that_is_not_square_is_never_laid_across():
    spinning = only(rotation_p=1.0)
    image = random_image(5, 24, 40)
    assert all(np.array_equal(spinning(image, rng(i)), image[::-1, ::-1]) for i in range(30))
    square = random_image(5, 24, 24)
    assert len({digest(spinning(square, rng(i))) for i in range(60)}) == 3


# ---------------------------------------------------------------- no two alike

@pytest.mark.parametrize("size", [(32, 32), (48, 20)])
@pytest.mark.parametrize("value", [None, 0, 1, 128, 254, 255])
@pytest.mark.parametrize("transform", [Augment(), NOTHING, replace(NOTHING, flip_p=1.0),
    replace(NOTHING, brightness_p=1.0), replace(NOTHING, noise_p=1.0)],
    ids=["recipe", "nothing", "flips", "brightness", "noise"])
def test_a_thousand_augmentations_are_a_thousand_images(transform, value, size):
    image = random_image(7, *size) if value is None else flat(value, *size)
    images = [transform(image, rng("unique", i)) for i in range(1000)]
    assert len({digest(i) for i in images}) == 1000
    assert not any(np.array_equal(i, image) for i in images), "an augmented image equals its original"


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from([None, 0, 255]), st.floats(0, 1),
    st.integers(0, 10 ** 6))
def test_minimal_noise_is_one_level_in_at_most_its_share(height, width, value, share, seed):
    image = random_image(seed, height, width) if value is None else flat(value, height, width)
    change = np.abs(minimal_noise(image, share, rng(seed)).astype(int) - image)
    assert change.max() == 1, "at least one pixel moves, and by one level"
    assert change.any(2).sum() <= max(1, round(share * height * width))


@pytest.mark.parametrize("value, wanted", [(0, {1}), (255, {254}), (128, {127, 129})])
def test_minimal_noise_is_never_lost_at_black_and_white(value, wanted):
    moved = [minimal_noise(flat(value, 5, 5), 0, rng(i)) for i in range(40)]         # one pixel each
    assert all((image != value).any(2).sum() == 1 for image in moved), "the one pixel did not move"
    assert {int(level) for image in moved for level in image[image != value]} == wanted


def test_noise_does_not_depend_on_other_random_state():
    np.random.seed(0); cv2.setRNGSeed(0)
    first = Augment(noise_p=1.0)(random_image(0), rng("state"))
    np.random.seed(1); cv2.setRNGSeed(1)
    assert np.array_equal(first, Augment(noise_p=1.0)(random_image(0), rng("state")))


# ---------------------------------------------------------------- the steps

@settings(max_examples=40, deadline=None)
@given(st.floats(0.2, 4), st.floats(0.5, 1.5), st.floats(0.5, 1.5), st.integers(0, 10 ** 6))
def test_tones_never_swap_two_grey_levels(gamma, brightness, contrast, seed):
    table = tone_table(random_image(seed), gamma, brightness, contrast).astype(int)
    assert (np.diff(table) >= 0).all()


@settings(max_examples=40, deadline=None)
@given(st.floats(0.2, 4))
def test_gamma_convention(gamma):
    table = gamma_table(gamma)
    assert table[0] == 0 and table[255] == pytest.approx(255) and (np.diff(table) > 0).all()
    middle = table[1:255] - np.arange(1, 255)
    assert (middle >= -1e-9).all() if gamma <= 1 else (middle <= 1e-9).all(), "gamma < 1 brightens"


@pytest.mark.parametrize("size", range(1, 10))
def test_blur_kernels_are_centred_and_grow(size):
    kernel = blur_kernel(size)
    offset = np.arange(len(kernel)) - len(kernel) // 2
    assert len(kernel) % 2 == 1 and kernel.sum() == pytest.approx(1) and np.allclose(kernel, kernel[::-1])
    assert kernel @ offset ** 2 < blur_kernel(size + 1) @ (np.arange(len(blur_kernel(size + 1)))
        - len(blur_kernel(size + 1)) // 2) ** 2
    if size in (3, 4, 5): assert kernel @ offset ** 2 == pytest.approx((size - 1) / 4)


def test_the_even_blur_moves_nothing():
    dot = flat(0, 21, 21)
    dot[10, 10] = 255
    for size in (3, 4, 5):
        spread = blur(dot, size)[..., 0].astype(float)
        assert (np.array_equal(spread, spread[::-1, ::-1])
            and np.array_equal(spread, spread.T)), f"k = {size} shifts the image"
        assert spread[10, 10] == spread.max() and (blur(flat(77), size) == 77).all()


def test_grey_stays_grey():
    for seed in range(20):
        image = random_image(seed, 64, 64, grey=True)
        assert is_grey(image) and is_grey(Augment(noise_p=1.0)(image, rng(seed)))
        assert is_grey(Augment(noise_p=0)(image, rng(seed)))
        for out in (Enhance()(image), Enhance(clip=40.0, gamma=0.4, amount=2.0)(image), clahe(image)):
            assert np.ptp(out.astype(int), axis=2).max() == 0
    assert not is_grey(add_noise(random_image(0), 5, rng(0)))


# ---------------------------------------------------------------- enhancement

@settings(max_examples=25, deadline=None)
@given(st.integers(9, 80), st.integers(9, 80), st.sampled_from([1.0, 2.0, 4.0]), st.sampled_from([(8, 8), (2, 4)]),
    st.floats(0.5, 1.5), st.floats(0, 2), st.sampled_from([0.0, 0.8]), st.integers(0, 10 ** 6))
def test_the_chain_is_clahe_then_gamma_then_unsharp(height, width, clip, tiles, gamma, amount, smooth, seed):
    "Against the steps written out in OpenCV and NumPy."
    image = random_image(seed, height, width)
    lightness, a, b = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2LAB))
    lightness = cv2.createCLAHE(clipLimit=clip, tileGridSize=(tiles[1], tiles[0])).apply(lightness)
    x = cv2.cvtColor(cv2.merge((lightness, a, b)), cv2.COLOR_LAB2RGB)
    x = np.rint(255 * (x / 255) ** gamma).astype(np.uint8)
    x = np.clip(x + amount * (x.astype(float) - cv2.GaussianBlur(x, (0, 0), 1.0)), 0, 255)
    out = Enhance(clip=clip, tiles=tiles, gamma=gamma, amount=amount, smooth=smooth)(image)
    if smooth: x = cv2.GaussianBlur(np.rint(x).astype(np.uint8), (0, 0), smooth)
    assert np.abs(out.astype(float) - x).max() <= 1, "one level for rounding"


def test_another_order_is_another_image():
    image = random_image(11, 64, 64)
    table = np.rint(gamma_table(0.8)).astype(np.uint8)
    others = [unsharp(clahe(table[image])), clahe(unsharp(table[image])), clahe(table[unsharp(image)]),
        table[unsharp(clahe(image))], table[clahe(unsharp(image))]]
    assert all(np.abs(Enhance()(image).astype(int) - other).max() > 3 for other in others)


def test_lightness_is_enhanced_and_colour_is_not():
    green = np.random.default_rng(0).permutation(np.linspace(70, 80, 64 * 64)).reshape(64, 64)
    image = np.dstack([green + 45, green, green - 15]).astype(np.uint8)      # one hue, light and less light
    before, after = (cv2.cvtColor(x, cv2.COLOR_RGB2LAB).astype(int) for x in (image, clahe(image)))
    assert after[..., 0].std() > 1.3 * before[..., 0].std(), "lightness did not spread"
    assert np.abs(after - before)[..., 1:].mean() < 1.5, "the colour moved"


def test_clip_limit_bounds_the_growth_of_noise():
    "CLAHE's slope is at most clip + 1, so noise grows with the limit and no faster."
    plate = np.clip(128 + 3 * rng("plate").standard_normal((128, 128, 1)), 0, 255).round().astype(np.uint8).repeat(3, 2)
    growth = [clahe(plate, clip, (1, 1)).std() / plate.std() for clip in (1.0, 2.0, 4.0)]
    assert growth[0] < growth[1] < growth[2] and all(g < clip + 1.3 for g, clip in zip(growth, (1.0, 2.0, 4.0))), growth


def test_gamma_and_amount_and_smooth_turn_the_right_way():
    image = random_image(4, 64, 64)
    mean = [Enhance(gamma=g)(image).mean() for g in (0.6, 0.8, 1.0, 1.25)]
    assert mean == sorted(mean, reverse=True), "a smaller gamma is brighter"
    edges = [np.abs(np.diff(Enhance(amount=a)(image).astype(int), axis=1)).mean() for a in (0.0, 0.5, 1.0, 2.0)]
    assert edges == sorted(edges), "more of the unsharp mask, steeper edges"
    edges = [np.abs(np.diff(Enhance(smooth=s)(image).astype(int), axis=1)).mean() for s in (0.0, 0.5, 1.0, 2.0)]
    assert edges == sorted(edges, reverse=True), "a wider last Gaussian, softer edges"


@pytest.mark.parametrize("value", [0, 1, 100, 254, 255])
def test_a_flat_image_stays_flat(value):
    out = Enhance()(flat(value))
    assert np.ptp(out) == 0, f"{value} became {np.unique(out)}"


def test_share_is_the_share_of_enhanced_images():
    image, n = random_image(2, 24, 24), 1500
    for share in (0.15, 0.5):
        enhanced = [Enhance(share=share)(image, rng("share", i)) for i in range(n)]
        done = [not np.array_equal(x, image) for x in enhanced]
        within_binomial(sum(done), n, share, f"share {share}")
        assert all(np.array_equal(x, Enhance()(image)) for x, d in zip(enhanced, done) if d)
    assert np.array_equal(Enhance(share=0.0)(image, rng(0)), image)
    assert np.array_equal(Enhance()(image), Enhance()(image, rng(9))), "share 1 needs no chance"


def test_compose_hands_on_one_stream():
    image, stream = random_image(8), rng("stream")
    steps = (Augment(), Enhance(share=0.5), NOTHING)
    wanted = image
    for step in steps: wanted = step(wanted, stream)
    assert np.array_equal(Compose(*steps)(image, rng("stream")), wanted)
    assert repr(Compose(*steps)) == f"Compose({steps[0]!r}, {steps[1]!r}, {steps[2]!r})"
