"""Faults of the line at full size: a controller that fails, a ledger that is tampered with, a writer that is killed.

    python benchmarks/line_faults.py                     # 1,000 decisions a controller, 1,000 tamperings, 100 kills
    python benchmarks/line_faults.py --decisions 60 --tamperings 100 --kills 5

The faults are those of tests/test_plc.py and tests/test_ledger.py, only more of them. Decisions: random ones go to a
simulated controller in each of its modes; a wrong pass is a pass that it read for a part that was not OK; `longest_ms`
is the longest time that a decision kept its caller.
Tamperings: random changes of a ledger of 30 entries or of its head.
Kills: a writer is killed with SIGKILL at a random moment;
    whatever it had acknowledged has to be there and verify. Writes
benchmarks/line_faults.csv.
The longest time is that of the whole machine: a thread that gets no processor is late as well.
"""
import argparse
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from test_ledger import kill_and_look, ledger_to_tamper_with, tampered  # noqa: E402
from test_plc import late_passes, wrong_passes  # noqa: E402

from thesis_ad.inspection.plc import MODES  # noqa: E402


def decisions(count):
    "A row for each mode and confirmation of a controller."
    for confirm in ("acknowledged", "answered"):
        for mode in MODES:
            delivered, wrong, longest = wrong_passes(mode, confirm, count)
            yield {"fault": f"controller {mode}", "asked": confirm, "count": count, "wrong": wrong,
                "detail": f"{delivered} delivered", "longest_ms": round(1000 * longest, 1)}
    late = len(late_passes(max(1, count // 10)))
    yield {"fault": "controller slow, without numbers", "asked": "answered", "count": max(1, count // 10),
        "wrong": late, "detail": "passes taken for the next part", "longest_ms": ""}


def tamperings(count, folder):
    "One row: how many changes `verify` did not find."
    original, old = ledger_to_tamper_with(folder)
    kinds, unfound = Counter(), 0
    for seed in range(count):
        place = folder / str(seed)
        place.mkdir()
        what, report = tampered(original, old, place, seed)
        kinds[what] += 1
        unfound += report.ok
        shutil.rmtree(place)
    yield {"fault": "tampered ledger", "asked": "verify", "count": count, "wrong": unfound,
        "detail": f"{len(kinds)} kinds", "longest_ms": ""}


def kills(count, folder):
    "One row: after how many kills an acknowledged entry was lost or the ledger did not verify."
    draw, lost, notes = random.Random(7), 0, 0
    for _ in range(count):
        try: notes += bool(kill_and_look(folder / "line.db", draw))
        except AssertionError as error:
            lost += 1
            print(f"killed writer: {error}", file=sys.stderr)
    yield {"fault": "writer killed", "asked": "verify", "count": count, "wrong": lost,
        "detail": f"{notes} in the middle of an entry", "longest_ms": ""}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decisions", type=int, default=1000)
    parser.add_argument("--tamperings", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        for part in (decisions(options.decisions), tamperings(options.tamperings, Path(first)),
                kills(options.kills, Path(second))):
            for row in part:
                rows.append(row | {"load": round(os.getloadavg()[0], 1)})
                print(*row.values(), sep=", ", flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(options.out, index=False, lineterminator="\n")
    if table.wrong.any(): sys.exit("a fault was not caught")


if __name__ == "__main__": main()
