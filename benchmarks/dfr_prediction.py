"""What a map costs when DFR predicts: all cells at once or 1,024 at a time,
with the trained network as it stands or folded.

    OMP_NUM_THREADS=1 python benchmarks/dfr_prediction.py            # 64 x 64 cells of 464 channels through a latent
    size of 120

The ways take turns on one thread; printed are the median milliseconds a map of each and the median of the ratios to the
first, and how far the residuals lie apart.
The weights are random: time does not depend on them, and the distance is that of an untrained network."""
import argparse, time

import numpy as np
import torch

from thesis_ad.models.dfr import FeatureAutoencoder, folded, residual
from thesis_ad.settings import pin_threads


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("channels", 464), ("latent", 120), ("cells", 4096), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    pin_threads(1)
    torch.manual_seed(0)
    network = FeatureAutoencoder(given.channels, given.latent).eval()
    cells = torch.randn(given.cells, given.channels).half()
    shorter = folded(network)
    def in_parts(which): return torch.cat([residual(which, part) for part in cells.split(1024)])
    ways = {"at once": lambda: residual(network, cells), "in parts": lambda: in_parts(network),
        "in parts, folded": lambda: in_parts(shorter)}
    with torch.inference_mode():
        found = {name: way() for name, way in ways.items()}
        times = np.array([[seconds(way) for way in ways.values()] for _ in range(given.rounds + 1)][1:])
    print(f"{given.cells} cells, {given.channels} channels, latent size {given.latent}")
    for name, column in zip(ways, times.T):
        gap = float(((found[name] - found["at once"]).abs() / found["at once"]).max())
        print(f"{name:17} {1000 * np.median(column):7.1f} ms   {np.median(column / times[:, 0]):.2f} of the first   "
            f"residuals differ by at most {gap:.1e}")


if __name__ == "__main__": main()
