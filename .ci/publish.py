"""Put the outputs of the last run of profile paper into the evaluation notebooks, and its central result into the README; large images
in the outputs of all notebooks become JPEG, at most 720 pixels wide.

    make publish      # after `make reproduce ARGS='--profile paper'`
"""
import base64
import io
import re
from pathlib import Path

import nbformat
from PIL import Image

from thesis_ad.data.manifest import read_manifest
from thesis_ad.evaluation.figures import percent, read_table

root = Path(__file__).resolve().parents[1]
LARGE = 60_000    # base64 characters of a PNG above which it is kept as JPEG …
WIDTH = 720       # … of at most so many pixels; the PNG itself is in figures/paper


def smaller(output, name):
    "A notebook output whose large PNG images are JPEG, and whose styled tables are called `name` and not by a random number."
    data = output.get("data", {})
    if "text/html" in data: data["text/html"] = re.sub(r"T_[0-9a-f]{5}", f"T_{name}", data["text/html"])
    if len(data.get("image/png", "")) > LARGE:
        buffer = io.BytesIO()
        picture = Image.open(io.BytesIO(base64.b64decode(data.pop("image/png")))).convert("RGB")
        picture.thumbnail((WIDTH, picture.height))
        picture.save(buffer, "JPEG", quality=80)
        data["image/jpeg"] = base64.b64encode(buffer.getvalue()).decode()
    return output


def central_result(summary):
    "Image AUROC of every method on every dataset as a Markdown table, the highest mean of a row first: mean over seeds and its interval, in percent."
    rows = summary[summary.metric == "image_auroc"]
    datasets = sorted(rows.dataset.unique(), key=lambda name: (not read_manifest(name).rendered, name))
    means = rows.pivot(index="method", columns="dataset", values="mean").mean(axis=1).sort_values(ascending=False, kind="stable")
    text = rows.assign(text=[percent(*row) for row in zip(rows["mean"], rows.ci_low, rows.ci_high)]).pivot(index="method", columns="dataset", values="text").loc[means.index, datasets]
    lines = ["| method | " + " | ".join(f"{name} ({'rendered' if read_manifest(name).rendered else 'real'})" for name in datasets) + " |", "|---" * (1 + len(datasets)) + "|"]
    return "\n".join(lines + ["| " + " | ".join((f"`{name}`", *row)) + " |" for name, row in zip(text.index, text.to_numpy())])


for target in sorted((root / "nbs" / "evaluation").glob("*.ipynb")):
    source = root / "runs" / "paper" / target.name
    notebook, run = nbformat.read(target, 4), nbformat.read(source, 4)
    executed = [cell for cell in run.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    if [cell.source for cell in executed] != [cell.source for cell in notebook.cells]:
        raise SystemExit(f"{source} was run from another version of {target.name}; run make reproduce ARGS='--profile paper' first")
    for number, (cell, done) in enumerate(zip(notebook.cells, executed)):
        if cell.cell_type == "code": cell.outputs, cell.execution_count = [smaller(output, number) for output in done.outputs], None
    nbformat.write(notebook, target)
    print(target.relative_to(root))

for target in sorted((root / "nbs").glob("*.ipynb")):
    notebook = nbformat.read(target, 4)
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code": cell.outputs = [smaller(output, number) for output in cell.outputs]
    nbformat.write(notebook, target)

readme, mark = root / "README.md", "<!-- central result -->\n"
before, after = readme.read_text().split(mark)[::2]
summary = read_table(root / "figures" / "paper" / "tables" / "summary.csv")
readme.write_text(before + mark + central_result(summary) + "\n" + mark + after)
