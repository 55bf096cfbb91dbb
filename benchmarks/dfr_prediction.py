"""What DFR adds to its backbone for an image, in three ways: as the thesis describes it, as the library computes
it, and with the linear products moved to where they need the fewest operations.

    OMP_NUM_THREADS=1 python benchmarks/dfr_prediction.py        # dfr (64 x 64 cells) and dfr_fine (85 x 85)
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1 python benchmarks/dfr_prediction.py

as described   all cells at once, batch normalisation as layers of its own
folded         1,024 cells at a time, batch normalisation part of the products: what `dfr` does
moved          the first product at the resolution of each backbone map, before the upsampling (both are linear); the
               residual |x - W h - b|^2 from the Gram matrix of W, with W^T x moved likewise

Each way begins with the maps of the backbone and ends with one residual a cell. They take turns on one thread. A row
has the median processor time of an image, the median of the ratios to the first way, how many products of two numbers
it needs without the upsampling, and how far its residuals lie from those of the first. The weights of the network are
random: time does not depend on them. A processor's rows replace its old ones."""
import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from growing import renewed

from thesis_ad.features.aggregation import aggregate, pooling_matrix
from thesis_ad.features.backbones import load_backbone
from thesis_ad.models.dfr import FeatureAutoencoder, folded, residual, widths
from thesis_ad.settings import pin_threads, processor

HERE = Path(__file__).parent
CELLS = (64, 85)             # on a side, of dfr and dfr_fine


def seconds(call):
    start = time.process_time()
    call()
    return time.process_time() - start


class Moved:
    "Residuals of a folded `FeatureAutoencoder` from the backbone's maps; cells [h, w] of an image of `size` pixels."
    def __init__(self, network, channels, cells, size):
        n, self.cells, self.size = network, cells, size
        first, last = n.encoder[0][0], n.decoder[2]
        self.middle = torch.nn.Sequential(*n.encoder[1:], *n.decoder[:2])
        W = first.weight.flatten(1) / n.scale                       # of raw features
        self.bias = first.bias - W @ n.mean
        V = last.weight.flatten(1)                                  # x ≈ V h + b
        back = V.T / n.scale
        self.offset, self.shift = -back @ n.mean - V.T @ last.bias, last.bias * n.scale + n.mean
        self.products = torch.cat([W, back]).T.contiguous().split(channels)     # of each backbone map
        self.gram, self.scale = V.T @ V, n.scale

    def __call__(self, maps):
        "float32 [h·w]"
        (h, w), lowest = self.cells, {}
        x = aggregate(maps, self.cells, self.size).permute(0, 2, 3, 1).flatten(0, 2)
        for m, product in zip(maps, self.products):                 # a map as fine as the grid has nothing to gain
            if (n := m.shape[-1]) < w: lowest[n] = lowest.get(n, 0) + m[0].permute(1, 2, 0) @ product
        fine = sum(m.shape[1] for m in maps if m.shape[-1] >= w)
        product, step = torch.cat(self.products)[:fine], max(1, 1024 // w)
        across = [(matrix(n, self.size, h), (matrix(n, self.size, w) @ one).flatten(1)) for n, one in lowest.items()]
        return torch.cat([self.rows(x[i * w:(i + step) * w], across, slice(i, i + step), product, fine)
            for i in range(0, h, step)])

    def rows(self, x, across, some, product, fine):
        "Residuals of a few rows of cells, so that all of it stays in the processor's cache."
        moved = (x[:, :fine] @ product).view(-1)
        for down, one in across: moved += (down[some] @ one).view(-1)
        one, two = moved.view(len(x), -1).split(len(self.bias), 1)
        hidden = self.middle((one + self.bias).relu_())
        squared = ((x - self.shift) / self.scale).square().sum(1)
        return (squared + (hidden * (hidden @ self.gram - 2 * (two + self.offset))).sum(1)) / len(self.scale)


def matrix(n, size, cells): return torch.from_numpy(pooling_matrix(n, size, cells).astype(np.float32))


def measured(cells, size, latent, rounds):
    "A row a way, for a grid of `cells` x `cells`."
    torch.manual_seed(0)
    backbone, shape = load_backbone("tf_efficientnet_lite0"), (cells, cells)
    image = torch.rand(1, 3, size, size)
    maps = backbone(image)
    channels = [m.shape[1] for m in maps]
    network = FeatureAutoencoder(sum(channels), latent).eval()
    def grid(): return aggregate(maps, shape, size).permute(0, 2, 3, 1).flatten(0, 2)
    network.mean, network.scale = grid().mean(0), grid().std(0)
    shorter = folded(network)
    moved = Moved(shorter, channels, shape, size)
    ways = {"as described": lambda: residual(network, grid()),
        "folded": lambda: torch.cat([residual(shorter, part) for part in grid().split(1024)]),
        "moved": lambda: moved(maps), "grid alone": grid, "backbone": lambda: backbone(image)}
    found = {name: ways[name]() for name in ("as described", "folded", "moved")}
    times = np.array([[seconds(way) for way in ways.values()] for _ in range(rounds + 1)][1:])
    w = widths(sum(channels), latent)
    every = cells ** 2 * sum(a * b for a, b in zip(w, w[1:]))
    ends = cells ** 2 * 2 * w[0] * w[1]
    low = sum(2 * w[1] * m.shape[1] * min(m.shape[-1], cells) ** 2 for m in maps) + cells ** 2 * w[1] ** 2
    products = {"as described": every, "folded": every, "moved": every - ends + low}
    first = found["as described"]
    gaps = {name: float(((one - first).abs() / first).max()) for name, one in found.items()}
    return [{"cells": cells, "way": name, "ms": round(1000 * float(np.median(column)), 1),
        "ratio": round(float(np.median(column / times[:, 0])), 3), "giga_products": round(products[name] / 1e9, 3)
        if name in products else None, "gap": gaps.get(name), "processor": processor()}
        for name, column in zip(ways, times.T)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("size", 256), ("latent", 120), ("rounds", 25)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path, default=HERE / "dfr_prediction.csv")
    given = parser.parse_args()
    pin_threads(1)
    with torch.inference_mode():
        rows = [row for cells in CELLS for row in measured(cells, given.size, given.latent, given.rounds)]
    print(renewed(given.out, pd.DataFrame(rows), "processor").to_string(index=False))


if __name__ == "__main__": main()
