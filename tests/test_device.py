"""Every detector on a device that is not the CPU.

No GPU is at hand, so the device is emulated: it refuses what cuda and mps refuse."""
import sys

import numpy as np
import pytest
import torch

from elsewhere import elsewhere
from test_every_detector import NAMES, image_set, small
from thesis_ad.data.datasets import ImageSet
from thesis_ad.features.backbones import kept_features
from thesis_ad.models.detector import Detector, predict_set

VARIANTS = {
    "patchcore, mean of squared distances": ("patchcore", {"score": "mean_knn"}),
    "patchcore, projected": ("patchcore", {"projection": 32}),
    "patchcore, unit lengths and margin": ("patchcore", {"lengths": "unit", "margin": 32}),
    "patchcore, faiss": ("patchcore", {"search": "faiss"}),
    "patchcore, tiles": ("patchcore", {"canvas": (0,)}),
    "patchcore, native aspect": ("patchcore", {"native_aspect": True}),
    "dfr, cropped": ("dfr", {"level": False}), "dfr, margin": ("dfr", {"margin": 32}),
    "dfr, whole maps": ("dfr", {"training": "maps"}), "dfr, whole border": ("dfr", {"level": False, "crop": "0"}),
    "efficientad, distilled teacher": ("efficientad", {"teacher": "distilled", "teacher_steps": 2}),
"efficientad, mean map": ("efficientad", {"reference": "mean"}),
}
CASES = {name: (name, {}) for name in NAMES} | VARIANTS


@pytest.fixture
def device(monkeypatch):
    "The emulated device, on which every detector now is."
    with elsewhere() as device:
        for name, module in list(sys.modules.items()):
            if name.startswith("thesis_ad") and hasattr(module, "resolve_device"):
                monkeypatch.setattr(module, "resolve_device", lambda name="auto": device)
        yield device


def test_the_device_refuses_what_a_device_refuses(device):
    there = torch.ones(2, 2).to(device)
    assert there.device == device and (there + 1).sum().item() == 8 and there.cpu().numpy().sum() == 4
    with pytest.raises(RuntimeError, match="on the CPU"): there + torch.ones(2, 2)
    with pytest.raises(TypeError, match="float64"): there.double()
    with pytest.raises((RuntimeError, TypeError)): there.numpy()
    layer = torch.nn.Linear(2, 1).to(device)
    layer(there).sum().backward()
    assert layer.weight.grad.device == device


@pytest.mark.parametrize("case", CASES)
def test_fits_scores_and_is_loaded_again(case, device, tmp_path):
    name, settings = CASES[case]
    train, held = ImageSet.from_arrays(image_set(4)), ImageSet.from_arrays(image_set(3, "held"))
    test = ImageSet.from_arrays(np.concatenate([image_set(1, "ok"), image_set(1, "nok", defect=True)]), labels=[0, 1])
    with kept_features(): detector = small(name, **settings).fit(train, held)
    scores, maps = predict_set(detector, test)
    assert np.isfinite(scores).all() and (maps is None or all(heat.shape == (80, 120) for heat in maps))
    again = Detector.load(detector.save(tmp_path / "bundle"))
    assert (predict_set(again, test)[0] == scores).all(), "a bundle gives other scores on the device it is loaded to"


@pytest.mark.parametrize("name", [name for name in NAMES if name in ("patchcore", "padim", "gaussian", "global_knn")])
def test_what_is_not_trained_is_the_same_on_the_cpu(name, device, monkeypatch):
    train, test = ImageSet.from_arrays(image_set(4)), ImageSet.from_arrays(image_set(2, "ok"))
    there = predict_set(small(name).fit(train), test)[0]
    monkeypatch.undo()
    assert np.allclose(predict_set(small(name).fit(train), test)[0], there, rtol=1e-4)
