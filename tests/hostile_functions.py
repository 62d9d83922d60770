"""A job of healthy trials and of trials that do harm, each in a way of its own: the parameter `kind` names it.

Copied beside a sweep file by `test_hostile_functions`: it imports nothing from the project, like a user's own module.
"""

import contextlib
import ctypes
import os
import re
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

HEALTHY = tuple(f"healthy-{k:02d}" for k in range(39))


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no text")


# Errors and reports that no record can hold.


def surrogate(report):
    raise ValueError("cannot read " + os.fsdecode(b"caf\xe9"))


def control_characters(report):
    raise ValueError("a\0b\x1b[2Jc")


def long_error(report):
    raise ValueError("x" * 20_000_000)


def huge_step(report):
    report(2**63 - 1, loss=1.0)


def immense_step(report):
    report(10**5000, loss=1.0)


def negative_step(report):
    report(-5, loss=1.0)


def decreasing_step(report):
    report(7, loss=1.0)
    report(3, loss=1.0)


def boolean_step(report):
    report(True, loss=1.0)


def nan_step(report):
    report(float("nan"), loss=1.0)


def text_as_value(report):
    report(1, loss="low")


def huge_value(report):
    report(1, loss=10**400)


def immense_value(report):
    report(1, loss=[10**5000])


def unprintable_value(report):
    report(1, loss=Unprintable())


def nan_value(report):
    report(1, loss=float("nan"), other=1.0)


def infinite_value(report):
    report(1, loss=float("-inf"))


def bad_return(report):
    return {"loss": {"of": object()}}


def many_metrics(report):
    report(1, **{f"metric_{k}": 1.0 for k in range(1000)})


def several_errors(report):
    raise ExceptionGroup("several", [ValueError("one"), KeyError("two")])


def error_with_notes(report):
    error = ValueError("noted")
    error.add_note("how to go on\udce9")
    raise error


class NoText(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def error_without_text(report):
    raise NoText


# Leaving, and exhausting.


def sys_exit(report):
    sys.exit(3)


def interrupt(report):
    raise KeyboardInterrupt


def deep_recursion(report):
    deep_recursion(report)


def much_memory_at_once(report):
    bytearray(1 << 46)


def all_memory(report):
    """As on a small machine; the limit stays in the process, in the way of the next trial."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
    held = []
    while True:
        held.append(bytearray(1 << 20))


def grows(report):
    """Until the kernel kills it."""
    held = []
    while True:
        held.append(bytearray(os.urandom(1 << 20)) * 16)


# Left behind.


def thread(report):
    def spin():
        while True:
            time.sleep(0.05)

    threading.Thread(target=spin).start()
    report(1, loss=1.0)


def child_processes(report):
    subprocess.Popen(["sleep", "3600"])
    subprocess.Popen("setsid sleep 3600 &", shell=True).wait()
    if os.fork() == 0:
        with contextlib.suppress(BaseException):
            time.sleep(3600)
        os._exit(0)
    report(1, loss=1.0)


def output(report):
    """0.8 GB, half of it to each stream, past Python."""
    block = b"noise " * 100_000 + b"\n"
    for _ in range(667):
        os.write(1, block)
        os.write(2, block)
    report(1, loss=1.0)


# Death, and worse.


def os_exit(report):
    print("the last words", flush=True)
    os._exit(3)


def modules(report):
    for name in list(sys.modules):
        if name.startswith(("jobs", "orchestrator")):
            del sys.modules[name]
    report(1, loss=1.0)


def segfault(report):
    ctypes.string_at(0)


def hang(report):
    time.sleep(3600)


def hang_with_the_lock(report):
    re.match(r"(a+)+$", "a" * 64 + "b")


def train(params, seed, device, report):
    kind = params["kind"]
    report(0, loss=2.0)
    if not kind.startswith("healthy"):
        return globals()[kind](report)
    for step in range(1, 6):
        report(step, loss=1.0 / step)
        time.sleep(0.005)
    return None
