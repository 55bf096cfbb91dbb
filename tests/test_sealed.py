"""The sealed test split: who opens it, read from the source of every chapter, benchmark and module,
and what happens to a chapter that tries."""
import ast
import json
import pickle
from pathlib import Path

import pytest

from thesis_ad.data.datasets import open_dataset
from thesis_ad.settings import UserError

ROOT = Path(__file__).parents[1]
DOORS = {"13_data.datasets": "thesis_ad/data/datasets.py", "61_evaluation.protocol": "thesis_ad/evaluation/protocol.py",
    "90_cli": "thesis_ad/cli.py"}  # chapter: module
OPEN = {"test", "open_test", "_sealed"}                   # attributes of a Dataset that lead to its test images
RUN = {"run", "_run", "run_all", "*"}                     # what the protocol exports that scores the test split


def code_of(path):
    "Python source of a module, or of a notebook's code cells without magics."
    if path.suffix == ".py": return path.read_text(encoding="utf-8")
    cells = ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"]
    return "\n".join(line for cell in cells for line in cell.splitlines() if not line.lstrip().startswith(("%", "!")))


def openings(code, protocol=False):
    """What in Python source leads to the images of a test split;
    with `protocol`, also what runs the protocol, which evaluates on it."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and node.attr in OPEN: found.append(f"line {node.lineno}: .{node.attr}")
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            words = {leaf.value for argument in node.args
                for leaf in ast.walk(argument) if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)}
            if name in ("getattr", "_open", "attrgetter") and words & OPEN:
                found.append(f"line {node.lineno}: {name} of the test split")
        if protocol and isinstance(node, ast.ImportFrom) and (node.module or "").endswith("protocol"):
            found += [f"line {node.lineno}: protocol.{alias.name}" for alias in node.names if alias.name in RUN]
        if protocol and isinstance(node, (ast.Import, ast.ImportFrom)):
            found += [f"line {node.lineno}: {alias.name}"
                for alias in node.names if alias.name.split(".")[-1] == "protocol"]
    return found


def chapters(): return sorted((ROOT / "nbs").glob("*.ipynb"))


SEALED = [path for path in (*chapters(), *sorted((ROOT / "benchmarks").glob("*.py")),
    *sorted((ROOT / "thesis_ad").rglob("*.py")), *sorted((ROOT / ".ci").glob("*.py"))) if path.stem not in DOORS
    and path.relative_to(ROOT).as_posix() not in DOORS.values()]


@pytest.mark.parametrize("path", SEALED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_but_the_evaluation_opens_the_test_split(path):
    # what comes before the evaluation, and may choose a setting
    chooses = path.parent.name == "benchmarks" or path.suffix == ".ipynb" and int(path.name[:2]) < 60
    assert openings(code_of(path), protocol=chooses) == []


def test_the_doors_and_the_evaluation_notebooks_do_open_it():
    for chapter, module in DOORS.items():
        assert (openings(code_of(ROOT / "nbs" / f"{chapter}.ipynb"))
            and openings(code_of(ROOT / module))), f"{chapter} opens nothing and needs no exception"
    assert any(openings(code_of(path)) for path in (ROOT / "nbs/evaluation").glob("*.ipynb"))


@pytest.mark.parametrize("code", [
    "scores = predict_set(detector, data.test)", "data.open_test().nok()", "x = data._sealed", "getattr(data, 'test')",
    "data._open('test')", "best = max(settings, key=lambda s: auroc(fit(s), open_dataset(name).open_test()))",
    "from operator import attrgetter\nattrgetter('test')(data)",
    "from thesis_ad.evaluation.protocol import run_all, tasks_for", "import thesis_ad.evaluation.protocol as p",
    "from thesis_ad.evaluation import protocol"])
def test_a_source_that_opens_it_is_found(code):
    assert openings(code, protocol=True)


# The guard, where the source looks innocent

def test_the_guard_refuses_in_one_sentence_and_names_the_way(mvtec_folder):
    data = open_dataset(mvtec_folder)
    for one in (data, data.at_most(train=3), pickle.loads(pickle.dumps(data))):
        with pytest.raises(UserError,
                match=r"^the test split of part is sealed: .*data\.calibration.*data\.open_test\(\)$"):
            one.test
        assert len(one.open_test()) == 12
    assert data.development is data.open_test(), "a folder that is named for it is development data"
    with pytest.raises(UserError, match="has no test images"):
        open_dataset(mvtec_folder / "train" / "good").open_test()


def test_published_datasets_are_developed_on_their_calibration_split():
    data = open_dataset("elpv_mono")
    assert data.development is data.calibration
    assert set(data.table[data.table.path.isin(data.development.paths)].split) == {"calibration"}
    rendered = open_dataset("prefilter_a", size=32, parts=1, workers=1)
    assert rendered.development is rendered.calibration


def test_a_chapter_that_opens_the_test_split_fails(tmp_path, mvtec_folder, monkeypatch, capsys):
    "As `make test` runs every chapter, on a notebook whose source has no forbidden word."
    nbdev = pytest.importorskip("nbdev.test")
    monkeypatch.setenv("IN_TEST", "1")
    def passes(split):
        path = tmp_path / f"{split}.ipynb"
        source = (f"from thesis_ad.data.datasets import open_dataset\nsplit = {split!r}\nimages = "
            f"getattr(open_dataset({str(mvtec_folder)!r}), split)")
        cell = {"cell_type": "code", "execution_count": None, "id": "cell0", "metadata": {}, "outputs": [],
            "source": source}
        kernel = {"display_name": "python3", "language": "python", "name": "python3"}
        path.write_text(json.dumps({"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4,
            "nbformat_minor": 5}))
        assert not openings(source, protocol=True)
        return nbdev.test_nb(path)[0]
    assert passes("calibration") and not passes("test")
    assert "the test split of part is sealed" in capsys.readouterr().err


def test_the_readme_evaluates_through_the_door(mvtec_folder):
    "The README's Python example, on another folder and with a detector that is quick to fit."
    code = (ROOT / "nbs/book/60_your_own_images.md").read_text(encoding="utf-8").split(
        "From Python:\n\n```python\n")[1].split("```")[0]
    assert openings(code) and '"photos/"' in code and '"dfr", size=(256, 384)' in code
    namespace = {}
    exec(code.replace('"photos/"', repr(str(mvtec_folder))).replace('"dfr", size=(256, 384)',
        '"gaussian", size=(64, 96), device="cpu"'), namespace)
    assert namespace["scores"].shape == (12,) and len(namespace["maps"]) == 12
    assert namespace["maps"][0].shape == (72, 96)
