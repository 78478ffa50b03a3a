"""`vectorize tokens` from outside: what it prints, where, and with which exit code."""

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.commands import COMMAND, Vectorize
from vectorize_pipelines.gateway.door.tokens import Tokens, from_setting
from vectorize_pipelines.settings import Settings, load_settings

TOKEN = re.compile(r"vec_[A-Za-z0-9_-]{43}")
HASH = re.compile(r"[0-9a-f]{64}")
VARIABLE = "VECTORIZE_GATEWAY__TOKENS"


def test_a_token_is_printed_once_and_works(vectorize: Vectorize, settings: Settings) -> None:
    done = vectorize("tokens", "create", "alice", "--scope", "admin", "--scope", "read", "--json")
    assert done.code == 0, done.err
    assert sorted(done.json) == ["name", "scopes", "token"]
    assert (done.json["name"], done.json["scopes"]) == ("alice", ["read", "admin"])
    token = done.json["token"]
    assert TOKEN.fullmatch(token)
    found = Tokens.open(settings).find(token.encode())
    assert found is not None
    assert found.name == "alice"
    file = settings.home / "tokens.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert token not in file.read_text()


def test_the_token_alone_is_on_stdout(vectorize_here: Vectorize) -> None:
    done = vectorize_here("tokens", "create", "bob")
    assert TOKEN.fullmatch(done.out.strip())
    assert "not shown again" in done.err
    assert vectorize_here("tokens", "list", "--json").json[0]["scopes"] == ["read"]


def test_a_list_has_neither_tokens_nor_hashes(vectorize_here: Vectorize, monkeypatch: pytest.MonkeyPatch) -> None:
    made = vectorize_here("tokens", "create", "灯塔 1", "--scope", "submit", "--json").json
    fixed = vectorize_here("tokens", "create", "ci", "--scope", "admin", "--no-file", "--json").json
    monkeypatch.setenv(VARIABLE, fixed["setting"])
    rows = vectorize_here("tokens", "list", "--json").json
    assert [sorted(row) for row in rows] == [["created_at", "name", "scopes", "where"]] * 2
    assert [(row["name"], row["scopes"], row["where"]) for row in rows] == [
        ("灯塔 1", ["submit"], "file"),
        ("ci", ["admin"], "environment"),
    ]
    assert rows[0]["created_at"].endswith("+00:00")
    assert rows[1]["created_at"] is None
    for arguments in (["list"], ["list", "--json"]):
        done = vectorize_here("tokens", *arguments)
        for said in (done.out, done.err):
            assert made["token"] not in said
            assert fixed["token"] not in said
            assert not HASH.search(said)
    assert vectorize_here("tokens", "list").out.splitlines()[1].split() == ["ci", "admin", "environment"]


def test_an_empty_list_says_what_to_do(vectorize_here: Vectorize) -> None:
    done = vectorize_here("tokens", "list")
    assert (done.code, done.out) == (0, "")
    assert "vectorize tokens create" in done.err
    assert vectorize_here("tokens", "list", "--json").json == []


def test_a_token_for_the_environment_is_kept_nowhere(
    vectorize_here: Vectorize, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = vectorize_here("tokens", "create", "build server", "--scope", "submit", "--no-file")
    token, line = done.out.splitlines()
    assert TOKEN.fullmatch(token)
    assert not (home / "tokens.json").exists()
    shown = subprocess.run(["sh", "-c", f'{line}; printf %s "${VARIABLE}"'], capture_output=True, text=True, check=True)
    (kept,) = from_setting(SecretStr(shown.stdout))
    assert kept.name == "build server"
    monkeypatch.setenv(VARIABLE, shown.stdout)
    found = Tokens.open(load_settings()).find(token.encode())
    assert found == kept
    another = vectorize_here("tokens", "create", "another", "--no-file")
    assert "behind a comma" in another.err
    assert sorted(vectorize_here("tokens", "create", "third", "--no-file", "--json").json) == [
        "name",
        "scopes",
        "setting",
        "token",
    ]


def test_a_revoked_token_is_gone_and_others_are_not(vectorize_here: Vectorize, settings: Settings) -> None:
    first = vectorize_here("tokens", "create", "alice", "--json").json["token"]
    second = vectorize_here("tokens", "create", "bob", "--json").json["token"]
    done = vectorize_here("tokens", "revoke", "alice")
    assert (done.code, done.out, done.err) == (0, "alice is revoked\n", "")
    tokens = Tokens.open(settings)
    assert tokens.find(first.encode()) is None
    assert tokens.find(second.encode()) is not None
    last = vectorize_here("tokens", "revoke", "bob", "--json")
    assert last.json == {"revoked": "bob"}
    assert "lets everybody in" in last.err


def test_a_token_of_the_environment_is_revoked_there(
    vectorize_here: Vectorize, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, vectorize_here("tokens", "create", "ci", "--no-file", "--json").json["setting"])
    done = vectorize_here("tokens", "revoke", "ci")
    assert done.code == 2
    assert VARIABLE in done.err
    assert vectorize_here("tokens", "create", "ci").code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["create", "alice"], "'alice' already"),
        (["create", "a\nb"], "printable"),
        (["create", "x" * 65], "1 to 64"),
        (["create", ""], "1 to 64"),
        (["create", "a,b", "--no-file"], "comma"),
        (["create", "a\tb", "--no-file"], "printable"),
        (["create", "bob", "--scope", "write"], "write"),
        (["create"], "NAME"),
        (["revoke", "nobody"], "no token 'nobody'"),
        (["show", "alice"], "show"),
    ],
)
def test_errors_say_what_was_wrong(vectorize_here: Vectorize, arguments: list[str], said: str) -> None:
    vectorize_here("tokens", "create", "alice")
    before = vectorize_here("tokens", "list", "--json").json
    done = vectorize_here("tokens", *arguments)
    assert done.code == 2
    assert said in done.err
    assert done.out == ""
    assert vectorize_here("tokens", "list", "--json").json == before


def test_a_file_that_cannot_be_trusted_is_left_alone(vectorize_here: Vectorize, home: Path) -> None:
    vectorize_here("tokens", "create", "alice")
    file = home / "tokens.json"
    file.chmod(0o644)
    for arguments in (["list"], ["create", "bob"], ["revoke", "alice"]):
        done = vectorize_here("tokens", *arguments)
        assert done.code == 1
        assert "chmod 600" in done.err
    file.chmod(0o600)
    file.write_text("{")
    for arguments in (["list"], ["create", "bob"], ["revoke", "alice"]):
        done = vectorize_here("tokens", *arguments)
        assert done.code == 1
        assert "tokens.json is damaged" in done.err
    assert file.read_text() == "{"


def test_a_wrong_setting_is_not_quoted(vectorize_here: Vectorize, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "vec_" + "s3cret" * 8)
    for arguments in (["list"], ["create", "bob"], ["revoke", "bob"]):
        done = vectorize_here("tokens", *arguments)
        assert done.code == 2
        assert "gateway.tokens: entry 1" in done.err
        assert "s3cret" not in done.err + done.out


def test_commands_at_once_lose_nothing(settings: Settings) -> None:
    names = [f"name {number}" for number in range(4)]
    running = [
        subprocess.Popen([*COMMAND, "tokens", "create", name, "--json"], stdout=subprocess.PIPE) for name in names
    ]
    made = [json.loads(process.communicate(timeout=280)[0]) for process in running]
    tokens = Tokens.open(settings)
    assert [tokens.find(each["token"].encode()) is not None for each in made] == [True] * len(names)
    assert sorted(token.name for token in tokens.current()) == names


def test_the_command_is_light(home: Path) -> None:
    """A token is made on machines and in scripts where nothing is embedded."""
    code = (
        "import sys; sys.argv = ['vectorize', 'tokens', 'list', '--json']\n"
        "from vectorize_pipelines.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'dagster', 'fastapi', 'torch', 'openvino', 'lancedb', 'uvicorn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
