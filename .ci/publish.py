"""Put the outputs of the last run of profile paper into the evaluation notebooks and its central result into the
README, and run the chapters of the book, which read the published tables; large images in notebooks become JPEG, at
most 640 pixels wide. A notebook without a run keeps its outputs.

    make publish      # after `make reproduce ARGS='--profile paper'`
"""
import base64
import io
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

from thesis_ad.data.manifest import read_manifest
from thesis_ad.evaluation.figures import central_table, read_table

root = Path(__file__).resolve().parents[1]
LARGE = 40_000    # base64 characters of an image above which it is kept as JPEG …
WIDTH, HEIGHT = 640, 900   # … of at most so many pixels; the PNG itself is in figures/paper


def with_palette(data):
    "The PNG of an output with 256 colours, where it has one and that makes it smaller."
    if "image/png" not in data: return {}
    buffer = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB").quantize(256,
        dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return {"image/png": min(data["image/png"], base64.b64encode(buffer.getvalue()).decode(), key=len)}


def smaller(output, name):
    """A notebook output whose large images are JPEG,
    and whose styled tables are called `name` and not by a random number."""
    data = output.get("data", {})
    if "text/html" in data: data["text/html"] = re.sub(r"T_[0-9a-f]{5}", f"T_{name}", data["text/html"])
    for kind in ("image/png", "image/jpeg"):
        if kind == "image/png" and len(data.get(kind, "")) <= LARGE: data.update(with_palette(data))
        if len(data.get(kind, "")) <= LARGE: continue
        image = Image.open(io.BytesIO(base64.b64decode(data[kind]))).convert("RGB")
        if kind == "image/jpeg" and image.width <= WIDTH: continue          # it has been here before
        image.thumbnail((WIDTH, HEIGHT))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=35, optimize=True, progressive=True)
        del data[kind]
        data["image/jpeg"] = base64.b64encode(buffer.getvalue()).decode()
    return output


def kept(outputs, name):
    "The outputs of a cell as they are committed; a widget's are left out, since it needs a kernel."
    return [smaller(output, name) for output in outputs
        if "application/vnd.jupyter.widget-view+json" not in output.get("data", {})]


def central_result(table):
    "The README's table of image AUROC and misses as Markdown, rendered datasets first."
    datasets = sorted(table.columns, key=lambda name: (not read_manifest(name).rendered, name))
    head = [f"{name} ({'rendered' if read_manifest(name).rendered else 'real'})" for name in datasets]
    lines = ["| method | " + " | ".join(head) + " |", "|---" * (1 + len(datasets)) + "|"]
    return "\n".join(lines + ["| " + " | ".join((f"`{name}`", *row)) + " |"
        for name, row in zip(table.index, table[datasets].to_numpy())])


for target in sorted((root / "nbs" / "evaluation").glob("*.ipynb")):
    source = root / "runs" / "paper" / target.name
    if not source.exists():
        print(f"{target.relative_to(root)}: not run, left as it is")
        continue
    notebook, run = nbformat.read(target, 4), nbformat.read(source, 4)
    executed = [cell for cell in run.cells if cell.cell_type == "code"
        and "injected-parameters" not in cell.metadata.get("tags", [])]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.source for cell in executed] != [cell.source for cell in code]:
        raise SystemExit(f"{source} was run from other code than that of {target.name}; run make reproduce "
            "ARGS='--profile paper' first")
    for number, (cell, done) in enumerate(zip(code, executed)):
        cell.outputs, cell.execution_count = kept(done.outputs, number), None
    nbformat.write(notebook, target)
    print(target.relative_to(root))

for target in sorted((root / "nbs").glob("*.ipynb")):
    notebook = nbformat.read(target, 4)
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code": cell.outputs = kept(cell.outputs, number)
    nbformat.write(notebook, target)

readme, mark = root / "README.md", "<!-- central result -->\n"
before, after = readme.read_text().split(mark)[::2]
table = central_table(read_table(root / "figures" / "paper" / "tables" / "summary.csv"))
readme.write_text(before + mark + central_result(table) + "\n" + mark + after)

# they read the published tables and assert what they say of them
for target in sorted((root / "nbs" / "book").glob("*.ipynb")):
    notebook = nbformat.read(target, 4)
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(target.parent)}}).execute()
    notebook.metadata.pop("widgets", None)
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code": cell.outputs = kept(cell.outputs, number)
    nbformat.write(notebook, target)
    print(target.relative_to(root))
