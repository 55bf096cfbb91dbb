"""The repository's files agree with one another: requirements, versions, notebooks and library, what is committed."""
import ast
import configparser
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import thesis_ad

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SETTINGS = configparser.ConfigParser(interpolation=None)
SETTINGS.read(ROOT / "settings.ini")
SETTINGS = SETTINGS["DEFAULT"]
CONDA_NAMES = {"pytorch": "torch", "opencv": "opencv-python"}    # what conda calls a package, what pip calls it
CHAPTERS = sorted((ROOT / "nbs").glob("*.ipynb"))
EVALUATIONS = sorted((ROOT / "nbs" / "evaluation").glob("*.ipynb"))
BOOK = sorted((ROOT / "nbs" / "book").glob("*.ipynb"))
MODULES = sorted((ROOT / "thesis_ad").rglob("*.py"))
PUBLISHED = ROOT / "figures" / "paper" / "tables"


def ranges(lines):
    "{name: set of specifiers} of requirement strings."
    return {canonicalize_name(r.name): set(map(str, r.specifier)) for r in map(Requirement, lines)}


def pins():
    return {name: next(iter(spec)) for name, spec in ranges(line
        for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")).items()}


def committed():
    "Files that git tracks or would track."
    if not (ROOT / ".git").exists() or not shutil.which("git"): pytest.skip("not a git clone")
    names = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True,
        check=True).stdout
    return [path for path in (ROOT / name for name in sorted(names.decode().split("\0")) if name) if path.is_file()]


def read(path): return json.loads(path.read_text(encoding="utf-8"))

def source(cell): return "".join(cell["source"])

def where(path): return path.relative_to(ROOT).as_posix()


# Requirements and versions

def test_settings_ini_and_pyproject_state_the_same_requirements():
    assert ranges(SETTINGS["requirements"].split()) == ranges(PROJECT["dependencies"])
    assert SETTINGS["lib_name"] == SETTINGS["lib_path"] == PROJECT["name"]
    assert f">={SETTINGS['min_python']}" == PROJECT["requires-python"]
    assert SETTINGS["description"] == PROJECT["description"]
    assert SETTINGS["keywords"].split() == PROJECT["keywords"]


def test_environment_yml_states_the_requirements_of_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str) and entry != "pip"]
    by_pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    found = {CONDA_NAMES.get(name, name): spec for name, spec in ranges(plain).items()}
    assert found.pop("python") == {PROJECT["requires-python"]}
    extras = PROJECT["optional-dependencies"]
    assert found | ranges(by_pip) == ranges(PROJECT["dependencies"] + extras["thesis"] + extras["serve"]
        + extras["cluster"] + extras["dev"])
    assert not set(found) & set(ranges(by_pip))


def test_every_pin_satisfies_its_range():
    extras, known = PROJECT["optional-dependencies"], pins()
    for requirement in map(Requirement,
            PROJECT["dependencies"] + extras["thesis"] + extras["serve"] + extras["cluster"] + extras["dev"]):
        assert canonicalize_name(requirement.name) in known, f"constraints.txt has no pin for {requirement.name}"
    for requirement in map(Requirement, PROJECT["dependencies"] + sum(extras.values(), [])):
        pin = known.get(canonicalize_name(requirement.name))
        assert (pin is None or requirement.specifier.contains(pin.removeprefix("=="),
            prereleases=True)), f"{requirement} but {pin}"


def test_constraints_are_exact_sorted_and_portable():
    names = [line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")]
    assert names == sorted(set(names))
    assert all(re.fullmatch(r"==[\w.!]+", pin) for pin in pins().values())
    assert not [name for name in names if name.startswith(("nvidia-", "cuda-", "triton", "thesis"))]


@pytest.mark.skipif(sys.platform != "linux", reason="other platforms need other packages")
def test_constraints_name_every_package_that_is_needed():
    freeze = runpy.run_path(str(ROOT / ".ci" / "freeze.py"))
    missing = set(freeze["installed"](freeze["project_requirements"](ROOT))) - set(pins())
    assert not missing, f"run make freeze: no pin for {', '.join(sorted(missing))}"


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    latest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)[1]
    assert thesis_ad.__version__ == SETTINGS["version"] == citation["version"] == latest
    assert citation["license"] == PROJECT["license"]


# Notebooks and library

@pytest.fixture(scope="module")
def again(tmp_path_factory):
    "A copy of the tree in which the library was exported anew and every notebook cleaned."
    copy = tmp_path_factory.mktemp("again")
    for name in ("settings.ini", "pyproject.toml", "README.md"): shutil.copy2(ROOT / name, copy / name)
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.tmp")
    for name in ("nbs", "thesis_ad"): shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for path in (copy / "thesis_ad").rglob("*.py"):
        if path.name != "__init__.py": path.unlink()
    environment = os.environ | {"PYTHONPATH": ""}
    environment.pop("IN_TEST", None)
    for tool in ("nbdev_export", "nbdev_clean"):
        command = Path(sys.executable).with_name(tool)
        if not command.exists(): pytest.skip("nbdev is not installed")
        subprocess.run([command], cwd=copy, env=environment, check=True, capture_output=True)
    return copy


@pytest.mark.parametrize("folder, suffix", [("thesis_ad", ".py"), ("nbs", ".ipynb")])
def test_export_and_clean_change_nothing(again, folder, suffix):
    def contents(root):
        return {path.relative_to(root).as_posix(): path.read_bytes()
            for path in sorted((root / folder).rglob(f"*{suffix}"))
            if not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts)}
    here, there = contents(ROOT), contents(again)
    assert sorted(here) == sorted(there), "run make export; a deleted notebook leaves its module behind"
    changed = [name for name in here if here[name] != there[name]]
    assert not changed, f"run make export: {', '.join(changed)}"


def imports(path):
    "(dotted name, line) of every import in a module, relative ones resolved, those inside functions included."
    package = list(path.relative_to(ROOT).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join((package[:len(package) + 1 - node.level] if node.level else [])
                + [node.module] * bool(node.module))
            yield base, node.lineno
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def places():
    "Place in the book of the chapter that exports each module: {'thesis_ad.files': 1, …}."
    return {f"thesis_ad.{path.stem.split('_', 1)[1]}": place for place, path in enumerate(CHAPTERS)}


def test_a_module_imports_only_from_chapters_before_it():
    order, wrong = places(), []
    for path in MODULES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.name in ("__init__.py", "_modidx.py"): continue
        assert name in order, f"{where(path)} has no chapter"
        wrong += {f"{where(path)}:{line} imports {other} ({CHAPTERS[order[other]].name})"
            for other, line in imports(path) if other in order and order[other] >= order[name]}
    assert not wrong, wrong


def test_the_library_imports_no_notebook_tool():
    allowed = {"thesis_ad/reproduce.py": {"papermill", "nbclient"},          # nbclient's errors are papermill's
               "thesis_ad/evaluation/figures.py": {"IPython"}}  # shows an image where IPython runs already
    tools = {"nbdev", "execnb", "ghapi", "papermill", "nbformat", "nbclient", "IPython",
        "jupytext", "pytest"}
    wrong = [f"{where(path)}:{line} imports {name}" for path in MODULES if path.name != "_modidx.py"
        for name, line in imports(path) if name.split(".")[0] in tools - allowed.get(where(path), set())]
    assert not wrong, wrong


def test_the_library_runs_without_a_notebook_tool():
    "What a plain script loads: every module, and none of the tools."
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in MODULES if path.name not in ("_modidx.py", "__init__.py")]
    script = (f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\nprint([name for name in "
        "('IPython', 'papermill', 'nbclient', 'nbformat', 'nbdev') if name in sys.modules])")
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def pickles(tree):
    "Lines of a module that read or write pickles."
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if {name.split(".")[0] for name in names} & {"pickle", "cPickle", "dill", "cloudpickle",
                    "shelve", "marshal"}:
                yield node.lineno
        if not isinstance(node, ast.Call): continue
        call, options = ast.unparse(node.func), {option.arg: ast.unparse(option.value) for option in node.keywords}
        if (call in ("torch.save", "joblib.dump", "joblib.load", "joblib.Memory")
                or call.endswith(("read_pickle", "to_pickle"))):
            yield node.lineno
        if call == "torch.load" and options.get("weights_only") != "True": yield node.lineno
        if options.get("allow_pickle", "False") != "False": yield node.lineno


def test_pickles_are_found():
    for line in ("import pickle", "torch.load(path)", "torch.save(a, path)", "np.load(path, allow_pickle=True)",
            "frame.to_pickle(path)"):
        assert list(pickles(ast.parse(line))) == [1], line
    assert not list(pickles(ast.parse("torch.load(path, weights_only=True)")))


def test_the_library_uses_no_pickle():
    wrong = [f"{where(path)}:{line}" for path in MODULES
        for line in pickles(ast.parse(path.read_text(encoding="utf-8")))]
    assert not wrong, wrong


# What is committed

@pytest.mark.parametrize("path", CHAPTERS + EVALUATIONS + BOOK, ids=lambda path: path.stem)
def test_a_notebook_carries_the_outputs_of_a_clean_run(path):
    cells = [cell for cell in read(path)["cells"] if cell["cell_type"] == "code" and source(cell).strip()]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs, "no cell has an output: run the notebook from top to bottom"
    errors = [output["evalue"] for output in outputs if output["output_type"] == "error"]
    assert not errors, errors
    noise = ["".join(output["text"])[:200] for output in outputs if output.get("name") == "stderr"]
    assert not noise, f"output on stderr (a warning, a progress bar): {noise}"
    for cell in cells:
        try: last = ast.parse(source(cell)).body[-1:]
        except SyntaxError: continue                      # a magic
        shows = (bool(last) and isinstance(last[0], ast.Expr)
            and isinstance(last[0].value, (ast.Name, ast.Subscript, ast.Compare, ast.BinOp, ast.Tuple)))
        assert (not shows or source(cell).rstrip().endswith(";")
            or cell["outputs"]), f"this cell ends in a value and has no output:\n{source(cell)}"


@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda path: path.stem)
def test_an_evaluation_notebook_is_run_by_papermill_alone(path):
    cells = read(path)["cells"]
    assert cells[0]["cell_type"] == "raw" and source(cells[0]) == "---\nskip_exec: true\n---"
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
    assert len(tagged) == 1 and tagged[0]["cell_type"] == "code"
    assert not [cell for cell in cells if "default_exp" in source(cell)]


def test_the_engine_knows_every_evaluation_notebook():
    from thesis_ad.reproduce import NOTEBOOKS
    assert sorted(NOTEBOOKS) == [path.stem for path in EVALUATIONS]
    asking = [path.stem for path in EVALUATIONS if "run_all(tasks_for(profile," in path.read_text()]
    assert [stem for stem in NOTEBOOKS
        if NOTEBOOKS[stem]] == asking, "what a notebook asks for is fitted before it starts, side by side"


def test_a_stale_output_of_a_chapter_is_named(tmp_path):
    "The script behind `make test` runs a chapter and compares words and whole numbers with the committed output."
    from nbformat.v4 import new_code_cell, new_notebook, new_output
    printed = lambda text: [new_output("stream", name="stdout", text=text)]
    cells = [new_code_cell("print('400 steps, loss', 0.25)", outputs=printed("400 steps, loss 0.26\n")),
        new_code_cell("print('800 steps')", outputs=printed("400 steps\n")),
        new_code_cell("print('3 seconds')", outputs=printed("5 seconds\n"), metadata={"tags": ["varies"]})]
    nbformat.write(new_notebook(cells=cells), tmp_path / "chapter.ipynb")
    run = lambda *more: subprocess.run([sys.executable, ROOT / ".ci/chapters.py", tmp_path / "chapter.ipynb", *more],
        capture_output=True, text=True)
    found = run()
    said = "cell 1: it prints '… 800 steps …', and the committed output says '… 400 steps …'"
    assert found.returncode == 1 and said in found.stdout, found.stdout + found.stderr
    assert "1 cells failed or stale" in found.stdout, found.stdout
    assert run("--update").returncode == 0 and run().returncode == 0


def test_committed_files_are_small():
    # a row an image, method and seed, every digit: what a stranger recomputes the AUROCs from
    scores = re.compile(r"figures/\w+/tables/(parts/\w+/)?scores(_calibration)?\.csv")
    large = [f"{where(path)}: {path.stat().st_size}"
        for path in committed() if path.stat().st_size > (8_000_000 if scores.fullmatch(where(path)) else 1_000_000)]
    assert not large, large
    total = sum(path.stat().st_size for path in committed() if where(path).startswith(("figures/", "nbs/"))
        and not scores.fullmatch(where(path)))
    assert total < 15_000_000, f"notebooks and figures take {total:,} bytes"


def words(path):
    "Text of a file that a person reads; of a notebook, source and text outputs without images."
    if path.suffix != ".ipynb": return path.read_text(encoding="utf-8")
    pieces = []
    for cell in read(path)["cells"]:
        pieces.append(source(cell))
        for output in cell.get("outputs", ()):
            pieces += ["".join(output.get("text", ())), output.get("evalue", "")]
            pieces += ["".join(data) for kind, data in output.get("data", {}).items() if kind.startswith("text/")
                and isinstance(data, (str, list))]
    return "\n".join(pieces)


def test_committed_text_names_no_path_of_one_machine():
    machine = re.compile(r"(?<![\w.~*<>\\-])/(?:work|root|home|Users|tmp|var/folders)/[\w.]+")
    assert machine.search("see /" + "tmp/a.png") and machine.search("'/" + "home/me'")
    assert not machine.search("data/work/a")
    found = []
    for path in committed():
        if path.suffix in (".png", ".jpg", ".npz", ".safetensors"): continue
        found += [f"{where(path)}: {match[0]}" for match in machine.finditer(words(path))]
    assert not found, found


def test_chapters_carry_their_images():
    "A chapter that draws is committed with what it drew."
    import nbformat
    bare = []
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type != "code" or cell.source.startswith("#|") or "plt.subplots" not in cell.source: continue
            drawn = any(kind.startswith("image/") for output in cell.outputs for kind in output.get("data", {}))
            if not drawn and "def " not in cell.source: bare.append(f"{path.name}: {cell.source[:60]!r}")
    assert not bare, bare


def test_the_readme_repeats_the_published_table():
    "Each cell of the README's central result is what the published tables say."
    from thesis_ad.evaluation.figures import central_table, read_table
    if not PUBLISHED.exists():
        pytest.skip("nothing is published: make reproduce ARGS='--profile paper', then make publish")
    text = (ROOT / "README.md").read_text().split("<!-- central result -->")[1]
    lines = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in text.strip().splitlines()
        if line.startswith("|")]
    shown = {(lines[0][j].split()[0], row[0]): row[j] for row in lines[2:] for j in range(1, len(row))}
    table = central_table(read_table(PUBLISHED / "summary.csv"))
    assert shown == {(dataset, method): table.loc[method, dataset] for dataset in table for method in table.index}


def test_published_numbers_recompute():
    """Every image AUROC and its interval from scores.csv, the misses at the threshold from scores.csv and
    scores_calibration.csv, and every row of summary.csv from metrics.csv.
    The threshold of `auto` rests on training images, too, whose scores are in no table."""
    from thesis_ad.decision.threshold import conformal_threshold
    from thesis_ad.evaluation.figures import read_table
    from thesis_ad.evaluation.metrics import image_auroc
    from thesis_ad.evaluation.statistics import auroc_interval
    from thesis_ad.evaluation.protocol import summarise
    if not PUBLISHED.exists():
        pytest.skip("nothing is published: make reproduce ARGS='--profile paper', then make publish")
    metrics, summary, scores = (read_table(PUBLISHED / f"{name}.csv") for name in ("metrics", "summary", "scores"))
    keys = ["dataset", "method", "seed"]
    told = metrics[metrics.metric == "image_auroc"].set_index(keys)[["value", "ci_low", "ci_high"]]
    found = {key: (image_auroc(some.label, some.score), *auroc_interval(some.label, some.score, some.group))
        for key, some in scores.groupby(keys)}
    assert set(found) == set(told.index)
    assert all(abs(a - b) < 1e-9 for key, values in found.items() for a, b in zip(values, told.loc[key]))
    known = read_table(PUBLISHED / "scores_calibration.csv").query("label == 0").groupby(keys).score
    missed = metrics[(metrics.metric == "misses") & ~metrics.method.isin(["auto", "fusion", "fusion_unsupervised"])]
    for row in missed.itertuples():
        nok = scores.query("dataset == @row.dataset and method == @row.method and seed == @row.seed "
            "and label == 1").score
        assert abs((nok <= conformal_threshold(known.get_group((row.dataset, row.method, row.seed)), 0.05).value).mean()
            - row.value) < 1e-9, row
    assert summarise(metrics).round(9).equals(summary.round(9))
