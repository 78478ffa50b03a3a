"""The tokens of an installation: what is kept of them, who may touch it, and how a running server follows."""

import hmac
import json
import logging
import multiprocessing
import os
import stat
import string
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from vectorize_pipelines.errors import DamagedStateError, SettingsError, StateError, VectorizeError
from vectorize_pipelines.gateway.door.tokens import (
    MAX_NAME,
    Scope,
    Token,
    Tokens,
    TokensFile,
    as_entry,
    digest_of,
    from_setting,
    new_token,
)
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.home import FILES, keep_private

PROCESSES = 4
EACH = 5
WAIT_SECONDS = 120


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "installation" / "tokens.json"


@pytest.fixture
def file(place: Path) -> TokensFile:
    return TokensFile(place)


def following(file: TokensFile, *fixed: Token) -> Tokens:
    """The tokens of a server that looks at the file each time."""
    return Tokens(file, fixed, every_seconds=0)


def test_a_token_is_known_by_its_text_alone(file: TokensFile, place: Path) -> None:
    text = file.add("alice", [Scope.SUBMIT, Scope.READ])
    assert text.startswith("vec_")
    assert len(text) == len("vec_") + 43, "256 bits in base64"
    (kept,) = file.read()
    assert (kept.name, kept.scopes, kept.place) == ("alice", (Scope.READ, Scope.SUBMIT), "file")
    assert kept.created_at is not None
    assert abs((datetime.now(UTC) - kept.created_at).total_seconds()) < 600
    assert following(file).find(text.encode()) == kept
    assert following(file).find(text.encode() + b"x") is None
    assert following(file).find(b"") is None
    content = place.read_text()
    assert text not in content
    assert text.removeprefix("vec_") not in content
    assert json.loads(content)["version"] == 1
    assert [sorted(each) for each in json.loads(content)["tokens"]] == [["created_at", "name", "scopes", "sha256"]]


def test_what_is_kept_is_shown_nowhere(file: TokensFile) -> None:
    text = file.add("alice", [Scope.READ])
    (kept,) = file.read()
    shown = repr(kept) + str(kept)
    assert text not in shown
    assert kept.digest.hex() not in shown
    assert repr(kept.digest) not in shown


def test_a_name_is_there_once(file: TokensFile) -> None:
    first = file.add("alice", [Scope.READ])
    with pytest.raises(SettingsError, match="'alice' already"):
        file.add("alice", [Scope.ADMIN])
    assert following(file).find(first.encode()) == file.read()[0]
    file.remove("alice")
    second = file.add("alice", [Scope.ADMIN])
    assert following(file).find(first.encode()) is None
    assert following(file).find(second.encode()) is not None


@pytest.mark.parametrize("name", ["", " alice", "alice ", "a\nb", "a\tb", "a\x00b", "a\x7f", "x" * (MAX_NAME + 1)])
def test_a_name_is_printable_and_short(file: TokensFile, place: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="name of a token must"):
        file.add(name, [Scope.READ])
    with pytest.raises(ValueError, match="must"):
        as_entry(name, [Scope.READ], new_token())
    assert not place.exists()


def test_what_is_not_there_cannot_be_revoked(file: TokensFile) -> None:
    file.add("alice", [Scope.READ])
    with pytest.raises(SettingsError, match="no token 'bob'"):
        file.remove("bob")
    assert [token.name for token in file.read()] == ["alice"]


names = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=MAX_NAME)
names_of_the_setting = names.filter(lambda name: "," not in name)
scopes = st.lists(st.sampled_from(list(Scope)), min_size=1, max_size=5)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["a", "b", "灯塔", "d e", "'\"\\"]), scopes), max_size=12))
def test_the_file_holds_what_was_added_and_not_removed(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, str, list[Scope]]]
) -> None:
    file = TokensFile(tmp_path_factory.mktemp("tokens") / "tokens.json")
    expected: dict[str, tuple[str, set[Scope]]] = {}
    for adds, name, granted in steps:
        try:
            if adds:
                expected |= {name: (file.add(name, granted), set(granted))}
            else:
                file.remove(name)
                del expected[name]
        except SettingsError:
            assert adds == (name in expected)
    known = following(file)
    assert {token.name: set(token.scopes) for token in file.read()} == {
        name: granted for name, (_, granted) in expected.items()
    }
    for name, (text, _) in expected.items():
        found = known.find(text.encode())
        assert found is not None
        assert found.name == name


@given(
    st.lists(st.tuples(names.filter(lambda name: "," not in name), scopes), max_size=5, unique_by=lambda each: each[0])
)
def test_the_setting_holds_what_its_entries_say(made: list[tuple[str, list[Scope]]]) -> None:
    texts = [new_token() for _ in made]
    entries = [as_entry(name, granted, text) for (name, granted), text in zip(made, texts, strict=True)]
    found = from_setting(SecretStr(" , ".join(entries)))
    assert [(token.name, set(token.scopes)) for token in found] == [(name, set(granted)) for name, granted in made]
    assert [token.digest for token in found] == [digest_of(text.encode()) for text in texts]
    assert all(token.created_at is None and token.place == "environment" for token in found)


@given(st.text())
def test_a_setting_that_is_none_is_refused_and_not_quoted(text: str) -> None:
    secret = "vec_" + "k3y" * 12
    with pytest.raises(SettingsError, match="entry 1 is not") as refused:
        from_setting(SecretStr(secret + text))
    assert "k3y" not in str(refused.value)


def test_entries_of_the_setting_have_their_form() -> None:
    digest = digest_of(b"x").hex()
    assert from_setting(None) == ()
    assert from_setting(SecretStr(f"a:b:read:{digest.upper()},"))[0].name == "a:b"
    wrong = [
        "a",
        "a:read",
        f"a:{digest}",
        f":read:{digest}",
        f"a::{digest}",
        f"a:write:{digest}",
        f"a:read:{digest[1:]}",
    ]
    for entry in [*wrong, f"a:read:{digest}0", f"a:read:{digest[:-1]}g", f"a:read:vec_{digest[4:]}"]:
        with pytest.raises(SettingsError, match="entry 2"):
            from_setting(SecretStr(f"ok:read:{digest},{entry}"))
    with pytest.raises(SettingsError, match="same name"):
        from_setting(SecretStr(f"a:read:{digest},a:admin:{digest_of(b'y').hex()}"))
    with pytest.raises(ValueError, match="comma"):
        as_entry("a,b", [Scope.READ], new_token())


def test_every_token_is_compared_whichever_it_is(file: TokensFile, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [file.add(name, [Scope.READ]) for name in string.ascii_lowercase[:7]]
    known = following(file)
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def counted(kept: bytes, given: bytes) -> bool:
        compared.append(kept)
        return compare(kept, given)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    for text in [texts[0], texts[3], texts[-1], "vec_none", ""]:
        compared.clear()
        known.find(text.encode())
        assert compared == [token.digest for token in file.read()]


def test_nobody_else_gets_at_the_file(file: TokensFile, place: Path) -> None:
    place.parent.mkdir(mode=0o700)
    os.umask(0)
    file.add("alice", [Scope.READ])
    file.add("bob", [Scope.READ])
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert sorted(path.name for path in place.parent.iterdir()) == ["tokens.json", "tokens.json.lock"]


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o602, 0o620, 0o666])
def test_a_file_that_is_open_to_others_is_refused_with_the_remedy(file: TokensFile, place: Path, mode: int) -> None:
    text = file.add("alice", [Scope.READ])
    place.chmod(mode)
    for use in (file.read, following(file).current, lambda: file.add("bob", [Scope.READ])):
        with pytest.raises(StateError, match="chmod 600"):
            use()
    assert following(TokensFile(place, shared=True)).find(text.encode()) is not None
    place.chmod(0o600)
    assert following(file).find(text.encode()) is not None


def test_a_folder_in_which_others_may_replace_it_is_refused(file: TokensFile, place: Path) -> None:
    file.add("alice", [Scope.READ])
    place.parent.chmod(0o777)
    with pytest.raises(StateError, match="chmod go-w"):
        file.read()
    place.parent.chmod(0o1777)
    assert len(file.read()) == 1, "as /tmp: nobody replaces what belongs to others"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(file: TokensFile, place: Path) -> None:
    file.add("alice", [Scope.READ])
    os.chown(place, 4321, -1)
    with pytest.raises(StateError, match="chown"):
        file.read()


def test_several_users_share_the_file_of_a_shared_home(place: Path) -> None:
    place.parent.mkdir(mode=0o770)
    place.parent.chmod(0o2770)
    shared = TokensFile(place, shared=True)
    shared.add("alice", [Scope.READ])
    assert stat.S_IMODE(place.stat().st_mode) == 0o660
    place.chmod(0o640)
    shared.add("bob", [Scope.READ])
    assert stat.S_IMODE(place.stat().st_mode) == 0o640


CONTENT = {"version": 1, "tokens": []}
ENTRY = {"name": "a", "scopes": ["read"], "sha256": "0" * 64, "created_at": "2026-01-01T00:00:00Z"}
DAMAGES = {
    "empty": b"",
    "half": b'{"version": 1, "tokens": [{"na',
    "zeros": b"\0" * 512,
    "not UTF-8": b"\xff\xfe{}",
    "a list": b"[]",
    "nothing": b"{}",
    "deep": b"[" * 100_000,
    "another version": json.dumps(CONTENT | {"version": 2}).encode(),
    "no version": b'{"version": null, "tokens": []}',
    "more": json.dumps(CONTENT | {"users": []}).encode(),
    "no scopes": json.dumps(CONTENT | {"tokens": [ENTRY | {"scopes": []}]}).encode(),
    "another scope": json.dumps(CONTENT | {"tokens": [ENTRY | {"scopes": ["write"]}]}).encode(),
    "no hash": json.dumps(CONTENT | {"tokens": [ENTRY | {"sha256": "vec_secret"}]}).encode(),
    "no name": json.dumps(CONTENT | {"tokens": [ENTRY | {"name": "a\nb"}]}).encode(),
    "no time": json.dumps(CONTENT | {"tokens": [ENTRY | {"created_at": "2026-01-01T00:00:00"}]}).encode(),
    "too large": b" " * (5 * 2**20),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_lets_nobody_in_and_is_not_overwritten(
    file: TokensFile, place: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = file.add("alice", [Scope.READ])
    known = following(file, *from_setting(SecretStr(as_entry("fixed", [Scope.ADMIN], "other"))))
    assert known.find(text.encode()) is not None
    whole = place.read_bytes()
    place.write_bytes(DAMAGES[name])
    uses: list[Callable[[], object]] = [file.read, lambda: file.add("bob", [Scope.READ]), lambda: file.remove("alice")]
    for use in uses:
        with pytest.raises(DamagedStateError, match=r"tokens\.json is damaged \(.*make new tokens") as refused:
            use()
        assert "vec_secret" not in str(refused.value)
    caplog.clear()
    looks: list[Callable[[], object]] = [known.any_ever, known.current]
    looks += [lambda: known.find(text.encode()), lambda: known.find(b"other")]
    for _ in range(3):
        for look in looks:
            with pytest.raises(StateError, match="is damaged"):
                look()
    assert [record.levelno for record in caplog.records] == [logging.ERROR], "said once"
    assert place.read_bytes() == DAMAGES[name]
    place.write_bytes(whole)
    assert known.find(text.encode()) is not None, "a file that is mended counts again"


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_lies_there_and_is_no_file_holds_nobody_up(file: TokensFile, place: Path) -> None:
    place.parent.mkdir()
    os.mkfifo(place)
    with pytest.raises(StateError, match="is no file"):
        file.read()
    place.unlink()
    place.mkdir()
    before = open_files()
    for _ in range(20):
        with pytest.raises(VectorizeError, match="move away"):
            file.read()
    assert open_files() == before


def test_a_link_stays_one(tmp_path: Path) -> None:
    target, link = tmp_path / "disk" / "tokens.json", tmp_path / "etc" / "tokens.json"
    link.parent.mkdir()
    link.symlink_to(target)
    text = TokensFile(link).add("alice", [Scope.READ])
    assert link.is_symlink()
    assert following(TokensFile(target)).find(text.encode()) is not None
    assert [token.name for token in TokensFile(link).read()] == ["alice"]


def test_what_a_killed_command_has_left_is_in_nobodys_way(file: TokensFile, place: Path) -> None:
    file.add("alice", [Scope.READ])
    left = place.with_name(f".{place.name}.new")
    left.write_text("{")
    left.chmod(0o644)
    file.add("bob", [Scope.READ])
    assert [token.name for token in file.read()] == ["alice", "bob"]
    assert not left.exists()
    assert stat.S_IMODE(place.stat().st_mode) == 0o600


def test_a_full_disk_loses_nothing(file: TokensFile, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.add("alice", [Scope.READ])

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match="no space is left"):
        file.add("bob", [Scope.READ])
    assert [token.name for token in file.read()] == ["alice"]
    assert sorted(path.name for path in place.parent.iterdir()) == ["tokens.json", "tokens.json.lock"]


def _add_many(place: Path, number: int, barrier: Barrier) -> None:
    file = TokensFile(place)
    barrier.wait(WAIT_SECONDS)
    for turn in range(EACH):
        file.add(f"{number}-{turn}", [Scope.READ])
        file.add(f"{number}-{turn} for a moment", [Scope.READ])
        file.remove(f"{number}-{turn} for a moment")


def test_processes_that_write_at_once_lose_nothing(place: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(PROCESSES)
    processes = [context.Process(target=_add_many, args=(place, number, barrier)) for number in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(WAIT_SECONDS)
        assert process.exitcode == 0
    made = {f"{number}-{turn}" for number in range(PROCESSES) for turn in range(EACH)}
    assert {token.name for token in TokensFile(place).read()} == made
    assert len(TokensFile(place).read()) == len(made)


def test_a_server_follows_the_file(file: TokensFile, place: Path) -> None:
    known = following(file, *from_setting(SecretStr(as_entry("fixed", [Scope.READ], "other"))))
    assert [token.name for token in known.current()] == ["fixed"]
    text = file.add("alice", [Scope.READ])
    found = known.find(text.encode())
    assert found is not None
    assert known.with_digest(found.digest) == found
    file.remove("alice")
    assert known.find(text.encode()) is None
    assert known.with_digest(found.digest) is None
    assert known.find(b"other") is not None
    place.unlink()
    assert [token.name for token in known.current()] == ["fixed"]


def test_the_file_is_looked_at_now_and_then_only(file: TokensFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.add("alice", [Scope.READ])
    now = 100.0
    looks = 0
    signature = file.signature

    def counted() -> object:
        nonlocal looks
        looks += 1
        return signature()

    monkeypatch.setattr("vectorize_pipelines.gateway.door.tokens.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(file, "signature", counted)
    known = Tokens(file)
    for _ in range(50):
        known.find(b"x")
    assert looks == 1
    file.add("bob", [Scope.READ])
    assert len(known.current()) == 1
    now += 1
    assert len(known.current()) == 2
    assert looks == 2


def test_who_revokes_the_last_token_lets_nobody_in(file: TokensFile) -> None:
    known = following(file)
    assert not known.any_ever()
    file.add("alice", [Scope.READ])
    assert known.any_ever()
    file.remove("alice")
    assert known.current() == ()
    assert known.any_ever()
    assert not following(file).any_ever(), "a server that is started now has never seen one"


def test_the_tokens_lie_in_the_home_which_stays_closed(settings: Settings) -> None:
    TokensFile.of(settings).add("alice", [Scope.READ])
    assert {path.name for path in settings.home.iterdir() if path.is_file()} <= FILES
    settings.home.chmod(0o755)
    keep_private(settings)
    assert stat.S_IMODE(settings.home.stat().st_mode) == 0o700


def test_a_home_that_is_mended_does_not_make_its_tokens_trusted(settings: Settings) -> None:
    TokensFile.of(settings).add("alice", [Scope.READ])
    settings.home.chmod(0o777)
    (settings.home / "tokens.json").chmod(0o666)
    keep_private(settings)
    with pytest.raises(StateError, match="look whose tokens are in it"):
        TokensFile.of(settings).read()


def test_another_place_is_a_setting(settings: Settings, tmp_path: Path) -> None:
    other = tmp_path / "etc" / "vectorize-tokens"
    gateway = settings.gateway.model_copy(update={"tokens_file": other})
    TokensFile.of(settings.model_copy(update={"gateway": gateway})).add("alice", [Scope.READ])
    assert other.exists()
    assert not (settings.home / "tokens.json").exists()


@pytest.mark.parametrize("broken", [DAMAGES["half"], None])
def test_a_server_does_not_start_with_tokens_that_it_cannot_read(settings: Settings, broken: bytes | None) -> None:
    TokensFile.of(settings).add("alice", [Scope.READ])
    file = settings.home / "tokens.json"
    change: Callable[[], object] = (lambda: file.chmod(0o606)) if broken is None else (lambda: file.write_bytes(broken))
    assert len(Tokens.open(settings).current()) == 1
    change()
    with pytest.raises(StateError, match=r"tokens\.json"):
        Tokens.open(settings)
