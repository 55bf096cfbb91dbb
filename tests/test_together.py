"""Trainings on two processes (gloo, CPU) and in pieces:
the loss curve and the weights of one process with the whole batch."""
import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from thesis_ad.data.datasets import open_dataset
from thesis_ad.models import training
from thesis_ad.models.detector import create, load_bundle
from thesis_ad.settings import UserError

SCRIPT = """
import json, sys
from thesis_ad.models import together, training
from thesis_ad.models.detector import create
from thesis_ad.data.datasets import open_dataset
from thesis_ad.settings import pin_threads
method, folder, settings, out = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]
pin_threads(1)
together.join("cpu")
training.CHECKPOINT_SECONDS = -1
detector = create(method, device="cpu", **settings).fit(open_dataset(folder).train)
if not together.number(): detector.save(out)
"""


def start(n, *arguments, command=None):
    "`n` processes of SCRIPT, or of the command line, that train together."
    with socket.socket() as probe: probe.bind(("127.0.0.1", 0)); port = probe.getsockname()[1]
    names = os.environ | {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1"}
    command = command or [sys.executable, "-c", SCRIPT]
    return [subprocess.Popen([*command, *map(str, arguments)], env=names | {"RANK": str(i), "LOCAL_RANK": str(i)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for i in range(n)]


def finish(processes):
    said = [one.communicate(timeout=300) for one in processes]
    assert not any(one.returncode for one in processes), said
    return said


# batch normalisation and an augmented image loader
KINDS = {"autoencoder": {"size": [32, 32], "width": 4, "batch": 4, "steps": 12, "augment": True},
         "dfr": {"size": [64, 64], "cells": [16, 16], "rows_per_step": 256, "steps": 20, "augment": False,
             "start": "random", "latent": "8"},
         "stfpm": {"size": [64, 64], "batch": 4, "steps": 6}}


# Adam divides a gradient by its size, so where it is zero but for rounding, as before a normalisation, rounding alone
# moves a weight.
DRIFT = {"autoencoder": 1e-3, "dfr": 1e-3, "stfpm": 5e-2}


@pytest.mark.parametrize("method", KINDS)
def test_two_processes_give_the_loss_curve_and_the_scores_of_one(method, mvtec_folder, tmp_path):
    settings = KINDS[method]
    finish(start(2, method, mvtec_folder, json.dumps(settings), tmp_path / "two"))
    two = load_bundle(tmp_path / "two", "cpu")
    one = create(method, device="cpu", **settings).fit(open_dataset(mvtec_folder).train)
    assert one.facts["steps"] == two.facts["steps"] and one.facts["updates"] == two.facts["updates"] > 5
    for name in ("loss_train", "loss_held_out"):
        if name not in one.facts: continue
        told = name, one.facts[name], two.facts[name]
        # the held-out loss is taken after an update, with running statistics
        first = DRIFT[method] if name == "loss_held_out" else 1e-5
        assert np.allclose(*(facts[name][0] for facts in (one.facts, two.facts)), rtol=first), told
        assert np.allclose(one.facts[name], two.facts[name], rtol=DRIFT[method]), told
    images = open_dataset(mvtec_folder).calibration.view(size=one.input_size)
    assert np.allclose(one.predict(images[0][None])[0], two.predict(images[0][None])[0], rtol=10 * DRIFT[method])


def test_pieces_of_a_batch_give_its_curve_where_nothing_mixes_images(mvtec_folder):
    images = open_dataset(mvtec_folder)
    fits = [create("cae_l1", device="cpu", size=(32, 32), width=4, batch=4, steps=10, accumulate=n).fit(images.train)
        for n in (1, 2, 4)]
    network_mixes = any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        for module in fits[0].network.modules())
    for one in fits[1:]:
        assert one.facts["updates"] == fits[0].facts["updates"]
        close = np.allclose(one.facts["loss_train"], fits[0].facts["loss_train"], rtol=1e-4)
        assert close or network_mixes and np.allclose(one.facts["loss_train"], fits[0].facts["loss_train"], rtol=0.3)


def test_a_linear_network_in_pieces_is_the_same_network():
    from dataclasses import dataclass
    from thesis_ad.models.detector import Detector
    from thesis_ad.models.training import Trained, row_batches, train_network

    @dataclass(kw_only=True)
    class Toy(Trained, Detector):
        method = "toy"

    rows = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    def weights(n):
        torch.manual_seed(1)
        network = torch.nn.Linear(5, 5)
        facts = train_network(network, lambda x, step: (network(x) - x).square().mean(), row_batches(rows, 24),
            Toy(device="cpu", accumulate=n), 40, {}, 24)
        return network.weight.detach(), facts["loss_train"]
    whole, pieces = weights(1), weights(4)
    assert torch.allclose(whole[0], pieces[0], atol=1e-5) and np.allclose(whole[1], pieces[1], rtol=1e-5)
    assert not torch.equal(whole[0], torch.eye(5))


def test_a_batch_that_does_not_divide_is_one_sentence(mvtec_folder):
    with pytest.raises(UserError, match="a batch of 4 does not divide into 1 processes × 3 pieces"):
        create("autoencoder", device="cpu", size=(32, 32), width=4, batch=4, steps=3,
            accumulate=3).fit(open_dataset(mvtec_folder).train)


def test_two_processes_that_are_killed_go_on_where_they_were(mvtec_folder, tmp_path, monkeypatch):
    settings = json.dumps(KINDS["autoencoder"] | {"steps": 60})
    finish(start(2, "autoencoder", mvtec_folder, settings, tmp_path / "whole"))
    monkeypatch.setenv("THESIS_AD_CACHE", str(tmp_path / "cache"))
    both = start(2, "autoencoder", mvtec_folder, settings, tmp_path / "killed")
    while not list((tmp_path / "cache").glob("checkpoints/*.safetensors")): assert both[0].poll() is None
    time.sleep(0.05)            # into the next update
    for one in both: one.kill(); one.communicate()
    assert not (tmp_path / "killed").exists()
    finish(start(2, "autoencoder", mvtec_folder, settings, tmp_path / "killed"))
    whole, killed = (load_bundle(tmp_path / name, "cpu") for name in ("whole", "killed"))
    assert whole.facts == killed.facts
    # a kill may leave a hidden part, which the next run sweeps
    assert not list((tmp_path / "cache/checkpoints").glob("[!.]*"))


def test_fit_from_the_command_line_writes_one_bundle(mvtec_folder, tmp_path):
    command = [sys.executable, "-c", "from thesis_ad.cli import main; main()", "fit", "autoencoder", mvtec_folder,
        "--device", "cpu"]
    settings = [part for name, value in {"size": "32,32", "width": 4, "batch": 4, "steps": 6}.items()
        for part in ("--set", f"{name}={value}")]
    said = finish(start(2, *settings, "-o", tmp_path / "bundle", command=[str(one) for one in command]))
    assert "fitted autoencoder" in said[0][0] and "fitted" not in said[1][0]
    assert load_bundle(tmp_path / "bundle", "cpu").facts["updates"] == 6
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".bundle")]


def test_a_checkpoint_with_a_changed_bit_is_not_continued_from(tmp_path):
    network = torch.nn.Linear(3, 3)
    optimiser = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    training._save(tmp_path / "a.safetensors", network, optimiser, {}, training.Progress(step=3))
    assert training._resume(tmp_path / "a.safetensors", network, optimiser)[0].step == 3
    data = bytearray((tmp_path / "a.safetensors").read_bytes())
    for place in (len(data) - 1, len(data) // 2, 200):
        changed = bytearray(data)
        changed[place] ^= 1
        (tmp_path / "a.safetensors").write_bytes(changed)
        found = training._resume(tmp_path / "a.safetensors", network, optimiser)[0]
        assert found is None, place
