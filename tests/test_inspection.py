"""From an image to a filed decision: regions against scipy, reports,
and `thesis-ad inspect` with ledger and reports."""
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import write_image
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy import ndimage
from test_threshold import FIT, refused, thesis_ad

from thesis_ad.decision.threshold import decide
from thesis_ad.files import read_image, sha256
from thesis_ad.inspection.ledger import SECRETS, entries
from thesis_ad.inspection.report import (
    Report,
    bundle_hash,
    find_regions,
    judge,
    overlay,
    part_decision,
    png,
    report_html,
    to_json,
    unread,
    write_report,
)
from thesis_ad.models.detector import load_bundle, update_bundle
from thesis_ad.settings import UserError, rng


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    "A folder with a calibrated `bundle`, photos `ok*.png` and `nok*.png`, and a broken file."
    root = tmp_path_factory.mktemp("line")
    for folder, count, square in (("train/ok", 10, False), ("calibration/ok", 21, False), ("calibration/nok", 4, True)):
        for i in range(count):
            write_image(root / "data" / folder / f"{folder[-2:]}{i}.png", rng("line", folder, i), square)
    for i in range(3):
        write_image(root / f"new/ok{i}.png", rng("line", "new", i))
        write_image(root / f"new/nok{i}.png", rng("line", "nok", i), True)
    (root / "new/broken.png").write_bytes(b"not an image")
    for command in (("fit", "gaussian", root / "data", "-o", root / "bundle", *FIT),
            ("calibrate", root / "bundle", root / "data")):
        assert thesis_ad(*command).returncode == 0
    return root


@pytest.fixture
def detector(line): return load_bundle(line / "bundle", "cpu")


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 1, 2, 3])),
    st.sampled_from([0.5, 1.0, 2.5]), st.sampled_from([None, 0.1, 2.0]))
def test_regions_are_those_of_scipy(heat, value, scale):
    mask, regions = find_regions(heat, value, scale)
    label, count = ndimage.label(heat > value, structure=np.ones((3, 3)))
    assert (mask == (heat > value)).all() and len(regions) == count
    want = []
    for k, (rows, columns) in enumerate(ndimage.find_objects(label), 1):
        inside = label == k
        want.append((columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start, int(inside.sum()),
            float(heat[inside].max())))
    assert sorted((r.left, r.top, r.width, r.height, r.pixels, r.peak) for r in regions) == sorted(want)
    assert [r.pixels for r in regions] == sorted((r.pixels for r in regions), reverse=True)
    assert all(r.mm2 is None if scale is None else np.isclose(r.mm2, r.pixels * scale**2) for r in regions)


def test_the_decision_on_a_part():
    assert [part_decision(d) for d in ([], ["OK"], ["OK", "OK"], ["OK", "unread"], ["OK", "unread", "NOK"], ["unread"],
        ["ok"])] == ["unread", "OK", "OK", "unread", "NOK", "unread", "unread"]


def test_one_image_from_a_path_bytes_or_an_array(line, detector):
    for name, decision in (("ok0.png", "OK"), ("nok0.png", "NOK")):
        file = line / "new" / name
        by_path, by_bytes = judge(detector, file), judge(detector, file.read_bytes(), name=name)
        by_array = judge(detector, read_image(file))
        assert by_path.score == by_bytes.score == by_array.score
        assert {by_path.decision, by_bytes.decision, by_array.decision} == {decision}
        assert by_path.sha256 == by_bytes.sha256 == sha256(file) and by_path.name == name
        assert by_path.confidence == float(decide(detector, by_path.score)[1]) and 0 <= by_path.confidence <= 1
        assert by_path.marked == by_path.mask.sum() == sum(region.pixels for region in by_path.regions)
        assert (by_path.height,
            by_path.width) == by_path.heat.shape == by_path.image.shape[:2] == overlay(by_path).shape[:2] == (72, 96)
        assert json.loads(json.dumps(to_json(by_path), allow_nan=False))["decision"] == decision
    assert (read_image(png(by_path.image)) == by_path.image).all()
    marked = np.argwhere(by_path.mask).mean(0)
    assert 20 <= marked[0] < 36 and 40 <= marked[1] < 60, "the marked pixels are not where the square is"


def test_what_cannot_be_judged_is_unread(line, detector, tmp_path):
    for image in (b"", b"not an image", tmp_path / "missing.png", tmp_path, line / "new/broken.png"):
        seen = judge(detector, image, part_id="VIN")
        assert seen.decision == "unread" and seen.score is None and seen.part_id == "VIN" and seen.status
        assert "unread" in report_html([seen])
    Image.fromarray(np.full((72, 96), 40_000, np.uint16)).save(tmp_path / "deep.png")
    seen = judge(detector, (tmp_path / "deep.png").read_bytes())
    assert seen.decision == "unread" and "8 bits" in seen.status
    detector.predict = lambda images: (np.full(len(images), np.nan), None)
    assert judge(detector, line / "new/ok0.png").decision == "unread"
    detector.threshold = None
    with pytest.raises(UserError, match="calibrate"): judge(detector, line / "new/ok0.png")


def test_a_page_stands_alone(line, detector, tmp_path):
    name = "<img src=x onerror=alert(1)>$\\frac&"
    inspections = [judge(detector, line / "new" / file, part_id=name, operator=name, mm_per_pixel=0.5)
        for file in ("ok0.png", "nok0.png")]
    page = report_html([*inspections, unread(name, name=name)])
    assert "<img src=x" not in page and page.count("<img src=\"data:image/jpeg;base64,") == 6
    assert not re.findall(r"https?://|<script|<link|url\(", page) and "NOK" in re.search("<title>(.*)</title>", page)[1]
    file = write_report(inspections, tmp_path, pdf=True)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".html", ".json", ".pdf"] and file.parent == tmp_path
    assert len(re.findall(rb"/Type /Page\b", file.with_suffix(".pdf").read_bytes())) == 2
    report = json.loads(file.with_suffix(".json").read_text())
    assert report["decision"] == "NOK"
    assert report["inspections"][1]["regions"][0]["mm2"] == inspections[1].regions[0].pixels / 4


def test_a_detector_without_maps(line, detector, tmp_path):
    predict = detector.predict
    detector.predict = lambda images: (predict(images)[0], None)
    seen = judge(detector, line / "new/nok0.png")
    assert seen.decision == "NOK" and seen.heat is None and seen.marked is None and (overlay(seen) == seen.image).all()
    report = Report(tmp_path, pdf=True)
    report.add(seen)
    assert report.close().exists()


# The command line

@pytest.fixture
def station(line, tmp_path, monkeypatch):
    "Arguments of an inspection that signs and reports, and where it writes."
    for name in SECRETS: monkeypatch.delenv(name, raising=False)
    (tmp_path / "key").write_text("k" * 40)
    return ["inspect", line / "bundle", line / "new", "--ledger", tmp_path / "line.db", "--report",
        tmp_path / "reports", "--key-file", tmp_path / "key"]


def test_inspect_signs_and_reports(line, station, tmp_path):
    result = thesis_ad(*station, "--operator", "A. Novák", "--mm-per-pixel", 0.5, "-o", tmp_path / "out")
    assert "Traceback" not in result.stderr, result.stderr
    found = {entry.part_id: entry for entry in entries(tmp_path / "line.db")}
    assert {part: entry.decision for part, entry in found.items()} == {f"{kind}{i}": kind.upper()
        for kind in ("ok", "nok") for i in range(3)} | {"broken": "unread"}
    table = {Path(row.split(",")[0]).stem: row for row in (tmp_path / "out/decisions.csv").read_text().splitlines()[1:]}
    for part, entry in found.items():
        assert entry.operator == "A. Novák" and entry.bundle == bundle_hash(line / "bundle")
        assert entry.image == sha256(line / f"new/{part}.png")
        if entry.decision != "unread": assert f",{entry.score!r}," in table[part], "the ledger and decisions.csv differ"
    reports = {json.loads(path.read_text())["inspections"][0]["part_id"]: path
        for path in (tmp_path / "reports").glob("*.json")}
    assert reports.keys() == found.keys()
    assert json.loads(reports["nok1"].read_text())["inspections"][0]["regions"][0]["mm2"] > 0
    assert found["nok1"].hash in reports["nok1"].with_suffix(".html").read_text()
    verify = ["ledger", "verify", tmp_path / "line.db", "--key-file", tmp_path / "key"]
    assert thesis_ad(*verify, "--report", reports["ok0"]).returncode == 0
    shutil.move(tmp_path / "line.db", tmp_path / "first.db")
    shutil.move(tmp_path / "line.db.head", tmp_path / "first.db.head")
    thesis_ad(*station)
    result = thesis_ad(*verify, "--report", reports["ok0"])
    assert result.returncode == 1 and found["ok0"].hash in result.stdout


def test_one_part_of_several_images(line, station, tmp_path):
    thesis_ad(*station, "--part-id", "VIN7", "--pdf")
    page, = (tmp_path / "reports").glob("VIN7_*.html")
    report = json.loads(page.with_suffix(".json").read_text())
    assert report["decision"] == "NOK" and len(report["inspections"]) == 7 and page.with_suffix(".pdf").exists()
    assert [entry.part_id for entry in entries(tmp_path / "line.db")] == ["VIN7"] * 7


def test_what_is_refused_before_anything_is_written(line, station, tmp_path):
    refused(thesis_ad(*station[:-2]), "needs a key", "THESIS_AD_SECRET_KEY")
    refused(thesis_ad(*station, "--mm-per-pixel", 0), "positive")
    refused(thesis_ad(*station[:3], "--part-id", "VIN"), "--ledger")
    bundle = shutil.copytree(line / "bundle", tmp_path / "bundle")
    update_bundle(bundle, threshold=None, sigmoid=None)
    refused(thesis_ad("inspect", bundle, *station[2:]), "calibrate")
    assert not (tmp_path / "line.db").exists() and not list((tmp_path / "reports").glob("*"))
