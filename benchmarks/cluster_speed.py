"""How much faster is a reproduction on two workers of a cluster than on one, and are its tables the same?

    python benchmarks/cluster_speed.py --workers 1 2             # writes cluster_speed.csv;
    about five minutes on two free cores

Each run is `thesis-ad reproduce --profile smoke --only 50_detectors --cluster local:N` in a clone and with a cache of
its own: a fit of every registered detector, then one notebook. Columns: workers, wall_s, cpu_s (of the command and all
its workers), busy (processes that wanted to run when the run began
and ended, other programs included; above the number of cores, the wall time says little), cores, tables_equal (to those
of the first run, byte by byte).
"""
import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]


def used():
    "Processor seconds of all children that have ended."
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def run(workers, notebook):
    "(row, tables and figures) of one run."
    with tempfile.TemporaryDirectory(prefix="speed_") as folder:
        clone = Path(folder) / "clone"
        for name in ("nbs/evaluation", "thesis_ad", "data_manifest"):
            shutil.copytree(ROOT / name, clone / name,
                ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        shutil.copy2(ROOT / "settings.ini", clone)
        environment = os.environ | {"THESIS_AD_CACHE": str(Path(folder) / "cache"), "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(clone)}
        wall, cpu, busy = time.monotonic(), used(), os.getloadavg()[0]
        command = [sys.executable, "-c", "from thesis_ad.cli import main; main()", "reproduce", "--profile", "smoke",
            "--only", notebook, "--cluster", f"local:{workers}"]
        subprocess.run(command, cwd=clone, env=environment, check=True)
        row = {"workers": workers, "wall_s": round(time.monotonic() - wall), "cpu_s": round(used() - cpu),
            "busy": f"{busy:.1f} to {os.getloadavg()[0]:.1f}", "cores": os.cpu_count()}
        return (row, {path.relative_to(clone).as_posix(): path.read_bytes()
            for path in sorted((clone / "figures").rglob("*.*")) if path.is_file() and not path.name.startswith(".")})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--notebook", default="50_detectors")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    options, rows, first = parser.parse_args(), [], None
    for workers in options.workers:
        row, found = run(workers, options.notebook)
        first = first or found
        rows.append(row | {"tables_equal": found == first})
        print(rows[-1], flush=True)
        pd.DataFrame(rows).to_csv(options.out, index=False)


if __name__ == "__main__": main()
