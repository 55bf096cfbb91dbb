"""The dashboard in a real browser: teach a part, see decisions, recalibrate, see a tampered ledger called out."""
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx
import pytest
from conftest import write_image

from thesis_ad.data.datasets import open_dataset
from thesis_ad.decision.threshold import calibrate
from thesis_ad.inspection.dashboard import check_photos, command, go_live, keep_photos, progress_of, steps_of
from thesis_ad.models.detector import create
from thesis_ad.settings import UserError, rng

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PATIENCE = 240          # seconds for anything to appear; a loaded machine is slow


def test_photos_are_kept_once_and_broken_ones_are_named(tmp_path):
    write_image(tmp_path / "a.png", rng("a"))
    data = (tmp_path / "a.png").read_bytes()
    problems = keep_photos([("a.png", data), ("b.png", data), ("cut.png", data[:500]), ("notes.txt", b"text")],
        tmp_path / "photos")
    assert check_photos(tmp_path / "photos")[0] == 1
    assert [problem.split(":")[0] for problem in problems] == ["cut.png", "notes.txt"]
    assert check_photos(tmp_path / "none")[0] == 0
    write_image(tmp_path / "wide.png", rng("wide"), shape=(72, 100))
    keep_photos([("wide.png", (tmp_path / "wide.png").read_bytes())], tmp_path / "photos")
    assert any("2 different sizes" in note
        for note in check_photos(tmp_path / "photos")[1]), "what the folder holds is looked at anew"


def test_a_command_that_fails_says_its_sentence():
    with pytest.raises(UserError, match="no such thing"):
        list(progress_of([sys.executable, "-c", "print('thesis-ad: no such thing'); raise SystemExit(2)"]))


def test_the_bundle_before_is_kept(tmp_path):
    for name in ("new", "bundle"): (tmp_path / name).mkdir(); (tmp_path / name / name).touch()
    go_live(tmp_path / "new", tmp_path / "bundle")
    assert (tmp_path / "bundle" / "new").exists() and (tmp_path / "bundle.previous" / "bundle").exists()
    assert not (tmp_path / "new").exists()


def test_auto_sets_its_own_threshold():
    assert [step[0] for step in steps_of("auto", "", "photos", "new")] == ["fit"]
    assert [step[0] for step in steps_of("padim", "", "photos", "new")] == ["fit", "calibrate"]
    assert next(steps_of("auto", "size=64,96 folds=2", "photos", "new"))[-4:] == (
        "--set", "size=64,96", "--set", "folds=2")


# In a browser

@contextmanager
def started(*arguments, ready, **environment):
    "A `thesis-ad` process, once `ready()` is true; terminated at the end."
    with subprocess.Popen(command(*arguments), env=os.environ | environment, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            until(lambda: process.poll() is not None or ready())
            assert process.poll() is None, f"thesis-ad {arguments[0]} ended"
            yield
        finally: os.killpg(process.pid, 15)


def until(check):
    "What `check()` gives once it is true; an error after `PATIENCE` seconds."
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if found := check(): return found
        except Exception as error: last = error
        else: last = None
        time.sleep(0.2)
    raise AssertionError(f"not seen within {PATIENCE} s") from last


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server: return server.getsockname()[1]


def open_browser():
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--window-size=1600,1000"):
        options.add_argument(flag)
    return webdriver.Chrome(options, webdriver.ChromeService(DRIVER))


class Page:
    "The dashboard as a person uses it: by what is written on it."
    def __init__(self, browser, address): self.browser, self.address = browser, address
    def open(self, name): self.browser.get(f"{self.address}/{name}")
    def text(self): return self.browser.execute_script("return document.body.innerText")
    def see(self, *words): until(lambda: all(word in self.text() for word in words))

    def press(self, label):
        until(lambda: [button.click() for button in self.browser.find_elements("xpath",
            f"//button[normalize-space()='{label}']") if button.is_enabled()])

    def drop(self, files, place=0):
        fields = until(lambda: [one for one in self.browser.find_elements("css selector", "input[type=file]")][place:])
        fields[0].send_keys("\n".join(map(str, files)))

    def write(self, label, text):
        from selenium.webdriver.common.keys import Keys
        until(lambda: self.browser.find_elements("css selector",
            f"input[aria-label='{label}']"))[0].send_keys(text + Keys.ENTER)

    def shot(self, name):
        if folder := os.environ.get("THESIS_AD_SCREENSHOTS"): self.browser.save_screenshot(f"{folder}/{name}.png")


in_a_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER),
    reason="chromium or chromedriver is not installed (Debian: chromium chromium-driver)")


@in_a_browser
def test_drift_that_only_warns_leaves_the_decisions(tmp_path):
    "A station that drift does not stop goes on deciding under a banner, until somebody ends the warning."
    generator, api, board = rng("warned"), free_port(), free_port()
    for i in range(24):
        write_image(tmp_path / "photos" / f"{'train/good' if i < 12 else 'calibration/good'}/{i:03d}.png", generator)
    write_image(tmp_path / "bad.png", generator, square=True)
    data = open_dataset(tmp_path / "photos")
    detector = create("global_knn", size=(64, 64), device="cpu").fit(data.train)
    calibrate(detector, data.calibration, alpha=0.1)
    detector.save(tmp_path / "part")
    url = f"http://127.0.0.1:{api}"
    secrets = {"THESIS_AD_TOKEN": "teach", "THRESHOLD": ""}
    with (started("serve", tmp_path / "part", "--port", api, "--drift-window", 10,
            ready=lambda: httpx.get(f"{url}/ready").status_code == 200, **secrets),
            started("dashboard", tmp_path / "part", "--api", url, "--port", board,
                ready=lambda: httpx.get(f"http://127.0.0.1:{board}/_stcore/health").status_code == 200, **secrets),
            open_browser() as browser):
        answers = [httpx.post(f"{url}/predict", files={"file": (tmp_path / "bad.png").read_bytes()},
            data={"part_id": f"VIN-{k}"}, timeout=60).json() for k in range(12)]
        assert {answer["decision"] for answer in answers} == {"NOK"} and answers[-1]["drift"]
        page = Page(browser, f"http://127.0.0.1:{board}")
        page.open("")
        page.see("Drift:", "higher", "✖ NOK", "VIN-11")
        assert "Stopped" not in page.text()
        page.shot("live_warning")
        page.press("The parts are OK, go on")
        until(lambda: not httpx.get(f"{url}/recent").json()["drift"])
        until(lambda: "Drift:" not in page.text())


@in_a_browser
def test_an_evening_at_the_station(tmp_path):
    """Teach `auto` on 20 images, go live, see OK and NOK, recalibrate, be stopped by drift and go on,
    and see a changed ledger named."""
    generator, api, board = rng("evening"), free_port(), free_port()
    for i in range(20): write_image(tmp_path / f"teach/{i:03d}.png", generator)
    for i in range(4): write_image(tmp_path / f"new/{i:03d}.png", generator)
    write_image(tmp_path / "bad.png", generator, square=True)
    url, files = f"http://127.0.0.1:{api}", lambda name: {"file": (tmp_path / name).read_bytes()}
    def inspect(name, part_id):
        return httpx.post(f"{url}/predict", files=files(name), data={"part_id": part_id}, timeout=60).json()
    secrets = {"THESIS_AD_TOKEN": "teach", "THESIS_AD_SECRET_KEY": "0123456789abcdef0123456789abcdef", "THRESHOLD": ""}
    with (started("serve", tmp_path / "part", "--wait", "--port", api, "--ledger", tmp_path / "ledger.sqlite",
            "--drift-window", 10, "--drift-stops", ready=lambda: httpx.get(f"{url}/health").status_code == 200,
            **secrets), started("dashboard", tmp_path / "part", "--api", url, "--port", board,
                ready=lambda: httpx.get(f"http://127.0.0.1:{board}/_stcore/health").status_code == 200, **secrets),
            open_browser() as browser):
        page = Page(browser, f"http://127.0.0.1:{board}")
        page.open("teach")
        page.see("0 images are few")
        page.drop(sorted((tmp_path / "teach").iterdir()))
        page.see("19")
        page.press("Add images")
        page.see("20 images")
        page.shot("teach_before")
        page.write("Settings of the method", "size=64 folds=2")
        page.press("Teach")
        page.see("A new bundle is ready", "20 scores are out of fold")
        assert httpx.get(f"{url}/ready").status_code == 503, "not live yet"
        page.press("Go live")
        page.see("auto decides")
        page.shot("teach_after")
        assert inspect("new/000.png", "VIN-good")["decision"] == "OK"
        assert inspect("bad.png", "VIN-bad")["decision"] == "NOK"
        page.open("")
        page.see("✖ NOK", "VIN-bad", "threshold", "Last NOK parts")
        page.shot("live_nok")
        inspect("new/001.png", "VIN-next")
        page.see("✔ OK", "VIN-next")
        size = browser.execute_script("return parseFloat(getComputedStyle([...document.querySelectorAll('.light "
            "div')][0]).fontSize) / window.innerHeight")
        assert size > 0.15, "letters a sixth of the window high"
        page.shot("live_ok")
        browser.set_window_size(820, 1180)
        page.see("VIN-next")
        page.shot("live_tablet")
        before = httpx.get(f"{url}/model").json()
        page.open("teach")
        page.drop(sorted((tmp_path / "new").iterdir()), place=1)
        page.see("003.png")
        page.press("Recalibrate")
        page.see("New threshold", "4 images")
        page.shot("teach_tablet")
        after = httpx.get(f"{url}/model").json()
        assert (before["source"], after["source"]) == ("bundle", "calibration")
        assert after["threshold"]["value"] != before["threshold"]["value"]
        page.open("")
        assert ["decision" in inspect("bad.png", f"VIN-{k}") for k in range(11)][-2:] == [False, False], "stopped"
        page.see("Stopped. Drift:", "stopped by drift", "– – –")
        page.shot("live_drift")
        page.press("The parts are OK, go on")
        until(lambda: not httpx.get(f"{url}/recent").json()["stopped"])
        assert inspect("new/002.png", "VIN-after")["decision"] == "OK"
        page.see("✔ OK", "VIN-after")
        page.open("ledger")
        page.press("Verify the whole ledger")
        page.see("15 entries verified")
        with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
            db.execute("UPDATE entries SET entry = replace(entry, 'NOK', 'OK') WHERE sequence = 2")
        page.press("Verify the whole ledger")
        page.see("The ledger was changed: entry 2 is bad")
        page.shot("ledger")
        page.open("model")
        page.see("auto", "torch", "calibration")
        page.shot("model")
    assert (tmp_path / "part.station" / "photos").is_dir()
