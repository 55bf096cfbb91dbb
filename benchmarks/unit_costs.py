"""What one of everything costs on this machine: an image through a backbone, a training update, a coreset, a search, a
million pixels of metrics.

    OMP_NUM_THREADS=1 python benchmarks/unit_costs.py            # writes unit_costs.csv;
    about five minutes of one processor, no download

The chapter on scale multiplies these units. Costs are processor seconds of one thread, so that other programs on the
machine disturb them little (they still share its caches: on a busy machine the seconds are too many rather than too
few). Backbones have random weights, since time, memory and bytes do not depend on weights, and images are smooth noise
of 900 x 900 pixels in a folder of MVTec layout; the scores mean nothing. Each registered
detector is fitted twice, on few and on more images, with the settings of profile `mvtec` and a handful of updates. From
the processor time of a fit, what its features, its updates and its coreset took is counted apart;
what remains grows with the number of images (`fit an image`) and has a constant
part (`fit`). Detectors that learn from a bounded number of feature rows are fitted once, on fewer rows; the covariance
of the rows is scaled to their full number, and an image costs them what its prediction does. Feature maps are kept on
disk; `images` of `fit an image` are those that pass the backbone although a map of the image is kept.

Columns: part, subject, per (what one unit is), cpu_s, gflop (10^9 operations of matrix products and convolutions), mib
    (on disk; of `peak` in memory),
images (that pass a backbone for a unit, in millions of pixels), processor.
A row is written when it is measured, and replaces an older one.
"""
import argparse, contextlib, gc, os, tempfile, time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from thesis_scale import gflop, random_weights
from torch.utils.flop_counter import FlopCounterMode

from thesis_ad.data.datasets import open_dataset
from thesis_ad.evaluation.statistics import evaluate_scores
from thesis_ad.evaluation.protocol import base_method, settings_for
from thesis_ad.features import backbones
from thesis_ad.features.coreset import greedy_coreset
from thesis_ad.features.search import NearestNeighbours
from thesis_ad.files import folder_bytes
from thesis_ad.models import featcae, linear, patchcore, training
from thesis_ad.models.detector import create, methods, predict_set
from thesis_ad.settings import get_profile, pin_threads, processor, return_memory, rng
from thesis_ad.work import peak_memory

COLUMNS = ["part", "subject", "per", "cpu_s", "gflop", "mib", "images", "processor"]
BACKBONES = {("tf_efficientnet_lite0", 256): (8, 16), ("wide_resnet50_2", 256): (8, 16),
    ("tf_efficientnet_b6.ns_jft_in1k", 512): (2, 4, 8, 16, 32)}  # strides of the maps that are kept
FEW, MORE = 4, 8               # training images of the two fits
# feature rows of a measured fit of DFR, PCA and FeatCAE, and those of a large fit whose covariance is taken
ROWS, COVARIANCE = 8192, 65_536


class Clock:
    """Processor seconds by part; what a watched function takes does not count for the one that called it,
    but all of an update is the update's."""
    def __init__(self):
        self.seconds, self.inside, self.pixels, self.updates, self.counting, self.gflop = {}, [], 0, [], False, []
        self.coresets = 0

    @contextlib.contextmanager
    def part(self, name):
        start, before = time.process_time(), self.inside
        self.inside, within = [*before, name], self.total()
        try: yield
        finally:
            self.inside = before
            if "update" not in before:
                self.seconds[name] = self.seconds.get(name, 0) + time.process_time() - start - (self.total() - within)

    def total(self): return sum(self.seconds.values())

    def watch(self, module, name, part):
        original = getattr(module, name)
        def watched(*arguments, **named):
            if part == "backbone" and "update" not in self.inside:
                self.pixels += arguments[1].shape[0] * arguments[1].shape[2] * arguments[1].shape[3]
            if part == "coreset": self.coresets += len(arguments[0]) * arguments[1] * arguments[0].shape[1] / 1e9
            if part != "update":
                with self.part(part): return original(*arguments, **named)
            start, counting = time.process_time(), self.counting and len(self.updates) > 1
            with self.part(part), FlopCounterMode(display=False) if counting else contextlib.nullcontext() as counter:
                result = original(*arguments, **named)
            if counting: self.gflop.append(counter.get_total_flops() / 1e9)
            else: self.updates.append(time.process_time() - start)
            return result
        setattr(module, name, watched)

    def fresh(self, counting=False): self.__init__(); self.counting = counting


class Table(list):
    "Rows of COLUMNS, written as they come."
    def __init__(self, out):
        super().__init__(tuple(row) for row in (pd.read_csv(out).to_numpy(object) if out.exists() else ()))
        self.out, self.name = out, f"{cpu_name()}, {processor()}"

    def add(self, part, subject, per, cpu_s=np.nan, gflop=np.nan, mib=np.nan, images=np.nan):
        self[:] = [row for row in self if row[:2] != (part, subject)]
        self.append((part, subject, per, *(float(f"{value:.4g}") for value in (cpu_s, gflop, mib, images)), self.name))
        print(f"{part:16}{subject:34}{per:34}" + "".join(f"{name} {value}  "
            for name, value in zip(COLUMNS[3:7], self[-1][3:7]) if value == value), flush=True)
        pd.DataFrame(self, columns=COLUMNS).to_csv(self.out, index=False)


def cpu_name():
    lines = ([line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")] if Path("/proc/cpuinfo").exists() else [])
    return lines[0] if lines else "unknown processor"


def cpu(call, times=1):
    "(median processor seconds of a call, its result)."
    seconds = []
    for _ in range(times):
        start = time.process_time()
        result = call()
        seconds.append(time.process_time() - start)
    return float(np.median(seconds)), result


def noise_folder(folder, train=16, test=4, edge=900):
    "Smooth noise as a category in MVTec layout."
    def image(i):
        return cv2.resize(rng("unit", i).integers(0, 256, (edge // 6, edge // 6, 3), np.uint8), (edge, edge),
            interpolation=cv2.INTER_CUBIC)
    mask = np.zeros((edge, edge), np.uint8)
    mask[300:400, 300:500] = 255
    for i in range(train + test):
        kind = "train/good" if i < train else "test/good" if i % 2 else "test/broken"
        for place in (kind, "ground_truth/broken"): (folder / place).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / kind / f"{i:03}.png"), image(i))
        if kind == "test/broken": cv2.imwrite(str(folder / "ground_truth/broken" / f"{i:03}_mask.png"), mask)
    return folder


def features(table):
    for (name, edge), strides in BACKBONES.items():
        backbone, image = backbones.load_backbone(name), torch.rand(1, 3, edge, edge)
        stages = backbone.stages_at(*strides)
        backbone(image, stages)
        with peak_memory() as peak: seconds, _ = cpu(lambda: backbone(image, stages), 3)
        with tempfile.TemporaryDirectory() as folder, backbones.kept_features(folder):
            backbone(image, stages)
            again, kept = cpu(lambda: backbone(image, stages), 3)[0], folder_bytes(Path(folder)) / 2**20
        table.add("features", f"{name} {edge}", "image", seconds, gflop(lambda: backbone(image, stages)),
            images=edge * edge / 1e6)
        table.add("features kept", f"{name} {edge}", "image read again", again, mib=kept)
        table.add("peak", f"{name} {edge}", "process, one image", mib=peak[0])


def pieces(table):
    "Coreset, search and metrics."
    rows = torch.from_numpy(rng("unit", "coreset").standard_normal((20_000, 1536), dtype=np.float32))
    seconds, _ = cpu(lambda: greedy_coreset(rows, 300, progress=False))
    table.add("coreset", "20,000 × 1,536, 300 chosen", "10^9 vectors × chosen × dims",
        seconds / (20_000 * 300 * 1536 / 1e9), 2)
    bank, queries = NearestNeighbours(rows[:1500]), rows[-2048:]
    seconds, _ = cpu(lambda: bank(queries), 2)
    table.add("search", "1,500 × 1,536, 2,048 queries", "10^9 queries × bank × dims",
        seconds / (2048 * 1500 * 1536 / 1e9), 2)
    maps = [rng("unit", "map", i).random((512, 512), dtype=np.float32) for i in range(8)]
    masks = [None if i % 2 else np.pad(np.ones((60, 60), bool), ((100, 352), (200, 252))) for i in range(8)]
    seconds, _ = cpu(lambda: evaluate_scores(np.arange(8) % 2 == 0, np.arange(8.0), None, maps, masks, replicates=1000))
    table.add("metrics", "1,000 replicates", "10^6 pixels", seconds / (8 * 512 * 512 / 1e6))


def detector(name, profile, data, table, clock):
    "Rows of one detector: its fit, its update, its prediction, its bundle."
    cls, rest, work = methods()[name], {}, {}
    trained, by_rows = issubclass(cls, training.Trained), "row_limit" in cls.__dataclass_fields__
    settings = settings_for(name, profile) | ({"epochs": 0} if trained else {}) | ({"folds": 2} if name == "auto"
        else {}) | ({"row_limit": ROWS} if by_rows else {})
    for count in (FEW,) if by_rows else (MORE, FEW):            # the second fit finds what can be kept of its features
        clock.fresh(counting=count == FEW)
        one = create(name, **settings | ({"steps": 3 if count == FEW else 1} if trained else {}), device="cpu")
        images = data.train.take(range(count))
        with peak_memory() as peak, clock.part("fit"): one.fit(images, data.calibration)
        rest[count], work[count], most = clock.seconds["fit"], 2 * clock.coresets, peak[0]
    passes, rows, updates = clock.pixels / 1e6 / FEW, clock.seconds.get("rows", 0.0), clock.updates
    counted = clock.gflop
    seen = data.calibration
    predict_set(one, seen)
    clock.fresh()
    with clock.part("predict"): predict_set(one, seen)
    predict = clock.seconds["predict"] / len(seen)
    slope = predict if by_rows else max(0.0, (rest[MORE] - rest[FEW]) / (MORE - FEW))
    fit = max(0.0, rest[FEW] - slope * FEW) + rows * (COVARIANCE / ROWS if by_rows else 1)
    table.add("fit an image", name, "training image", slope, images=passes)
    table.add("fit", name, "fit", fit)
    table.add("predict", name, "image", predict)
    if trained: table.add("update", name, "update", min(updates), min(counted, default=np.nan))
    if work.get(MORE): table.add("coresets", name, f"fit on {MORE} images", gflop=work[MORE])
    with tempfile.TemporaryDirectory() as folder:
        one.save(Path(folder) / "bundle")
        table.add("bundle", name, "bundle", mib=folder_bytes(Path(folder)) / 2**20)
    table.add("peak", name, "process, fit", mib=most)


def prepare(table, folder):
    "Decode, augment and, as often as profile `thesis` does, enhance an image."
    prepared = create("dfr", **settings_for("dfr", get_profile("thesis"), True),
        device="cpu").prepare(open_dataset(str(folder)).train, training=True)
    table.add("prepare", "thesis 512", "image: decode, augment, enhance",
        cpu(lambda: [prepared[i] for _ in range(4) for i in range(len(prepared))])[0] / len(prepared) / 4)


def thesis(table, folder, clock):
    "The thesis's own training at 512 pixels: one image of an update."
    profile, data = get_profile("thesis"), open_dataset(str(folder))
    for name in ("dfr", "dfr_fine", "autoencoder"):
        settings = settings_for(name, profile, True) | {"epochs": 0, "steps": 3, "batch": 1,
            "augment": True} | ({"latent": 210} if name != "autoencoder" else {"batch": 2})
        one = create(base_method(name), **settings, device="cpu")
        clock.fresh(counting=True)
        with peak_memory() as peak: one.fit(data.train.take([0, 1]))
        found = {"cpu_s": min(clock.updates), "gflop": min(clock.gflop)}
        table.add("update", f"{name} thesis", "image of an update",
            **{key: value / settings["batch"] for key, value in found.items()})
        table.add("peak", f"{name} thesis", "process, fit, one image an update", mib=peak[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument("--parts", nargs="+", default=["features", "pieces", "prepare", "thesis", "detectors"])
    parser.add_argument("--detectors", nargs="+", default=sorted(methods(), key=lambda name: (name == "auto", name)))
    options = parser.parse_args()
    pin_threads(1)
    clock, table = Clock(), Table(options.out)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        os.environ |= {"THESIS_AD_WEIGHTS": str(folder), "THESIS_AD_CACHE": str(folder / "cache")}
        for name, _ in list(BACKBONES)[1:]: random_weights(name, folder)
        data = open_dataset(str(noise_folder(folder / "noise")))
        if "features" in options.parts: features(table)
        if "pieces" in options.parts: pieces(table)
        if "prepare" in options.parts: prepare(table, folder / "noise")
        clock.watch(backbones, "_run", "backbone")
        clock.watch(backbones, "_one", "features kept")
        clock.watch(training, "_update", "update")
        clock.watch(patchcore, "greedy_coreset", "coreset")
        clock.watch(linear, "rows_pca", "rows")
        clock.watch(featcae, "rows_pca", "rows")
        if "thesis" in options.parts: thesis(table, folder / "noise", clock)
        if "detectors" in options.parts:
            with backbones.kept_features():
                for name in options.detectors:
                    detector(name, get_profile("mvtec"), data, table, clock); gc.collect(); return_memory()


if __name__ == "__main__": main()
