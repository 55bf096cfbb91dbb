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

from thesis_ad.evaluation.figures import percent

root = Path(__file__).resolve().parents[1]
tables = root / "figures" / "demo" / "tables"
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
    "Image AUROC of every method on every dataset as a Markdown table, best first, and what it says."
    rows = metrics[metrics.metric == "image_auroc"]
    values = rows.pivot(index="method", columns="dataset", values="value")
    values = values.loc[values.mean(axis=1).sort_values(ascending=False, kind="stable").index, list(SETS)]
    return table_of(rows, values) + "\n\n" + sentences_on(rows, values)


def table_of(rows, values):
    "A line a method in the order of `values`: `value [low, high]` on each dataset, in percent."
    text = rows.assign(text=[percent(*row) for row in zip(rows.value, rows.ci_low, rows.ci_high)])
    table = text.pivot(index="method", columns="dataset", values="text").loc[values.index, values.columns]
    lines = ["| method, by the mean of its row | " + " | ".join(f"{name} ({kind})" for name, kind in SETS.items()) + " |", "|---" * (1 + len(SETS)) + "|"]
    return "\n".join(lines + ["| " + " | ".join((f"`{name}`", *row)) + " |" for name, row in zip(table.index, table.to_numpy())])


def sentences_on(rows, values):
    "What the table says: the highest and the one to choose, fusion, chance, and ELPV without its bad blocks."
    return "\n\n".join("\n".join(textwrap.wrap(text, 140, break_on_hyphens=False)) for text in (
        " ".join((highest(), on_fusion(), at_chance(rows, values))), on_elpv()))


def points(value, low, high): return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def highest():
    "The best single detector of each dataset, beside the one that the calibration split would have chosen."
    best = pd.read_csv(tables / "best_detectors.csv").set_index("dataset")
    named = ", ".join(f"`{best.best_on_test[name]}` {percent(best.its_image_auroc[name])} on {name} (calibration would have chosen `{best.best_on_calibration[name]}`, {percent(best.its_test_image_auroc[name])})" for name in SETS)
    return f"Highest single detectors on this test split, flattered by having been picked there: {named}."


def on_fusion():
    "The fusion against the best single detector on calibration."
    against = pd.read_csv(tables / "fusion_rules.csv").query("rule == 'best single on calibration'").set_index("dataset")
    gains = ", ".join(f"{points(*against.loc[name, ['fusion_minus_rule', 'difference_low', 'difference_high']])} points against `{against.detector[name]}` on {name}" for name in SETS)
    return f"`fusion` beside the one of its four that calibration would have chosen: {gains}."


def at_chance(rows, values):
    "Who cannot be told from chance on any rendered set."
    rendered = rows[rows.dataset.map(SETS) == "rendered"]
    chance = rendered.assign(holds=(rendered.ci_low <= 0.5) & (rendered.ci_high >= 0.5)).groupby("method").holds.all()
    return f"Intervals that hold 50, chance, on both rendered sets: {', '.join(f'`{name}`' for name in values.index if chance[name])}."


def on_elpv():
    "What is left on ELPV without its nearly all-bad blocks."
    left = pd.read_csv(tables / "elpv_without_bad_blocks_all.csv").set_index("method")
    reads = lambda name: percent(*left.loc[name, ["without nearly all-bad blocks", "ci_low", "ci_high"]])
    above = ", ".join(f"`{name}`" for name in left.index if left.ci_low[name] > 0.5) or "none"
    return (f"Most NOK cells of ELPV lie in a few nearly all-bad blocks. Without these, {left['NOK kept'].iloc[0]} NOK cells are left: `dfr` reads {reads('dfr')}, `autoencoder` {reads('autoencoder')}; "
            f"above 50 beyond the interval: {above} ([all detectors](figures/demo/tables/elpv_without_bad_blocks_all.csv)).")


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

readme = root / "README.md"
before, after = readme.read_text().split("<!-- central result -->\n")[::2]
mark = "<!-- central result -->\n"
readme.write_text(before + mark + central_result(pd.read_csv(tables / "metrics.csv", keep_default_na=False, na_values=[""])) + "\n" + mark + after)
