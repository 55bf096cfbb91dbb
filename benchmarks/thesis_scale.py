"""What does the thesis's own model cost?

Profile `thesis` on a handful of images, from rendering to a figure, and a projection to its full size.

    OMP_NUM_THREADS=1 python benchmarks/thesis_scale.py --out benchmarks/thesis_scale.csv        # no download, no GPU

EfficientNet-B6 at 512 x 512 pixels, 832 channels, maps of 128 and 170 cells, one epoch. The weights are random, since
time and memory do not depend on them; the scores mean nothing. The latent sizes are those that the thesis published,
210 for Dataset-A and 260 for Dataset-B: on random features a principal component analysis would choose another one.
A row a stage: processor time in seconds, peak resident memory of the
process in that stage, and the floating-point operations of an image where the stage is counted. The test split stays
sealed; images of the calibration split are scored.

Below, the projection: 4,500 images of Dataset-A and 6,750 of Dataset-B, 150 epochs. It is arithmetic and was not run:
(operations of the backbone + 3 times those of the network, for forward and backward pass) x images x epochs / the
throughput that `--tflops` assumes for the GPU; beside it the preparation of the images (decode, augment, enhance) on
`--loader-cores` processor cores, as measured here. The library prepares on one core,
between two updates, so the two times add up.
"""
import argparse, contextlib, os, re, tempfile, time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from thesis_ad.data.datasets import open_dataset
from thesis_ad.data.prefilter import Part, render
from thesis_ad.evaluation.figures import plot_maps
from thesis_ad.evaluation.statistics import evaluate_scores
from thesis_ad.evaluation.protocol import base_method, settings_for
from thesis_ad.models.detector import create, predict_set
from thesis_ad.models.dfr import FeatureAutoencoder, mean_residual
from thesis_ad.settings import get_profile, pin_threads

LATENT = {"A": 210, "B": 260}          # published by the thesis
IMAGES = {"A": 4500, "B": 6750}
METHODS = ("dfr", "dfr_fine")          # 128 and 170 cells


def random_weights(name, folder):
    "Random weights of a timm model as the file in which THESIS_AD_WEIGHTS is looked for."
    import timm
    from safetensors.torch import save_file
    torch.manual_seed(0)
    state = timm.create_model(name.partition(".")[0], pretrained=False).state_dict()
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, Path(folder) / f"{name}.safetensors")


def gflop(call):
    "Billions of floating-point operations of matrix products and convolutions in a call."
    with torch.no_grad(), FlopCounterMode(display=False) as counter: call()
    return counter.get_total_flops() / 1e9


class Stages(list):
    "Rows `stage,cells,images,cpu_s,cpu_s_an_image,peak_gib,gflop_an_image`, written to `out` as they come."
    def __init__(self, out): self.out = out

    @contextlib.contextmanager
    def __call__(self, stage, images, cells="", gflop=None):
        # the peak begins anew; Linux alone can
        with contextlib.suppress(OSError): Path("/proc/self/clear_refs").write_text("5")
        start = time.process_time()
        yield
        seconds = time.process_time() - start
        peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**20
        self.append({"stage": stage, "cells": cells, "images": images, "cpu_s": round(seconds, 2),
            "cpu_s_an_image": round(seconds / images, 3), "peak_gib": round(peak, 2),
            "gflop_an_image": gflop and round(gflop, 1)})
        print("  ".join(f"{key} {value}" for key, value in self[-1].items() if value not in ("", None)), flush=True)
        if self.out: pd.DataFrame(self).to_csv(self.out, index=False)


def training_step(detector, cells):
    "Forward pass, backward pass and update on `cells` [B, h, w, C]."
    optimiser = torch.optim.Adam(detector.network.parameters(), lr=1e-3)
    mean_residual(detector.network.train(), cells).backward()
    optimiser.step()
    detector.network.eval()


def measure(method, data, train, held, stages, profile):
    """Add the stages of one map size; {cells: (operations of the backbone, of the network by latent size) in GFLOP an
    image}."""
    settings = settings_for(method, profile, data.enhance) | {"latent": LATENT["A"]}
    detector, cells = create(base_method(method), **settings, device="cpu"), settings["cells"][0]
    batch = torch.stack(list(detector.prepare(train)))
    backbone = gflop(lambda: detector.features(batch[:1]))
    part = torch.zeros(1024, 832)
    network = {latent: gflop(lambda: FeatureAutoencoder(832, latent).eval()(part)) * cells**2 / len(part)
        for latent in LATENT.values()}
    with stages("backbone and map", len(train), cells, backbone):
        features = torch.cat([detector.features(image[None]) for image in batch])
    with stages("fit, 1 epoch", len(train), cells): detector.fit(train)
    with stages("of that: a training step", len(train), cells, 3 * network[LATENT["A"]]):
        training_step(detector, features)
    with stages("score", len(held), cells, backbone + network[LATENT["A"]]): scores, maps = predict_set(detector, held)
    masks = [held.mask(i) for i in range(len(held))]
    with stages("metrics", len(held), cells):
        evaluate_scores(held.labels, scores, held.groups, maps, masks, replicates=profile.replicates)
    with stages("figure", len(held), cells), tempfile.TemporaryDirectory() as folder:
        plot_maps([held.image(i) for i in range(len(held))], masks, {method: maps},
            {method: scores}).savefig(Path(folder) / "maps.png")
    return {cells: (backbone, network)}


def projection(counts, prepare, options):
    "Hours of each data set and map size on one GPU, by arithmetic."
    rows = []
    for cells, (backbone, network) in counts.items():
        for name, images in IMAGES.items():
            passes = images * options.epochs
            pflop = (backbone + 3 * network[LATENT[name]]) * passes / 1e6
            rows.append({"dataset": name, "images": images, "epochs": options.epochs, "cells": cells,
                "latent": LATENT[name], "pflop": round(pflop), "gpu_hours": round(pflop * 1e3 / options.tflops / 3600,
                    1), "preparation_hours": round(passes * prepare / options.loader_cores / 3600, 1)})
    return pd.DataFrame(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4,
        help="training images; half as many images of the calibration split, at least two, are scored")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--epochs", type=int, default=150, help="of the projection")
    parser.add_argument("--tflops", type=float, default=20,
        help="throughput assumed of the GPU, in 10^12 operations a second")
    parser.add_argument("--loader-cores", type=int, default=1,
        help="processor cores that prepare images; the library uses one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the stages here as CSV, and the projection beside it")
    options = parser.parse_args()
    stages, counts = Stages(options.out), {}
    pin_threads(options.threads)
    profile = get_profile("thesis", parts=1, dfr_epochs=1, replicates=100)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["THESIS_AD_WEIGHTS"] = folder
        with stages("random weights", 1): random_weights(profile.backbone, folder)
        with stages("render", len(profile.datasets)):
            for zoom in range(len(profile.datasets)): render(Part(0), 0, zoom, profile.render)
        data = open_dataset(profile.datasets[0], size=profile.render, parts=profile.parts)
        train, labels, few = data.train.evenly(options.images), data.development.labels, max(1, options.images // 4)
        held = data.development.take(np.concatenate([np.flatnonzero(labels == label)[:few] for label in (0, 1)]))
        prepared = create("dfr", **settings_for("dfr", profile, data.enhance),
            device="cpu").prepare(data.train, training=True)
        with stages("prepare: decode, augment, enhance", len(prepared)):
            for _ in prepared.batches(4): pass
        prepare = stages[-1]["cpu_s_an_image"]
        for method in options.methods: counts |= measure(method, data, train, held, stages, profile)
    print(f"\nProjection to one GPU at {options.tflops:g} TFLOP/s and {options.loader_cores} core(s) of preparation: "
        "arithmetic, not run")
    table = projection(counts, prepare, options)
    print(table.to_string(index=False))
    if options.out:
        table.assign(tflops=options.tflops, loader_cores=options.loader_cores,
            untested=True).to_csv(options.out.with_stem(f"{options.out.stem}_projection"), index=False)


if __name__ == "__main__": main()
