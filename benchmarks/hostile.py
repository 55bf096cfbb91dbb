"""Hostile requests to the inspection server: no 500, no hang, and the next good request gets its right answer.

    python benchmarks/hostile.py                         # 2,000 requests
    python benchmarks/hostile.py --requests 200 --bundle my_part --image photo.png

Half of the requests are made by schemathesis from the server's own OpenAPI document, valid and invalid ones for every
route; half are image files of every kind (truncated, changed bytes, decompression bombs, other formats, 1×1, 16 bits,
CMYK, alpha, EXIF, animated, zero bytes), sent to /predict, /predict/batch and /calibrate. After every tenth a good
image is sent, and its score has to be the one from before, to the bit. The server is a process of its own, with a
ledger and a token. Writes benchmarks/hostile.csv. In the committed run, on processors that were busy with other work,
the server answered some requests with 503 because their 10 s had passed; none was answered 500, and none hung.
"""
import argparse
import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path

import httpx
import hypothesis
import numpy as np
import pandas as pd
from PIL import Image

from thesis_ad.settings import rng

TOKEN, PATIENCE = "teach", 120              # seconds after which a request hangs
TEACH = {"Authorization": f"Bearer {TOKEN}"}


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, format, **options)
    return buffer.getvalue()


def bomb(data, width, height):
    "A PNG whose header claims so many pixels, with a right checksum."
    data = bytearray(data)
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def kinds():
    "Image files of every kind, good and bad, by name."
    array = (np.indices((60, 80)).sum(0)[..., None] * np.array([1, 2, 1]) % 200 + 20).astype(np.uint8)
    image, exif, grey16 = Image.fromarray(array), Image.Exif(), Image.fromarray(array[..., 0].astype(np.uint16) * 257)
    exif[0x0112] = 6
    rgba = image.convert("RGBA")
    rgba.putalpha(120)
    return {"rgb": encoded(array), "jpeg": encoded(image, "JPEG"), "bmp": encoded(image, "BMP"),
            "tiff": encoded(image, "TIFF"), "16 bits": encoded(grey16),
            "16-bit tiff": encoded(grey16, "TIFF"),
            "float tiff": encoded(Image.fromarray(array[..., 0].astype(np.float32)), "TIFF"),
            "cmyk": encoded(image.convert("CMYK"), "JPEG"),
            "alpha": encoded(rgba), "exif": encoded(image, "JPEG", exif=exif),
            "palette": encoded(image.convert("P")), "one bit": encoded(image.convert("1")),
            "1×1": encoded(array[:1, :1]), "one line": encoded(array[:1]),
            "animated": encoded(image, save_all=True, append_images=[image.rotate(90)]),
            "gif": encoded(image, "GIF"), "webp": encoded(image, "WEBP"),
            "bomb": bomb(encoded(array), 50_000, 50_000), "wide bomb": bomb(encoded(array), 2**31 - 1, 1),
            "small bomb": bomb(encoded(array), 6000, 6000), "empty": b"", "text": b"GET / HTTP/1.1\r\n\r\n",
            "pdf": b"%PDF-1.7 " + bytes(500), "zeros": bytes(5000)}


def mutated(index, files):
    "Bytes of the `index`-th image file: as it is, cut, with changed bytes, or grown."
    draw, data = rng("hostile", index), bytearray(files[index % len(files)])
    way = ("as it is", "cut", "changed", "grown")[index // len(files) % 4]
    if way == "cut": data = data[:draw.integers(0, len(data) + 1)]
    if way == "changed" and data:
        for place in draw.integers(0, len(data), draw.integers(1, 20)): data[place] = draw.integers(256)
    if way == "grown": data += draw.bytes(200)
    return bytes(data)


def image_request(http, url, index, files):
    "(route, function that sends) of the `index`-th image file, at one of three routes."
    several = [("files", (f"{k}.png", mutated(index + k, files))) for k in range(3)]
    if index % 10 == 7: return "/predict/batch", lambda: http.post(f"{url}/predict/batch", files=several)
    if index % 10 == 3: return "/calibrate", lambda: http.post(f"{url}/calibrate", files=several, headers=TEACH)
    return ("/predict", lambda: http.post(f"{url}/predict", files={"file": ("image.png", mutated(index, files))},
        params={"maps": index % 2 == 0}))


def from_document(url, count, send):
    "Call `send(case)` for about `count` valid and invalid requests made from the server's document."
    import schemathesis
    document = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [one.ok() for one in document.get_all_operations()]
    each = max(1, count // (2 * len(operations)))
    for operation in operations:
        for mode in schemathesis.GenerationMode:
            try: cases = operation.as_strategy(generation_mode=mode)
            except schemathesis.errors.SchemathesisError:
                # nothing can be wrong about a request without parameters
                continue
            @hypothesis.settings(max_examples=each, deadline=None, database=None, derandomize=True,
                suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate])
            @hypothesis.given(case=cases)
            def ask(case): send(operation, case)
            with contextlib.suppress(hypothesis.errors.Unsatisfiable): ask()


def measure(url, good, requests):
    "(table of requests by kind and status, number of good requests, of wrong answers to them)."
    found, slowest, files, checks = Counter(), Counter(), list(kinds().values()), Counter()
    with httpx.Client(timeout=PATIENCE) as http:
        def right():
            while (answer := http.post(f"{url}/predict", files={"file": ("good.png", good)},
                    params={"maps": False})).status_code == 503:
                time.sleep(1)  # busy
            return answer.json()["score"] if answer.status_code == 200 else f"{answer.status_code} {answer.text}"
        wanted = right()
        def note(what, asked):
            start = time.monotonic()
            try: status = asked().status_code
            except (httpx.HTTPError, OSError) as error: status = type(error).__name__
            found[what, status] += 1
            slowest[what, status] = max(slowest[what, status], time.monotonic() - start)
            if sum(found.values()) % 10: return
            checks["good"] += 1
            checks["wrong"] += (answer := right()) != wanted
            if answer != wanted: print(f"after {what}: {answer} instead of {wanted}", file=sys.stderr)
        def send_case(operation, case):
            headers = TEACH if operation.path in ("/calibrate", "/reload", "/drift/clear") else {}
            note(f"{operation.method.upper()} {operation.path}", lambda: case.call(headers=headers, timeout=PATIENCE))
        from_document(url, requests // 2, send_case)
        for index in range(requests - sum(found.values())):
            route, send = image_request(http, url, index, files)
            note(f"image to {route}", send)
        checks["wrong"] += right() != wanted
    rows = [{"request": what, "status": status, "count": count, "slowest_s": round(slowest[what, status], 2)}
        for (what, status), count in sorted(found.items(), key=str)]
    return pd.DataFrame(rows), checks["good"] + 1, checks["wrong"]


def example(folder):
    "(bundle, bytes of an image) of a small calibrated detector on ELPV."
    from thesis_ad.data.datasets import open_dataset
    from thesis_ad.decision.threshold import calibrate
    from thesis_ad.models.detector import create
    data = open_dataset("elpv_mono")
    detector = create("gaussian", size="128", device="cpu").fit(data.train.evenly(40))
    calibrate(detector, data.calibration.evenly(40))
    detector.save(folder / "bundle")
    return folder / "bundle", (data.root / data.calibration.paths[0]).read_bytes()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    if (options.bundle is None) != (options.image is None): parser.error("--bundle and --image go together")
    with tempfile.TemporaryDirectory() as folder:
        bundle, good = (options.bundle, options.image.read_bytes()) if options.bundle else example(Path(folder))
        command = [sys.executable, "-c", "from thesis_ad.cli import main; main()", "serve", str(bundle), "--port", "0",
            "--folder", f"{folder}/station", "--ledger", f"{folder}/ledger.sqlite", "--drift-window", "0"]
        secrets = {"THESIS_AD_TOKEN": TOKEN, "THESIS_AD_SECRET_KEY": "0123456789abcdef0123456789abcdef",
            "THRESHOLD": ""}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | secrets) as process:
            try:
                url = process.stdout.readline().split(" at ")[1].split()[0]
                table, good_ones, wrong = measure(url, good, options.requests)
                ledger = httpx.get(f"{url}/ledger/verify", timeout=PATIENCE).json()
            finally: process.send_signal(signal.SIGINT)
    table.to_csv(options.out, index=False, lineterminator="\n")
    print(table.to_string(index=False))
    bad = table[[not isinstance(status, int) or status == 500 for status in table.status]]
    print(f"{table['count'].sum()} requests, {bad['count'].sum()} answered 500 or not at all; {good_ones} good "
        f"requests between them, {wrong} with a wrong answer; ledger: {ledger['detail'][:60]}")
    if len(bad) or wrong or not ledger["ok"]: sys.exit(1)


if __name__ == "__main__": main()
