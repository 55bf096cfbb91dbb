"""One 256 × 256 image from decoded pixels to decision and map, by detector and runtime, and processes that start.

    python benchmarks/latency.py --out benchmarks/latency.csv [--threads 2] [--methods patchcore auto] [--repeats 100]

PatchCore has a bank of 1,500 vectors on Lite0. The runtimes are measured in turns, one image each, so that a change
of the machine's load meets all of them. Columns: median and 99th percentile of the wall time, and the processor time
of an image, which another program on the machine disturbs less; `start_s` and `start_processor_s` are the wall and
processor time of `thesis-ad inspect` on one image in a new process, the best of three. The last two rows are the
commands `--help` and `methods`. Goals: a median of 25 ms (AVX-512) or 40 ms (AVX2) and a 99th percentile of twice
that for PatchCore in OpenVINO, three times as much for `auto`; a start of 2 s, `--help` 0.5 s, `methods` 1 s.
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

STARTS = {"--help": 0.5, "methods": 1.0}     # seconds


def goal(method):
    "Median in ms on two cores: 25 with AVX-512, 40 with AVX2; three times as much for auto."
    return (25 if "avx512" in processor() else 40) * (3 if method == "auto" else 1)


def judged(detector, image):
    "What happens between decoded pixels and a decision with its map at the size of the image."
    small = resize(image, detector.input_size)
    transform = detector.transform()
    if transform is not None: small = transform(small)
    pixels = small.transpose(2, 0, 1)[None] / np.float32(255)
    scores, maps = detector.predict(pixels)
    return decide(detector, scores)[0], resize(np.ascontiguousarray(maps[0]), image.shape[:2])


def started(*arguments):
    "(seconds, processor seconds) of `thesis-ad` with these arguments in a new process."
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", "from thesis_ad.cli import main; main()", *arguments], check=True,
        capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def best_start(*arguments):
    return {name: round(min(part), 2) for name, part in zip(("start_s", "start_processor_s"),
        zip(*(started(*arguments) for _ in range(3))))}


def measure(method, data, folder, options):
    "Rows of one detector."
    detector = create(method, device="cpu").fit(data.train.evenly(options.images), data.calibration.evenly(12))
    if not detector.threshold: calibrate(detector, data.calibration.evenly(12))
    original = detector.save(folder / method / "torch")
    for format in ("onnx", "openvino"): export_bundle(original, folder / method / format, format)
    runtimes = {name: load_bundle(folder / method / name, "cpu") for name in ("torch", "onnx", "openvino")}
    images, times = [data.calibration.image(i) for i in range(8)], {name: [] for name in runtimes}
    for one in runtimes.values(): judged(one, images[0]), judged(one, images[1])
    for k in range(options.repeats):
        for name, one in runtimes.items():
            start, used = time.perf_counter(), time.process_time()
            judged(one, images[k % len(images)])
            times[name].append((time.perf_counter() - start, time.process_time() - used))
    file = data.calibration.root / data.calibration.paths[0]
    for name in runtimes:
        wall, used = 1000 * np.array(times[name]).T
        yield {"method": method, "runtime": name, "threads": options.threads, "p50_ms": round(np.median(wall), 1),
               "p99_ms": round(np.quantile(wall, 0.99), 1), "processor_ms": round(np.median(used), 1),
               **best_start("inspect", folder / method / name, file, "--exit-zero")}


def judgement(row):
    "Sentences on a row's goals."
    said = lambda value, limit: f"{value} of {limit}, {'met' if value <= limit else 'not met'}"
    if row["method"] in STARTS: return f"thesis-ad {row['method']}: {said(row['start_s'], STARTS[row['method']])} s"
    limit = goal(row["method"])
    return (f"{row['method']}, {row['runtime']}: median {said(row['p50_ms'], limit)} ms; 99 % "
        f"{said(row['p99_ms'], 2 * limit)} ms; start {said(row['start_s'], 2.0)} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the table here as CSV")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=["patchcore", "auto"])
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--images", type=int, default=20, help="training images")
    options = parser.parse_args()
    pin_threads(options.threads)
    data, folder = open_dataset("prefilter_a"), Path(tempfile.mkdtemp())
    rows = [row for method in options.methods for row in measure(method, data, folder, options)]
    rows += [{"method": command, "runtime": "command", "threads": options.threads, **best_start(command)}
        for command in STARTS]
    table = pd.DataFrame(rows).assign(processor=processor())
    print(table.to_string(index=False))
    for row in rows: print(judgement(row))
    if options.out: table.to_csv(options.out, index=False)


if __name__ == "__main__": main()
