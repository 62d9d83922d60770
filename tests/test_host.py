"""The CPUs and memory that a process may use: by affinity, and by the limits of its control groups."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from orchestrator.host import usable_cpus, usable_memory_bytes, visible_gpus
from tests.driving import environment

V2 = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"
V1_CPU = "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
V1_MEMORY = "35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
UNLIMITED = "9223372036854771712"
SLURM = "/system.slice/slurmstepd.scope/job_7"


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def cpus_of(root: Path, files: Mapping[str, str], allowed: int = 64) -> int:
    return usable_cpus(root=tree(root, files), allowed=allowed)


def memory_of(root: Path, files: Mapping[str, str], physical: float = 64e9) -> float:
    return usable_memory_bytes(root=tree(root, files), physical=physical)


def v2(path: str, files: Mapping[str, str]) -> dict[str, str]:
    own = {f"sys/fs/cgroup{name}": text for name, text in files.items()}
    return {"proc/self/cgroup": f"0::{path}\n", "proc/self/mountinfo": V2, **own}


def test_without_control_groups_the_affinity_and_the_physical_memory_count(tmp_path: Path) -> None:
    assert usable_cpus(root=tmp_path, allowed=7) == 7
    assert usable_memory_bytes(root=tmp_path, physical=5e9) == 5e9


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("max 100000\n", 64),
        ("400000 100000\n", 4),
        ("150000 100000\n", 1),
        ("199999 100000\n", 1),
        ("20000 100000\n", 1),
        ("50000 10000\n", 5),
        ("9900000 100000\n", 64),
        ("", 64),
        ("garbage\n", 64),
    ],
)
def test_a_quota_of_cgroup_v2_counts_whole_cpus_and_at_least_one(tmp_path: Path, quota: str, cpus: int) -> None:
    assert cpus_of(tmp_path, v2("/a", {"/a/cpu.max": quota})) == cpus


def test_the_smallest_limit_along_the_path_counts_and_no_other(tmp_path: Path) -> None:
    files = {
        "/system.slice/cpu.max": "max 100000\n",
        "/system.slice/slurmstepd.scope/cpu.max": "300000 100000\n",
        f"{SLURM}/cpu.max": "800000 100000\n",
        "/system.slice/other/cpu.max": "100000 100000\n",
        f"{SLURM}/step_1/cpu.max": "100000 100000\n",
        "/system.slice/memory.max": "max\n",
        "/system.slice/slurmstepd.scope/memory.max": "3000000000\n",
        f"{SLURM}/memory.max": "8000000000\n",
        "/system.slice/other/memory.max": "1\n",
    }
    assert cpus_of(tmp_path, v2(SLURM, files)) == 3
    assert memory_of(tmp_path, v2(SLURM, files)) == 3e9


def test_the_affinity_counts_where_it_is_smaller_than_the_quota(tmp_path: Path) -> None:
    assert cpus_of(tmp_path, v2("/a", {"/a/cpu.max": "800000 100000\n"}), allowed=2) == 2


@pytest.mark.parametrize("path", ["/", "/docker/123", "/../../kubepods/pod7"])
def test_in_a_container_the_mounted_group_is_its_own(tmp_path: Path, path: str) -> None:
    """Whatever path it shows: there may be a namespace of control groups or none."""
    files = v2(path, {"/cpu.max": "200000 100000\n", "/memory.max": "1000000000\n"})
    assert (cpus_of(tmp_path, files), memory_of(tmp_path, files)) == (2, 1e9)


@pytest.mark.parametrize("root", ["/", "/docker/123"])
def test_limits_of_cgroup_v1(tmp_path: Path, root: str) -> None:
    """With the whole hierarchy mounted, or only the container's part of it."""
    inside = "docker/123" if root == "/" else ""
    cpu, memory = f"sys/fs/cgroup/cpu,cpuacct/{inside}", f"sys/fs/cgroup/memory/{inside}"
    files = {
        "proc/self/cgroup": "9:name=systemd:/x\n4:memory:/docker/123\n2:cpu,cpuacct:/docker/123\n0::/y\n",
        "proc/self/mountinfo": "garbage\n" + V1_CPU.format(root=root) + V1_MEMORY.format(root=root),
        f"{cpu}/cpu.cfs_quota_us": "250000\n",
        f"{cpu}/cpu.cfs_period_us": "100000\n",
        f"{memory}/memory.limit_in_bytes": "2000000000\n",
    }
    assert (cpus_of(tmp_path, files), memory_of(tmp_path, files)) == (2, 2e9)


def test_no_limit_of_cgroup_v1(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/\n2:cpu,cpuacct:/\n",
        "proc/self/mountinfo": V1_CPU.format(root="/") + V1_MEMORY.format(root="/"),
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED,
    }
    assert (cpus_of(tmp_path, files), memory_of(tmp_path, files)) == (64, 64e9)


def test_where_proc_is_hidden_the_usual_folders_count(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/memory.max": "1000",
    }
    assert (cpus_of(tmp_path, files), memory_of(tmp_path, files)) == (3, 1000)


def test_a_mount_point_with_a_blank(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a\n",
        "proc/self/mountinfo": V2.replace("/sys/fs/cgroup", "/odd\\040place"),
        "odd place/a/cpu.max": "300000 100000\n",
    }
    assert cpus_of(tmp_path, files) == 3


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        ("0,1", 2),
        (" 0, 1", 2),
        ("0,", 1),
        ("", 0),
        (",0", 0),
        ("-1", 0),
        ("0,-1,1", 1),
        ("NoDevFiles", 0),
        ("none", 0),
        ("all", 0),
        ("0,0", 1),
        ("0,0,1", 1),
        ("GPU-8f3c", 1),
        ("MIG-1,MIG-2", 2),
        ("MIG-1,MIG-1", 1),
        ("MIG-GPU-8f3c/1/0", 1),
    ],
)
def test_visible_devices(monkeypatch: pytest.MonkeyPatch, visible: str, count: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == count


# --- the real thing ---


def real(before: str = "") -> tuple[int, float]:
    """What a new process finds after it ran a statement."""
    code = f"import os; {before}\nfrom orchestrator.host import *\nprint(usable_cpus(), usable_memory_bytes())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment({}), capture_output=True, text=True, check=True, timeout=60
    )
    cpus, memory = done.stdout.split()
    return int(cpus), float(memory)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity on this system")
def test_a_process_bound_to_one_core_may_use_one() -> None:
    core = min(os.sched_getaffinity(0))
    assert real(f"os.sched_setaffinity(0, {{{core}}})")[0] == 1


@pytest.fixture
def group() -> Iterator[tuple[list[Path], list[tuple[Path, str]]]]:
    """Real control groups, two deep: the folders to join, and (file, text) limits of the upper ones."""
    top, name = Path("/sys/fs/cgroup"), f"phasefront-test-{os.getpid()}"
    made: list[Path] = []
    try:
        try:
            if (top / "cgroup.controllers").exists():
                above = [top / name]
                limits = [(top / name / "cpu.max", "100000 100000"), (top / name / "memory.max", "3000000000")]
            else:
                above = [top / "cpu" / name, top / "memory" / name]
                limits = [
                    (above[0] / "cpu.cfs_quota_us", "100000"),
                    (above[1] / "memory.limit_in_bytes", "3000000000"),
                ]
            for folder in [*above, *(folder / "inner" for folder in above)]:
                folder.mkdir()
                made.append(folder)
            if not all(path.exists() for path, _ in limits):
                pytest.skip("the controllers cpu and memory are not delegated")
        except OSError as error:
            pytest.skip(f"no control group can be made here: {error}")
        yield [folder / "inner" / "cgroup.procs" for folder in above], limits
    finally:
        for folder in reversed(made):
            folder.rmdir()


def test_a_process_in_a_group_below_a_limited_one_is_limited(
    group: tuple[list[Path], list[tuple[Path, str]]],
) -> None:
    joined, limits = group
    join = f"[open(f, 'w').write(str(os.getpid())) for f in {[str(path) for path in joined]}]"
    free = real(join)
    for path, text in limits:
        path.write_text(text)
    cpus, memory = real(join)
    assert cpus == 1
    assert memory == pytest.approx(min(3e9, free[1]), rel=1e-5)  # the kernel rounds to pages
