"""Put the outputs of the last demo run into the evaluation notebooks, for reading them without running them.

    make publish      # after `make reproduce`
"""
import base64
import io
from pathlib import Path

import nbformat
from PIL import Image

LARGE = 60_000    # base64 characters of a PNG above which it is kept as JPEG; the PNG itself is in figures/demo


def smaller(output):
    "A notebook output whose large PNG pictures are JPEG."
    data = output.get("data", {})
    if len(data.get("image/png", "")) > LARGE:
        buffer = io.BytesIO()
        Image.open(io.BytesIO(base64.b64decode(data.pop("image/png")))).convert("RGB").save(buffer, "JPEG", quality=80)
        data["image/jpeg"] = base64.b64encode(buffer.getvalue()).decode()
    return output


root = Path(__file__).resolve().parents[1]
for target in sorted((root / "nbs" / "evaluation").glob("*.ipynb")):
    source = root / "runs" / "demo" / target.name
    notebook, run = nbformat.read(target, 4), nbformat.read(source, 4)
    executed = [cell for cell in run.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    if [cell.source for cell in executed] != [cell.source for cell in notebook.cells]:
        raise SystemExit(f"{source} was run from another version of {target.name}; run make reproduce first")
    for cell, done in zip(notebook.cells, executed):
        if cell.cell_type == "code": cell.outputs, cell.execution_count = [smaller(output) for output in done.outputs], None
    nbformat.write(notebook, target)
    print(target.relative_to(root))
