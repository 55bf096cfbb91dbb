"""`inspect`: a row for every file asked for, exit codes, maps and masks, names of any length, its own output, and
overlays that mean something."""
import csv
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import write_image
from PIL import Image
from test_threshold import refused, thesis_ad

from thesis_ad.decision import inspecting
from thesis_ad.decision.inspecting import files_to_inspect, inspect, output_name
from thesis_ad.decision.threshold import mark
from thesis_ad.models.detector import load_bundle, predict_set
from thesis_ad.settings import rng

NAMES = {"a": False, "b" * 245: False, "c": True, "line\nbreak": True, "ü" * 100: False}


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """A calibrated and an uncalibrated bundle, and a folder of five images, two of them NOK,
    one with a name of 245 characters."""
    root = tmp_path_factory.mktemp("inspecting")
    for i in range(8): write_image(root / f"data/train/ok/{i}.png", rng("inspecting", "train", i))
    for i in range(20): write_image(root / f"data/calibration/ok/{i}.png", rng("inspecting", "calibration", i))
    assert thesis_ad("fit", "gaussian", root / "data", "-o", root / "raw", "--set", "size=64").returncode == 0
    shutil.copytree(root / "raw", root / "bundle")
    assert thesis_ad("calibrate", root / "bundle", root / "data").returncode == 0
    for name, square in NAMES.items(): write_image(root / f"new/{name}.png", rng("inspecting", name), square)
    return root


def statuses(folder):
    with open(folder / "decisions.csv", newline="", errors="surrogateescape") as file:
        return [row["status"] for row in csv.DictReader(file)]


def test_exit_codes_say_the_worst_of_all_files(part, tmp_path):
    ok, nok, bundle = part / "new/a.png", part / "new/c.png", part / "bundle"
    assert thesis_ad("inspect", bundle, ok).returncode == 0
    assert thesis_ad("inspect", bundle, ok, nok).returncode == 1
    for name, data in (("broken.png", ok.read_bytes()[:300]), ("empty.png", b""), ("notes.txt", b"no image")):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "folder.png").mkdir()
    latin = os.fsencode(tmp_path) + b"/caf\xe9.png"
    shutil.copy(os.fsencode(ok), latin)
    result = thesis_ad("inspect", bundle, ok,
        nok, *(tmp_path / name for name in ("broken.png", "empty.png", "notes.txt", "link.png", "missing.png")),
        os.fsdecode(latin), "-o", tmp_path / "o")
    assert result.returncode == 2 and "8 inspected: 2 OK, 1 NOK, 5 unread" in result.stderr, result.stderr
    assert statuses(tmp_path / "o") == ["OK", "NOK"] + ["unread"] * 5 + ["OK"], "a file asked for has no row"
    assert len(result.stdout.splitlines()) == 8 and result.stdout.count("unread") == 5
    assert "caf\\udce9.png" in result.stdout
    assert thesis_ad("inspect", bundle, tmp_path / "broken.png", "--exit-zero").returncode == 0
    result = thesis_ad("inspect", bundle, tmp_path)
    assert (result.returncode == 2 and "notes.txt" not in result.stdout and "1 files in" in result.stderr
        and "link.png" in result.stdout), result.stderr
    refused(thesis_ad("inspect", bundle, ok, tmp_path / "folder.png"), "no images in", "folder.png")


def test_a_bundle_without_a_threshold_decides_nothing_and_says_so(part, tmp_path):
    result = thesis_ad("inspect", part / "raw", part / "new", "-o", tmp_path)
    assert result.returncode == 2 and "5 undecided" in result.stderr and "nothing is decided" in result.stderr
    assert set(statuses(tmp_path)) == {"undecided"}
    raw = load_bundle(part / "raw", "cpu")
    table = inspect(raw, files_to_inspect([part / "new"])[0])
    glow = {}
    for name in ("a", "c"):
        images = [row for row in table.itertuples() if row.path.endswith(f"/{name}.png")]
        pixels = np.asarray(Image.open(images[0].path))
        heat = predict_set(raw, inspecting._readable(raw, [images[0].path])[0])[1][0]
        glow[name] = np.abs(mark(pixels, heat, scale=raw.facts["scale"]).astype(int) - pixels).mean()
    assert glow["c"] > 3 * glow["a"], "an OK image glows like a NOK one"
    refused(thesis_ad("inspect", part / "raw", part / "new", "-o", tmp_path, "--masks"), "calibrate")


@pytest.mark.parametrize("kind", ["npy", "png", "tiff"])
def test_maps_and_masks_are_those_of_the_detector(kind, part, tmp_path):
    result = thesis_ad("inspect", part / "bundle", part / "new", "-o", tmp_path, "--maps", kind, "--masks")
    assert result.returncode == 1, result.stderr
    detector, table = load_bundle(part / "bundle", "cpu"), pd.read_csv(tmp_path / "decisions.csv")
    _, maps = predict_set(detector, inspecting._readable(detector, table.path)[0])
    for heat, row in zip(maps, table.itertuples()):
        found = np.load(tmp_path / row.map) if kind == "npy" else np.asarray(Image.open(tmp_path / row.map))
        if kind == "png": found = found / 65535 * (row.map_high - row.map_low) + row.map_low
        np.testing.assert_allclose(found, heat, rtol=0,
            atol=0 if kind != "png" else (row.map_high - row.map_low) / 130_000)
        mask = np.asarray(Image.open(tmp_path / row.mask)) > 0
        assert (mask == (heat > detector.threshold["pixel"]["value"])).all()
    refused(thesis_ad("inspect", part / "bundle", part / "new", "--maps", kind), "-o")
    refused(thesis_ad("inspect", part / "bundle", part / "new", "-o", tmp_path, "--maps", "exr"), "exr", "npy")


def test_its_own_output_is_neither_inspected_nor_learned_from(part, tmp_path):
    "An output folder inside the input folder, an overlay copied elsewhere under another name, and a fit on the whole."
    photos = tmp_path / "photos"
    for i in range(6): write_image(photos / f"{i}.png", rng("own", i))
    for times in range(2):
        result = thesis_ad("inspect", part / "bundle", photos, "-o", photos / "seen", "--maps", "tiff", "--masks")
        assert len(statuses(photos / "seen")) == 6, result.stderr
    assert "18 images in" in result.stderr and "written by an earlier inspection" in result.stderr
    shutil.copy(next((photos / "seen").glob("*_0.png")), photos / "holiday.png")
    assert len(files_to_inspect([photos])[0]) == 6
    result = thesis_ad("inspect", part / "bundle", photos / "holiday.png")
    assert result.returncode == 2 and "shows no part" in result.stderr
    shutil.rmtree(photos / "seen")
    result = thesis_ad("fit", "gaussian", photos, "-o", tmp_path / "b", "--set", "size=64")
    assert (result.returncode == 0 and "holiday.png" in result.stderr
        and len(load_bundle(tmp_path / "b", "cpu").trained_on) < 7), result.stderr


def test_results_of_an_earlier_run_do_not_stay_and_nothing_else_is_touched(part, tmp_path):
    (tmp_path / "00000_notes.png").write_bytes(b"mine")
    (tmp_path / "plan.txt").write_text("mine")
    thesis_ad("inspect", part / "bundle", part / "new", "-o", tmp_path, "--maps", "npy", "--masks")
    assert len(list(tmp_path.iterdir())) == 5 * 3 + 3
    thesis_ad("inspect", part / "bundle", part / "new/c.png", "-o", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000_c.png", "00000_notes.png",
        "decisions.csv", "plan.txt"]
    assert (tmp_path / "00000_notes.png").read_bytes() == b"mine"
    shutil.copy(part / "new/c.png", tmp_path / "notes.png")
    refused(thesis_ad("inspect", part / "bundle", tmp_path / "notes.png", "-o", tmp_path), "00000_notes.png",
        "another folder")
    assert (tmp_path / "00000_notes.png").read_bytes() == b"mine"


def test_long_and_strange_names_are_written(part, tmp_path):
    assert thesis_ad("inspect", part / "bundle", part / "new", "-o", tmp_path).returncode == 1
    table = pd.read_csv(tmp_path / "decisions.csv")
    assert len(table) == len(NAMES) and all((tmp_path / name).is_file() for name in table.overlay)
    assert table.overlay.is_unique
    assert output_name(7, "x" * 300 + ".png") != output_name(8, "x" * 300 + ".png")


def test_linked_folders_are_followed_once(part, tmp_path):
    write_image(tmp_path / "a/1.png", rng("link"))
    write_image(tmp_path / "elsewhere/2.png", rng("link", 2))
    (tmp_path / "a/link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "a", target_is_directory=True)
    assert [file.name for file in files_to_inspect([tmp_path / "a"])[0]] == ["1.png", "2.png"]


def test_only_the_image_at_fault_goes_without_a_score(part, monkeypatch):
    "A file that vanishes between the look and the score, in the middle of a batch; and several chunks are one table."
    detector = load_bundle(part / "bundle", "cpu")
    files = files_to_inspect([part / "new"])[0] * 3
    whole = inspect(detector, files)
    monkeypatch.setattr(inspecting, "CHUNK", 4)
    assert inspect(detector, files).equals(whole)
    from thesis_ad.data import datasets
    read = datasets.read_image
    monkeypatch.setattr(datasets, "_images", datasets._Images())
    monkeypatch.setattr(datasets, "read_image",
        lambda path, *rest: read(path if path.name != "c.png" else path.with_name("gone.png"), *rest))
    gone = inspect(detector, files)
    assert (gone.status == "unread").sum() == 3
    assert gone.reason[gone.status == "unread"].str.contains("no such file").all()
    assert (gone[gone.status != "unread"].score == whole[gone.status != "unread"].score).all()


def test_a_graphics_card_by_its_usual_name_is_explained(part):
    result = thesis_ad("inspect", part / "bundle", part / "new/a.png", "--device", "gpu")
    refused(result, "cuda", "mps")


def test_an_ignored_region_has_no_influence_at_all(tmp_path):
    """A label that changes from image to image: nothing inside changes a score or a map by a bit,
    and a defect outside is found as before."""
    label = np.zeros((72, 96), bool)
    label[2:14, 5:40] = True
    Image.fromarray(label.astype(np.uint8) * 255).save(tmp_path / "label.png")
    for folder, count, square in (("train/ok", 8, False), ("test/ok", 4, False), ("test/nok", 4, True)):
        for i in range(count):
            path = tmp_path / f"data/{folder}/{folder[-2:]}{i}.png"
            write_image(path, rng("ignored", folder, i), square)
            image = np.array(Image.open(path))
            image[label] = rng("label", folder, i).integers(0, 255, (label.sum(), 3))
            Image.fromarray(image).save(path)
    assert thesis_ad("fit", "gaussian", tmp_path / "data", "-o", tmp_path / "b", "--set", "size=64", "--ignore",
        tmp_path / "label.png").returncode == 0
    detector = load_bundle(tmp_path / "b", "cpu")
    file = tmp_path / "data/test/ok/ok0.png"
    def judged(): return inspecting.score_each(detector, inspecting._readable(detector, [file])[0])
    (score, heat, _), = judged()
    image = np.array(Image.open(file))
    image[label] = 0
    Image.fromarray(image).save(file)
    (again, heat_again, _), = judged()
    assert score == again and (heat == heat_again).all() and (heat[label] == heat.min()).all()
    result = thesis_ad("evaluate", tmp_path / "b", tmp_path / "data", "-o", tmp_path / "e")
    assert (result.returncode == 0
        and pd.read_csv(tmp_path / "e/metrics.csv").set_index("metric").value["image_auroc"] == 1), result.stderr
    write_image(tmp_path / "wide.png", rng("wide"), shape=(72, 120))
    result = thesis_ad("inspect", tmp_path / "b", tmp_path / "wide.png")
    assert result.returncode == 2 and "the region to ignore is 96×72 pixels and the image 120×72" in result.stderr
    Image.new("L", (96, 72)).save(tmp_path / "black.png")
    refused(thesis_ad("fit", "gaussian", tmp_path / "data", "-o", tmp_path / "b", "--ignore", tmp_path / "black.png"),
        "neither nothing nor all")
