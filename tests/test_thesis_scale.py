"""The projection to the thesis's full size is the arithmetic that it says it is."""
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def scale():
    spec = importlib.util.spec_from_file_location("thesis_scale", FOLDER / "thesis_scale.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_projection_is_operations_over_throughput(scale):
    table = scale.projection({128: (30.0, {210: 57.0, 260: 70.0})}, 0.05,
        SimpleNamespace(epochs=150, tflops=20.0, loader_cores=4))
    a, b = (table.set_index("dataset").loc[name] for name in "AB")
    assert (a.images, b.images) == (4500, 6750) and (a.latent, b.latent) == (210, 260)
    assert a.pflop == round((30 + 3 * 57) * 1e9 * 4500 * 150 / 1e15)
    assert a.gpu_hours == round((30 + 3 * 57) * 1e9 * 4500 * 150 / 20e12 / 3600, 1)
    assert b.preparation_hours == round(6750 * 150 * 0.05 / 4 / 3600, 1)


def test_operations_are_counted(scale):
    import torch
    layer, x = torch.nn.Linear(832, 626), torch.zeros(100, 832)
    assert scale.gflop(lambda: layer(x)) == pytest.approx(2 * 100 * 832 * 626 / 1e9)


@pytest.mark.skipif(not (FOLDER / "thesis_scale.csv").exists(), reason="not measured")
def test_the_published_projection_follows_from_the_published_stages(scale):
    stages, table = pd.read_csv(FOLDER / "thesis_scale.csv"), pd.read_csv(FOLDER / "thesis_scale_projection.csv")
    assert table.untested.all(), "a projection is not a measurement"
    one = lambda stage, cells: stages[(stages.stage == stage) & (stages.cells == cells)].iloc[0]
    prepare = stages[stages.stage.str.startswith("prepare")].cpu_s_an_image.iloc[0]
    for row in table[table.dataset == "A"].itertuples():
        operations = (one("backbone and map", row.cells).gflop_an_image
            + one("of that: a training step", row.cells).gflop_an_image)
        assert row.pflop == pytest.approx(operations * row.images * row.epochs / 1e6, rel=0.01)
        assert row.gpu_hours == pytest.approx(row.pflop / row.tflops / 3.6, rel=0.02)
        assert row.preparation_hours == pytest.approx(row.images * row.epochs * prepare / row.loader_cores / 3600,
            rel=0.02, abs=0.1)
