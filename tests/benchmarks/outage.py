"""A database that is away while a sweep trains: what it costs in time, memory and disk, and whether all rows arrive.

    python -m tests.benchmarks.outage --away 300

The sweep runs twice at the same time, each time into a PostgreSQL server of its own: one server stays up, the other is
stopped (`pg_ctl stop -m immediate`) after 30 s and started again after `--away` seconds. Trials mostly sleep, so the
two sweeps do not slow each other much.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import psycopg2  # noqa: E402
from servers import PostgresServer, postgres  # noqa: E402

from tests.benchmarks.harness import machine  # noqa: E402

BEGINS_S = 30.0
"""From the first recorded row to the outage, and from its end to the end of training."""
WORKERS = 4
STEPS, PAUSE_S = 2_000, 0.005
METRICS = ("loss", "accuracy")
JOB = f"""\
import time
def train(params, seed, device, report):
    for step in range(1, {STEPS} + 1):
        report(step, loss=1 / step, accuracy=1 - 1 / step)
        time.sleep({PAUSE_S})
"""


@dataclass(kw_only=True)
class Sweep:
    """One run of the sweep, and what was seen of its driver."""

    process: subprocess.Popen[str]
    log: Path
    began: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    rss: dict[str, float] = field(default_factory=dict)
    """Phase of the measurement -> the largest resident memory of the driver, MB."""
    spool: float = 0.0
    """Largest size of the spool, MB."""

    def look(self, phase: str) -> None:
        """Note memory and spool."""
        folder = Path("/proc", str(self.process.pid))
        with contextlib.suppress(OSError):  # the process has ended
            status = (folder / "status").read_text()
            if found := re.search(r"VmRSS:\s+(\d+) kB", status):
                self.rss[phase] = max(self.rss.get(phase, 0.0), int(found[1]) / 1024)
            for descriptor in (folder / "fd").iterdir():
                if "phasefront-spool-" in str(descriptor.readlink()):
                    self.spool = max(self.spool, descriptor.stat().st_size / 1e6)


def rows(uri: str) -> tuple[int, int, int]:
    """(finished trials, metric rows of curves, distinct ones) in the record."""
    of_curve = " FROM metrics m JOIN runs r USING (run_uuid) WHERE m.key IN %s AND m.timestamp >= r.start_time"
    trials = (
        "SELECT COUNT(*) FROM runs JOIN tags USING (run_uuid) WHERE status = 'FINISHED' "
        "AND tags.key = 'phasefront.trial_id'"
    )
    with contextlib.closing(psycopg2.connect(uri)) as connection, connection.cursor() as cursor:
        counts = []
        for select in (
            trials,
            "SELECT COUNT(*)" + of_curve,
            "SELECT COUNT(*) FROM (SELECT DISTINCT m.run_uuid, m.key, m.step" + of_curve + ") d",
        ):
            cursor.execute(select, (METRICS,) if "%s" in select else None)
            counts.append(int((cursor.fetchone() or (0,))[0]))
    return counts[0], counts[1], counts[2]


def recorded(uri: str) -> bool:
    """Whether any row is recorded yet."""
    with contextlib.suppress(psycopg2.Error):
        return rows(uri)[1] > 0
    return False


def started(folder: Path, uri: str, trials: int) -> Sweep:
    """The sweep, in a process of its own."""
    folder.mkdir()
    (folder / "sleeping.py").write_text(JOB)
    (folder / "sweep.yaml").write_text(
        f"name: outage\njob: sleeping:train\naxes: {{n: {list(range(trials))}}}\n"
        f"tracking: {{uri: '{uri}', artifacts: {folder / 'artifacts'}}}\n"
        f"resources: {{workers: {WORKERS}, cpus_per_worker: 0.25}}\n"
    )
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", "run", "sweep.yaml", "--no-map"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
    return Sweep(process=process, log=log)


def measure(sweep: Sweep, server: PostgresServer, away_s: float) -> None:
    """Follow the sweep to its end; its database is away for this long, if at all."""
    while sweep.process.poll() is None and not recorded(server.uri):
        time.sleep(0.5)
    stops = time.monotonic() + BEGINS_S
    phase = "before"
    while sweep.process.poll() is None:
        now = time.monotonic()
        if away_s and phase == "before" and now >= stops:
            server.crash()
            phase = "during"
        elif phase == "during" and now >= stops + away_s:
            server.start()
            phase = "after"
        sweep.look(phase)
        time.sleep(0.5)
    sweep.seconds = time.monotonic() - sweep.began


def main() -> int:
    """Print the figures; 1 if a row is missing or twice."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--away", type=float, default=300.0, metavar="SECONDS", help="how long the database is away")
    away_s: float = parser.parse_args().away
    trials = WORKERS * round((away_s + 2 * BEGINS_S) / (STEPS * PAUSE_S))
    expected = trials * STEPS * len(METRICS)
    print(
        f"{machine()}\n{trials} trials of {STEPS * PAUSE_S:g} s on {WORKERS} workers, away for {away_s:g} s", flush=True
    )
    wrong = 0
    with tempfile.TemporaryDirectory() as folder, postgres() as steady, postgres() as failing:
        servers = {"without": (steady, 0.0), "with": (failing, away_s)}
        sweeps = {name: started(Path(folder, name), server.uri, trials) for name, (server, _) in servers.items()}
        threads = [threading.Thread(target=measure, args=(sweeps[name], *servers[name])) for name in servers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for name, sweep in sweeps.items():
            finished, count, distinct = rows(servers[name][0].uri)
            wrong |= sweep.process.returncode or (finished, count, distinct) != (trials, expected, expected)
            memory = ", ".join(f"{phase} {megabytes:.0f}" for phase, megabytes in sweep.rss.items())
            print(f"{name + ' the outage':<20} {sweep.seconds:.1f} s, exit code {sweep.process.returncode}")
            print(f"  driver's memory    {memory} MB at most; spool at most {sweep.spool:.1f} MB")
            print(f"  finished trials    {finished} of {trials}; rows {count:,}, distinct {distinct:,} of {expected:,}")
            said = [line for line in sweep.log.read_text().splitlines() if "the record" in line]
            print("\n".join(f"  | {line}" for line in said))
        apart = sweeps["with"].seconds - sweeps["without"].seconds
        print(f"the outage of {away_s:g} s cost {apart:.1f} s")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
