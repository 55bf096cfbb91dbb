"What a folder is taken for: the right labels and masks, or one sentence that refuses it."
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from thesis_ad.data.datasets import open_dataset
from thesis_ad.data.layouts import LAYOUTS, MASKS, meanings, read_folder, read_folders, scan
from thesis_ad.data.manifest import read_splits
from thesis_ad.settings import UserError

SQUARE = np.pad(np.full((3, 4), 255, np.uint8), ((3, 2), (2, 4)))         # a mask of 8 × 10 pixels


def put(root, *names, array=None):
    "An image under each name, each of its own bytes, or `array` under all of them."
    for n, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.full((8, 10), 50 + len(list(path.parent.iterdir())) % 100, np.uint8) if array is None else array
        if array is None: image[0, 0], image[0, 1] = hash(name) % 256, n
        Image.fromarray(image).save(path)
    return root


def several(folder, n=3, suffix=".png"): return [f"{folder}/{i:03d}{suffix}" for i in range(n)]


def labels(reading): return {row.path: (row.split, row.label) for row in reading.table.itertuples()}


def masks(reading): return {row.path: set(row.mask.split(MASKS)) for row in reading.table.itertuples() if row.mask}


def refused(folder, *words, **said):
    "The one sentence with which a folder is refused; it has all the words and says what to do."
    with pytest.raises(UserError) as error: read_folder(folder, **said)
    text = str(error.value)
    assert "\n" not in text and "--ok DIR" in text and "--layout" in text, text
    for word in words: assert word in text, f"'{word}' is not in: {text}"
    return text


# Layouts that are known

@pytest.mark.parametrize("train, test, good, bad, truth", [
    ("train", "test", "good", "crack", "ground_truth"), ("Train", "Test", "GOOD", "Crack", "Label"),
    ("TRAINING", "TESTING", "Ok", "NOK", "MASKS"),
    ("train", "test", "NORMAL", "abnormal", "labels"), ("train", "test", "non_defective", "defective", "annotations"),
    ("train", "test", "i.O.", "n.i.O.", "Masken"),
    ("train", "test", "良品", "不良品", "掩码"), ("train", "test", "bons", "mauvais", "masques"),
    ("train", "test", "defect-free", "colour", "GroundTruth"),
    ("train", "test_public", "good", "bad", "ground_truth"), ("train", "test", "ok_images", "images_ko", "gt")])
def test_one_layout_in_the_words_of_the_field(tmp_path, train, test, good, bad, truth):
    put(tmp_path, *several(f"{train}/{good}"), *several(f"{test}/{good}", 2), *several(f"{test}/{bad}", 2))
    put(tmp_path, f"{truth}/{bad}/000_mask.png", f"{truth}/{bad}/001.png", array=SQUARE)
    reading = read_folder(tmp_path)
    assert labels(reading) == {**dict.fromkeys(several(f"{train}/{good}"), ("train", 0)),
        **dict.fromkeys(several(f"{test}/{good}", 2), ("test", 0)),
        **dict.fromkeys(several(f"{test}/{bad}", 2), ("test", 1))}
    assert masks(reading) == {f"{test}/{bad}/000.png": {f"{truth}/{bad}/000_mask.png"},
        f"{test}/{bad}/001.png": {f"{truth}/{bad}/001.png"}}


def test_mvtec_ad_2_with_its_validation_and_without_its_private_images(tmp_path):
    put(tmp_path, *several("train/good"), *several("validation/good", 2), *several("test_public/good", 1),
        *several("test_public/bad", 2), *several("test_private"), *several("test_private_mixed"))
    put(tmp_path, *(f"test_public/ground_truth/bad/{i:03d}_mask.png" for i in range(2)), array=SQUARE)
    reading = read_folder(tmp_path)
    assert reading.layout == "mvtec_ad_2"
    assert reading.table.split.value_counts().to_dict() == {"train": 3, "test": 3, "calibration": 2}
    assert len(masks(reading)) == 2 and len(reading.left_out) == 6 and "no labels" in reading.left_out[0][1]


def test_mvtec_loco_merges_the_masks_of_an_image(tmp_path):
    put(tmp_path, *several("train/good"), *several("validation/good"), *several("test/good", 1),
        *several("test/logical_anomalies", 2), *several("test/structural_anomalies", 1))
    one, other = SQUARE.copy(), SQUARE.copy()
    one[:, :4], other[:, 4:] = 0, 0
    put(tmp_path, "ground_truth/logical_anomalies/000/000.png", array=one)
    put(tmp_path, "ground_truth/logical_anomalies/000/001.png", array=other)
    put(tmp_path, "ground_truth/logical_anomalies/001/000.png",
        "ground_truth/structural_anomalies/000/000.png", array=SQUARE)
    data = open_dataset(tmp_path)
    assert data.folder.layout == "mvtec_loco" and len(masks(data.folder)["test/logical_anomalies/000.png"]) == 2
    test = data.open_test()
    assert (test.mask(test.paths.tolist().index("test/logical_anomalies/000.png")) == (SQUARE > 0)).all()
    assert all(test.mask(i).sum() == 12 for i in np.flatnonzero(test.labels))


def test_mvtec_3d_takes_the_colour_images(tmp_path):
    put(tmp_path, *several("train/good/rgb"), *several("train/good/xyz", suffix=".tiff"), *several("test/good/rgb", 1),
        *several("test/hole/rgb", 2), *several("test/hole/xyz", 2, ".tiff"))
    put(tmp_path, *several("test/hole/gt", 2), array=SQUARE)
    put(tmp_path, "test/good/gt/000.png", array=SQUARE * 0)
    reading = read_folder(tmp_path)
    assert reading.layout == "mvtec_3d" and len(reading.table) == 6
    assert set(masks(reading)) == set(several("test/hole/rgb", 2))
    assert len(reading.left_out) == 5 and reading.ok_masks == {"test/good/rgb/000.png": ["test/good/gt/000.png"]}


def test_btad_and_the_thesis(tmp_path):
    put(tmp_path / "01", *several("train/ok", suffix=".bmp"), *several("test/ok", 1), *several("test/ko", 2))
    put(tmp_path / "01", *several("ground_truth/ko", 2), array=SQUARE)
    assert read_folder(tmp_path / "01").layout == "btad" and len(masks(read_folder(tmp_path / "01"))) == 2
    put(tmp_path / "thesis/data", "train/ok/zoom_1_20250303_081512.png", "train/ok/zoom_2_20250303_081512.png",
        "test/ok/a.png", "test/nok/part_7/zoom_1_20250303_101512.png")
    put(tmp_path / "thesis/data", "masks/nok/part_7/zoom_1_20250303_101512.png", array=SQUARE)
    reading = read_folder(tmp_path / "thesis")
    assert reading.layout == "thesis" and reading.root.name == "data"
    assert list(masks(reading)) == ["test/nok/part_7/zoom_1_20250303_101512.png"]
    assert reading.table.group.tolist() == ["part_7", "test/ok/a.png", "20250303_081512", "20250303_081512"]


def test_visa_by_its_table_and_by_its_folders(tmp_path):
    candle = tmp_path / "candle/Data"
    put(candle, *several("Images/Normal", suffix=".JPG"), *several("Images/Anomaly", 2, ".JPG"))
    put(candle, *several("Masks/Anomaly", 2), array=SQUARE // 255 * 3)
    assert len(masks(read_folder(tmp_path / "candle"))) == 2 and read_folder(tmp_path / "candle").layout == "classes"
    rows = [f"candle,{'test' if i == 2 else 'train'},normal,candle/Data/Images/Normal/{i:03d}.JPG," for i in range(3)]
    rows += [f"candle,test,anomaly,candle/Data/Images/Anomaly/{i:03d}.JPG,candle/Data/Masks/Anomaly/{i:03d}.png"
        for i in range(2)]
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv/1cls.csv").write_text("object,split,label,image,mask\n" + "\n".join(rows)
        + "\ncapsules,train,normal,capsules/1.JPG,\n")
    data = open_dataset(tmp_path / "candle")
    assert data.folder.layout == "visa"
    assert data.table.split.value_counts().to_dict() == {"test": 3, "train": 1, "calibration": 1}
    assert [data.open_test().mask(i).sum() for i in np.flatnonzero(data.open_test().labels)] == [12,
        12], "class number 3 is marked"
    refused(tmp_path, "several datasets (candle, capsules)")


def test_kolektor_is_labelled_by_its_masks(tmp_path):
    for item in ("kos01", "kos02", "kos03"):
        put(tmp_path / "one", *(f"{item}/Part{i}.jpg" for i in range(4)))
        for i in range(4): put(tmp_path / "one", f"{item}/Part{i}_label.bmp", array=SQUARE * (i == 2))
    reading = read_folder(tmp_path / "one")
    assert reading.layout == "kolektor" and {path: label for path, (_, label) in labels(reading).items()} == {
        f"{item}/Part{i}.jpg": int(i == 2) for item in ("kos01", "kos02", "kos03") for i in range(4)}
    assert all(split == "test" for split, label in labels(reading).values() if label)
    assert masks(reading)["kos01/Part2.jpg"] == {"kos01/Part2_label.bmp"}
    for split in ("train", "test"):
        put(tmp_path / "two", *several(split, 4))
        for i in range(4): put(tmp_path / "two", f"{split}/{i:03d}_GT.png", array=SQUARE * (i == 1))
    data = open_dataset(tmp_path / "two")
    assert data.folder.layout == "kolektor2" and data.table.groupby(["split", "label"]).size().to_dict() == {
        ("calibration", 0): 1, ("calibration", 1): 1, ("test", 0): 3, ("test", 1): 1, ("train", 0): 2}


def test_classes_without_splits_are_shared_out_by_groups(tmp_path):
    put(tmp_path, *several("normal_dir", 10), *several("abnormal_dir", 4))
    put(tmp_path, *several("mask_dir", 4), array=SQUARE)
    reading = read_folder(tmp_path)
    assert {path: label for path, (_, label) in labels(reading).items()} == dict.fromkeys(several("normal_dir", 10),
        0) | dict.fromkeys(several("abnormal_dir", 4), 1)
    assert len(masks(reading)) == 4
    assert reading.table.groupby(["split", "label"]).size().to_dict() == {("test", 0): 2, ("test", 1): 4,
        ("train", 0): 8}
    assert labels(read_folder(tmp_path)) == labels(reading), "the same split each time"
    assert set(read_folder(put(tmp_path / "only", *several("OK", 3))).table.split) == {"train"}


# Trees that nobody can know

@pytest.mark.parametrize("names, words", [
    (["good/1.png", "crack/1.png", "colour/1.png", "mask/1.png"],
        ["colour (1 image: not known)", "mask (1 image: masks)", "--ok good"]),
    (["train/1.png", "test/1.png"], ["train (1 image: train)"]),
    (["Train/1.png", "Test/1.png", "Label/1.png"], ["Label (1 image: masks)"]),
    (["train/good/1.png", "train/2.png", "test/good/3.png"], ["train/2.png"]),
    (["JPEGImages/1.jpg", "SegmentationClass/1.png"], ["JPEGImages", "SegmentationClass (1 image: masks)"]),
    (["bottle/train/good/1.png", "cable/train/good/1.png"], ["several datasets (bottle, cable)"]),
    (["line1/ok/1.png", "line1/nok/1.png", "line2/ok/1.png"], ["several datasets (line1, line2)"]),
    (["train/bottle/good/1.png", "test/bottle/good/1.png"], ["bottle"]),
    (["train/good/1.png", "test/gut_und_schlecht/1.png", "test/x/2.png"], ["test"]),
    (["train/good/1.png", "test/crack_like/1.png", "test/dust/2.png"], ["no folder for OK stands beside"]),
    (["train/good/1.png", "test/good/1.png", "test/ok_front/1.png"], ["ok_front"]),
    (["train/good/1.png", "train/def_front/1.png"], ["train/def_front/1.png", "OK images only"]),
    (["train/good/nok/1.png", "train/good/2.png"], ["train/good/nok/1.png"]),
    (["train/good/1.png", "test/good/1.png", "test/crack/ok/1.png"], ["crack"]),
    (["train/good/1.png", "test/train/good/1.png"], ["at once"]),
    (["good/1.png", "train/good/2.png"], ["good/1.png"]),
    (["1.png", "nok/2.png"], ["1.png"]), (["1.png", "line2/2.png"], ["line2"]), (["images/1.png"], ["images/1.png"]),
    (["1.png", "2_nok.png"], ["2_nok.png"]), (["1.png", "1_mask.png"], ["1_mask.png"]),
    (["scratch-01.png", "ok-02.png"], ["scratch-01.png"]),
    (["train/good/1.png", "train/good/2_mask.png"], ["2_mask.png"]),
    (["train/good/1.png", "test/good/1.png", "test/unsorted/1.png"], ["unsorted"]),
    (["weiß/1.png", "blau/1.png"], ["blau"])])
def test_what_is_not_known_is_refused_and_never_taken_for_ok(tmp_path, names, words):
    refused(put(tmp_path, *names), *words)


def test_a_folder_inside_a_dataset_is_not_flat(tmp_path):
    put(tmp_path, *several("train/good"), *several("test/good", 2), *several("test/colour", 2),
        *several("ground_truth/colour", 2), *several("kaputt/defekt", 2))
    for inside in ("test/colour", "ground_truth/colour", "ground_truth", "kaputt/defekt"):
        refused(tmp_path / inside, "nothing says that its images are OK")
    assert len(read_folder(tmp_path / "train/good").table) == len(read_folder(tmp_path / "test/good").table) + 1 == 3
    for name in ("calibration", "other"):
        assert not read_folder(put(tmp_path / f"new/{name}", "1.png")).table.label.any()
    for name in ("test", "unsorted", "NOK"): refused(put(tmp_path / f"new/{name}", "1.png"), name)
    part = read_folder(tmp_path / "test")
    assert set(part.table.split) == {"test"} and part.root == tmp_path and len(masks(part)) == 2
    with pytest.raises(UserError, match="test has no train images"): open_dataset(tmp_path / "test").train


def test_a_table_that_calls_an_image_nok_is_heard(tmp_path):
    put(tmp_path, *several("photos"))
    (tmp_path / "photos/measured.csv").write_text("file,millimetres\n000.png,3\n")
    (tmp_path / "photos/labels.csv").write_text("file;label\n000.png;good\n001.png;good\n")
    assert len(read_folder(tmp_path / "photos").table) == 3
    for cell in ("kaputt", "NOK", "scratch"):
        (tmp_path / "photos/labels.csv").write_text(f"file;label\n000.png;good\n001.png;{cell}\n")
        refused(tmp_path / "photos", "labels.csv", "001.png")
    assert len(read_folder(tmp_path / "photos", ok=["."]).table) == 3, "the user has the last word"


# What the user says

def test_the_user_names_the_folders(tmp_path):
    put(tmp_path, *several("gut genug", 5), *several("kaputt"), *several("bemalt/a", 2), *several("raw"))
    put(tmp_path, *several("gemalt", 2), array=SQUARE)
    said = {"ok": ["gut genug"], "nok": ["kaputt", "bemalt"], "masks": ["gemalt"]}
    refused(tmp_path, "gut genug", "kaputt")
    with pytest.raises(UserError, match="mask gemalt/000.png may belong to"):
        read_folder(tmp_path, **(said | {"nok": ["kaputt", "bemalt/a"]}))
    reading = read_folder(tmp_path, **said)
    assert {path: label for path, (_, label) in labels(reading).items()} == dict.fromkeys(several("gut genug", 5),
        0) | dict.fromkeys([*several("kaputt"), *several("bemalt/a", 2)], 1)
    assert masks(reading) == {f"kaputt/{i:03d}.png": {f"gemalt/{i:03d}.png"} for i in range(2)}
    outside = put(tmp_path / "elsewhere", *several("x", 2))
    assert labels(read_folder(tmp_path, ok=["gut genug"], nok=[str(outside / "x")]))["elsewhere/x/000.png"] == ("test",
        1)
    for options, word in (({"ok": ["gut"]}, "gut"), ({"ok": ["kaputt"], "nok": ["kaputt"]}, "twice"),
            ({"masks": ["gemalt"]}, "--ok"), ({"ok": ["raw"], "layout": "flat"}, "--layout")):
        with pytest.raises(UserError, match=word): read_folder(tmp_path, **options)


def test_named_folders_keep_their_splits_and_the_innermost_decides(tmp_path):
    put(tmp_path, *several("train/x"), *several("test/x", 1), *several("test/y", 2))
    put(tmp_path, *several("drawn/y", 2), array=SQUARE)
    reading = read_folder(tmp_path, ok=["train/x", "test/x"], nok=["test/y"], masks=["drawn"])
    assert reading.table.groupby(["split", "label"]).size().to_dict() == {("test", 0): 1, ("test", 1): 2,
        ("train", 0): 3}
    assert len(masks(reading)) == 2
    put(tmp_path / "all", *several(".", 4), *several("rejects", 2))
    assert read_folder(tmp_path / "all", ok=["."], nok=["rejects"]).table.label.sum() == 2
    refused(tmp_path / "all", "rejects", ok=["."])


def test_a_layout_can_be_demanded(tmp_path):
    put(tmp_path, *several("train/good"), *several("test/colour", 2))
    refused(tmp_path, "colour")
    assert read_folder(tmp_path, layout="mvtec").table.label.sum() == 2
    refused(tmp_path, layout="flat"); refused(tmp_path, layout="kolektor"); refused(tmp_path, layout="classes")
    refused(tmp_path, layout="visa")
    with pytest.raises(UserError, match="mvtek.*mvtec"): read_folder(tmp_path, layout="mvtek")
    assert read_folder(put(tmp_path / "flat", "1.png", "line2/2.png"), layout="flat").table.label.tolist() == [0, 0]
    assert {"mvtec", "mvtec_ad_2", "mvtec_loco", "mvtec_3d", "visa", "btad", "thesis", "kolektor", "kolektor2",
        "magnetic_tile", "real_iad", "flat", "classes", "table"} == set(LAYOUTS)


def test_options_reach_the_folder_for_calibration(tmp_path):
    put(tmp_path / "part", *several("train/good", 4), *several("test/good", 1), *several("test/dent", 1))
    put(tmp_path / "new", *several("fein", 3), *several("kratzig", 2))
    with pytest.raises(UserError, match="new is not read"):
        open_dataset(tmp_path / "part", calibration=tmp_path / "new")
    data = open_dataset(tmp_path / "part", calibration=tmp_path / "new", ok=["fein"], nok=["kratzig"])
    assert data.calibration.labels.tolist() == [0, 0, 0, 1, 1] and len(data.train) == 4 and not data.pool
    found, extra = read_folders(tmp_path / "part",
        put(tmp_path / "flat", *several(".", 2), "line/9.png"), layout="flat")
    assert found.layout == "mvtec" and extra.layout == "flat"
    with pytest.raises(UserError, match="--ok nirgends"):
        open_dataset(tmp_path / "part", calibration=tmp_path / "new", ok=["nirgends"])
    with pytest.raises(UserError, match="elpv_mono is a dataset of the manifest"): open_dataset("elpv_mono", ok=["x"])
    test = open_dataset(tmp_path / "part", calibration=tmp_path / "part/test")
    assert test.calibration.labels.sum() == 1, "a defect of the test folder is not taken for OK"


# Masks

def test_masks_of_two_cameras_and_of_two_kinds_stay_with_their_images(tmp_path):
    put(tmp_path, *several("train/good"), *several("test/good", 1), *several("test/cut/A", 2),
        *several("test/cut/B", 2), *several("test/type_1", 1), *several("test/type_2", 1))
    put(tmp_path, "ground_truth/cut/A/000.png", "ground_truth/cut/B/001_mask.png", "ground_truth/type_2/000.png",
        "ground_truth/cut/C/000.png", "ground_truth/cut/000.png", array=SQUARE)
    reading = read_folder(tmp_path)
    assert masks(reading) == {"test/cut/A/000.png": {"ground_truth/cut/A/000.png"},
        "test/cut/B/001.png": {"ground_truth/cut/B/001_mask.png"},
        "test/type_2/000.png": {"ground_truth/type_2/000.png"}}
    assert set(reading.lost) == {"ground_truth/cut/C/000.png", "ground_truth/cut/000.png"}


def test_a_mask_that_could_be_of_two_images_is_refused(tmp_path):
    put(tmp_path, *several("ok"), *several("crack", 1), *several("scratch", 1))
    put(tmp_path, "masks/000.png", array=SQUARE)
    refused(tmp_path, "masks/000.png may belong to")
    shutil.move(tmp_path / "masks/000.png", tmp_path / "masks/crack.png")
    refused(tmp_path, "no image belongs to any of the 1 masks")
    put(tmp_path, "masks/crack/000.png", "masks/crack/000_mask.png", array=SQUARE)
    refused(tmp_path, "masks of two kinds")


# Links, names, tables

def test_links_are_followed_or_named(tmp_path):
    put(tmp_path / "pool", *several("a", 3, ".webp"), *several("b", 2, ".jfif"))
    root = tmp_path / "part"
    (root / "train").mkdir(parents=True)
    (root / "test/good").mkdir(parents=True)
    (root / "train/good").symlink_to(tmp_path / "pool/a")
    (root / "test/good/1.jfif").symlink_to(tmp_path / "pool/b/000.jfif")
    (root / "test/good/2.jfif").symlink_to(tmp_path / "nowhere")
    (root / "test/good/up").symlink_to(root)
    (root / "test/good/3.heic").write_bytes(b"x")
    os.mkfifo(root / "test/good/4.png")
    reading = read_folder(root)
    assert labels(reading) == {**dict.fromkeys(several("train/good", 3, ".webp"), ("train", 0)),
        "test/good/1.jfif": ("test", 0)}
    assert dict(reading.left_out) == {"test/good/2.jfif": "is a link that leads nowhere",
        "test/good/up": "is a link back to a folder that holds it",
        "test/good/3.heic": "is of the format .heic, which is not read", "test/good/4.png": "is no regular file"}
    assert "4 files left out" in open_dataset(root).summary


def test_what_inspect_wrote_is_not_learned_from(tmp_path):
    put(tmp_path, "1.png", "00000_1.png", "results/00000_1.png")
    pd.DataFrame({"path": ["1.png"], "score": [1], "decision": ["OK"], "overlay": ["00000_1.png"]}).to_csv(tmp_path
        / "decisions.csv")
    shutil.copy(tmp_path / "decisions.csv", tmp_path / "results")
    assert labels(read_folder(tmp_path)) == {"1.png": ("train", 0)} and len(scan(tmp_path).left_out) == 2


@pytest.mark.parametrize("name", ["a\nb.png", "日本.png", "x" * 240 + ".png"])
def test_file_names_of_any_kind(tmp_path, name):
    put(tmp_path, *several("ok", 6), *several("nok", 2))
    try: shutil.copy(tmp_path / "ok/000.png", os.fsencode(f"{tmp_path}/ok/") + os.fsencode(name))
    except OSError: pytest.skip("this file system has no such names")
    data = open_dataset(tmp_path)
    parts = [getattr(data, split) for split in ("train", "calibration")] + [data.open_test()]
    assert sum(map(len, parts)) == 9 and len({part.key for part in parts}) == 3 and not data.skipped


def test_a_name_that_is_not_utf_8_is_left_out_and_named(tmp_path):
    put(tmp_path, *several("ok", 6), *several("nok", 2))
    try: shutil.copy(tmp_path / "ok/000.png", os.fsencode(f"{tmp_path}/ok/") + b"W\xfcrfel.png")
    except OSError: pytest.skip("this file system has no such names")
    reading = read_folder(tmp_path)
    assert len(reading.table) == 8
    assert reading.left_out == (("ok/W\udcfcrfel.png", "has a name that is not UTF-8; rename it"),)
    os.rename(tmp_path / "nok/001.png", os.fsencode(tmp_path) + b"/nok/\xfc.png")
    (tmp_path / os.fsdecode(b"Pr\xfcfung")).mkdir()
    shutil.copy(tmp_path / "ok/001.png", tmp_path / os.fsdecode(b"Pr\xfcfung"))
    (tmp_path / "groups.csv").write_bytes("Path;Group\nok\\000.png;W\xfcrfel".encode("cp1252"))
    assert "Würfel" in read_folder(tmp_path).table.group.tolist() and len(read_folder(tmp_path).left_out) == 3
    data = open_dataset(tmp_path / os.fsdecode(b"Pr\xfcfung"))
    assert len(data.train) == 1 and data.name.isprintable()


@pytest.mark.parametrize("write", [lambda path: path.replace("/", "\\"), lambda path:
    f"C:\\data\\part\\{path}".replace("/", "\\"), lambda path: f"/mnt/part/{path}", lambda path: f"./{path}",
    lambda path: path.removeprefix("train/"), lambda path: path.upper(), lambda path: f" {path} "])
def test_groups_are_found_whatever_wrote_the_paths(tmp_path, write):
    put(tmp_path, *several("train/good", 4), *several("test/bad", 2))
    rows = "\n".join(f"{write(path)};{n // 2}" for n, path in enumerate(several("train/good", 4)))
    (tmp_path / "groups.csv").write_bytes(f"\ufeffpath;group\n{rows}\n".encode())
    assert read_folder(tmp_path).table.query("split == 'train'").group.tolist() == ["0", "0", "1", "1"]


def test_groups_that_match_nothing_are_refused_and_others_named(tmp_path):
    put(tmp_path, *several("train/good", 4), *several("test/good", 2), *several("test/bad", 2))
    def with_rows(*rows):
        (tmp_path / "groups.csv").write_text("path,group\n" + "\n".join(rows))
        return read_folder(tmp_path)
    for rows, words in ((["other/9.png,1"], "gives no group to an image"), (["train/good/000.png,"], "gives no group"),
            ([], "no rows"), (["000.png,1"], "line 2 may be"),
            (["train/good/000.png,1", "train\\good\\000.png,2"], "two groups")):
        with pytest.raises(UserError, match=words): with_rows(*rows)
    reading = with_rows("train/good/000.png,1", "train/good/777.png,1")
    assert "1 of its 2 rows name no image" in reading.notes[0] and reading.table.group.tolist().count("1") == 1


def test_a_table_of_splits_names_the_wrong_row(tmp_path):
    path = tmp_path / "splits.csv"
    def said(*rows):
        path.write_text("path,split,label,defect,mask,group\n" + "\n".join(rows))
        try: return read_splits(path)
        except UserError as error: return str(error)
    good, bad = "a.png,train,0,good,,1", "b.png,test,1,dent,,2"
    assert said(good, bad).label.tolist() == [0, 1] and said(good, bad).label.dtype == np.int64
    assert "line 3 (b.png) has no label" in said(good, "b.png,test,,dent,,2")
    assert "line 2 (without a path) has no path" in said(",train,0,good,,1")
    assert "b.png has a label that is neither" in said(good, "b.png,test,NOK,dent,,2") and "lists no image" in said()
    path.write_text("")
    with pytest.raises(UserError, match="cannot be read as a table"): read_folder(put(tmp_path, "a.png"))


# Any tree

WORD = {"ok": ["good", "OK", "Normal", "pass", "non_defective", "gut"], "nok": ["nok", "NG", "bad", "anomaly",
    "defects", "broken"], "train": ["train", "Training", "TRAIN"], "calibration": ["calibration", "val", "Validation"],
    "test": ["test", "Test", "testing"], "mask": ["ground_truth", "masks", "Label", "gt", "SegmentationClass"],
    "defect": ["colour", "poke", "thread_side", "scratch_head"], "unknown": ["line2", "raw", "zz", "2024-05-01"]}


@st.composite
def trees(draw):
    """({path: (split or None, label)}, {mask: image}, paths that nobody can label) of a tree by one grammar,
    perhaps disturbed."""
    say = {kind: draw(st.sampled_from(words)) for kind, words in WORD.items()}
    splits = draw(st.sampled_from([[None], ["train", "test"], ["train", "calibration", "test"], ["train"]]))
    order = draw(st.sampled_from(["split first", "class first", "joined"]))
    truth, marks, lost = {}, {}, []
    for split in splits:
        kinds = ({"ok": 0} if split == "train"
            else {"ok": 0, "nok": 1, **({"defect": 1} if split == "test" and order == "split first" else {})})
        for kind, label in kinds.items():
            if draw(st.integers(0, 4)) == 0: continue
            parts = ([say[split], say[kind]] if split and order == "split first" else [say[kind], say[split]]
                if split and order == "class first" else [f"{say[split]}_{say[kind]}"] if split else [say[kind]])
            inner = draw(st.sampled_from(["", "camera_A/", "part_7/"]))
            for n in range(draw(st.integers(1, 2))):
                path = "/".join(parts) + f"/{inner}{n:03d}.png"
                truth[path] = split, label
                way = draw(st.sampled_from(["", "same", "_mask", "folder", "beside", "flat", "split"])) if label else ""
                stem = f"{inner}{n:03d}"
                mask = {"same": f"{say['mask']}/{say[kind]}/{stem}.png",
                    "_mask": f"{say['mask']}/{say[kind]}/{stem}_mask.png",
                    "folder": f"{say['mask']}/{say[kind]}/{stem}/000.png",
                    "beside": path.removesuffix(".png") + "_GT.png", "flat": f"{say['mask']}/{stem}.png",
                    "split": f"{say['mask']}/{path}"}.get(way)
                if mask and mask not in marks: marks[mask] = path
                elif mask: lost.append(mask)                                     # one mask file for two images
    disturbance = draw(st.sampled_from(["", "", "", "", "", "", "loose", "above", "between", "beside", "wrapper"]))
    extra = {"loose": "007.png", "above": f"{say['unknown']}/007.png",
        "between": f"{say['test']}/{say['unknown']}/{say['ok']}/007.png",
        "beside": f"{say['train']}/{say['unknown']}/007.png"}.get(disturbance)
    if extra: lost.append(extra)
    if disturbance == "wrapper":
        truth, marks = ({f"{say['unknown']}/{path}": value for path, value in truth.items()},
            {f"{say['unknown']}/{mask}": f"{say['unknown']}/{path}" for mask, path in marks.items()})
    return truth, marks, lost


def build(root, paths):
    shutil.rmtree(root, ignore_errors=True)
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    return root


@settings(max_examples=400, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large])
@given(tree=trees())
def test_a_tree_is_read_as_it_was_built_or_refused(tmp_path, tree):
    truth, marks, lost = tree
    if not truth: return
    root = build(tmp_path / "tree", [*truth, *marks, *lost])
    try: reading = read_folder(root)
    except UserError as error:
        assert "\n" not in str(error)
        return
    below = lambda path: (reading.root / path).relative_to(root).as_posix()
    assert {below(path): label for path, (_, label) in labels(reading).items()} == {path: label
        for path, (_, label) in truth.items()}
    assert all(split == labels(reading)[path][0] for path, (split,
        _) in ((os.path.relpath(root / path, reading.root), said) for path, said in truth.items()) if split)
    assert {below(mask): below(image) for image, some in masks(reading).items() for mask in some} == marks
    assert not lost, "a file that nobody can know was passed over"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees())
def test_most_undisturbed_trees_are_read(tmp_path, tree):
    truth, marks, lost = tree
    if (lost or len({mask.rsplit("/", 1)[0] for mask in marks}) > 1
            or not any(label == 0 and split == "test" for split, label in truth.values())):
        return
    stems = [path.rsplit("/", 1)[-1] for path, (_, label) in truth.items() if label == 1]
    if len(set(stems)) < len(stems): return             # a mask could belong to two images
    read_folder(build(tmp_path / "tree", [*truth, *marks]))


@given(st.text(max_size=30))
def test_every_name_has_a_meaning_that_capitals_do_not_change(name):
    assert meanings(name) <= {"ok", "nok", "mask", "train", "calibration", "test", "private", "other",
        "unsure", "container"}
    assert meanings(name.upper()) == meanings(name.upper().lower())
