"""A Slurm of this machine alone, for tests: munged, slurmctld and a slurmd for each of several nodes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import needs
from driving import PATIENCE_S, wait_for
from servers import free_ports

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MailProg=/bin/true
SwitchType=switch/none
FirstJobId={first}
MpiDefault=none
SlurmdParameters=config_overrides
KillWait=30
SlurmdTimeout=10
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(kw_only=True)
class Slurm:
    """A running Slurm whose nodes are called n1, n2, ..., with four processors each."""

    folder: Path
    environ: dict[str, str]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def command(self, *words: str, cwd: Path | None = None) -> str:
        done = subprocess.run(words, cwd=cwd, env=self.environ, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, *words: str, cwd: Path) -> str:
        """`sbatch WORDS` from a folder; the job's id."""
        return self.command("sbatch", "--parsable", *words, cwd=cwd)

    def state(self, job: str) -> str:
        return self.command("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}")

    def _shown(self, job: str, name: str) -> str:
        """A field of what `scontrol show job` prints."""
        words = self.command("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.partition("=")[::2] for word in words)[name]

    def exit_code(self, job: str) -> int:
        """Of a job that has ended."""
        return int(self._shown(job, "ExitCode").partition(":")[0])

    def requeue(self, job: str) -> None:
        """Requeue a running job, without the two minutes that Slurm then waits."""
        self.command("scontrol", "requeue", job)
        self.start_now(job)

    def start_now(self, job: str) -> None:
        """Start a job that was requeued; Slurm itself waits two minutes, as it does where this comes too early.

        A node refuses a job's credential of the second in which it ended the job ("Job credential revoked"). A start
        that is not due at once waits for the backfill, every 30 s.
        """

        def waits(start: str) -> bool:
            with contextlib.suppress(AssertionError):  # the job is still completing
                self.command("scontrol", "update", f"jobid={job}", f"starttime={start}")
                return True
            return False

        wait_for(f"job {job} in the queue", lambda: self.state(job) in ("PENDING", "RUNNING"))
        wait_for(f"job {job} to end", lambda: waits("now+60"))
        time.sleep(2)
        wait_for(f"job {job} to start", lambda: waits("now") or self.state(job) == "RUNNING")

    def limit(self, job: str, *, minutes: int) -> None:
        """Change how many minutes are left to a running job, to the whole minute below."""
        hours, so_far, _ = self._shown(job, "RunTime").split(":")
        self.command("scontrol", "update", f"jobid={job}", f"timelimit={60 * int(hours) + int(so_far) + minutes}")

    def processes(self, job: str) -> list[int]:
        """The processes that run in a job, on whichever node."""
        return self._with(f"SLURM_JOB_ID={job}")

    def start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("wb") as out:
            self.daemons[name] = subprocess.Popen(
                command, env=self.environ, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def start_node(self, name: str) -> None:
        self.start(name, "slurmd", "-D", "-N", name)

    def stop_node(self, name: str) -> None:
        """As a machine that loses its power: the daemon and what it has started are gone."""
        daemon = self.daemons.pop(name)
        # The daemons first, and those of the jobs: they would report how what they have started ended. Then children
        # of srun before srun: they would cancel its step, on whichever node.
        started = sorted(
            self._with(f"SLURMD_NODENAME={name}"), key=lambda pid: (_name(pid).startswith("srun"), pid), reverse=True
        )
        steps = {parent for pid in started if (parent := _parent(pid)) and _name(parent).startswith("slurmstepd")}
        for pid in [daemon.pid, *steps, *_below(daemon.pid), *started]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        daemon.kill()
        daemon.wait()

    def _with(self, variable: str) -> list[int]:
        """The processes of jobs with this in their environment; Slurm's daemons of a job are not below its slurmd."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = (folder / "environ").read_bytes().split(b"\0")
                if {f"SLURM_CONF={self.folder}/slurm.conf".encode(), variable.encode()} <= set(variables):
                    found.append(int(folder.name))
        return found


def _below(pid: int) -> list[int]:
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
    return [each for child in children for each in (*_below(int(child)), int(child))]


def _parent(pid: int) -> int:
    """The process that started another one; 0 if that has ended."""
    found = subprocess.run(["ps", "-o", "ppid=", "-p", str(pid)], capture_output=True, text=True).stdout
    return int(found.strip() or 0)


def _name(pid: int) -> str:
    return subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True).stdout


@contextlib.contextmanager
def slurm(environ: Mapping[str, str], *, nodes: int = 2) -> Iterator[Slurm]:
    """Start it, and stop it at the end with everything that ran in it."""
    for program, package in (
        ("slurmctld", "slurm-wlm"),
        ("slurmd", "slurm-wlm"),
        ("munged", "munge"),
        ("ps", "procps"),
    ):
        needs.program(program, package)
    folder = Path(tempfile.mkdtemp(prefix="pf-slurm-", dir="/tmp"))
    folder.chmod(0o755)  # munged refuses a socket that others cannot reach
    controller, *ports = free_ports(nodes + 1)
    lines = [
        f"NodeName=n{number} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=2000"
        for number, port in enumerate(ports, start=1)
    ]
    (folder / "slurm.conf").write_text(
        # Another Slurm on this machine must have other jobs: their numbers are in the names of Ray's folders.
        CONFIGURATION.format(
            folder=folder, controller=controller, nodes="\n".join(lines), first=1 + os.getpid() % 600_000 * 100
        )
    )
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    (folder / "state").mkdir()
    path = f"{Path(sys.executable).parent}:{environ['PATH']}"  # as with the environment activated
    running = Slurm(folder=folder, environ={**environ, "PATH": path, "SLURM_CONF": f"{folder}/slurm.conf"})
    try:
        paths = {"socket": "munge.sock", "key-file": "munge.key", "pid-file": "munged.pid"}
        paths |= {"log-file": "munged.log", "seed-file": "munged.seed"}
        running.start("munged", "munged", "--foreground", *(f"--{name}={folder / at}" for name, at in paths.items()))
        wait_for("munged", (folder / "munge.sock").exists)
        running.start("slurmctld", "slurmctld", "-D")
        for number in range(1, nodes + 1):
            (folder / f"spool-n{number}").mkdir()
            running.start_node(f"n{number}")
        wait_for("idle nodes", lambda: running.command("sinfo", "--noheader", "--format=%T %D") == f"idle {nodes}")
        yield running
    finally:
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            running.command("scancel", "--user=root")
            end = time.monotonic() + PATIENCE_S
            while running.command("squeue", "--noheader") and time.monotonic() < end:
                time.sleep(0.5)
        for name in reversed(list(running.daemons)):
            daemon = running.daemons[name]
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(timeout=20)
            daemon.kill()
            daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)
