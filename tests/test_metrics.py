"""Metrics and their statistics against independent implementations: scikit-learn, a flood fill,
and thresholds taken one by one."""
import warnings

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from thesis_ad.evaluation import metrics as M, statistics as S
from thesis_ad.settings import UserError

SETTINGS = settings(max_examples=60, deadline=None)


# ---- image metrics

@st.composite
def ranked(draw, ties=True):
    "Labels with both classes and scores, often tied."
    n = draw(st.integers(2, 40))
    labels = np.array([0, 1] + draw(st.lists(st.integers(0, 1), min_size=n - 2, max_size=n - 2)))
    values = st.integers(-5, 5).map(float) if ties else st.floats(-1e6, 1e6, allow_nan=False)
    return labels, np.array(draw(st.lists(values, min_size=n, max_size=n)))


@SETTINGS
@given(st.one_of(ranked(), ranked(ties=False)))
def test_image_metrics_are_scikit_learns(data):
    labels, scores = data
    assert M.image_auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert M.average_precision(labels, scores) == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = M.best_f1(labels, scores)
    assert best.f1 == pytest.approx(f1.max(), abs=1e-9)
    alarm = scores >= best.threshold
    assert best.f1 == pytest.approx(2 * (alarm & (labels == 1)).sum() / (alarm.sum() + labels.sum()), abs=1e-12)


@SETTINGS
@given(ranked(), st.randoms(use_true_random=False))
def test_image_metrics_depend_on_order_alone(data, random):
    labels, scores = data
    order = list(range(len(labels)))
    random.shuffle(order)
    for f in (M.image_auroc, M.average_precision, lambda a, b: M.best_f1(a, b).f1):
        value = f(labels, scores)
        assert f(labels[order], scores[order]) == pytest.approx(value, abs=1e-12)
        assert f(labels, np.exp(scores / 3) - 7) == pytest.approx(value, abs=1e-12)
    assert M.image_auroc(labels, -scores) == pytest.approx(1 - M.image_auroc(labels, scores), abs=1e-12)


@SETTINGS
@given(ranked(), st.data())
def test_weights_are_repetitions(data, more):
    labels, scores = data
    weights = np.array(more.draw(st.lists(st.integers(1, 3), min_size=len(labels), max_size=len(labels))))
    repeated = np.repeat(labels, weights), np.repeat(scores, weights)
    both = np.stack([weights, np.ones(len(labels))])
    np.testing.assert_allclose(M.average_precision(labels, scores, both),
        [M.average_precision(*repeated), M.average_precision(labels, scores)], atol=1e-12)
    np.testing.assert_allclose(M._f1_curve(labels, scores, both)[1].max(-1),
        [M.best_f1(*repeated).f1, M.best_f1(labels, scores).f1], atol=1e-12)


def test_large_and_close_scores_keep_their_order():
    labels, scores = np.array([0, 0, 1, 1]), 1e9 + np.array([0, 1e-6, 2e-6, 3e-6])      # one number in float32
    assert M.image_auroc(labels, scores) == 1.0


def test_a_missing_class_is_undefined_and_bad_input_is_said():
    for labels in ([0, 0], [1, 1]):
        assert np.isnan(M.image_auroc(labels, [1, 2])) and np.isnan(M.average_precision(labels, [1, 2]))
        assert np.isnan(M.best_f1(labels, [1, 2]).f1)
        assert np.isnan(S.auroc_interval(labels, [1, 2])).all()
    with pytest.raises(UserError, match="image 1"): M.image_auroc([0, 1], [1, np.nan])
    with pytest.raises(UserError, match="0 .OK. or 1"): M.image_auroc([0, 2], [1, 2])
    with pytest.raises(UserError, match="3 scores"): M.image_auroc([0, 1], [1, 2, 3])


# ---- pixel metrics

def flood_fill(mask):
    "8-connected regions as lists of pixels."
    left, regions = set(zip(*np.nonzero(mask))), []
    while left:
        stack, region = [left.pop()], []
        while stack:
            y, x = stack.pop()
            region.append((y, x))
            near = {(y + a, x + b) for a in (-1, 0, 1) for b in (-1, 0, 1)} & left
            left -= near
            stack += near
        regions.append(region)
    return regions


def brute_force(maps, masks, limits):
    "Pixel AUROC by all pairs, AUPRO with a threshold at every distinct score, the curve cut at the limit by hand."
    background = np.concatenate([m[~k] for m, k in zip(maps, masks)]).astype(float)
    defect = np.concatenate([m[k] for m, k in zip(maps, masks)]).astype(float)
    regions = [np.array([m[p] for p in region], float) for m, k in zip(maps, masks) for region in flood_fill(k)]
    if not regions or not len(background): return np.nan, [np.nan] * len(limits)
    auroc = np.mean((defect[:, None] > background) + 0.5 * (defect[:, None] == background))
    points = [(0.0, 0.0)] + [(np.mean(background >= t), np.mean([np.mean(r >= t) for r in regions]))
        for t in np.unique(np.r_[background, defect])[::-1]]
    areas = []
    for limit in limits:
        area = 0.0
        for (x0, y0), (x1, y1) in zip(points, points[1:]):
            if x0 >= limit: break
            if x1 > limit: y1, x1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0), limit
            area += (x1 - x0) * (y0 + y1) / 2
        areas.append(area / limit)
    return auroc, areas


LIMITS = (0.30, 0.05)


@st.composite
def maps_and_masks(draw):
    "Up to three small images of unequal sizes, tied scores or not, masks from empty to full."
    maps, masks = [], []
    for _ in range(draw(st.integers(1, 3))):
        shape = draw(st.integers(1, 6)), draw(st.integers(1, 6))
        values = st.integers(0, 4).map(float) if draw(st.booleans()) else st.floats(-100, 100, width=32)
        maps.append(draw(hnp.arrays(np.float32, shape, elements=values)))
        masks.append(draw(hnp.arrays(bool, shape)))
    return maps, masks


def assert_exact(maps, masks):
    auroc, areas = brute_force(maps, masks, LIMITS)
    np.testing.assert_allclose(M.pixel_auroc(maps, masks), auroc, atol=1e-10, err_msg="pixel AUROC")
    np.testing.assert_allclose(M.aupro(maps, masks, LIMITS), areas, atol=1e-10, err_msg="AUPRO")
    np.testing.assert_allclose(M.aupro(maps, masks, 0.30), areas[0], atol=1e-10, err_msg="AUPRO, one limit")


@settings(max_examples=150, deadline=None)
@given(maps_and_masks())
def test_pixel_metrics_are_exact(data):
    assert_exact(*data)


def test_pixel_metrics_on_larger_maps():
    r = np.random.default_rng(0)
    masks = [r.random((24, 30)) > 0.9, np.zeros((20, 20), bool)]
    maps = [(r.random(k.shape) + 0.5 * k).astype(np.float32) for k in masks]
    assert_exact(maps, masks)
    assert_exact([np.round(m, 1) for m in maps], masks)


@SETTINGS
@given(maps_and_masks(), st.randoms(use_true_random=False))
def test_pixel_metrics_depend_on_order_alone(data, random):
    maps, masks = data
    value = [M.pixel_auroc(maps, masks), *M.aupro(maps, masks)]
    order = list(range(len(maps)))
    random.shuffle(order)
    moved = [maps[i].T for i in order], [masks[i].T for i in order]
    np.testing.assert_allclose([M.pixel_auroc(*moved), *M.aupro(*moved)], value, atol=1e-12)
    doubled = [np.arctan(m.astype(np.float64) / 50) * 1e6 for m in maps]
    np.testing.assert_allclose([M.pixel_auroc(doubled, masks), *M.aupro(doubled, masks)], value, atol=1e-12)
    background_only = [None if not k.any() else k for k in masks]
    np.testing.assert_array_equal([M.pixel_auroc(maps, background_only), *M.aupro(maps, background_only)], value)


def blob(n=32):
    r = np.random.default_rng(1)
    mask = np.zeros((n, n), bool)
    mask[4:12, 4:12] = mask[20:24, 25:27] = True
    return (r.random((n, n)) + 0.6 * mask).astype(np.float32), mask


def test_constant_maps():
    _, mask = blob()
    flat = np.full(mask.shape, 0.7, np.float32)
    assert M.pixel_auroc([flat], [mask]) == pytest.approx(0.5)
    assert M.aupro([flat], [mask]) == pytest.approx([0.15, 0.025])        # the diagonal: limit / 2


def test_one_hot_pixel_hardly_moves_aupro():
    score_map, mask = blob()
    before, hot = M.aupro([score_map], [mask]), score_map.copy()
    hot[31, 0] = 500
    assert not mask[31, 0] and M.aupro([hot], [mask]) == pytest.approx(before, abs=0.03)
    hot[31, 0] = np.inf
    assert_exact([hot], [mask])
    grid = np.linspace(score_map.min(), 500, 200)  # what a grid of thresholds would have made of it
    seen = np.unique([(score_map[~mask] >= t).mean() for t in grid])
    assert len(seen) <= 3


def test_single_pixel_regions_and_diagonals():
    mask = np.zeros((8, 8), bool)
    mask[1, 1] = mask[5, 5] = True
    score_map = np.arange(64, dtype=np.float32).reshape(8, 8)
    assert_exact([score_map], [mask])
    assert M.sort_pixels([score_map], [np.eye(8, dtype=bool)]).regions.tolist() == [1]
    assert M.sort_pixels([score_map], [mask]).regions.tolist() == [2]


def test_perfect_and_inverted_maps():
    _, mask = blob()
    assert M.pixel_auroc([mask * 1.0], [mask]) == 1 and M.aupro([mask * 1.0], [mask]) == pytest.approx([1, 1])
    assert M.pixel_auroc([mask * -1.0], [mask]) == 0 and M.aupro([mask * -1.0], [mask]) == pytest.approx([0, 0])


def test_small_regions_count_as_much_as_large_ones():
    mask = np.zeros((20, 20), bool)
    mask[2:12, 2:12] = mask[16, 16] = True
    found = mask * 1.0
    found[16, 16] = -1
    assert M.aupro([found], [mask], 0.05) == pytest.approx(0.5, abs=0.03) and M.pixel_auroc([found], [mask]) > 0.98


def test_undefined_pixel_metrics():
    score_map, mask = blob()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for masks in ([None], [np.zeros_like(mask)], [np.ones_like(mask)]):
            assert np.isnan(M.pixel_auroc([score_map], masks)) and np.isnan(M.aupro([score_map], masks)).all()
        assert np.isnan(M.pixel_auroc([], []))


def test_bad_maps_are_refused():
    score_map, mask = blob()
    broken = score_map.copy()
    broken[3, 3] = np.nan
    with pytest.raises(UserError, match="map 1 holds"): M.pixel_auroc([score_map, broken], [mask, None])
    with pytest.raises(UserError, match="resize"): M.aupro([score_map], [mask[:16, :16]])
    with pytest.raises(UserError, match="2 maps"): M.aupro([score_map] * 2, [mask])
    with pytest.raises(UserError, match="limit"): M.aupro([score_map], [mask], 0)


# ---- intervals

def grouped(parts=6, photos=5, between=0.7, seed=0, shift=1.5):
    "Labels, scores, groups: `parts` OK and NOK parts each."
    r = np.random.default_rng(seed)
    groups = np.arange(2 * parts).repeat(photos)
    labels = (groups >= parts).astype(int)
    return (labels, np.sqrt(between) * r.normal(size=2 * parts)[groups] + np.sqrt(1
        - between) * r.normal(size=len(groups)) + shift * labels, groups)


@settings(max_examples=120, deadline=None)
@given(ranked(), st.data())
def test_auroc_interval_holds_the_value(data, more):
    labels, scores = data
    groups = np.array(more.draw(st.lists(st.integers(0, 6), min_size=len(labels), max_size=len(labels))))
    for g in (None, groups, groups.astype(str)):
        low, high = S.auroc_interval(labels, scores, g)
        assert 0 <= low <= M.image_auroc(labels, scores) <= high <= 1
    mirrored = S.auroc_interval(labels, -scores, groups)
    np.testing.assert_allclose(mirrored, [1 - high, 1 - low], atol=1e-9)


def test_auroc_interval_agrees_with_delong_for_independent_images():
    labels, scores, _ = grouped(parts=400, photos=1)
    wins = scores[labels == 1][:, None] > scores[labels == 0]
    se = np.sqrt(wins.mean(0).var(ddof=1) / 400 + wins.mean(1).var(ddof=1) / 400)
    low, high = S.auroc_interval(labels, scores)
    assert high - low == pytest.approx(2 * 1.96 * se, rel=0.06)


def test_fewer_groups_widen_every_interval():
    labels, scores, groups = grouped(parts=12, photos=6)
    alone, by_part = np.arange(len(labels)), groups
    by_two = groups // 2
    width = [np.diff(S.auroc_interval(labels, scores, g))[0] for g in (alone, by_part, by_two)]
    assert width[1] > 1.5 * width[0], "photos of one part must not count as independent"
    noise = np.random.default_rng(5).normal(size=len(labels)) + 1.5 * labels
    few, many = (grouped(parts=p, photos=72 // p, between=0.5, seed=3) for p in (3, 36))
    assert np.diff(S.auroc_interval(*few))[0] > np.diff(S.auroc_interval(*many))[0]
    ap = lambda w: M.average_precision(labels, scores, w)
    width = [np.diff(S.bootstrap(ap, labels, g))[0] for g in (alone, by_part)]
    assert width[1] > 1.3 * width[0]
    assert S.auroc_interval(labels, noise, labels) == (0.0, 1.0), "one part a class tells nothing of the next"


@pytest.mark.parametrize("shift", [0.5, 1.5, 3.0, 50.0])
def test_copies_within_a_group_tell_nothing(shift):
    labels, scores, groups = grouped(shift=shift)
    for g in (groups, np.arange(len(labels)), groups % 6):
        once = S.auroc_interval(labels, scores, g)
        np.testing.assert_allclose(S.auroc_interval(np.tile(labels, 3), np.tile(scores, 3), np.tile(g, 3)),
            once, atol=1e-9)
    ap = lambda w: M.average_precision(labels, scores, w)
    ap3 = lambda w: M.average_precision(np.tile(labels, 3), np.tile(scores, 3), w)
    np.testing.assert_allclose(S.bootstrap(ap3, np.tile(labels, 3), np.tile(groups, 3)),
        S.bootstrap(ap, labels, groups), atol=1e-12)


def test_perfect_separation_leaves_room():
    for parts, photos in ((40, 1), (5, 8)):
        labels, scores, groups = grouped(parts, photos, shift=100.0)
        low, high = S.auroc_interval(labels, scores, groups)
        assert high == 1.0 and 0.2 < low < 0.99
    lows = [S.auroc_interval(*grouped(parts, 1, shift=100.0))[0] for parts in (5, 10, 50, 500)]
    assert lows == sorted(lows) and lows[-1] > 0.98, "more parts are more evidence"


@pytest.mark.parametrize("auroc", [0.80, 0.97])
@pytest.mark.parametrize("parts,photos,between", [(40, 1, 0.0), (8, 8, 0.4)])
def test_auroc_interval_covers(auroc, parts, photos, between):
    """300 runs: 0.95 nominal; below 0.915 is three standard errors. The full table is benchmarks/auroc_coverage.py."""
    from scipy.stats import norm
    runs = [grouped(parts, photos, between, seed=1000 + i, shift=np.sqrt(2) * norm.ppf(auroc)) for i in range(300)]
    hit = np.mean([low <= auroc <= high for low, high in (S.auroc_interval(*run) for run in runs)])
    assert hit >= 0.915


def test_replicates_draw_whole_groups_and_keep_both_classes():
    labels, groups = np.array([0] * 8 + [1] * 4), np.array(list("aabbccddxxyy"))
    weights = S.replicate_weights(labels, groups, 500, seed=3)
    assert (weights[:, ::2] == weights[:, 1::2]).all() and (weights[:, :8].sum(1) == 8).all()
    assert (weights[:, 8:].sum(1) == 4).all()
    assert np.array_equal(weights, S.replicate_weights(labels, groups, 500, seed=3))
    assert not np.array_equal(weights, S.replicate_weights(labels, groups, 500, seed=4))
    np.testing.assert_allclose(weights.mean(0), 1, atol=0.15)
    mixed = np.array(list("aabbccddabbb"))                       # a and b hold OK and NOK
    weights = S.replicate_weights(labels, mixed, 500)
    for group in "abcd": assert (np.ptp(weights[:, mixed == group], axis=1) == 0).all()
    assert (weights[:, labels == 1].sum(1) > 0).all() and (weights[:, labels == 0].sum(1) > 0).all()
    assert (len(np.unique(weights[:, labels == 1].sum(1)))
        > 1), "mixed groups are drawn together, so the class sizes vary"


def test_bootstrap_of_a_mean_is_the_textbook_interval():
    r = np.random.default_rng(0)
    values, labels = r.normal(size=300), np.repeat([0, 1], 150)
    low, high = S.bootstrap(lambda w: (w * values).sum(-1) / w.sum(-1), labels, np.arange(300), n=4000)
    spread = np.sqrt((values[:150].var() + values[150:].var()) / 2 / 300)
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.08) and low < values.mean() < high


# ---- binned replicates

def image_set(n=10, size=48, seed=0, decimals=None):
    r = np.random.default_rng(seed)
    maps, masks = [], []
    for i in range(n):
        mask = np.zeros((size, size), bool)
        if i % 2:
            y, x = r.integers(0, size - 16, 2)
            mask[y:y + 14, x:x + 9] = mask[size - 2, :3 + i] = True
        score_map = r.gamma(2.0, size=mask.shape) + mask * r.uniform(1, 4)
        maps.append((score_map if decimals is None else np.round(score_map, decimals)).astype(np.float32))
        masks.append(mask if i % 2 else None)
    return np.arange(n) % 2, maps, masks


@pytest.mark.parametrize("decimals", [None, 2, 0])
@pytest.mark.parametrize("seed", [0, 1])
def test_binned_curves_match_exact_ones(seed, decimals):
    _, maps, masks = image_set(seed=seed, decimals=decimals)
    pixels = M.sort_pixels(maps, masks)
    weights = np.stack([np.ones(10), np.array([0, 0, 1, 1, 1, 2, 2, 2, 1, 1])])
    binned = S.pixel_replicates(pixels, maps, masks, weights)
    again = [i for i in range(10) for _ in range(int(weights[1, i]))]
    for row, (a, b) in enumerate(((maps, masks), ([maps[i] for i in again], [masks[i] for i in again]))):
        exact = [M.pixel_auroc(a, b), *M.aupro(a, b)]
        got = [binned[name][row] for name in ("pixel_auroc", "aupro_0.30", "aupro_0.05")]
        np.testing.assert_allclose(got, exact, atol=1e-3 if row == 0 else 3e-3)


# ---- tables

def test_evaluate_scores_table():
    labels, maps, masks = image_set()
    scores = [m.max() for m in maps]
    groups = np.array([f"part{i // 2 % 4}-{label}" for i, label in enumerate(labels)])
    masks[3] = np.zeros((48, 48), bool)                           # an all-black mask of a NOK image counts as none
    table = S.evaluate_scores(labels, scores, groups, maps, masks, replicates=200, threshold=float(np.median(scores)))
    assert list(table.columns) == ["metric", "value", "ci_low", "ci_high", "n_ok", "n_nok"]
    assert (table["metric"].tolist() == "image_auroc pixel_auroc aupro_0.30 aupro_0.05 image_ap image_f1max "
        "fnr_at_fpr5 fnr_at_fpr1 false_alarms misses".split())
    assert table["n_ok"].tolist() == [5] * 10 and table["n_nok"].tolist() == [5, 4, 4, 4, 5, 5, 5, 5, 5, 5]
    assert (table["ci_low"] <= table["value"]).all() and (table["value"] <= table["ci_high"]).all()
    keep = [i for i in range(10) if i != 3]
    value = table.set_index("metric")["value"]
    exact = brute_force([maps[i] for i in keep],
        [masks[i] if masks[i] is not None else np.zeros((48, 48), bool) for i in keep], (0.30,))
    assert value["aupro_0.30"] == pytest.approx(exact[1][0], abs=1e-10)
    assert value["pixel_auroc"] == pytest.approx(exact[0], abs=1e-10)
    assert table.equals(S.evaluate_scores(labels, scores, groups, maps, masks, replicates=200,
        threshold=float(np.median(scores))))
    other = S.evaluate_scores(labels, scores, groups, maps, masks, replicates=200, seed=1,
        threshold=float(np.median(scores)))
    assert other["value"].equals(table["value"]) and not other["ci_low"].equals(table["ci_low"])


def test_evaluate_scores_where_something_is_missing():
    labels, maps, masks = image_set()
    scores = [m.max() for m in maps]
    for kwargs, n_ok in (({}, 0), ({"masks": masks}, 0), ({"maps": maps}, 5),
            ({"maps": maps, "masks": [None] * 10}, 5)):
        table = S.evaluate_scores(labels, scores, None, replicates=50, **kwargs).set_index("metric")
        pixel = table.loc[["pixel_auroc", "aupro_0.30", "aupro_0.05"]]
        assert pixel[["value", "ci_low", "ci_high"]].isna().all(axis=None) and (pixel["n_nok"] == 0).all()
        assert (pixel["n_ok"] == n_ok).all()
        assert table.loc[["image_auroc", "image_ap", "image_f1max"]].notna().all(axis=None)
    nok = np.flatnonzero(labels)
    table = S.evaluate_scores(labels[nok], [scores[i] for i in nok], None, [maps[i] for i in nok],
        [masks[i] for i in nok], replicates=50).set_index("metric")
    assert table["value"].isna().tolist() == [True, False, False, False, True, True, True, True, True,
        True], "NOK alone have background pixels but no OK image"
    ok = np.flatnonzero(labels == 0)
    assert S.evaluate_scores(labels[ok], [scores[i] for i in ok], None, [maps[i] for i in ok])["value"].isna().all()
    with pytest.raises(UserError, match="labelled OK"): S.evaluate_scores(1 - labels, scores, None, maps, masks)


def test_per_defect_compares_each_type_with_all_ok_images():
    labels, maps, masks = image_set(12)
    scores = np.array([float(m.max()) for m in maps])
    defects = np.where(labels == 0, "good", np.where(np.arange(12) < 6, "burn", "scratch"))
    table = S.per_defect(labels, scores, np.arange(12), defects, maps, masks, replicates=50)
    assert list(table.columns) == ["defect", "metric", "value", "ci_low", "ci_high", "n"]
    assert table["defect"].tolist() == ["burn"] * 10 + ["scratch"] * 10 and (table["n"] == 3).all()
    for defect in ("burn", "scratch"):
        keep = np.flatnonzero((labels == 0) | (defects == defect))
        rows = table[table["defect"] == defect].set_index("metric")["value"]
        assert rows["image_auroc"] == pytest.approx(roc_auc_score(labels[keep], scores[keep]))
        assert rows["aupro_0.05"] == pytest.approx(M.aupro([maps[i] for i in keep], [masks[i] for i in keep], 0.05))
    assert S.per_defect([0, 0], [1, 2], None, ["good", "good"]).empty


def test_paired_difference_against_plain_resampling():
    "The same replicate groups, each AUROC recomputed by scikit-learn on the images a replicate holds."
    generator = np.random.default_rng(5)
    labels, groups = np.repeat([0, 1], 20), np.arange(40) // 4
    a, b = (labels * gain + generator.normal(size=40) for gain in (2.0, 1.0))
    weights = S.replicate_weights(labels, groups, 60, 3)
    for row in weights:
        images = np.repeat(np.arange(40), row.astype(int))
        assert abs(S.weighted_auroc(labels, a, row) - roc_auc_score(labels[images], a[images])) < 1e-12
    value, low, high = S.paired_difference(labels, a, b, groups)
    assert abs(value - (roc_auc_score(labels, a) - roc_auc_score(labels, b))) < 1e-12 and low < value < high
    assert S.paired_difference(labels, a, a, groups) == (0.0, 0.0, 0.0), "a detector does not differ from itself"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 7), st.sampled_from([1e-6, 1.0, 1e4]), st.booleans())
def test_counted_pixels_are_within_their_bound(seed, kept, unit, ties):
    """From no image kept in full to nearly all; maps whose values drift far beyond those that chose the bins,
    and maps of few values."""
    r = np.random.default_rng(seed)
    maps, masks = [], []
    for i in range(8):
        heat = unit * (r.normal(size=(24, 30)) + 3.0 ** i * r.integers(0, 2)).astype(np.float32)
        mask = np.zeros((24, 30), bool)
        if i % 2: mask[4:12, 3:9 + i] = mask[20:22, 20:29] = True
        heat[mask] += unit * r.normal(1, 1)
        maps.append(np.round(heat / unit).astype(np.float32) * np.float32(unit) if ties else heat.astype(np.float32))
        masks.append(mask if i % 2 else None)
    stream, kinds = S.PixelStream(limit=kept * 720), np.array(["good", "a"] * 3 + ["good", "b"])
    labels = np.array([0, 1] * 4)
    for i in range(8): stream.add(i, labels[i], kinds[i], maps[i], masks[i])
    assert stream.bins is not None and not stream.maps
    exact = [M.pixel_auroc(maps, masks), *M.aupro(maps, masks)]
    found = stream.areas(range(8), lambda: np.ones((2, 8)))
    for value, (counted, error, drawn) in zip(exact, found.values()):
        assert abs(value - counted) <= error + 1e-9 and np.isfinite(drawn).all()
    assert stream.error() >= max(error for _, error, _ in found.values()) - 1e-12
    one = [i for i in range(8) if kinds[i] != "b"]
    exact = [M.pixel_auroc([maps[i] for i in one], [masks[i] for i in one]),
        *M.aupro([maps[i] for i in one], [masks[i] for i in one])]
    for value, (counted, error, _) in zip(exact, stream.areas(one, lambda: np.ones((2, len(one)))).values()):
        assert abs(value - counted) <= error + 1e-9


def test_a_stream_that_keeps_all_gives_the_same_tables_as_lists():
    r = np.random.default_rng(3)
    maps = [r.normal(size=(16, 20)).astype(np.float32) for _ in range(10)]
    masks = [None] * 5 + [np.pad(np.ones((4, 3 + i), bool), ((2, 10), (5, 12 - i))) for i in range(4)] + [None]
    labels, kinds, groups = np.repeat([0, 1], 5), np.array(["good"] * 5 + list("aabbb")), np.arange(10) // 2
    scores, stream = np.array([heat.max() for heat in maps]), S.PixelStream()
    for i in range(10): stream.add(i, labels[i], kinds[i], maps[i], masks[i])
    for lists, streamed in ((S.evaluate_scores(labels, scores, groups, maps, masks, replicates=50),
            S.evaluate_scores(labels, scores, groups, stream, replicates=50)),
            (S.per_defect(labels, scores, groups, kinds, maps, masks, replicates=50),
                S.per_defect(labels, scores, groups, kinds, stream, replicates=50))):
        assert lists.equals(streamed)
    with pytest.raises(UserError, match="labelled OK"): stream.add(10, 0, "good", maps[0], maps[0] > 0)


# ---- operating points ----

labelled = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6)), min_size=2,
    max_size=60).filter(lambda rows: len({label for label, _ in rows}) == 2)


@SETTINGS
@given(labelled, st.sampled_from([0.01, 0.05, 0.2, 0.5]))
def test_the_miss_rate_at_a_false_positive_rate_is_the_best_of_all_thresholds(rows, limit):
    labels, scores = np.array(rows).T
    ok, nok = scores[labels == 0], scores[labels == 1]
    best = min((nok <= t).mean() for t in range(-1, 8) if (ok > t).mean() <= limit)
    assert np.isclose(M.miss_rate_at(labels, scores, limit), best)
    weights = np.stack([np.ones(len(labels)), np.full(len(labels), 3.0)])
    assert np.allclose(M.miss_rate_at(labels, scores, limit, weights), best)


@SETTINGS
@given(st.lists(st.booleans(), min_size=2, max_size=40), st.integers(1, 10))
def test_an_interval_of_a_rate_over_parts_is_no_narrower_than_that_of_its_images(events, size):
    groups = np.arange(len(events)) // size
    rate, low, high = S.rate_interval(events, groups)
    _, alone_low, alone_high = S.rate_interval(events)
    assert 0 <= low <= rate <= high <= 1 and low <= alone_low + 1e-12 and high >= alone_high - 1e-12
    assert len(set(groups)) <= S.effective_number(events, groups) <= len(events)


def test_delivered_rates_are_those_at_the_threshold_and_not_known_without_one():
    labels, scores = np.repeat([0, 1], 20), np.r_[np.arange(20.0), np.arange(10.0, 30)]
    table = S.evaluate_scores(labels, scores, replicates=50, threshold=14.0).set_index("metric").value
    assert table.false_alarms == 5 / 20 and table.misses == 5 / 20                      # 14 itself is OK
    assert S.evaluate_scores(labels, scores,
        replicates=50).set_index("metric").value[["false_alarms", "misses"]].isna().all()
