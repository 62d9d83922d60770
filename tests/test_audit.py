"""`audit`: a record that is damaged in one place is found, and a sound one is clean, whoever wrote it."""

from __future__ import annotations

import json
import lzma
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from runner_kit import ramp
from servers import empty_sqlite, mlflow_server, postgres_server

from orchestrator.audit import Invariant, check_right_trial, digests, passwords_in, regressed
from orchestrator.cli import main
from orchestrator.commands.audit import RUNS_SHOWN
from orchestrator.commands.wiring import open_tracker, sweep_record
from orchestrator.sweep.sweep import Sweep
from orchestrator.tracking import layout
from orchestrator.tracking.facts import RunFacts

RECORDS = Path(__file__).parent / "records"
SWEEP = """\
name: descents
job: jobs_for_tests:Descent
axes:
  learning_rate: [0.1, 0.2, 0.3, 0.4]
replicates: 2
"""
ONE = "(SELECT run_uuid FROM tags WHERE key = 'phasefront.trial_id' ORDER BY value LIMIT 1)"
"""A trial of the record of `SWEEP`."""
PARENT = "(SELECT run_uuid FROM tags WHERE key = 'phasefront.sweep_id')"
SECRET = "correct-horse-battery"

DAMAGES: dict[str, tuple[str, set[Invariant]]] = {
    "a row twice": (
        "INSERT INTO metrics SELECT key, value + 1, timestamp, run_uuid, step, is_nan FROM metrics "
        f"WHERE run_uuid = {ONE} AND step = 3 AND key = 'loss'",
        {Invariant.ROWS_ONCE},
    ),
    "a second run": (
        f"INSERT INTO runs SELECT 'other', name, source_type, source_name, entry_point_name, user_id, status, "
        "start_time, end_time, source_version, lifecycle_stage, artifact_uri, experiment_id, deleted_time FROM runs "
        f"WHERE run_uuid = {ONE}; "
        f"INSERT INTO tags SELECT key, value, 'other' FROM tags WHERE run_uuid = {ONE}; "
        f"INSERT INTO params SELECT key, value, 'other' FROM params WHERE run_uuid = {ONE}; "
        "INSERT INTO metrics SELECT key, value, timestamp, 'other', step, is_nan FROM metrics "
        f"WHERE run_uuid = {ONE}; "
        "INSERT INTO latest_metrics SELECT key, value, timestamp, step, is_nan, 'other' FROM latest_metrics "
        f"WHERE run_uuid = {ONE}",
        {Invariant.ONE_RUN},
    ),
    "a running trial of an ended sweep": (
        f"UPDATE runs SET status = 'RUNNING', end_time = NULL WHERE run_uuid = {ONE}",
        {Invariant.NONE_RUNNING, Invariant.COMPLETE, Invariant.COUNTED},
    ),
    "another value on an axis": (
        f"UPDATE metrics SET value = 7 WHERE run_uuid = {ONE} AND key = 'axis/learning_rate'; "
        f"UPDATE latest_metrics SET value = 7 WHERE run_uuid = {ONE} AND key = 'axis/learning_rate'",
        {Invariant.RIGHT_TRIAL},
    ),
    "a row at another time": (
        f"UPDATE metrics SET timestamp = timestamp + 1 WHERE run_uuid = {ONE} AND step = 3 AND key = 'loss'",
        {Invariant.ONE_TRAINING},
    ),
    "rows of a longer training": (
        "INSERT INTO metrics SELECT key, value / 2, timestamp + 20, run_uuid, step + 20, is_nan FROM metrics "
        f"WHERE run_uuid = {ONE} AND step = 20 AND key = 'loss'; "
        f"DELETE FROM latest_metrics WHERE run_uuid = {ONE} AND key = 'loss'; "
        "INSERT INTO latest_metrics SELECT key, value, timestamp, step, is_nan, run_uuid FROM metrics "
        f"WHERE run_uuid = {ONE} AND step = 40",
        {Invariant.REDUCED},
    ),
    "another parameter": (
        "UPDATE tags SET value = replace(value, '\"learning_rate\":0.', '\"learning_rate\":0.9') "
        f"WHERE key = 'phasefront.params' AND run_uuid = {ONE}; "
        "UPDATE params SET value = replace(value, '0.', '0.9') "
        f"WHERE key = 'learning_rate' AND run_uuid = {ONE}",
        {Invariant.RIGHT_TRIAL},
    ),
    "another param in MLflow": (
        f"UPDATE params SET value = '7' WHERE key = 'learning_rate' AND run_uuid = {ONE}",
        {Invariant.RIGHT_TRIAL},
    ),
    "another seed": (
        'UPDATE tags SET value = replace(value, \'"seed":"\', \'"seed":"1\') '
        f"WHERE key = 'phasefront.trained' AND run_uuid = {ONE}",
        {Invariant.RIGHT_TRIAL},
    ),
    "no phase": (
        f"DELETE FROM tags WHERE key = 'phasefront.phase' AND run_uuid = {ONE}",
        {Invariant.WHOLE, Invariant.REDUCED, Invariant.COUNTED},
    ),
    "no observations": (
        f"DELETE FROM tags WHERE key = 'phasefront.observations' AND run_uuid = {ONE}",
        {Invariant.WHOLE, Invariant.REDUCED},
    ),
    "no end": (f"UPDATE runs SET end_time = NULL WHERE run_uuid = {ONE}", {Invariant.WHOLE}),
    "no curve": (
        f"DELETE FROM metrics WHERE run_uuid = {ONE} AND key = 'loss'; "
        f"DELETE FROM latest_metrics WHERE run_uuid = {ONE} AND key = 'loss'",
        {Invariant.WHOLE},
    ),
    "a curve cut short": (
        f"DELETE FROM metrics WHERE run_uuid = {ONE} AND key = 'loss' AND step > 7; "
        f"DELETE FROM latest_metrics WHERE run_uuid = {ONE} AND key = 'loss'; "
        "INSERT INTO latest_metrics SELECT key, value, timestamp, step, is_nan, run_uuid FROM metrics "
        f"WHERE run_uuid = {ONE} AND key = 'loss' AND step = 7",
        {Invariant.REDUCED},
    ),
    "another last value": (
        f"UPDATE metrics SET value = value + 0.001 WHERE run_uuid = {ONE} AND key = 'loss' AND step = 20; "
        f"UPDATE latest_metrics SET value = value + 0.001 WHERE run_uuid = {ONE} AND key = 'loss'",
        {Invariant.REDUCED},
    ),
    "another observation": (
        f"UPDATE metrics SET value = value + 1 WHERE run_uuid = {ONE} AND key = 'final_loss'; "
        f"UPDATE latest_metrics SET value = value + 1 WHERE run_uuid = {ONE} AND key = 'final_loss'",
        {Invariant.REDUCED},
    ),
    "a failure without an error": (
        f"UPDATE runs SET status = 'FAILED' WHERE run_uuid = {ONE}",
        {Invariant.EXPLAINED, Invariant.COMPLETE, Invariant.COUNTED},
    ),
    "a password in an error": (
        f"INSERT INTO tags SELECT 'phasefront.error', 'postgresql://user:{SECRET}@host/db', {ONE}",
        {Invariant.NO_SECRET, Invariant.WHOLE},
    ),
    "a secret in the sweep's name": (
        f"UPDATE runs SET name = 'token {SECRET}' WHERE run_uuid = {PARENT}",
        {Invariant.NO_SECRET},
    ),
    "an old latest value": (
        f"UPDATE latest_metrics SET value = 7 WHERE run_uuid = {ONE} AND key = 'loss'",
        {Invariant.LATEST},
    ),
    "no latest value": (
        f"DELETE FROM latest_metrics WHERE run_uuid = {ONE} AND key = 'loss'",
        {Invariant.LATEST},
    ),
    "a missing trial": (
        f"UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = {ONE}",
        {Invariant.COMPLETE, Invariant.COUNTED},
    ),
    "a foreign trial": (
        f"UPDATE tags SET value = '{'0' * 32}' WHERE key = 'phasefront.trial_id' AND run_uuid = {ONE}",
        {Invariant.RIGHT_TRIAL, Invariant.COMPLETE, Invariant.COUNTED},
    ),
    "a wrong count": (
        f"UPDATE metrics SET value = 99 WHERE key = 'trials' AND run_uuid = {PARENT}; "
        f"UPDATE latest_metrics SET value = 99 WHERE key = 'trials' AND run_uuid = {PARENT}",
        {Invariant.COUNTED},
    ),
}
assert set.union(*(broken for _, broken in DAMAGES.values())) == set(Invariant)


def run_into(uri: str, folder: Path) -> Path:
    """The sweep, run into the record at this address, with a map so that the parent has counts."""
    file = folder / "sweep.yaml"
    artifacts = "" if uri.startswith("http") else f", artifacts: '{folder / 'artifacts'}'"
    file.write_text(f"{SWEEP}tracking: {{uri: '{uri}'{artifacts}}}\noutput: {folder / 'out'}\n")
    assert main(["run", str(file), "--inline", "--quiet"]) == 0
    return file


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep."""
    folder = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parent)
        run_into(f"sqlite:///{empty_sqlite(folder / 'record.db')}", folder)
    return folder


@pytest.fixture
def sweep(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a copy of the sweep, with a record of its own."""
    monkeypatch.chdir(Path(__file__).parent)
    monkeypatch.setenv("SOME_TOKEN", SECRET)
    with closing(sqlite3.connect(recorded / "record.db")) as before, closing(sqlite3.connect(tmp_path / "r.db")) as own:
        before.backup(own)
    file = tmp_path / "sweep.yaml"
    file.write_text(f"{SWEEP}tracking: {{uri: 'sqlite:///{tmp_path}/r.db'}}\noutput: {tmp_path / 'out'}\n")
    return file


def content(file: Path) -> list[str]:
    with closing(sqlite3.connect(file.parent / "r.db")) as connection:
        return list(connection.iterdump())


def violated(text: str) -> set[Invariant]:
    said = [line.removeprefix("VIOLATED").strip() for line in text.splitlines() if line.startswith("VIOLATED")]
    return {invariant for invariant in Invariant for line in said if line.startswith(f"{invariant.value}:")}


def test_a_sound_record_is_clean_and_stays_as_it_is(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(sweep)
    assert main(["audit", str(sweep)]) == 0
    said = capsys.readouterr().out
    assert "8 runs of trials (8 finished)" in said and "consistent" in said and not violated(said)
    assert content(sweep) == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(damage: str, sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sql, broken = DAMAGES[damage]
    with closing(sqlite3.connect(sweep.parent / "r.db")) as connection:
        connection.executescript(sql)
    assert main(["audit", str(sweep)]) == 1
    said = capsys.readouterr().out
    assert violated(said) == broken, said
    assert SECRET not in said
    assert "run " in said


def test_violations_of_the_same_kind_share_a_line(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(sqlite3.connect(sweep.parent / "r.db")) as connection:
        children = "SELECT run_uuid FROM tags WHERE key = 'phasefront.trial_id'"
        connection.executescript(
            f"UPDATE latest_metrics SET value = 7 + rowid WHERE key = 'loss' AND run_uuid IN ({children})"
        )
        runs = {run for (run,) in connection.execute(children)}

    def below(*more: str) -> list[str]:
        assert main(["audit", str(sweep), *more]) == 1
        said = capsys.readouterr().out
        assert violated(said) == {Invariant.LATEST} and "result    8 violations" in said
        assert ("--all" in said) == (not more)
        return [line.strip() for line in said.splitlines() if line.startswith("          ")]

    (line,) = below()
    assert "; and 7 more like it, in runs " in line and line.endswith(", ...")
    assert sum(run in line for run in runs) == RUNS_SHOWN
    assert {line.split()[1].rstrip(",") for line in below("--all")} == runs


@pytest.mark.parametrize("text", ["{", "[1]", '{"final_loss": "low"}', "[" * 7000])
def test_observations_that_somebody_has_edited_end_no_command_and_are_made_again_by_the_next_run(
    text: str, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tag = f"FROM tags WHERE key = 'phasefront.observations' AND run_uuid = {ONE}"
    with closing(sqlite3.connect(sweep.parent / "r.db")) as connection:
        before = connection.execute(f"SELECT value {tag}").fetchall()
        connection.execute(f"UPDATE tags SET value = ? WHERE rowid = (SELECT rowid {tag})", (text,))
        connection.commit()
        assert main(["status", str(sweep)]) == 0
        assert "8 finished" in capsys.readouterr().out
        assert main(["audit", str(sweep)]) == 1
        assert violated(capsys.readouterr().out) == {Invariant.REDUCED}
        assert main(["run", str(sweep), "--inline", "--no-map"]) == 0
        assert "8 were finished before (1 of them relabelled)" in capsys.readouterr().out
        assert connection.execute(f"SELECT value {tag}").fetchall() == before
    assert main(["audit", str(sweep)]) == 0


def test_what_a_job_declares_is_compared_with_the_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The record of an earlier version is clean; a step less, a step more or a metric less at one step is found."""
    monkeypatch.chdir(tmp_path)
    for name in ("record.db", "optuna.db"):
        (tmp_path / name).write_bytes(lzma.decompress((RECORDS / f"{name}.xz").read_bytes()))
    for file in RECORDS.glob("*.yaml"):
        (tmp_path / file.name).write_text(file.read_text())
        assert main(["audit", file.name]) == 0, capsys.readouterr().out
    capsys.readouterr()
    run = (
        "(SELECT t.run_uuid FROM tags t JOIN tags p ON p.run_uuid = t.run_uuid AND p.key = 'mlflow.parentRunId' "
        "JOIN runs r ON r.run_uuid = p.value WHERE t.key = 'phasefront.trial_id' AND r.name = 'earlier-grid' "
        "ORDER BY t.value LIMIT 1)"
    )
    damages = {
        f"DELETE FROM metrics WHERE run_uuid = {run} AND step = 2": Invariant.WHOLE,
        "INSERT INTO metrics SELECT key, value, timestamp - 1, run_uuid, step - 1, is_nan FROM metrics "
        f"WHERE run_uuid = {run} AND step = 600": Invariant.ONE_TRAINING,
        f"DELETE FROM metrics WHERE run_uuid = {run} AND step = 2 AND key = 'test_loss'": Invariant.ONE_TRAINING,
    }
    with closing(sqlite3.connect("record.db")) as connection:
        for sql, broken in damages.items():
            connection.execute("SAVEPOINT whole")
            connection.execute("CREATE TABLE before AS SELECT * FROM metrics")
            assert connection.execute(sql).rowcount > 0
            connection.commit()
            assert main(["audit", "grid.yaml"]) == 1
            assert broken in violated(capsys.readouterr().out)
            connection.executescript("DELETE FROM metrics; INSERT INTO metrics SELECT * FROM before; DROP TABLE before")
        assert main(["audit", "grid.yaml"]) == 0


def test_a_secret_in_an_artifact_is_found(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifacts = sweep.parent / "artifacts"
    with closing(sqlite3.connect(sweep.parent / "r.db")) as connection:
        connection.execute(f"UPDATE runs SET artifact_uri = ? WHERE run_uuid = {PARENT}", (str(artifacts),))
        connection.commit()
    artifacts.mkdir()
    (artifacts / "sweep.yaml").write_text("fixed: {key: none}\n")
    assert main(["audit", str(sweep)]) == 0, capsys.readouterr().out
    (artifacts / "sweep.yaml").write_text(f"fixed: {{key: {SECRET}}}\n")
    assert main(["audit", str(sweep)]) == 1
    said = capsys.readouterr().out
    assert "the artifact sweep.yaml has the value of $SOME_TOKEN" in said and SECRET not in said


def test_nothing_recorded_is_a_mistake(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = ["--set", "tracking.experiment=other"]
    assert main(["audit", str(sweep), *other]) == 2
    assert "nothing is recorded" in capsys.readouterr().err


def test_a_trial_may_be_running_while_its_driver_lives(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = Sweep.load(sweep)
    with closing(open_tracker(loaded)) as tracker:
        tracker.open_sweep(sweep_record(loaded))
        with closing(sqlite3.connect(sweep.parent / "r.db")) as connection:
            connection.executescript(f"UPDATE runs SET status = 'RUNNING', end_time = NULL WHERE run_uuid = {ONE}")
        assert main(["audit", str(sweep)]) == 0, capsys.readouterr().out
    capsys.readouterr()
    # As a driver leaves it that was killed: nothing is lost or doubled, and a run mends it.
    assert main(["audit", str(sweep)]) == 0
    said = capsys.readouterr().out
    assert f"resumable {Invariant.NONE_RUNNING.value}: 1 of 8 checked\n" in said and not violated(said)
    assert "its driver has ended" in said
    assert "result    consistent, unfinished: 1 handed out when their driver ended. To resume: " in said
    with closing(sqlite3.connect(sweep.parent / "r.db")) as connection:
        connection.executescript(f"UPDATE latest_metrics SET value = 7 WHERE key = 'loss' AND run_uuid != {ONE}")
    assert main(["audit", str(sweep)]) == 1
    said = capsys.readouterr().out
    assert violated(said) == {Invariant.LATEST} and "result    7 violations, unfinished: 1 handed out" in said
    assert main(["run", str(sweep), "--inline", "--quiet", "--no-map"]) == 0
    capsys.readouterr()
    assert main(["audit", str(sweep)]) == 1
    assert "resumable" not in capsys.readouterr().out


def test_addresses_with_asterisks_have_no_password() -> None:
    assert passwords_in("at postgresql://user:hunter2@host:5432/db")
    assert passwords_in("postgresql://host/db?user=a&password=hunter2&x=1")
    assert not passwords_in("postgresql://user:***@host/db, postgresql://host/db?password=***, http://host:5000/a@b")
    assert not passwords_in("uri: postgresql://user:${DB_PASSWORD}@host/db")


def test_a_finished_trial_that_changes_has_regressed(sweep: Path) -> None:
    def finished() -> dict[str, str]:
        loaded = Sweep.load(sweep)
        with closing(open_tracker(loaded)) as tracker:
            return digests([trial.id for trial in loaded.trials()], tracker.curves)

    before = finished()
    assert len(before) == 8 and regressed(before, finished()) == []
    with closing(sqlite3.connect(sweep.parent / "r.db")) as connection:
        connection.executescript(f"UPDATE metrics SET value = value + 1e-9 WHERE run_uuid = {ONE} AND step = 20")
    assert len(regressed(before, finished())) == 1


@pytest.fixture
def postgres() -> Iterator[str]:
    with postgres_server() as uri:
        yield uri


@pytest.mark.slow
def test_postgresql(postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    import psycopg2

    monkeypatch.chdir(Path(__file__).parent)
    file = run_into(postgres, tmp_path)
    assert main(["audit", str(file)]) == 0, capsys.readouterr().out
    for damage in ("a row twice", "an old latest value", "a missing trial", "another param in MLflow"):
        sql, broken = DAMAGES[damage]
        with closing(psycopg2.connect(postgres)) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE SCHEMA IF NOT EXISTS kept")
            for table in ("runs", "params", "metrics", "latest_metrics"):
                cursor.execute(f"CREATE TABLE kept.{table} AS SELECT * FROM public.{table}")
            cursor.execute(sql)
            connection.commit()
            assert main(["audit", str(file)]) == 1
            assert violated(capsys.readouterr().out) == broken, damage
            for table in ("latest_metrics", "metrics", "params"):
                cursor.execute(f"DELETE FROM public.{table}; INSERT INTO public.{table} SELECT * FROM kept.{table}")
            cursor.execute("UPDATE runs SET lifecycle_stage = 'active'; DROP SCHEMA kept CASCADE")
            connection.commit()
    assert main(["audit", str(file)]) == 0, capsys.readouterr().out


@pytest.mark.slow
def test_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    database = empty_sqlite(tmp_path / "r.db")
    with mlflow_server(f"sqlite:///{database}", tmp_path / "artifacts") as address:
        file = run_into(address, tmp_path)
        for where in (address, f"sqlite:///{database}"):  # the same record, read in both ways
            assert main(["audit", str(file), "--set", f"tracking.uri={where}"]) == 0, capsys.readouterr().out
        for damage in ("a row twice", "no phase", "another last value", "an old latest value", "a missing trial"):
            sql, broken = DAMAGES[damage]
            kept = content(file)
            with closing(sqlite3.connect(database)) as connection:
                connection.executescript(sql)
            broken = broken - {Invariant.LATEST} if damage == "an old latest value" else broken
            assert main(["audit", str(file)]) == (1 if broken else 0), damage
            assert violated(capsys.readouterr().out) == broken, damage
            with closing(sqlite3.connect(database)) as connection:
                tables = ("runs", "tags", "metrics", "latest_metrics")
                connection.executescript(";".join(f"DELETE FROM {table}" for table in tables))
                own = [line for line in kept if line.startswith(tuple(f'INSERT INTO "{table}"' for table in tables))]
                connection.executescript("BEGIN;" + "".join(own) + "COMMIT;")


def test_a_large_integer_on_an_axis_is_sound_as_mlflow_rounds_it() -> None:
    trial = ramp(width=2**53 + 1)
    settings = json.dumps(dict(trial.settings()))

    def facts(width: float) -> RunFacts:
        return RunFacts(
            run_id="r",
            name="",
            status="RUNNING",
            start_time=0,
            end_time=None,
            artifacts="",
            params=None,
            tags={layout.PARAMS: settings},
            axes={"axis/width": width},
        )

    ((_, recorded),) = layout.axis_metrics(trial, ["width"])
    assert list(check_right_trial(facts(recorded), trial)) == []
    assert len(list(check_right_trial(facts(recorded + 4), trial))) == 1


def test_a_damaged_tag_of_observations_damages_no_other_trial() -> None:
    good, huge = '{"loss": 1.5}', '{"loss": 1' + "0" * 400 + "}"
    for damaged in ("{},{}", huge, '{"loss": 1}, {"loss": 2}', "}", '{"loss":'):
        read = layout.decode_all_observations([good, damaged, None])
        assert read == [{"loss": 1.5}, None, {}], damaged
        assert layout.decode_observations(damaged) is None
