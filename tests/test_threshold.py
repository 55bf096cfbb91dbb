"""Thresholds, confidences and `calibrate`: laws against brute force, the sigmoid against other solvers,
the command line end to end."""
import contextlib
import io
import itertools
import json
import math
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import write_image
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LogisticRegression

from thesis_ad.cli import main
from thesis_ad.data.datasets import ImageSet
from thesis_ad.decision.inspecting import inspect
from thesis_ad.decision.threshold import (
    OkPixels,
    Sigmoid,
    bounded_threshold,
    calibrate,
    chance_kept,
    conformal_threshold,
    decide,
    describe,
    error_rates,
    expected_calibration_error,
    expected_false_alarms,
    false_alarm_law,
    fit_platt,
    group_maxima,
    mean_sigma,
    platt_loss,
    platt_targets,
    quantile_threshold,
    reliability,
    set_threshold,
)
from thesis_ad.models.detector import create, load_bundle, predict_set, update_bundle
from thesis_ad.settings import UserError, rng

FAST = settings(max_examples=60, deadline=None)
FEW = settings(FAST, max_examples=40)       # where each example evaluates a law dozens of times
scores_strategy = st.lists(st.integers(-10**6, 10**6), min_size=3, max_size=60,
    unique=True).map(lambda values: np.array(values, float))
alphas = st.sampled_from([0.01, 0.05, 0.1, 0.2, 1 / 3, 0.5, 0.9])


# Order statistics

@pytest.mark.parametrize("n", [3, 4, 5])
@pytest.mark.parametrize("alpha", [0.25, 1 / 3, 0.5])
def test_conformal_keeps_its_promise_in_every_order(n, alpha):
    """Exactly: over all orders of n + 1 distinct scores the last is called NOK in at most a share alpha,
    and one rank lower it would be more."""
    called = lower = 0
    orders = list(itertools.permutations(range(n + 1)))
    try: conformal_threshold(range(n), alpha)
    except UserError:
        assert alpha < 1 / (n + 1)
        return
    for order in orders:
        t = conformal_threshold(order[:n], alpha)
        called += int(t.decide(order[n]))
        lower += order[n] > (sorted(order[:n])[t.rank - 2] if t.rank > 1 else -1)
    assert called <= alpha * len(orders) + 1e-9 < lower, "the rank is not the lowest that keeps the promise"
    assert math.isclose(called / len(orders), t.expected)


def test_conformal_rank_against_simulated_stations():
    draws = rng("test", "stations").exponential(size=(1500, 160))
    for alpha, n in ((0.05, 19), (0.05, 60), (0.1, 25)):
        counts = np.array([conformal_threshold(row[:n], alpha).decide(row[n:n + 100]).sum() for row in draws])
        law = expected_false_alarms(n, conformal_threshold(draws[0, :n], alpha).rank, 100)
        assert counts.mean() / 100 <= alpha + 3 * counts.std() / 100 / math.sqrt(1500)
        assert abs(counts.mean() - law.mean()) < 4 * law.std() / math.sqrt(1500)
        assert np.abs(np.bincount(counts, minlength=101)[:101] / 1500
            - law.pmf(range(101))).max() < 0.04, "counts do not follow the beta-binomial law"


@FAST
@given(n=st.integers(3, 400), alpha=alphas, confidence=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_bounded_against_the_binomial_tail(n, alpha, confidence):
    "A station breaks its promise if at least n + 1 - r of n draws fall into the top alpha: summed here term by term."
    def holds(rank): return sum(stats.binom.pmf(j, n, alpha) for j in range(n + 1 - rank, n + 1)) >= confidence - 1e-9
    try: rank = bounded_threshold(np.arange(n), alpha, confidence).rank
    except UserError as error:
        assert not holds(n)
        needed = int(str(error).split(" needs ")[1].split()[0])
        assert n < needed and 1 - (1 - alpha) ** needed >= confidence - 1e-9 > 1 - (1 - alpha) ** (needed - 1) - 1e-8
        return
    assert holds(rank) and (rank == 1 or not holds(rank - 1))
    assert false_alarm_law(n, rank).cdf(alpha) >= confidence - 1e-9


@pytest.mark.parametrize("n, among", [(3, 1), (3, 4), (5, 3), (6, 6)])
def test_the_count_is_bounded_in_every_split(n, among):
    "Exactly: over all splits of n + among distinct scores into old and new, counted one by one."
    alarms = np.array([[sum(new > old[rank - 1] for new in set(range(n + among)) - set(old))
        for rank in range(1, n + 1)] for old in itertools.combinations(range(n + among), n)])
    for alpha in (0.2, 1 / 3, 0.5):
        kept = (alarms <= alpha * among + 1e-9).mean(0)
        assert np.allclose(kept, [chance_kept(n, rank, alpha, among)
            for rank in range(1, n + 1)]), "the law of the count is not that of the splits"
        for confidence in (0.5, 0.8, 0.95):
            if kept[-1] < confidence - 1e-9:
                with pytest.raises(UserError, match=f"next {among} "):
                    bounded_threshold(np.arange(n), alpha, confidence, among)
            else:
                assert bounded_threshold(np.arange(n), alpha, confidence,
                    among).rank == np.flatnonzero(kept >= confidence - 1e-9)[0] + 1


def count_kept(n, rank, allowed, among):
    """P(at most `allowed` of `among` new scores lie above the rank-th of n old ones): of the highest allowed + n + 1 -
    rank scores in all, at least n + 1 - rank are old."""
    return stats.hypergeom.sf(n - rank, n + among, n, min(allowed + n + 1 - rank, n + among))


@FEW
@given(n=st.integers(3, 300), among=st.integers(1, 300), alpha=st.sampled_from([0.01, 0.05, 0.1, 1 / 3]),
    confidence=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_bound_on_a_count(n, among, alpha, confidence):
    "The lowest rank that does, by another law; the number of images that a refusal asks for is the lowest that does."
    allowed = math.floor(alpha * among + 1e-9)
    def holds(rank, n=n): return count_kept(n, rank, allowed, among) >= confidence - 1e-9
    try: rank = bounded_threshold(np.arange(n), alpha, confidence, among).rank
    except UserError as error:
        assert not holds(n)
        needed = int(str(error).split(" needs ")[1].split()[0])
        assert holds(needed, needed) and not holds(needed - 1, needed - 1)
        return
    assert holds(rank) and (rank == 1 or not holds(rank - 1))


def rank_or_refused(*arguments, **options):
    "The rank of a bounded threshold; above every rank if it is refused."
    try: return bounded_threshold(*arguments, **options).rank
    except UserError: return math.inf


@FEW
@given(n=st.integers(3, 200), alpha=st.sampled_from([0.05, 0.1, 0.2]), tooth=st.integers(0, 8), data=st.data())
def test_the_bound_on_a_count_is_monotone(n, alpha, tooth, data):
    """More confidence, or more images with no more alarms allowed, never lower the rank;
    one more alarm allowed for the same number never raises it."""
    width = round(1 / alpha)
    few, many = sorted(data.draw(st.lists(st.integers(max(tooth * width, 1), tooth * width + width - 1),
        min_size=2, max_size=2)))
    ranks = [rank_or_refused(np.arange(n), alpha, 0.95, among) for among in (few, many)]
    assert ranks[0] <= ranks[1], f"{many} images with {tooth} alarms allowed got a lower rank than {few}"
    by_confidence = [rank_or_refused(np.arange(n), alpha, confidence, few)
        for confidence in (0.5, 0.8, 0.9, 0.95, 0.99)]
    assert by_confidence == sorted(by_confidence)
    assert rank_or_refused(np.arange(n), alpha + 1 / few, 0.95, few) <= ranks[0] if alpha + 1 / few < 1 else True


@FEW
@given(n=st.integers(3, 400), alpha=st.sampled_from([0.02, 0.05, 0.1, 0.25]),
    confidence=st.sampled_from([0.8, 0.9, 0.95]))
def test_the_ends_are_the_conformal_threshold_and_the_bound_on_the_rate(n, alpha, confidence):
    """For very many images the rank is that of the rate, unless the rate is at the edge of its confidence;
    for one at confidence 1 - alpha it is the conformal one."""
    rank = rank_or_refused(np.arange(n), alpha, confidence)
    chances = [chance_kept(n, r, alpha) for r in (min(rank, n), max(min(rank, n) - 1, 1))]
    if min(abs(chance - confidence) for chance in chances) > 1e-3:
        assert rank_or_refused(np.arange(n), alpha, confidence, 200_000) == rank
    try: conformal = conformal_threshold(np.arange(n), alpha).rank
    except UserError: conformal = math.inf
    assert rank_or_refused(np.arange(n), alpha, 1 - alpha, 1) == conformal


def test_a_bound_on_a_count_among_simulated_stations():
    draws, n, among, alpha = rng("test", "count").exponential(size=(4000, 238)), 138, 100, 0.05
    kept = {}
    for counted in (None, among):
        rank = bounded_threshold(np.arange(n), alpha, among=counted).rank
        alarms = (draws[:, n:] > np.sort(draws[:, :n], axis=1)[:, [rank - 1]]).sum(1)
        kept[counted] = (alarms <= alpha * among).mean()
        assert abs(kept[counted] - chance_kept(n, rank, alpha, among)) < 0.015
    assert kept[among] >= 0.95 > kept[None], f"held at {kept} of stations: only the bound on the count keeps the count"


@FAST
@given(scores=scores_strategy, low=alphas, high=alphas)
def test_a_smaller_alpha_never_lowers_the_threshold(scores, low, high):
    low, high = min(low, high), max(low, high)
    for rule in (conformal_threshold, bounded_threshold):
        try: strict = rule(scores, low)
        except UserError: continue
        assert strict.value >= rule(scores, high).value
        if rule is conformal_threshold: assert strict.expected <= low + 1e-9


@FAST
@given(scores=scores_strategy, alpha=alphas, seed=st.integers(0, 99))
def test_order_statistics_follow_an_increasing_map(scores, alpha, seed):
    "f(threshold of s) = threshold of f(s), so decisions are the same; the order of the scores does not matter."
    shuffled = rng("test", seed).permutation(scores)
    for rule in (lambda s: conformal_threshold(s, alpha), lambda s: bounded_threshold(s, alpha),
            lambda s: quantile_threshold(s, 1 - alpha)):
        try: t = rule(scores)
        except UserError: continue
        for f in (lambda s: np.sqrt(s + 1e6), lambda s: 3 * s + 7, lambda s: s * s * s):
            assert rule(f(scores)).value == f(t.value) and rule(f(shuffled)).rank == t.rank
        assert t.decide(t.value) == 0 and t.decide(np.nextafter(t.value, np.inf)) == 1
        assert t.decide(scores).sum() == len(scores) - t.rank


def test_ties_only_lower_the_rate():
    tied = conformal_threshold([1, 1, 1, 2, 2, 2, 2, 2, 2, 2], 0.3)
    assert tied.value == 2 and tied.decide([2, 2, 2.1]).tolist() == [0, 0, 1]


@pytest.mark.parametrize("n, k", [(5, 2.0), (30, 3.0)])
def test_mean_sigma_under_normal_scores(n, k):
    draws = rng("test", "normal", n).normal(5, 3, size=(2000, n))
    values = draws.mean(1) + k * draws.std(1, ddof=1)
    rates = stats.norm.sf(values, 5, 3)
    t = mean_sigma(draws[0], k)
    assert math.isclose(t.value, values[0])
    assert abs(rates.mean() - t.expected) < 4 * rates.std() / math.sqrt(2000)
    assert abs((rates < t.low).mean() - 0.025) < 0.015 and abs((rates > t.high).mean() - 0.025) < 0.015


@pytest.mark.parametrize("wrong, word", [
    (lambda: conformal_threshold([1, 2], 0.5), "at least 3"), (lambda: mean_sigma([1, 2, np.nan]), "image 2"),
    (lambda: quantile_threshold([1, 2, np.inf], 0.9), "image 2"),
    (lambda: conformal_threshold(range(10), 0.01), "99"), (lambda: bounded_threshold(range(10), 0.05), "59"),
    (lambda: conformal_threshold(range(10), 1.5), "alpha"),
    (lambda: set_threshold(range(10), "conformall"), "conformal"),
    (lambda: set_threshold(range(10), "mean_sigma", alpha=0.1), "not alpha"),
    (lambda: set_threshold(range(10), "conformal", among=5), "not among"),
    (lambda: bounded_threshold(range(99), 0.05, among=0), "not for 0"),
    (lambda: bounded_threshold(range(99), 0.05, among=2.5), "not for 2.5"),
    (lambda: bounded_threshold(range(99), 0.05, among=19), "next 19 .* needs 361"),
    (lambda: false_alarm_law(5, 6), "rank")])
def test_what_cannot_be_promised_is_refused(wrong, word):
    with pytest.raises(UserError, match=word): wrong()


@FAST
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-50, 50)), min_size=1, max_size=40))
def test_group_maxima_against_a_loop(pairs):
    groups, scores = zip(*pairs)
    assert group_maxima(scores, groups).tolist() == [max(s for g, s in pairs if g == group)
        for group in sorted(set(groups))]


@FAST
@given(quantile=st.sampled_from([0.5, 0.9, 0.99, 0.999]), seed=st.integers(0, 50))
def test_pixels_are_streamed_exactly(quantile, seed):
    r = rng("test", "pixels", seed)
    maps = [r.normal(size=r.integers(4, 30, 2)).astype(np.float32) for _ in range(5)]
    everything = np.concatenate([one.ravel() for one in maps])
    pixels = OkPixels(quantile, len(everything))
    for one in maps: pixels.add(one)
    value = pixels.threshold()["value"]
    allowed = math.floor(round((1 - quantile) * len(everything), 6))
    assert (everything > value).sum() <= allowed and (everything >= value).sum() > allowed


# The sigmoid

def labelled(seed, n=60, gain=1.5, scale=1.0):
    r = rng("test", "labelled", seed)
    labels = (np.arange(n) % 3 == 0).astype(int)
    return scale * (gain * labels + r.normal(size=n)), labels


@pytest.mark.parametrize("seed, scale, gain", [(0, 1, 1.5), (1, 1e-5, 0.5), (2, 1e5, 3), (3, 1, 40), (4, 1, -1)])
def test_platt_against_sklearn_and_the_simplex(seed, scale, gain):
    "Platt's targets are sample weights: each image once as NOK with weight t, once as OK with weight 1 - t."
    scores, labels = labelled(seed, gain=gain, scale=scale)
    ours, simplex = fit_platt(scores, labels), fit_platt(scores, labels, solver="nelder-mead")
    t, z = platt_targets(labels), (scores - scores.mean()) / scores.std()
    theirs = LogisticRegression(C=1e12, tol=1e-12, max_iter=10_000).fit(np.r_[z, z][:, None], np.repeat([1, 0], len(z)),
        np.r_[t, 1 - t])
    assert np.allclose(ours(scores), theirs.predict_proba(z[:, None])[:, 1], atol=1e-5)
    assert np.allclose(ours(scores), simplex(scores), atol=1e-5)
    assert bool(ours.warning) == (ours.a >= 0)


def test_no_point_of_a_grid_is_more_likely():
    scores, labels = labelled(5)
    fit, targets = fit_platt(scores, labels), platt_targets(labels)
    best = platt_loss((fit.a, fit.b), scores, targets)
    assert best <= min(platt_loss((a, b), scores, targets) for a in np.linspace(-6, 2, 81)
        for b in np.linspace(-4, 6, 81)) + 1e-9
    by_hand = -np.sum(targets * np.log(fit(scores)) + (1 - targets) * np.log(1 - fit(scores)))
    assert math.isclose(best, by_hand, rel_tol=1e-9)


def test_targets_are_smoothed():
    assert platt_targets(np.array([1, 1, 0])).tolist() == [3 / 4, 3 / 4, 1 / 3]
    certain = fit_platt([0] * 5 + [1] * 5, [0] * 5 + [1] * 5)
    assert math.isclose(float(certain(1)), 6 / 7, rel_tol=1e-6) and math.isclose(float(certain(0)), 1 / 7, rel_tol=1e-6)
    flat = fit_platt([2.0] * 6, [0, 0, 0, 0, 1, 1])
    assert 0.2 < flat(2.0) < 0.45 and flat.warning


@FAST
@given(a=st.floats(-5, -0.01), b=st.floats(-20, 20), scores=st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=20))
def test_a_probability_is_one_and_rises(a, b, scores):
    found = Sigmoid(a, b)(sorted(scores))
    assert ((found >= 0) & (found <= 1)).all() and (np.diff(found) >= 0).all()


def test_at_share_is_the_rule_of_bayes():
    sigmoid = Sigmoid(-2.0, 1.0, n_ok=80, n_nok=20)
    p = sigmoid(0.7)
    odds = p / (1 - p) * (0.01 / 0.99) / (20 / 80)
    assert math.isclose(float(sigmoid.at_share(0.01)(0.7)), odds / (1 + odds), rel_tol=1e-9)


def test_a_missing_class_or_number_is_refused():
    for scores, labels, word in (([1, 2, 3], [0, 0, 0], "3 OK and 0 NOK"), ([1, 2], [1, 1], "0 OK"),
            ([1, np.nan], [0, 1], "image 1"), ([1, 2, 3], [0, 1], "3 scores")):
        with pytest.raises(UserError, match=word): fit_platt(scores, labels)
    with pytest.raises(UserError, match="newton"): fit_platt([1, 2], [0, 1], solver="newtn")


@FAST
@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=1, max_size=60), st.integers(1, 12))
def test_calibration_error_against_a_loop(pairs, bins):
    labels, found = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    table, error = reliability(labels, found, bins), 0.0
    for b in range(bins):
        inside = (np.floor(found * bins) == b) | ((b == bins - 1) & (found == 1))
        if inside.any(): error += inside.mean() * abs(labels[inside].mean() - found[inside].mean())
    assert table.n.sum() == len(pairs)
    assert math.isclose(expected_calibration_error(labels, found, bins), error, abs_tol=1e-12)
    assert ((table.share_low <= table.share) & (table.share <= table.share_high)).all()


def test_error_rates_are_counts():
    table = error_rates([0, 0, 0, 1, 1], [0, 1, 0, 0, 1]).set_index("rate")
    assert table.wrong.tolist() == [1, 1] and table.n.tolist() == [3, 2] and math.isclose(table.value["misses"], 0.5)
    assert math.isclose(error_rates([0] * 59, [0] * 59).high[0], 1 - 0.025 ** (1 / 59))


# Bundles and the command line

FIT = ["--set", "size=64"]


def thesis_ad(*arguments):
    "The command in this process; test_cli.py has it in a process of its own."
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: main([*map(str, arguments)])
        except SystemExit as exit: code = exit.code or 0
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def refused(result, *words):
    assert result.returncode == 2, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    last = result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr and all(word in last for word in words), last


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    "A dataset in thesis layout with a calibration split, and a bundle fitted on it."
    root = tmp_path_factory.mktemp("threshold") / "data"
    for folder, count, square in (("train/ok", 10, False), ("calibration/ok", 21, False), ("calibration/nok", 4, True),
            ("test/ok", 4, False), ("test/nok", 4, True)):
        for i in range(count):
            write_image(root / folder / f"{folder[-2:]}{i}.png", rng("threshold", folder, i), square)
    result = thesis_ad("fit", "gaussian", root, "-o", root.parent / "bundle", *FIT)
    assert result.returncode == 0, result.stderr
    return root


@pytest.fixture
def bundle(part, tmp_path):
    "A copy of the bundle, to change."
    return shutil.copytree(part.parent / "bundle", tmp_path / "bundle")


def test_calibrate_evaluate_inspect(bundle, part, tmp_path):
    assert thesis_ad("evaluate", bundle, part, "-o", tmp_path / "before").returncode == 0
    tensors = (bundle / "tensors.safetensors").read_bytes()
    result = thesis_ad("calibrate", bundle, part)
    assert result.returncode == 0, result.stderr
    assert "21 OK images" in result.stdout and "4 NOK" in result.stdout
    first = (bundle / "bundle.json").read_bytes()
    facts = json.loads(first)
    assert facts["threshold"]["how"] == "conformal" and facts["threshold"]["n"] == 21
    assert facts["threshold"]["pixel"]["value"] > 0 and facts["sigmoid"]["a"] < 0
    assert (thesis_ad("calibrate", bundle, part).returncode == 0
        and (bundle / "bundle.json").read_bytes() == first), "the same calibration gave other bytes"
    assert (bundle / "tensors.safetensors").read_bytes() == tensors
    assert sorted(path.name for path in bundle.iterdir()) == ["bundle.json", "tensors.safetensors"]

    result = thesis_ad("evaluate", bundle, part, "-o", tmp_path / "after")
    assert "false alarms" in result.stdout and "misses" in result.stdout
    assert (tmp_path / "before/scores.csv").read_bytes() == (tmp_path
        / "after/scores.csv").read_bytes(), "a threshold changed the scores"
    scores = pd.read_csv(tmp_path / "after/scores.csv", dtype={"score": str}).set_index("image")

    (tmp_path / "broken.png").write_bytes(b"not an image")
    result = thesis_ad("inspect", bundle, part / "test", tmp_path / "broken.png", tmp_path / "missing.jpg", "-o",
        tmp_path / "seen")
    assert result.returncode == 2 and "broken.png" in result.stderr and "missing.jpg" in result.stderr
    assert "2 unread" in result.stderr
    seen = pd.read_csv(tmp_path / "seen/decisions.csv", dtype={"score": str})
    assert len(seen) == 10 and len(list((tmp_path / "seen").glob("*.png"))) == 8
    assert seen.status.tolist()[8:] == ["unread"] * 2
    seen = seen[:8]
    for row in seen.itertuples():
        known = scores.loc[os.path.relpath(row.path, part)]
        assert row.score == known.score, f"{row.path}: inspect and evaluate give different scores"
        score = float(row.score)
        assert row.status == ("NOK" if score > facts["threshold"]["value"] else "OK")
        assert math.isclose(row.confidence, float(Sigmoid(**facts["sigmoid"])(score)), rel_tol=1e-9)
        assert f"{row.status:10}{score:<13.7g}" in result.stdout


def test_a_wrong_option_is_refused_before_any_image_is_scored():
    images = ImageSet.from_arrays(rng("unscored").integers(0, 256, (30, 8, 8, 3)).astype(np.uint8))
    detector = SimpleNamespace(trained_on=np.zeros(0, np.int64))                       # cannot score: it has no predict
    for method, options in (("conformal", {"alpha": 0.001}), ("conformal", {"k": 3}), ("mean_sigma", {"k": math.nan}),
            ("median", {})):
        with pytest.raises(UserError): calibrate(detector, images, method, **options)
    with pytest.raises(AttributeError): calibrate(detector, images)


def test_calibrate_refuses_in_one_sentence(bundle, part, tmp_path):
    before = (bundle / "bundle.json").read_bytes()
    few = tmp_path / "few"
    for i in range(2): write_image(few / f"{i}.png", rng("few", i))
    refused(thesis_ad("calibrate", bundle, few), "3 OK", "2")
    refused(thesis_ad("calibrate", bundle, part / "train/ok"), "training images")
    for i in range(5): write_image(tmp_path / "mixed/nok" / f"{i}.png", rng("mixed", i))
    refused(thesis_ad("calibrate", bundle, tmp_path / "mixed"), "nok", "--ok", "--nok")
    write_image(tmp_path / "nested/line2/NG/0.png", rng("nested"))
    refused(thesis_ad("calibrate", bundle, tmp_path / "nested"), "nested/line2", "no calibration")
    refused(thesis_ad("calibrate", bundle, part, "--alpha", "0.01"), "99", "21")
    refused(thesis_ad("calibrate", bundle, part, "--method", "bounded"), "59")
    refused(thesis_ad("calibrate", bundle, part, "--pixel", "some"), "maxima")
    refused(thesis_ad("inspect", bundle, tmp_path / "nowhere"), "nowhere")
    assert (bundle / "bundle.json").read_bytes() == before, "a refused calibration changed the bundle"
    data = bytearray(before)
    data[50] ^= 1
    (bundle / "bundle.json").write_bytes(data)
    refused(thesis_ad("calibrate", bundle, part), "bundle.json", "changed")


def test_a_flat_folder_uses_what_was_not_learned(bundle, part, tmp_path):
    "Ten training images among new ones are left out; the threshold rests on the others, and there is no confidence."
    (tmp_path / "photos").mkdir()
    for folder in ("train", "calibration"):
        for path in (part / folder / "ok").glob("*.png"):
            (tmp_path / "photos" / f"{folder}_{path.name}").write_bytes(path.read_bytes())
    result = thesis_ad("calibrate", bundle, tmp_path / "photos", "--method", "mean_sigma", "--k", "2",
        "--pixel", "0.99")
    assert result.returncode == 0, result.stderr
    assert "10 training images" in result.stderr and "no confidence" in result.stdout
    facts = json.loads((bundle / "bundle.json").read_text())
    assert facts["threshold"]["left_out"] == 10 and facts["threshold"]["images"] == 21 and facts["sigmoid"] is None
    assert facts["threshold"]["pixel"]["quantile"] == 0.99


def test_a_killed_update_leaves_the_old_bundle(bundle, monkeypatch):
    before = (bundle / "bundle.json").read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): update_bundle(bundle, threshold={"value": 1.0, "how": "by hand"})
    assert (bundle / "bundle.json").read_bytes() == before and load_bundle(bundle, "cpu").threshold is None
    with pytest.raises(UserError, match="threshold"): update_bundle(bundle, tresholds=None)


class NotANumber:
    "Wraps a detector whose second image has no score."
    def __init__(self, detector): self.__dict__.update(detector=detector)
    def __getattr__(self, name): return getattr(self.detector, name)
    def predict(self, images):
        scores, maps = self.detector.predict(images)
        scores[1] = np.nan
        return scores, maps


def test_a_score_that_is_no_number_is_refused():
    images = ImageSet.from_arrays(rng("nan").integers(0, 255, (9, 32, 32, 3)).astype(np.uint8))
    detector = NotANumber(create("gaussian", size="32", device="cpu").fit(images.take(range(4))))
    with pytest.raises(UserError, match="no finite score for 00005.png"):
        calibrate(detector, images.take(range(4, 9)), "mean_sigma")


def test_a_part_is_the_maximum_of_its_images():
    arrays = rng("parts").integers(0, 255, (18, 32, 32, 3)).astype(np.uint8)
    images = ImageSet.from_arrays(arrays, groups=np.repeat(list("abcdef"), 3))
    detector = create("gaussian", size="32", device="cpu").fit(images.take(range(3)))
    rest = images.take(range(3, 18))
    scores, _ = predict_set(detector, rest)
    threshold = calibrate(detector, images, alpha=0.2, per="part")
    assert threshold.n == 5 and threshold.value == scores.reshape(5, 3).max() and detector.threshold["left_out"] == 3
    assert decide(detector, scores)[0].sum() == 0 and decide(detector, scores)[1] is None
    assert inspect(detector, rest).status.tolist() == ["OK"] * 15
    again = calibrate(detector, images, "quantile", q=0.5)
    assert again.n == 15 and again.decide(scores).sum() == 7


def test_a_bound_on_a_count_is_written_and_told():
    images = ImageSet.from_arrays(rng("count").integers(0, 255, (27, 32, 32, 3)).astype(np.uint8))
    detector = create("gaussian", size="32", device="cpu").fit(images.take(range(3)))
    threshold = calibrate(detector, images, "bounded", alpha=0.2, confidence=0.8, among=10)
    assert json.loads(json.dumps(detector.threshold))["among"] == 10
    assert chance_kept(24, threshold.rank, 0.2, 10) >= 0.8 > chance_kept(24, threshold.rank - 1, 0.2, 10)
    assert "At most 20 % of the next 10 OK images are called NOK, with a probability of at least 80 %." in describe(
        detector.threshold)
    calibrate(detector, images, "bounded", alpha=0.2, confidence=0.8)
    assert "among" not in detector.threshold and "in the long run" in describe(detector.threshold)
    calibrate(detector, images)
    assert "at least" not in describe(detector.threshold).lower()


@pytest.mark.parametrize("n", [3, 7, 18, 19, 40])
def test_few_images_promise_what_they_can(n):
    "By default nothing above two images is refused; an alpha that was asked for is kept or refused, never changed."
    threshold = set_threshold(np.arange(n))
    assert threshold.alpha == max(0.05, 1 / (n + 1)) and threshold.expected <= threshold.alpha + 1e-12
    assert threshold.low < threshold.expected < threshold.high
    if n < 19:
        with pytest.raises(UserError, match="at least 19"): set_threshold(np.arange(n), alpha=0.05)
    else: assert set_threshold(np.arange(n), alpha=0.05) == threshold
