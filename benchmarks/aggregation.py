"""Aggregation by two small matrices against upsampling to the full size and pooling: milliseconds an image, memory,
largest difference.

Run again:  OMP_NUM_THREADS=1 python benchmarks/aggregation.py
"""
import platform, time

import torch
import torch.nn.functional as F

from thesis_ad.features.aggregation import aggregate
from thesis_ad.settings import pin_threads

LITE0 = dict(zip((16, 24, 40, 80, 112, 192), (2, 4, 8, 16, 16, 32)))  # channels: stride
B6 = dict(zip((32, 40, 72, 144, 200, 344), (2, 4, 8, 16, 16, 32)))


def naive(maps, size, stride):
    "The thesis's two steps, map by map."
    big = (F.interpolate(m, size=(size, size), mode="bilinear", align_corners=False) for m in maps)
    return torch.cat([F.avg_pool2d(m, stride) for m in big], dim=1)


def best_ms(call, repeats=3):
    "Shortest of `repeats` runs after one to warm up, in milliseconds."
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def main():
    pin_threads(1)
    print(f"1 thread | torch {torch.__version__}, Python {platform.python_version()} | "
        f"{torch.backends.cpu.get_cpu_capability()}")
    print("stages of | image | cells | naive | matrices | ratio | full-size maps | result | largest difference")
    for name, stages, size, cells in (("Lite0", LITE0, 256, 64), ("Lite0", LITE0, 256, 85), ("Lite0", LITE0, 512, 128),
            ("Lite0", LITE0, 512, 170), ("B6", B6, 512, 128), ("B6", B6, 512, 170)):
        maps = [torch.randn(1, c, size // s, size // s) for c, s in stages.items()]
        slow, fast = (best_ms(call) for call in (lambda: naive(maps, size, size // cells),
            lambda: aggregate(maps, cells, size)))
        gap = float((naive(maps, size, size // cells) - aggregate(maps, cells, size)).abs().max())
        channels = sum(stages)
        print(f"{name} | {size} px | {cells} | {slow:.0f} ms | {fast:.1f} ms | {slow / fast:.0f}× | "
              f"{channels * size * size / 2**18:.0f} MiB | {channels * cells * cells / 2**18:.0f} MiB | {gap:.0e}")


if __name__ == "__main__": main()
