"""Calls that the workers of tests/test_cluster.py make."""
import os
import time
from pathlib import Path

from thesis_ad.settings import UserError


def square(n):
    time.sleep(0.05)
    return n * n


def noted(item):
    "Write down that the call was made, take a while, and return its number."
    number, folder, seconds = item
    with open(Path(folder) / f"{number}.{os.getpid()}.{time.monotonic_ns()}", "w"): pass
    time.sleep(seconds)
    return number


def odd_fails(n):
    if n % 2: raise UserError(f"{n} is odd")
    return n


def three_kills(n):
    if n == 3: os._exit(9)
    time.sleep(0.2)
    return n


def not_ready(): raise UserError("no weights of resnet50 here; three ways are named")
