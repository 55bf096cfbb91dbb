"""What the inspection server takes: latency and refusals at 1, 4 and 16 clients over loopback, and its memory.

    python benchmarks/serve_load.py                      # 60 s for each number of clients, then 120 s for the memory
    python benchmarks/serve_load.py --bundle my_part --images photos/ --seconds 10 --memory 0
    python benchmarks/serve_load.py --seconds 0 --memory 600      # the memory alone, for ten minutes; other rows stay

A client sends one image after the other and waits as long as a 503 tells it to. Any other status stops the run. Without
`--bundle` a PatchCore is fitted on 60 OK images of ELPV. Writes benchmarks/serve_load.csv. The server runs in a process
of its own with one thread; the clients run on the same machine and take part of its processors. About 6 minutes.
"""
import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pandas as pd


def example_bundle(folder):
    "(bundle, image files) of a calibrated PatchCore on ELPV."
    from thesis_ad.data.datasets import open_dataset
    from thesis_ad.decision.threshold import calibrate
    from thesis_ad.models.detector import create
    data = open_dataset("elpv_mono")
    detector = create("patchcore", device="cpu").fit(data.train.evenly(60))
    calibrate(detector, data.calibration.evenly(40))
    detector.save(folder / "bundle")
    return folder / "bundle", [data.root / path for path in data.calibration.evenly(200).paths]


def resident(process):
    "Resident memory of a process in MiB."
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1]) / 1024


def client(url, images, until, found):
    "Send images until a time; append (status, seconds)."
    with httpx.Client(timeout=60) as http:
        for k in range(10**9):
            if time.monotonic() > until: return
            start = time.monotonic()
            answer = http.post(f"{url}/predict", files={"file": images[k % len(images)]}, params={"maps": False})
            found.append((answer.status_code, time.monotonic() - start))
            if answer.status_code == 503: time.sleep(float(answer.headers.get("Retry-After", 1)))
            elif answer.status_code != 200: return


def load(url, images, clients, seconds):
    "(statuses, seconds) of all requests of so many clients."
    found, until = [], time.monotonic() + seconds
    threads = [threading.Thread(target=client, args=(url, images[k:] + images[:k], until, found))
        for k in range(clients)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return np.array([status for status, _ in found]), np.array([taken for _, taken in found])


def measure(url, images, process, seconds, memory):
    "A table with a row for each number of clients, and one for the memory."
    warm = 0
    # fills the cache of decoded images, however busy the machine is
    while warm < 2 * len(images): warm += len(load(url, images, 4, 5)[0])
    for clients, span in ((1, seconds), (4, seconds), (16, seconds), (4, memory)):
        if not span: continue
        before = resident(process)
        status, taken = load(url, images, clients, span)
        good = taken[status == 200] * 1000
        yield {"clients": clients, "seconds": span, "answers": int((status == 200).sum()),
               "refused_503": int((status == 503).sum()),
               "other": int((~np.isin(status, (200, 503))).sum()), "per_second": round((status == 200).sum() / span, 1),
               "p50_ms": round(float(np.percentile(good, 50)), 1), "p99_ms": round(float(np.percentile(good, 99)), 1),
               "refused_p99_ms": round(float(np.percentile(taken[status == 503] * 1000, 99)), 1)
               if (status == 503).any() else "",
               "memory_mib": round(resident(process)),
               "growth_percent": round(100 * (resident(process) / before - 1), 2), "load_before": os.getloadavg()[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--memory", type=float, default=120)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    if options.seconds > 120 or options.memory > 900:
        parser.error("at most 120 s for each number of clients and 900 s for the memory")
    with tempfile.TemporaryDirectory() as folder:
        bundle, files = ((options.bundle, sorted(options.images.rglob("*.png"))) if options.bundle
            else example_bundle(Path(folder)))
        images = [(file.name, file.read_bytes()) for file in files]
        command = [sys.executable, "-c", "from thesis_ad.cli import main; main()", "serve", str(bundle), "--port", "0",
            "--folder", f"{folder}/station"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                url = process.stdout.readline().split(" at ")[1].split()[0]
                table = pd.DataFrame(measure(url, images, process, options.seconds, options.memory))
            finally: process.send_signal(signal.SIGINT)
    if options.out.exists():
        before = pd.read_csv(options.out)
        table = pd.concat([before[~before.set_index(["clients", "seconds"]).index.isin(
            table.set_index(["clients", "seconds"]).index)], table]).sort_values(["seconds", "clients"])
    table.to_csv(options.out, index=False, lineterminator="\n")
    print(table.to_string(index=False))
    if table.other.any(): sys.exit("an answer was neither 200 nor 503")


if __name__ == "__main__": main()
