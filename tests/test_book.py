"""The book: its order, its citations, its links, its words, and the pages that the site writes from the repository."""
import ast
import fnmatch
import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "nbs" / "book").glob("*.ipynb")) + sorted((ROOT / "nbs" / "book").glob("*.md"))
NOTEBOOKS = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
BIBLIOGRAPHY = (ROOT / "nbs" / "book" / "references.bib").read_text(encoding="utf-8")
INDEX = (ROOT / "site" / "index.md").read_text(encoding="utf-8")
ORDER = ["Introduction", "Data", "Images", "Measuring", "Features", "Detectors", "Decisions", "Results", "Station",
    "Discussion", "Under the hood"]


def prose(path):
    "What a person reads in a notebook or page: Markdown without code, formulas and links' targets."
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    else: text = path.read_text(encoding="utf-8")
    text = re.sub(r"```.*?```", " ", text, flags=re.S)
    return re.sub(r"`[^`]*`|\$[^$]*\$|\]\([^)]*\)", " ", text)


def entries():
    "[(caption, pattern)] of the site's index, in order."
    found = []
    for block in re.findall(r"```\{toctree\}\n(.*?)```", INDEX, re.S):
        caption = re.search(r":caption: (.*)", block)[1]
        found += [(caption, line) for line in block.splitlines() if line and not line.startswith(":")]
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_cells_are_short_and_their_lines_fit_a_page(path):
    "At most 25 lines a cell and 120 columns a line; ruff measures the Python files."
    wrong = []
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] != "code": continue
        lines = "".join(cell["source"]).splitlines()
        where = f"{path.relative_to(ROOT).as_posix()}, cell {number}"
        if len(lines) > 25: wrong.append(f"{where}: {len(lines)} lines")
        wrong += [f"{where}, line {n}: {len(line)} columns" for n, line in enumerate(lines, 1) if len(line) > 120]
    assert not wrong, "\n".join(wrong)


def test_the_index_has_the_order_of_the_book():
    assert list(dict.fromkeys(caption for caption, _ in entries())) == ORDER


@pytest.mark.parametrize("path", [*NOTEBOOKS, *(path for path in PAGES if path.suffix == ".md")],
    ids=lambda path: path.stem)
def test_the_index_has_each_notebook_once(path):
    name = path.relative_to(ROOT).with_suffix("").as_posix()
    places = [caption for caption, pattern in entries() if fnmatch.fnmatchcase(name, pattern)
        and name.count("/") == pattern.count("/")]
    assert len(places) == 1, f"{name} stands in {places or 'no part of the index'}"


def test_every_citation_has_an_entry_and_every_entry_is_cited():
    keys = re.findall(r"^@\w+\{(\w+),", BIBLIOGRAPHY, re.M)
    assert len(keys) == len(set(keys))
    texts = [path.read_text(encoding="utf-8") for path in (*NOTEBOOKS, *PAGES)]
    cited = {key.strip() for text in texts for group in re.findall(r"\{cite:[pt]\}`([^`]+)`", text)
        for key in group.split(",")}
    assert cited - set(keys) == set(), "cited without an entry"
    assert set(keys) - cited == set(), "in the bibliography and never cited"


def links(path):
    "Relative targets of Markdown links in a notebook's or a page's prose, without what follows a #."
    text = ("\n".join("".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "markdown") if path.suffix == ".ipynb" else path.read_text(encoding="utf-8"))
    text = re.sub(r"```.*?```", " ", text, flags=re.S)
    return {target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target
        and not target.startswith(("#", "mailto:"))}


@pytest.mark.parametrize("path", [*NOTEBOOKS, *(path for path in PAGES if path.suffix == ".md"), ROOT / "README.md",
    ROOT / "CONTRIBUTING.md", ROOT / "data_manifest" / "README.md"], ids=lambda path: path.stem)
def test_every_link_leads_to_a_file(path):
    missing = sorted(target for target in links(path) if target and not (path.parent / target).exists())
    assert not missing, missing


def test_numbers_in_the_book_are_printed_by_a_cell_or_cited():
    """A number with a decimal point or a per cent sign in the prose of the book stands on a line that cites its source,
    in a table of definitions, or nowhere."""
    allowed = {"0.3", "0.05", "5 %", "95 %"}  # limits of AUPRO, the guarantee of a threshold, the level of intervals
    wrong = []
    for path in PAGES:
        text = (path.read_text(encoding="utf-8") if path.suffix == ".md" else "\n\n".join("".join(cell["source"])
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "markdown"))
        text = re.sub(r"```.*?```", " ", text, flags=re.S)
        for paragraph in re.split(r"\n\s*\n|\n(?=\|)|\n(?=- )", text):
            if "{cite" in paragraph or "published" in paragraph.lower() or "private" in paragraph: continue
            wrong += [f"{path.name}: {number} in {paragraph[:80]!r}"
                for number in re.findall(r"\d+\.\d+|\d+ %", paragraph) if number not in allowed]
    assert not wrong, wrong


def site_pages():
    spec = importlib.util.spec_from_file_location("pages", ROOT / "site" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_index_of_figures_and_the_tables_are_complete():
    if not (ROOT / "figures" / "paper").exists(): pytest.skip("nothing is published")
    pages = site_pages()
    figures, tables = pages.figures_page(ROOT), pages.tables_page(ROOT)
    for path in (ROOT / "figures" / "paper").glob("*.png"): assert f"figures/paper/{path.name}" in figures, path.name
    for path in (ROOT / "figures" / "paper" / "tables").glob("*.csv"): assert f"\n## {path.stem}\n" in tables, path.name


def test_the_reference_has_every_module_and_its_public_functions():
    pages = site_pages()
    found = pages.modules(ROOT / "thesis_ad")
    assert {path.stem for path in (ROOT / "thesis_ad").rglob("*.py")} - {"__init__", "_modidx"} == {name.split(".")[-1]
        for name in found}
    text = "\n".join(pages.module_lines(ROOT / "thesis_ad" / "evaluation" / "metrics.py",
        "thesis_ad.evaluation.metrics"))
    assert ".. py:function:: image_auroc(labels, scores)" in text and "ties counted half" in text
    assert "_checked" not in text


def test_the_site_can_colour_every_block_of_code():
    "Sphinx warns of a block that its lexer cannot read, and a warning ends the build."
    lexers = pytest.importorskip("pygments.lexers", reason="the site is not built here")
    for path in [*PAGES, *NOTEBOOKS, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            text = "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"]
                if cell["cell_type"] == "markdown")
        for language, block in re.findall(r"^ *```(\w+)\n(.*?)^ *```", text, re.S | re.M):
            lexer = lexers.get_lexer_by_name(language)
            wrong = [word for kind, word in lexer.get_tokens(block) if str(kind) == "Token.Error"]
            assert not wrong, f"{path.name}: {wrong[0]!r} in a block of {language}"


def test_the_site_hides_no_warning():
    assert "suppress_warnings" not in (ROOT / "site" / "conf.py").read_text()
    assert "-W" in (ROOT / "Makefile").read_text()


WORDS = {"picture": r"\b[Pp]ictures?\b", "redraw": r"\bredr[ae]wn?s?\b", "foretell": r"\bforet(ell|old)",
    "dealt": r"\bdealt\b", "judge": r"\b[Jj]udge[ds]?\b", "told": r"\btold\b", "promise": r"\b[Pp]romise[ds]?\b",
    "rim": r"\b[Rr]ims?\b(?! of a part)", "share": r"\b(the|a|an|its|what|same|equal|mean) shares?\b",
    "loud, quiet": r"\b(loud|quiet)(er|est)?\b", "whoever": r"\b[Ww]hoever\b", "at hand": r"\bat hand\b",
    "without a word": r"\bwithout a word\b"}
PROSE = [*NOTEBOOKS, *(path for path in PAGES if path.suffix == ".md"), *(ROOT / name
    for name in ("README.md", "data_manifest/README.md", "deploy/README.md", "SECURITY.md", "site/index.md"))]


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.stem)
def test_prose_keeps_to_the_word_list(path):
    text = prose(path)
    found = [text[max(match.start() - 40, 0):match.end() + 20].replace("\n", " ") for pattern in WORDS.values()
        for match in re.finditer(pattern, text)]
    assert not found, found


def test_docstrings_keep_to_the_word_list():
    found = []
    for path in sorted((ROOT / "thesis_ad").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)): continue
            text = re.sub(r"`[^`]*`", "", ast.get_docstring(node) or "")
            found += [f"{path.name}, {getattr(node, 'name', 'module')}: {match.group()}"
                for pattern in WORDS.values() for match in re.finditer(pattern, text)]
    assert not found, found


@pytest.mark.parametrize("path", sorted((ROOT / "nbs").glob("*.ipynb")), ids=lambda path: path.stem)
def test_no_more_than_two_exported_cells_follow_one_another(path):
    "A reader gets a sentence or a result in between."
    row, wrong = 0, []
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        row = row + 1 if cell["cell_type"] == "code" and "".join(cell["source"]).startswith("#| export") else 0
        if row == 3: wrong.append(f"{path.name}, cell {number}")
    assert not wrong, wrong


# Shown where what they call is defined, which is later.
SHOWN_LATER = {"41_models.linear": ["weight_hash"], "49_models.auto": ["member_scores"],
    "72_inspection.export": ["export_bundle"], "73_inspection.server": ["check_ready"]}


@pytest.mark.parametrize("path", sorted((ROOT / "nbs").glob("*.ipynb")), ids=lambda path: path.stem)
def test_each_exported_cell_is_used_within_the_next_two_and_asserted(path):
    "A chapter of commands uses their names as words: `data list` is `data_list`."
    cells = ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"]
    missing, not_asserted = [], []
    for place, cell in enumerate(cells):
        if not cell.startswith("#| export"): continue
        names = [one.name for one in ast.parse(cell).body
            if isinstance(one, (ast.FunctionDef, ast.ClassDef)) and not one.name.startswith("_")]
        after = "\n".join(cells[place + 1:place + 3])
        examples = [one for one in cells[place + 1:] if not one.startswith("#| export")][:2]
        if names and not re.search(r"\bassert\b|AssertionError", "\n".join(examples)): not_asserted.append(names[0])
        if names and not any(re.search(rf"\b{name.replace('_', '[_ ]')}\b", after) for name in names):
            missing.append(names[0])
    assert missing == SHOWN_LATER.get(path.stem, []), missing
    assert not not_asserted, f"{not_asserted}: the two examples that follow assert nothing"
