"""The greedy coreset: equal to its definition, within twice the optimum, in bounded memory."""
import itertools, tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as npst

from thesis_ad.features import coreset
from thesis_ad.features.coreset import coreset_size, greedy_coreset, random_projection
from thesis_ad.settings import UserError, rng


def plain(X, count, first):
    "The definition in float64; ties to the lowest index; no index twice."
    X, chosen, nearest = np.asarray(X, np.float64), [first], np.full(len(X), np.inf)
    while len(chosen) < min(count, len(X)):
        nearest = np.minimum(nearest, ((X - X[chosen[-1]]) ** 2).sum(axis=1))
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    return np.array(chosen)


def radius(X, chosen): return np.sqrt(((X[:, None] - X[None, list(chosen)]) ** 2).sum(-1).min(axis=1).max())


normal = rng("coreset").standard_normal((6000, 64)).astype(np.float32)
clusters = normal[:40].repeat(150, axis=0) * 10 + normal * 0.01
CASES = {
    "normal": normal,
    "shifted by 100": normal + np.float32(100),
    "shifted by 1e6": normal + np.float32(1e6),  # float32 leaves 4 bits of each number: ties everywhere
    "clusters": clusters,
    "lattice": np.stack(np.meshgrid(*[np.arange(18.0)] * 3), -1).reshape(-1, 3),
    "circle": np.stack([np.cos(np.arange(3000) * 2 * np.pi / 3000), np.sin(np.arange(3000) * 2 * np.pi / 3000)], 1),
    "copies": normal[:50].repeat(60, axis=0),
    "one far away": np.concatenate([normal[:2000], 1e6 * normal[:1]]),
    "all sizes": normal[:2000] * np.logspace(-25, 25, 2000)[:, None],
    "one dimension": normal[:3000, :1],
    "float16": normal[:2000].astype(np.float16),
    "integers": rng("integers").integers(-3, 4, (3000, 6)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("pool", [64, 2048])
def test_indices_are_those_of_the_definition(name, pool):
    X = CASES[name]
    ours, wanted = greedy_coreset(X, 250, first=11, pool=pool), plain(X, 250, 11)
    step = np.flatnonzero(ours != wanted)
    assert not len(step), f"{name}: differs from step {step[0]} on, {ours[step[0]]} for {wanted[step[0]]}"


@settings(max_examples=60, deadline=None)
@given(npst.arrays(np.float32, st.tuples(st.integers(1, 30), st.integers(1, 5)),
        elements=st.floats(-100, 100, width=16) | st.integers(-2, 2).map(float)),
    st.integers(1, 40), st.integers(0, 29), st.sampled_from([1, 3, 2048]))
def test_any_small_set(X, count, first, pool):
    first %= len(X)
    ours = greedy_coreset(X, count, first=first, pool=pool)
    assert len(ours) == min(count, len(X)) == len(set(ours.tolist())) and ours[0] == first
    distances = [radius(X.astype(np.float64), ours[:k]) for k in range(1, len(ours) + 1)]
    assert (np.diff(distances) <= 0).all()
    if distances[-1] > 0: assert (ours == plain(X, count, first)).all()


@settings(max_examples=25, deadline=None)
@given(npst.arrays(np.float64, st.tuples(st.integers(4, 9), st.integers(1, 3)), elements=st.floats(-10, 10)),
    st.integers(1, 3), st.integers(0, 8))
def test_covers_no_worse_than_twice_the_optimum(X, count, first):
    best = min(radius(X, subset) for subset in itertools.combinations(range(len(X)), count))
    assert radius(X, greedy_coreset(X, count, first=first % len(X))) <= 2 * best * (1 + 1e-9) + 1e-12


def test_a_prefix_is_a_smaller_coreset_and_the_seed_decides_the_first():
    assert (greedy_coreset(normal, 200, seed=5)[:50] == greedy_coreset(normal, 50, seed=5)).all()
    assert len({int(greedy_coreset(normal, 1, seed=seed)[0]) for seed in range(5)}) == 5
    assert (greedy_coreset(torch.from_numpy(normal), 50) == greedy_coreset(normal, 50)).all()


def test_threads_do_not_change_the_choice():
    one = greedy_coreset(normal, 150, first=0)
    torch.set_num_threads(2)
    assert (greedy_coreset(normal, 150, first=0) == one).all()


def test_constant_and_tiny_sets():
    same = np.full((100, 4), 7.5, np.float32)
    assert list(greedy_coreset(same, 5, first=3)) == [3, 0, 1, 2, 4]
    assert list(greedy_coreset(same[:1], 5)) == [0]
    assert sorted(greedy_coreset(normal[:6], 100)) == [0, 1, 2, 3, 4, 5]


def test_far_fewer_distances_than_pairs_on_clustered_data(monkeypatch):
    computed, distances = [], coreset._distances
    monkeypatch.setattr(coreset, "_distances",
        lambda bank, i, a, b: computed.append(len(i) * (b - a)) or distances(bank, i, a, b))
    spread = rng("spread").uniform(0.05, 1, (6000, 1)).astype(np.float32)
    greedy_coreset(normal[:40].repeat(150, axis=0) * 4 + normal * spread, 400, first=0)
    assert sum(computed) < 0.5 * 6000 * 400, f"{sum(computed) / 6000 / 400:.0%} of all pairs"


def test_memory_stays_bounded(monkeypatch):
    "The largest block of distances is 2^22 numbers, whatever the sizes; numpy's own memory is a few bytes a vector."
    largest, distances = [0], coreset._distances
    def watched(bank, i, a, b):
        largest[0] = max(largest[0], len(i) * max(b - a, bank.Z.shape[1]))
        return distances(bank, i, a, b)
    monkeypatch.setattr(coreset, "_distances", watched)
    X = np.tile(normal, (20, 1))[:, :8].copy()                          # 120,000 vectors
    tracemalloc.start()
    greedy_coreset(X, 300, first=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (largest[0] <= 2 ** 22
        and peak < 200 * len(X)), f"{largest[0]:,} numbers in a block, {peak / len(X):.0f} bytes a vector"


@pytest.mark.parametrize("X", [np.array([[1.0, np.nan], [0, 0]]), np.array([[np.inf, 0], [0, 0]]),
    np.zeros((0, 3)), np.zeros(4)])
def test_what_cannot_be_covered_is_refused(X):
    with pytest.raises(UserError): greedy_coreset(X, 1)


def test_sizes():
    assert coreset_size(100_000) == 1500 and coreset_size(100_000, ratio=0.01) == 1000
    assert coreset_size(100_000, cap=0, ratio=0.1) == 10_000
    assert coreset_size(5, ratio=0.01) == 1 and coreset_size(5) == 5 and coreset_size(5, cap=0) == 5
    for wrong in ({"cap": -1}, {"ratio": 1.5}, {"ratio": -0.1}):
        with pytest.raises(UserError): coreset_size(10, **wrong)


def test_projection_is_seeded_and_leaves_narrow_vectors_alone():
    assert torch.equal(random_projection(normal, 16, seed=1), random_projection(normal, 16, seed=1))
    assert not torch.equal(random_projection(normal, 16, seed=1), random_projection(normal, 16, seed=2))
    assert random_projection(normal, 64).shape == (6000, 64) and np.array_equal(random_projection(normal, 128), normal)


@pytest.mark.parametrize("first", [-1, 30, 99])
def test_a_first_vector_that_is_not_there_is_refused(first):
    with pytest.raises(UserError, match=f"0 to 29, not with {first}"):
        greedy_coreset(rng("first").standard_normal((30, 3)), 5, first=first)
