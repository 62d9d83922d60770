"""Which study a search continues: one for each record, and that of an earlier version by the record that holds it."""

from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution

from orchestrator.search.study import StudyNames, SweepStudy, read_trials, study_name
from orchestrator.tracking.address import record_digest


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/optuna.db"


def names(record: str, held: Sequence[str] = (), thresholds: str = "aaaaaa") -> StudyNames:
    return StudyNames(
        sweep="disc 0123456789ab ",
        thresholds=thresholds,
        record=record,
        holds=lambda trial_ids: not set(held).isdisjoint(trial_ids),
    )


def ask(study: SweepStudy, *trial_ids: str) -> None:
    for trial_id in trial_ids:
        study.create(trial_id, {"x": 1.0}, {"x": FloatDistribution(0, 2)}, 0)
    study.close()


def asked(storage: str, of: StudyNames, **which: bool) -> set[str]:
    return {trial.user_attrs["trial_id"] for trial in read_trials(storage, of, **which)}


def test_two_records_have_two_studies(storage: str) -> None:
    one, two = names("11111111"), names("22222222")
    ask(SweepStudy(storage, one), "a")
    ask(SweepStudy(storage, two), "b")
    ask(SweepStudy(storage, one), "c")
    assert (asked(storage, one), asked(storage, two)) == ({"a", "c"}, {"b"})


def test_a_study_of_an_earlier_version_belongs_to_the_record_that_holds_its_trials(storage: str) -> None:
    earlier = "disc 0123456789ab aaaaaa"
    ask(SweepStudy(storage, earlier), "a", "b")
    other, owner = names("22222222", held=["x"]), names("11111111", held=["b"])
    assert (asked(storage, other), asked(storage, owner)) == (set(), {"a", "b"})
    assert study_name(storage, owner) == earlier
    ask(SweepStudy(storage, other), "c")
    ask(SweepStudy(storage, owner), "d")
    # A second record that came to hold some of its trials does not share it.
    late = names("33333333", held=["a"])
    ask(SweepStudy(storage, late), "e")
    assert asked(storage, owner) == {"a", "b", "d"}
    assert asked(storage, other) == {"c"}
    assert asked(storage, late) == {"e"}


def test_an_earlier_study_without_trials_is_left_alone(storage: str) -> None:
    ask(SweepStudy(storage, "disc 0123456789ab aaaaaa"))
    ask(SweepStudy(storage, names("11111111")), "a")
    assert sorted(optuna.study.get_all_study_names(storage)) == [
        "disc 0123456789ab aaaaaa",
        "disc 0123456789ab aaaaaa 11111111",
    ]


def test_the_studies_of_other_thresholds_are_read_too_and_of_other_sweeps_not(storage: str) -> None:
    one = names("11111111", held=["b"])
    ask(SweepStudy(storage, names("11111111", thresholds="bbbbbb")), "a")
    ask(SweepStudy(storage, "disc 0123456789ab cccccc"), "b")
    ask(SweepStudy(storage, one), "c")
    ask(SweepStudy(storage, "disc ba9876543210 aaaaaa"), "b2")
    assert asked(storage, one) == {"c"}
    assert asked(storage, one, all_thresholds=True) == {"a", "b", "c"}


def test_nothing_is_created_by_reading(storage: str, tmp_path: Path) -> None:
    assert asked(storage, names("11111111")) == set()
    assert study_name(storage, names("11111111")) == "disc 0123456789ab aaaaaa 11111111"
    assert list(tmp_path.iterdir()) == []


def test_the_digest_of_a_record_follows_links_and_ignores_user_password_and_driver(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "mlflow.db")
    file = record_digest(f"sqlite:///{tmp_path}/mlflow.db", "e")
    assert record_digest(f"phasefront-sqlite:///{tmp_path}/link.db", "e") == file
    server = record_digest("postgresql://anna:secret@host/db", "e")
    assert record_digest("phasefront-postgresql+psycopg://bob@host:5432/db?sslmode=require", "e") == server
    http = record_digest("http://host:5000", "e")
    assert record_digest("http://anna:secret@HOST:5000/", "e") == http
    different = {
        file,
        server,
        http,
        record_digest(f"sqlite:///{tmp_path}/mlflow.db", "other"),
        record_digest("postgresql://host/db2", "e"),
        record_digest("postgresql://host2/db", "e"),
        record_digest("postgresql://host:5433/db", "e"),
        record_digest("http://host:5001", "e"),
        record_digest("memory:", "e"),
    }
    assert len(different) == 9
    assert all(len(digest) == 8 for digest in different)
