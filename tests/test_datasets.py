"What a folder of photos becomes, and which of its files are read again."
import json, os

import cv2
import numpy as np
import pandas as pd
import pytest

from thesis_ad.data import datasets
from thesis_ad.data.datasets import ImageSet, inspect_files, open_dataset, open_folder
from thesis_ad.images.augmentation import Augment, Compose
from thesis_ad.images.enhancement import Enhance
from thesis_ad.settings import cache_dir, rng


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "Three images that were last changed an hour ago, and a list of the files that are read from now on."
    monkeypatch.setenv("THESIS_AD_CACHE", str(tmp_path / "cache"))
    root, read = tmp_path / "photos", []
    root.mkdir()
    for name in ("a", "b", "c"): write(root / f"{name}.png", seed=name)
    look = datasets._inspect
    monkeypatch.setattr(datasets, "_inspect", lambda path, *rest: read.append(path.name) or look(path, *rest))
    return root, read


def write(path, seed, age=3600):
    "An image of noise, changed `age` seconds ago."
    cv2.imwrite(str(path), rng(seed).integers(0, 256, (20, 30, 3)).astype(np.uint8))
    then = path.stat().st_mtime - age
    os.utime(path, (then, then))


def inspected(root, read):
    "(table, skipped, names of the files that were read) of one look at the folder."
    read.clear()
    table, skipped = inspect_files(pd.DataFrame({"path": ["a.png", "b.png", "c.png"]}), root, quiet=True)
    return table, skipped, sorted(read)


def test_a_file_is_read_again_only_when_it_has_changed(folder):
    root, read = folder
    first, _, files = inspected(root, read)
    assert files == ["a.png", "b.png", "c.png"], "nothing is known of these files yet"
    again, skipped, files = inspected(root, read)
    assert not files, "no file has changed, so none is read"
    assert again.equals(first) and not skipped
    write(root / "b.png", seed="another", age=1800)
    changed, _, files = inspected(root, read)
    assert files == ["b.png"]
    assert (changed.sha256 != first.sha256).tolist() == [False, True, False]


def test_a_file_that_changed_just_now_is_read_again(folder):
    root, read = folder
    write(root / "a.png", seed="fresh", age=0)
    inspected(root, read)
    assert inspected(root, read)[2] == ["a.png"], "a second change could carry the same time"


def test_a_broken_or_missing_file_is_looked_at_each_time_and_named(folder):
    root, read = folder
    inspected(root, read)
    (root / "b.png").write_bytes((root / "b.png").read_bytes()[:200])
    os.utime(root / "b.png", (1, 1))
    (root / "c.png").unlink()
    for _ in range(2):
        table, skipped, files = inspected(root, read)
        assert files == ["b.png", "c.png"] and table.path.tolist() == ["a.png"]
        assert "b.png" in skipped[0] and "cannot be read" in skipped[0] and "c.png: the file is missing" in skipped[1]


def test_a_note_of_another_length_is_not_believed(folder):
    root, read = folder
    first, _, _ = inspected(root, read)
    note = next((cache_dir() / "inspected").glob("*.json"))
    note.write_text(json.dumps(json.loads(note.read_text())[:2]))
    again, _, files = inspected(root, read)
    assert files == ["a.png", "b.png", "c.png"] and again.equals(first)


def test_the_same_names_in_another_folder_are_other_files(folder, tmp_path):
    root, read = folder
    first, _, _ = inspected(root, read)
    other = tmp_path / "other"
    other.mkdir()
    for name in ("a", "b", "c"): write(other / f"{name}.png", seed=f"other {name}")
    table, _, files = inspected(other, read)
    assert len(files) == 3 and not set(table.sha256) & set(first.sha256)


def test_a_folder_opened_twice_has_the_same_key(folder):
    root, read = folder
    first = open_folder(root).train.key
    read.clear()
    assert open_folder(root).train.key == first and not read


@pytest.mark.parametrize("spoil", [lambda note: note.write_text("{half"), lambda note: note.write_text("3"),
    lambda note: (note.unlink(), note.mkdir())])
def test_a_note_that_cannot_be_read_or_written_costs_a_look_and_nothing_else(folder, tmp_path, spoil):
    root, read = folder
    first, _, _ = inspected(root, read)
    note, = (tmp_path / "cache" / "inspected").iterdir()
    spoil(note)
    table, skipped, files = inspected(root, read)
    assert len(files) == 3 and table.equals(first) and not skipped


def test_a_full_disk_does_not_stop_a_look_at_the_files(folder, monkeypatch):
    def full(*_): raise OSError(28, "No space left on device")
    root, read = folder
    monkeypatch.setattr(os, "replace", full)
    table, skipped, files = inspected(root, read)
    assert len(table) == 3 and len(files) == 3 and not skipped


def test_decoded_images_are_shared_and_bounded(folder, monkeypatch):
    "Views at one size share what was decoded; another size or another shape of the same bytes is another image."
    root, _ = folder
    table, _ = inspect_files(pd.DataFrame({"path": ["a.png", "b.png", "c.png"], "mask": ""}), root, quiet=True)
    reads, read = [], datasets.read_image
    monkeypatch.setattr(datasets, "read_image", lambda path, *rest: reads.append(path.name) or read(path, *rest))
    monkeypatch.setattr(datasets, "_images", datasets._Images())
    images = ImageSet(table, root, size=(10, 15))
    first = [images.image(i) for i in range(3)]
    again = [images.view(seed=1).image(i) for i in (2, 1, 0)][::-1]
    assert reads == ["a.png", "b.png", "c.png"] and all(np.array_equal(a, b) for a, b in zip(first, again))
    assert images.view(size=(5, 5)).image(0).shape == (5, 5, 3)
    wide, tall = (ImageSet.from_arrays(np.zeros((1, *shape, 3), np.uint8)).image(0).shape
        for shape in ((4, 6), (6, 4)))
    assert wide == (4, 6, 3) and tall == (6, 4, 3)

    monkeypatch.setattr(datasets, "_images", kept := datasets._Images())
    datasets.keep_images(2 * first[0].nbytes)
    for i in (0, 1, 0, 2): images.image(i)
    assert [key[0] for key in kept] == table.sha256[[0, 2]].tolist(), "what was not used for longest goes first"
    assert kept.nbytes == sum(image.nbytes for image in kept.values()) <= kept.limit


class Brighter:
    "Adds ten grey levels and counts how often."
    def __init__(self, fixed): self.fixed, self.times = fixed, 0
    def __repr__(self): return "Brighter()"
    def __call__(self, image, rng):
        self.times += 1
        return image + np.uint8(10)


@pytest.mark.parametrize("fixed, times", [(True, 1), (False, 3)])
def test_a_fixed_transform_is_carried_out_once(fixed, times, monkeypatch):
    monkeypatch.setattr(datasets, "_images", datasets._Images())
    plain = ImageSet.from_arrays(np.full((1, 4, 6, 3), 100, np.uint8))
    brighter = plain.view(transform=Brighter(fixed))
    assert all((brighter.image(0, epoch) == 110).all() and (plain.image(0) == 100).all() for epoch in range(3))
    assert brighter.transform.times == times


def test_only_what_is_enhanced_for_judging_is_fixed():
    assert Enhance().fixed and Compose(Enhance()).fixed and Compose().fixed
    assert not any(one.fixed for one in (Enhance(share=0.15), Compose(Enhance(), Augment()),
        Compose(Enhance(share=0.15))))


@pytest.mark.parametrize("count, kept", [(1, 1), (100, 100), (232, 232), (1000, 232), (0, 232)])
def test_fewer_training_images_leave_calibration_and_test_as_they_are(count, kept):
    data = open_dataset("elpv_mono")
    fewer = data.at_most(train=count)
    rows = {split: (data.table[data.table.split == split], fewer.table[fewer.table.split == split])
        for split in ("train", "calibration", "test")}
    for split in ("calibration", "test"):
        before, after = rows[split]
        assert after.reset_index(drop=True).equals(before.reset_index(drop=True)), f"{split} has changed"
    train = rows["train"][0].path.tolist()
    place = [train.index(path) for path in rows["train"][1].path]
    assert len(place) == kept and place == sorted(set(place)), "each image at most once, in the table's order"
    if count == 100:
        assert place[0] == 0 and place[-1] == 231 and set(np.diff(place)) == {2, 3}, "evenly spaced over the table"
