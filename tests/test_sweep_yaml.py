"""Laws of reading YAML: types, places, the environment, overrides."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import UserError
from orchestrator.sweep.yaml import dump, read

scalars = st.one_of(
    st.integers(-(10**12), 10**12),
    st.floats(allow_nan=False),
    st.booleans(),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12),
    st.sampled_from(["1e-3", "yes", "no", "on", "null", "~", "<<", "${A}", "$${A}", "0x1F", "2020-01-01", "1_000", ""]),
)
documents = st.dictionaries(
    st.sampled_from("abcdefg"), st.one_of(scalars, st.lists(scalars), st.dictionaries(st.sampled_from("xyz"), scalars))
)


@pytest.fixture
def parse(tmp_path: Path) -> Any:
    def parse(text: str | bytes, *overrides: str, **environ: str) -> dict[str, Any]:
        path = tmp_path / "it.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        document = read(path, overrides, environ)
        document.stop_if_wrong()
        return document.data

    return parse


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", float("-inf")),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("12:30:00", "12:30:00"),
        ("'3'", "3"),
        ("!!str 3", "3"),
        ("!!float 3", 3.0),
    ],
)
def test_scalars_have_the_types_of_yaml_1_2(parse: Any, written: str, meant: object) -> None:
    found = parse(f"a: {written}\n")["a"]
    assert found == meant
    assert type(found) is type(meant)


@given(documents)
def test_dumped_values_read_back_unchanged(tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump({"begin": 1, **data}))
    document = read(path, (), {"A": "from the environment"})
    document.stop_if_wrong()
    assert repr(document.data) == repr({"begin": 1, **data})


def test_aliases_and_merge_keys_are_followed(parse: Any) -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\nd:\n  <<: [{z: 5, x: 6}, *a]\n"
    assert parse(text) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": {"x": 1, "y": 2},
        "d": {"z": 5, "x": 6, "y": 2},
    }


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("${N}", 3),
        ("${N}e-1", 0.3),
        ("'${N}'", "3"),
        ('"x${N}y"', "x3y"),
        ("${MISSING:-7}", 7),
        ("${EMPTY:-7}", 7),
        ("${EMPTY}", None),
        ("${MISSING:-}", None),
        ("${N:-7}", 3),
        ("${MISSING:-a:b}", "a:b"),
        ("$${N}", "${N}"),
        ("$N", "$N"),
        ("${N}${N}", 33),
        ("[${N}, '${T}', ${MISSING:-a,b}, ${MISSING:-[x]}]", [3, "true", "a,b", "[x]"]),
        ("{x: ${N}, y: ${T}}", {"x": 3, "y": True}),
        ("sqlite:///${D}/mlflow.db", "sqlite:////data/mlflow.db"),
        ("|-\n  ${N}", "3"),
    ],
)
def test_the_environment_is_read_before_types_are_decided(parse: Any, written: str, meant: object) -> None:
    found = parse(f"a: {written}\n", N="3", T="true", EMPTY="", D="/data")["a"]
    assert found == meant
    assert type(found) is type(meant)


def test_the_environment_is_not_read_in_keys_and_comments(parse: Any) -> None:
    assert parse("# ${NOT_SET}\n${N}: 1 # ${NOT_SET}\n", N="3") == {"${N}": 1}


@pytest.mark.parametrize(
    ("override", "data"),
    [
        ("a=2", {"a": 2, "b": {"c": [1, 2]}}),
        ("b.c=[5, x]", {"a": 1, "b": {"c": [5, "x"]}}),
        ("b.c.1=9", {"a": 1, "b": {"c": [1, 9]}}),
        ("b.d.e={f: 1e-3}", {"a": 1, "b": {"c": [1, 2], "d": {"e": {"f": 1e-3}}}}),
        ("a=x=y", {"a": "x=y", "b": {"c": [1, 2]}}),
        ("a=", {"a": None, "b": {"c": [1, 2]}}),
        ("a=${N}", {"a": 3, "b": {"c": [1, 2]}}),
        ("a=#4477AA", {"a": "#4477AA", "b": {"c": [1, 2]}}),
        ("a='3'", {"a": "3", "b": {"c": [1, 2]}}),
    ],
)
def test_an_override_is_laid_over_the_file(parse: Any, override: str, data: object) -> None:
    assert parse("a: 1\nb: {c: [1, 2]}\n", override, N="3") == data


def test_a_later_override_wins(parse: Any) -> None:
    assert parse("a: 1\n", "a=2", "b.c=3", "b=4", "a=5") == {"a": 5, "b": 4}


def test_an_override_replaces_an_invalid_value(parse: Any) -> None:
    assert parse("a: ${NOT_SET}\nb: {c: ${NOT_SET}}\n", "a=1", "b=2") == {"a": 1, "b": 2}


BAD_FILES = [
    pytest.param("", "1:1: the file is empty", id="empty"),
    pytest.param("# only\n", "1:1: the file is empty", id="comment"),
    pytest.param("- a\n", "1:1: a sweep file is a mapping", id="list"),
    pytest.param("just text\n", "1:1: a sweep file is a mapping", id="text"),
    pytest.param("a: 1\nb:\n\tc: 2\n", "3:1: not YAML: found character '\\t'", id="tab"),
    pytest.param("a: 1\nb: [1, 2\nc: 3\n", "3:2: not YAML: expected ',' or ']'", id="bracket"),
    pytest.param("a: 1\n b: 2\n", "2:3: not YAML: mapping values are not allowed", id="indent"),
    pytest.param("a: 'x\n", "2:1: not YAML: found unexpected end of stream", id="quote"),
    pytest.param("a: *x\n", "1:4: not YAML: found undefined alias", id="alias"),
    pytest.param("a: 1\n---\nb: 2\n", "2:1: not YAML: but found another document", id="two documents"),
    pytest.param("a: 1\nb: x\x07\n", "2:5: not YAML: character U+0007", id="control character"),
    pytest.param('a: "x\\0"\n', "1:4: the character U+0000 cannot be recorded", id="escaped NUL"),
    pytest.param('a: "\\ud800"\n', "1:4: the character U+D800 cannot be recorded", id="escaped surrogate"),
    pytest.param("a: 1\nb: é\n".encode("latin-1"), "2:4: not UTF-8 text: byte 0xe9", id="latin-1"),
    pytest.param("a: 1\n".encode("utf-16"), "1:1: not UTF-8 text: byte 0xff", id="utf-16"),
    pytest.param("a: " + "[" * 5000 + "]" * 5000, "1:1: nested too deeply", id="deep"),
    pytest.param("a: 1\nb: 2\na: 3\n", "3:1: duplicate key 'a'; the first is at", id="duplicate"),
    pytest.param("a: &x [*x]\n", "1:4: an alias inside the value", id="circle"),
    pytest.param("a: &x {<<: *x}\n", "1:4: '<<' merges a mapping into itself", id="merge circle"),
    pytest.param("a: {<<: 3}\n", "1:9: '<<' merges a mapping", id="merge number"),
    pytest.param("a: !!python/name:os.system x\n", "1:4: the tag", id="tag"),
    pytest.param("a: !!int x\n", "1:4: does not read as int", id="wrong tag"),
    pytest.param("[a]: 1\n", "1:1: a key must be a name", id="key"),
    pytest.param("b: 1\na: x${NOT_SET}\n", "2:4: the environment variable NOT_SET is not set", id="unset"),
    pytest.param("a: ${A:-${B}}\n", "1:4: a reference to the environment is", id="nested reference"),
    pytest.param("a: ${1}\n", "1:4: a reference to the environment is", id="bad reference"),
    pytest.param("a: " + "9" * 5000 + "\n", "1:4: does not read as int", id="long number"),
]


@pytest.mark.parametrize(("text", "said"), BAD_FILES)
def test_a_bad_file_is_refused_with_its_place(parse: Any, tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text)
    assert caught.value.text.startswith(f"{tmp_path / 'it.yaml'}:{said}")
    assert len(caught.value.mistakes) == 1


def test_a_file_that_expands_without_bound_is_refused(parse: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.sweep.yaml._MOST_NODES", 1000)
    lines = ["a0: &a0 [1, 1, 1, 1]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    with pytest.raises(UserError, match="aliases expand to more than"):
        parse("\n".join(lines))


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("a", "an override is path=value"),
        ("=3", "an override is path=value"),
        ("a..b=3", "an override is path=value"),
        ("a.x=3", "'a' is a value: nothing can be set inside it"),
        ("b.c.5=3", "'b.c' is a list of 2 values; it has no '5'"),
        ("b.c.points.x=3", "'b.c' is a list of 2 values; it has no 'points'"),
        ("a=[1", "not YAML: expected ',' or ']'"),
        ("a=${NOT_SET}", "the environment variable NOT_SET is not set"),
        ("a={x: 1, x: 2}", "duplicate key 'x'"),
    ],
)
def test_a_bad_override_is_named(parse: Any, override: str, rule: str) -> None:
    with pytest.raises(UserError) as caught:
        parse("a: 1\nb: {c: [1, 2]}\n", override)
    assert caught.value.text.startswith(f"--set {override}: {rule}")
    assert len(caught.value.mistakes) == 1


def test_a_missing_file_names_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "there.yaml").write_text("a: 1\n")
    with pytest.raises(UserError) as caught:
        read(tmp_path / "here.yaml")
    assert caught.value.text.startswith(f"{tmp_path / 'here.yaml'}: there is no such file\n  valid: there.yaml\n")
    with pytest.raises(UserError, match="there is no folder"):
        read(tmp_path / "no" / "here.yaml")


def test_a_missing_file_suggests_the_nearest_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    for name in ("configs/demo.yaml", "sweep.yaml", ".hidden.yaml", ".swep.yaml", "notes.txt"):
        Path(name).write_text("a: 1\n")
    for asked, meant in [
        ("config/demo.yaml", "configs/demo.yaml"),
        ("config/dem.yaml", "configs/demo.yaml"),
        ("swep.yaml", "sweep.yaml"),
        ("demo.yaml", "configs/demo.yaml"),
        ("configs/../swep.yaml", "configs/../sweep.yaml"),
        (str(tmp_path / "config" / "demo.yaml"), str(tmp_path / "configs" / "demo.yaml")),
    ]:
        with pytest.raises(UserError) as caught:
            read(Path(asked))
        assert caught.value.mistakes[0].next_step == f"did you mean '{meant}'?"
    with pytest.raises(UserError) as caught:
        read(Path("nofile.yaml"))
    assert caught.value.mistakes[0].choices == ["sweep.yaml"]
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert caught.value.mistakes[0].choices == ["sweep.yaml"]


def test_a_folder_is_no_sweep_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        read(tmp_path)


@given(st.text(max_size=60) | st.binary(max_size=60))
def test_no_file_makes_the_reader_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, text: str | bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    try:
        read(path, (), {}).stop_if_wrong()
    except UserError as error:
        assert error.text.startswith(f"{path}:")  # noqa: PT017 - not raising is as good
