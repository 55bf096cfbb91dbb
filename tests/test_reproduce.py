"""A smoke reproduction through papermill, from the command line: results contract, resume,
and what makes a run current."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from forked import kernels, thesis_ad
from sklearn.metrics import roc_auc_score

from thesis_ad.evaluation import protocol
from thesis_ad.evaluation.figures import read_table
from thesis_ad.evaluation.statistics import auroc_interval, over_seeds, paired_difference
from thesis_ad.reproduce import beside_published, run_notebook
from thesis_ad.settings import UserError, cache_dir, get_profile, repository_root

ROOT = repository_root()
FIGURES = ROOT / "figures" / "smoke"


def run(*arguments):
    result = thesis_ad("reproduce", "--profile", "smoke", *arguments, **kernels())
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def tables():
    return {name: (FIGURES / "tables" / f"{name}.csv").read_bytes()
        for name in ("metrics", "summary", "scores", "scores_calibration")}


@pytest.fixture(scope="module")
def first():
    "What is said by a run that was killed in the middle of a fit and run again to its end, and the tables."
    shutil.rmtree(FIGURES, ignore_errors=True)                       # what an earlier run here has left is current
    command = [sys.executable, "-c", "from thesis_ad.cli import main; main()", "reproduce", "--profile", "smoke"]
    process = subprocess.Popen([*command, "--force"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True)
    for line in process.stdout:
        if line.startswith("2 of "): break                       # a fit is finished, the next one is under way
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return SimpleNamespace(said=run(), tables=tables())


def test_a_log_has_a_line_for_every_fit_and_notebook(first):
    fits, notebooks = (re.findall(pattern, first.said, re.MULTILINE)
        for pattern in (r"^\d+ of (\d+): (\w+) on prefilter_a, seed 0; .* so far, about .* left$",
            r"^\d+ of (\d+): (\w+) in .* so far, about .* left$"))
    assert len(fits) == int(fits[0][0]) and {"dfr", "dfr_fine", "patchcore"} <= {name for _, name in fits}
    assert sorted(name for _, name in notebooks) == sorted(path.stem
        for path in (ROOT / "nbs/evaluation").glob("*.ipynb"))
    assert "published" not in first.said, "images of 128 pixels are not those of the published results"


def test_a_killed_run_leaves_nothing_half_written(first):
    left = [path for folder in (cache_dir(), FIGURES, ROOT / "runs/smoke") for path in folder.rglob(".*.part*")]
    assert not left


def test_a_second_run_has_nothing_to_do(first):
    assert "0 of" in run() and tables() == first.tables


def test_a_changed_figure_is_made_again(first):
    image = next(FIGURES.glob("resolution_prefilter_a.png"))
    before = image.read_bytes()
    image.write_bytes(before[:100])
    assert "1 of" in run() and image.read_bytes() == before, "the same inputs gave another image"


def test_what_lies_outside_the_published_intervals_is_named():
    published = pd.DataFrame({"dataset": "a", "method": ["bank", "net", "bank"],
        "metric": ["image_auroc", "image_auroc", "pixel_auroc"], "mean": [0.75, 0.6, np.nan],
        "ci_low": [0.7, 0.5, np.nan], "ci_high": [0.8, 0.7, np.nan]})
    assert beside_published(published, published) == ["image_auroc: all 2 inside the published intervals"]
    said = beside_published(published.assign(mean=[0.75, 0.48, 0.9]), published)
    assert said == ["image_auroc: 1 of 2 inside the published intervals; outside: net on a 48.0 [50.0, 70.0]"]
    assert beside_published(published.assign(dataset="b"), published) == ["nothing published to compare with"]


def test_tables_keep_the_contract(first):
    metrics, scores = (read_table(FIGURES / "tables" / f"{name}.csv") for name in ("metrics", "scores"))
    assert list(metrics) == "dataset,method,backbone,metric,value,ci_low,ci_high,n_ok,n_nok,seed".split(",")
    assert list(scores) == "dataset,method,seed,image,group,defect,label,score".split(",")
    assert not metrics.duplicated(["dataset", "method", "metric", "seed"]).any()
    assert {"autoencoder", "autoencoder_plain", "dfr"} <= set(metrics.method)
    for (dataset, method, seed), rows in scores.groupby(["dataset", "method", "seed"]):
        value = metrics.query("dataset == @dataset and method == @method and seed == @seed and metric == "
            "'image_auroc'").value.item()
        assert abs(value - roc_auc_score(rows.label,
            rows.score)) < 1e-9, f"{method} on {dataset}: metrics.csv and scores.csv disagree"
    bounded = metrics.dropna(subset=["ci_low"])
    assert ((bounded.ci_low <= bounded.value) & (bounded.value <= bounded.ci_high)).all()


def test_every_figure_has_its_provenance(first):
    images = list(FIGURES.glob("*.png"))
    assert len(images) > 5
    for image in images:
        facts = json.loads(image.with_suffix(".json").read_text())
        assert {"notebook", "parameters", "data", "code_hash", "versions", "processor",
            "caption"} <= set(facts), image.name
        assert all(one["licence"] for one in facts["data"].values()), image.name


def test_the_readme_detector_stands_beside_the_others(first, mvtec_folder, tmp_path):
    """The README's detector, put into a clone as one more module: methods, fit,
    evaluate and the comparison notebook know it."""
    clone = tmp_path / "clone"
    for name in ("nbs", "thesis_ad", "data_manifest"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    shutil.copy2(ROOT / "settings.ini", clone)
    section = (ROOT / "nbs/book/60_your_own_images.md").read_text(encoding="utf-8").split(
        "## A detector of your own")[1]
    (clone / "thesis_ad/models/mean_image.py").write_text(section.split("```python\n")[1].split("```")[0],
        encoding="utf-8")

    def said(*arguments):
        result = thesis_ad(*arguments, cwd=clone, PYTHONPATH=clone, **kernels())
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    assert "mean_image" in said("methods")
    said("fit", "mean_image", mvtec_folder, "-o", tmp_path / "bundle")
    assert "image_auroc" in said("evaluate", tmp_path / "bundle", mvtec_folder, "--out", tmp_path / "found")
    said("reproduce", "--profile", "smoke", "--only", "50_detectors")
    compared = pd.read_csv(clone / "figures/smoke/tables/metrics.csv").method.unique()
    assert {"mean_image", "dfr", "patchcore"} <= set(compared)


@pytest.fixture
def kernels_that_die(tmp_path, monkeypatch):
    "Make the first N starts of the kernel `python3` end at once; gives the file that gets a letter at every start."
    def prepare(deaths):
        spec, starts = tmp_path / "kernels" / "python3", tmp_path / "starts"
        spec.mkdir(parents=True)
        script = tmp_path / "start.py"
        script.write_text(f"""
with open({str(starts)!r}, "a") as file: file.write("x")
if len(open({str(starts)!r}).read()) <= {deaths}: raise SystemExit(1)
from ipykernel.kernelapp import launch_new_instance
launch_new_instance()
""")
        (spec / "kernel.json").write_text(json.dumps({"argv": [sys.executable, str(script), "-f", "{connection_file}"],
            "display_name": "python3", "language": "python"}))
        monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
        return starts
    return prepare


def notebook(path, *cells):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), path)
    return path


def test_a_kernel_that_dies_before_its_first_word_is_started_again(kernels_that_die, tmp_path, caplog):
    starts = kernels_that_die(2)
    run_notebook(notebook(tmp_path / "10_toy.ipynb", "6 * 7"), tmp_path / "runs" / "10_toy.ipynb", {})
    assert starts.read_text() == "xxx"
    done = nbformat.read(tmp_path / "runs" / "10_toy.ipynb", 4)
    assert done.cells[-1].outputs[0]["data"]["text/plain"] == "42"
    assert not [record for record in caplog.records
        if record.name == "papermill"], "a kernel that is replaced is no news"


def test_a_kernel_that_never_starts_is_a_sentence(kernels_that_die, tmp_path):
    starts = kernels_that_die(9)
    with pytest.raises(RuntimeError, match="10_toy: Kernel died before"):
        run_notebook(notebook(tmp_path / "10_toy.ipynb", "6 * 7"), tmp_path / "runs" / "10_toy.ipynb", {})
    assert starts.read_text() == "xxx"


def test_a_kernel_that_dies_in_a_cell_is_not_started_again(kernels_that_die, tmp_path):
    starts = kernels_that_die(0)
    with pytest.raises(RuntimeError, match="10_toy: its kernel died"):
        run_notebook(notebook(tmp_path / "10_toy.ipynb", "import os; os._exit(1)"),
            tmp_path / "runs" / "10_toy.ipynb", {})
    assert starts.read_text() == "x" and not list((tmp_path / "runs").iterdir())


def test_the_first_seed_comes_first_and_then_the_largest_dataset(monkeypatch):
    images, seen = {"small": 3, "large": 9, "middle": 5}, []
    profile = get_profile("smoke", seeds=[4, 1], datasets=["small", "large", "middle"])
    monkeypatch.setattr(protocol, "dataset_for",
        lambda name, profile: SimpleNamespace(table=range(images[name]), enhance=False))
    def run(task):
        seen.append((task.seed, task.dataset, task.method))
        return SimpleNamespace(key=(task.dataset, task.method, task.seed))
    monkeypatch.setattr(protocol, "run", run)
    tasks = protocol.tasks_for(profile, ["padim", "global_knn"])
    found = protocol.run_all(tasks)
    assert seen == [(4, dataset, method) for dataset in ("large", "middle", "small")
        for method in ("padim", "global_knn")] + [(1, dataset, "padim") for dataset in ("large", "middle", "small")]
    assert list(found) == [(task.dataset, task.method, task.seed) for task in tasks]


def test_several_seeds_become_rows_and_one_summary(mvtec_folder):
    """Two seeds of PaDiM, whose channels are drawn, beside a method that no seed changes;
    another run finds all of it in the cache."""
    profile = get_profile("smoke", datasets=[str(mvtec_folder)], seeds=[0, 1], size=[64, 64], replicates=50)
    def tables():
        found = protocol.run_all(protocol.tasks_for(profile, ["padim", "global_knn"]))
        return [protocol.stack(found, what) for what in ("metrics", "scores")], found
    (metrics, scores), found = tables()
    assert [key[1:] for key in found] == [("padim", 0), ("global_knn", 0), ("padim", 1)]
    padim = metrics[(metrics.method == "padim") & (metrics.metric == "image_auroc")]
    assert padim.seed.tolist() == [0, 1]
    assert not np.array_equal(*protocol.seed_scores(found, str(mvtec_folder), "padim"))
    summary = protocol.summarise(metrics).set_index(["method", "metric"]).loc[("padim", "image_auroc")]
    rows = [some for _, some in scores[scores.method == "padim"].groupby("seed")]
    aurocs = [roc_auc_score(some.label, some.score) for some in rows]
    ends = [auroc_interval(some.label, some.score, some.group) for some in rows]
    assert np.allclose(summary[["mean", "sd_seeds"]].astype(float), [np.mean(aurocs), np.std(aurocs, ddof=1)])
    assert summary.seeds == 2
    low, high = over_seeds(np.mean(aurocs), *np.mean(ends, axis=0), aurocs)
    assert np.allclose([summary.ci_low, summary.ci_high], [max(low, 0), min(high, 1)])
    again = tables()[0]
    assert all(one.equals(other) for one, other in zip((metrics, scores), again))
    value, low, high = paired_difference(rows[0].label, protocol.seed_scores(found, str(mvtec_folder), "padim"),
        protocol.seed_scores(found, str(mvtec_folder), "global_knn"), rows[0].group)
    assert low <= value <= high


@pytest.mark.skipif(not (ROOT / "figures/paper/tables").exists(), reason="nothing is published")
def test_verify_names_the_tables_that_left_their_interval(tmp_path):
    "A run with the published tables is equal; one number outside its interval, and a table that is gone, are named."
    from thesis_ad.evaluation.figures import read_table, write_csv
    from thesis_ad.reproduce import verify
    for name in ("paper", "demo"):
        shutil.copytree(ROOT / "figures/paper/tables", tmp_path / "figures" / name / "tables")
    assert {verdict for _, verdict, _ in verify("demo", tmp_path)} == {"equal"}
    path = tmp_path / "figures/demo/tables/summary.csv"
    table = read_table(path)
    row = table.index[(table.metric == "image_auroc") & (table.method == "dfr")][0]
    table.loc[row, "mean"] = table.loc[row, "ci_low"] - 0.01
    write_csv(table, path)
    (tmp_path / "figures/demo/tables/latent_size.csv").unlink()
    found = {name: (verdict, names) for name, verdict, names in verify("demo", tmp_path)}
    assert found["summary"][0] == "outside" and "dfr image_auroc mean" in found["summary"][1][0]
    assert found["latent_size"][0] == "missing" and found["metrics"][0] == "equal"
    (tmp_path / "figures/demo/tables/borders.csv").unlink()          # its notebook does not run in profile demo
    assert dict(row[:2] for row in verify("demo", tmp_path))["borders"] == "left out"
    with pytest.raises(UserError, match="other images"): verify("smoke", tmp_path)
