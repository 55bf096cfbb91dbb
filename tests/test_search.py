"""Exact nearest neighbours: both ways equal brute force in float64."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as npst

from thesis_ad.features import search
from thesis_ad.features.search import NearestNeighbours
from thesis_ad.settings import UserError, rng


WAYS = ["float32"] + ["faiss"] * bool(search.importlib.util.find_spec("faiss"))


def brute(x, bank, k):
    "float64 differences; equal distances by index."
    distance, index = ((x[:, None].double() - bank[None].double()) ** 2).sum(-1).sort(dim=1, stable=True)
    return distance[:, :k].sqrt(), index[:, :k]


def vectors(key, shape, shift=0.0):
    return torch.from_numpy(rng("search", key).standard_normal(shape).astype(np.float32)) + shift


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("k", [1, 2, 9])
@pytest.mark.parametrize("shift", [0.0, 50.0, 1000.0])
@pytest.mark.parametrize("shape", [(1000, 40), (9, 3), (300, 257)])
def test_equal_to_brute_force(way, k, shift, shape):
    bank, x = vectors("bank", shape, shift), vectors("x", (200, shape[1]), shift)
    distance, index = NearestNeighbours(bank, way)(x, k)
    wanted, where = brute(x, bank, k)
    assert distance.dtype == torch.float32 and torch.allclose(distance.double(), wanted, rtol=1e-5)
    same = (index == where).float().mean()
    assert same == 1, f"{same:.2%} of the indices"


@settings(max_examples=40, deadline=None)
@given(npst.arrays(np.float32, st.tuples(st.integers(1, 25), st.just(3)), elements=st.integers(-3, 3).map(float)),
       npst.arrays(np.float32, st.tuples(st.integers(1, 6), st.just(3)), elements=st.integers(-3, 3).map(float)),
       st.integers(1, 25), st.sampled_from(WAYS))
def test_ties_go_to_the_lowest_index(bank, x, k, way):
    bank, x, k = torch.from_numpy(bank), torch.from_numpy(x), min(k, len(bank))
    distance, index = NearestNeighbours(bank, way)(x, k)
    wanted, where = brute(x, bank, k)
    assert torch.equal(index, where) and torch.allclose(distance.double(), wanted, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_a_bank_vector_finds_itself_at_distance_zero(way):
    bank = vectors("self", (700, 30), 20.0)
    distance, index = NearestNeighbours(bank, way)(bank)
    assert (distance == 0).all() and torch.equal(index[:, 0], torch.arange(700))


def test_blocks_do_not_show(monkeypatch):
    bank, x = vectors("bank", (5000, 8)), vectors("x", (1000, 8))       # 2^19 / 5000: blocks of 104 queries
    neighbours = NearestNeighbours(bank)
    assert torch.equal(neighbours(x, 3)[1], torch.cat([neighbours(one[None], 3)[1] for one in x]))


def test_the_error_bounds_are_bounds():
    for scale, shift in ((1, 0), (1, 300), (1e4, 0), (1e-4, 1)):
        bank, x = scale * vectors("bank", (400, 90)) + shift, scale * 2 * vectors("x", (100, 90)) + shift
        products = search._Products(bank)
        S, error = products(x)
        c, z = bank.double() - products.mean.double(), x.double() - products.mean.double()
        off = (S.double() - ((c ** 2).sum(1) - 2 * z @ c.T)).abs().amax(1)
        assert (off
            <= error).all(), f"scale {scale}, shift {shift}: off by {float((off / error).max()):.2f} of the bound"
        if "faiss" in WAYS:
            square, found = search._faiss_index(products.c).search((x - products.mean).numpy(), 12)
            true = (z[:, None] - c[torch.from_numpy(found)]).square().sum(2)
            assert ((true - torch.from_numpy(square)).abs().amax(1)
                <= error).all(), f"scale {scale}, shift {shift}: FAISS"


def test_auto_takes_faiss_on_a_processor_that_has_it(monkeypatch):
    for there in (True, False):
        monkeypatch.setattr(search.importlib.util, "find_spec", lambda name: there or None)
        for shape in ((1500, 152), (64_000, 1536)):
            assert search.choose_way("auto", torch.empty(shape, device="meta")) == "float32"
        assert search.choose_way("auto", torch.empty(1500, 152)) == ("faiss" if there else "float32")


@pytest.mark.parametrize("family", ["random", "copies", "lattice", "far away", "one far vector", "scales"])
@pytest.mark.parametrize("k", [1, 9])
def test_all_ways_give_the_same_bits_in_any_batch(family, k):
    bank, x = vectors("bank", (2000, 24)), vectors("x", (300, 24))
    if family == "copies": bank = bank[:100].repeat(20, 1)
    if family == "lattice": bank, x = bank.round(), x.round()
    if family == "far away": bank, x = bank + 1e4, x + 1e4
    if family == "one far vector": bank[7] = 1e6
    if family == "scales":
        bank, x = bank * torch.logspace(-4, 4, 2000)[:, None], x * torch.logspace(-4, 4, 300)[:, None]
    wanted, where = brute(x, bank, k)
    found = [NearestNeighbours(bank, way) for way in WAYS]
    answers = [one(x, k) for one in found] + [tuple(map(torch.cat, zip(*(one(part, k) for part in x.split(7)))))
        for one in found]
    for distance, index in answers:
        assert torch.equal(distance, answers[0][0]) and torch.equal(index, answers[0][1])
        assert torch.allclose(distance.double(), wanted, rtol=1e-5)
        assert (index == where).float().mean() > 0.99       # two distances may be equal in float32


def test_differences_are_taken_in_portions_that_fit_into_the_cache(monkeypatch):
    "And the portions change no bit."
    bank, x = vectors("bank", (300, 1536)), vectors("x", (200, 1536))
    rows, columns = torch.arange(200).repeat_interleave(12), torch.arange(12).repeat(200)
    whole, sizes = search._measure(x, bank, rows, columns, 3, numbers=2**30), []
    square = torch.Tensor.square_
    monkeypatch.setattr(torch.Tensor, "square_", lambda self: sizes.append(self.numel()) or square(self))
    again = search._measure(x, bank, rows, columns, 3)
    assert torch.equal(whole[0], again[0]) and torch.equal(whole[1], again[1]) and max(sizes) <= 2**17
    assert sum(sizes) == 2400 * 1536


def test_faiss_falls_back_where_its_list_may_have_left_a_neighbour_out():
    if "faiss" not in WAYS: pytest.skip("faiss is not installed")
    # 200 copies of each: no list of 12 holds all that tie
    bank, x = vectors("bank", (3, 16)).repeat(200, 1), vectors("x", (50, 16))
    distance, index = NearestNeighbours(bank, "faiss")(x, 4)
    wanted, where = brute(x, bank, 4)
    assert torch.equal(index, where) and torch.allclose(distance.double(), wanted, rtol=1e-5)


def test_what_faiss_leaves_is_searched_in_blocks_of_bounded_size(monkeypatch):
    if "faiss" not in WAYS: pytest.skip("faiss is not installed")
    bank, seen = vectors("bank", (3, 4)).repeat(50_000, 1), []
    shortlist = search._shortlist
    monkeypatch.setattr(search, "_shortlist", lambda S, error, k: seen.append(S.numel()) or shortlist(S, error, k))
    NearestNeighbours(bank, "faiss")(vectors("x", (300, 4)), 4)
    assert len(seen) > 1 and max(seen) <= 2**23


def test_faiss_says_what_to_install(monkeypatch):
    monkeypatch.setattr(search.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="faiss-cpu"): NearestNeighbours(vectors("bank", (5, 2)), "faiss")


def test_what_has_no_answer_is_refused():
    bank = vectors("bank", (5, 2))
    for call in (lambda: NearestNeighbours(bank)(bank, 6), lambda: NearestNeighbours(bank)(bank, 0),
            lambda: NearestNeighbours(bank * np.nan), lambda: NearestNeighbours(bank)(bank / 0),
            lambda: NearestNeighbours(bank[:0]), lambda: NearestNeighbours(bank, "fast")):
        with pytest.raises(UserError): call()
    distance, index = NearestNeighbours(bank)(bank[:0], 2)
    assert distance.shape == index.shape == (0, 2)
