"""`thesis_ad(...)`: a command of the library in a process of its own, as `subprocess.run` would start it.

The process is forked from one that has already imported PyTorch and the other libraries, but nothing of `thesis_ad`:
a Python that starts from nothing takes five to eight processor seconds for these imports, which is most of what a small
fit takes. Tests that need a real start (a kill, a package without its repository) call `subprocess` themselves.
"""
import atexit
import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

LIBRARIES = ("torch", "torchvision", "timm", "cv2", "scipy.stats", "sklearn", "pandas", "matplotlib", "typer", "joblib",
    "tqdm", "yaml")
AT_IMPORT = ("OMP_NUM_THREADS", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")  # read when a library is imported
server = None


def start():
    "The process that forks; one for each process of the tests."
    global server
    if server is None or server.poll() is not None:
        server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        atexit.register(stop)
    return server


def stop():
    server.stdin.close()
    server.wait(20)


def thesis_ad(*arguments, cwd=None, **environment):
    "A `CompletedProcess` of `thesis-ad ARGUMENTS` with text of stdout and stderr."
    env = os.environ | {name: str(value) for name, value in environment.items()}
    assert all(env.get(name) == os.environ.get(name) for name in AT_IMPORT), "start this one with subprocess"
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        request = {"arguments": list(map(str, arguments)), "cwd": str(cwd or Path.cwd()), "env": env, "out": str(out),
            "err": str(err)}
        process = start()
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, "the process that forks the commands has ended"
        return subprocess.CompletedProcess(request["arguments"], int(answer), out.read_text(errors="replace"),
            err.read_text(errors="replace"))


def become(request):
    "In the forked process: what a new one would have found."
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for number, (path, flags) in enumerate(((os.devnull, os.O_RDONLY), (request["out"], os.O_WRONLY | os.O_CREAT),
            (request["err"], os.O_WRONLY | os.O_CREAT))):
        os.dup2(os.open(path, flags, 0o600), number)
    sys.stdin = open(0, closefd=False)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.path[:0] = [place for place in request["env"].get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.argv = ["thesis-ad", *request["arguments"]]


def serve():
    for name in LIBRARIES: importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            become(request)
            from thesis_ad.cli import main
            return main()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt): serve()
