"""Pages that are written from what lies in the repository: the index of figures, the result tables,
the library's reference."""
import ast
import copy
import itertools
import json
import re
from pathlib import Path

import pandas as pd

LARGEST = 40_000         # bytes of a table that is shown; a larger one is a download


def figures_page(root):
    "Every published figure: thumbnail, what it shows, its notebook, its command and the hashes of its data."
    rows = ["# Index of figures", "", "Every figure of the published run, the notebook that made it, the command that "
        "makes it again, and the hash of the data it was made from.", "",
        "| figure | what it shows | notebook and command | data |", "|---|---|---|---|"]
    for path in sorted((root / "figures" / "paper").glob("*.json")):
        facts, image = json.loads(path.read_text()), path.with_suffix(".png").relative_to(root).as_posix()
        notebook = facts["notebook"]
        data = "<br>".join(f"{name} `{one['hash'][:8]}`" for name, one in facts["data"].items())
        rows.append(f"| [![{path.stem}]({image})]({image}) | **{path.stem}**: {facts['caption'].replace('|', '/')} | "
            f"[{notebook}](nbs/evaluation/{notebook}.ipynb)<br>`thesis-ad reproduce --profile paper --only "
            f"{notebook}` | {data} |")
    return "\n".join(rows) + "\n"


def html_table(path):
    "A CSV as an HTML table that the page's script makes sortable; numbers with four digits."
    table = pd.read_csv(path, keep_default_na=False, na_values=[""])
    return table.to_html(index=False, na_rep="–", classes="sortable", border=0,
        float_format=lambda value: f"{value:.4g}")


def tables_page(root):
    "Every published table, small ones to sort, large ones to download."
    rows = ["# Result tables", "", "All tables of the published run. Click on the head of a column to sort by it. "
        "Intervals are 95 %, fractions lie between 0 and 1.", ""]
    for path in sorted((root / "figures" / "paper" / "tables").glob("*.csv")):
        caption = json.loads(path.with_suffix(".json").read_text())["caption"]
        rows += [f"## {path.stem}", "", caption, "", f"[Download {path.name}]({path.relative_to(root).as_posix()})", ""]
        if path.stat().st_size < LARGEST: rows += ['<div class="book-table">', html_table(path), "</div>", ""]
    return "\n".join(rows)


def modules(library):
    "Dotted names of the library's modules in the order of their chapters, with the first line of their docstrings."
    order = {}
    for path in sorted(library.rglob("*.py")):
        if path.name in ("__init__.py", "_modidx.py"): continue
        text = path.read_text(encoding="utf-8")
        chapter = next((line.split("/")[-1] for line in text.splitlines() if "File to edit:" in line), "99")
        order[".".join(path.relative_to(library.parent).with_suffix("").parts)] = (chapter,
            ast.get_docstring(ast.parse(text)) or "")
    return dict(sorted(order.items(), key=lambda item: item[1]))


def docstring_lines(text, indent):
    "A docstring as reST that shows it as it is written: line by line, `code` as code and no other markup."
    lines = []
    for line in (text or "").strip().splitlines():
        parts = re.split(r"`+([^`]+)`+", line.strip())
        shown = "".join(re.sub(r"([\\*|_])", r"\\\1", part) if i % 2 == 0 else f"\\ ``{part.strip()}``\\ "
            for i, part in enumerate(parts))
        lines.append(f"{indent}| {shown}" if shown else "")
    return [*lines, ""]


def field_lines(node, source, indent):
    "The fields of a dataclass or a named tuple with their defaults and comments, which trail them or stand above."
    lines = []
    for one in node.body:
        if not isinstance(one, ast.AnnAssign) or one.target.id.startswith("_"): continue
        code, _, comment = source[one.end_lineno - 1].partition("  # ")
        above = list(itertools.takewhile(lambda line: line.startswith("# "),
            map(str.strip, source[one.lineno - 2::-1])))
        comment = comment or " ".join(line[2:] for line in reversed(above))
        default = f" = {ast.unparse(one.value)}" if one.value else ""
        lines += [f"{indent}.. py:attribute:: {one.target.id}: {ast.unparse(one.annotation)}{default}",
            f"{indent}   :no-index:", "", *docstring_lines(comment, indent + "   ")]
    return lines


def arguments(node):
    "Arguments of a function as they are written; of an option of the command line, its type alone."
    given = copy.deepcopy(node.args)
    if patched_class(node): given.args[0] = ast.arg(given.args[0].arg)
    for one in (*given.posonlyargs, *given.args, *given.kwonlyargs):
        kind = one.annotation
        if isinstance(kind, ast.Subscript) and getattr(kind.value, "id", "") == "Annotated":
            one.annotation = kind.slice.elts[0]
    return ast.unparse(given)


def patched_class(node):
    "Name of the class that a function decorated with fastcore's `patch` becomes a method of; None for all else."
    marks = [ast.unparse(one).split("(")[0] for one in getattr(node, "decorator_list", [])]
    return ast.unparse(node.args.args[0].annotation) if isinstance(node, ast.FunctionDef) and "patch" in marks else None


def module_lines(path, name):
    """The public functions and classes of a module as directives of Sphinx's Python domain,
    read from the source without importing it."""
    source = path.read_text(encoding="utf-8")
    tree, lines = ast.parse(source), source.splitlines()
    out = [f".. py:module:: {name}", ""]
    for node in tree.body:
        if getattr(node, "name", "_").startswith("_") or patched_class(node): continue
        text = ast.get_docstring(node)
        if isinstance(node, ast.FunctionDef) and text:
            out += [f".. py:function:: {node.name}({arguments(node)})", "", *docstring_lines(text, "   ")]
        if not isinstance(node, ast.ClassDef): continue
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        out += [f".. py:class:: {node.name}" + (f"({bases})" if bases else ""), "",
            *docstring_lines(text, "   "), *field_lines(node, lines, "   ")]
        for one in [*node.body, *(one for one in tree.body if patched_class(one) == node.name)]:
            if isinstance(one, ast.FunctionDef) and not one.name.startswith("_") and ast.get_docstring(one):
                out += [f"   .. py:method:: {one.name}({arguments(one)})", "",
                    *docstring_lines(ast.get_docstring(one), "      ")]
    return out


def write_api(root, library):
    "A page for each module of the library, from its docstrings."
    folder = root / "api"
    folder.mkdir(exist_ok=True)
    rows = ["# Library reference", "", "Generated from the source: signatures, and the docstrings that give "
        "shapes, units, errors and sources. The chapter beside a module explains it.", "",
        "| module | what it holds | chapter |", "|---|---|---|"]
    found = modules(library)
    for name, (chapter, text) in found.items():
        chapter = chapter.strip(". ").removesuffix(".ipynb")
        rows.append(f"| [{name}]({name}.md) | {text.splitlines()[0] if text else ''} | "
            f"[{chapter[:2]}](../nbs/{chapter}.ipynb) |")
        lines = module_lines(library.parent / (name.replace(".", "/") + ".py"), name)
        (folder / f"{name}.md").write_text("\n".join([f"# {name}", "", text, "",
            f"Explained in [chapter {chapter[:2]}](../nbs/{chapter}.ipynb).", "", "```{eval-rst}", *lines, "```", ""]))
    (folder / "index.md").write_text("\n".join([*rows, "", "```{toctree}", ":hidden:", "", *found, "```", ""]))


def write_pages(root):
    "Write all of them below the source folder `root` of the site."
    (root / "figure_index.md").write_text(figures_page(root))
    (root / "result_tables.md").write_text(tables_page(root))
    write_api(root, Path(__file__).resolve().parents[1] / "thesis_ad")
