"""Decoding: what a file holds is what is read, one white level holds for a dataset,
and every failure is that of one file."""
import io
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import write_image
from damaged import encodings, read_all
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin
from test_threshold import refused, thesis_ad

from thesis_ad.data.datasets import open_dataset
from thesis_ad.files import Reading, image_facts, read_image
from thesis_ad.models.detector import load_bundle, predict_set
from thesis_ad.settings import UserError, rng


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_refused_in_one_sentence():
    read, refused = read_all(1500)
    assert read > 100 and refused > 500
    for name, data in encodings().items():
        assert read_image(data).shape == ((40, 28, 3) if name in ("png exif", "jpeg", "tiff turned") else (17, 24, 3)
            if name == "ico" else (28, 40, 3)), name


@pytest.mark.parametrize("error",
    [OSError("x\ny"), OSError(), ValueError("x"), SyntaxError("x"), EOFError(), MemoryError(), RecursionError(),
        KeyError(3), IndexError("x"), ZeroDivisionError(), Image.DecompressionBombError("x")])
def test_whatever_a_decoder_raises_names_the_file(error, tmp_path, monkeypatch):
    write_image(tmp_path / "part.png", rng("raises"))
    def fails(*_): raise error
    monkeypatch.setattr(ImageFile.ImageFile, "load", fails)
    with pytest.raises(UserError, match=r"cannot read .*part\.png as an image \(.+\)$") as said:
        read_image(tmp_path / "part.png")
    assert len(str(said.value).splitlines()) == 1


def test_exif_that_cannot_be_written_back_does_not_matter(monkeypatch):
    image, exif = Image.fromarray(rng("exif").integers(0, 255, (6, 9, 3)).astype(np.uint8)), Image.Exif()
    for turn in range(1, 9):
        exif[0x0112] = turn
        for format in ("PNG", "TIFF"):
            data = encoded(image, format, exif=exif)
            upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
            with monkeypatch.context() as broken:
                for cls in (Image.Exif, TiffImagePlugin.ImageFileDirectory_v2):
                    broken.setattr(cls, "tobytes", lambda *_, **__: 1 / 0)
                assert np.array_equal(read_image(data), upright), (turn, format)


# White

@settings(max_examples=60, deadline=None)
@given(st.sampled_from([10, 12, 14, 16]), st.booleans(), st.sampled_from(["PNG", "TIFF", "colour png", "colour tiff"]),
    st.integers(0, 10**6))
def test_a_sensor_of_any_depth_shows_what_it_saw(bits, tagged, format, seed):
    """Values of a sensor of so many bits in a 16-bit file are read as its 8-bit image, by their own maximum, by a tag
    or by a white that is given."""
    white = 2**bits - 1
    values = rng("sensor", seed).integers(0, 1 + (white if not tagged else white // 3), (5, 7)).astype(np.uint16)
    values[0, 0] = values.max() if tagged else white
    if format.startswith("colour"):
        data = cv2.imencode(".png" if "png" in format else ".tif", np.dstack([values] * 3))[1].tobytes()
    else:
        data = encoded(Image.fromarray(values), format,
            **({"tiffinfo": {281: white}} if tagged and format == "TIFF" else {}))
    expected = np.round(values * (255 / white)).astype(np.uint8)[..., None]
    assert (read_image(data, Reading(white=white)) == expected).all()
    if not tagged or format == "TIFF":
        assert image_facts(data).white == white and (read_image(data) == expected).all()


def twelve_bits(path, seed, gain=1.0, square=False):
    "A 12-bit photo of a plate in a 16-bit TIFF."
    path.parent.mkdir(parents=True, exist_ok=True)
    plate = 900 + 300 * np.sin(np.arange(64) / 5)[None, :] + 20 * rng("plate", seed).standard_normal((48, 64))
    if square: plate[10:22, 20:34] += 700
    Image.fromarray((gain * plate).clip(0, 4095).astype(np.uint16)).save(path)


def test_one_white_level_for_a_dataset_kept_in_the_bundle(tmp_path):
    "A darker photo stays darker: 16-bit files of a 12-bit camera are read by one level, at fit, evaluate and inspect."
    root, bundle = tmp_path / "plates", tmp_path / "bundle"
    for i in range(8): twelve_bits(root / f"train/good/{i}.tif", i)
    for i in range(5): twelve_bits(root / f"test/good/{i}.tif", 20 + i)
    for i in range(5): twelve_bits(root / f"test/spot/{i}.tif", 30 + i, square=True)
    twelve_bits(root / "test/dark/0.tif", 40, gain=0.4)
    result = thesis_ad("fit", "gaussian", root, "-o", bundle, "--set", "size=64")
    assert (result.returncode == 0
        and json.loads((bundle / "bundle.json").read_text())["facts"]["white"] == 2047), result.stderr
    result = thesis_ad("evaluate", bundle, root, "-o", tmp_path / "e")
    assert result.returncode == 0, result.stderr
    detector = load_bundle(bundle, "cpu")
    test = open_dataset(str(root)).read(detector.reading).development
    scores = dict(zip(test.paths, predict_set(detector, test)[0]))
    assert max(scores[f"test/good/{i}.tif"] for i in range(5)) < min(scores[f"test/spot/{i}.tif"] for i in range(5))
    dark = test.paths.tolist().index("test/dark/0.tif")
    assert abs(test.image(dark).mean() - 0.4 * test.image(dark + 1)
        .mean()) < 3, "a photo was brightened to the level of the others"
    assert open_dataset(str(root)).development.white == 2047, "the test split has a level of its own"
    assert thesis_ad("fit", "gaussian", root, "-o", bundle, "--set", "size=64", "--set", "white=65535").returncode == 0
    assert load_bundle(bundle, "cpu").reading.white == 65535
    assert "most of the range is unused" in thesis_ad("evaluate", bundle, root, "-o", tmp_path / "e").stderr
    refused(thesis_ad("fit", "gaussian", root, "-o", bundle, "--set", "white=-1"), "white")
    refused(thesis_ad("fit", "gaussian", root, "-o", bundle, "--set", "white=300"), "where 0 … 300 is black … white")


def test_deep_files_for_a_bundle_of_8_bits_are_refused(tmp_path, mvtec_folder):
    assert thesis_ad("fit", "gaussian", mvtec_folder, "-o", tmp_path / "b", "--set", "size=64").returncode == 0
    assert "white" not in json.loads((tmp_path / "b/bundle.json").read_text())["facts"]
    twelve_bits(mvtec_folder / "test/good/deep.tif", 0)
    refused(thesis_ad("evaluate", tmp_path / "b", mvtec_folder, "-o", tmp_path / "e"), "deep.tif", "white=65535")


# Formats

def test_a_fourth_byte_that_nobody_wrote_is_no_transparency():
    pixels = rng("bmp").integers(0, 255, (5, 6, 4)).astype(np.uint8)
    pixels[..., 3] = 0
    assert (read_image(cv2.imencode(".bmp", pixels)[1].tobytes()) == pixels[..., 2::-1]).all()
    pixels[0, 0, 3] = 255
    assert (read_image(cv2.imencode(".bmp", pixels)[1].tobytes())[1:] == 255).all()


def test_pages_are_chosen_and_those_left_out_are_said(tmp_path):
    for i in range(4):
        pages = [Image.fromarray(np.full((20, 20), level, np.uint8)) for level in (40, 200 + i)]
        (tmp_path / "stack").mkdir(exist_ok=True)
        pages[0].save(tmp_path / f"stack/{i}.tif", save_all=True, append_images=pages[1:])
    file = tmp_path / "stack/0.tif"
    assert read_image(file).max() == 40 and read_image(file, Reading(page=2)).min() == 200
    assert image_facts(file).pages == 2
    with pytest.raises(UserError, match="no page 3"): read_image(file, Reading(page=3))
    result = thesis_ad("fit", "gaussian", tmp_path / "stack", "-o", tmp_path / "b", "--set", "size=32",
        "--set", "page=2")
    assert (result.returncode == 0
        and "3 of 3 files hold more than one page; page 2 of each is read" in result.stderr), result.stderr
    assert load_bundle(tmp_path / "b", "cpu").reading.page == 2


def test_size_is_bounded_by_a_number_that_may_be_raised(tmp_path):
    large = b"P4 20000 10001\n"  # a header alone: refused before anything is decoded
    with pytest.raises(UserError, match="max_pixels=200020000 would allow them"): read_image(large)
    small = encoded(Image.new("L", (30, 40)))
    with pytest.raises(UserError, match="30 × 40 are more than 1,199 pixels"):
        read_image(small, Reading(max_pixels=1199))
    assert read_image(small, Reading(max_pixels=1200)).shape == (40, 30, 3)
    assert Image.MAX_IMAGE_PIXELS is None, "Pillow refuses what max_pixels allows"


@pytest.mark.parametrize("name", ["a.webp", "a.JFIF", "a.tiff", "a.bmp"])
def test_suffixes(name, tmp_path):
    image = Image.fromarray(rng("suffix").integers(0, 255, (20, 20, 3)).astype(np.uint8))
    for i in range(3): image.save(tmp_path / f"{i}{name}", "JPEG" if "JFIF" in name else None)
    assert len(open_dataset(str(tmp_path)).table) == 3


def test_libraries_do_not_speak_to_the_user(mvtec_folder, tmp_path):
    """Damaged files of formats whose libraries write to the terminal themselves: nothing but our own lines, and a
    folder that no one may read is one of them."""
    for name in ("tiff tiff_lzw", "tiff tiff_adobe_deflate", "png 16-bit rgb", "png rgb", "jpeg", "tiff 16-bit rgb",
            "webp", "tiff fax"):
        data = bytearray(encodings()[name])
        data[len(data) // 2:len(data) // 2 + 40] = bytes(40)
        ((mvtec_folder / f"train/good/{name.replace(' ', '_')}.{name.split()[0].replace('jpeg', 'jpg')}")
            .write_bytes(data[:-30]))
    command = [sys.executable, "-c", "from thesis_ad.cli import main; main()", "fit", "gaussian", str(mvtec_folder),
        "-o", str(tmp_path / "b"), "--set", "size=64"]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert result.returncode == 0 and result.stderr, result.stderr
    assert all(line.startswith("skipped ") or line.endswith(" skipped") or "thesis" in line
        for line in result.stderr.splitlines()), result.stderr
