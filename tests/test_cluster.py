"""Scheduler and workers as processes of their own on this machine: the same results as here,
and one sentence for whatever is wrong."""
import os
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest
import slow_calls
from forked import kernels, thesis_ad

from thesis_ad import work
from thesis_ad.settings import UserError, cache_dir, repository_root
from thesis_ad.work import Failed, check_worker, each, on_cluster, versions

pytest.importorskip("distributed", reason="the extra cluster is not installed")
ROOT = repository_root()


class Processes:
    "A Dask scheduler and workers, each a process."
    def __init__(self, folder, **environment):
        with socket.socket() as probe: probe.bind(("127.0.0.1", 0)); self.port = probe.getsockname()[1]
        self.address, self.folder, self.running, self.scheduler = f"tcp://127.0.0.1:{self.port}", folder, [], None
        self.workers = []
        self.environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"} | environment
        self.start_scheduler()

    def start(self, *arguments, **environment):
        process = subprocess.Popen([sys.executable, "-m", *map(str, arguments)], env=self.environment | environment,
            cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        self.running.append(process)
        return process

    def start_scheduler(self):
        self.scheduler = self.start("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", self.port,
            "--dashboard-address", "127.0.0.1:0")
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0: return
            time.sleep(0.1)

    def start_worker(self, *arguments, **environment):
        self.workers.append(self.start("distributed.cli.dask_worker", self.address, "--nthreads", "1", "--no-nanny",
            "--local-directory", self.folder / "workers", *arguments, **environment))

    def kill(self, process):
        process.kill()
        process.wait()

    def close(self):
        for process in self.running: process.poll() is None and self.kill(process)


@pytest.fixture
def processes(tmp_path):
    there = Processes(tmp_path)
    yield there
    there.close()


@pytest.fixture
def three(processes):
    for _ in range(3): processes.start_worker()
    return processes


def full(cluster, n):
    while len(cluster.workers()) < n: time.sleep(0.1)


def test_the_same_list_gives_the_same_results_and_errors_are_sentences(three):
    said = []
    with on_cluster(three.address, say=said.append) as cluster:
        full(cluster, 3)
        assert dict(each(slow_calls.square, range(40))) == {n: n * n for n in range(40)}
        assert dict(each(slow_calls.odd_fails, [2, 3], keep_going=True)) == {0: 2, 1: Failed("3 is odd")}
        with pytest.raises(UserError, match="^3 is odd$"): list(each(slow_calls.odd_fails, [2, 3]))
        assert list(each(slow_calls.square, [])) == []
    assert re.search(r"^cluster: \d workers? at tcp://127\.0\.0\.1:\d+, dashboard http://127\.0\.0\.1:\d+/status$",
        said[0])
    assert dict(each(slow_calls.square, [3])) == {0: 9}
    assert not [path for path in cache_dir().iterdir() if path.name.startswith(".shared")]


def test_killed_workers_lose_nothing_and_nothing_is_counted_twice(three):
    with on_cluster(three.address) as cluster:
        full(cluster, 3)
        results = each(slow_calls.noted, [(n, str(three.folder), 0.2) for n in range(30)])
        found = [next(results) for _ in range(3)]
        for victim in three.workers[:2]: three.kill(victim)
        three.start_worker()
        found += list(results)
    assert sorted(found) == [(n, n) for n in range(30)]
    calls = len(list(three.folder.glob("*.*.*")))
    assert 30 <= calls <= 36, f"{calls} calls of 30 things to do, two workers killed"


def test_a_call_that_kills_its_workers_is_given_up_and_the_others_are_finished(three):
    for _ in range(3): three.start_worker()
    with on_cluster(three.address) as cluster:
        full(cluster, 6)
        results = dict(each(slow_calls.three_kills, range(8), keep_going=True))
    assert results.pop(3) == Failed("its workers died 3 times; is there enough memory?")
    assert results == {n: n for n in range(8) if n != 3}


def test_a_restarted_scheduler_gets_what_is_left(three):
    with on_cluster(three.address, patience=60):
        results = each(slow_calls.noted, [(n, str(three.folder), 0.2) for n in range(20)])
        found = [next(results) for _ in range(3)]
        three.kill(three.scheduler)
        for worker in three.workers: three.kill(worker)
        three.start_scheduler()
        for _ in range(2): three.start_worker()
        found += list(results)
    assert sorted(found) == [(n, n) for n in range(20)]


def test_a_scheduler_that_stays_away_is_one_sentence(three):
    with on_cluster(three.address) as cluster:
        cluster.patience = 2
        results = each(slow_calls.noted, [(n, str(three.folder), 0.2) for n in range(20)])
        next(results)
        three.kill(three.scheduler)
        with pytest.raises(UserError,
                match="was lost and has not come back in 2 s; what is finished is kept|has had no worker for 2 s"):
            list(results)


# ---- one sentence each ----

def refused(place, match, **options):
    with pytest.raises(UserError, match=match) as error:
        with on_cluster(place, **options): pass
    assert "\n" not in str(error.value) and work._open is None


def test_nobody_there():
    with socket.socket() as probe: probe.bind(("127.0.0.1", 0)); port = probe.getsockname()[1]
    refused(f"tcp://127.0.0.1:{port}", "no Dask scheduler answers at .*; start one with: dask scheduler")


def test_no_worker_there(processes):
    refused(processes.address, "has had no worker for 1 s; start some with: dask worker", patience=1)


def test_a_worker_with_another_version_of_the_library(processes, tmp_path):
    shutil.copytree(ROOT / "thesis_ad", tmp_path / "other/thesis_ad", ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "other/thesis_ad/settings.py", "a") as file: file.write("# another version\n")
    processes.start_worker(PYTHONPATH=str(tmp_path / "other"))
    refused(processes.address, r"worker tcp://\S+ has thesis_ad 0\S+ \(\w+\) where this machine has")


def test_a_worker_without_the_library(processes, tmp_path):
    (tmp_path / "thesis_ad").mkdir()
    (tmp_path / "thesis_ad/__init__.py").write_text("")
    processes.start_worker(PYTHONPATH=str(tmp_path))
    refused(processes.address, r"worker tcp://\S+ (cannot import|is not ready)")


def test_a_worker_that_does_not_share_the_cache(processes, tmp_path):
    processes.start_worker(THESIS_AD_CACHE=str(tmp_path / "its own"))
    refused(processes.address, r"worker tcp://\S+ does not see the caller's cache folder in .*its own; .*--carry")


def test_a_worker_without_weights(processes):
    processes.start_worker()
    refused(processes.address, r"worker tcp://\S+ is not ready: no weights of resnet50", ready=slow_calls.not_ready)


def test_a_worker_with_several_threads(processes):
    processes.start("distributed.cli.dask_worker", processes.address, "--nthreads", "2", "--no-nanny")
    refused(processes.address, r"has 2 threads, .*--nthreads 1")


def test_a_worker_that_joins_later_is_checked_too(processes, tmp_path):
    processes.start_worker()
    with on_cluster(processes.address) as cluster:
        processes.start_worker(THESIS_AD_CACHE=str(tmp_path / "its own"))
        full(cluster, 2)
        with pytest.raises(UserError, match="a worker that joined later does not see the caller's cache folder"):
            list(each(slow_calls.square, range(60)))


def test_slurm_where_there_is_none(monkeypatch):
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    refused("slurm:4", "there is no sbatch on this machine")


def test_slurm_asks_for_one_thread_a_job():
    "The script that Slurm would be given; there is no Slurm to give it to."
    jobqueue = pytest.importorskip("dask_jobqueue")
    script = jobqueue.SLURMCluster(cores=1, processes=1, memory="6 GB",
        scheduler_options={"dashboard_address": ":0"}, n_workers=0)
    try:
        assert "--cpus-per-task=1" in script.job_script() and "--mem=6G" in script.job_script()
        assert "--nthreads 1" in script.job_script()
    finally: script.close()


def test_versions_are_compared_by_name():
    assert check_worker(work.Setup(versions() | {"torch": "0.1"}, "")).startswith("has torch ")


# ---- whole commands ----

def command(clone, cache, *arguments):
    return thesis_ad(*arguments, cwd=clone, PYTHONPATH=clone, THESIS_AD_CACHE=cache, **kernels())


ONLY = () if os.environ.get("THESIS_AD_FULL") else ("--only", "40_map_resolution")


def test_reproduction_on_three_workers_gives_the_tables_of_one_process(tmp_path):
    "One notebook of profile smoke and its fits; all of them with THESIS_AD_FULL=1."
    pytest.importorskip("papermill")
    clone = tmp_path / "clone"
    for name in ("nbs", "thesis_ad", "data_manifest"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    shutil.copy2(ROOT / "settings.ini", clone)
    def tables():
        return {path.relative_to(clone / "figures").as_posix(): path.read_bytes()
            for path in sorted((clone / "figures").rglob("*")) if path.is_file()}
    alone = command(clone, tmp_path / "one", "reproduce", "--profile", "smoke", "--workers", 1, *ONLY)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    expected = tables()
    for name in ("figures", "runs"): shutil.rmtree(clone / name)
    shutil.copytree(tmp_path / "one/data", tmp_path / "three/data")               # rendered once
    processes = Processes(tmp_path, PYTHONPATH=str(clone), THESIS_AD_CACHE=str(tmp_path / "three"))
    try:
        for _ in range(3): processes.start_worker()
        time.sleep(3)
        there = command(clone, tmp_path / "three", "reproduce", "--profile", "smoke", "--cluster",
            processes.address, *ONLY)
    finally: processes.close()
    assert there.returncode == 0 and "dashboard http" in there.stdout, there.stdout + there.stderr
    found = tables()
    assert set(found) == set(expected) and [name for name in found if found[name] != expected[name]] == []
    assert any((tmp_path / "three").rglob("bundle.json")) and not [*(tmp_path / "three").rglob(".*.part*")]


STUDY = ("profile: smoke\ndatasets: [{folder: parts, categories: [bottle]}]\ndetectors: [padim, global_knn]\nseeds: "
    "[0, 1]\nsettings: {small: {size: [64, 64], replicates: 50}}\n")


def test_a_study_on_a_cluster_gives_the_tables_of_one_process(mvtec_folder, tmp_path):
    "With a cache that the workers share, and with one of their own each (`--carry`)."
    (tmp_path / "parts").mkdir()
    mvtec_folder.rename(tmp_path / "parts/bottle")
    (tmp_path / "study.yaml").write_text(STUDY)
    study = ("study", tmp_path / "study.yaml", "-o")
    alone = command(ROOT, tmp_path / "one", *study, tmp_path / "alone", "--workers", 1)
    assert alone.returncode == 0, alone.stderr
    for carry in (False, True):
        place = tmp_path / ("carried" if carry else "shared")
        processes = Processes(tmp_path, PYTHONPATH=str(ROOT))
        try:
            for i in range(2):
                processes.start_worker(THESIS_AD_CACHE=str(tmp_path / f"worker{i}" if carry else place))
            time.sleep(3)
            there = command(ROOT, place, *study, place / "tables", "--cluster", processes.address, *["--carry"] * carry)
        finally: processes.close()
        assert there.returncode == 0, there.stdout + there.stderr
        for name in ("results", "summary", "ranks", "significance"):
            assert (tmp_path / f"alone/{name}.csv").read_bytes() == (place / f"tables/{name}.csv").read_bytes(), name
        assert len([*(place / "detectors").glob("*/bundle")]) == 3
        assert carry == any(tmp_path.glob("worker*/detectors/*/bundle"))


def test_a_cluster_of_this_machine(mvtec_folder, tmp_path):
    (tmp_path / "parts").mkdir()
    mvtec_folder.rename(tmp_path / "parts/bottle")
    (tmp_path / "study.yaml").write_text(STUDY.replace("[0, 1]", "[0]"))
    said = command(ROOT, tmp_path / "cache", "study", tmp_path / "study.yaml", "--cluster", "local:2")
    assert said.returncode == 0 and "cluster: 2 workers at tcp://127.0.0.1:" in said.stdout, said.stdout + said.stderr
    assert "warning" not in said.stderr.lower() and "Traceback" not in said.stderr, said.stderr


def test_a_wrong_place_is_one_sentence(tmp_path):
    for arguments, words in ((("reproduce", "--profile", "smoke", "--cluster", "host"),
            "tcp://HOST:PORT, local:N or slurm:N"),):
        said = command(ROOT, tmp_path, *arguments)
        assert said.returncode == 2 and words in said.stderr and len(said.stderr.strip().splitlines()) == 1, said.stderr
