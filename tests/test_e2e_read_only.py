"""A sweep with Ray as in a pod of cluster/kuberay: without privileges, on a root that cannot be written."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import needs
import pytest
from driving import MARK, environment, marked, wait_for

ROOT = Path(__file__).resolve().parent.parent
SWEEP = """\
name: read-only
job: grokking
axes: {weight_decay: {values: [0.0, 1.0]}, data_fraction: {values: [0.4, 0.6]}}
fixed: {modulus: 7, steps: 60, width: 16}
resources: {workers: 2}
"""
# Every mount becomes read-only, except for those of the kernel and what the manifests mount: /tmp, /dev/shm, and /mnt
# for /shared. A checkout below /tmp is mounted there again. Then all privileges are given up; the user stays the one
# who may read this checkout.
POD = """\
set -e
exec 9< "$ROOT"
mount --bind / /
findmnt --noheadings --list --output TARGET | while read -r target; do
    case "$target" in /proc* | /sys* | /dev*) ;; *) mount -o remount,bind,ro "$target" || exit ;; esac
done
mount -t tmpfs -o mode=1777 tmpfs /mnt
mount -t tmpfs -o mode=1777 tmpfs /tmp
if [ ! -e "$ROOT" ]; then
    mkdir -p "$ROOT"
    mount --no-canonicalize --bind /proc/self/fd/9 "$ROOT"
    mount -o remount,bind,ro "$ROOT"
fi
exec 9<&-
echo "$SWEEP" > /tmp/sweep.yaml
exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all "$@"
"""
AS_USER = """\
if touch "$1/written" 2> /dev/null; then echo "the root can be written"; exit 99; fi
grep -q '^CapEff:\t0*$' /proc/self/status || exit 98
cd "$1"
python -m orchestrator run /tmp/sweep.yaml --set tracking.uri=sqlite:////mnt/mlflow.db \\
    --set tracking.artifacts=/mnt/artifacts --set output=/mnt/results --set resources.checkpoints=/mnt/checkpoints
ls /mnt/results
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make mounts of its own")
def test_a_pod_of_the_manifests_can_run_a_sweep() -> None:
    unshare = needs.program("unshare", "util-linux")
    mark = uuid.uuid4().hex
    environ = environment({MARK: mark, "SWEEP": SWEEP, "HOME": "/nonexistent", "RAY_USAGE_STATS_ENABLED": "0"})
    environ |= {
        "ROOT": str(ROOT),
        "XDG_CACHE_HOME": "/tmp/cache",
        "MPLCONFIGDIR": "/tmp/matplotlib",
        "PYTHONPATH": str(ROOT),
    }
    environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
    inside = ["bash", "-c", POD, "pod", "bash", "-c", AS_USER, "user", str(ROOT)]
    command = [unshare, "--mount", "--propagation", "private", *inside]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 trials finished" in done.stdout
    assert {"phase_diagram.png", "trials.parquet", "report.html"} <= set(done.stdout.split())
    assert "Permission denied" not in done.stderr
    assert "Read-only file system" not in done.stderr
    wait_for("the end of what it started", lambda: marked(mark) == [])
