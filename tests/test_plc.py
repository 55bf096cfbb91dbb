"""Decisions at loopback controllers that fail in every way: counted outcomes, no clock."""
import json
import random
import socket
import struct
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thesis_ad.cli import _controller
from thesis_ad.inspection.plc import (
    BEAT,
    FAIL,
    MODES,
    PASS,
    ModbusPlc,
    MqttResults,
    Plc,
    SimulatedController,
    code_of,
)
from thesis_ad.settings import UserError


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end: time.sleep(0.002)
    return condition()


@given(st.one_of(st.text(), st.none(), st.integers(), st.floats(), st.binary(), st.lists(st.text()),
    st.just(ValueError("OK"))))
def test_only_the_word_ok_is_a_pass(decision):
    assert code_of(decision) == (PASS if decision == "OK" else FAIL)


def wrong_passes(mode, confirm, count, seed=0):
    """(delivered, wrong passes read by the controller, longest send in seconds) of `count` random decisions with
    numbers."""
    draw, decisions, delivered, longest = random.Random(f"{mode} {confirm} {seed}"), {}, 0, 0.0
    with SimulatedController(mode, size=3, answers=confirm == "answered") as controller, Plc("127.0.0.1",
            controller.port, confirm, sequence=True) as plc:
        if mode != "dead": assert until(lambda: plc.connected)
        for _ in range(count):
            decision = draw.choice(["OK", "OK", "NOK", "unread", None])
            delivery = plc.send(decision)
            decisions[plc.sequence], delivered = decision, delivered + delivery.delivered
            longest = max(longest, delivery.seconds)
            time.sleep(draw.random() * 0.002)
        frames = [struct.unpack(">BH", frame) for frame in controller.received]
    return delivered, sum(code == PASS and decisions[number] != "OK" for code, number in frames), longest


@pytest.mark.parametrize("confirm", ["acknowledged", "answered"])
@pytest.mark.parametrize("mode", MODES)
def test_no_fault_makes_a_pass(mode, confirm):
    delivered, wrong, _ = wrong_passes(mode, confirm, 60)
    assert wrong == 0 and delivered <= 60
    if mode == "dead" or (mode in ("slow", "half-open") and confirm == "answered"): assert delivered == 0
    if mode == "on time": assert delivered > 0


def late_passes(count, delay=0.08):
    """Passes that a slow controller without numbers takes for the decision on a part that is not OK,
    judged by the part before it."""
    present, taken = ["unread"], []
    class Watching(list):
        def append(self, frame): taken.append((frame[0], present[0]))
    with SimulatedController("slow", answers=True, delay=delay) as controller, Plc("127.0.0.1", controller.port,
            "answered") as plc:
        controller.received = Watching()
        for i in range(count):
            until(lambda: plc.connected, 0.3)
            present[0] = ("OK", "NOK")[i % 2]
            plc.send(present[0])
        time.sleep(2 * delay)
    return [one for one in taken if one == (PASS, "NOK")]


def test_a_late_byte_is_not_taken_for_the_next_part():
    assert late_passes(8) == []


def test_a_controller_that_comes_back():
    with socket.create_server(("127.0.0.1", 0)) as free: port = free.getsockname()[1]
    with Plc("127.0.0.1", port, "answered", bound=5) as plc:
        delivery = plc.send("OK")
        assert not delivery.delivered and delivery.reason == "not connected" and delivery.code == PASS
        with SimulatedController(answers=True, port=port) as controller:
            assert until(lambda: plc.connected) and plc.send("OK").delivered and until(lambda: controller.passing)
        assert until(lambda: not plc.connected), "a connection that the controller has closed is kept"
        assert not controller.passing
        with SimulatedController(answers=True, port=port) as controller:
            assert until(lambda: plc.connected) and plc.send("NOK").delivered


def test_no_station_no_pass():
    with SimulatedController() as controller:
        with Plc("127.0.0.1", controller.port, bound=5) as plc:
            assert until(lambda: plc.connected) and plc.send("OK").delivered and until(lambda: controller.passing)
        assert until(lambda: not controller.passing)
        assert not plc.send("OK").delivered


def test_an_error_and_an_alarm_are_fails():
    with SimulatedController() as controller, Plc("127.0.0.1", controller.port, bound=5) as plc:
        assert until(lambda: plc.connected)
        with pytest.raises(KeyboardInterrupt), plc.part() as part:
            part.decision = "OK"
            raise KeyboardInterrupt
        assert part.delivery == plc.send("unread").__class__(True, FAIL, "", part.delivery.seconds)
        with plc.part(): pass
        plc.stop("drift")
        with plc.part() as part: part.decision = "OK"
        plc.resume()
        with plc.part() as part: part.decision = "OK"
        assert until(lambda: len(controller.received) == 5)
        assert [frame[0] for frame in controller.received] == [FAIL] * 4 + [PASS]


def test_a_wrong_answer_is_no_delivery():
    with socket.create_server(("127.0.0.1", 0)) as server, Plc("127.0.0.1", server.getsockname()[1], "answered",
            bound=5) as plc:
        line, _ = server.accept()
        def answer(): line.recv(1); line.sendall(b"\x00")
        thread = threading.Thread(target=answer)
        assert until(lambda: plc.connected)
        thread.start()
        delivery = plc.send("NOK")
        thread.join()
        assert not delivery.delivered and "answered 00 to 01" in delivery.reason
        line.close()


def test_heartbeats_and_numbers():
    with socket.create_server(("127.0.0.1", 0)) as server, Plc("127.0.0.1", server.getsockname()[1], "sent",
            sequence=True, heartbeat=0.01) as plc:
        line, _ = server.accept()
        frames = [line.recv(3, socket.MSG_WAITALL) for _ in range(2)]
        assert frames == [bytes([BEAT, 0, 0])] * 2
        assert plc.send("OK").delivered
        while (frame := line.recv(3, socket.MSG_WAITALL))[0] == BEAT: pass
        assert frame == bytes([PASS, 0, 1])
        line.close()


def test_modbus_dead_half_open_and_resetting():
    for mode in ("dead", "half-open", "resetting"):
        with SimulatedController(mode, size=15) as controller, ModbusPlc("127.0.0.1", controller.port) as plc:
            if mode != "dead": assert until(lambda: plc.connected)
            assert not any(plc.send("OK").delivered for _ in range(3))


@pytest.mark.parametrize("kind", ["", "answered:"])
def test_the_command_line_speaks_to_both_controllers_over_tcp(kind):
    with SimulatedController(size=3 if kind else 1, answers=bool(kind)) as controller:
        with _controller(f"{kind}127.0.0.1:{controller.port}") as link:
            assert until(lambda: link.connected) and link.send("OK").delivered and until(lambda: controller.passing)
    with _controller("modbus:127.0.0.1:1") as link: assert isinstance(link, ModbusPlc)


@pytest.mark.parametrize("place", ["answered:", "modbus::502", ":1", "host:port"])
def test_a_controller_that_is_none_is_one_sentence(place):
    with pytest.raises(UserError, match="a controller is HOST"): _controller(place)


def broker(server, heard):
    "The smallest MQTT broker: it accepts a connection and acknowledges what is published."
    line, _ = server.accept()
    with line, line.makefile("rb") as stream:
        while head := stream.read(1):
            size = shift = 0
            while True:
                byte = stream.read(1)[0]
                size, shift = size | (byte & 127) << shift, shift + 7
                if byte < 128: break
            body, kind = stream.read(size), head[0] >> 4
            if kind == 1: line.sendall(b"\x20\x02\x00\x00")
            if kind == 3:
                length, = struct.unpack(">H", body[:2])
                heard.append((body[2:2 + length].decode(), body[4 + length:].decode()))
                line.sendall(b"\x40\x02" + body[2 + length:4 + length])


def test_results_reach_a_broker():
    heard = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        with MqttResults("127.0.0.1", server.getsockname()[1], topic="line3") as results:
            assert results.publish({"part_id": "VIN1", "decision": "NOK"})          # before there is a connection
            threading.Thread(target=broker, args=(server, heard), daemon=True).start()
            assert until(lambda: len(heard) == 2)
        assert until(lambda: len(heard) == 3)
    told = dict(heard)
    assert json.loads(told["line3/results"]) == {"decision": "NOK", "part_id": "VIN1"}
    assert [text for topic, text in heard if topic == "line3/status"] == ["online", "offline"]


def test_settings_are_checked():
    with pytest.raises(UserError, match="confirmation"): Plc("127.0.0.1", confirm="yes")
    with pytest.raises(UserError, match="controller"): SimulatedController("sleepy")
