"""Commands and notebook kernels in processes of their own, forked from one that has imported PyTorch and the others.

A Python that starts from nothing takes five to eight processor seconds for these imports, most of what a small fit
takes. The process that forks has nothing of `thesis_ad`, so a command may belong to another clone. Tests that need a
real start (a kill, an installed package) call `subprocess` themselves.
"""
import atexit
import functools
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

LIBRARIES = ("torch", "torchvision", "timm", "cv2", "scipy.stats", "sklearn", "pandas", "typer", "joblib", "tqdm",
    "yaml", "ipykernel.kernelapp", "fastcore.all", "pyarrow", "matplotlib.pyplot", "seaborn")
AT_IMPORT = ("OMP_NUM_THREADS", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")


# ---- in a test ----

@functools.cache
def place():
    "The socket of the process that forks; the process ends with the tests."
    folder = tempfile.mkdtemp(prefix="forked_")
    server = subprocess.Popen([sys.executable, __file__, "serve", f"{folder}/socket"], stdout=subprocess.PIPE)
    atexit.register(lambda: (server.kill(), shutil.rmtree(folder, ignore_errors=True)))
    assert server.stdout.readline() == b"ready\n", "the process that forks the commands did not start"
    return f"{folder}/socket"


def thesis_ad(*arguments, cwd=None, **environment):
    "The `CompletedProcess` of `thesis-ad ARGUMENTS`, with stdout and stderr as text."
    env = os.environ | {name: str(value) for name, value in environment.items()}
    assert all(env.get(name) == os.environ.get(name) for name in AT_IMPORT), "start this one with subprocess"
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        request = {"arguments": list(map(str, arguments)), "cwd": str(cwd or Path.cwd()), "env": env, "out": str(out),
            "err": str(err)}
        answer = ask(place(), request)
        return subprocess.CompletedProcess(request["arguments"], int(answer or -signal.SIGKILL),
            out.read_text(errors="replace"), err.read_text(errors="replace"))


@functools.cache
def kernels():
    "Environment with which Jupyter takes its `python3` kernels from the process that forks."
    folder = Path(place()).parent
    spec = folder / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps({"display_name": "Python 3", "language": "python",
        "argv": [sys.executable, "-S", __file__, "kernel", place(), "-f", "{connection_file}"]}))
    return {"JUPYTER_PATH": str(folder)}


# ---- between the processes ----

def ask(where, request):
    "What the forked process said before its end; nothing where it was killed."
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(where)
        line.sendall(json.dumps(request).encode() + b"\n")
        with line.makefile() as file: return file.read()


def end_with(line):
    "End this process when the other side of `line` does."
    line.recv(1)
    os._exit(1)


def become(request):
    "In the forked process: what a new one would have found."
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for number, (path, flags) in enumerate(((os.devnull, os.O_RDONLY), (request["out"], os.O_WRONLY | os.O_CREAT),
            (request["err"], os.O_WRONLY | os.O_CREAT))):
        os.dup2(os.open(path, flags, 0o600), number)
    if "MPLBACKEND" in request["env"]:          # matplotlib has read that of the process that forks
        sys.modules["matplotlib"].rcParams["backend"] = request["env"]["MPLBACKEND"]
    sys.stdin = open(0, closefd=False)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.path[:0] = [entry for entry in request["env"].get("PYTHONPATH", "").split(os.pathsep) if entry]


def work(request, line):
    "In the forked process: the command or the kernel."
    become(request)
    if "kernel" in request:
        threading.Thread(target=end_with, args=[line], daemon=True).start()
        sys.argv = ["ipykernel_launcher", *request["kernel"]]
        return importlib.import_module("ipykernel.kernelapp").launch_new_instance()
    sys.argv, code = ["thesis-ad", *request["arguments"]], 0
    try: importlib.import_module("thesis_ad.cli").main()
    except SystemExit as end: code = end.code or 0
    except Exception: traceback.print_exc(); code = 1
    line.sendall(str(code).encode())
    sys.exit(code)


def serve(where):
    for name in LIBRARIES: importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)                       # nobody waits for those that are forked
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(where)
        door.listen(64)
        print("ready", flush=True)
        while True:
            line, _ = door.accept()
            with line.makefile() as file: request = json.loads(file.readline())
            if not os.fork():
                door.close()
                return work(request, line)
            line.close()


def kernel(where, *arguments):
    "What Jupyter has started in place of a kernel: it lasts as long as the forked one."
    signal.signal(signal.SIGINT, signal.SIG_IGN)                        # Jupyter's, at the end
    env = {name: value for name, value in os.environ.items() if name != "JPY_PARENT_PID"}
    ask(where, {"kernel": arguments, "cwd": os.getcwd(), "env": env, "out": os.devnull, "err": os.devnull})


if __name__ == "__main__":
    {"serve": serve, "kernel": kernel}[sys.argv[1]](*sys.argv[2:])
