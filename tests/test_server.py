"""The inspection server: the same decisions as the command line, limits that hold,
and one sentence for everything that is no decision."""
import asyncio
import contextlib
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import replace

import httpx
import hypothesis
import numpy as np
import pytest
import schemathesis
from conftest import write_image
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from PIL import Image

from thesis_ad import cli
from thesis_ad.data.datasets import open_dataset
from thesis_ad.decision.threshold import calibrate
from thesis_ad.files import read_image
from thesis_ad.inspection.ledger import SECRETS, Ledger, make_key
from thesis_ad.inspection.report import judge
from thesis_ad.inspection.server import Gate, Limits, Station, Watch, Worker, create_app
from thesis_ad.models.detector import create, load_bundle
from thesis_ad.settings import UserError, rng

KEY = make_key(b"0123456789abcdef0123456789abcdef")
TEACH = {"Authorization": "Bearer teach"}


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    "(bundle, folder of 10 new OK images): a Gaussian on plain gradients, with a threshold."
    root, generator = tmp_path_factory.mktemp("taught"), rng("taught")
    for i in range(12): write_image(root / f"photos/{i:03d}.png", generator)
    for i in range(10): write_image(root / f"new/{i:03d}.png", generator)
    write_image(root / "bad.png", generator, square=True)
    data = open_dataset(root / "photos")
    detector = create("gaussian", size="64", device="cpu").fit(data.train)
    calibrate(detector, open_dataset(root / "new").train, "mean_sigma")
    detector.save(root / "bundle")
    return root / "bundle", root / "new"


@pytest.fixture
def bundle(taught, tmp_path):
    "A copy of the bundle that a test may change."
    return shutil.copytree(taught[0], tmp_path / "bundle")


PATIENT = Limits(seconds=600)          # a loaded machine is slow, and no test is about that


def opened(bundle, limits=PATIENT, **options):
    "A client of the application in this process; errors become answers."
    return TestClient(create_app(Station(bundle, token="teach", limits=limits, **options)),
        raise_server_exceptions=False)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, format, **options)
    return buffer.getvalue()


def sentence(answer, status):
    "The one sentence of a refusal with that status."
    assert answer.status_code == status, (answer.status_code, answer.text)
    assert list(answer.json()) == ["detail"] and isinstance(answer.json()["detail"], str)
    assert "\n" not in answer.json()["detail"]
    return answer.json()["detail"]


def ok_files(folder, count=10):
    return [("files", (path.name, path.read_bytes())) for path in sorted(folder.iterdir())[:count]]


def kinds():
    "Images of every kind that is accepted, as bytes by name."
    array = (np.indices((40, 56)).sum(0)[..., None] * np.array([1, 2, 1]) % 200 + 20).astype(np.uint8)
    image, exif = Image.fromarray(array), Image.Exif()
    exif[0x0112] = 6
    grey16 = Image.fromarray(array[..., 0].astype(np.uint16) * 257)
    alpha = image.convert("RGBA")
    alpha.putalpha(120)
    return {"rgb.png": encoded(array), "grey16.png": encoded(grey16), "grey16.tif": encoded(grey16, "TIFF"),
            "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
            "alpha.png": encoded(alpha), "exif.jpg": encoded(image, "JPEG", exif=exif),
            "palette.png": encoded(image.convert("P")), "one.png": encoded(array[:1, :1]),
            "line.png": encoded(array[:1]), "animated.png": encoded(array, save_all=True,
                append_images=[image.rotate(90)]), "bits.bmp": encoded(image.convert("1"), "BMP"),
            "float.tif": encoded(Image.fromarray(array[..., 0].astype(np.float32)), "TIFF")}


# Decisions

def test_the_server_decides_as_the_command_line_does(taught, tmp_path):
    "Equal scores to the last digit for images of every kind, whoever is asked."
    for name, data in kinds().items(): (tmp_path / name).write_bytes(data)
    for name in ("bad.png", "new/000.png"): shutil.copy(taught[0].parent / name, tmp_path)
    client, detector, seen = opened(taught[0]), load_bundle(taught[0], "cpu"), set()
    for file in sorted(tmp_path.iterdir()):
        answer = client.post("/predict", files={"file": (file.name, file.read_bytes())}, params={"maps": False})
        own = judge(detector, file)
        if own.decision == "unread": assert sentence(answer, 422) == own.status
        seen.add(own.decision)
        if own.decision == "unread": continue
        found = answer.json()
        assert (found["score"], found["decision"], found["image"]) == (own.score, own.decision, own.sha256), file.name
        assert (found["height"], found["width"]) == read_image(file).shape[:2]
    assert found["overlay"] is found["heat_map"] is None and seen == {"OK", "NOK", "unread"}


def test_a_prediction_says_where(taught):
    import base64
    found = opened(taught[0]).post("/predict", files={"file": (taught[0].parent / "bad.png").read_bytes()},
        data={"part_id": "VIN 1"}).json()
    mask = base64.b64decode(found["heat_map"])
    heat = np.asarray(Image.open(io.BytesIO(mask)))
    overlay = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["overlay"]))))
    assert found["part_id"] == "VIN 1" and found["decision"] == "NOK" and heat.shape == (72, 96)
    assert overlay.shape == (72, 96, 3)
    region = found["regions"][0]
    y, x = region["top"] + region["height"] / 2, region["left"] + region["width"] / 2
    assert 20 <= y <= 36 and 40 <= x <= 60, "the square is at rows 20 to 36 and columns 40 to 60"
    assert (heat > 128).sum() <= sum(one["pixels"] for one in found["regions"]) <= (heat >= 128).sum()


def test_a_batch_reports_a_broken_image_in_its_place(taught):
    client = opened(taught[0], limits=replace(PATIENT, batch=3))
    files = [("files", encoded(np.full((9, 9, 3), 90, np.uint8))), ("files", b"no image"),
        ("files", (taught[0].parent / "bad.png").read_bytes())]
    items = client.post("/predict/batch", files=files).json()["items"]
    assert [item["status"] for item in items] == [200, 422, 200] and items[1]["prediction"] is None
    assert items[2]["prediction"]["decision"] == "NOK"
    sentence(client.post("/predict/batch", files=files + files[:1]), 413)


def test_every_decision_is_signed_or_not_given(taught, tmp_path):
    with Ledger(tmp_path / "ledger.sqlite", KEY) as book:
        client, image = opened(taught[0], ledger=book), {"file": encoded(np.full((9, 9, 3), 90, np.uint8))}
        numbers = [client.post("/predict", files=image, data={"part_id": f"p{i}", "operator": "Ada"}).json()["sequence"]
            for i in range(3)]
        assert numbers == [1, 2, 3]
        assert client.get("/ledger/verify").json() == {"ok": True, "entries": 3, "head": book.last.hash,
            "detail": f"3 entries verified, head {book.last.hash}"}
        assert [entry["part_id"] for entry in client.get("/ledger", params={"newest": 2}).json()] == ["p2", "p1"]
        sentence(client.post("/predict", files={"file": b"no image"}), 422)
        assert book.last.sequence == 3, "what was not judged is not signed"
        with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
            db.execute("UPDATE entries SET entry = replace(entry, 'Ada', 'Eve') WHERE sequence = 2")
        assert "entry 2" in client.get("/ledger/verify").json()["detail"]
        assert not client.get("/ledger/verify").json()["ok"]
        with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
            db.execute("UPDATE entries SET entry = replace(entry, 'Ada', 'Eve')")
        assert "could not be signed" in sentence(client.post("/predict", files=image), 503)
    sentence(opened(taught[0]).get("/ledger"), 404)


# Calibration

def test_calibration_is_the_mean_and_three_deviations_of_raw_scores(bundle, taught):
    client = opened(bundle)
    found = client.post("/calibrate", files=ok_files(taught[1]), headers=TEACH).json()
    scores = np.array([client.post("/predict", files={"file": data[1]}).json()["score"]
        for _, data in ok_files(taught[1])])
    assert found["n_images"] == 10 and np.isclose(found["mean_score"], scores.mean())
    assert np.isclose(found["std_score"], scores.std(ddof=1))
    assert np.isclose(found["new_threshold"], scores.mean() + 3 * scores.std(ddof=1))
    assert client.post("/predict",
        files={"file": ok_files(taught[1])[0][1]}).json()["threshold"] == found["new_threshold"]
    one = client.post("/calibrate", files=ok_files(taught[1]), data={"k": 1}, headers=TEACH).json()
    assert np.isclose(one["new_threshold"], scores.mean() + scores.std(ddof=1))


def test_where_the_threshold_comes_from(bundle, taught, monkeypatch):
    """Environment before calibration file before bundle, after a restart too;
    a calibration of another model counts for nothing."""
    own = load_bundle(bundle, "cpu").threshold["value"]
    assert opened(bundle).get("/model").json()["source"] == "bundle"
    value = opened(bundle).post("/calibrate", files=ok_files(taught[1], 5), headers=TEACH).json()["new_threshold"]
    again = opened(bundle).get("/model").json()
    assert (again["source"], again["threshold"]["value"]) == ("calibration", value) and value != own
    monkeypatch.setenv("THRESHOLD", "0.25")
    client = opened(bundle)
    assert client.get("/model").json()["source"] == "environment"
    assert client.post("/predict", files={"file": ok_files(taught[1])[0][1]}).json()["threshold"] == 0.25
    assert client.post("/calibrate", files=ok_files(taught[1]), headers=TEACH).json()["threshold"] == 0.25
    monkeypatch.setenv("THRESHOLD", "high")
    with pytest.raises(UserError, match="THRESHOLD"): Station(bundle)
    monkeypatch.delenv("THRESHOLD")
    file = bundle.with_name("bundle.station") / "calibration.json"
    file.write_text(file.read_text().replace(json.loads(file.read_text())["model"], "0" * 16))
    assert opened(bundle).get("/model").json()["threshold"]["value"] == own
    file.write_text("{")
    with pytest.raises(UserError, match="calibration.json"): Station(bundle)


def test_what_cannot_calibrate_changes_nothing(bundle, taught):
    client, few = opened(bundle), ok_files(taught[1], 3)
    photos = [("files", (taught[0].parent / "photos" / name).read_bytes())
        for name in open_dataset(taught[0].parent / "photos").train.paths]
    before = client.get("/model").json()["threshold"]
    assert "token" in sentence(client.post("/calibrate", files=few), 401)
    sentence(client.post("/calibrate", content=b"--", headers={"Content-Type": "multipart/form-data"}), 401)
    sentence(client.post("/calibrate", files=few, headers={"Authorization": "Bearer other"}), 401)
    sentence(TestClient(create_app(Station(bundle, limits=PATIENT))).post("/calibrate", files=few, headers=TEACH), 403)
    assert "002.png" in sentence(client.post("/calibrate", files=[*few[:2], ("files", ("002.png", few[2][1][1][:200]))],
        headers=TEACH), 422)
    for files in (few[:2], few[:2] + few[:2], photos, few[:2] + photos):
        assert "3 different" in sentence(client.post("/calibrate", files=files, headers=TEACH), 422)
    for k in ("0", "-1", "nan", "inf", "many"):
        sentence(client.post("/calibrate", files=few, data={"k": k}, headers=TEACH), 422)
    sentence(client.post("/calibrate", headers=TEACH), 422)
    assert client.get("/model").json()["threshold"] == before and not bundle.with_name("bundle.station").exists()
    assert client.post("/calibrate", files=few + photos, headers=TEACH).json()["left_out"] == len(photos)


def test_without_a_threshold_nothing_is_decided(bundle):
    from thesis_ad.models.detector import update_bundle
    update_bundle(bundle, threshold=None)
    client = opened(bundle)
    assert "calibrate" in sentence(client.post("/predict", files={"file": kinds()["rgb.png"]}), 503)
    assert client.get("/ready").status_code == 503 and client.get("/health").status_code == 200
    assert "nan" in client.get("/metrics").text.lower()


def test_a_bundle_is_taught_while_the_server_runs(taught, tmp_path):
    client = opened(tmp_path / "bundle", wait=True)
    for path in ("/ready", "/model"): assert "no bundle" in client.get(path).json()["detail"]
    sentence(client.post("/predict", files={"file": kinds()["rgb.png"]}), 503)
    sentence(client.post("/reload", headers=TEACH), 422)
    shutil.copytree(taught[0], tmp_path / "bundle")
    assert client.post("/reload", headers=TEACH).json()["bundle"] == "bundle" and client.get("/ready").json()["ready"]
    (tmp_path / "bundle" / "bundle.json").write_text("{}")
    sentence(client.post("/reload", headers=TEACH), 422)
    assert client.post("/predict", files={"file": kinds()["rgb.png"]}).status_code == 200, "the old one stays"
    sentence(client.post("/reload"), 401)


# Drift

def asked(client, path, count):
    return [client.post("/predict", files={"file": path.read_bytes()}, params={"maps": False}) for _ in range(count)]


def gauge(client, name):
    return float(next(line for line in client.get("/metrics").text.splitlines()
        if line.startswith(name + " ")).split()[1])


def test_a_warning_of_drift_comes_and_goes(bundle, taught):
    client, bad = opened(bundle, watch=Watch(10)), taught[0].parent / "bad.png"
    told = [answer.json()["drift"] for answer in asked(client, bad, 10)]
    assert told[:9] == [None] * 9 and "higher" in told[9], "said once there are ten scores"
    live, state = client.get("/recent").json(), client.get("/model").json()["drift"]
    assert (live["drift"], live["stopped"]) == (told[9], False) == (state["warning"], state["stopped"])
    assert state["watched"]
    assert gauge(client, "thesis_ad_drift") == 1 and gauge(client, "thesis_ad_stopped") == 0
    assert client.get("/ready").status_code == 200
    good = [asked(client, path, 1)[0].json()["drift"] for path in sorted(taught[1].iterdir())]
    assert good[0] and good[-1] is None and gauge(client, "thesis_ad_drift") == 0
    asked(client, bad, 10)
    assert client.post("/calibrate", files=ok_files(taught[1]), headers=TEACH).status_code == 200
    assert (client.get("/model").json()["drift"]["scores"] == 0
        and "higher" in asked(client, bad, 10)[-1].json()["drift"]), "a calibration is watched, too"


def test_drift_that_stops_is_never_a_pass(bundle, taught, tmp_path):
    "What is not decided is signed as unread, answered with 409, and a fail to a controller, until a person ends it."
    from thesis_ad.inspection.camera import Client, Frame
    from thesis_ad.inspection.plc import FAIL, PASS, code_of
    bad, good = taught[0].parent / "bad.png", sorted(taught[1].iterdir())[0]
    with Ledger(tmp_path / "ledger.sqlite", KEY) as book:
        client = opened(bundle, ledger=book, watch=Watch(10, stops=True))
        camera = Client("http://testserver")
        camera._http = client
        stream = lambda: camera(Frame(None, "good.png", good.read_bytes()), "VIN")
        assert code_of(stream().decision) == PASS
        statuses = [answer.status_code for answer in asked(client, bad, 11)]
        assert 409 in statuses and statuses == sorted(statuses), "once stopped, it stays so"
        verdict = stream()
        assert code_of(verdict.decision) == FAIL and verdict.decision == "unread" and not verdict.away
        assert verdict.reason.startswith("stopped by drift")
        for _ in range(12):
            assert sentence(asked(client, good, 1)[0], 409).startswith("stopped by drift"), "good parts do not end it"
        assert (book.last.decision, book.last.sequence) == ("unread", 25)
        assert book.last.status.startswith("stopped by drift")
        assert client.get("/recent").json()["stopped"] and gauge(client, "thesis_ad_stopped") == 1
        assert "drift" in client.get("/ready").json()["detail"]
        items = client.post("/predict/batch", files=ok_files(taught[1], 2)).json()["items"]
        assert [item["status"] for item in items] == [409, 409]
        sentence(client.post("/drift/clear"), 401)
        assert client.post("/drift/clear", headers=TEACH).json()["stopped"] is False
        assert code_of(stream().decision) == PASS and client.get("/ready").json()["ready"]
        assert client.get("/ledger/verify").json()["ok"]


def test_a_threshold_from_the_environment_is_watched_and_one_without_scores_is_not(bundle, taught, monkeypatch):
    from thesis_ad.models.detector import update_bundle
    monkeypatch.setenv("THRESHOLD", "1e6")
    assert opened(bundle).get("/model").json()["drift"]["watched"]
    monkeypatch.delenv("THRESHOLD")
    update_bundle(bundle, threshold={"value": 1.0, "how": "by hand"})
    client = opened(bundle, watch=Watch(10, stops=True))
    assert not client.get("/model").json()["drift"]["watched"]


# Limits

def test_limits_are_applied_before_decoding(taught):
    client = opened(taught[0], limits=replace(PATIENT, bytes=5000, pixels=5000, request=200_000))
    bomb = bytearray(kinds()["rgb.png"])
    bomb[16:24] = (50_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    for data, status in ((bytes(bomb), 413), (encoded(np.zeros((80, 80), np.uint8)), 413),
            (bytes(6000), 413), (bytes(100_000), 413), (bytes(300_000), 413), (b"", 422), (b"text", 422),
            (encoded(np.zeros((9, 9), np.uint8), "GIF"), 415), (encoded(np.zeros((9, 9), np.uint8), "WEBP"), 415),
            (kinds()["rgb.png"][:-40], 422)):
        sentence(client.post("/predict", files={"file": data}), status)
    assert client.post("/predict", files={"file": kinds()["rgb.png"]}).status_code == 200
    for request in ({"json": {"file": "x"}}, {"content": b"--", "headers": {"Content-Type": "multipart/form-data"}},
            {"data": {"file": "text"}}):
        answer = client.post("/predict", **request)
        sentence(answer, answer.status_code)
        assert answer.status_code in (400, 415, 422)


def test_a_full_queue_answers_at_once():
    async def crowd():
        worker, gate = Worker(waiting=2), threading.Event()
        jobs = [asyncio.create_task(worker.run(gate.wait, 20)) for _ in range(5)]
        await asyncio.sleep(0)
        refused = [job for job in (await asyncio.wait(jobs, return_when="FIRST_COMPLETED"))[0]]
        gate.set()
        found = await asyncio.gather(*jobs, return_exceptions=True)
        worker.close()
        return refused, found, worker.jobs
    refused, found, left = asyncio.run(crowd())
    assert refused and found[:3] == [True] * 3 and left == 0
    assert all(error.status_code == 503 and int(error.headers["Retry-After"]) >= 1 for error in found[3:])


def test_a_late_decision_is_refused_and_not_signed(taught, tmp_path, monkeypatch):
    from thesis_ad.inspection import server
    calm = threading.Event()
    def slow(*arguments, **facts):
        calm.wait(10)
        return judge(*arguments, **facts)
    with Ledger(tmp_path / "ledger.sqlite", KEY) as book, opened(taught[0], ledger=book,
            limits=Limits(seconds=0.1, waiting=0)) as client:
        monkeypatch.setattr(server, "judge", slow)
        image = {"file": kinds()["rgb.png"]}
        sentence(client.post("/predict", files=image), 503)
        busy = client.post("/predict", files=image)
        assert "queue" in sentence(busy, 503) and busy.headers["Retry-After"]
        assert client.get("/ready").status_code == 503 and client.get("/health").status_code == 200
        calm.set()
        while client.app.state.worker.jobs: time.sleep(0.01)
        assert book.last is None
        monkeypatch.undo()
        client.app.state.station.limits = PATIENT
        assert client.post("/predict", files=image).json()["sequence"] == 1


def test_a_decision_that_waits_too_long_for_the_ledger_is_not_returned(taught, monkeypatch):
    from thesis_ad.inspection import server
    def slow(one, ledger):
        monkeypatch.setattr(server.time, "monotonic", lambda: float("inf"))
        return one
    monkeypatch.setattr(server, "signed", slow)
    station = Station(taught[0], ledger=object())
    file = server.UploadFile(io.BytesIO(kinds()["rgb.png"]))
    with pytest.raises(server.HTTPException, match="too late"):
        station.decide(file, "VIN", "", False, time.monotonic() + 600)
    assert not station.recent.number, "the light would show the OK of a part that was refused"


def through_gate(limits, messages, endless=False):
    "(status or None, bytes that the application got) of a request made of `messages`, behind a `Gate`."
    got, sent, queue = [], [], list(messages)
    async def app(scope, receive, send):
        while True:
            message = await receive()
            got.append(message.get("body", b""))
            if not message.get("more_body"): break
        await send({"type": "http.response.start", "status": 200})
    async def receive():
        if queue: return {"type": "http.request", "body": queue.pop(0), "more_body": bool(queue) or endless}
        await asyncio.sleep(60)
    async def send(message): sent.append(message)
    try: asyncio.run(Gate(app, limits)({"type": "http", "path": "/predict"}, receive, send))
    except Exception as error: return error.status_code, b"".join(got)
    return sent[0]["status"], b"".join(got)


def test_the_gate_counts_bytes_and_time():
    limits = Limits(bytes=1000, request=2**17, upload=0.05)
    assert through_gate(limits, [b"a" * 100] * 3) == (200, b"a" * 300)
    status, got = through_gate(limits, [b"a" * 40_000] * 3)
    assert status == 413 and len(got) <= 1000 + 2**16
    assert through_gate(limits, [b"a" * 40_000] * 300)[0] == 413
    assert through_gate(limits, [b"a"] * 3, endless=True)[0] == 408
    assert through_gate(Limits(requests=0), [b"a"])[0] == 503


# Hostile requests

def hostile(index):
    "The `index`-th mutated image: cut, bytes changed, or grown."
    draw, images = rng("hostile", index), list(kinds().values())
    data = bytearray(images[index % len(images)])
    if index % 3 == 0: data = data[:draw.integers(0, len(data))]
    for place in draw.integers(0, max(len(data), 1), draw.integers(0, 12)):
        if len(data): data[place % len(data)] = draw.integers(256)
    if index % 5 == 0: data = data + draw.bytes(50)
    return bytes(data)


def test_mutated_images_are_answered_and_harm_nothing(taught):
    client, image = opened(taught[0], limits=replace(PATIENT, pixels=200_000)), {"file": kinds()["rgb.png"]}
    before = client.post("/predict", files=image, params={"maps": False}).json()["score"]
    statuses = [client.post("/predict", files={"file": hostile(index)}, params={"maps": False}).status_code
        for index in range(120)]
    assert set(statuses) <= {200, 413, 415, 422} and statuses.count(200) > 10 and statuses.count(422) > 10
    assert client.post("/predict", files=image, params={"maps": False}).json()["score"] == before


CHECKS = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
OPERATIONS = ([("POST", path) for path in ("/predict", "/predict/batch", "/calibrate", "/reload", "/drift/clear")]
    + [("GET", path) for path in ("/health", "/ready", "/metrics", "/model", "/recent", "/recent/{number}.jpg",
        "/ledger", "/ledger/verify")])


@pytest.fixture(scope="module")
def documented(taught):
    app = create_app(Station(taught[0], taught[0].parent / "documented", token="teach", limits=PATIENT))
    app.router.lifespan_context = lambda app: contextlib.nullcontext()  # each request opens and closes the application
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def test_every_route_is_documented(documented):
    assert sorted((one.ok().method.upper(), one.ok().path)
        for one in documented.get_all_operations()) == sorted(OPERATIONS)


@pytest.mark.parametrize("method, path", OPERATIONS)
def test_every_route_answers_as_documented(documented, method, path):
    """Requests made from the OpenAPI document, wrong ones included: no 500, documented statuses,
    bodies of the documented form."""
    checks = schemathesis.checks.CHECKS.get_by_names(CHECKS)
    for mode in schemathesis.GenerationMode:
        try: cases = documented[path][method].as_strategy(generation_mode=mode)
        except schemathesis.errors.SchemathesisError:
            # nothing can be wrong about a request without parameters
            continue
        @settings(max_examples=6, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck))
        @given(case=cases)
        def ask(case): case.call_and_validate(checks=checks)
        with contextlib.suppress(hypothesis.errors.Unsatisfiable): ask()


# A real process

def started(*arguments, **environment):
    "A server that a SIGINT ends, also where a shell has started the tests in the background and ignores it."
    command = [sys.executable, "-c", "from thesis_ad.cli import main; main()", "serve", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | environment, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def test_served_over_a_socket(taught, tmp_path, capsys):
    (tmp_path / "key").write_text("0123456789abcdef0123456789abcdef")
    with started(taught[0], "--port", 0, "--ledger", tmp_path / "ledger.sqlite", "--key-file", tmp_path / "key",
            "--folder", tmp_path / "s", "--max-mib", 1, "--max-megapixels", 1, THESIS_AD_TOKEN="teach") as process:
        try:
            address = process.stdout.readline().split(" at ")[1].split()[0]
            assert httpx.get(f"{address}/ready").json()["ready"]
            found = httpx.post(f"{address}/predict", files={"file": (taught[0].parent / "bad.png").open("rb")}).json()
            assert found["decision"] == "NOK" and found["sequence"] == 1
            for large, said in ((b"0" * 2**21, "bytes accepted"),
                    (encoded(np.zeros((1001, 1000), np.uint8)), "at most 1,000,000")):
                answer = httpx.post(f"{address}/predict", files={"file": large})
                assert answer.status_code == 413 and said in answer.text, answer.text
            assert "swagger-ui-bundle.js" in httpx.get(f"{address}/docs").text
            assert httpx.get(f"{address}/static-offline-docs/swagger-ui-bundle.js").status_code == 200
            assert httpx.post(f"{address}/calibrate", files=ok_files(taught[1]), headers=TEACH).json()["n_images"] == 10
            with pytest.raises(SystemExit) as end:
                cli.main(["serve", str(taught[0]), "--port", address.rsplit(":", 1)[1]])
            assert end.value.code == 2 and "in use" in capsys.readouterr().err
        finally: process.send_signal(signal.SIGINT)
        assert process.wait() == 130 and "Traceback" not in process.stderr.read()
    assert (tmp_path / "s" / "calibration.json").exists()


def test_what_cannot_be_served_is_one_sentence(taught, tmp_path, capsys, monkeypatch):
    for name in SECRETS: monkeypatch.delenv(name, raising=False)
    for arguments, words in (((tmp_path / "none",), "not a bundle"),
            ((taught[0], "--ledger", tmp_path / "l.sqlite"), "key"), ((taught[0], "--runtime", "onxx"), "runtime"),
            ((taught[0], "--drift-window", 0, "--drift-stops"), "watches no scores"),
            ((taught[0], "--drift-window", 5), "at least 10")):
        with pytest.raises(SystemExit) as end: cli.main(["serve", *map(str, arguments)])
        assert end.value.code == 2 and words in capsys.readouterr().err.strip().splitlines()[-1]
