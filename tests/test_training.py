"""The training loop: rates, when it ends, what it keeps, its batches, and fits that are killed and go on."""
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import write_image
from hypothesis import given, settings as budget, strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from thesis_ad import cli
from thesis_ad.data.datasets import ImageSet
from thesis_ad.models import training
from thesis_ad.models.detector import Detector, checkpoint_place, create
from thesis_ad.models.training import (DECIDES, GAIN, LOOKS, SCHEDULES, Trained, cooling_length, hold_out,
    image_batches, rate, row_batches, train_network)
from thesis_ad.settings import UserError, rng

USED_UP, FLAT = "the budget was used up", "the held-out loss no longer fell"


@dataclass(kw_only=True)
class Toy(Trained, Detector):
    "Settings of a training without a method around it."
    method = "toy"


def toy(**settings): return Toy(device="cpu", **settings)


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- the rate ----

@budget(deadline=None)
@given(st.sampled_from(SCHEDULES), st.integers(1, 1000), st.data())
def test_rates_are_fractions_that_warm_up_and_fall_where_their_schedule_says_so(schedule, steps, data):
    cooling = data.draw(st.none() | st.integers(1, steps)) if schedule == "plateau" else None
    warm, ends = max(1, round(0.05 * steps)), steps if cooling is None else cooling + cooling_length(cooling)
    values = np.array([rate(schedule, step, steps, None if cooling is None or step < cooling else cooling)
        for step in range(ends)])
    assert ((values >= 0).all() and (values <= 1).all() and values[0] > 0
        and values[-1] > 0), "an update without a rate teaches nothing"
    if schedule == "constant": assert (values == 1).all()
    if schedule == "plateau":
        fall = ends if cooling is None else cooling
        assert (np.diff(values[:min(warm, fall)]) > 0).all() and (values[warm:fall] == 1).all()
        assert (np.diff(values[max(fall, warm):]) < 0).all()
        if cooling is not None: assert rate(schedule, ends, steps, cooling) == 0


@pytest.mark.parametrize("steps", [1, 7, 200])
def test_cosine_is_torchs_after_its_warm_up(steps):
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs, warm = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps), max(1, round(0.05 * steps))
    for step in range(steps):
        assert math.isclose(rate("cosine", step, steps),
            min(1, (step + 1) / warm) * optimiser.param_groups[0]["lr"], abs_tol=1e-9)
        optimiser.step()
        theirs.step()


# ---- when it ends and what it keeps ----

class Falling(nn.Module):
    "One weight that every update changes; its value tells after which one it was kept."
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))


def trained(d, steps, held):
    """(facts, network, weight after each look) of a training whose held-out losses are `held` in turn, over and over;
    None: no held-out set."""
    network, seen = Falling(), []
    def look():
        seen.append(network.w.item())
        return held[(len(seen) - 1) % len(held)]
    return (train_network(network, lambda batch, step: network.w.sum(), lambda step: None, d, steps,
        {} if held is None else {DECIDES: look}, 1), network, seen)


def flat_at(losses, patience):
    """Index of the look at which `patience` looks in a row had not been lower than the last improvement by GAIN;
    None: never."""
    mark, waited = math.inf, 0
    for i, value in enumerate(losses):
        if value < (1 - GAIN) * mark: mark, waited = value, 0
        else: waited += 1
        if patience and waited >= patience: return i


@budget(max_examples=50, deadline=None)
@given(st.sampled_from(SCHEDULES), st.integers(1, 90), st.integers(0, 4),
    st.lists(st.floats(0.01, 10), min_size=1, max_size=50), st.integers(0, 3))
def test_a_training_ends_in_time_and_keeps_the_weights_of_its_lowest_held_out_loss(schedule, steps,
        patience, held, seed):
    facts, network, seen = trained(toy(schedule=schedule, patience=patience, seed=seed), steps, held)
    looks, losses, every = facts["steps"], facts[DECIDES], max(1, steps // LOOKS)
    assert looks == sorted(set(looks)) and looks[-1] == facts["updates"] <= steps
    assert all(step % every == 0 for step in looks[:-1])
    lowest = int(np.argmin(losses))
    assert (facts["kept_update"] == looks[lowest]
        and network.w.item() == seen[lowest]), "the kept weights are not those of the lowest held-out loss"
    flat = flat_at([loss for step, loss in zip(looks, losses) if step % every == 0], patience)
    regular = [step for step in looks if step % every == 0]
    if schedule == "constant":
        wanted = (steps, USED_UP) if flat is None else (regular[flat], FLAT)
    elif schedule == "cosine": wanted = steps, USED_UP
    else:
        last = max(1, math.floor(steps / 1.2))  # at the latest, so that the fall of the rate fits into the budget
        falls = last if flat is None else min(last, regular[flat])
        wanted = (min(steps, falls + cooling_length(falls)),
            FLAT if flat is not None and regular[flat] <= last else USED_UP)
    assert (facts["updates"], facts["stopped"]) == wanted


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_falling_loss_uses_the_budget_up_and_a_constant_one_is_a_plateau(schedule):
    falling, *_ = trained(toy(schedule=schedule, patience=3), 120, [0.99 ** n for n in range(60)])
    level, *_ = trained(toy(schedule=schedule, patience=3), 120, [1.0])
    every, waited = 120 // LOOKS, 4 * (120 // LOOKS)          # the first look and three without a gain
    assert falling["updates"] == 120 and falling["stopped"] == USED_UP and falling["kept_update"] == 120
    wanted = {"plateau": waited + cooling_length(waited), "constant": waited, "cosine": 120}[schedule]
    assert level["updates"] == wanted and (level["stopped"] == FLAT) == (schedule != "cosine")
    assert level["kept_update"] == every


def test_without_held_out_images_the_whole_budget_runs_and_the_last_weights_stay():
    for schedule in SCHEDULES:
        facts, network, _ = trained(toy(schedule=schedule, patience=1), 30, None)
        again, further, seen = trained(toy(schedule=schedule, patience=0), 30, [1.0])
        assert facts["updates"] == facts["kept_update"] == 30 and facts["stopped"] == USED_UP and DECIDES not in facts
        assert network.w.item() == seen[-1] != further.w.item() == seen[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_held_out_loss_that_is_no_number_ends_the_training_with_a_sentence(bad):
    with pytest.raises(UserError, match="toy diverged at update 2: .*learning_rate"):
        trained(toy(patience=0), 4, [2.0, bad, 3.0])


# ---- what is held out ----

@budget(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(0, 9))
def test_half_of_the_images_at_least_are_learned_from_however_unequal_the_groups(counts, seed):
    groups = np.repeat([f"part {i}" for i in range(len(counts))], counts)
    images = ImageSet.from_arrays(np.zeros((len(groups), 1, 1, 3), np.uint8), groups=groups)
    learned, held = hold_out(images, seed)
    if len(counts) == 1:
        assert (len(learned) == len(held) == len(groups)
            and toy(seed=seed).split(images)[1] is None), "a held-out set of images that were learned"
        return
    assert len(learned) + len(held) == len(groups) and not set(learned.groups) & set(held.groups)
    assert 0 < len(held) <= len(groups) / 2, f"{len(held)} of {len(groups)} images are held out"
    small = [n for n in counts if n <= len(groups) * 0.3]
    if len(small) == len(counts):
        assert len(held) >= 0.2 * len(groups) - 1e-9, "groups were left that would still have gone in"
    assert toy(held_out=0.0).split(images) == (images, None)


# ---- batches ----

@budget(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 12))
def test_every_epoch_shows_every_image_and_a_batch_depends_on_its_number_alone(n, size, steps):
    images = ImageSet.from_arrays(np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8))
    batch = image_batches(images, size)
    drawn = [(255 * batch(step)[1][:, 0, 0, 0]).round().int().tolist() for step in range(steps)]
    assert all(list(batch(step)[0]) == drawn[step]
        for step in reversed(range(steps))), "indices and images of a batch asked for again"
    size = min(size, max(n, 4))                     # no batch is larger than the set, or than four
    per_epoch = -(-n // size)
    assert all(len(one) == size for one in drawn)
    for start in range(0, steps - per_epoch + 1, per_epoch):
        assert set(sum(drawn[start:start + per_epoch], [])) == set(range(n))


def test_rows_are_drawn_by_the_number_of_the_batch():
    rows = torch.arange(50.)[:, None].half()
    drawn = [row_batches(rows, 8, seed=0)(step) for step in range(30)]
    assert drawn[0].shape == (8, 1) and drawn[0].dtype == torch.float32
    assert set(torch.cat(drawn).flatten().tolist()) <= set(range(50)) and len(torch.cat(drawn).unique()) > 45
    again, other = row_batches(rows, 8, seed=0), row_batches(rows, 8, seed=1)
    assert all(torch.equal(drawn[step], again(step)) for step in reversed(range(30)))
    assert not torch.equal(other(0), again(0))


def test_budget_is_steps_or_epochs():
    images = ImageSet.from_arrays(np.zeros((9, 1, 1, 3), np.uint8))
    assert toy(steps=7).budget(images) == 7 and toy(epochs=5, batch=4).budget(images) == 15
    assert toy(epochs=5, batch=20).budget(images) == 5


# ---- one update after another ----

def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3)).to(memory_format=torch.channels_last)


def fitted(d, steps=8, looks=(), interrupted_at=None):
    """(facts, state) of `small_network` trained with `d`; `looks`: names that are watched;
    `interrupted_at`: number of the update at which a person ends it."""
    network, x = small_network(), torch.rand(6, 4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    def look():
        assert not network.training and not torch.is_grad_enabled()
        torch.rand(3)                               # a look may draw
        return network(100 * x[0]).square().mean()
    def loss(batch, step):
        if step == interrupted_at: raise KeyboardInterrupt
        return network(batch).square().mean()
    facts = train_network(network, loss, lambda step: x[step % 6], d, steps, {name: look for name in looks}, 4)
    return facts, network.state_dict()


def test_looking_changes_nothing():
    "Neither weights nor the statistics of batch normalisation nor what is drawn, inside the training and outside."
    facts, without = fitted(toy())
    watched, looked_at = fitted(toy(), looks=("loss_nok",))
    torch.manual_seed(0)                            # as `small_network` leaves it
    small_network()
    left = torch.random.get_rng_state()
    fitted(toy(), looks=("loss_nok",))
    assert torch.equal(torch.random.get_rng_state(), left), "the process's generator was moved"
    assert same(without, looked_at) and facts["loss_train"] == watched["loss_train"] and len(watched["loss_nok"]) == 8


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_one_sentence(bad):
    network = nn.Linear(1, 1)
    def loss(batch, step): return network(torch.ones(2, 1)).mean() * (bad if step == 2 else 1)
    with pytest.raises(UserError, match="^toy diverged at update 3: [^\n]*; try a learning_rate below 0.5$"):
        train_network(network, loss, lambda step: None, toy(learning_rate=0.5), 9, {}, 1)


@pytest.mark.parametrize("wrong", [dict(steps=0), dict(epochs=-1), dict(batch=0), dict(patience=-1), dict(held_out=0.6),
    dict(held_out=-0.1), dict(learning_rate=0.0), dict(learning_rate=math.nan), dict(weight_decay=-1.0),
    dict(schedule="plateaux"), dict(optimiser="sgd")])
def test_settings_that_no_training_could_use_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))): toy(**wrong)


# ---- interruptions ----

@pytest.fixture
def often(monkeypatch): monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1)


def kept(d, path):
    d.checkpoint = path
    return d


@pytest.mark.parametrize("schedule, optimiser, at",
    [("plateau", "adam", 1), ("plateau", "adamw", 5), ("cosine", "adamw", 7), ("constant", "adam", 3)])
def test_a_training_that_was_ended_goes_on_as_if_nothing_had_happened(schedule, optimiser, at, tmp_path, often):
    settings = dict(schedule=schedule, optimiser=optimiser, weight_decay=0.1, patience=4)
    whole = fitted(toy(**settings), looks=(DECIDES, "loss_nok"))
    with pytest.raises(KeyboardInterrupt):
        fitted(kept(toy(**settings), tmp_path / "one"), looks=(DECIDES, "loss_nok"), interrupted_at=at)
    with safe_open(tmp_path / "one.toy.safetensors", "pt") as file:
        assert json.loads(file.metadata()["progress"])["step"] == at
    # an update before the end is not made twice
    again = fitted(kept(toy(**settings), tmp_path / "one"), looks=(DECIDES, "loss_nok"), interrupted_at=at - 1)
    assert (again[0] == whole[0] and same(again[1], whole[1])
        and not list(tmp_path.iterdir())), "a finished training leaves its checkpoint"


def spoiled(path, how):
    "Write over the checkpoint at `path` with something that is none of this training's."
    tensors, blob = load_file(path), path.read_bytes()
    with safe_open(path, "pt") as file: progress = file.metadata()
    if how == "garbage": path.write_bytes(rng("garbage").bytes(500))
    if how == "cut off": path.write_bytes(blob[:-40])
    if how == "empty": path.write_bytes(b"")
    if how == "without progress": save_file(tensors, path)
    if how == "progress of another version":
        save_file(tensors, path, {"progress": json.dumps(json.loads(progress["progress"]) | {"more": 1})})
    if how == "another network":
        save_file({name.replace("0.", "first."): t for name, t in tensors.items()}, path, progress)
    if how == "a wider network":
        save_file({name: torch.cat([t, t]) if t.dim() else t for name, t in tensors.items()
            if name != "network.0.bias"} | {"network.0.bias": 1 + tensors["network.0.bias"]}, path, progress)
    if how == "best weights of another":
        save_file({name: torch.ones(7) if name.startswith("best.") else t + 1 for name, t in tensors.items()}, path,
            progress)
    if how == "another optimiser":
        save_file({name: torch.ones(7) if name.startswith("optimiser.") else t + 1 for name, t in tensors.items()},
            path, progress)
    if how == "no optimiser":
        save_file({name: t + 1 for name, t in tensors.items() if not name.startswith("optimiser.")}, path, progress)


@pytest.mark.parametrize("how", ["garbage", "cut off", "empty", "without progress", "progress of another version",
    "another network", "a wider network", "best weights of another", "another optimiser", "no optimiser"])
def test_a_checkpoint_that_is_damaged_or_not_of_this_training_changes_nothing(how, tmp_path, often):
    with pytest.raises(KeyboardInterrupt): fitted(kept(toy(), tmp_path / "one"), looks=(DECIDES,), interrupted_at=4)
    spoiled(tmp_path / "one.toy.safetensors", how)
    whole, again = fitted(toy(), looks=(DECIDES,)), fitted(kept(toy(), tmp_path / "one"), looks=(DECIDES,))
    assert again[0] == whole[0] and same(again[1], whole[1])


def test_a_checkpoint_that_cannot_be_written_stops_nothing(tmp_path, often):
    (tmp_path / "file").write_text("no folder")
    whole, again = fitted(toy()), fitted(kept(toy(), tmp_path / "file" / "one"))
    assert again[0] == whole[0] and same(again[1], whole[1])


def test_what_determines_a_fit_determines_where_its_checkpoint_is():
    train, other = (ImageSet.from_arrays(np.full((2, 4, 4, 3), grey, np.uint8)) for grey in (1, 2))
    places = [checkpoint_place(create("autoencoder", **settings), *images)
        for settings, *images in (({}, train), ({}, other), ({}, train, other), ({}, train, train),
            ({"seed": 1}, train), ({"steps": 9}, train), ({"attention": False}, train))]
    assert len(set(places)) == len(places)
    assert checkpoint_place(create("autoencoder", device="cpu"), train, None) == places[0]


KILLED = "import thesis_ad.models.training as t; t.CHECKPOINT_SECONDS = -1; from thesis_ad.cli import main; main()"


def test_a_fit_that_is_killed_is_continued_by_the_same_command(tmp_path, monkeypatch):
    generator, cache = rng("killed"), tmp_path / "cache"
    for i in range(6): write_image(tmp_path / f"part/{i}.png", generator, shape=(40, 48))
    command = ["fit", "dfr", str(tmp_path / "part"), "-o", str(tmp_path / "bundle"), "--device", "cpu"]
    for setting in ("size=32", "cells=8,8", "stages=1", "latent=4", "steps=100", "rows_per_step=64",
            "patience=0", "passes=1"):
        command += ["--set", setting]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *command],
        env=os.environ | {"THESIS_AD_CACHE": str(cache)}, stderr=subprocess.PIPE, text=True)
    while not (found := list((cache / "checkpoints").glob("*.dfr.safetensors"))):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "bundle").exists()
    with safe_open(found[0], "pt") as file: done = json.loads(file.metadata()["progress"])["step"]

    updates, update = [], training._update
    monkeypatch.setattr(training, "_update", lambda *arguments: updates.append(1) or update(*arguments))
    def run(out, folder):
        monkeypatch.setenv("THESIS_AD_CACHE", str(folder))
        updates.clear()
        with pytest.raises(SystemExit) as end:
            cli.main([str(out) if argument == str(tmp_path / "bundle") else argument for argument in command])
        assert not end.value.code
        return len(updates), (out / "tensors.safetensors").read_bytes(), (out / "bundle.json").read_bytes()
    (rest, *again), (every, *undisturbed) = (run(tmp_path / "bundle", cache),
        run(tmp_path / "undisturbed", tmp_path / "other cache"))
    assert 0 < done and done + rest == every == 100, "the fit began again"
    assert again == undisturbed and not found[0].exists()


def test_one_part_leaves_nothing_to_hold_out_and_is_trained_to_the_end():
    images = (120 + 20 * rng("one part").standard_normal((5, 32, 32, 3))).clip(0, 255).astype(np.uint8)
    facts = [create("autoencoder", size=(32, 32), width=4, steps=12, patience=1,
        device="cpu").fit(ImageSet.from_arrays(images, groups=groups)).facts for groups in (["a"] * 5, list("abcde"))]
    assert DECIDES not in facts[0]
    assert (facts[0]["updates"], facts[0]["stopped"], facts[0]["kept_update"]) == (12, USED_UP, 12)
    assert len(facts[1][DECIDES]) == len(facts[1]["steps"]) and facts[1]["updates"] <= 12
