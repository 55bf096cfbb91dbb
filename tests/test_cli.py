"""The command line as a stranger uses it: real processes, real files, sentences and exit codes."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import write_image
from forked import thesis_ad
from PIL import Image
from sklearn.metrics import roc_auc_score

import thesis_ad as thesis_ad_package
from thesis_ad import cli
from thesis_ad.settings import rng

FAST = ["--set", "size=64", "--set", "cells=16,16", "--set", "steps=20"]


def refused(result, *words):
    "One sentence on stderr that has all the words, exit code 2, no traceback."
    assert result.returncode == 2, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    for word in words: assert word in last, f"'{word}' is not in: {last}"


@pytest.fixture
def bundle(mvtec_folder, tmp_path):
    result = thesis_ad("fit", "dfr", mvtec_folder, "-o", tmp_path / "bundle", *FAST)
    assert result.returncode == 0, result.stderr
    return tmp_path / "bundle"


def test_fit_and_evaluate(bundle, mvtec_folder, tmp_path):
    result = thesis_ad("evaluate", bundle, mvtec_folder, "--out", tmp_path / "e")
    assert result.returncode == 0, result.stderr
    assert "dent" in result.stdout and "image_auroc" in result.stdout
    scores, metrics, defects = (pd.read_csv(tmp_path / "e" / f"{name}.csv")
        for name in ("scores", "metrics", "per_defect"))
    assert list(scores) == "dataset,method,seed,image,group,defect,label,score".split(",")
    assert list(metrics) == "dataset,method,backbone,metric,value,ci_low,ci_high,n_ok,n_nok,seed".split(",")
    assert list(defects) == "dataset,method,defect,metric,value,ci_low,ci_high,n".split(",")
    assert (metrics.metric.tolist() == "image_auroc pixel_auroc aupro_0.30 aupro_0.05 image_ap image_f1max fnr_at_fpr5 "
        "fnr_at_fpr1 false_alarms misses".split())
    auroc = metrics.set_index("metric").value["image_auroc"]
    assert abs(auroc - roc_auc_score(scores.label, scores.score)) < 1e-9
    assert len(scores) == 12 and auroc > 0.9, "a bright square on a plain gradient should be found"


def test_the_same_fit_gives_the_same_bytes(bundle, mvtec_folder, tmp_path):
    assert thesis_ad("fit", "dfr", mvtec_folder, "-o", tmp_path / "again", *FAST).returncode == 0
    for name in ("bundle.json", "tensors.safetensors"):
        assert (bundle / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), f"{name} differs"


def test_a_changed_byte_is_refused(bundle, mvtec_folder, tmp_path):
    file = bundle / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    refused(thesis_ad("evaluate", bundle, mvtec_folder, "-o", tmp_path / "e"), "tensors.safetensors", "changed")
    assert not (tmp_path / "e").exists()


def test_a_broken_image_is_named_skipped_and_counted(mvtec_folder, tmp_path):
    whole = mvtec_folder / "train/good/000.png"
    image = mvtec_folder / "train/good/900.jpg"
    Image.open(whole).save(image)
    image.write_bytes(image.read_bytes()[:400])
    result = thesis_ad("fit", "dfr", mvtec_folder, "-o", tmp_path / "b", *FAST)
    assert result.returncode == 0, result.stderr
    assert "900.jpg" in result.stderr and "1 image" in result.stderr


def test_a_image_of_floats_that_are_no_grey_values_is_skipped(mvtec_folder, tmp_path):
    grey = np.asarray(Image.open(mvtec_folder / "train/good/000.png").convert("L"), np.float32) / 255
    for number, change in enumerate((np.nan, np.inf, -40.0, 3000.0, 1.2)):
        grey[3, 4] = change
        Image.fromarray(grey).save(mvtec_folder / f"train/good/90{number}.tif")
    result = thesis_ad("fit", "gaussian", mvtec_folder, "-o", tmp_path / "b", "--set", "size=64")
    assert (result.returncode == 0 and "4 images skipped" in result.stderr
        and "on 10 OK images" in result.stdout), result.stdout  # 3 of 13 to calibrate
    for number in range(4): assert f"90{number}.tif" in result.stderr
    assert "lie in nan … nan" in result.stderr and "lie in 0 … 3000, where 0 … 255 is black … white" in result.stderr
    assert "904.tif" not in result.stderr


def test_what_does_not_fit_into_memory_is_said_in_a_sentence(mvtec_folder, tmp_path):
    refused(thesis_ad("fit", "featcae", mvtec_folder, "-o", tmp_path / "b", "--set", "size=64", "--set",
        "latent=300000"), "not enough memory")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("error, code", [(MemoryError(), 2), (MemoryError("\nx"), 2),
    (RuntimeError("CUDA out of memory. Tried"), 2), (TypeError("required, not memoryview"), 1),
    (KeyError("in_memory"), 1), (RuntimeError("/data/memory_cards/1.png"), 1)])
def test_only_a_lack_of_memory_is_called_one(error, code, monkeypatch, capsys):
    def fails(*arguments, **options): raise error
    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit) as end: cli.main(["methods"])
    said = capsys.readouterr().err
    assert (end.value.code == code and ("not enough memory" in said) == (code == 2)
        and ("internal error" in said) == (code == 1) and len(said.splitlines()) == 1), said


def test_a_line_break_in_a_name_breaks_no_line(bundle, mvtec_folder):
    images = mvtec_folder / "test/good"
    (images / "000.png").rename(images / "a\nb ü.png")
    (images / "c\td.png").write_bytes(b"no image")
    result = thesis_ad("inspect", bundle, images)
    assert (result.returncode == 2 and len(result.stdout.splitlines()) == 7
        and "a\\nb ü.png" in result.stdout), result.stdout
    assert "c\\td.png" in result.stderr


def test_the_installed_package_needs_no_clone_for_a_folder(mvtec_folder, tmp_path):
    "As wheels leave it: the package alone, and a working folder that knows nothing of a repository."
    shutil.copytree(Path(thesis_ad_package.__file__).parent, tmp_path / "site/thesis_ad",
        ignore=shutil.ignore_patterns("__pycache__"))
    def run(*arguments):
        command = [sys.executable, "-c", "from thesis_ad.cli import main; main()", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path / "site")})
    result = run("fit", "gaussian", mvtec_folder, "-o", tmp_path / "b", "--set", "size=64")
    assert result.returncode == 0, result.stderr
    refused(run("fit", "gaussian", "elpv_mono", "-o", tmp_path / "c"), "no thesis_ad repository")


def test_bad_input_is_one_sentence(mvtec_folder, tmp_path):
    out = ("-o", tmp_path / "b")
    refused(thesis_ad("fit", "dfr", tmp_path / "nowhere", *out), "nowhere")
    refused(thesis_ad("fit", "dfrr", mvtec_folder, *out), "dfrr", "dfr")
    refused(thesis_ad("fit", "dfr", mvtec_folder, *out, "--set", "stepz=3"), "stepz", "steps")
    refused(thesis_ad("fit", "dfr", mvtec_folder, *out, "--set", "steps=three"), "steps", "three")
    refused(thesis_ad("fit", "dfr", mvtec_folder, *out, "--set", "steps"), "key=value")
    refused(thesis_ad("fit", "dfr", mvtec_folder, *out, "--device", "tpu"), "tpu")
    refused(thesis_ad("reproduce", "--profile", "dmeo"), "dmeo", "demo")
    refused(thesis_ad("reproduce", "--set", "epochz=1"), "epochz")
    refused(thesis_ad("reproduce", "--only", "30_baseline"), "30_baseline")
    refused(thesis_ad("evaluate", tmp_path / "nowhere", mvtec_folder, "-o", tmp_path / "e"), "nowhere", "bundle")
    refused(thesis_ad("fit", "dfr", mvtec_folder, *out, "--set", "backbone=tf_efficientnet_b6", THESIS_AD_WEIGHTS=""),
        "tf_efficientnet_b6")
    refused(thesis_ad("data", "make", "elpv_mono"), "elpv_mono")
    refused(thesis_ad("data", "verify", "elpv"), "elpv")
    assert not (tmp_path / "b").exists(), "a refused fit left a bundle behind"


def test_a_place_that_holds_something_else_is_refused_before_the_work(bundle, mvtec_folder, tmp_path):
    (bundle / "notes.txt").write_text("mine")
    refused(thesis_ad("fit", "dfr", mvtec_folder, "-o", bundle, "--set", "steps=1000000"), "notes.txt",
        "choose another place")
    assert (bundle / "notes.txt").read_text() == "mine" and (bundle / "bundle.json").exists()
    refused(thesis_ad("evaluate", bundle, mvtec_folder, "-o", bundle / "notes.txt"), "cannot write to", "notes.txt")
    (tmp_path / "others").mkdir()
    (tmp_path / "others/tensors.safetensors").write_bytes(b"weights of something else")
    refused(thesis_ad("fit", "gaussian", mvtec_folder, "-o", tmp_path / "others"), "others", "choose another place")
    assert (tmp_path / "others/tensors.safetensors").read_bytes() == b"weights of something else"


def test_settings_that_no_fit_could_use_are_refused(mvtec_folder, tmp_path):
    out = ("-o", tmp_path / "b")
    refused(thesis_ad("fit", "gaussian", mvtec_folder, *out, "--set", "size=64,64,64"), "size", "(height, width)")
    refused(thesis_ad("fit", "gaussian", mvtec_folder, *out, "--threads", "0"), "thread")
    refused(thesis_ad("fit", "gaussian", mvtec_folder, *out, "--set", "size=64", "--set", "size=32"), "twice")
    refused(thesis_ad("fit", "gaussian", "", *out), "empty")
    (mvtec_folder / "groups.csv").write_text("")
    refused(thesis_ad("fit", "gaussian", mvtec_folder, *out), "groups.csv", "path and group")


def test_clean_leaves_alone_what_is_not_its_own(tmp_path):
    for name in ("features/ab.npy", "exported/ab.npy", "documents/thesis.tex"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("text")
    result = thesis_ad("clean", THESIS_AD_CACHE=str(tmp_path))
    assert result.returncode == 0 and "documents" in result.stdout, result.stderr
    assert [path.name for path in tmp_path.rglob("*.*")] == ["thesis.tex"]


def test_nothing_to_tell_apart_is_said(bundle, mvtec_folder, tmp_path):
    shutil.rmtree(mvtec_folder / "test/dent")
    shutil.rmtree(mvtec_folder / "ground_truth")
    result = thesis_ad("evaluate", bundle, mvtec_folder, "-o", tmp_path / "e")
    assert (result.returncode == 0 and "no NOK test image" in result.stdout
        and "Empty DataFrame" not in result.stdout), result.stderr


def test_a_nok_image_in_train_is_refused(mvtec_folder, tmp_path):
    write_image(mvtec_folder / "train/dent/000.png", rng("nok"), square=True)
    refused(thesis_ad("fit", "dfr", mvtec_folder, "-o", tmp_path / "b"), "train/dent/000.png", "OK")


def test_a_bad_mask_is_left_out_and_named_before_the_work(bundle, mvtec_folder, tmp_path):
    "One of another size, one broken: the images stay, without a mask; masks that mark nothing or everything are named."
    masks = mvtec_folder / "ground_truth/dent"
    Image.fromarray(np.full((10, 10), 255, np.uint8)).save(masks / "002_mask.png")
    (masks / "003_mask.png").write_bytes((masks / "003_mask.png").read_bytes()[:60])
    for name, value in (("004", 0), ("005", 255)):
        Image.fromarray(np.full((72, 96), value, np.uint8)).save(masks / f"{name}_mask.png")
    result = thesis_ad("evaluate", bundle, mvtec_folder, "-o", tmp_path / "e")
    assert result.returncode == 0, result.stderr
    for words in ("002_mask.png: is 10×10", "003_mask.png: cannot be read", "2 masks left out",
            "004_mask.png marks nothing", "005_mask.png marks 100%"):
        assert words in result.stderr, result.stderr
    assert "layout mvtec: train" in result.stdout and len(pd.read_csv(tmp_path / "e/scores.csv")) == 12
    metrics = pd.read_csv(tmp_path / "e/metrics.csv").set_index("metric")
    assert metrics.n_nok["pixel_auroc"] == 3 and metrics.n_nok["image_auroc"] == 6


def test_an_empty_split_is_refused(bundle, mvtec_folder, tmp_path):
    for path in mvtec_folder.glob("train/good/*"): path.unlink()
    refused(thesis_ad("fit", "dfr", mvtec_folder, "-o", tmp_path / "b2"), "train")
    (tmp_path / "empty").mkdir()
    refused(thesis_ad("fit", "dfr", tmp_path / "empty", "-o", tmp_path / "b2"), "empty")


def test_a_flat_folder_can_be_fitted_but_not_evaluated(tmp_path):
    for i in range(6): write_image(tmp_path / f"photos/{i}.jpg", rng("flat", i))
    assert thesis_ad("fit", "dfr", tmp_path / "photos", "-o", tmp_path / "b", *FAST).returncode == 0
    refused(thesis_ad("evaluate", tmp_path / "b", tmp_path / "photos", "-o", tmp_path / "e"), "no test images")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    "Writing to a device that is always full: a sentence, and the old file is still whole."
    from thesis_ad import files
    from thesis_ad.settings import UserError
    target = tmp_path / "metrics.csv"
    target.write_text("old")
    with pytest.raises(UserError, match="no space left"):
        with files.atomic_write(target) as part:
            part.symlink_to("/dev/full")
            with open(part, "w") as file: file.write("new" * 10_000)
    assert target.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_methods_info_and_data_list_answer():
    result = thesis_ad("methods")
    assert result.returncode == 0
    assert {"autoencoder", "autoencoder_plain", "dfr"} <= {line.split()[0] for line in result.stdout.splitlines()}
    result = thesis_ad("data", "list")
    assert result.returncode == 0
    assert {"elpv_mono", "elpv_poly", "prefilter_a", "prefilter_b"} <= {line.split()[0]
        for line in result.stdout.splitlines()}
    assert "torch" in thesis_ad("info").stdout
    assert thesis_ad("--version").stdout.strip().count(".") == 2
    result = thesis_ad("data", "verify", "elpv_mono")
    assert result.returncode == 0, result.stderr
