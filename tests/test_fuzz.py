"""10,000 mutated bundles, caches, checkpoints, feature maps, manifests, splits and studies: refused in one sentence or
read right; no code is run.

Archives that are bombs, or hold links and paths out of their folder, are the subject of test_public.py."""
import hashlib
import io
import json
import os
import pickle
import random
import time

import numpy as np
import pytest
import torch

from thesis_ad.data.manifest import read_manifest, read_splits
from thesis_ad.features import backbones
from thesis_ad.files import cached, is_sealed
from thesis_ad.models import detector as bundles, training
from thesis_ad.models.detector import create, load_bundle, read_bundle
from thesis_ad.settings import UserError
from thesis_ad.study import parse_study
from thesis_ad.work import unpack

SLOWEST = 1.0           # CPU seconds of one read


class Ran:
    "A pickle of it creates a file when it is loaded."
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return (os.system, (f"touch {self.path}",))


def mutated(data, draw):
    """Bytes `data`, changed somewhere: a bit, a byte, a piece cut out, doubled, exchanged,
    or filled with something else."""
    data, n = bytearray(data), max(1, len(data))
    kind, at, length = draw.randrange(7), draw.randrange(n), draw.randrange(1, 1 + min(64, n))
    if kind == 0 and data: data[at] ^= 1 << draw.randrange(8)
    elif kind == 1: data = data[:at]
    elif kind == 2: data[at:at + length] = draw.randbytes(length)
    elif kind == 3: del data[at:at + length]
    elif kind == 4: data[at:at] = data[at:at + length] * draw.randrange(1, 9)
    elif kind == 5:
        data[at:at] = draw.choice([b"\0" * 9, b"\xff\xfe", b"9" * 40, b'{"a":' * 60, b"- [" * 40, b"-1", b"1e999",
            b"NaN", b"!!python/object/apply:os.system ['false']", b"&a [*a]", b"../../", "\u202e".encode()])
    else: data[:length] = draw.randbytes(length)
    return bytes(data)


def check(read, data, n, seed, right):
    "Read `n` mutations of `data` by `read`: a `UserError` of one line, or what `right` accepts."
    draw, refused, slowest = random.Random(seed), 0, 0.0
    for number in range(n):
        changed, start = mutated(data, draw), time.process_time()
        try: found = read(changed)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000, str(error)
            refused += 1
        else: assert right(found, changed), f"mutation {number} was read as {found!r}"
        slowest = max(slowest, time.process_time() - start)
    assert slowest < SLOWEST, f"a file held the reader for {slowest:.1f} s"
    return refused


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    "A small fitted detector without a backbone."
    folder = tmp_path_factory.mktemp("fuzz") / "bundle"
    images = np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3)).astype(np.uint8)
    from thesis_ad.data.datasets import ImageSet
    return create("autoencoder_plain", size=(32, 32), width=2, steps=2, batch=2,
        device="cpu").fit(ImageSet.from_arrays(images)).save(folder)


@pytest.mark.parametrize("name, n", [("bundle.json", 3000), ("tensors.safetensors", 1500)])
def test_a_changed_bundle_is_refused(bundle, tmp_path, name, n):
    for file in bundles.FILES: (tmp_path / file).write_bytes((bundle / file).read_bytes())
    original = (bundle / name).read_bytes()
    def read(data):
        (tmp_path / name).write_bytes(data)
        return read_bundle(tmp_path)
    assert check(read, original, n, 1, lambda found, data: data == original) > 0.97 * n


def test_a_bundle_that_somebody_has_sealed_anew_is_refused_or_loads(bundle, tmp_path):
    "Values of bundle.json are exchanged and the digest is made to fit, as an attacker would."
    facts, draw = json.loads((bundle / "bundle.json").read_bytes()), random.Random(2)
    values = [None, -1, 0, 1e308, 10**30, "", "../..", "x" * 500, [], [[]], {}, {"a": 1}, True, "padim", "pca",
        [32, 32], [10**9, 10**9], "nan"]
    (tmp_path / "tensors.safetensors").write_bytes((bundle / "tensors.safetensors").read_bytes())
    def places(value, path=()):
        if isinstance(value, dict):
            for key, one in value.items(): yield from places(one, (*path, key))
        yield path
    targets = [path for path in places(facts) if path and path[0] not in ("sha256", "format")]
    slowest = 0
    for number in range(1000):
        changed = json.loads(json.dumps(facts))
        where = draw.choice(targets)
        inner = changed
        for key in where[:-1]: inner = inner[key]
        if draw.random() < 0.2: del inner[where[-1]]
        else: inner[where[-1]] = draw.choice(values)
        start = time.process_time()
        (tmp_path / "bundle.json").write_bytes(bundles._canonical(bundles._sealed(changed)))
        try: load_bundle(tmp_path, "cpu")
        except UserError as error: assert "\n" not in str(error)
        slowest = max(slowest, time.process_time() - start)
    assert slowest < SLOWEST


def test_changed_tensors_that_were_sealed_anew(bundle, tmp_path):
    facts, original = json.loads((bundle / "bundle.json").read_bytes()), (bundle / "tensors.safetensors").read_bytes()
    def read(data):
        (tmp_path / "tensors.safetensors").write_bytes(data)
        (tmp_path / "bundle.json").write_bytes(
            bundles._canonical(bundles._sealed(facts | {"tensors_sha256": hashlib.sha256(data).hexdigest()})))
        return load_bundle(tmp_path, "cpu")
    check(read, original, 800, 3, lambda found, data: found.method == "autoencoder_plain")


def test_a_changed_cache_is_made_again(tmp_path):
    made = []
    def make(folder):
        made.append(1)
        (folder / "scores.csv").write_text("a,b\n" + "1,2.5\n" * 20)
        (folder / "deeper").mkdir()
        (folder / "deeper/x.json").write_text('{"fit": 1.25}')
    folder = cached("evaluations", "ab", make, cache=tmp_path)
    whole = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    draw, changed = random.Random(4), 0
    for _ in range(500):
        name = draw.choice(sorted(whole))
        data = mutated(whole[name], draw)
        (folder / name).write_bytes(data)
        if json.loads(whole[name]) != _or_none(data) if name.suffix == ".json" else data != whole[name]: changed += 1
        assert cached("evaluations", "ab", make, cache=tmp_path) == folder and is_sealed(folder)
        assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
            and path.name != "seal.json"} == {key: value for key, value in whole.items() if key.name != "seal.json"}
        for key, value in whole.items(): (folder / key).write_bytes(value)
    assert len(made) - 1 <= 500 and len(made) - 1 >= 0.95 * changed


def _or_none(data):
    try: return json.loads(data)
    except ValueError: return None


def test_a_changed_feature_map_is_none(tmp_path):
    m, file = np.random.default_rng(0).standard_normal((1, 3, 4, 5)).astype(np.float32), tmp_path / "a.npy"
    original = backbones._file_of(m)
    def read(data):
        file.write_bytes(data)
        return backbones._read(file, 3)
    check(read, original, 1000, 5,
        lambda found, data: found is None or data == original or np.array_equal(found.numpy(), m))


def test_a_changed_checkpoint_is_not_continued_from(tmp_path):
    network, file = torch.nn.Linear(3, 2), tmp_path / "a.safetensors"
    optimiser = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    training._save(file, network, optimiser, {}, training.Progress(step=3))
    original, before = file.read_bytes(), {name: t.clone() for name, t in network.state_dict().items()}
    def read(data):
        file.write_bytes(data)
        return training._resume(file, network, optimiser)
    check(read, original, 700, 6, lambda found, data: found[0] is None or found[0].step == 3)
    assert all(torch.equal(t, network.state_dict()[name]) for name, t in before.items())


SPLITS = ("path,split,label,defect,mask,group\n" + "".join(f"train/ok/{i}.png,train,0,good,,p{i}\n" for i in range(8))
    + "test/nok/1.png,test,1,dent,masks/1.png,q1\n")
MANIFEST = ("title: A part\nkind: rendered\nlicence: CC0\nsource: here\nrecipe: {seed: 1, size: 64}\ndata_hash: "
    "abcd\nenhance: true\n")
STUDY = ("profile: smoke\ndatasets: [prefilter_a]\ndetectors: [gaussian, mine: {detector: padim, channels: "
    "20}]\nseeds: [0, 1]\nsettings: {small: {size: [64, 64]}}\n")


def test_changed_splits(tmp_path):
    def read(data):
        (tmp_path / "splits.csv").write_bytes(data)
        return read_splits(tmp_path / "splits.csv")
    check(read, SPLITS.encode(), 700, 7, lambda table, data: set(table.split) <= {"train", "calibration",
        "test"} and set(table.label) <= {0, 1} and not table.path.str.contains(r"(?:^|/)\.\.(?:/|$)|^/").any())


def test_changed_manifests(tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_AD_MANIFEST", str(tmp_path))
    (tmp_path / "part").mkdir()
    def read(data):
        (tmp_path / "part/manifest.yaml").write_bytes(data)
        return read_manifest("part")
    check(read, MANIFEST.encode(), 400, 8, lambda found, data: found.name == "part")


def test_changed_studies():
    check(lambda data: parse_study(data.decode("utf-8", "replace")), STUDY.encode(), 400, 9,
        lambda found, data: bool(found.detectors))


# ---- made to harm ----

@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_is_never_loaded(bundle, tmp_path):
    harm = pickle.dumps(Ran(tmp_path / "ran"))
    facts = json.loads((bundle / "bundle.json").read_bytes())
    (tmp_path / "tensors.safetensors").write_bytes(harm)
    (tmp_path / "bundle.json").write_bytes(
        bundles._canonical(bundles._sealed(facts | {"tensors_sha256": hashlib.sha256(harm).hexdigest()})))
    with pytest.raises(UserError): load_bundle(tmp_path, "cpu")
    (tmp_path / "bundle.json").write_bytes(harm)
    with pytest.raises(UserError): load_bundle(tmp_path, "cpu")
    for name in ("a.pth", "a.pt", "a.safetensors"):
        (tmp_path / name).write_bytes(harm)
        with pytest.raises(UserError, match="no readable weights"): backbones.read_weights(tmp_path / name)
    torch.save({"weight": Ran(tmp_path / "ran")}, tmp_path / "b.pth")
    with pytest.raises(UserError, match="no readable weights"): backbones.read_weights(tmp_path / "b.pth")
    np.save(file := io.BytesIO(), np.array([Ran(tmp_path / "ran")], object), allow_pickle=True)
    data = file.getvalue()
    (tmp_path / "a.npy").write_bytes(data + __import__("zlib").crc32(data).to_bytes(4, "little"))
    assert backbones._read(tmp_path / "a.npy", 1) is None
    for text in (f"!!python/object/apply:os.system ['touch {tmp_path}/ran']",
            f"datasets: !!python/object/apply:os.system ['touch {tmp_path}/ran']"):
        with pytest.raises(UserError): parse_study(text)
    assert not (tmp_path / "ran").exists()


def test_an_image_that_says_it_is_huge_is_refused(tmp_path):
    import struct, zlib
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 10**6, 10**6, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b""))
    from thesis_ad.files import read_image
    start = time.process_time()
    with pytest.raises(UserError, match="pixels"): read_image(tmp_path / "huge.png")
    assert time.process_time() - start < SLOWEST


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/outside", "a/../../outside.txt"])
def test_nothing_is_written_outside_of_the_cache(tmp_path, name):
    "Neither the folder nor the file of what a worker sends."
    for packed in ({name: {"a.txt": b"x"}}, {"detectors/ab": {name: b"x"}}):
        with pytest.raises(UserError, match="out of"): unpack(tmp_path / "cache", packed)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_splits_table_does_not_lead_out_of_its_folder(tmp_path):
    for path in ("../secret.png", "/etc/passwd", "a/../../b.png", "..\\secret.png"):
        (tmp_path / "splits.csv").write_text(SPLITS.replace("train/ok/3.png", path))
        with pytest.raises(UserError, match="leads out of"): read_splits(tmp_path / "splits.csv")


def test_a_symlink_out_of_a_bundle_is_refused(bundle, tmp_path):
    (tmp_path / "bundle").mkdir()
    for name in bundles.FILES: (tmp_path / "bundle" / name).symlink_to(bundle / name)
    with pytest.raises(UserError, match="link"): load_bundle(tmp_path / "bundle", "cpu")
