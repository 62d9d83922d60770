"""This machine: processes by their mark, signals, a network of namespaces, small file systems; all of it is undone."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from driving import marked

HERE = Path(__file__).parent
CLEAN_S = 20.0


class Missing(Exception):
    """Something that this machine lacks; the message says what, and how to get it."""


def run(*command: str | Path, check: bool = True) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def wait_for(ready: Callable[[], bool], timeout_s: float, every_s: float = 0.1) -> bool:
    """Whether it was ready in time."""
    end = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > end:
            return False
        time.sleep(every_s)
    return True


def send(pids: list[int], number: int) -> int:
    """Send a signal to these processes; how many were there."""
    sent = 0
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            sent += 1
    return sent


def end_marked(mark: str) -> None:
    """Kill every process that carries a mark, also those that it starts meanwhile."""
    for _ in range(20):
        left = marked(mark)
        if not left:
            return
        send(left, signal.SIGKILL)
        time.sleep(0.1)


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def can_isolate() -> str:
    """Why this machine cannot have namespaces of its own; "" if it can."""
    if os.getuid() != 0 or shutil.which("ip") is None:
        return "needs root and `ip` (Debian: iproute2)"
    probe = f"pfprobe{os.getpid()}"
    try:
        run("ip", "netns", "add", probe)
        run("ip", "netns", "del", probe)
    except (RuntimeError, OSError) as error:
        return f"cannot make network namespaces: {error}"
    return ""


class Network:
    """A bridge with hosts, each a network namespace with an address of its own."""

    def __init__(self) -> None:
        number = os.getpid() % 60_000
        self._name = f"pfc{number}"
        self._prefix = f"10.{66 + number // 250 % 100}.{number % 250}"
        self.gateway = f"{self._prefix}.254"
        self._hosts: dict[str, str] = {}
        remove_leftovers()
        run("ip", "link", "add", self._name, "type", "bridge")
        run("ip", "addr", "add", f"{self.gateway}/24", "dev", self._name)
        run("ip", "link", "set", self._name, "up")

    def add(self, host: str) -> str:
        """A new host; its address."""
        number = max((int(address.rpartition(".")[2]) for address in self._hosts.values()), default=0) + 1
        address, name = f"{self._prefix}.{number}", f"{self._name}-{host}"
        run("ip", "netns", "add", name)
        run("ip", "link", "add", self._link(number), "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", self._link(number), "master", self._name, "up")
        for words in (
            f"addr add {address}/24 dev eth0",
            "link set eth0 up",
            "link set lo up",
            f"route add default via {self.gateway}",
        ):
            run("ip", "-n", name, *words.split())
        self._hosts[host] = address
        return address

    def _link(self, number: int) -> str:
        return f"{self._name}v{number}"

    def address(self, host: str) -> str:
        return self._hosts[host]

    def inside(self, host: str) -> list[str]:
        """The beginning of a command that runs on this host."""
        return ["ip", "netns", "exec", f"{self._name}-{host}"]

    @contextlib.contextmanager
    def cut_off(self, host: str) -> Iterator[None]:
        """Inside, no packet reaches the host or leaves it."""
        link = self._link(int(self._hosts[host].rpartition(".")[2]))
        run("ip", "link", "set", link, "down")
        try:
            yield
        finally:
            run("ip", "link", "set", link, "up")

    def close(self) -> None:
        for host in self._hosts:
            run("ip", "netns", "del", f"{self._name}-{host}", check=False)
        run("ip", "link", "del", self._name, check=False)


def remove_leftovers() -> None:
    """Remove the networks of runs that were killed."""
    for name in re.findall(r"\d+: (pfc(\d+)):", run("ip", "-o", "link", check=False)):
        if not Path(f"/proc/{name[1]}").exists():
            for space in re.findall(rf"^{name[0]}-\S+", run("ip", "netns", "list", check=False), re.MULTILINE):
                run("ip", "netns", "del", space, check=False)
            run("ip", "link", "del", name[0], check=False)


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system in memory."""
    folder.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", folder)
    try:
        yield folder
    finally:
        wait_for(lambda: subprocess.run(["umount", str(folder)], capture_output=True).returncode == 0, 10)
        run("umount", "-l", folder, check=False)


def clock_library(folder: Path) -> Path:
    """A library that sets a process's clock off (clock.c), compiled into a folder.

    libfaketime does not serve: `time.sleep` of Python 3.11 fails under it.
    """
    library = folder / "clock.so"
    if shutil.which("cc") is None:
        raise Missing("needs a C compiler: apt-get install gcc")
    if not library.exists():
        run("cc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "clock.c")
    return library
