"""Sources, triggers and the stream: nothing old is inspected, nothing uninspected passes, and closing does not wait."""
import os
import socket
import subprocess
import sys
import threading
import time

import cv2
import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thesis_ad.inspection import camera
from thesis_ad.inspection.camera import (Backoff, Client, Frame, Newest, Source, Stream, Trigger, Verdict, open_source,
    open_trigger, part_verdict)
from thesis_ad.inspection.report import png
from thesis_ad.settings import UserError

GREY = np.full((24, 32, 3), 90, np.uint8)


def view(score): return Verdict("NOK" if score > 5 else "OK", facts={"score": float(score), "threshold": 5.0})


class Given(Source):
    "A source that a test fills by hand."
    def __init__(self): super().__init__("by hand")
    def give(self, level): self.newest.put(Frame(np.full((2, 2, 3), level, np.uint8), f"{level}.png"))


def answering(status, **content):
    "A client whose server always gives the same answer."
    client = Client("http://station")
    client._http = httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(status, **content)))
    return client


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 100) | st.none(), max_size=40))
def test_a_queue_of_one_hands_out_the_newest_and_counts_the_rest(steps):
    "None takes; numbers are put. What was put is taken, dropped or still there."
    place, last, taken = Newest(), None, 0
    for step in steps:
        if step is None:
            assert place.get(0) == last
            taken, last = taken + (last is not None), None
        else:
            place.put(step)
            last = step
    assert taken + place.dropped + (last is not None) == sum(step is not None for step in steps)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 10) | st.none(), max_size=5), st.sampled_from(["max", "mean"]))
def test_a_part_passes_only_if_every_view_was_inspected(scores, rule):
    verdict = part_verdict([view(score) if score is not None else Verdict("unread", "lost") for score in scores], "VIN",
        rule)
    if verdict.decision == "OK":
        assert scores and None not in scores and (max(scores) <= 5 if rule == "max" else np.mean(scores) <= 5)
    if rule == "max" and any(score is not None and score > 5 for score in scores): assert verdict.decision == "NOK"
    assert verdict.part_id == "VIN" and (verdict.decision != "unread" or verdict.reason)


@pytest.mark.parametrize("status, content",
    [(200, {"json": {"decision": "perhaps"}}), (200, {"json": {"decision": "OK"}}), (200, {"json": []}),
        (200, {"text": "OK"}), (200, {"json": {"part_id": "VIN", "score": 1}}), (503, {"json": {"detail": "busy"}}),
        (422, {"json": {"detail": "no image"}}), (500, {"text": "Internal Server Error"}),
        (503, {"json": {"decision": "OK", "detail": "x"}}), (204, {})])
def test_no_answer_but_a_decision_reads_as_one(status, content):
    verdict = answering(status, **content)(Frame(GREY), "VIN")
    assert verdict.decision == "unread" and verdict.reason and verdict.away == (status == 503)


def test_a_decision_is_taken_as_it_is():
    facts = {"decision": "NOK", "part_id": "VIN", "score": 2.0, "threshold": 1.0}
    verdict = answering(200, json=facts)(Frame(GREY), "VIN")
    assert (verdict.decision, verdict.part_id, verdict.margin, verdict.overlay()) == ("NOK", "VIN", 1.0, None)


def test_pixels_reach_the_server_unchanged():
    seen = []
    client = Client("http://station")
    client._http = httpx.Client(transport=httpx.MockTransport(lambda request:
        (seen.append(request.read()), httpx.Response(503))[1]))
    image = np.arange(24 * 32 * 3, dtype=np.uint8).reshape(24, 32, 3)
    client(Frame(image), "VIN")
    start = seen[0].index(b"\x89PNG")
    assert (cv2.imdecode(np.frombuffer(seen[0][start:], np.uint8), cv2.IMREAD_COLOR)[..., ::-1] == image).all()
    client(Frame(None, "a.jpg", b"the file's own bytes"), "VIN")
    assert b"the file's own bytes" in seen[1]


def test_a_triggered_part_is_judged_on_new_frames_of_every_source():
    left, right, trigger, found, seen = Given(), Given(), Trigger(), [], []
    def judge(frame, part_id):
        seen.append((part_id, int(frame.image[0, 0, 0])))
        return view(frame.image[0, 0, 0])
    left.give(1); right.give(1)                             # frames of the part before
    stream = Stream([left, right], judge, trigger=trigger, on_part=found.append, wait=5,
        prompt=60).start()
    trigger.fire("VIN1")
    while left.newest.waiting or right.newest.waiting: time.sleep(0.002)
    left.give(2); right.give(9)
    while not found: time.sleep(0.002)
    stream.close()
    assert seen == [("VIN1", 2), ("VIN1", 9)] and found[0].decision == "NOK" and found[0].part_id == "VIN1"


def test_a_missing_frame_and_a_trigger_too_many_are_parts_without_a_decision():
    source, trigger, found = Given(), Trigger(waiting=1), []
    assert trigger.fire("VIN1") and not trigger.fire("VIN2")
    stream = Stream([source], lambda frame, part_id: view(0), trigger=trigger, on_part=found.append, wait=0.01,
        prompt=60).start()
    while len(found) < 2: time.sleep(0.002)
    stream.close()
    assert [(one.decision, one.part_id) for one in found] == [("unread", "VIN1"), ("unread", "VIN2")], "out of turn"
    assert "no frame" in found[0].reason and "too many" in found[1].reason


def test_a_part_that_cannot_be_photographed_in_time_is_unread():
    source, trigger, found = Given(), Trigger(), []
    trigger.fire("VIN1")
    time.sleep(0.05)
    source.give(1)
    stream = Stream([source], lambda frame, part_id: view(0), trigger=trigger, on_part=found.append,
        prompt=0.01).start()
    while not found: time.sleep(0.002)
    stream.close()
    assert found[0].decision == "unread" and found[0].part_id == "VIN1" and "within" in found[0].reason


def test_a_camera_part_is_told_before_the_stream_pauses_for_the_server():
    source, trigger, found = Given(), Trigger(), []
    stream = Stream([source], lambda frame, part_id: Verdict("unread", "away", part_id, away=True), trigger=trigger,
        on_part=found.append, prompt=60)
    stream.backoff.pause = lambda: pytest.fail("a triggered part waited for the server")
    stream.start()
    for part_id in ("VIN1", "VIN2"):
        trigger.fire(part_id)
        time.sleep(0.1)                                     # the frame from before the trigger is dropped
        source.give(1)
        while not found or found[-1].part_id != part_id: time.sleep(0.002)
    stream.close()
    assert [one.reason for one in found] == ["away", "away"]


def test_a_file_that_cannot_be_read_at_first_is_not_lost(tmp_path, monkeypatch):
    (tmp_path / "VIN7.png").write_bytes(b"image")
    read, failures = camera.Path.read_bytes, [OSError("in use")] * 3
    monkeypatch.setattr(camera.Path, "read_bytes", lambda path: (_ for _ in ()).throw(failures.pop()) if failures
        else read(path))
    source = open_source(tmp_path, existing=True)
    assert source.newest.get(20).data == b"image" and not failures
    source.close()


def test_a_slow_detector_gets_the_newest_frame():
    source, found, busy = Given(), [], threading.Event()
    def judge(frame, part_id):
        found.append(int(frame.image[0, 0, 0]))
        busy.wait(10)
        return view(0)
    stream = Stream([source], judge, every=1).start()
    source.give(1)
    while not found: time.sleep(0.002)
    for level in range(2, 50): source.give(level)
    busy.set()
    while len(found) < 2: time.sleep(0.002)
    stream.close()
    assert found[:2] == [1, 49]


def test_a_file_waits_until_the_server_is_back_and_a_frame_does_not(tmp_path, monkeypatch):
    (tmp_path / "VIN7.png").write_bytes(png(GREY))
    answers, found, waits = [Verdict("unread", "away", away=True)] * 3 + [view(1)], [], []
    monkeypatch.setattr(Backoff, "pause", lambda self: not self.closing.is_set())
    stream = Stream([open_source(tmp_path, existing=True)], lambda frame, part_id: answers.pop(0), on_part=found.append,
        on_wait=waits.append).start()
    while not found: time.sleep(0.002)
    stream.close()
    assert [one.decision for one in found] == ["OK"] and len(waits) == 3
    source, found = Given(), []
    stream = Stream([source], lambda frame, part_id: Verdict("unread", "away", away=True), every=1,
        on_part=found.append).start()
    source.give(1)
    while not found: time.sleep(0.002)
    stream.close()
    assert found[0].decision == "unread"


def test_an_old_decision_is_none():
    source = Given()
    stream = Stream([source], lambda frame, part_id: view(0), every=1, stale=0.05).start()
    assert stream.view()[1].decision == "unread"
    source.give(1)
    while stream.judged < 1: time.sleep(0.002)
    time.sleep(0.1)
    assert stream.view()[1].decision == "unread" and "old" in stream.view()[1].reason
    stream.close()


def test_a_camera_that_is_lost_is_opened_again(monkeypatch):
    opened = []
    class Video:
        def __init__(self, source): opened.append(source); self.left = 2
        def isOpened(self): return len(opened) != 2
        def get(self, _): return 0
        def read(self): self.left -= 1; return self.left >= 0, GREY
        def release(self): pass
    monkeypatch.setattr(camera.cv2, "VideoCapture", Video)
    monkeypatch.setattr(Backoff, "pause", lambda self: not self.closing.wait(0.001))
    source = open_source("rtsp://127.0.0.1/stream")
    while len(opened) < 4: time.sleep(0.002)
    source.close()
    assert set(opened) == {"rtsp://127.0.0.1/stream"} and source.newest.get(0) is not None


@pytest.mark.parametrize("place", ["0", "0.0.0.0:0"])
def test_a_line_of_text_triggers(place):
    trigger = open_trigger(f"tcp:{place}")
    with socket.create_connection(("127.0.0.1", trigger.port)) as line, line.makefile("rwb") as stream:
        stream.write(b"VIN7\n"); stream.flush()
        assert stream.readline() == b"ok\n"
    assert trigger.next(1).part_id == "VIN7"
    trigger.close()


def test_what_cannot_be_opened_is_one_sentence(tmp_path):
    for source in (tmp_path / "none", ""):
        with pytest.raises(UserError, match="webcam"): open_source(source)
    for text in ("gpio:4", "tcp:", "tcp:x", "tcp:192.0.2.1:5010", "tcp:127.0.0.1:99999", "file:", ""):
        with pytest.raises(UserError, match="trigger"): open_trigger(text)
    with pytest.raises(UserError, match="http://HOST:PORT"): Client("station")
    with pytest.raises(UserError, match="at least 1"): Stream([Given()], None, every=0)


def test_the_command_ends_when_the_server_hangs(tmp_path):
    "A server that accepts and never answers; Ctrl-C ends the command although its request hangs."
    import signal
    (tmp_path / "VIN1.png").write_bytes(png(GREY))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        command = [sys.executable, "-c", "from thesis_ad.cli import main; main()", "stream", str(tmp_path),
            "--existing", "--api", f"http://127.0.0.1:{silent.getsockname()[1]}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env=os.environ, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as process:
            connection, _ = silent.accept()
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=60)
            connection.close()
    assert process.returncode == 130 and "Traceback" not in errors and "OK" not in output
