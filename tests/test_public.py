"""Public datasets: a correct copy or one sentence, whatever the network, the disk or the archive does;
and their documented layouts."""
import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import yaml
from filelock import FileLock
from PIL import Image

from thesis_ad.cli import main
from thesis_ad.data import download as fetching
from thesis_ad.data.datasets import open_dataset, public_dir
from thesis_ad.data.download import Resume, get, terms, verify_public
from thesis_ad.data.layouts import lighting_of, tiles_of
from thesis_ad.data.manifest import manifest_names, read_manifest
from thesis_ad.settings import PUBLIC_PROFILES, UserError

SQUARE = np.pad(np.full((3, 4), 255, np.uint8), ((3, 2), (2, 4)))         # a mask of 8 × 10 pixels
PUBLIC = [name for name in manifest_names() if read_manifest(name).public]


def put(root, *names, array=None):
    "An image of its own under each name, or `array` under all of them."
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.full((8, 10), 80, np.uint8) if array is None else array
        if array is None: image[0, :4] = np.frombuffer(hashlib.sha256(str(name).encode()).digest()[:4], np.uint8)
        Image.fromarray(image).save(path)
    return root


# The manifests

@pytest.mark.parametrize("name", PUBLIC)
def test_a_manifest_says_what_a_user_needs(name):
    manifest = read_manifest(name)
    text = terms(manifest)
    assert manifest.licence in text and manifest.citation in text and manifest.source in text and manifest.page
    for file in manifest.files:
        kind, _, digest = file["hash"].partition(":")
        assert file["url"].startswith("https://")
        assert (not digest or len(digest) == {"sha256": 64, "md5": 32}[kind] and set(digest) <= set("0123456789abcdef"))


def test_documented_numbers_add_up():
    "The totals that the publications state."
    def total(name, *keys): return sum(facts[key] for facts in read_manifest(name).categories.values() for key in keys)
    assert (total("mvtec", "train_ok"), total("mvtec", "test_ok", "test_nok"),
        total("mvtec", "test_nok")) == (3629, 1725, 1258)
    assert (total("visa", "train_ok", "test_ok"), total("visa", "test_nok")) == (9621, 1200)
    assert total("btad", "train_ok", "test_ok", "test_nok") == 2540
    assert sum(read_manifest("kolektor").counts.values()) == 399
    assert sum(read_manifest("kolektor2").counts.values()) == 3335
    assert sum(read_manifest("magnetic_tile").counts.values()) == 1344
    assert [len(read_manifest(name).categories)
        for name in ("mvtec", "mvtec2", "mvtec_loco", "visa", "btad", "real_iad")] == [15, 8, 5, 12, 3, 30]


# A small dataset and a server

@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A manifest `toy` (ball: 2 train, 1 OK and 1 NOK in test), its archive,
    and folders of their own for data and cache."""
    home = tmp_path / "packed"
    put(home, *(f"toy-1.0/ball/{name}.png" for name in ("train/good/1", "train/good/2", "test/good/1", "test/dent/1")))
    put(home, "toy-1.0/ball/ground_truth/dent/1_mask.png", array=SQUARE)
    (home / "toy-1.0/notes.bin").write_bytes(np.random.default_rng(0).bytes(400_000))
    with tarfile.open(tmp_path / "toy.tar.gz", "w:gz") as archive: archive.add(home / "toy-1.0", "toy-1.0")
    monkeypatch.setenv("THESIS_AD_MANIFEST", str(tmp_path / "manifests"))
    monkeypatch.setenv("THESIS_AD_DATA", str(tmp_path / "data"))
    return tmp_path


def manifest(root, url="", hash="", **more):
    path = root / "manifests/toy/manifest.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = dict(title="A toy", kind="public", licence="CC0 for toys", source="here", citation="nobody",
        page="https://example.org/toy", layout="mvtec", categories={"ball": dict(train_ok=2, test_ok=1, test_nok=1)},
        files=[dict(url=url, hash=hash)] if url else [])
    path.write_text(yaml.safe_dump(facts | more))


class Server(ThreadingHTTPServer):
    "Serves one file, as `mode` says; `asked` are the Range headers."
    daemon_threads = True

    def __init__(self, data, mode="full", etag='"1"'):
        self.data, self.mode, self.etag, self.asked = data, mode, etag, []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}/toy.tar.gz"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        if server.mode == "404": return self.send_error(404)
        if server.mode == "breaks once" and len(server.asked) > 1: return
        start = (int(asked.split("=")[1][:-1]) if asked and server.mode != "no ranges"
            and self.headers.get("If-Range") == server.etag else 0)
        self.send_response(206 if start else 200)
        if server.etag: self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(server.data) - start))
        self.end_headers()
        data = server.data[start:]
        if server.mode.startswith("breaks"): data = data[:len(data) // 2]
        if server.mode == "stalls":
            self.wfile.write(data[:40_000 * (start == 0)]); self.wfile.flush(); time.sleep(3); return
        if server.mode == "slow":
            for n in range(0, len(data), 60_000):
                self.wfile.write(data[n:n + 60_000]); self.wfile.flush(); time.sleep(0.15)
            return
        try: self.wfile.write(data)
        except ConnectionError: pass

    def log_message(self, *_): pass


@pytest.fixture
def serve(toy):
    servers = []
    def start(mode="full", known=True, etag='"1"', **more):
        data = (toy / "toy.tar.gz").read_bytes()
        servers.append(Server(data, mode, etag))
        manifest(toy, servers[-1].url, f"sha256:{hashlib.sha256(data).hexdigest()}" if known else "", **more)
        return servers[-1]
    yield start
    for server in servers: server.shutdown(); server.server_close()


def fetch(tries=1, timeout=1, **said):
    return get("toy", yes=True, progress=False, downloader=Resume(timeout, tries, False), **said)


def kept(): return [path.name for path in (public_dir() / ".downloads").iterdir() if path.suffix != ".lock"]


def nothing_there():
    "No dataset under its name, and nothing half-unpacked beside it."
    with pytest.raises(UserError, match="toy is not on this machine; run: thesis-ad data get toy"):
        open_dataset("toy/ball")
    assert {path.name for path in public_dir().iterdir()} <= {".downloads"}


def refused(*words, **said):
    with pytest.raises(UserError) as error: fetch(**said)
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text
    nothing_there()
    return text


# What a network does

def test_a_full_download_is_there_and_verifies(serve):
    serve()
    assert "published checksum (sha256)" in fetch()
    data = open_dataset("toy/ball")
    assert data.published and data.licence == "CC0 for toys" and len(data.open_test()) == 2
    assert data.open_test().mask(int(np.flatnonzero(data.open_test().labels)[0])).sum() == 12
    assert "6 files as they were" in verify_public("toy", progress=False)
    assert kept() == [], "the archive is not kept twice"
    with pytest.raises(UserError, match="toy is there already"): fetch()


def test_an_interrupted_download_goes_on_where_it_stopped(serve):
    server = serve("breaks once")
    refused("the same command goes on from there", "is kept")
    part = next((public_dir() / ".downloads").glob("*.partial"))
    have = part.stat().st_size
    assert 0 < have < len(server.data)
    server.mode = "full"
    fetch()
    assert {*server.asked[1:]} == {f"bytes={have}-"} and len(open_dataset("toy/ball").table) == 4


def test_a_connection_that_breaks_again_and_again_gets_there(serve):
    server = serve("breaks")
    text = ""
    for _ in range(60):                        # each time half of the rest comes, less than one piece in the end
        try: fetch(tries=3); break
        except UserError as error: text = str(error); server.mode = "full"
    assert len(server.asked) > 3 and len(open_dataset("toy/ball").table) == 4, text


@pytest.mark.parametrize("how", ["no ranges", "another file", "no etag"])
def test_the_rest_is_never_appended_to_another_file(serve, how):
    server = serve("breaks once", etag="" if how == "no etag" else '"1"', known=how != "no etag")
    refused("the same command")
    server.mode = "no ranges" if how == "no ranges" else "full"
    if how == "another file": server.etag = '"2"'
    fetch()
    assert len(open_dataset("toy/ball").table) == 4 and "6 files" in verify_public("toy", progress=False)


def test_a_wrong_checksum_keeps_nothing(serve):
    server = serve()
    manifest(public_dir().parent, server.url, "sha256:" + "0" * 64)
    refused("is not the published file: its checksum differs from sha256:0000", "nothing was kept")
    assert kept() == []


def test_not_found_names_the_page_and_the_ways(serve):
    serve("404")
    refused("answers 404 Not Found", "https://example.org/toy", "--from PATH", "--url")


def test_nobody_there(serve):
    server = serve()
    server.shutdown(); server.server_close()
    refused("the connection to 127.0.0.1", "failed")


def test_a_slow_server_is_waited_for_and_a_silent_one_is_not(serve):
    serve("slow")
    assert "4 images" in fetch(timeout=1)
    serve("stalls")
    start = time.perf_counter()
    with pytest.raises(UserError, match="no more data came"): fetch(force=True, timeout=0.5)
    assert (time.perf_counter() - start < 5
        and len(open_dataset("toy/ball").table) == 4), "the copy that was there is untouched"


def test_a_mirror_has_to_hold_the_same_file(serve, toy):
    manifest(toy, "https://127.0.0.1:1/toy.tar.gz", "sha256:" + "0" * 64)
    mirror = Server((toy / "toy.tar.gz").read_bytes())
    refused("checksum differs", url=mirror.url)
    manifest(toy, "https://127.0.0.1:1/toy.tar.gz", "sha256:" + hashlib.sha256(mirror.data).hexdigest())
    assert "published checksum" in fetch(url=mirror.url)
    mirror.shutdown(); mirror.server_close()


def test_without_a_published_checksum_the_first_copy_is_trusted_and_noted(serve):
    server = serve(known=False)
    said, digest = fetch(), hashlib.sha256((server.data)).hexdigest()
    assert "no checksum is published to check the archive against" in said and digest in said
    assert json.loads((public_dir() / "toy/source.json").read_text())["sha256"] == digest
    fetch(force=True)
    buffer = io.BytesIO(server.data + b"\0" * 10)
    server.data, server.etag = buffer.getvalue(), '"3"'
    with pytest.raises(UserError, match="another checksum than the one fetched before"): fetch(force=True)
    assert "6 files" in verify_public("toy", progress=False)


# What a disk does

@pytest.mark.parametrize("step", ["fetching", "unpacking"])
def test_a_full_disk_is_one_sentence(serve, monkeypatch, step):
    serve()
    def full(*_, **__): raise OSError(28, "No space left on device")
    with monkeypatch.context() as patched:
        patched.setattr(fetching, "_append" if step == "fetching" else "_write", full)
        refused("no space left")
    assert "4 images" in fetch()


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small file system")
def test_a_disk_that_is_really_full(serve, tmp_path, monkeypatch):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("mount is not allowed")
    try:
        monkeypatch.setenv("THESIS_AD_DATA", str(small))
        serve()
        refused("no space left")                # the archive fits, and not what is in it
    finally: subprocess.run(["umount", str(small)], check=True)


def test_two_processes_do_not_fetch_at_once(toy):
    manifest(toy)
    (public_dir() / ".downloads").mkdir(parents=True)
    with FileLock(public_dir() / ".downloads/toy.lock"):
        refused("another process is fetching toy", source=toy / "toy.tar.gz")
    assert "4 images" in fetch(source=toy / "toy.tar.gz")


# What an archive holds

def archive_of(path, *entries):
    "A zip or tar with (name, bytes or link target) entries."
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as packed:
            for name, data in entries:
                info = zipfile.ZipInfo(name)
                if isinstance(data, str): info.external_attr = (stat.S_IFLNK | 0o777) << 16
                packed.writestr(info, data)
    else:
        with tarfile.open(path, "w") as packed:
            for name, data in entries:
                info = tarfile.TarInfo(name)
                if isinstance(data, str): info.type, info.linkname = tarfile.SYMTYPE, data; packed.addfile(info)
                else: info.size = len(data); packed.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("suffix", ["zip", "tar"])
@pytest.mark.parametrize("name, data, word", [("../evil.png", b"1", "leads out"), ("/abs/evil.png", b"1", "leads out"),
    ("a/../../evil.png", b"1", "leads out"), ("..\\evil.png", b"1", "leads out"), ("C:/evil.png", b"1", "leads out"),
    ("link", "/etc/passwd", "a link or no file"), ("ball", "../..", "a link or no file")])
def test_an_archive_that_leads_out_is_refused_whole(toy, suffix, name, data, word):
    manifest(toy)
    archive = archive_of(toy / f"bad.{suffix}", ("toy/ball/train/good/1.png", b"1"), (name, data))
    refused(word, "nothing of it was unpacked", source=archive)
    assert not list(toy.rglob("evil.png"))


def test_broken_empty_and_exploding_archives(toy, monkeypatch):
    manifest(toy)
    (toy / "page.zip").write_bytes(b"<html>Please log in</html>")
    refused("no whole zip or tar archive", source=toy / "page.zip")
    whole = (toy / "toy.tar.gz").read_bytes()
    (toy / "half.tar.gz").write_bytes(whole[:len(whole) // 2])
    refused("no whole zip or tar archive", source=toy / "half.tar.gz")
    refused("is empty", source=archive_of(toy / "empty.tar"))
    refused("twice", source=archive_of(toy / "twice.tar", ("a.png", b"1"), ("a.png", b"2")))
    monkeypatch.setattr(fetching, "MOST", -10**9)
    refused("unpacks to more than", source=toy / "toy.tar.gz")


def test_a_broken_archive_is_fetched_anew(serve):
    "Without a published checksum nothing else would notice it, and it would be refused at every later call."
    server = serve(known=False)
    whole, server.data = server.data, server.data[:len(server.data) // 2]
    refused("no whole zip or tar archive")
    assert kept() == [], "the broken archive was kept"
    server.data = whole
    assert "4 images" in fetch()


# What a user has

def test_the_licence_is_shown_and_agreed_to(toy, capsys, monkeypatch):
    manifest(toy)
    archive = toy / "toy.tar.gz"
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n"))                 # not a terminal
    with pytest.raises(UserError, match="CC0 for toys.*was not agreed to, so nothing was fetched; agree with --yes"):
        get("toy", source=archive)
    assert "licence:  CC0 for toys" in capsys.readouterr().out
    with pytest.raises(UserError, match="was not agreed to"): get("toy", source=archive, ask=lambda question: "")
    nothing_there()
    assert "4 images" in get("toy", source=archive, ask=lambda question: "Yes", progress=False)


def test_a_folder_is_used_where_it_is(toy):
    manifest(toy)
    fetch(source=toy / "packed")
    assert open_dataset("toy/ball").root == (toy / "packed/toy-1.0/ball").resolve()
    assert "5 files as they were" in verify_public("toy", progress=False)
    (toy / "packed/toy-1.0/ball/test/dent/1.png").write_bytes(b"other")
    with pytest.raises(UserError, match="1.png was changed since it was fetched"): verify_public("toy", progress=False)
    (toy / "packed/toy-1.0/ball/test/dent/1.png").unlink()
    with pytest.raises(UserError, match="1.png is missing"): verify_public("toy", progress=False)


def test_a_copy_with_less_than_documented_is_refused_unless_meant(toy):
    manifest(toy, categories={"ball": dict(train_ok=3), "cube": {}})
    refused("toy/ball has 2 images (train, OK) where 3 are documented", "--incomplete", source=toy / "packed")
    manifest(toy, categories={"ball": {}, "cube": {}})
    refused("toy/cube is missing", "--incomplete", source=toy / "packed")
    assert "4 images" in fetch(source=toy / "packed", incomplete=True)
    with pytest.raises(UserError, match="cube is missing from this copy of toy"): open_dataset("toy/cube")
    with pytest.raises(UserError, match="unknown category of toy 'bal'; did you mean 'ball'"): open_dataset("toy/bal")
    with pytest.raises(UserError, match="toy is a dataset of 2 categories; name one of them, such as toy/ball"):
        open_dataset("toy")


def test_what_is_not_fetched_says_how(toy):
    manifest(toy)
    refused("toy is not offered for download; get it from https://example.org/toy", "--from PATH")
    refused("there is no such file or folder", source=toy / "nowhere")
    (toy / "other").mkdir()
    put(toy / "other", "cat/1.png")
    refused("no folder of toy is in it, such as ball", source=toy / "other")


def test_the_command_line(toy, capsys, monkeypatch):
    manifest(toy)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    def run(*arguments):
        with pytest.raises(SystemExit) as done: main(["data", *arguments])
        said = capsys.readouterr()
        return done.value.code, said.out, said.err
    code, out, err = run("get", "toy", "--from", str(toy / "toy.tar.gz"))
    assert code == 2 and "agree with --yes" in err and "licence:  CC0 for toys" in out and err.count("\n") == 1
    assert run("verify", "toy")[0] == 2 and "not on this machine (thesis-ad data get toy)" in run("verify")[1]
    assert "4 images" in run("get", "toy", "--from", str(toy / "toy.tar.gz"), "--yes")[1]
    assert run("verify")[1].startswith("toy: 4 images;") and "A toy" in run("list")[1]
    assert run("get", "toy/cube", "--yes")[0] == 2


# Documented layouts, with the traps in them

def opened(name, root, tmp_path, monkeypatch):
    "A dataset of the manifest that was taken from a folder of a few images."
    monkeypatch.setenv("THESIS_AD_DATA", str(tmp_path / "data"))
    get(name.split("/")[0], source=root, yes=True, incomplete=True, progress=False)
    return open_dataset(name)


def counts(data):
    return {f"{split} {label}": n for (split, label), n in data.table.groupby(["split", "label"]).size().items()}


def test_mvtec_masks_are_matched_by_name_and_one_may_be_missing(tmp_path, monkeypatch):
    put(tmp_path / "x/bottle", *(f"train/good/{i:03d}.png" for i in range(5)), "test/good/000.png",
        *(f"test/broken_large/{i:03d}.png" for i in (0, 1, 10)))
    put(tmp_path / "x/bottle", "ground_truth/broken_large/010_mask.png",
        "ground_truth/broken_large/000_mask.png", array=SQUARE)
    (tmp_path / "x/license.txt").write_text("…")
    data = opened("mvtec/bottle", tmp_path / "x", tmp_path, monkeypatch)
    test = data.open_test()
    assert data.name == "mvtec/bottle" and counts(data) == {"train 0": 4, "calibration 0": 1, "test 0": 1, "test 1": 3}
    assert [test.mask(i) is not None for i in np.flatnonzero(test.labels)] == [True, False, True]


def test_mvtec_2_lightings_of_an_object_are_one_group_and_private_images_are_left_out(tmp_path, monkeypatch):
    can = tmp_path / "mvtec_ad_2/can"
    lightings = ("regular", "overexposed", "underexposed", "shift_1", "shift_2", "shift_3")
    put(can, *(f"train/good/{i:03d}_regular.png" for i in range(3)), "validation/good/000_regular.png",
        *(f"test_public/{kind}/000_{light}.png" for kind in ("good", "bad") for light in lightings))
    put(can, *(f"test_private/{i:03d}_regular.png" for i in range(4)),
        *(f"test_private_mixed/{i:03d}_mixed.png" for i in range(4)))
    put(can, *(f"test_public/ground_truth/bad/000_{light}_mask.png" for light in lightings), array=SQUARE)
    data = opened("mvtec2/can", tmp_path, tmp_path, monkeypatch)
    assert counts(data) == {"train 0": 3, "calibration 0": 1, "test 0": 6, "test 1": 6}
    assert len(data.folder.left_out) == 8
    test = data.table[data.table.split == "test"]
    assert set(test.group) == {"test_public/good/000", "test_public/bad/000"}
    assert (test[test.label == 1]["mask"] != "").all()
    assert {lighting_of(path)[1] for path in test.path} == set(lightings)


def test_mvtec_loco_joins_several_masks_of_an_image(tmp_path, monkeypatch):
    box = tmp_path / "breakfast_box"
    put(box, "train/good/000.png", "train/good/001.png", "validation/good/000.png", "test/good/000.png",
        "test/logical_anomalies/000.png", "test/structural_anomalies/000.png")
    one, other = SQUARE.copy(), SQUARE.copy()
    one[:, :4], other[:, 4:] = 0, 0
    put(box, "ground_truth/logical_anomalies/000/000.png", array=one)
    put(box, "ground_truth/logical_anomalies/000/001.png", array=other)
    put(box, "ground_truth/structural_anomalies/000/000.png", array=SQUARE)
    test = opened("mvtec_loco/breakfast_box", tmp_path, tmp_path, monkeypatch).open_test()
    assert all((test.mask(i) == (SQUARE > 0)).all() for i in np.flatnonzero(test.labels))


def test_visa_goes_by_its_csv(tmp_path, monkeypatch):
    candle = "candle/Data/Images"
    put(tmp_path / "v", *(f"{candle}/Normal/{i:04d}.JPG" for i in range(4)), f"{candle}/Anomaly/000.JPG",
        f"{candle}/Anomaly/001.JPG", "capsules/Data/Images/Normal/000.JPG")
    put(tmp_path / "v", "candle/Data/Masks/Anomaly/000.png", "candle/Data/Masks/Anomaly/001.png",
        array=SQUARE // 255 * 4)  # number of a class, not 255
    rows = [f"candle,{'test' if i == 0 else 'train'},normal,{candle}/Normal/{i:04d}.JPG," for i in range(4)]
    rows += [f"candle,test,anomaly,{candle}/Anomaly/{i:03d}.JPG,candle/Data/Masks/Anomaly/{i:03d}.png" for i in (1, 0)]
    (tmp_path / "v/split_csv").mkdir()
    (tmp_path / "v/split_csv/1cls.csv").write_text("object,split,label,image,mask\n"
        + "\n".join([*rows, "capsules,train,normal,capsules/Data/Images/Normal/000.JPG,"]) + "\n")
    (tmp_path / "v/split_csv/2cls_highshot.csv").write_text("object,split,label,image,mask\n")
    data = opened("visa/candle", tmp_path / "v", tmp_path, monkeypatch)
    assert counts(data) == {"train 0": 2, "calibration 0": 1, "test 0": 1, "test 1": 2}
    test = data.open_test()
    assert test.paths[-2].endswith("001.JPG") and test.table["mask"].iloc[-2].endswith("001.png")
    assert test.mask(1).sum() == 12


def test_visa_lists_an_image_that_is_missing(tmp_path, monkeypatch):
    test_visa_goes_by_its_csv(tmp_path, monkeypatch)
    (tmp_path / "v/candle/Data/Images/Normal/0002.JPG").unlink()
    with pytest.raises(UserError, match="visa/candle lists .*0002.JPG, which is missing"):
        fetching.check_numbers(read_manifest("visa"), tmp_path / "v", incomplete=False)


def test_btad_in_bmp_and_png(tmp_path, monkeypatch):
    one = tmp_path / "BTech_Dataset_transformed/01"
    put(one, *(f"train/ok/{i:04d}.bmp" for i in range(3)), "test/ok/0000.bmp", "test/ko/0000.bmp", "test/ko/0001.bmp")
    put(one, "ground_truth/ko/0000.png", "ground_truth/ko/0001.png", array=SQUARE)
    data = opened("btad/01", tmp_path, tmp_path, monkeypatch)
    assert counts(data) == {"train 0": 2, "calibration 0": 1, "test 0": 1, "test 1": 2}
    assert (data.table[data.table.label == 1]["mask"] != "").all()


def test_kolektor_is_labelled_by_its_masks(tmp_path, monkeypatch):
    for item in ("kos01", "kos02", "kos03"):
        put(tmp_path / "K/KolektorSDD", *(f"{item}/Part{i}.jpg" for i in range(4)))
        for i in range(4): put(tmp_path / "K/KolektorSDD", f"{item}/Part{i}_label.bmp", array=SQUARE * (i == 2))
    data = opened("kolektor", tmp_path / "K", tmp_path, monkeypatch)
    assert int(data.table.label.sum()) == 3 and set(data.table[data.table.label == 1].split) == {"test"}
    for split in ("train", "test"):
        put(tmp_path / "K2", *(f"{split}/1000{i}.png" for i in range(4)))
        for i in range(4): put(tmp_path / "K2", f"{split}/1000{i}_GT.png", array=SQUARE * (i == 1))
    data = opened("kolektor2", tmp_path / "K2", tmp_path, monkeypatch)
    assert counts(data) == {"calibration 0": 1, "calibration 1": 1, "test 0": 3, "test 1": 1,
        "train 0": 2}, "a NOK image of train sets no weights, only thresholds"


def test_no_magnetic_tile_is_on_two_sides(tmp_path, monkeypatch):
    root = tmp_path / "Magnetic-tile-defect-datasets.-master"
    for tile in range(12):
        kind = "Blowhole" if tile < 3 else "Free"
        for e in range(6):
            name = f"MT_{kind}/Imgs/exp{e + 1}_num_{1000 * tile + 17 * e}"
            put(root, f"{name}.jpg"); put(root, f"{name}.png", array=SQUARE * (kind != "Free"))
    put(root, "MT_Free/Imgs/exp1_num_150.jpg")  # an OK region of the first tile, which has a blowhole
    (root / "README.md").write_text("…")
    data = opened("magnetic_tile", tmp_path / root.name, tmp_path, monkeypatch)
    table = data.table.set_index("path")
    assert (table.groupby("group").split.nunique() == 1).all() and table.group.nunique() == 12
    assert table.split["MT_Free/Imgs/exp1_num_150.jpg"] == "test"
    assert table.group["MT_Free/Imgs/exp1_num_150.jpg"] == table.group["MT_Blowhole/Imgs/exp1_num_0.jpg"]
    assert (table[table.label == 1]["mask"] != "").all() and set(table[table.label == 1].defect) == {"blowhole"}
    assert (table[table.label == 0]["mask"] == "").all()
    with pytest.raises(Exception, match="no frame number"): tiles_of(["a.jpg"])


def test_real_iad_goes_by_its_list(tmp_path, monkeypatch):
    jack = tmp_path / "Real-IAD/realiad_1024/audiojack"
    ok = [f"OK/S{s:04d}/audiojack_{s:04d}_OK_C{c}_1.jpg" for s in (1, 2, 3, 4) for c in (1, 2)]
    seen, hidden = (f"NG/BX/S0007/audiojack_0007_NG_BX_C{c}_1" for c in (1, 2))
    put(jack, *ok, f"{seen}.jpg", f"{hidden}.jpg"); put(jack, f"{seen}.png", array=SQUARE)
    entry = lambda path, kind="OK", mask=None: dict(category="audiojack", anomaly_class=kind,
        image_path=path, mask_path=mask)
    listed = {"meta": {"normal_class": "OK", "prefix": "audiojack/"}, "train": [entry(path) for path in ok[:6]],
        "test": [*(entry(path) for path in ok[6:]), entry(f"{seen}.jpg", "BX", f"{seen}.png"), entry(f"{hidden}.jpg")]}
    path = tmp_path / "Real-IAD/realiad_jsons/realiad_jsons/audiojack.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(listed))
    data = opened("real_iad/audiojack", tmp_path / "Real-IAD", tmp_path, monkeypatch)
    assert counts(data) == {"calibration 0": 2, "train 0": 4, "test 0": 3,
        "test 1": 1}, "a view that shows no defect is OK though it lies in NG"
    table = data.table.set_index("path")
    assert table.group[f"{seen}.jpg"] == table.group[f"{hidden}.jpg"] == "NG/BX/S0007"
    assert table["mask"][f"{seen}.jpg"] == f"{seen}.png" and table.defect[f"{seen}.jpg"] == "BX"


def test_the_thesis_by_its_zooms(tmp_path, monkeypatch):
    names = [f"zoom_{zoom}_2025030{day}_0815{day}2.png" for zoom in (0, 1, 3, 4, 5) for day in range(1, 8)]
    put(tmp_path / "photos/data", *(f"train/ok/{name}" for name in names), *(f"test/ok/{name.replace('2025', '2024')}"
        for name in names[::7]), *(f"test/nok/{name.replace('2025', '2023')}" for name in names[::7]))
    put(tmp_path / "photos/data", *(f"masks/nok/{name.replace('2025', '2023')}" for name in names[::7]), array=SQUARE)
    a = opened("thesis/a", tmp_path / "photos", tmp_path, monkeypatch)
    b = open_dataset("thesis/b")
    assert {path.split("/")[-1][:6] for path in a.table.path} == {"zoom_0", "zoom_1"}
    assert {path.split("/")[-1][:6] for path in b.table.path} == {"zoom_3", "zoom_4", "zoom_5"}
    assert a.enhance and counts(a)["test 1"] == 2 and counts(b)["test 1"] == 3
    both = set(a.table.group[a.table.split == "calibration"]) & set(b.table.group[b.table.split == "train"])
    assert not both, "a capture is on the same side in both datasets"


# Profiles of public data

@pytest.mark.parametrize("name", list(PUBLIC_PROFILES))
def test_a_public_profile_runs_every_category_and_says_how_to_get_the_data(name, tmp_path, monkeypatch, capsys):
    manifest, profile = read_manifest(name), PUBLIC_PROFILES[name]
    assert [*profile.datasets] == ([f"{name}/{category}" for category in manifest.categories] or [name])
    monkeypatch.setenv("THESIS_AD_DATA", str(tmp_path))
    with pytest.raises(SystemExit) as done: main(["reproduce", "--profile", name])
    said = capsys.readouterr().err
    assert done.value.code == 2
    assert said == f"thesis-ad: {name} is not on this machine; run: thesis-ad data get {name}\n"


def test_published_methods_are_ours_and_rows_that_nobody_ran_are_empty(tmp_path):
    from thesis_ad.evaluation.published import beside_ours, page
    from thesis_ad.models.detector import methods
    table = beside_ours(tmp_path)
    assert set(table.method) <= {*methods(), "none"} and table.ours.isna().all()
    assert page(table).loc["mvtec/bottle", "patchcore", "PatchCore (anomalib)"]["image_auroc"] == "100.0 / "
    assert {name.split("/")[0] for name in table.dataset} <= set(PUBLIC_PROFILES)


def test_a_public_profile_runs_its_own_page_and_the_summary_runs_last():
    from thesis_ad.reproduce import LAST, NOTEBOOKS, PAPER_ONLY, notebooks_of
    from thesis_ad.settings import get_profile
    assert notebooks_of(get_profile("mvtec")) == ["90_public_data"]
    assert notebooks_of(get_profile("paper")) == notebooks_of(get_profile("smoke")) == list(NOTEBOOKS)
    assert set(notebooks_of(get_profile("demo"))) == set(NOTEBOOKS) - set(PAPER_ONLY)
    assert set(PAPER_ONLY) < set(NOTEBOOKS)
    assert set(LAST) <= set(NOTEBOOKS) and list(NOTEBOOKS)[-1] in LAST
