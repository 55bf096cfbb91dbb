"""Put the outputs of the last demo run into the evaluation notebooks, and its central result into the README; large pictures
in the outputs of all notebooks become JPEG, at most 720 pixels wide.

    make publish      # after `make reproduce`
"""
import base64
import io
import re
import textwrap
from pathlib import Path

import nbformat
import pandas as pd
from PIL import Image

SETS = {"prefilter_a": "rendered", "prefilter_b": "rendered", "elpv_mono": "real"}
LARGE = 60_000    # base64 characters of a PNG above which it is kept as JPEG …
WIDTH = 720       # … of at most so many pixels; the PNG itself is in figures/demo


def smaller(output, name):
    "A notebook output whose large PNG pictures are JPEG, and whose styled tables are called `name` and not by a random number."
    data = output.get("data", {})
    if "text/html" in data: data["text/html"] = re.sub(r"T_[0-9a-f]{5}", f"T_{name}", data["text/html"])
    if len(data.get("image/png", "")) > LARGE:
        buffer = io.BytesIO()
        picture = Image.open(io.BytesIO(base64.b64decode(data.pop("image/png")))).convert("RGB")
        picture.thumbnail((WIDTH, picture.height))
        picture.save(buffer, "JPEG", quality=80)
        data["image/jpeg"] = base64.b64encode(buffer.getvalue()).decode()
    return output


def central_result(metrics):
    "Image AUROC of every method on every dataset as a Markdown table, best first, and what it says in two sentences."
    rows = metrics[metrics.metric == "image_auroc"]
    values = rows.pivot(index="method", columns="dataset", values="value")
    values = values.loc[values.mean(axis=1).sort_values(ascending=False, kind="stable").index, list(SETS)]
    return table_of(rows, values) + "\n\n" + "\n".join(textwrap.wrap(sentences_on(rows, values), 140, break_on_hyphens=False))


def table_of(rows, values):
    "A line a method in the order of `values`: `value [low, high]` on each dataset, in percent."
    text = rows.assign(text=[f"{100 * v:.1f} [{100 * a:.1f}, {100 * b:.1f}]" for v, a, b in zip(rows.value, rows.ci_low, rows.ci_high)])
    table = text.pivot(index="method", columns="dataset", values="text").loc[values.index, values.columns]
    lines = ["| method, by the mean of its row | " + " | ".join(f"{name} ({kind})" for name, kind in SETS.items()) + " |", "|---" * (1 + len(SETS)) + "|"]
    return "\n".join(lines + ["| " + " | ".join((f"`{name}`", *row)) + " |" for name, row in zip(table.index, table.to_numpy())])


def sentences_on(rows, values):
    "The best single detectors, what fusion adds to them, and who cannot be told from chance on any rendered set."
    rendered = rows[rows.dataset.map(SETS) == "rendered"]
    chance = rendered.assign(holds=(rendered.ci_low <= 0.5) & (rendered.ci_high >= 0.5)).groupby("method").holds.all()
    singles = values.drop(index=["fusion", "fusion_unsupervised"])
    winners = {}
    for name in SETS: winners.setdefault(tuple(singles.index[singles[name] == singles[name].max()]), []).append(name)
    best = ", ".join(" and ".join(f"`{method}`" for method in methods) + " on " + " and ".join(names) for methods, names in winners.items())
    gains = ", ".join(f"{100 * (values[name]['fusion'] - singles[name].max()):+.1f}" for name in SETS)
    return (f"Best single detectors: {best}; `fusion` differs from them by {gains} points. "
            f"Intervals that hold 50, chance, on both rendered sets: {', '.join(f'`{name}`' for name in values.index if chance[name])}.")


root = Path(__file__).resolve().parents[1]
for target in sorted((root / "nbs" / "evaluation").glob("*.ipynb")):
    source = root / "runs" / "demo" / target.name
    notebook, run = nbformat.read(target, 4), nbformat.read(source, 4)
    executed = [cell for cell in run.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    if [cell.source for cell in executed] != [cell.source for cell in notebook.cells]:
        raise SystemExit(f"{source} was run from another version of {target.name}; run make reproduce first")
    for number, (cell, done) in enumerate(zip(notebook.cells, executed)):
        if cell.cell_type == "code": cell.outputs, cell.execution_count = [smaller(output, number) for output in done.outputs], None
    nbformat.write(notebook, target)
    print(target.relative_to(root))

for target in sorted((root / "nbs").glob("*.ipynb")):
    notebook = nbformat.read(target, 4)
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code": cell.outputs = [smaller(output, number) for output in cell.outputs]
    nbformat.write(notebook, target)

readme, tables = root / "README.md", root / "figures" / "demo" / "tables"
before, after = readme.read_text().split("<!-- central result -->\n")[::2]
mark = "<!-- central result -->\n"
readme.write_text(before + mark + central_result(pd.read_csv(tables / "metrics.csv", keep_default_na=False, na_values=[""])) + "\n" + mark + after)
