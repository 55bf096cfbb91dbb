"""One 256 × 256 image from decoded pixels to decision and map, by runtime: PatchCore with a bank of 1,500 on Lite0, and a process that starts.

    python benchmarks/latency.py --out benchmarks/latency.csv [--threads 2] [--method patchcore] [--repeats 200]

The runtimes are measured in turns, one image each, so that a change of the machine's load meets all of them. Columns: median and 99th
percentile of the wall time, and the processor time of an image, which another program on the machine disturbs less. `start` is the wall and
processor time of `thesis-ad inspect` on one image in a new process, the best of three.

Measured once (latency.csv, one thread, 60 images, on two cores shared with a dozen other programs, so that the wall times
say little and the goals on them remain to be judged on a quiet machine): per image 32 ms of processor time in PyTorch, 16 ms in ONNX Runtime, 22 ms in OpenVINO; per start 6.8, 1.7 and 2.1 s.
"""
import argparse, resource, subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np
import pandas as pd

from thesis_ad.data.datasets import open_dataset
from thesis_ad.decision.threshold import calibrate, decide
from thesis_ad.files import resize
from thesis_ad.inspection.export import export_bundle
from thesis_ad.models.detector import create, load_bundle
from thesis_ad.settings import pin_threads, processor

GOALS = {"onnx": 40, "openvino": 40}        # ms, median, on two cores with AVX2


def judged(detector, image):
    "What happens between decoded pixels and a decision with its map at the size of the image."
    small = resize(image, detector.input_size)
    transform = detector.transform()
    if transform is not None: small = transform(small)
    pixels = small.transpose(2, 0, 1)[None] / np.float32(255)
    scores, maps = detector.predict(pixels)
    return decide(detector, scores)[0], resize(np.ascontiguousarray(maps[0]), image.shape[:2])


def started(bundle, file):
    "(seconds, processor seconds) of a new process that inspects one image."
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", "from thesis_ad.cli import main; main()", "inspect", bundle, file, "--exit-zero"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the table here as CSV")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--method", default="patchcore")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--images", type=int, default=20, help="training images")
    options = parser.parse_args()
    pin_threads(options.threads)
    data, folder = open_dataset("prefilter_a"), Path(tempfile.mkdtemp())
    detector = create(options.method, device="cpu").fit(data.train.evenly(options.images))
    calibrate(detector, data.calibration.evenly(12))
    original = detector.save(folder / "torch")
    for format in ("onnx", "openvino"): export_bundle(original, folder / format, format)
    runtimes, rows = {name: load_bundle(folder / name, "cpu") for name in ("torch", "onnx", "openvino")}, []
    images, times = [data.calibration.picture(i) for i in range(8)], {name: [] for name in runtimes}
    for name, one in runtimes.items(): judged(one, images[0])
    for k in range(options.repeats):
        for name, one in runtimes.items():
            start, used = time.perf_counter(), time.process_time()
            judged(one, images[k % len(images)])
            times[name].append((time.perf_counter() - start, time.process_time() - used))
    file = data.calibration.root / data.calibration.paths[0]
    for name in runtimes:
        wall, used = 1000 * np.array(times[name]).T
        seconds, cpu = min(started(folder / name, file) for _ in range(3))
        rows.append({"method": options.method, "runtime": name, "threads": options.threads, "p50_ms": round(np.median(wall), 1), "p99_ms": round(np.quantile(wall, 0.99), 1),
                     "processor_ms": round(np.median(used), 1), "start_s": round(seconds, 2), "start_processor_s": round(cpu, 2), "processor": processor()})
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    for row in rows:
        if row["runtime"] in GOALS: print(f"{row['runtime']}: median {row['p50_ms']} ms, goal {GOALS[row['runtime']]} ms: {'met' if row['p50_ms'] <= GOALS[row['runtime']] else 'not met'}; "
                                          f"start {row['start_s']} s, goal 2 s: {'met' if row['start_s'] <= 2 else 'not met'}")
    if options.out: table.to_csv(options.out, index=False)


if __name__ == "__main__": main()
