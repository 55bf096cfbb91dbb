"""Fixtures shared by the tests: one thread, a cache of their own, and small datasets on disk."""
import atexit
import os
import shutil
import tempfile

# Set before torch is imported, and for every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if "THESIS_AD_CACHE" not in os.environ:
    os.environ["THESIS_AD_CACHE"] = tempfile.mkdtemp(prefix="thesis_ad_test_cache_")
    atexit.register(shutil.rmtree, os.environ["THESIS_AD_CACHE"], ignore_errors=True)

import numpy as np
import pytest
from PIL import Image

from thesis_ad.settings import pin_threads, rng


# files of tests that take minutes, the longest first: two processes then end at about the same time
SLOW = ("test_reproduce", "test_cluster", "test_together", "test_cli", "test_study", "test_dashboard", "test_export",
    "test_every_detector", "test_no_leak")


def pytest_collection_modifyitems(items):
    names = {name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: names.get(item.path.stem, len(SLOW)))          # stable: the rest keeps its order


@pytest.fixture(autouse=True)
def one_thread():
    pin_threads(1)


def write_image(path, generator, square=False, shape=(72, 96)):
    "A grey gradient with noise; with a bright square if asked. Returns the square's mask."
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.linspace(80, 140, shape[1])[None, :, None] + 6 * generator.standard_normal((*shape, 3))
    mask = np.zeros(shape, bool)
    if square:
        mask[20:36, 40:60] = True
        image[mask] += 80
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
    return mask


@pytest.fixture
def mvtec_folder(tmp_path):
    "A small dataset in MVTec layout: 12 train, 6 OK and 6 NOK test images with masks."
    root, generator = tmp_path / "part", rng("mvtec_folder")
    for i in range(12): write_image(root / f"train/good/{i:03d}.png", generator)
    for i in range(6): write_image(root / f"test/good/{i:03d}.png", generator)
    for i in range(6):
        mask = write_image(root / f"test/dent/{i:03d}.png", generator, square=True)
        target = root / f"ground_truth/dent/{i:03d}_mask.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask.astype(np.uint8) * 255).save(target)
    return root
