"""Is the memory of `thesis-ad evaluate` flat in the number of test images? Peak memory and processor time, by the number of images.

    python benchmarks/evaluation_memory.py --images 20 100 300

Images of five megapixels (2592 x 1944, noise over a gradient, half of them with a bright square and its mask) are written into a temporary
folder; the detector `gaussian` is fitted on ten small ones, and each number of images is evaluated in a process of its own. `peak_mib` is the
largest resident memory of that process. Kept in full, 300 such images would take 16 GB.
"""
import argparse
import multiprocessing
import re
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from thesis_ad.data.datasets import open_dataset
from thesis_ad.evaluation.protocol import evaluate
from thesis_ad.models.detector import Detector, create
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


def measure(bundle, folder, count, queue):
    "Evaluate the first `count` test images of `folder`; (seconds of processor time, peak MiB, bound of the error of the pixel metrics) into `queue`."
    pin_threads(1)
    test = open_dataset(str(folder)).open_test().evenly(count)
    start = time.process_time()
    _, metrics, _ = evaluate(Detector.load(bundle, device="cpu"), test, "memory", replicates=100)
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1)) / 1024
    queue.put((round(time.process_time() - start, 1), round(peak), metrics.attrs["pixel_error"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", type=int, default=[20, 100, 300])
    options = parser.parse_args()
    pin_threads(1)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        for i in range(10): write_image(root / f"train/good/{i}.jpg", i, (486, 648))
        for i in range(max(options.images)): write_image(root / f"test/{'square' if i % 2 else 'good'}/{i}.jpg", 100 + i, SHAPE, i % 2)
        data = open_dataset(str(root))
        bundle = create("gaussian", size=(128, 128), device="cpu").fit(data.train, data.calibration).save(Path(folder) / "bundle")
        for count in options.images:
            queue = context.Queue()
            process = context.Process(target=measure, args=(bundle, root, count, queue))
            process.start()
            seconds, peak, error = queue.get()
            process.join()
            print({"images": count, "megapixels": round(count * np.prod(SHAPE) / 1e6), "seconds": seconds, "peak_mib": peak, "pixel_error": f"{error:.1e}"}, flush=True)


if __name__ == "__main__":
    main()
