"What `thesis-ad data check` says of a folder, and what fit and evaluate say before they begin."
import numpy as np
import pytest
from conftest import write_image
from PIL import Image

from thesis_ad import cli
from thesis_ad.data.check import check_folder, copies, small
from thesis_ad.data.datasets import open_dataset, twins
from thesis_ad.settings import UserError, rng


def run(*arguments):
    "Exit code of a command in this process."
    with pytest.raises(SystemExit) as end: cli.main([str(one) for one in arguments])
    return end.value.code or 0


def said(check, *words):
    "The place among the warnings of the one that has all the words."
    found = [n for n, line in enumerate(check.warnings) if all(word in line for word in words)]
    assert len(found) == 1, f"{words} in {check.warnings}"
    return found[0]


@pytest.fixture
def folder(mvtec_folder):
    "A folder with one mistake of each kind."
    good, dent, truth = mvtec_folder / "train/good", mvtec_folder / "test/dent", mvtec_folder / "ground_truth/dent"
    (mvtec_folder / "test/good/900.png").write_bytes((good / "000.png").read_bytes())
    Image.open(good / "001.png").save(mvtec_folder / "test/good/901.jpg", quality=90)
    Image.fromarray(np.zeros((72, 96), np.uint8)).save(truth / "000_mask.png")
    Image.fromarray(255 - np.asarray(Image.open(truth / "001_mask.png"))).save(truth / "001_mask.png")
    (truth / "002_mask.png").rename(truth / "777_mask.png")
    Image.open(truth / "003_mask.png").resize((72, 96)).save(truth / "003_mask.png")
    (truth / "004_mask.png").write_bytes(b"")
    exif = Image.Exif(); exif[0x0112] = 6
    Image.open(dent / "005.png").save(dent / "005.png", exif=exif)
    (good / "990.png").write_bytes(b"no image"); (good / "991.heic").write_bytes(b"x")
    (good / "992.png").symlink_to(good / "nowhere.png")
    Image.fromarray(np.pad(np.full((9, 9), 255, np.uint8), 20)).save(good / "993.png")
    return mvtec_folder


def test_every_mistake_is_named_in_the_order_of_its_weight(folder):
    check = check_folder(folder)
    places = [said(check, "1 test image with the bytes of an image of", "900.png"),
              said(check, "1 test image with the look of an image of", "901.jpg"),
              said(check, "3 masks that cannot be used", "003_mask.png is 72×96", "004_mask.png cannot be read",
                  "005_mask.png is 96×72 pixels but its image is 72×96 (as stored: EXIF"),
              said(check, "1 OK image with two values only", "993.png"), said(check, "1 mask without an image",
                  "777_mask.png"), said(check, "1 image that cannot be read", "990.png"),
              said(check, "1 NOK image without a mask", "002.png"), said(check, "1 mask without a marked pixel",
                  "000_mask.png"), said(check, "001_mask.png marks", "inverted"),
              said(check, "2 files left out", "991.heic is of the format .heic",
                  "992.png is a link that leads nowhere")]
    assert places[0] == 0 and places[1] == 1 and max(places) == places[-1]
    report = "\n".join(check.lines())
    for words in ("layout mvtec: train", "test, NOK (dent)", "RGB, 8 bits, PNG", "96×72", "left out", "masks"):
        assert words in report
    assert len(twins(open_dataset(folder))) == 1


def test_the_command_ends_with_0_where_a_folder_can_be_used_and_with_2_where_not(folder, tmp_path, capsys):
    assert run("data", "check", folder, "-o", tmp_path / "sheet") == 0
    out = capsys.readouterr().out
    assert "the heaviest first" in out
    assert sorted(path.name for path in (tmp_path / "sheet").iterdir()) == ["contact_sheet.png",
        "images.csv", "masks.csv"]
    sheet = np.asarray(Image.open(tmp_path / "sheet/contact_sheet.png"))
    assert (sheet == (0xD5, 0x5E, 0)).all(axis=-1).any(), "outlines in the colour of NOK"
    for i in range(2):
        write_image(tmp_path / f"two/a/{i}.png", rng("a", i)); write_image(tmp_path / f"two/b/{i}.png", rng("b", i))
    assert run("data", "check", tmp_path / "two") == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and "a (2 images: not known), b (2 images: not known)" in error and "--ok DIR" in error
    assert run("data", "check", tmp_path / "two", "--ok", "a", "--nok", "b", "-o", tmp_path / "two.jpg") == 0
    assert [path.name for path in tmp_path.glob("two.*")] == ["two.png"]
    (tmp_path / "torn").mkdir(); (tmp_path / "torn/1.png").write_bytes(b"x")
    assert run("data", "check", tmp_path / "torn") == 2 and "no image of" in capsys.readouterr().err


def test_its_own_contact_sheet_shows_no_part(tmp_path):
    for i in range(4): write_image(tmp_path / f"{i}.png", rng("sheet", i))
    assert run("data", "check", tmp_path, "-o", tmp_path) == 0
    check = check_folder(tmp_path)
    assert len(check.images) == 4
    assert said(check, "1 image that cannot be read: contact_sheet.png", "shows no part") == 0


def test_commands_take_the_folders_that_the_user_names(tmp_path, capsys):
    "fit, calibrate and evaluate refuse the same tree, and read it once its folders are named."
    for i in range(10): write_image(tmp_path / f"teile/fein/{i:03d}.png", rng("ok", i))
    for i in range(3):
        mask = write_image(tmp_path / f"teile/kratzig/{i:03d}.png", rng("nok", i), square=True)
        path = tmp_path / f"teile/gemalt/{i:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.dstack([mask * 48, mask * 112, mask * 32]).astype(np.uint8)).save(path)
    bundle, flags = tmp_path / "b", ("--ok", "fein", "--nok", "kratzig")
    assert run("fit", "gaussian", tmp_path / "teile", "-o", bundle, "--set", "size=64") == 2 and not bundle.exists()
    assert "teile is not read" in capsys.readouterr().err
    assert run("fit", "gaussian", tmp_path / "teile", "-o", bundle, "--set", "size=64", *flags) == 0
    assert "layout named: train 6 OK, calibration 2 OK, test 2 OK + 3 NOK" in capsys.readouterr().out
    assert run("evaluate", bundle, tmp_path / "teile", "-o", tmp_path / "e", *flags, "--masks", "gemalt") == 0
    out = capsys.readouterr().out
    assert "3 NOK (3 with a mask)" in out and "pixel_auroc" in out
    assert run("calibrate", bundle, tmp_path / "teile", "--calibration", tmp_path / "teile/kratzig") == 2
    assert run("calibrate", bundle, tmp_path / "teile", *flags, "--calibration", tmp_path / "teile") == 0
    assert run("evaluate", bundle, tmp_path / "teile", "-o", tmp_path / "e", "--layout", "mvtek") == 2
    assert "mvtec" in capsys.readouterr().err
    (tmp_path / "teile/fein/copy.png").write_bytes((tmp_path / "teile/fein/000.png").read_bytes())
    for i in range(10):
        (tmp_path / f"neu/test/ok/{i}.png").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"neu/test/ok/{i}.png").write_bytes((tmp_path / f"teile/fein/{i:03d}.png").read_bytes())
    assert run("evaluate", bundle, tmp_path / "neu", "-o", tmp_path / "e") == 0
    assert "6 test images are byte by byte what this bundle was fitted on" in capsys.readouterr().err


def test_photos_of_equal_parts_are_no_copies():
    "Noise tells two photos of one scene apart; saving, and another size, do not."
    scene = np.linspace(40, 200, 192)[None, :, None] + np.zeros((144, 1, 3))
    first, second = (small((scene + rng("camera", i).normal(0, 12, scene.shape)).clip(0, 255).astype(np.uint8))
        for i in range(2))
    assert not list(copies(first[None], second[None], bits=64)) and list(copies(first[None], first[None])) == [(0, 0)]


def test_a_dataset_that_is_missing_is_refused_like_everywhere(tmp_path):
    with pytest.raises(UserError, match="neither a folder nor a dataset"): check_folder(tmp_path / "nowhere")
