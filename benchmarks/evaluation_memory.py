"""Is the memory of `thesis-ad evaluate` flat in the number of test images?

Peak memory and processor time, by the number of images.

    python benchmarks/evaluation_memory.py --images 20 100 300

Images of five megapixels (2592 x 1944, noise over a gradient, half of them with a bright square and its mask) are
written into a temporary folder; the detector `gaussian` is fitted on ten small ones, and `thesis-ad evaluate` runs on
each number of them in a process of its own. `peak_mib` is the largest resident memory of that process.
Kept in full, 300 such images would take 16 GB.

Measured once on two AVX2 cores: 1,730 MiB and 18 processor seconds for 20 images, 1,806 MiB and 129 seconds for 300.
"""
import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from thesis_ad.data.datasets import open_dataset
from thesis_ad.models.detector import create
from thesis_ad.settings import pin_threads, rng

SHAPE = (1944, 2592)        # (height, width), five megapixels


def write_image(path, i, shape, square=False):
    "A grey gradient with noise, 8 bits; with a bright square if asked, and its mask beside it in MVTec layout."
    image = np.linspace(80, 140, shape[1], dtype=np.float32) + rng("memory", i).normal(0, 6, shape).astype(np.float32)
    mask = np.zeros(shape, np.uint8)
    if square:
        mask[shape[0] // 3:shape[0] // 2, shape[1] // 3:shape[1] // 2] = 255
        image += 0.2 * mask
        target = path.parents[2] / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), mask)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image.clip(0, 255).astype(np.uint8))


def measure(bundle, root, count):
    """`thesis-ad evaluate` on the first `count` test images of `root`;
    (seconds of processor time, peak MiB, what it printed)."""
    some = root.parent / f"data{count}"
    for path in sorted(root.rglob("*.jpg")):
        stem, split = path.stem, path.relative_to(root).parts[0]
        if split == "test" and int(stem) >= count: continue
        mask = root / "ground_truth" / path.parent.name / f"{stem}_mask.png"
        for file in (path, mask) if mask.exists() else (path,):
            target = some / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, target)
    command = [sys.executable, "-c", "from thesis_ad.cli import main; main()", "evaluate", str(bundle), str(some), "-o",
        str(root.parent / f"results{count}")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"})
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status: raise SystemExit(said)
    return round(usage.ru_utime + usage.ru_stime, 1), round(usage.ru_maxrss / 1024), said


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", type=int, default=[20, 100, 300])
    options = parser.parse_args()
    pin_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        for i in range(10): write_image(root / f"train/good/{i}.jpg", i, (486, 648))
        for i in range(max(options.images)):
            write_image(root / f"test/{'square' if i % 2 else 'good'}/{i}.jpg", 100 + i, SHAPE, i % 2)
        bundle = Path(folder) / "bundle"
        create("gaussian", size=(128, 128), device="cpu").fit(open_dataset(str(root)).train).save(bundle)
        for count in options.images:
            seconds, peak, said = measure(bundle, root, count)
            print(said, {"images": count, "megapixels": round(count * np.prod(SHAPE) / 1e6), "seconds": seconds,
                "peak_mib": peak}, flush=True)


if __name__ == "__main__":
    main()
