"""Deep feature reconstruction: what is more than a notebook's assert."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.decomposition import PCA
from torch import nn

from thesis_ad.data.datasets import ImageSet
from thesis_ad.features.latent import StreamingPCA
from thesis_ad.models.border import border, border_level, image_scores, levelled
from thesis_ad.models.detector import Detector, create, predict_set
from thesis_ad.models.dfr import (Convolution, FeatureAutoencoder, Normalisation, folded, mean_residual, residual,
    start_as_pca, widths)
from thesis_ad.models.linear import collect_rows, rows_pca, standardisation, standardised
from thesis_ad.models.training import DECIDES
from thesis_ad.settings import UserError, rng

QUICK = dict(size=(64, 64), cells=(16, 16), level=False, steps=12, rows_per_step=128, row_limit=1500, passes=1,
    device="cpu", top=5)


def image_set(n_ok, n_nok=0, shape=(64, 64), seed=0):
    "Grey waves with noise are OK; NOK ones have a bright square."
    draw = rng("test dfr", seed, shape)
    rows, columns = np.mgrid[:shape[0], :shape[1]]
    images = [120 + 40 * np.sin(rows / 5 + draw.random() * 6)[..., None] + 8 * draw.standard_normal((*shape, 3))
        for _ in range(n_ok + n_nok)]
    for image in images[n_ok:]: image[shape[0] // 2 - 8:shape[0] // 2 + 8, shape[1] // 2 - 8:shape[1] // 2 + 8] = 250
    return ImageSet.from_arrays(np.stack(images).clip(0, 255).astype(np.uint8), [0] * n_ok + [1] * n_nok)


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module", params=[False, True], ids=["crop", "level"])
def fitted(request):
    return create("dfr", **QUICK | dict(level=request.param)).fit(image_set(6), image_set(4, 3, seed=1))


# ---- the network ----

@settings(max_examples=25, deadline=None)
@given(st.integers(4, 200), st.integers(1, 60))
def test_layers_have_the_widths_of_the_thesis(C, c):
    network = FeatureAutoencoder(C, c)
    m = (C + 2 * c) // 2
    wanted = [(m, C), (2 * c, m), (c, 2 * c), (2 * c, c), (m, 2 * c), (C, m)]
    assert widths(C, c) == [C] + [outputs for outputs, _ in wanted]
    convolutions = [module for module in network.modules() if isinstance(module, Convolution)]
    assert [tuple(module.weight.shape) for module in convolutions] == [(*shape, 1, 1) for shape in wanted]
    assert [tuple(module.bias.shape) for module in convolutions] == [(outputs,) for outputs, _ in wanted]
    assert [module.num_features for module in network.modules() if isinstance(module, Normalisation)] == [m,
        2 * c, 2 * c, m]


def test_parameters_of_b6_at_the_thesis_latent_size():
    w = widths(832, 210)
    count = sum(a * b + b for a, b in zip(w, w[1:])) + 2 * (w[1] + w[2] + w[4] + w[5])
    assert sum(p.numel() for p in FeatureAutoencoder(832, 210).parameters()) == count


def test_latent_and_output_are_linear():
    "Both must be able to go below zero; a ReLU or a norm behind them would show in the signs or in the scale."
    torch.manual_seed(0)
    network, x = FeatureAutoencoder(12, 3).eval(), torch.randn(500, 12)
    last = network.decoder[2]
    with torch.no_grad():
        latent = network.encoder(x)
        assert (latent < 0).any() and (latent > 0).any() and latent.shape == (500, 3)
        before = network(x)
        assert (before < 0).any()
        last.weight.mul_(3); last.bias.mul_(3)
        assert torch.allclose(network(x), 3 * before, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(2, 6, 9), (1, 1, 7), (3, 5, 1)])
def test_rows_and_maps_give_what_torch_convolutions_give(training, shape):
    torch.manual_seed(1)
    network = FeatureAutoencoder(20, 4).train(training)
    layers = []
    for module in network.modules():
        if isinstance(module, Convolution):
            layers.append(nn.Conv2d(module.in_channels, module.out_channels, 1))
            layers[-1].load_state_dict(module.state_dict())
        if isinstance(module, Normalisation): layers += [nn.BatchNorm2d(module.num_features), nn.ReLU()]
    theirs, x = nn.Sequential(*layers).train(training), torch.randn(*shape, 20)
    with torch.no_grad():
        expected = theirs(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        assert torch.allclose(network(x), expected, atol=1e-5)
        assert torch.allclose(network(x.flatten(0, 2)), expected.flatten(0, 2), atol=1e-5)


def test_larger_kernel_is_torch_convolution_with_same_padding():
    torch.manual_seed(2)
    ours, x = Convolution(5, 7, kernel=3), torch.randn(2, 6, 8, 5)
    theirs = nn.functional.conv2d(x.permute(0, 3, 1, 2), ours.weight, ours.bias, padding=1)
    assert torch.allclose(ours(x), theirs.permute(0, 2, 3, 1), atol=1e-5)


def test_residual_is_the_mean_squared_error_of_standardised_channels():
    torch.manual_seed(3)
    network, x = FeatureAutoencoder(9, 2).eval(), 5 + 3 * torch.randn(40, 9)
    network.mean.fill_(5); network.scale.fill_(3)
    with torch.no_grad():
        z = (x - 5) / 3
        by_hand = torch.stack([sum((network(z)[n, k] - z[n, k]) ** 2 for k in range(9)) / 9 for n in range(40)])
        assert torch.allclose(residual(network, x), by_hand, rtol=1e-4)


# ---- rows ----

def test_rows_are_a_bounded_even_sample_and_depend_on_no_batching():
    images = image_set(7)
    def features(batch): return batch.permute(0, 2, 3, 1)[:, ::4, ::4]                # 16 × 16 cells of 3 channels
    for limit, each in ((70, 10), (75, 10), (10 ** 6, 256), (3, 1)):
        rows = collect_rows(features, images, limit)
        assert rows.shape == (7 * each, 3) and rows.dtype == torch.float16
        for i in range(7):
            own = {tuple(v) for v in features(images[i][None]).flatten(0, 2).half().tolist()}
            assert {tuple(v)
                for v in rows[i * each:(i + 1) * each].tolist()} <= own, f"rows of image {i} are not its own"
    assert len(collect_rows(features, images, 70, passes=2)) == 70
    assert torch.equal(collect_rows(features, images, 70), collect_rows(features, images.take(range(7)), 70))
    assert not torch.equal(collect_rows(features, images, 70), collect_rows(features, images, 70, seed=1))


def test_features_beyond_half_precision_stay_finite():
    rows = collect_rows(lambda batch: 1e6 * batch.permute(0, 2, 3, 1) - 5e5, image_set(2), 100)
    assert rows.isfinite().all() and rows.max() == 65504 and rows.min() == -65504


# ---- PCA ----

def correlated(n, C, seed):
    "Rows [n, C] whose channels have unequal means and scales and hang together."
    draw = rng("correlated", seed, n, C)
    return torch.from_numpy(draw.standard_normal((n, C)) @ draw.standard_normal((C, C)) * draw.uniform(0.1, 10, C)
        + draw.uniform(-5, 5, C)).float()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.data(), st.integers(0, 99))
def test_a_network_starts_as_pca(c, data, seed):
    C = data.draw(st.integers(2 * c, 100))
    rows, unseen = correlated(300, C, seed).split([200, 100])
    pca = rows_pca(rows)
    mean, scale = standardisation(pca)
    V = torch.from_numpy(pca.components(c)[1]).float()
    torch.manual_seed(seed)
    network = FeatureAutoencoder(C, c)
    start_as_pca(network, V, standardised(rows, mean, scale))
    network.eval()
    x = standardised(unseen, mean, scale)
    wanted = x @ V @ V.T
    with torch.no_grad():
        assert (network(x) - wanted).norm() <= 1e-3 * wanted.norm()
        assert (folded(network)(x) - wanted).norm() <= 1e-3 * wanted.norm()
    assert not network.training and all(p.isfinite().all() for p in network.state_dict().values())
    network.train()
    mean_residual(network, unseen).backward()
    assert all(p.grad is not None and p.grad.isfinite().all()
        for p in network.parameters()), "it cannot learn from here"


def test_where_the_network_is_too_narrow_or_larger_it_starts_at_random():
    # of 24 channels
    wide, narrow = (create("dfr", **QUICK, stages=(1,), latent=latent).fit(image_set(2)) for latent in (12, 13))
    assert wide.facts["channels"] == 24 and (wide.facts["start"], narrow.facts["start"]) == ("pca", "random")
    for other in (dict(start="random"), dict(skips=True)):
        assert create("dfr", **QUICK, stages=(1,), latent=3, **other).fit(image_set(2)).facts["start"] == "random"


@pytest.mark.parametrize("standardise", [True, False])
def test_pca_is_scikit_learns(standardise):
    train, batch = image_set(5), torch.stack(list(image_set(2, 1, seed=8)))
    detector = create("pca", **{name: value for name, value in QUICK.items() if name not in ("steps", "rows_per_step")},
        latent=20, standardise=standardise, augment=False).fit(train)
    rows = collect_rows(detector.features, detector.prepare(train), 1500).double().numpy()
    cells = detector.features(batch).double().numpy()
    mean, scale = rows.mean(0), rows.std(0, ddof=1) if standardise else np.ones(rows.shape[1])
    scale = np.maximum(scale, 1e-3 * scale.mean())
    theirs, x = PCA(20, svd_solver="full").fit((rows - mean) / scale), (cells.reshape(-1, rows.shape[1]) - mean) / scale
    wanted = ((theirs.inverse_transform(theirs.transform(x)) - x) ** 2).mean(1).reshape(3, 16, 16)
    assert np.allclose(detector.residuals(batch).numpy(), wanted, rtol=1e-3, atol=1e-4 * wanted.mean())
    assert np.isclose(detector.facts["explained"], theirs.explained_variance_ratio_.sum(), rtol=1e-3)
    assert detector.facts["latent"] == 20


def test_dfr_reconstructs_held_out_images_no_worse_than_pca():
    "At the latent size of PCA, by which the network started, on images that neither learned from."
    images = image_set(12, seed=9)
    network = create("dfr", **QUICK | dict(steps=150, row_limit=3000), augment=False).fit(images)
    learned, held = network.split(network.prepare(images))
    settings = {name: value for name, value in QUICK.items()
        if name not in ("steps", "rows_per_step")} | dict(row_limit=3000, augment=False)
    plane = create("pca", **settings, latent=network.facts["latent"]).fit(learned)
    rows = collect_rows(network.features, held, 8192)
    assert network.facts["start"] == "pca" and torch.allclose(network.network.scale, plane.scale)
    kept, start = float(network.cell_residual(rows).mean()), float(plane.cell_residual(rows).mean())
    assert kept <= start * 1.0001, "training has made the start worse"
    assert np.isclose(kept, min(*network.facts[DECIDES], start),
        rtol=1e-3), "the kept network is not the one that was best"


# ---- the score ----

@settings(max_examples=40, deadline=None)
@given(st.integers(3, 15), st.integers(3, 15), st.integers(0, 6), st.integers(0, 6), st.integers(1, 300),
    st.integers(0, 999))
def test_crop_and_top_against_a_loop(h, w, rows, columns, top, seed):
    rows, columns = min(rows, (h - 1) // 2), min(columns, (w - 1) // 2)
    heat = torch.from_numpy(rng("crop", seed).random((3, h, w), dtype=np.float32))
    for b, score in enumerate(image_scores(heat, (rows, columns), top)):
        kept = [heat[b, i, j].item() for i in range(rows, h - rows) for j in range(columns, w - columns)]
        largest = sorted(kept, reverse=True)[:top]
        assert np.isclose(score, sum(largest) / len(largest), rtol=1e-6)


def test_crop_scales_with_the_map():
    assert border((170, 170)) == (20, 20) and border((128, 128)) == (15, 15) and border((64, 32)) == (8, 4)
    assert border((64, 32), 0) == (0, 0) and border((64, 32), 5) == (5, 5)


def test_a_map_without_numbers_scores_nan_even_where_only_its_border_is_hit():
    heat = torch.ones(2, 8, 8)
    heat[1, 0, 0] = torch.nan
    scores = image_scores(heat, (2, 2), 3)
    assert scores[0] == 1 and np.isnan(scores[1])


# ---- the detector ----

def test_finds_the_square_and_where_it_is(fitted):
    test = image_set(5, 5, seed=2)
    scores, maps = predict_set(fitted, test)
    assert scores.dtype == np.float64 and scores[:5].max() < scores[5:].min()
    assert maps[0].shape == (64, 64) and maps[0].dtype == np.float32
    assert all(m[24:40, 24:40].mean() > 1.5 * m[:16].mean() for m in maps[5:])


def test_facts(fitted):
    facts = fitted.facts
    assert (facts["channels"] == 464 and facts["rows"] == 5 * 256
        and facts["precision"] == "float32"), "one of six images is held out"
    assert facts["steps"] == list(range(1, facts["updates"] + 1))
    assert all(len(facts[name]) == facts["updates"] for name in ("loss_train", "loss_ok", "loss_nok", DECIDES))
    assert facts["updates"] <= 12 and facts["kept_update"] == 1 + int(np.argmin(facts[DECIDES]))
    assert facts["images_seen"] == round(facts["updates"] * 128 / 256)
    assert facts["explained"] >= 0.90 and list(facts["latent_at"].values()) == sorted(facts["latent_at"].values())


def test_latent_is_the_count_of_pca(fitted):
    learned, held = fitted.split(fitted.prepare(image_set(6), training=True))
    rows = collect_rows(fitted.features, learned, 1500, seed=0)
    assert len(learned) == 5 and len(held) == 1
    pca = StreamingPCA().partial_fit(rows.float())
    values = np.linalg.eigvalsh(np.corrcoef(rows.double().numpy().T))[::-1].cumsum()
    count = int((values < 0.90 * values[-1]).sum()) + 1
    assert fitted.facts["latent"] == count == pca.latent_size(0.90) == rows_pca(rows).latent_size(0.90)
    assert fitted.network.encoder[2].out_channels == count
    assert create("dfr", **QUICK, latent="17").fit(image_set(2)).facts["latent"] == 17
    assert create("dfr", **QUICK, variance=0.5).fit(image_set(6)).facts["latent"] < count


def test_seed_decides(fitted):
    if not fitted.level: assert not same(fitted.tensors(), create("dfr", **QUICK, seed=1).fit(image_set(6)).tensors())


def test_bundle_gives_identical_scores(fitted, tmp_path):
    batch = torch.stack(list(image_set(3, 2, seed=3)))
    again = Detector.load(fitted.save(tmp_path / "bundle"), device="cpu")
    (scores, maps), (loaded, redrawn) = fitted.predict(batch), again.predict(batch)
    assert (scores == loaded).all() and (maps == redrawn).all() and again.facts == fitted.facts and again == fitted
    odd = create("dfr", **QUICK | dict(level=fitted.level, cells=(8, 16), stages=(2,), latent=9, crop=1,
        skips=True)).fit(image_set(2))
    again = Detector.load(odd.save(tmp_path / "odd"), device="cpu")
    assert (odd.predict(batch)[0] == again.predict(batch)[0]).all() and again.latent == 9 and again.crop == 1


def test_a_image_scores_the_same_in_any_company(fitted):
    batch = torch.stack(list(image_set(3, 2, seed=4)))
    scores, maps = fitted.predict(batch)
    for i in range(5):
        alone, map_ = fitted.predict(batch[i:i + 1])
        assert alone[0] == scores[i] and (map_[0] == maps[i]).all()
    assert (fitted.predict(batch.flip(0))[0][::-1] == scores).all()


@pytest.mark.parametrize("training", ["rows", "maps"])
def test_one_training_image_of_odd_shape_and_cells_that_are_not_square(training):
    images = image_set(1, 1, shape=(48, 96))
    budget = {"epochs": 2} if training == "maps" else {}
    detector = create("dfr", **QUICK | dict(size=(48, 96), cells=(12, 32), training=training) | budget).fit(images.ok(),
        images)
    assert detector.heat(images[0][None]).shape == (1, 12, 32)
    scores, maps = predict_set(detector, images)
    assert np.isfinite(scores).all() and maps[0].shape == (48, 96)


def test_map_covers_the_border_unless_told_otherwise():
    batch = torch.stack(list(image_set(1, 1, seed=6)))
    whole, cropped = (create("dfr", **QUICK, crop_map=crop_map).fit(image_set(6)).predict(batch)
        for crop_map in (False, True))
    assert (whole[0] == cropped[0]).all() and whole[1][:, 0].min() > 0
    assert (cropped[1][:, 0] == 0).all() and (cropped[1][:, :, -1] == 0).all()
    assert (cropped[1][:, 32] == whole[1][:, 32]).sum() > 32


def test_a_cropped_border_is_the_lowest_of_a_levelled_map():
    batch = torch.stack(list(image_set(1, 1, seed=6)))
    heat = create("dfr", **QUICK | dict(level=True, crop=2, crop_map=True)).fit(image_set(6)).predict(batch)[1]
    lowest = heat.min((1, 2))
    assert lowest.min() < 0, "a levelled map has cells below the usual"
    for side in (heat[:, 0], heat[:, -1], heat[:, :, 0], heat[:, :, -1]):
        assert np.allclose(side, lowest[:, None], atol=1e-5)
    with pytest.raises(UserError, match="crop_map"): create("dfr", **QUICK | dict(level=True, crop_map=True))


def test_level_measures_by_cells_as_far_from_the_sides_of_the_training_images_and_drops_the_crop(tmp_path):
    train, batch = image_set(6), torch.stack(list(image_set(2, 1, seed=7)))
    level = create("dfr", **QUICK | dict(level=True), augment=False).fit(train)
    plain = create("dfr", **QUICK, augment=False).fit(train)
    # 2 of 16 is 20 of 170
    raw, inside = plain.heat(torch.stack(list(train))), (slice(None), slice(2, 14), slice(2, 14))
    near = lambda i: min(i, 15 - i, 2)  # the border is two cells wide, deeper is inside
    for a, b in [(i, j) for i in range(16) for j in range(16)]:                   # cell by cell, by hand
        cells = torch.cat([raw[:, i, j] for i in range(16)
            for j in range(16) if (near(i), near(j)) == (near(a), near(b))])
        assert torch.isclose(level.border_level[0, a, b], max(cells.mean(), raw[inside].mean()), rtol=1e-4), (a, b)
        assert torch.isclose(level.border_level[1, a, b], max(cells.std(correction=0), raw[inside].std(correction=0)),
            rtol=1e-4), (a, b)
    heat = (plain.heat(batch) - level.border_level[0]) / level.border_level[1]
    assert torch.allclose(level.heat(batch), heat, atol=1e-5)
    assert np.allclose(level.predict(batch)[0], image_scores(heat, (0, 0), 5))
    again = Detector.load(level.save(tmp_path / "level"), device="cpu")
    assert (again.predict(batch)[0] == level.predict(batch)[0]).all()
    assert "border_level" not in plain.tensors() and create("dfr").level


def test_the_level_is_that_of_images_as_they_are_judged():
    train = image_set(4)
    varied = create("dfr", **QUICK | dict(level=True), augment=True, enhance=True).fit(train)
    judged = torch.stack(list(varied.prepare(train)))
    assert torch.allclose(varied.border_level, border_level(varied.residuals(judged)), rtol=1e-4)
    assert not torch.allclose(varied.border_level, border_level(varied.residuals(torch.stack(list(train)))),
        rtol=1e-2), "images are judged enhanced"


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.floats(0.01, 100), st.integers(0, 99))
def test_levelling_lowers_a_loud_rim_and_raises_nothing_by_calming_it(h, w, loud, seed):
    heat = torch.from_numpy(rng("level", seed).random((30, h, w), dtype=np.float32))
    heat[:, 0] *= loud
    level = border_level(heat)
    assert level.shape == (2, h, w) and torch.isfinite(level).all() and (level[1] > 0).all()
    (top, left), found = border((h, w)), levelled(heat, level)
    inside = heat[:, top:h - top, left:w - left]
    assert (level[0] >= inside.mean() * 0.9999).all() and (level[1] >= inside.std(correction=0) * 0.9999).all()
    even = (heat - inside.mean()) / max(float(inside.std(correction=0)), 1e-3 * float(inside.mean()))
    above = heat > level[0]
    assert (found[above] <= even[above] + 1e-3 * even.abs()
        .max()).all(), "a cell stands out more than inside the image"


def test_a_constant_map_is_levelled_to_numbers():
    for value in (0.0, 3.0):
        assert torch.isfinite(levelled(torch.full((1, 6, 6), value), border_level(torch.full((1, 6, 6), value)))).all()


def test_a_mirrored_margin_gives_the_outermost_cells_neighbours():
    "As if the mirrored image were the image, and the cells of its surroundings were cut off."
    images, m = torch.stack(list(image_set(2))), 32
    wide = create("dfr", **QUICK | dict(margin=m))
    larger = create("dfr", **QUICK | dict(size=(64 + 2 * m,) * 2, cells=(32, 32)))
    seen = larger.features(torch.nn.functional.pad(images, (m,) * 4, mode="reflect"))
    assert torch.allclose(wide.features(images), seen[:, 8:-8, 8:-8], atol=1e-4)
    with pytest.raises(UserError, match="64 pixels to mirror"):
        create("dfr", **QUICK | dict(margin=64)).fit(image_set(1))
    with pytest.raises(UserError, match="multiple of 32"): create("dfr", **QUICK | dict(margin=8)).fit(image_set(1))


def test_a_crop_leaves_a_cell_where_the_image_is_long():
    strips = ImageSet.from_arrays(np.full((3, 32, 256, 3), 90, np.uint8)
        + rng("strip").integers(0, 20, (3, 32, 256, 3)).astype(np.uint8))
    detector = create("dfr", **QUICK | dict(crop=7, native_aspect=True)).fit(strips)
    assert min(detector.heat(next(detector.prepare(strips).batches(1))[1]).shape[1:]) <= 14
    assert np.isfinite(predict_set(detector, strips)[0]).all()


def test_thesis_training_and_its_variants_run():
    for variant in (dict(start="random"), dict(kernel=3, attention=True, skips=True, standardise=False)):
        detector = create("dfr", **QUICK | dict(training="maps", epochs=3, batch=4,
            latent=12) | variant).fit(image_set(6), image_set(2, 2, seed=1))
        assert (detector.facts["steps"] == [1, 2, 3, 4, 5, 6]
            and detector.facts["images_seen"] == 24 and detector.facts["start"] == "random"
            and detector.facts["loss_train"][-1] < detector.facts["loss_train"][0]), variant
        assert len(detector.facts["loss_nok"]) == 6


def test_raw_features_keep_their_scale():
    tensors = create("dfr", **QUICK, standardise=False).fit(image_set(3)).tensors()
    assert (tensors["scale"] == 1).all() and tensors["mean"].std() > 0
    tensors = create("dfr", **QUICK, standardise=True).fit(image_set(3)).tensors()
    assert (tensors["scale"] > 0).all() and tensors["scale"].std() > 0


# ---- refusals ----

def test_a_image_without_numbers_is_refused(fitted):
    class Broken(ImageSet):
        def batches(self, *args, **kwargs):
            for indices, batch in super().batches(*args, **kwargs): yield indices, batch * torch.nan
    images = image_set(2)
    with pytest.raises(UserError, match="00000.png has pixels that are NaN"):
        predict_set(fitted, Broken(images.table, arrays=images.arrays))


@pytest.mark.parametrize("wrong, words", [
    (dict(training="row"), "did you mean 'rows'"), (dict(latent="many"), "latent"), (dict(latent=0), "latent"),
    (dict(crop=8), "leaves nothing"),
    (dict(crop=-1), "crop"), (dict(kernel=3), "maps"), (dict(attention=True), "maps"),
    (dict(kernel=2, training="maps"), "odd"),
    (dict(variance=90), "variance"), (dict(start="pcs"), "did you mean 'pca'"), (dict(rows_per_step=1),
        "rows_per_step"), (dict(margin=-1), "margin"), (dict(cells=(1, 4)), "cells"), (dict(top=0), "top")])
def test_settings_that_cannot_work_are_refused(wrong, words):
    with pytest.raises(UserError, match=words): create("dfr", **QUICK | wrong)


@pytest.mark.parametrize("wrong, words", [
    (dict(stages=(0, 9)), "stages 0 to 5, not 9"), (dict(backbone="lite0"), "timm has no model"),
    (dict(learning_rate=1e30), "diverged")])
def test_fits_that_cannot_work_are_refused(wrong, words):
    with pytest.raises(UserError, match=words): create("dfr", **QUICK | wrong).fit(image_set(1))


@pytest.mark.parametrize("size", [(96, 200), (40, 64)])
def test_sizes_that_the_cells_do_not_divide(size):
    train = ImageSet.from_arrays(rng("odd").integers(0, 256, (3, 48, 64, 3)).astype(np.uint8))
    detector = create("dfr", size=size, steps=2, rows_per_step=64, row_limit=2000, passes=1, device="cpu").fit(train)
    scores, maps = predict_set(detector, train)
    assert np.isfinite(scores).all() and maps[0].shape == (48, 64)
