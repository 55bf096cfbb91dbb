"""Run every chapter and compare what its cells print with the committed outputs.

    python .ci/chapters.py                       # all chapters and pages of the book, two at a time
    python .ci/chapters.py --update nbs/42*      # put the new outputs of these notebooks in place of the committed ones

An output is stale when its words or whole numbers differ: '400 steps' where the cell now says '800 steps'. Numbers with
a decimal point may differ, because they depend on the processor, and so may a cell with the tag `varies`, whose output
depends on the clock or on the machine.
"""
import argparse
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from execnb.shell import CaptureShell
from fastcore.parallel import parallel
from fastcore.xtras import working_directory
from nbdev.config import get_config
from nbdev.process import NBProcessor

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = ("nbs/*.ipynb", "nbs/book/*.ipynb")
SKIPPED = "skip_exec: true"
MAY_DIFFER = re.compile(
    r"\x1b\[[0-9;]*m|<style.*?</style>|<[^<>]*>|0x[0-9a-f]+|/tmp/\S+|\s+|[─━-]+|"
    r"[-+]?\d*\.\d+(e[-+]?\d+)?|[-+]?\d+\.(?!\w)|[-+]?\d+\.?e[-+]?\d+|[-+]?\bnan\b", re.DOTALL)


def has_widget(output): return any("widget" in kind for kind in output.get("data", {}))


def has_image(outputs):
    "Whether a cell shows a figure, which only Jupyter can make; what it prints is compared all the same."
    return any(kind.startswith("image/") for one in outputs for kind in one.get("data", {}))


def words(outputs, printed=False):
    "What a reader reads in a cell's outputs (only what is `printed`), without what depends on the processor."
    found = []
    for output in outputs:
        data = output.get("data", {})
        text = output.get("text") or ("" if printed else data.get("text/html") or data.get("text/plain")) or ""
        if output.get("name") != "stderr": found.append("".join(text))
    return MAY_DIFFER.sub(" ", "\n".join(found)).split()


def updated(old, new):
    "New outputs of a cell; figures stay as they are committed."
    return [one for one in new if "text" in one] + [one for one in old if "text" not in one] if has_image(old) else new


def first_difference(old, new):
    "The place where two lists of words part, as 'old text' not 'new text'."
    at = next((i for i, (a, b) in enumerate(zip(old, new)) if a != b), min(len(old), len(new)))
    return " ".join(new[max(0, at - 4):at + 4]), " ".join(old[max(0, at - 4):at + 4])


def run(path, update=False):
    "(seconds, sentences about failed and stale cells) of a notebook."
    sys.path.insert(0, str(ROOT))
    os.environ["IN_TEST"] = "1"
    committed, executed = nbformat.read(path, 4), NBProcessor(path, process=True).nb
    here, start, shell = sys.modules["__main__"], time.perf_counter(), CaptureShell(path)
    for cell in executed.cells:                 # the shell would drop what such a cell prints
        if cell.source.rstrip().endswith(";"): cell.source += "\nNone"
    def left_out(cell): return cell.cell_type != "code" or cell.directives_.get("eval:", [""])[0] == "false"
    try:
        with working_directory(path.parent): shell.run_all(executed, exc_stop=True, preproc=left_out)
    except Exception: return time.perf_counter() - start, [shell.prettytb(fname=path)]
    finally:
        sys.modules["__main__"] = here          # the shell puts the notebook in its place
        if "joblib.externals.loky" in sys.modules:              # its idle processes would be waited for at the end
            sys.modules["joblib.externals.loky"].get_reusable_executor(reuse=True).shutdown(kill_workers=True)
    stale, name = [], path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    for number, (cell, done) in enumerate(zip(committed.cells, executed.cells)):
        if cell.cell_type != "code": continue
        new = [one for one in nbformat.from_dict(done.get("outputs", [])) if not has_widget(one)]
        old, fresh = (words(outputs, has_image(cell.outputs)) for outputs in (cell.outputs, new))
        if "varies" in cell.metadata.get("tags", []) or old == fresh: continue
        now, before = first_difference(old, fresh)
        stale.append(f"{name}, cell {number}: it prints '… {now} …', and the committed output says '… {before} …'")
        if update: cell.outputs = updated(cell.outputs, new)
    if update and stale: nbformat.write(committed, path)
    return time.perf_counter() - start, stale


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", type=Path, nargs="*", help="default: all chapters and all pages of the book")
    parser.add_argument("--update", action="store_true", help="write new outputs where the committed ones are stale")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timing", action="store_true", help="say how long each notebook took")
    options = parser.parse_args()
    get_config()
    paths = ([path.resolve() for path in options.notebooks]
        or sorted(path for pattern in CHAPTERS for path in ROOT.glob(pattern)))
    paths = [path for path in paths if SKIPPED not in path.read_text(encoding="utf-8")]
    results = parallel(run, paths, update=options.update, n_workers=min(options.workers, len(paths)),
        progress=sys.stderr.isatty())
    for seconds, path in sorted(((taken, path) for path, (taken, _) in zip(paths, results)), reverse=True):
        if options.timing: print(f"{seconds:6.1f} s  {path.name}")
    problems = [one for _, found in results for one in found]
    for one in problems: print(one)
    print(f"{len(paths)} notebooks run, {len(problems)} cells {'updated' if options.update else 'failed or stale'}")
    sys.exit(bool(problems) and not options.update)


if __name__ == "__main__": main()
