"""Fusion and several views: weights against brute force, invariances, edge cases;
DeLong and Holm against independent implementations."""
import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import optimize, special, stats

from thesis_ad.decision.fusion import (Fusion, NormalTail, best_single, equal_weights, fit_fusion, fit_normal_fusion,
    fit_sigmoids, fuse_maps, group_folds, log_odds, out_of_fold, simplex_weights, with_map_scales)
from thesis_ad.decision.multiview import combine, part_scores, poses, probability_of_any
from thesis_ad.decision.threshold import platt_targets
from thesis_ad.evaluation.metrics import image_auroc
from thesis_ad.evaluation.statistics import compare, delong, holm, paired_difference
from thesis_ad.settings import UserError, rng

seeds = st.integers(0, 10_000)


def calibration(key, gains, parts=(8, 5), photos=3):
    "Scores [N, M], labels, groups of parts whose photos are alike."
    r = rng("test fusion", key)
    number = np.arange(sum(parts)).repeat(photos)
    labels = (number >= parts[0]).astype(int)
    noise = r.normal(size=(sum(parts), len(gains)))[number] + r.normal(size=(len(number), len(gains)))
    return np.exp(0.4 * (noise + labels[:, None] * np.array(gains))), labels, np.char.mod("p%02d", number)


def loss_at(weights, opinions, labels):
    "Cross-entropy of these weights at the best sharpness and offset, from scratch."
    z, t = opinions @ weights, platt_targets(labels)
    def loss(x):
        return -np.mean(t * np.log(special.expit(x[0] * z + x[1]) + 1e-300)
            + (1 - t) * np.log(special.expit(-x[0] * z - x[1]) + 1e-300))
    return min(optimize.minimize(loss, start, method="Nelder-Mead",
        options={"xatol": 1e-7, "fatol": 1e-11, "maxiter": 2000}).fun for start in ([1.0, 0.0],))


def simplex(M, steps):
    return np.array([c for c in itertools.product(range(steps + 1), repeat=M) if sum(c) == steps]) / steps


@pytest.mark.parametrize("gains, steps",
    [((1.5, 1.0), 40), ((0.3, 2.5), 40), ((1.2, 1.0, 0.5), 10), ((3.0, 0.0, 1.0), 10)])
def test_weights_are_at_the_bottom_of_the_simplex(gains, steps):
    scores, labels, _ = calibration(str(gains), gains)
    opinions = log_odds(fit_sigmoids(scores, labels), scores)
    weights = simplex_weights(opinions, labels)
    grid = simplex(len(gains), steps)
    losses = np.array([loss_at(w, opinions, labels) for w in grid])
    assert (weights >= 0).all() and np.isclose(weights.sum(), 1)
    assert (loss_at(weights, opinions, labels)
        <= losses.min() + 1e-5), f"grid point {grid[losses.argmin()]} is better than {weights}"


@given(seeds)
@settings(max_examples=8, deadline=None)
def test_the_order_of_detectors_and_the_unit_of_their_scores_do_not_matter(seed):
    scores, labels, groups = calibration(seed, (2.0, 1.0, 0.5))
    r = rng("order", seed)
    order, units, shift = r.permutation(3), 10 ** r.uniform(-4, 4, 3), r.normal(size=3)
    fusion = fit_fusion(scores, labels, groups, replicates=5)
    other = fit_fusion((scores * units + shift)[:, order], labels, groups, replicates=5)
    assert np.allclose(np.array(other.weights), np.array(fusion.weights)[order], atol=2e-3)
    assert np.allclose(other((scores * units + shift)[:, order]), fusion(scores), rtol=1e-2, atol=1e-2)


@given(seeds)
@settings(max_examples=8, deadline=None)
def test_a_single_detector_keeps_its_order_even_far_out(seed):
    scores, labels, groups = calibration(seed, (1.0,))
    fusion = fit_fusion(scores, labels, groups, replicates=3)
    far = np.sort(np.r_[scores[:, 0], 1e3, 1e4, 2e4, 1e7])
    assert fusion.weights == (1.0,)
    if not fusion.note:
        assert (np.diff(fusion(far[:, None]))[np.diff(far) > 0]
            > 0).all(), "the fused score ties where the raw score does not"


def test_identical_detectors_share_and_a_constant_one_gets_nothing():
    scores, labels, groups = calibration("twins", (1.5,))
    twins = fit_fusion(scores[:, [0, 0, 0]], labels, groups, replicates=10)
    assert np.allclose(twins.weights, 1 / 3, atol=1e-6)
    assert image_auroc(labels, twins(scores[:, [0, 0, 0]])) == image_auroc(labels, scores[:, 0])
    flat = fit_fusion(np.c_[scores[:, 0], np.full(len(labels), 5.0)], labels, groups, replicates=10)
    assert flat.weights == (1.0, 0.0) and "detector 1" in flat.note
    nothing = fit_fusion(np.full((len(labels), 2), 5.0), labels, groups, replicates=3)
    assert np.isclose(sum(nothing.weights), 1) and np.isfinite(nothing(np.full((4, 2), 5.0))).all()


def test_a_detector_that_is_wrong_is_not_turned_round():
    scores, labels, groups = calibration("wrong", (2.0, 2.0))
    scores[:, 1] = -scores[:, 1]
    fusion = fit_fusion(scores, labels, groups, replicates=10)
    assert fusion.weights[1] < 0.05 and "detector 1" in fusion.note
    assert (log_odds(fusion.scales, scores)[:, 1] == log_odds(fusion.scales, scores)[0, 1]).all()


def test_probability_rises_with_the_score_and_is_roughly_right():
    scores, labels, groups = calibration("probability", (1.5, 1.0), parts=(60, 60))
    fusion = fit_fusion(scores, labels, groups, replicates=5)
    new, truth, _ = calibration("probability, new", (1.5, 1.0), parts=(300, 300))
    p = fusion.probability(new)
    assert (np.diff(p[np.argsort(fusion(new))]) >= 0).all()
    for low in (0.0, 0.25, 0.5, 0.75):
        inside = (p >= low) & (p < low + 0.25)
        assert abs(truth[inside].mean() - p[inside]
            .mean()) < 0.12, f"of images with P in [{low}, {low + 0.25}] {truth[inside].mean():.2f} are NOK"


def test_few_parts_are_said():
    scores, labels, groups = calibration("few", (1.5, 1.0), parts=(4, 1))
    fusion = fit_fusion(scores, labels, groups, replicates=5)
    assert "fewer than two calibration parts" in fusion.note and not group_folds(labels, groups).any()
    assert not out_of_fold(scores, labels, groups, replicates=3)[1]


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_folds_keep_parts_whole_and_hold_both_classes_outside(seed):
    r = rng("folds", seed)
    groups = r.integers(0, r.integers(2, 9), 40)
    labels = (r.random(40) < 0.4).astype(int) if seed % 2 else (groups % 2)
    if len(set(labels.tolist())) < 2: return
    folds = group_folds(labels, groups)
    assert all(len(set(folds[groups == g])) == 1 for g in set(groups.tolist()))
    for k in set(folds.tolist()):
        if folds.any(): assert len(set(labels[folds != k].tolist())) == 2


# Without NOK

def test_without_nok_p_values_take_over_and_say_so():
    scores, labels, groups = calibration("no nok", (2.0, 1.0))
    good = labels == 0
    fusion = fit_fusion(scores[good], labels[good], groups[good], ("a", "b"))
    assert fusion.kind == "fisher" and "no NOK" in fusion.note and fusion.weights == (0.5, 0.5)
    assert image_auroc(labels, fusion(scores)) > 0.7
    with pytest.raises(UserError, match="without NOK"): fusion.probability(scores)
    with pytest.raises(UserError): fit_fusion(scores[~good], labels[~good], groups[~good])
    by_hand = np.log([[(np.sum(scores[good, m] > s) + 1) / (good.sum() + 1) for m, s in enumerate(row)]
        for row in scores[good]])
    assert np.allclose(fusion(scores[good]), -by_hand.mean(1),
        atol=1e-9), "at the calibration scores p is (r + 1)/(n + 1)"


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_log_p_falls_strictly_and_knows_no_ceiling(seed):
    r = rng("tail", seed)
    ok = np.sort(np.round(r.exponential(size=r.integers(2, 60)), r.integers(1, 6)))
    tail = NormalTail(tuple(ok.tolist()))
    grid = np.unique(np.r_[np.linspace(ok[0] - 5, ok[-1] + 50, 300), ok])
    log_p = tail(grid)
    assert (log_p <= 0).all() and (np.diff(log_p) < 0).all()


def test_mean_rank_lets_no_single_detector_decide():
    scores, labels, _ = calibration("rank", (1.0, 1.0, 1.0))
    good = scores[labels == 0]
    one_shouts, all_agree = np.array([[1e9, *np.median(good[:, 1:], axis=0)]]), np.quantile(good, 0.95, axis=0)[None]
    fisher, rank = fit_normal_fusion(good), fit_normal_fusion(good, rule="mean_rank")
    assert fisher(one_shouts) > fisher(all_agree) and rank(one_shouts) < rank(all_agree)


# Errors and files

@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_refused_by_name(value):
    scores, labels, groups = calibration("nan", (1.0, 1.0))
    fusion = fit_fusion(scores, labels, groups, ("a", "b"), replicates=2)
    scores[7, 1] = value
    for call in (lambda: fit_fusion(scores, labels, groups, ("a", "b")), lambda: fusion(scores)):
        with pytest.raises(UserError, match="image 7 by b"): call()


def test_wrong_shapes_are_refused():
    scores, labels, groups = calibration("shapes", (1.0, 1.0))
    fusion = fit_fusion(scores, labels, groups, replicates=2)
    for call in (lambda: fit_fusion(scores, labels[:-1], groups), lambda: fit_fusion(scores, labels, groups,
            ("a", "a")), lambda: fusion(scores[:, :1]), lambda: fusion.weighted([1, -1]),
            lambda: fit_fusion(np.zeros((0, 2)), [], []), lambda: fuse_maps(fusion, [None, None])):
        with pytest.raises(UserError): call()


def test_json_brings_back_the_same_fusion(tmp_path):
    scores, labels, groups = calibration("json", (1.0, 2.0))
    fitted = fit_fusion(scores, labels, groups, ("a", "b"), replicates=3)
    for fusion in (fitted, with_map_scales(fitted, [[np.eye(4)], None]), equal_weights(fitted),
            fit_normal_fusion(scores)):
        fusion.save(tmp_path / "fusion.json")
        again = Fusion.load(tmp_path / "fusion.json")
        assert again == fusion and (again(scores) == fusion(scores)).all()
    (tmp_path / "fusion.json").write_text("[]")
    for path in (tmp_path / "fusion.json", tmp_path / "missing.json"):
        with pytest.raises(UserError): Fusion.load(path)


def test_best_single_and_equal_weights():
    scores, labels, groups = calibration("best", (0.2, 3.0, 1.0))
    assert best_single(scores, labels) == 1
    fusion = equal_weights(fit_fusion(scores, labels, groups, replicates=2))
    assert np.allclose(fusion(scores), fusion.evidence(scores).mean(1))
    with pytest.raises(UserError, match="by hand"): fusion.probability(scores)
    with pytest.raises(UserError, match="by hand"): fit_normal_fusion(scores).weighted([1, 2, 3]).p_value(scores)


def test_maps_of_any_unit_count_by_their_weight():
    r = rng("test maps")
    scores, labels, groups = calibration("maps", (1.0, 1.0, 1.0))
    fusion = fit_fusion(scores, labels, groups, replicates=2).weighted([3, 1, 4])
    maps = [[r.normal(size=(20, 30)) for _ in range(5)] for _ in range(2)]
    def fused(units):
        return fuse_maps(with_map_scales(fusion, [[u * m + 2 for m in stream]
            for u, stream in zip(units, maps)] + [None]), [units[0] * maps[0][0] + 2, units[1] * maps[1][0] + 2, None])
    assert fused((1, 1)).dtype == np.float32 and np.allclose(fused((1, 1)), fused((1e-5, 1e3)), atol=1e-4)
    def scale(stream):
        level = np.mean([np.median(m) for m in stream])
        return (stream[0] - level) / (np.mean([np.quantile(m, 0.995) for m in stream]) - level)
    assert np.allclose(fused((1, 1)), 0.75 * scale(maps[0]) + 0.25 * scale(maps[1]), atol=1e-5)
    assert fuse_maps(with_map_scales(fusion, [None] * 3), [None] * 3) is None


# Several views

@given(seeds)
@settings(max_examples=20, deadline=None)
def test_any_is_the_product_rule(seed):
    r = rng("any", seed)
    p, part = r.uniform(0.01, 0.99, 12), r.integers(0, 4, 12)
    names, score = combine(part, special.logit(p), "any")
    assert np.allclose(probability_of_any(score), [1 - np.prod(1 - p[part == int(name)]) for name in names])
    for rule, by_hand in (("mean", np.mean), ("max", np.max)):
        assert np.allclose(combine(part, p, rule)[1], [by_hand(p[part == int(name)]) for name in names])


def test_poses_follow_the_time_stamp_and_not_the_order_of_files():
    names = [f"test/nok/part_{part}/zoom_{zoom}_20250303_08{minute:02d}00.png" for part in (1, 2)
        for minute in (30, 10, 20) for zoom in (4, 3)]
    found = poses(names)
    assert found.pose.tolist() == [2, 2, 0, 0, 1, 1] * 2 and found.zoom.tolist() == [4, 3] * 6
    assert found.part.nunique() == 2
    chosen = part_scores(found, np.arange(12.0), (0, 2), "max")
    assert chosen.to_dict() == {"part_1": 3.0, "part_2": 9.0}
    with pytest.raises(UserError): poses(["test/good/000.png"])
    with pytest.raises(UserError): combine(["a"], [np.nan])


# DeLong and Holm

def delong_by_pairs(labels, a, b):
    "Difference and variance from the kernel of every pair of images (DeLong et al., 1988), one loop at a time."
    def kernel(s): return np.array([[(x > y) + 0.5 * (x == y) for y in s[labels == 0]] for x in s[labels == 1]], float)
    k = np.stack([kernel(a), kernel(b)])
    theta = k.mean((1, 2))
    v10, v01 = k.mean(2) - theta[:, None], k.mean(1) - theta[:, None]
    S = v10 @ v10.T / (v10.shape[1] - 1) / v10.shape[1] + v01 @ v01.T / (v01.shape[1] - 1) / v01.shape[1]
    contrast = np.array([1, -1])
    return theta @ contrast, contrast @ S @ contrast


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_delong_against_all_pairs(seed):
    r = rng("delong", seed)
    labels = np.r_[0, 0, 1, 1, r.integers(0, 2, 30)]
    a, b = (np.round(r.normal(size=34) + labels, int(r.integers(1, 5))) for _ in range(2))
    difference, variance = delong_by_pairs(labels, a, b)
    found = delong(labels, a, b)
    assert np.isclose(found.difference, difference) and np.isclose(found.error, np.sqrt(variance))
    assert np.isclose(found.p, 2 * stats.norm.sf(abs(difference) / np.sqrt(variance)))
    assert np.isclose(found.difference, image_auroc(labels, a) - image_auroc(labels, b))


def test_delong_agrees_with_the_bootstrap_over_parts():
    scores, labels, groups = calibration("delong", (1.5, 0.7), parts=(40, 40))
    found = delong(labels, scores[:, 0], scores[:, 1], groups)
    value, low, high = paired_difference(labels, scores[:, 0], scores[:, 1], groups)
    assert np.isclose(found.difference, value) and abs((high - low) / (2 * 1.99 * found.error) - 1) < 0.12
    assert found.error > 1.15 * delong(labels, scores[:, 0],
        scores[:, 1]).error, "photos of a part count as independent"
    assert np.isnan(delong([0, 0, 1, 1], [1, 2, 3, 4], [4, 3, 2, 1], list("abcc")).p)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_holm_by_definition(p):
    order, K, running, expected = sorted(range(len(p)), key=lambda i: p[i]), len(p), 0.0, [0.0] * len(p)
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (K - rank) * p[i]))
        expected[i] = running
    assert np.allclose(holm(p), expected)
    assert (holm([np.nan, *p])[1:] >= holm(p) - 1e-12).all()


def test_compare_finds_the_one_clear_difference():
    scores, labels, groups = calibration("compare", (3.0, 0.0), parts=(25, 25))
    twin = scores[:, 0] + 1e-3 * rng("twin").normal(size=len(labels))
    table = compare(labels, {"good": scores[:, 0], "twin": twin, "chance": scores[:, 1]}, groups,
        replicates=300).set_index(["a", "b"])
    assert table.loc[("good", "chance"), "p_holm"] < 0.001 and table.loc[("good", "chance"), "ci_low"] > 0.1
    assert table.loc[("good", "twin"), "p_holm"] > 0.05 and len(table) == 3
