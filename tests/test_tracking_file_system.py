"""File systems on which SQLite's write-ahead log is unsafe, and what is done on them."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from servers import empty_sqlite
from tracking_contract import SWEEP, finished, rows, trial

from orchestrator.errors import UserError
from orchestrator.search.study import SweepStudy
from orchestrator.tracking import bulk_sql, connection, file_system
from orchestrator.tracking.address import database_address
from orchestrator.tracking.factory import open_tracker

MOUNTS = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
31 27 0:40 / /users rw,relatime shared:7 - nfs4 server:/export/users rw,vers=4.2
32 31 0:41 /a/b /users/anna/my\040disk rw shared:8 master:2 - xfs /dev/sdb rw
33 27 0:42 / /scratch rw - lustre 10.0.0.1@o2ib:/scratch rw,flock
34 27 0:43 / /users2 rw - fuse.sshfs anna@host: rw,user_id=0
35 27 0:44 / /backup rw - nfs server:/old rw
36 27 253:9 / /backup rw - btrfs /dev/sdc rw
37 27 0:45 / /data rw - fuse.mergerfs a:b rw
a line that is no mount
"""


@pytest.mark.parametrize(
    ("path", "kind", "network"),
    [
        ("/srv/mlflow.db", "ext4", False),
        ("/users/anna/mlflow.db", "nfs4", True),
        ("/users", "nfs4", True),
        ("/userspace/mlflow.db", "ext4", False),
        ("/users/anna/my disk/sub/mlflow.db", "xfs", False),
        ("/users/anna/my disk2/mlflow.db", "nfs4", True),
        ("/scratch/x/mlflow.db", "lustre", True),
        ("/users2/mlflow.db", "fuse.sshfs", True),
        ("/backup/mlflow.db", "btrfs", False),
        ("/data/mlflow.db", "fuse.mergerfs", False),
    ],
)
def test_the_file_system_of_a_path_is_that_of_its_longest_mount_point(path: str, kind: str, network: bool) -> None:
    mount = file_system.mount_of(Path(path), MOUNTS)
    assert mount is not None and mount.kind == kind
    assert file_system.is_network(kind) is network


@pytest.mark.parametrize(
    "kind",
    ["nfs", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "9p", "fuse.s3fs", "fuse.gcsfuse", "fuse", "virtiofs"],
)
def test_file_systems_that_hosts_share(kind: str) -> None:
    assert file_system.is_network(kind)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "apfs", "fuseblk", "", "f2fs"])
def test_local_file_systems(kind: str) -> None:
    assert not file_system.is_network(kind)


def test_this_machine_s_own_mounts_are_read() -> None:
    assert file_system.network_file_system(Path("/proc/self/status")) is None


def journal(file: Path) -> str:
    with sqlite3.connect(file) as reader:
        ((mode,),) = reader.execute("PRAGMA journal_mode").fetchall()
    reader.close()
    return str(mode)


@pytest.fixture
def on_nfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of mounts says that the test's folder is on NFS."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"27 1 253:0 / / rw - ext4 /dev/vda rw\n31 27 0:40 / {tmp_path} rw - nfs4 server:/export rw\n")
    monkeypatch.setattr(file_system, "MOUNTINFO", mounts)


def recorded(file: Path) -> list[str]:
    """Record a trial; what was said."""
    said: list[str] = []
    tracker = open_tracker(f"sqlite:///{file}", experiment="tests")
    tracker.say = said.append
    one = trial()
    tracker.open_sweep(SWEEP)
    tracker.begin([one])
    tracker.record(rows([one], [0, 1]))
    tracker.end([finished(one)])
    assert dict(tracker.curves([one.id]))[one.id].step.tolist() == [0, 1]
    tracker.close()
    return said


def test_a_local_record_has_a_write_ahead_log(tmp_path: Path) -> None:
    file = empty_sqlite(tmp_path / "mlflow.db")
    assert recorded(file) == []
    assert journal(file) == "wal"


@pytest.mark.usefixtures("on_nfs")
def test_a_record_on_a_network_file_system_has_a_rollback_journal_and_says_so(tmp_path: Path) -> None:
    file = empty_sqlite(tmp_path / "mlflow.db")
    assert journal(file) == "wal"
    (said,) = recorded(file)
    assert "network file system (nfs4)" in said and "PostgreSQL" in said
    assert journal(file) == "delete"


@pytest.mark.usefixtures("on_nfs")
def test_a_log_that_another_process_uses_on_a_network_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_sql, "WAIT_S", 0.1)
    file = empty_sqlite(tmp_path / "mlflow.db")
    with sqlite3.connect(file) as reader:
        reader.execute("SELECT COUNT(*) FROM runs").fetchall()
        with pytest.raises(UserError, match="write-ahead log, which can corrupt it") as caught:
            recorded(file)
        assert "mlflow ui" in caught.value.text and "postgresql" in caught.value.text
    reader.close()


def test_a_record_that_has_several_names_is_not_written(tmp_path: Path) -> None:
    """By a hard link, SQLite finds neither the log nor the locks of a driver that has opened it by its first name."""
    file = empty_sqlite(tmp_path / "mlflow.db")
    tracker = open_tracker(f"sqlite:///{file}", experiment="tests")
    tracker.open_sweep(SWEEP)
    (tmp_path / "link.db").hardlink_to(file)
    with pytest.raises(UserError, match="it has 2 names") as caught:
        recorded(tmp_path / "link.db")
    assert "copy the file" in caught.value.text
    tracker.close()


@pytest.mark.parametrize(("make", "kind"), [(os.mkfifo, "a pipe"), (os.mkdir, "a folder")])
def test_a_record_that_is_no_file_is_a_mistake_and_not_an_outage(
    tmp_path: Path, make: Callable[[Path], None], kind: str
) -> None:
    place = tmp_path / "mlflow.db"
    make(place)
    with pytest.raises(UserError, match=f"must be a file; this is {kind}"):
        recorded(place)
    with pytest.raises(UserError, match="must be a file"):
        connection.connect(database_address(f"sqlite:///{place}"), write=False, place="tracking.uri")


def test_a_file_that_is_mounted_by_itself_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts, file = tmp_path / "mountinfo", tmp_path / "mlflow.db"
    file.touch()
    monkeypatch.setattr(file_system, "MOUNTINFO", mounts)
    mounts.write_text("27 1 253:0 / / rw - ext4 /dev/vda rw\n")
    assert file_system.other_names(file) == ""
    mounts.write_text(f"27 1 253:0 / / rw - ext4 /dev/vda rw\n28 27 253:0 /x.db {file} rw - ext4 /dev/vda rw\n")
    assert "mounted by itself" in file_system.other_names(file)


@pytest.mark.usefixtures("on_nfs")
def test_a_study_on_a_network_file_system_has_a_rollback_journal(tmp_path: Path) -> None:
    file = tmp_path / "optuna.db"
    study = SweepStudy(f"sqlite:///{file}", "study")
    study.create("1", {"x": 1.0}, {"x": optuna.distributions.FloatDistribution(0, 2)}, 0)
    study.close()
    assert journal(file) == "delete"
