"""Milliseconds an image of a backbone's forward pass: float32 and bf16, with and without channels_last,
whole and two stages.

Run again:  OMP_NUM_THREADS=1 python benchmarks/backbones.py [NAME] [SIZE]
"""
import platform, sys, time

import timm
import torch

from thesis_ad.features.backbones import load_backbone
from thesis_ad.settings import pin_threads


def best_ms(call, repeats=8):
    "Shortest of `repeats` runs after two to warm up, in milliseconds."
    for _ in range(2): call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def planar(backbone, images):
    "The same chain with torch's default layout instead of channels_last."
    x = backbone.normalise(images)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=backbone.autocast == "bf16"):
        for stage in backbone._stages:
            for module in stage: x = module(x)


def main(name="tf_efficientnet_lite0", size="256"):
    pin_threads(1)
    print(f"{name}, {size} px, 1 thread | torch {torch.__version__}, timm {timm.__version__}, Python "
        f"{platform.python_version()} | {torch.backends.cpu.get_cpu_capability()}")
    print("batch | float32 | float32 channels_last (default) | bf16 | bf16 channels_last | default, stages of "
        "stride 8 and 16")
    exact, rough = load_backbone(name), load_backbone(name, autocast="bf16")
    for batch in (1, 8):
        images = torch.rand(batch, 3, int(size), int(size))
        row = [best_ms(call) / batch for call in (
            lambda: planar(exact.to(memory_format=torch.contiguous_format), images),
            lambda: exact.to(memory_format=torch.channels_last)(images),
            lambda: planar(rough.to(memory_format=torch.contiguous_format), images),
            lambda: rough.to(memory_format=torch.channels_last)(images),
            lambda: exact(images, exact.stages_at(8, 16)))]
        print(f"{batch:5} | " + " | ".join(f"{ms:.1f} ms" for ms in row))


if __name__ == "__main__": main(*sys.argv[1:])
