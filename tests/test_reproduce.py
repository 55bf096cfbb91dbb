"""A smoke reproduction through papermill, from the command line: results contract, resume, and what makes a run current."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from thesis_ad.evaluation import protocol
from thesis_ad.reproduce import compared, run_notebook
from thesis_ad.settings import repository_root

ROOT = repository_root()
FIGURES = ROOT / "figures" / "smoke"


def command(*arguments): return [sys.executable, "-c", "from thesis_ad.cli import main; main()", "reproduce", "--profile", "smoke", *arguments]


def run(*arguments):
    result = subprocess.run(command(*arguments), capture_output=True, text=True, env=os.environ)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def tables(): return {name: (FIGURES / "tables" / f"{name}.csv").read_bytes() for name in ("metrics", "scores", "scores_calibration")}


@pytest.fixture(scope="module")
def first():
    "A run that is killed on its way, then run to its end."
    process = subprocess.Popen(command("--force"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ, start_new_session=True)
    time.sleep(20)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run()
    return tables()


def test_a_second_run_has_nothing_to_do(first):
    assert "0 of" in run() and tables() == first


def test_a_changed_figure_is_made_again(first):
    picture = next(FIGURES.glob("loss_curves.png"))
    before = picture.read_bytes()
    picture.write_bytes(before[:100])
    said = run()
    assert "1 of" in said and "image AUROCs are those that were there before" in said
    assert picture.read_bytes() == before, "the same inputs gave another picture"


def test_what_moved_is_said():
    was = pd.DataFrame({"dataset": "a", "method": ["bank", "net", "net"], "metric": ["image_auroc", "image_auroc", "pixel_auroc"], "seed": 0, "value": [0.75, 0.6, 0.1]})
    assert compared(was, was) == "all 2 image AUROCs are those that were there before"
    moved = compared(was, was.assign(value=[0.75, 0.58, 0.9]))
    assert moved.startswith("1 of 2 image AUROCs") and "net on a the most (-2.00)" in moved, moved
    assert "no image AUROC" in compared(was, was.assign(dataset="b")), "nothing to hold against each other"


def test_tables_keep_the_contract(first):
    metrics, scores = (pd.read_csv(FIGURES / "tables" / f"{name}.csv", keep_default_na=False, na_values=[""]) for name in ("metrics", "scores"))
    assert list(metrics) == "dataset,method,backbone,metric,value,ci_low,ci_high,n_ok,n_nok,seed".split(",")
    assert list(scores) == "dataset,method,image,group,defect,label,score".split(",")
    assert not metrics.duplicated(["dataset", "method", "metric", "seed"]).any()
    assert {"autoencoder", "autoencoder_plain", "dfr"} <= set(metrics.method)
    for (dataset, method), rows in scores.groupby(["dataset", "method"]):
        value = metrics.query("dataset == @dataset and method == @method and metric == 'image_auroc'").value.item()
        assert abs(value - roc_auc_score(rows.label, rows.score)) < 1e-9, f"{method} on {dataset}: metrics.csv and scores.csv disagree"
    bounded = metrics.dropna(subset=["ci_low"])
    assert ((bounded.ci_low <= bounded.value) & (bounded.value <= bounded.ci_high)).all()


def test_every_figure_has_its_provenance(first):
    pictures = list(FIGURES.glob("*.png"))
    assert len(pictures) > 5
    for picture in pictures:
        facts = json.loads(picture.with_suffix(".json").read_text())
        assert {"notebook", "parameters", "data", "code_hash", "versions", "processor", "caption"} <= set(facts), picture.name
        assert all(one["licence"] for one in facts["data"].values()), picture.name


def test_the_readme_detector_stands_beside_the_others(first, mvtec_folder, tmp_path):
    "The README's detector, put into a clone as one more module: methods, fit, evaluate and the comparison notebook know it."
    clone = tmp_path / "clone"
    for name in ("nbs", "thesis_ad", "data_manifest"): shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    shutil.copy2(ROOT / "settings.ini", clone)
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## A detector of your own")[1]
    (clone / "thesis_ad/models/mean_image.py").write_text(section.split("```python\n")[1].split("```")[0], encoding="utf-8")

    def said(*arguments):
        result = subprocess.run([*command()[:3], *map(str, arguments)], capture_output=True, text=True, cwd=clone, env=os.environ | {"PYTHONPATH": str(clone)})
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
        (spec / "kernel.json").write_text(json.dumps({"argv": [sys.executable, str(script), "-f", "{connection_file}"], "display_name": "python3", "language": "python"}))
        monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
        return starts
    return prepare


def notebook(path, *cells):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), path)
    return path


def test_a_kernel_that_dies_before_its_first_word_is_started_again(kernels_that_die, tmp_path):
    starts = kernels_that_die(2)
    run_notebook(notebook(tmp_path / "10_toy.ipynb", "6 * 7"), tmp_path / "runs" / "10_toy.ipynb", {})
    assert starts.read_text() == "xxx"
    done = nbformat.read(tmp_path / "runs" / "10_toy.ipynb", 4)
    assert done.cells[-1].outputs[0]["data"]["text/plain"] == "42"


def test_a_kernel_that_never_starts_is_a_sentence(kernels_that_die, tmp_path):
    starts = kernels_that_die(9)
    with pytest.raises(RuntimeError, match="10_toy: Kernel died before"): run_notebook(notebook(tmp_path / "10_toy.ipynb", "6 * 7"), tmp_path / "runs" / "10_toy.ipynb", {})
    assert starts.read_text() == "xxx"


def test_a_kernel_that_dies_in_a_cell_is_not_started_again(kernels_that_die, tmp_path):
    starts = kernels_that_die(0)
    with pytest.raises(RuntimeError, match="10_toy: its kernel died"): run_notebook(notebook(tmp_path / "10_toy.ipynb", "import os; os._exit(1)"), tmp_path / "runs" / "10_toy.ipynb", {})
    assert starts.read_text() == "x" and not list((tmp_path / "runs").iterdir())


def test_the_largest_dataset_is_fitted_first(monkeypatch):
    pictures, seen = {"small": 3, "large": 9, "middle": 5}, []
    monkeypatch.setattr(protocol, "dataset_for", lambda name, profile: SimpleNamespace(table=range(pictures[name])))
    monkeypatch.setattr(protocol, "run", lambda task: seen.append((task.dataset, task.method)) or task)
    tasks = [protocol.Task(dataset, method, None) for dataset in pictures for method in ("dfr", "padim")]
    found = protocol.run_all(tasks)
    assert seen == [(dataset, method) for dataset in ("large", "middle", "small") for method in ("dfr", "padim")]
    assert list(found) == [(task.dataset, task.method) for task in tasks]
