"""Sphinx configuration of the book: `make site` copies the notebooks beside index.md and renders them as committed."""
import json
import re
import tomllib
from html import escape
from pathlib import Path

from docutils.nodes import SkipNode
from docutils.utils.math import MathError, latex2mathml
from sphinx.util import logging

_settings = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
project = _settings["name"]
author = _settings["authors"][0]["name"]
copyright = f"2026, {author}; code Apache-2.0, text and figures CC BY 4.0"
extensions = ["myst_nb"]
html_theme = "furo"
html_theme_options = {"light_css_variables": {"code-font-size": "var(--font-size--small--3)"}}
html_title = _settings["name"]
html_copy_source = False
html_show_sphinx = False
html_math_renderer = "mathml"
exclude_patterns = ["**/.ipynb_checkpoints"]
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "myst.xref_missing", "mystnb.unknown_mime_type"]


def _plain(app, name, source):
    "Take nbdev's directives and hidden cells out of a chapter, so that a reader sees code only."
    if not source[0].startswith("{"): return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        cell["source"] = re.sub(r"(?m)^#\| *(export|exports|exporti|default_exp|eval:|slow).*\n*", "", "".join(cell["source"]))
    notebook["cells"] = [cell for cell in notebook["cells"] if cell["cell_type"] != "raw"
                         and cell["source"].strip() and not cell["source"].startswith("#| hide")]
    source[0] = json.dumps(notebook)


# TeX that docutils' converter does not know, and what says the same; MathML stretches brackets by itself
_TEX = [(r"\\[bB]igg?[lr]?(?![A-Za-z])", ""), (r"\\[td]?frac(\d)(\d)", r"\\frac{\1}{\2}"), (r"\\dots(?![A-Za-z])", r"\\ldots")]


def _mathml(writer, node):
    "Formulas as MathML, which browsers draw by themselves, so that the book can be read without a network."
    block, text = node.tagname == "math_block", node.astext()
    for pattern, replacement in _TEX: text = re.sub(pattern, replacement, text)
    try: body = latex2mathml.tex2mathml(text, as_block=block)
    except MathError as error:
        logging.getLogger(__name__).warning("formula not understood: %s (%s)", text, error, location=node)
        body = f"<code>{escape(text)}</code>"
    writer.body.append(f"<p>{body}</p>" if block else body)
    raise SkipNode


def setup(app):
    app.connect("source-read", _plain)
    app.add_html_math_renderer("mathml", (_mathml, None), (_mathml, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
