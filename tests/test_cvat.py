"Masks from CVAT: the right pixels of every shape, found by name, and nothing written where something is wrong."
import json
import zipfile

import numpy as np
import pytest
from conftest import write_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from thesis_ad.cli import main
from thesis_ad.data import cvat
from thesis_ad.data.cvat import coco_counts, polygon_mask, read_annotations, read_cvat, runs_mask, write_masks
from thesis_ad.data.datasets import open_dataset
from thesis_ad.data.layouts import read_folder
from thesis_ad.files import read_mask
from thesis_ad.settings import UserError, rng

SIZE = (12, 16)          # height, width


def xml(*images, inside=""):
    "An export as CVAT for images 1.1 of (name, shapes)."
    body = "".join(f'<image id="{n}" name="{name}" width="16" height="12">{shapes}</image>'
        for n, (name, shapes) in enumerate(images))
    return f'<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>{inside}{body}</annotations>'


def polygon(*points, label="scratch", order=0):
    return f'<polygon label="{label}" points="{";".join(f"{x},{y}" for x, y in points)}" z_order="{order}"/>'


SQUARE = polygon((2, 2), (10, 2), (10, 8), (2, 8))


@pytest.fixture
def photos(tmp_path):
    "The thesis's layout: three OK captures, one OK and three NOK images in test, no masks."
    root = tmp_path / "photos"
    names = [*(f"train/ok/zoom_1_2025030{day}_081512.png" for day in (1, 2, 3)), "test/ok/zoom_1_20250304_081512.png",
        "test/nok/part_7/zoom_1_20250305_081512.png", "test/nok/part_8/zoom_1_20250305_081512.png",
        "test/nok/part_8/zoom_3_20250306_081512.png"]
    for n, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*SIZE, 3), 90 + n, np.uint8)).save(root / name)
    return root


def export(root, text, name="annotations.xml"):
    (root.parent / name).write_text(text)
    return root.parent / name


# Pixels

@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-4, 20), st.floats(-4, 16)), min_size=3, max_size=9))
def test_a_polygon_marks_the_centres_inside_it(points):
    "Against a crossing count for each centre, for polygons that cross themselves, too."
    mask = polygon_mask(points, SIZE)
    for i, j in ((i, j) for i in range(0, 12, 3) for j in range(0, 16, 3)):
        x, y, crossings = j + 0.5, i + 0.5, 0
        near = False
        for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]]):
            if (y0 <= y < y1) or (y1 <= y < y0):
                at = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
                near |= abs(at - x) < 1e-6
                crossings += at <= x
        assert near or mask[i, j] == (crossings % 2 == 1)


def test_two_polygons_that_share_an_edge_share_no_pixel():
    a, b = polygon_mask([(0, 0), (16, 0), (0, 12)], SIZE), polygon_mask([(16, 0), (16, 12), (0, 12)], SIZE)
    assert not (a & b).any() and (a | b).all()


# pycocotools' own encoding of these rows
REFERENCE = {"rows": [
    "00100000100000110", "11001001001010011", "01011011110110100", "01010001001101010", "11111100000100011",
    "10011111110000000", "10011111100000010", "11111111100010000", "10011111100000010", "01111111101100001",
    "01011111110001010", "01111111110111000", "11111111110010001", "00111111101000111", "01111111110101000",
    "10001100010101011", "10100011010001100", "01100101111000101", "10000001010101001", "11001010001000010",
    "11000011001100100", "11011000000101010", "01000100110011100"], "counts":
    "11241LO1O2100MO30M10O42LO0O0030N6;ODL1O:2EN04;LE30N009OG1111N70I0N10O0190G20N00022M22LN00040N000N131"
    "0NM0110OO1102OO16OJ031L1ON12ON90H10OO20O0O000010O020N0100020N1OO013"}


def test_compressed_run_lengths_are_those_of_pycocotools():
    wanted = np.array([[one == "1" for one in row] for row in REFERENCE["rows"]])
    assert (runs_mask(coco_counts(REFERENCE["counts"]), wanted.shape, columns=True) == wanted).all()


def test_run_lengths_that_do_not_fill_the_image_are_refused():
    for counts in ([3, 4], [200], [-1, 193]):
        with pytest.raises(UserError, match="do not fill 16×12"): runs_mask(counts, SIZE)


@pytest.mark.parametrize("shapes, count", [
    (SQUARE, 48), ('<box label="burn" xtl="2" ytl="2" xbr="10" ybr="8"/>', 48),
    ('<box label="burn" xtl="3" ytl="1" xbr="9" ybr="9" rotation="90"/>', 48),
    (SQUARE + polygon((4, 4), (6, 4), (6, 6), (4, 6), label="Hole", order=1), 44),
    (polygon((4, 4), (6, 4), (6, 6), (4, 6), label="hole", order=1) + SQUARE, 44),
    (SQUARE + polygon((4, 4), (6, 4), (6, 6), (4, 6), label="hole", order=-1), 48),
    ('<mask label="a" rle="2, 2, 4, 1" left="5" top="3" width="3" height="3"/>', 3),
    ('<polyline label="a" points="0.5,3.5;15.5,3.5"/>', 16), (polygon((1.1, 1.1), (8.9, 1.2), (8.9, 1.3)), 8), ("", 0),
    ('<tag label="x"/><points label="a" points="1,1"/>', 0)])
def test_every_shape_marks_its_pixels(shapes, count):
    (image,), left_out = read_cvat(xml(("a.png", shapes)).encode(), "x")
    assert image.mask().sum() == count and sum(left_out.values()) == (2 if "<tag" in shapes else 0)


# Files

def test_xml_coco_and_zip_give_the_same_masks(photos, tmp_path):
    names = ["part_7/zoom_1_20250305_081512.png", "zoom_3_20250306_081512.png"]
    xml_path = export(photos, xml((names[0], SQUARE + polygon((4, 4), (6, 4), (6, 6), (4, 6), label="hole", order=1)),
        (names[1], SQUARE)))
    with_hole = np.zeros(SIZE, int)
    with_hole[2:8, 2:10] = 1
    with_hole[4:6, 4:6] = 0
    flat = with_hole.T.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    counts = np.diff([0, *starts, flat.size]).tolist()
    coco = {"images": [{"id": n + 1, "file_name": name, "width": 16, "height": 12} for n, name in enumerate(names)],
        "categories": [{"id": 1, "name": "scratch"}], "annotations": [{"id": 1, "image_id": 1, "category_id": 1,
            "segmentation": {"counts": counts, "size": list(SIZE)}, "iscrowd": 1}, {"id": 2, "image_id": 2,
                "category_id": 1, "segmentation": [[2, 2, 10, 2, 10, 8, 2, 8]], "bbox": [2, 2, 8, 6]}]}
    coco_path = export(photos, json.dumps(coco), "instances_default.json")
    with zipfile.ZipFile(tmp_path / "task.zip", "w") as packed:
        packed.write(xml_path, "annotations.xml"); packed.writestr("images/1.png", b"1")
    masks = [[one.mask() for one in read_annotations(path)[0]] for path in (xml_path, coco_path, tmp_path / "task.zip")]
    assert all((a == b).all() for other in masks[1:] for a, b in zip(masks[0], other, strict=True))
    assert masks[0][0].sum() == 44


def test_masks_are_written_where_the_layout_looks_for_them(photos):
    said = write_masks(photos, export(photos, xml(("nok/part_7/zoom_1_20250305_081512.png", SQUARE),
        ("zoom_3_20250306_081512.png", SQUARE), ("elsewhere.png", SQUARE))))
    assert said[0] == "masks written: 2" and "elsewhere.png" in said[1]
    assert "1 NOK images are still without a mask" in said[2]
    data = open_dataset(photos)
    assert (dict(zip(data.table.path, data.table["mask"]))["test/nok/part_7/zoom_1_20250305_081512.png"]
        == "masks/nok/part_7/zoom_1_20250305_081512.png")
    test = data.open_test()
    assert sorted(0 if test.mask(i) is None else int(test.mask(i).sum()) for i in range(len(test))) == [0, 0, 48, 48]


def test_masks_of_a_folder_in_mvtec_layout(mvtec_folder, tmp_path):
    for path in [*(mvtec_folder / "ground_truth/dent").iterdir()]: path.unlink()
    body = ('<annotations><image id="0" name="dent/003.png" width="96" height="72"><box label="dent" xtl="40" ytl="20" '
        'xbr="60" ybr="36"/></image></annotations>')
    (tmp_path / "a.xml").write_text(body)
    write_masks(mvtec_folder, tmp_path / "a.xml")
    assert open_dataset(mvtec_folder).table.set_index(
        "path")["mask"]["test/dent/003.png"] == "ground_truth/dent/003_mask.png"


def test_images_of_one_name_in_two_splits_have_masks_of_their_own(mvtec_folder, tmp_path):
    for path in [*(mvtec_folder / "ground_truth/dent").iterdir()]: path.unlink()
    write_image(mvtec_folder / "validation/dent/003.png", rng("another"))
    box = '<box label="dent" xtl="{}" ytl="20" xbr="60" ybr="36"/></image>'
    (tmp_path / "a.xml").write_text("<annotations>" + "".join(
        f'<image name="{split}/dent/003.png" width="96" height="72">' + box.format(left)
        for split, left in (("test", 40), ("validation", 50))) + "</annotations>")
    assert write_masks(mvtec_folder, tmp_path / "a.xml")[0] == "masks written: 2", "the masks were merged"
    table = read_folder(mvtec_folder).table.set_index("path")["mask"]
    assert [read_mask(mvtec_folder / table[f"{split}/dent/003.png"]).sum() for split in ("test", "validation")] == [
        320, 160]


def test_a_zip_that_unpacks_to_too_much_is_refused(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(cvat, "LARGEST", 1000)
    for length, words in ((1001, "unpacks to more than 1,000 bytes; unpack it and give a.xml"), (1000, "is no XML")):
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("a.xml", " " * length)
        with pytest.raises(UserError, match=words): read_annotations(tmp_path / "a.zip")


@pytest.mark.parametrize("text, words", [
    (xml(("zoom_1_20250305_081512.png", SQUARE)),
        ["may be test/nok/part_7", "or test/nok/part_8", "upload images with folders"]),
    (xml(("zoom_1_20250304_081512.png", SQUARE)),
        ["marks a defect on test/ok/zoom_1_20250304_081512.png, which is an OK image"]),
    (xml(("zoom_3_20250306_081512.png", SQUARE)).replace('width="16"', 'width="17"'),
        ["is 16×12 pixels", "says 17×12"]),
    (xml(("other.png", SQUARE)), ["marks no image of the folder, such as other.png"]),
    (xml(("zoom_3_20250306_081512.png", "")), ["marks no image of the folder"]),
    (xml(("zoom_3_20250306_081512.png", '<mask label="a" rle="1,2" left="0" top="0" width="3" height="3"/>')),
        ["what it says of zoom_3", "do not fill 3×3"]),
    (xml(("zoom_3_20250306_081512.png", '<mask label="a" rle="0,9" left="15" top="0" width="3" height="3"/>')),
        ["leads out of its image"]),
    (xml(("zoom_3_20250306_081512.png", '<mask label="a" rle="0,99999980000001" left="0" top="0" width="9999999" '
        'height="9999999"/>')), ["leads out of its image"]),
    (xml(("zoom_3_20250306_081512.png", SQUARE)).replace('width="16"', 'width="99999999"'),
        ["is 99999999×12 pixels, and at most 200,000,000 are read"]),
    (xml(("zoom_3_20250306_081512.png", '<polygon label="a" points="1,x"/>')),
        ["what it says of zoom_3", "cannot be read"]),
    (xml(("zoom_3_20250306_081512.png", '<polygon label="a" points="inf,1;2,inf;3,3"/>')),
        ["cannot be read", "infinity"]),
    (xml(inside='<track id="0" label="a"><polygon frame="0" points="1,1"/></track>'),
        ["for video", "CVAT for images 1.1"]),
    ("<annotations", ["is no XML"]), ('<!DOCTYPE x [<!ENTITY a "b">]><annotations/>', ["declares entities"])])
def test_what_is_wrong_is_one_sentence_and_no_file(photos, text, words):
    with pytest.raises(UserError) as error: write_masks(photos, export(photos, text))
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), error.value
    assert not (photos / "masks").exists()


def test_masks_that_are_there_are_kept(photos):
    path = export(photos, xml(("zoom_3_20250306_081512.png", SQUARE)))
    write_masks(photos, path)
    with pytest.raises(UserError, match="is there already; --force replaces it"): write_masks(photos, path)
    assert write_masks(photos, path, force=True)[0] == "masks written: 1"
    with pytest.raises(UserError, match="unknown label of .* 'scrach'; did you mean 'scratch'"):
        write_masks(photos, path, labels=["scrach"], force=True)


def test_the_command_line(photos, capsys):
    path = export(photos, xml(("zoom_3_20250306_081512.png", SQUARE)))
    with pytest.raises(SystemExit) as done: main(["data", "masks", str(photos), str(path)])
    assert done.value.code == 0 and "masks written: 1" in capsys.readouterr().out
    with pytest.raises(SystemExit) as done: main(["data", "masks", str(photos), str(path)])
    said = capsys.readouterr().err
    assert done.value.code == 2 and said.count("\n") == 1
