"""What goes wrong on machines, done on purpose to a small study: does it end, with the same tables,
and with nothing lost or counted twice?

Each fault runs `thesis-ad study` or `thesis-ad reproduce` in processes of its own, with a cache of its own, and is
compared with an undisturbed run: either the tables (and figures) are equal byte by byte, or the command stops with one
sentence and, repeated without the fault, gives those tables.
Writes faults.csv: fault, how often it struck, how the disturbed run ended, whether it was repeated, whether the final
tables are equal, finished evaluations in the cache, those of an undisturbed run, and half-written files that were left.
A row is written when its fault is over; `--only` renews the rows that it names. Mounting small disks needs root and the
moved clock libfaketime (Debian: apt-get install libfaketime); without them the row says so.

    python benchmarks/faults.py                      # about twenty minutes on two cores
    python benchmarks/faults.py --only disk_full
"""
import argparse
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
STUDY = """profile: smoke
datasets: [prefilter_a]
detectors: [gaussian, global_knn, padim]
seeds: [0, 1]
settings: {small: {size: [64, 64], replicates: 50}}
"""
TABLES = ("results", "summary", "ranks", "significance")
NOTEBOOK = "40_map_resolution"
LIMIT = 1200            # seconds until a run counts as hanging
workers = 2             # processes of a study's pool
rendered = None         # a folder of rendered images, so that not every run renders them again


class Run:
    "A study in a process group of its own, with a cache folder of its own."
    def __init__(self, folder, *arguments, name="out", environment=None):
        self.folder, self.out, self.cwd = Path(folder), Path(folder) / name, ROOT
        self.prepare()
        environment = os.environ | {"THESIS_AD_CACHE": str(self.cache), "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(self.cwd)} | (environment or {})
        self.log = open(self.folder / f"{name}.log", "w+")
        self.process = subprocess.Popen([sys.executable, "-c", "from thesis_ad.cli import main; main()",
            *map(str, arguments or self.arguments())], stdout=self.log, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True, cwd=self.cwd)

    def prepare(self):
        (self.folder / "study.yaml").write_text(STUDY)
        if rendered and not (self.cache / "data").exists(): shutil.copytree(rendered, self.cache / "data")

    def arguments(self): return "study", self.folder / "study.yaml", "-o", self.out, "--workers", workers

    @property
    def cache(self): return self.folder / "cache"

    def tables(self):
        return {name: (self.out / f"{name}.csv").read_bytes() for name in TABLES if (self.out / f"{name}.csv").exists()}

    def said(self): return (self.folder / f"{self.out.name}.log").read_text()

    def fits(self): return len(list((self.folder / "cache/evaluations").glob("*/seal.json")))

    def running(self): return self.process.poll() is None

    def wait_for(self, n, seconds=LIMIT):
        "Wait until `n` combinations are finished, or the run is over."
        ends = time.monotonic() + seconds
        while self.running() and self.fits() < n and time.monotonic() < ends: time.sleep(0.05)

    def workers(self):
        "Process numbers of the pool's workers."
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, ValueError):
                pid, group = int(path.parent.name), os.getpgid(int(path.parent.name))
                if group == self.process.pid and b"LokyProcess" in (path.parent / "cmdline").read_bytes():
                    found.append(pid)
        return found

    def kill(self):
        with contextlib.suppress(ProcessLookupError): os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def finish(self):
        "'finished', or what it says; a run that hangs is killed."
        try: code = self.process.wait(LIMIT)
        except subprocess.TimeoutExpired: self.kill(); return "hung"
        finally:
            with contextlib.suppress(ProcessLookupError): os.killpg(self.process.pid, signal.SIGKILL)
        if "Traceback" in self.said(): return "traceback"
        lines = [line for line in self.said().splitlines() if line.strip() and not line.startswith(" ")
            and "warn" not in line.lower()]
        why = ([line for line in lines if any(word in line for word in ("thesis-ad: ", "died", "killed", "failed"))]
            or lines)
        return "finished" if code == 0 else f"stopped: {why[-1] if why else code}"


class Reproduction(Run):
    "One evaluation notebook of profile smoke and its fits, in a clone of its own."
    def prepare(self):
        super().prepare()
        self.cwd = self.folder / "clone"
        if self.cwd.exists(): return
        for name in ("nbs/evaluation", "thesis_ad", "data_manifest"):
            shutil.copytree(ROOT / name, self.cwd / name,
                ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        shutil.copy2(ROOT / "settings.ini", self.cwd)

    def arguments(self):
        return ("reproduce", "--profile", "smoke", "--only", NOTEBOOK, "--set", "dfr_steps=8", "--set",
            "replicates=50", "--workers", 2)

    def tables(self):
        figures = self.folder / "clone/figures"
        return {path.relative_to(figures).as_posix(): path.read_bytes() for path in sorted(figures.rglob("*.*"))
            if path.is_file() and not path.name.startswith(".")}

    def kernels(self):
        "{process: processor seconds} of this run's kernels."
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError):
                if (b"ipykernel_launcher" not in (path / "cmdline").read_bytes()
                        or f"THESIS_AD_CACHE={self.cache}".encode() not in (path / "environ")
                        .read_bytes().split(b"\0")):
                    continue
                used = (path / "stat").read_text().rpartition(")")[2].split()
                found[int(path.name)] = (int(used[11]) + int(used[12])) / os.sysconf("SC_CLK_TCK")
        return found


# ---- the faults: each is given a folder, and returns (times it struck, how the run ended, the last run) ----

def undisturbed(folder):
    run = Run(folder)
    return 0, run.finish(), run

def run_killed(folder):
    "The whole command is killed after every second finished combination, and started again."
    times = 0
    for n in range(2, 20, 2):
        run = Run(folder)
        run.wait_for(n)
        if not run.running(): break
        run.kill(); times += 1
    run = Run(folder)
    return times, run.finish(), run

def workers_killed(folder):
    "A worker of the pool is killed every five seconds."
    run, times = Run(folder, "study", Path(folder) / "study.yaml", "-o", Path(folder) / "out", "--workers", 2), 0
    draw = random.Random(0)
    ends = time.monotonic() + LIMIT
    while run.running() and time.monotonic() < ends:
        time.sleep(5)
        if run.running() and times < 8 and (there := run.workers()):
            with contextlib.suppress(ProcessLookupError): os.kill(draw.choice(there), signal.SIGKILL); times += 1
    return times, run.finish(), run

def _damage(cache, how, draw):
    "Truncate, flip a bit of, or delete one file of the cache; whether there was one."
    files = [path for kind in ("detectors", "evaluations", "features") for path in (cache / kind).rglob("*")
        if path.is_file() and path.suffix != ".lock" and ".part" not in str(path)]
    if not files: return False
    path = draw.choice(files)
    with contextlib.suppress(OSError):
        if how == "delete": path.unlink(); return True
        data = bytearray(path.read_bytes())
        if not data: return False
        if how == "truncate": data = data[:len(data) // 2]
        else: data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        return True
    return False

def _damaged_under_way(folder, how):
    run, times, draw = Run(folder), 0, random.Random(1)
    ends = time.monotonic() + LIMIT
    while run.running() and time.monotonic() < ends: times += _damage(run.folder / "cache", how, draw); time.sleep(0.5)
    run.finish()
    for _ in range(30): times += _damage(run.folder / "cache", how, draw)
    run = Run(folder)                                   # reads what was damaged
    return times, run.finish(), run

def cache_truncated(folder): return _damaged_under_way(folder, "truncate")
def cache_bits_flipped(folder): return _damaged_under_way(folder, "flip")
def cache_files_deleted(folder): return _damaged_under_way(folder, "delete")

def cache_emptied(folder):
    "Half-way the whole cache is deleted."
    run = Run(folder)
    run.wait_for(3)
    shutil.rmtree(run.folder / "cache", ignore_errors=True)
    ended = run.finish()
    return 1, ended, run

def two_at_once(folder):
    "The same study twice at the same time, on one cache."
    first = Run(folder)
    second = Run(folder, "study", Path(folder) / "study.yaml", "-o", Path(folder) / "second", "--workers",
        workers, name="second")
    ended = [first.finish(), second.finish()]
    same = first.tables() == second.tables()
    return 2, ended[0] if ended[0] == ended[1] and same else f"{ended}, tables {'equal' if same else 'differ'}", first

def half_written_files_left(folder):
    "Leftovers of processes that no longer run lie in the cache; they are swept."
    cache = Path(folder) / "cache/detectors"
    cache.mkdir(parents=True)
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True,
        text=True).stdout.strip()
    for i in range(5): (cache / f".ab{i}.{socket.gethostname()}+{gone}+0123456{i}.part").mkdir()
    run = Run(folder)
    ended = run.finish()
    left = list((Path(folder) / "cache").rglob(".*.part*"))
    return 5, ended if not left else f"{len(left)} leftovers stayed", run

def file_times_moved(folder):
    "Every file of the cache gets a time of 1990 or of 2090 while the study runs, as on machines whose clocks disagree."
    run, times = Run(folder), 0
    ends = time.monotonic() + LIMIT
    while run.running() and time.monotonic() < ends:
        for path in (run.folder / "cache").rglob("*"):
            with contextlib.suppress(OSError): os.utime(path, (random.choice([631152000, 3786912000]),) * 2); times += 1
        time.sleep(1)
    return times, run.finish(), run

def clock_moved(folder):
    "The clock that all processes of the study see jumps ahead or back by up to two years every three seconds."
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None: raise PermissionError("the clock is moved by libfaketime, which is not installed")
    clock, times, draw = Path(folder) / "clock", 0, random.Random(3)
    clock.write_text("+0d\n")
    (Path(folder) / "sleep").mkdir()                # libfaketime does not know the call by which Python sleeps
    (Path(folder) / "sleep/sitecustomize.py").write_text(
        "import select, time\ntime.sleep = lambda seconds: select.select([], [], [], seconds) and None\n")
    run = Run(folder, environment={"PYTHONPATH": f"{ROOT}{os.pathsep}{Path(folder) / 'sleep'}",
        "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"})
    ends = time.monotonic() + LIMIT
    while run.running() and time.monotonic() < ends:
        time.sleep(3)
        clock.with_suffix(".new").write_text(f"{draw.randrange(-730, 730):+}d\n")
        os.replace(clock.with_suffix(".new"), clock)
        times += 1
    return times, run.finish(), run

@contextlib.contextmanager
def _mounted(path, *options):
    path.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", path], capture_output=True).returncode:
        raise PermissionError("mounting needs root")
    try: yield path
    finally: subprocess.run(["umount", "-l", path], check=True)

def disk_full(folder):
    "The cache lies on a disk on which its images have room and little else; then on one that is large enough."
    with _mounted(Path(folder) / "cache", "size=6m"):
        run = Run(folder)
        ended = run.finish()
        lines = [line for line in run.said().splitlines() if "no space left" in line.lower()]
    return (len(lines), f"{len(lines)} lines name the disk, the last: {lines[-1].replace(str(folder), 'FOLDER')}"
        if lines else f"{ended} (and no word of the disk)", run)

def results_disk_full(folder):
    "The folder for the tables lies on a disk of 8 kB; then on one that is large enough."
    with _mounted(Path(folder) / "out", "size=8k"):
        run = Run(folder)
        ended = run.finish()
    return 1, ended, run

def results_read_only(folder):
    "The folder for the tables lies on a disk that is mounted read-only."
    with _mounted(Path(folder) / "out", "size=1m", "ro"):
        run = Run(folder)
        ended = run.finish()
    return 1, ended, run

# ---- reproductions: a notebook with its figures ----

def reproduction_undisturbed(folder):
    run = Reproduction(folder)
    return 0, run.finish(), run

def kernel_killed(folder):
    """The notebook's kernel is killed before its first word,
    and the kernel that is started in its place in the midst of its work."""
    run, times = Reproduction(folder), 0
    ends = time.monotonic() + LIMIT
    while run.running() and times < 2 and time.monotonic() < ends:
        for process, used in run.kernels().items():
            if used > (0.05, 3)[times]:
                with contextlib.suppress(ProcessLookupError): os.kill(process, signal.SIGKILL); times += 1
                break
        time.sleep(0.02)
    return times, run.finish(), run

def two_reproductions_at_once(folder):
    "The same reproduction twice at the same time, in one clone, on one cache."
    first = Reproduction(folder)
    second = Reproduction(folder, name="second")
    ended = [first.finish(), second.finish()]
    return 2, ended[0] if ended[0] == ended[1] else " and ".join(ended), first

def figures_read_only(folder):
    "The folder for figures lies on a disk that is mounted read-only."
    with _mounted(Path(folder) / "clone_figures", "size=1m", "ro") as locked:
        first = Reproduction(folder, "--version", name="clone")                  # makes the clone
        first.finish()
        (first.cwd / "figures").symlink_to(locked)
        run = Reproduction(folder)
        ended = run.finish()
    (run.cwd / "figures").unlink()
    return 1, ended, run

STUDIES = (undisturbed, run_killed, workers_killed, cache_truncated, cache_bits_flipped, cache_files_deleted,
    cache_emptied, two_at_once, half_written_files_left, file_times_moved, clock_moved, disk_full, results_disk_full,
    results_read_only)
REPRODUCTIONS = (reproduction_undisturbed, kernel_killed, two_reproductions_at_once, figures_read_only)
FAULTS = {one.__name__: one for one in (*STUDIES, *REPRODUCTIONS)}


# ---- on a cluster ----

class Cluster:
    "Scheduler and three workers; what is killed is started again, as a service manager or Slurm would."
    def __init__(self, folder):
        with socket.socket() as probe: probe.bind(("127.0.0.1", 0)); self.port = probe.getsockname()[1]
        self.folder = Path(folder)
        self.environment = os.environ | {"THESIS_AD_CACHE": str(Path(folder) / "cache"), "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT)}
        self.processes = {name: self.start(name) for name in ("scheduler", "worker0", "worker1", "worker2")}

    def start(self, name):
        place = f"tcp://127.0.0.1:{self.port}"
        arguments = ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(self.port),
            "--dashboard-address", "127.0.0.1:0"] if name == "scheduler" else ["distributed.cli.dask_worker", place,
            "--nthreads", "1", "--no-nanny", "--local-directory", str(self.folder / "dask")]
        return subprocess.Popen([sys.executable, "-m", *arguments], env=self.environment, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, cwd=self.folder)

    def keep_up(self):
        for name, process in self.processes.items():
            if process.poll() is not None: self.processes[name] = self.start(name)

    def kill(self, name):
        self.processes[name].kill()
        self.processes[name].wait()

    def close(self):
        for process in self.processes.values(): process.kill(); process.wait()

def _on_cluster(folder, victims, pause):
    cluster, times, draw = Cluster(folder), 0, random.Random(2)
    try:
        while socket.socket().connect_ex(("127.0.0.1", cluster.port)): time.sleep(0.2)
        time.sleep(3)
        run = Run(folder, "study", Path(folder) / "study.yaml", "-o", Path(folder) / "out", "--cluster",
            f"tcp://127.0.0.1:{cluster.port}")
        run.wait_for(1)
        struck, ends = time.monotonic(), time.monotonic() + LIMIT
        while run.running() and time.monotonic() < ends:
            cluster.keep_up()
            if time.monotonic() > struck + pause and times < 8:
                cluster.kill(draw.choice(victims)); times += 1; struck = time.monotonic()
            time.sleep(0.2)
        return times, run.finish(), run
    finally: cluster.close()

def cluster_undisturbed(folder): return _on_cluster(folder, ["worker0"], LIMIT)
def cluster_workers_killed(folder): return _on_cluster(folder, ["worker0", "worker1", "worker2"], 5)
def cluster_scheduler_restarted(folder): return _on_cluster(folder, ["scheduler"], 20)

with contextlib.suppress(ImportError):
    import distributed  # noqa: F401
    FAULTS |= {one.__name__: one for one in (cluster_undisturbed, cluster_workers_killed, cluster_scheduler_restarted)}


COLUMNS = ["fault", "struck", "ended", "repeated", "tables_equal", "evaluations",
    "evaluations_undisturbed", "leftovers"]

def strike(name, expected):
    """The row of a fault, and its last run; `expected` is (tables, evaluations) of the undisturbed run,
    or None for that one itself."""
    with tempfile.TemporaryDirectory(prefix="faults_") as folder:
        try: times, ended, run = FAULTS[name](folder)
        except PermissionError as error: return dict(zip(COLUMNS, (name, 0, f"not injected: {error}"))), None
        ended, before = ended.replace(str(Path(folder)), "FOLDER"), run.said()
        if repeated := ended != "finished":
            run = type(run)(folder)
            if (again := run.finish()) != "finished": ended += f"; repeated: {again}"
        found, fits = run.tables(), run.fits()
        tables, wanted = expected or (found, fits)
        left = len(list(run.cache.rglob(".*.part*")))
        row = dict(zip(COLUMNS, (name, times, ended, repeated, bool(found) and found == tables, fits, wanted, left)))
        if not row["tables_equal"] or "traceback" in ended or "Warning" in before: print(before + run.said())
        global rendered
        if rendered is None:
            rendered = shutil.copytree(run.cache / "data", Path(tempfile.mkdtemp(prefix="faults_data_")) / "data")
        return row, (found, fits)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(FAULTS))
    parser.add_argument("--workers", type=int, default=workers,
        help="processes of a study whose workers are not the ones to be killed; 1 is half the work")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    globals()["workers"] = options.workers
    rows, expected = {}, {}
    if options.only and options.out.exists():
        rows = {row["fault"]: row for row in pd.read_csv(options.out).to_dict("records")}
    for name in dict.fromkeys(["undisturbed", *(["reproduction_undisturbed"] if {*(options.only or FAULTS)} & {
            one.__name__ for one in REPRODUCTIONS} else []), *(options.only or FAULTS)]):
        start, kind = time.monotonic(), FAULTS[name] in REPRODUCTIONS
        rows[name], found = strike(name, expected.get(kind))
        expected.setdefault(kind, found)
        print(", ".join(f"{key} {value}" for key, value in rows[name].items()),
            f"{time.monotonic() - start:.0f} s", flush=True)
        pd.DataFrame([rows[one] for one in FAULTS if one in rows], columns=COLUMNS).to_csv(options.out, index=False)
    shutil.rmtree(rendered.parent, ignore_errors=True)
    sys.exit(0 if all(row.get("tables_equal", True) for row in rows.values()) else 1)


if __name__ == "__main__": main()
