"""No secret is printed, logged or recorded, wherever it comes from."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from driving import environment
from hypothesis import example, given
from hypothesis import strategies as st
from servers import postgres_server

from orchestrator.cli import main, parser
from orchestrator.commands.again import command_line
from orchestrator.commands.browse import browse_lines
from orchestrator.errors import UserError, show
from orchestrator.output import GuardedStream
from orchestrator.printable import printable
from orchestrator.secrets import HIDDEN, Hider, is_secret_name, learn, secrets_in, shown
from orchestrator.sweep.sweep import Sweep

TOKEN = "hf_canaryTOKEN0123456789"
PASSWORD = "canary/PassW0rd"
"""`/` is a character that addresses of databases hold as it is, and whose percent-encoded form is another text."""

JOB = """\
import os
def train(params, seed, device, report):
    report(1, loss=params["lr"])
    if params["lr"] > 1:
        raise ValueError(f"GET https://me:canary@hub/x?token=canary: {os.environ['HF_TOKEN']} was refused")
"""
SWEEP = "job: mine:train\naxes: {lr: [1.0, 2.0]}\n"


@pytest.mark.parametrize(
    ("names", "secret"),
    [
        ("HF_TOKEN MLFLOW_TRACKING_TOKEN AWS_SECRET_ACCESS_KEY AWS_ACCESS_KEY_ID WANDB_API_KEY PGPASSWORD", True),
        ("DB_PASS MYSQL_PWD POSTGRES_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY AZURE_STORAGE_CONNECTION_STRING", True),
        ("MAX_TOKENS TOKENIZER TOKEN_BUDGET SORT_KEY RANDOM_KEY PWD OLDPWD SEED RAY_AUTH_TOKEN_PATH BYPASS", False),
    ],
)
def test_a_secret_is_known_by_its_variable(names: str, secret: bool) -> None:
    assert {name: is_secret_name(name) for name in names.split()} == dict.fromkeys(names.split(), secret)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (
            "postgresql://h/db?user=me&sslpassword=x1&password=x2",
            "postgresql://h/db?user=me&sslpassword=***&password=***",
        ),
        ("https://ghp_x@host/x", "https://***@host/x"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("s3://b/x?X-Amz-Signature=x&y=1", "s3://b/x?X-Amz-Signature=***&y=1"),
        ("wasbs://box@account/x?sv=1&sig=x", "wasbs://box@account/x?sv=1&sig=***"),
        ("ftp://me:x@host/artifacts", "ftp://me:***@host/artifacts"),
        ("postgresql://me:${PASSWORD}@host/db", "postgresql://me:${PASSWORD}@host/db"),
    ],
)
def test_every_part_of_an_address_that_is_a_secret_is_masked(uri: str, expected: str) -> None:
    assert shown(uri) == expected
    assert bool(secrets_in(uri)) == ("***" in expected)


def test_a_secret_is_hidden_in_any_text() -> None:
    learn("postgresql://me:learnt/Passw0rd@host/db")
    hide = Hider(
        {"HF_TOKEN": TOKEN, "DATABASE_URL": "postgresql://me:of%2Faddress@h/db", "SHORT_TOKEN": "ab", "PWD": "/tmp"}
    )
    assert hide(f"a {TOKEN}\\n{TOKEN}x of/address of%2Faddress") == "a ***\\n***x *** ***"
    assert hide("could not resolve host Passw0rd, or learnt/Passw0rd") == "could not resolve host ***, or ***"
    assert hide("dsn postgresql://a:b@h, http://h:5000/x@y") == "dsn postgresql://a:***@h, http://h:5000/x@y"
    assert hide("Authorization: Bearer abc") == "Authorization: Bearer ***"
    assert hide("12 trials of /tmp, ab = cabbage") == "12 trials of /tmp, ab = cabbage"


def test_a_path_or_an_ordinary_word_is_not_taken_for_a_secret(tmp_path: Path) -> None:
    hide = Hider({"CREDENTIALS": str(tmp_path), "POSTGRES_PASSWORD": "mlflow", "X_TOKEN": "grokking"})
    assert hide(f"{tmp_path} mlflow.db grokking_gap") == f"{tmp_path} mlflow.db grokking_gap"


def test_an_error_is_kept_without_the_secrets_of_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert printable(f"401 for {TOKEN}") == "401 for ***"


def test_a_secret_is_hidden_before_a_message_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    token = "".join(f"canary{i:03d}" for i in range(40))
    monkeypatch.setenv("HF_TOKEN", token)
    assert "canary" not in show(f"a value of {token}")


def test_a_stream_hides_what_is_written_and_is_the_stream_otherwise() -> None:
    inner = io.StringIO()
    stream = GuardedStream(inner, hide=Hider({"HF_TOKEN": TOKEN}), outlive=False)
    print("one", TOKEN, file=stream)
    stream.writelines(["two ", TOKEN])
    assert inner.getvalue() == "one ***\ntwo ***"
    assert stream.isatty() is False


def load(path: Path, text: str, overrides: tuple[str, ...] = (), **environ: str) -> Sweep:
    (path / "mine.py").write_text(JOB)
    (path / "it.yaml").write_text(text)
    return Sweep.load(path / "it.yaml", overrides, environ)


@pytest.mark.parametrize(
    ("lines", "overrides", "place"),
    [
        ("fixed: {token: '${HF_TOKEN}'}", (), "it.yaml:3:16: the variable HF_TOKEN is a secret"),
        ("fixed: {token: 'x-${HF_TOKEN:-none}'}", (), "it.yaml:3:16: the variable HF_TOKEN is a secret"),
        ("fixed: {address: '${DATABASE}'}", (), "it.yaml:3:18: the variable DATABASE is a secret"),
        ("name: '${HF_TOKEN}'", (), "it.yaml:3:7: the variable HF_TOKEN"),
        ("output: '${HF_TOKEN}'", (), "it.yaml:3:9: the variable HF_TOKEN"),
        ("tracking: {experiment: '${HF_TOKEN}'}", (), "it.yaml:3:24: the variable HF_TOKEN"),
        ("", (f"fixed.token={TOKEN}",), "--set fixed.token=***: the variable HF_TOKEN is a secret"),
        ("", (f"axes.token=[x, {TOKEN}]",), "the variable HF_TOKEN is a secret"),
        ("tracking: {artifacts: 's3://k:canary@bucket'}", (), "it.yaml:3:23: MLflow records the address"),
        ("tracking: {artifacts: 's3://k:${HF_TOKEN}@b'}", (), "it.yaml:3:23: the variable HF_TOKEN"),
    ],
)
def test_a_secret_where_it_would_be_recorded_is_refused(
    lines: str, overrides: tuple[str, ...], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    database = f"postgresql://me:{PASSWORD}@host/db"
    with pytest.raises(UserError) as caught:
        load(tmp_path, SWEEP + lines, overrides, HF_TOKEN=TOKEN, DATABASE=database)
    assert place in caught.value.text
    assert "only tracking.uri and search.storage may hold a secret" in caught.value.text
    assert TOKEN not in caught.value.text and "canary" not in caught.value.text.lower()


@pytest.mark.parametrize(
    ("written", "environ"),
    [
        ("postgresql://me:${DB_PASSWORD}@host/db", {"DB_PASSWORD": PASSWORD}),
        ("postgresql://me:${DB_PASSWORD:-canary}@host/db", {}),
        ("${DATABASE}", {"DATABASE": f"postgresql://me:{PASSWORD}@host/db"}),
        ("http://me:${X}@host", {"X": "canary"}),
    ],
)
def test_the_recorded_file_has_the_variable_of_a_secret(
    written: str, environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    search = f"{{kind: boundary, target: phase, storage: '{written}', budget: 8, start: 4}}"
    axes = SWEEP.replace("[1.0, 2.0]", "{scale: linear, from: 1, to: 2}")
    for text in (f"{SWEEP}tracking: {{uri: '{written}'}}\n", f"{axes}search: {search}\n"):
        sweep = load(tmp_path, text, **environ)
        resolved = sweep.resolved_yaml()
        assert "canary" not in resolved
        if environ:
            again = load(tmp_path, resolved, **environ)
            assert (again.tracking.uri, again.search.storage) == (sweep.tracking.uri, sweep.search.storage)
            assert again.id == sweep.id


def test_the_address_of_the_environment_is_recorded_by_its_name_where_it_has_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    secret = load(tmp_path, SWEEP, MLFLOW_TRACKING_URI=f"http://me:{TOKEN}@host").resolved_yaml()
    plain = load(tmp_path, SWEEP, MLFLOW_TRACKING_URI="http://host").resolved_yaml()
    assert "uri: ${MLFLOW_TRACKING_URI}" in secret
    assert "uri: http://host" in plain


@pytest.mark.parametrize(
    ("environ", "prefix"), [({"DB_PASSWORD": PASSWORD}, ""), ({"DATABASE": "all"}, ""), ({}, "PASSWORD=... ")]
)
def test_the_command_to_go_on_can_be_typed_and_shows_no_password(
    environ: dict[str, str], prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"postgresql://me:{PASSWORD}@host/db"
    environ = {name: uri if value == "all" else value for name, value in environ.items()}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(tmp_path))
    sweep = load(tmp_path, SWEEP)
    options = ["--set", f"tracking.uri={uri}", "--set", "axes.lr=[1, 2]"]
    line = command_line(parser().parse_args(["run", str(sweep.source), *options]), "run")
    assert PASSWORD not in line
    assert line.startswith(f"{prefix}phasefront run ")
    shim = tmp_path / "phasefront"
    shim.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([sys.argv[1:], os.environ.get('PASSWORD', '')]))\n"
    )
    shim.chmod(0o755)
    path = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    typed = subprocess.check_output(["sh", "-c", line.replace("=...", f"={PASSWORD}")], env={**os.environ, **path})
    words, password = json.loads(typed)
    overrides = parser().parse_args(words).overrides
    assert Sweep.load(sweep.source, overrides, {**environ, "PASSWORD": password}).tracking.uri == uri


def test_the_command_that_shows_a_record_names_the_variable_of_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"phasefront-postgresql://me:{PASSWORD}@host/db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    command = browse_lines(uri, "7", None)[0].removeprefix("browse    ").replace("mlflow ui", "echo", 1)
    said = subprocess.run(["sh", "-c", command[command.index("echo") :]], capture_output=True, text=True, check=True)
    assert said.stdout == f"--backend-store-uri postgresql://me:{PASSWORD}@host/db\n"
    assert PASSWORD not in command


def everything(folder: Path, database: str) -> Iterator[tuple[str, bytes]]:
    """All files, and all values of all tables."""
    import psycopg2

    for path in folder.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and path.name != "mine.py":
            yield str(path), path.read_bytes()
    with psycopg2.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
        for (table,) in cursor.fetchall():
            cursor.execute(f'SELECT * FROM "{table}"')
            for row in cursor.fetchall():
                yield f"table {table}", repr(row).encode()


def phasefront(*arguments: str, cwd: Path, environ: dict[str, str]) -> tuple[int, str]:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment(environ), capture_output=True, text=True, timeout=240)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_no_output_record_or_artifact_holds_a_secret(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(JOB)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    environ = {"HF_TOKEN": TOKEN}
    with postgres_server() as plain:
        uri = plain.replace("tester@", f"tester:{PASSWORD}@")
        record = ("--set", f"tracking.uri={uri}")
        said = []
        for command, code in (("run", 1), ("status", 0)):
            options = ("--workers", "1") if command == "run" else ()
            given = ("-m", "orchestrator", command, "sweep.yaml", *record, *options)
            ended, text = phasefront(*given, cwd=tmp_path, environ=environ)
            assert ended == code, text
            said.append(text)
        away = ("--set", f"tracking.uri=postgresql://me:{PASSWORD}@{PASSWORD}@127.0.0.1:1/db")
        said.append(phasefront("-m", "orchestrator", "status", "sweep.yaml", *away, cwd=tmp_path, environ=environ)[1])
        fault = (
            "import sys, orchestrator.commands as c, orchestrator.cli as cli\n"
            "def fail(given): raise RuntimeError(f'{given} {__import__(\"os\").environ}')\n"
            "c.run_command = fail; sys.exit(cli.main())"
        )
        ended, text = phasefront("-c", fault, "run", "sweep.yaml", *record, cwd=tmp_path, environ=environ)
        assert ended == 70, text
        said.append(text)
        said.append(phasefront("-m", "orchestrator", "run", "sweep.yaml", uri, cwd=tmp_path, environ=environ)[1])
        found = [*((f"output {n}", text.encode()) for n, text in enumerate(said)), *everything(tmp_path, plain)]
    assert any(b"was refused" in content for where, content in found if where.startswith("table tags"))
    assert any(where.endswith("sweep.yaml") and b"tracking" in content for where, content in found)
    leaks = {where: content for where, content in found if b"canary" in content.lower() or b"PassW0rd" in content}
    assert leaks == {}


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("postgresql://h:1/db?user=a&password=abc,d'e\"f);g&x=1", "postgresql://h:1/db?user=a&password=***&x=1"),
        ("http://me:pass word@127.0.0.1:1", "http://me:***@127.0.0.1:1"),
        ("postgresql:/u:tops@ecret@h/db", "postgresql:/u:***@h/db"),
        ("postgresql//u:topsecret@h/db", "postgresql//u:***@h/db"),
        ("postgresql:u:topsecret@h/db", "postgresql:u:***@h/db"),
        ("u:topsecret@h/db", "u:***@h/db"),
        ("http://h?pass=topsecret", "http://h?pass=***"),
        ("http://h:5000/a@b", "http://h:5000/a@b"),
        ("sqlite:////a:b@c.db", "sqlite:////a:b@c.db"),
        ("postgresql://h/db?password=${PW}", "postgresql://h/db?password=${PW}"),
    ],
)
def test_a_password_is_masked_in_mistyped_addresses_too(uri: str, expected: str) -> None:
    assert shown(uri) == expected


_SECRETS = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=12, max_size=30)


@given(_SECRETS, st.text("ab '\"\\\n", max_size=5), st.text("ab '\"\\\n", max_size=5))
@example("p\\a\"s\u00f6s'word", "", "")
def test_a_secret_is_hidden_in_the_forms_that_errors_write(secret: str, before: str, after: str) -> None:
    """`repr` of an argument or a dictionary, `ascii`, JSON and its `repr`, and addresses."""
    hide = Hider({"THE_PASSWORD": secret})
    text = f"{before} {secret} {after}"
    for written in (text, repr(text), ascii(text), json.dumps(text), json.dumps(text, ensure_ascii=False)):
        for said in (written, repr(written), str(KeyError(written)), repr({"a": written})):
            assert HIDDEN in hide(said), said
    for form in (quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1], ascii(secret)[1:-1]):
        assert form not in hide(f"{before} {form} {after}")


@pytest.mark.parametrize("line", ["MIIEpAIBAAKCAQEA", "xxyyzz=="])
def test_each_line_of_a_key_is_hidden(line: str) -> None:
    hide = Hider({"SIGNING_KEY": "-----BEGIN KEY-----\nMIIEpAIBAAKCAQEA\nxxyyzz==\n-----END KEY-----"})
    assert line not in hide(f"line 3: {line}")
    assert hide("-----BEGIN KEY-----") == "-----BEGIN KEY-----"


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me:p@ss:w0rdlongxyz@127.0.0.1:1/db",
        "postgresql://me:p@ssw0rdlongxyz@127.0.0.1:1/db",
        "postgresql://u:w0rdlongxyz@h:notaport/db",
        "postgresql://u:w0rdlongxyz@[::1/db",
        "postgresql://u:w0rdlongxyz%00@127.0.0.1:1/db",
        "postgresql+foo://u:w0rdlongxyz@h/db",
        "http://u:w0rdlongxyz@[::1",
        "http://u:w0rdlongxyz@h:notaport",
    ],
)
@pytest.mark.parametrize("command", ["check", "plan", "status", "run", "audit"])
def test_an_address_that_cannot_be_read_is_answered_without_its_password(
    command: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.yaml").write_text("job: grokking\nfixed: {steps: 10}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert main([command, "sweep.yaml"]) == 2
    said = "".join(capsys.readouterr())
    assert "MLFLOW_TRACKING_URI" in said and "next:" in said, said
    assert "w0rdlongxyz" not in said and "Traceback" not in said, said
