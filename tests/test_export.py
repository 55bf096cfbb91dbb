"""Exported bundles: the same scores, maps and decisions as the original's, without PyTorch;
and commands that start without it."""
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from thesis_ad import cli
from thesis_ad.data.datasets import ImageSet
from thesis_ad.inspection.export import LIMIT, PRECISIONS, Graph, convert, export_bundle, load_for, relative, write_onnx
from thesis_ad.models.detector import (MODEL_FILES, create, load_bundle, methods, predict_set, read_bundle,
    settings_of, update_bundle)
from thesis_ad.settings import UserError, pin_threads, rng

ROOT = Path(__file__).parents[1]
SMALL = {"size": (64, 96), "steps": 4, "width": 8, "cells": (16, 24), "rows_per_step": 256, "cap": 60,
    "native_aspect": False}
NAMES = sorted(methods())


def small(name, **changes):
    known = settings_of(methods()[name]())
    return create(name, **{key: value for key, value in (SMALL | changes).items() if key in known}, device="cpu")


def images(count, key="export", defect=False):
    found = 110 + 12 * rng(key).standard_normal((count, 80, 120, 3)) + 30 * np.sin(np.arange(120) / 9)[:, None]
    if defect: found[:, 30:46, 50:66] = 250
    return found.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module", autouse=True)
def one_thread(): pin_threads(1)


@pytest.fixture(scope="module")
def seen(): return ImageSet.from_arrays(np.concatenate([images(2, "ok"), images(2, "nok", True)]), labels=[0, 0, 1, 1])


@pytest.mark.parametrize("name", NAMES)
def test_every_detector_gives_the_same_scores_and_maps_in_every_format(name, seen, tmp_path):
    detector = small(name).fit(ImageSet.from_arrays(images(6)), ImageSet.from_arrays(images(2, "held")))
    scores, maps = predict_set(detector, seen)
    bundle = detector.save(tmp_path / "bundle")
    for format in MODEL_FILES:
        made = export_bundle(bundle, tmp_path / format, format)
        exported = load_bundle(tmp_path / format)
        again, redrawn = predict_set(exported, seen)
        assert relative(scores, again) < LIMIT and made["difference"]["score"] < LIMIT
        assert (maps is None) == (redrawn is None)
        assert (maps is None or all(relative(a, b) < LIMIT and b.dtype == np.float32 for a, b in zip(maps, redrawn)))
        assert np.ptp(scores) > 100 * LIMIT * np.abs(scores).max(), "scores so alike say nothing"
        assert (exported.trained_on == detector.trained_on).all() and exported.method == name
    assert {file.name for file in (tmp_path / "onnx").iterdir()} == {"bundle.json", "tensors.safetensors", "model.onnx"}


def test_a_detector_without_a_graph_is_refused_by_name():
    with pytest.raises(UserError, match="stranger has no graph"):
        Graph(type("Stranger", (), {"method": "stranger", "input_size": (8, 8)})())


@pytest.mark.parametrize("settings", [{"canvas": (0, 0), "size": (64, 64)}, {"native_aspect": True, "size": (64, 64)},
    {"enhance": True}, {"margin": 32}], ids=str)
def test_what_is_done_before_the_graph_is_done_for_it_as_well(settings, seen, tmp_path):
    detector = small("patchcore", **settings)
    detector.ignore(np.pad(np.ones((10, 20), bool), ((0, 70), (0, 100))))
    detector.fit(ImageSet.from_arrays(images(5)))
    export_bundle(detector.save(tmp_path / "b"), tmp_path / "x")
    (scores, maps), (again, redrawn) = predict_set(detector, seen), predict_set(load_bundle(tmp_path / "x"), seen)
    assert relative(scores, again) < LIMIT and all(relative(a, b) < LIMIT for a, b in zip(maps, redrawn))


@pytest.mark.parametrize("settings",
    [{"score": "mean_knn"}, {"neighbours": 1}, {"cap": 3}, {"lengths": "raw", "window": 1}], ids=str)
def test_settings_of_a_bank(settings, seen, tmp_path):
    detector = small("patchcore", **settings).fit(ImageSet.from_arrays(images(5)))
    export_bundle(detector.save(tmp_path / "b"), tmp_path / "x")
    assert relative(predict_set(detector, seen)[0], predict_set(load_bundle(tmp_path / "x"), seen)[0]) < LIMIT


@pytest.mark.parametrize("name, settings",
    [("dfr", {"level": False}), ("pca", {"level": False, "crop_map": True, "margin": 32}), ("featcae", {"crop": True}),
        ("efficientad", {"reference": "mean"}), ("efficientad", {"teacher": "distilled", "teacher_steps": 2}),
        ("vae", {"blur": 0.0})], ids=str)
def test_settings_of_other_detectors(name, settings, seen, tmp_path):
    detector = small(name, **settings).fit(ImageSet.from_arrays(images(5)))
    write_onnx(Graph(load_bundle(detector.save(tmp_path / "b"), "cpu")), tmp_path / "model.onnx")
    from thesis_ad.models.exported import runner
    run, found = runner(tmp_path, "onnx"), detector.prepare(seen)
    scores, maps = detector.predict(next(found.batches(4))[1])
    both = [run(found[i][None].numpy()) for i in range(4)]
    assert relative(scores, np.array([one[0][0] for one in both])) < LIMIT
    assert relative(maps, np.concatenate([one[1] for one in both])) < LIMIT


# From a folder, as a user does it

@pytest.fixture(scope="module")
def line(tmp_path_factory):
    "A part in MVTec layout, and a calibrated bundle of it."
    root = tmp_path_factory.mktemp("line")
    for split, count, defect in (("train/good", 16, False), ("test/good", 5, False), ("test/scratch", 5, True)):
        (root / "part" / split).mkdir(parents=True)
        for i, image in enumerate(images(count, split, defect)):
            Image.fromarray(image).save(root / "part" / split / f"{i:03}.png")
    command("fit", "patchcore", root / "part", "-o", root / "bundle", "--set", "size=64,96", "--set", "cap=60",
        "--set", "enhance=true")
    command("calibrate", root / "bundle", root / "part")
    return root


def command(*arguments, code=0):
    with pytest.raises(SystemExit) as end: cli.main([str(one) for one in arguments])
    assert (end.value.code or 0) == code


def inspected(bundle, folder, out):
    command("inspect", bundle, folder, "-o", out, "--exit-zero")
    return pd.read_csv(out / "decisions.csv")


@pytest.mark.parametrize("format", MODEL_FILES)
def test_an_exported_bundle_is_evaluated_inspected_and_calibrated_like_any_other(format, line, tmp_path, capsys):
    command("export", line / "bundle", "-o", tmp_path / "x", "--format", format, "--data", line / "part")
    assert re.search(r"decisions that changed: 0 of \d", capsys.readouterr().out)
    before, after = (inspected(bundle, line / "part" / "test", tmp_path / name)
        for bundle, name in ((line / "bundle", "a"), (tmp_path / "x", "b")))
    assert (before.status == after.status).all() and {*after.status} == {"OK", "NOK"}
    assert relative(before.score, after.score) < LIMIT
    tables = []
    for bundle, name in ((line / "bundle", "c"), (tmp_path / "x", "d")):
        command("evaluate", bundle, line / "part", "-o", tmp_path / name)
        tables.append(pd.read_csv(tmp_path / name / "metrics.csv").set_index("metric"))
    assert np.allclose(tables[0].value, tables[1].value, rtol=1e-3, equal_nan=True)
    assert (tables[0].backbone == tables[1].backbone).all()
    command("calibrate", tmp_path / "x", line / "part", "--method", "mean_sigma")
    assert load_bundle(tmp_path / "x").threshold["how"] == "mean_sigma"
    command("export", tmp_path / "x", "-o", tmp_path / "y", code=2)
    assert "exported already" in capsys.readouterr().err


def test_the_calibration_image_at_the_threshold_stays_ok(line, tmp_path):
    "The threshold is the score of one of them, and the last digit of an exported score is another."
    from thesis_ad.data.datasets import open_dataset
    detector = load_bundle(line / "bundle", "cpu")
    held = open_dataset(line / "part").read(detector.reading).calibration
    scores = predict_set(detector, held)[0]
    update_bundle(shutil.copytree(line / "bundle", tmp_path / "b"),
        threshold=detector.threshold | {"value": float(scores.max())})
    for format in MODEL_FILES:
        export_bundle(tmp_path / "b", tmp_path / format, format)
        exported = load_bundle(tmp_path / format)
        assert (predict_set(exported, held)[0] <= exported.threshold["value"]).all()
        assert exported.threshold["value"] < scores.max() * (1 + 1e-4)
        assert read_bundle(tmp_path / format)[0]["exported"]["threshold"] == scores.max()


def test_eight_bits_want_images_and_set_their_threshold_anew(line, tmp_path, capsys):
    command("export", line / "bundle", "-o", tmp_path / "x", "--precision", "int8", code=2)
    assert "--data" in capsys.readouterr().err and not (tmp_path / "x").exists()
    command("export", line / "bundle", "-o", tmp_path / "half", "--precision", "fp16")
    said = re.search(r"threshold (\S+) before and (\S+) after, kept", capsys.readouterr().out)
    assert said and said[1] == said[2], "the threshold was moved by what noise measured"
    command("export", line / "bundle", "-o", tmp_path / "x", "--precision", "int8", "--data", line / "part")
    said = capsys.readouterr().out
    assert "rank correlation" in said and re.search(r"threshold \S+ before and \S+ after, set anew", said)
    original, exported = load_bundle(line / "bundle", "cpu"), load_bundle(tmp_path / "x")
    assert exported.threshold["how"] == original.threshold["how"]
    assert exported.threshold["data"] == original.threshold["data"]
    assert 1e-6 < abs(exported.threshold["value"] / original.threshold["value"] - 1) < 0.2
    assert {*inspected(tmp_path / "x", line / "part" / "test" / "scratch", tmp_path / "out").status} == {"NOK"}


def test_sixteen_bits_halve_the_file(line, tmp_path):
    write_onnx(Graph(load_bundle(line / "bundle", "cpu")), tmp_path / "whole.onnx")
    sizes = {}
    for precision in PRECISIONS[:2]:
        (tmp_path / precision).mkdir()
        convert(tmp_path / "whole.onnx", tmp_path / precision, "onnx", precision)
        sizes[precision] = (tmp_path / precision / "model.onnx").stat().st_size
    assert sizes["fp16"] < 0.6 * sizes["fp32"]


@pytest.mark.parametrize("name", ["model.onnx", "bundle.json", "tensors.safetensors"])
def test_a_changed_byte_is_refused(name, line, tmp_path):
    export_bundle(line / "bundle", tmp_path / "x")
    data = bytearray((tmp_path / "x" / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "x" / name).write_bytes(data)
    with pytest.raises(UserError, match="was changed"): load_bundle(tmp_path / "x")


def test_what_cannot_be_exported_or_run_is_one_sentence(line, tmp_path, capsys):
    export_bundle(line / "bundle", tmp_path / "x", "openvino")
    (tmp_path / "mine").mkdir(); (tmp_path / "mine" / "notes.txt").write_text("mine")
    for arguments, words in ((("export", line / "bundle", "-o", tmp_path / "y", "--format", "tflite"),
                                 "known: onnx, openvino"),
                             (("export", line / "bundle", "-o", tmp_path / "y", "--precision", "int4"), "known: fp32"),
                             (("export", line / "bundle", "-o", tmp_path / "mine"), "not a bundle alone"),
                             (("serve", tmp_path / "x", "--runtime", "onnx"), "exported for OpenVINO"),
                             (("serve", tmp_path / "x", "--runtime", "torch"), "no form for PyTorch"),
                             (("inspect", tmp_path / "x", line / "part" / "test", "--device", "cuda"),
                                 "runs on the processor")):
        command(*arguments, code=2)
        assert words in capsys.readouterr().err.strip().splitlines()[-1]


def test_runtimes_of_the_server_decide_alike(line, tmp_path, monkeypatch):
    pytest.importorskip("fastapi")
    from thesis_ad.inspection.server import Station, model_key, score_image
    monkeypatch.setenv("THESIS_AD_CACHE", str(tmp_path / "cache"))
    data = (line / "part" / "test" / "scratch" / "000.png").read_bytes()
    stations = {runtime: Station(line / "bundle", tmp_path / runtime, runtime=runtime)
        for runtime in ("auto", "torch", "onnx", "openvino")}
    scores = np.array([score_image(one.detector, data)[0] for one in stations.values()])
    assert relative(scores, scores[:1].repeat(4)) < LIMIT
    assert [one.runtime for one in stations.values()] == ["torch", "torch", "onnx", "openvino"]
    first = next((tmp_path / "cache" / "exported").glob("*/bundle/bundle.json")).stat().st_mtime_ns
    load_for(line / "bundle", runtime="onnx")
    assert first in [path.stat().st_mtime_ns
        for path in (tmp_path / "cache" / "exported").glob("*/bundle/bundle.json")], "the export was not found again"
    export_bundle(line / "bundle", tmp_path / "x")
    assert Station(tmp_path / "x", tmp_path / "s").runtime == "onnx"
    assert Station(tmp_path / "x", tmp_path / "s", runtime="openvino").runtime == "openvino"
    assert model_key(read_bundle(tmp_path / "x")[0]) != model_key(
        read_bundle(line / "bundle")[0]), "a calibration of one model would be used for another"


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end: time.sleep(0.01)
    return condition()


def test_whoever_is_asked_decides_alike(line, tmp_path):
    """`inspect`, the API with each runtime and with an exported bundle, and a stream: one decision for the same pixels,
    and the controller hears it."""
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from thesis_ad.inspection.camera import Client, Folder, Stream
    from thesis_ad.inspection.plc import FAIL, PASS, SimulatedController, code_of
    from thesis_ad.inspection.server import Limits, Station, create_app
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("good/000", "good/001", "scratch/000", "scratch/001"):
        shutil.copy(line / f"part/test/{name}.png", photos / f"{name.replace('/', '_')}.png")
    (photos / "torn.png").write_bytes(b"no image")
    export_bundle(line / "bundle", tmp_path / "x", "openvino")
    with SimulatedController() as controller:
        command("inspect", line / "bundle", photos, "-o", tmp_path / "out", "--exit-zero", "--plc",
            f"127.0.0.1:{controller.port}")
        assert until(lambda: len(controller.received) == 5)
        signals = [frame[0] for frame in controller.received]
        command("inspect", line / "bundle", photos / "good_000.png", photos / "torn.png", "--part-id", "VIN",
            "--exit-zero", "--plc", f"127.0.0.1:{controller.port}")
        assert (until(lambda: len(controller.received) == 6)
            and controller.received[-1][0] == FAIL), "one image of the part is unread"
    said = pd.read_csv(tmp_path / "out" / "decisions.csv")
    wanted = {Path(row.path).stem: row.status for row in said.itertuples()}
    assert {*wanted.values()} == {"OK", "NOK", "unread"}
    assert signals == [PASS if status == "OK" else FAIL for status in said.status]
    for k, (bundle, runtime) in enumerate(((line / "bundle", "torch"), (line / "bundle", "onnx"),
            (line / "bundle", "openvino"), (tmp_path / "x", "auto"))):
        judge = Client("http://testserver")
        judge._http = TestClient(create_app(Station(bundle, tmp_path / f"s{k}", runtime=runtime,
            limits=Limits(seconds=600))))
        told, belt = {}, Folder(photos, existing=True).start()
        running = Stream([belt], judge, on_part=lambda one: told.__setitem__(one.part_id, one), wait=0.5).start()
        assert until(lambda: len(told) == 5)
        running.close()
        assert {name: one.decision for name, one in told.items()} == wanted, runtime
        assert [code_of(told[name].decision) for name in wanted] == signals
        scores = np.array([told[Path(row.path).stem].facts["score"]
            for row in said.itertuples() if row.status != "unread"])
        assert relative(said.score.dropna().to_numpy(), scores) < (1e-9 if runtime == "torch" else LIMIT)


def python(script, *arguments, **environment):
    result = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True,
        cwd=ROOT, env=os.environ | environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_script_decides_like_inspect_without_the_library(line, tmp_path):
    "ONNX Runtime, NumPy, Pillow, and OpenCV as this bundle enhances; whatever else is imported raises."
    export_bundle(line / "bundle", tmp_path / "x")
    before = inspected(line / "bundle", line / "part" / "test", tmp_path / "a")
    alone = ("import sys, runpy\nfor name in ('thesis_ad', 'torch', 'pandas', 'scipy', 'safetensors', 'timm'): "
        "sys.modules[name] = None\nrunpy.run_path(sys.argv.pop(1), run_name='__main__')")
    rows = [row.split(maxsplit=2) for row in python(alone, ROOT / "deploy" / "onnx_only.py", tmp_path / "x",
        *before.path).splitlines()]
    assert [row[0] for row in rows] == [*before.status] and [row[2] for row in rows] == [*before.path]
    assert relative(before.score.to_numpy(), np.array([float(row[1]) for row in rows])) < LIMIT


def test_the_script_refuses_what_the_library_reads_in_another_way(line, tmp_path):
    import cv2
    export_bundle(line / "bundle", tmp_path / "x")
    other, facts = shutil.copytree(tmp_path / "x", tmp_path / "y"), json.loads((tmp_path / "x/bundle.json").read_text())
    (other / "bundle.json").write_text(json.dumps(facts | {"settings": facts["settings"] | {"page": 2}}))
    deep = (images(1)[0].astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "colours.png"), deep)
    cv2.imwrite(str(tmp_path / "grey.png"), deep[..., 0])
    for name, kind in (("long.tif", np.int32), ("float.tif", np.float32)):
        Image.fromarray(deep[..., 0].astype(kind)).save(tmp_path / name)
    plain = next((line / "part" / "test" / "good").iterdir())
    for bundle, file, words in (("x", "colours.png", "16-bit colours"), ("x", "grey.png", "images of 8 bits"),
            ("x", "long.tif", "32 bits"), ("x", "float.tif", "32 bits"), ("y", plain, "another page")):
        said = subprocess.run([sys.executable, ROOT / "deploy" / "onnx_only.py", tmp_path / bundle, tmp_path / file],
            capture_output=True, text=True)
        assert said.returncode == 1 and words in said.stderr and not said.stdout, (file, said)


# What starts without PyTorch

USED = ("import sys\nfrom thesis_ad import cli\ntry: cli.main(sys.argv[1:])\nexcept SystemExit: pass\nprint([name for "
    "name in ('torch', 'timm', 'pandas', 'scipy', 'sklearn', 'matplotlib') if name in sys.modules])")


@pytest.mark.parametrize("argument", ["--help", "methods", "--version"])
def test_help_and_methods_import_nothing_heavy(argument): assert python(USED, argument).splitlines()[-1] == "[]"


def test_methods_are_those_that_are_registered():
    assert {tuple(row.split(maxsplit=1)) for row in python(USED, "methods").splitlines()[:-1]} == {(name, cls.summary)
        for name, cls in methods().items()}


@pytest.mark.parametrize("format", MODEL_FILES)
def test_an_exported_bundle_is_used_without_pytorch(format, line, tmp_path):
    export_bundle(line / "bundle", tmp_path / "x", format)
    for arguments in (("inspect", tmp_path / "x", line / "part" / "test"),
            ("calibrate", tmp_path / "x", line / "part")):
        assert not {"torch", "timm",
            "matplotlib"} & {*json.loads(python(USED, *arguments).splitlines()[-1].replace("'", '"'))}


def test_threads_are_pinned_before_pytorch_is_imported():
    script = ("from thesis_ad.settings import pin_threads\npin_threads(1)\nimport "
        "torch\nprint(torch.get_num_threads())\npin_threads(2)\nprint(torch.get_num_threads())")
    assert python(script, OMP_NUM_THREADS="2", MKL_NUM_THREADS="2").split() == ["1", "2"]
