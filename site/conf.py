"""Sphinx configuration of the book: `make site` copies the notebooks beside index.md and renders them as committed."""
import ast
import json
import os
import re
import shutil
import sys
import tomllib
from html import escape
from pathlib import Path
from urllib.parse import quote

from docutils.nodes import SkipNode
from docutils.utils.math import MathError, latex2mathml
from sphinx.util import logging

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from pages import write_pages  # noqa: E402

_settings = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
project = _settings["name"]
author = _settings["authors"][0]["name"]
copyright = f"2026, {author}; code Apache-2.0, text and figures CC BY 4.0"
extensions = ["myst_nb", "sphinxcontrib.bibtex"]
html_theme = "furo"
html_theme_options = {
    "light_css_variables": {"code-font-size": "var(--font-size--small--3)"},
    "navigation_with_keys": True,
}
html_title = "thesis_ad"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_js_files = ["book.js"]
html_copy_source = False
html_show_sphinx = False
html_math_renderer = "mathml"
exclude_patterns = ["**/.ipynb_checkpoints"]
nb_execution_mode = "off"
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
bibtex_bibfiles = ["../nbs/book/references.bib"]         # beside this file, not beside the copied pages
bibtex_reference_style = "author_year"
python_use_unqualified_type_names = True

# Where the notebooks can be opened in a browser: GitHub names the repository when its workflow builds the book.
notebooks_at = os.environ.get("GITHUB_REPOSITORY", ""), os.environ.get("GITHUB_REF_NAME", "main")


def _buttons(name, repository, branch):
    """Links that open a notebook: in Binder and Colab if the repository is known, and as a file in any case. Colab has
    only the notebook: what to run there first stands beside the link."""
    path = f"{name}.ipynb"
    links = [f'<a href="{Path(path).name}" download>Download the notebook</a>']
    if repository:
        links += [f'<a href="https://mybinder.org/v2/gh/{repository}/{branch}?labpath={quote(path, safe="")}">Open '
            'in Binder</a>',
            f'<a href="https://colab.research.google.com/github/{repository}/blob/{branch}/{quote(path)}">Open '
            'in Colab</a>',
            f'<br>In Colab, run first: <code>!git clone -q --depth 1 https://github.com/{repository} book &amp;&amp; '
            'pip install -q -e "book[thesis]"</code>, then <code>import sys; sys.path.insert(0, "book")</code>']
    return '<p class="book-buttons">' + " ".join(links) + "</p>"


def _imports_only(code):
    "Whether a cell does nothing but import and set defaults by calls."
    try: body = ast.parse(code).body
    except SyntaxError: return False
    imports = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
    rest = [node for node in body if node not in imports]
    return bool(imports) and all("rcParams" in ast.unparse(node) or "pin_threads" in ast.unparse(node) for node in rest)


def _collapse(cell):
    "Collapse a cell of imports; long code is folded by the page's script."
    if _imports_only(cell["source"]) and not cell["outputs"]:
        cell["metadata"] = {**cell["metadata"], "tags": [*cell["metadata"].get("tags", []), "hide-input"],
                            "mystnb": {"code_prompt_show": "Show the imports", "code_prompt_hide": "Hide the imports"}}


def _plain(app, name, source):
    "Take nbdev's directives and hidden cells out of a chapter, so that a reader sees code only."
    if not source[0].startswith("{"): return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        cell["source"] = re.sub(r"(?m)^#\| *(export|exports|exporti|default_exp|eval:|slow).*\n*", "",
            "".join(cell["source"]))
    notebook["cells"] = [cell for cell in notebook["cells"] if cell["cell_type"] != "raw"
                         and cell["source"].strip() and not cell["source"].startswith("#| hide")]
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code": _collapse(cell)
    first = notebook["cells"][0]
    title, _, rest = first["source"].partition("\n")
    first["source"] = f"{title}\n\n{_buttons(name, *app.config.notebooks_at)}\n{rest}"
    source[0] = json.dumps(notebook)


# TeX that docutils' converter does not know, and what says the same; MathML stretches brackets by itself
_TEX = [(r"\\[bB]igg?[lr]?(?![A-Za-z])", ""), (r"\\[td]?frac(\d)(\d)", r"\\frac{\1}{\2}"),
    (r"\\dots(?![A-Za-z])|…", r"\\ldots ")]


def _mathml(writer, node):
    "Formulas as MathML, which browsers draw by themselves, so that the book can be read without a network."
    block, text = node.tagname == "math_block", node.astext()
    for pattern, replacement in _TEX: text = re.sub(pattern, replacement, text)
    try: body = latex2mathml.tex2mathml(text, as_block=block)
    except MathError as error:
        logging.getLogger(__name__).warning("formula not understood: %s (%s)", text, error, location=node)
        body = f"<code>{escape(text)}</code>"
    writer.body.append(f'<p class="formula">{body}</p>' if block else body)
    raise SkipNode


def _copy_notebooks(app, error):
    "Put the notebooks beside their pages, for the download links."
    if error: return
    for path in Path(app.srcdir).glob("nbs/**/*.ipynb"):
        shutil.copy2(path, Path(app.outdir) / path.relative_to(app.srcdir))


def setup(app):
    app.add_config_value("notebooks_at", ("", "main"), "env", (tuple,))
    app.connect("build-finished", _copy_notebooks)
    app.connect("builder-inited", lambda app: write_pages(Path(app.srcdir)))
    app.connect("source-read", _plain)
    app.add_html_math_renderer("mathml", (_mathml, None), (_mathml, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
