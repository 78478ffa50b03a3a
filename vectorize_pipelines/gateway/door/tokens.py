"""The tokens of an installation: who may call the HTTP server, and what for.

A token is `vec_` and 256 random bits; what is kept is its SHA-256. There is nothing in it to guess, so a slow hash, as
for passwords, would protect nothing more. The hashes lie in a file, and in the setting `gateway.tokens`.

Called by `vectorize tokens`, which writes the file, and by `door.auth`, which looks up what each request brings.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, SecretStr, ValidationError

from vectorize_pipelines.core.durable_files import sync_folders
from vectorize_pipelines.errors import DamagedStateError, SettingsError, StateError, VectorizeError
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.damage import explain, making
from vectorize_pipelines.state.home import tokens_file

logger = logging.getLogger(__name__)

PREFIX = "vec_"
MAX_NAME = 64
_RANDOM_BYTES = 32
_HEX_DIGEST = r"^[0-9a-f]{64}$"
#: Far more than anybody's tokens; a file beyond it is something else.
_LARGEST_FILE = 4 * 2**20
_REMEDY = "restore it from a backup, or move it away and make new tokens"


class Scope(StrEnum):
    """The rights of a token; each includes those before it."""

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"


Place: TypeAlias = Literal["file", "environment"]


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is stored. `digest` is its SHA-256; `created_at` is None for one of the environment."""

    name: str
    scopes: tuple[Scope, ...]
    digest: bytes = field(repr=False)
    created_at: datetime | None
    place: Place


def new_token() -> str:
    """Return the text of a token that nobody has yet."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def digest_of(token: bytes) -> bytes:
    """Return what is kept of a token."""
    return hashlib.sha256(token).digest()


def check_name(name: str) -> str:
    """Return a name that a token may have. Raises `ValueError`."""
    if not 1 <= len(name) <= MAX_NAME:
        raise ValueError(f"must have 1 to {MAX_NAME} characters, not {len(name)}")
    if not name.isprintable() or name != name.strip():
        raise ValueError("must be printable text that neither begins nor ends with a space")
    return name


def ordered(scopes: Iterable[Scope]) -> tuple[Scope, ...]:
    """Return scopes in their order, each once."""
    return tuple(sorted(set(scopes), key=list(Scope).index))


def as_entry(name: str, scopes: Iterable[Scope], token: str) -> str:
    """Return the entry of a token in the setting `gateway.tokens`. Raises `ValueError` for a name that has no place."""
    if "," in check_name(name):
        raise ValueError("must have no comma, which separates the tokens of the setting")
    return f"{name}:{'+'.join(ordered(scopes))}:{digest_of(token.encode()).hex()}"


def from_setting(setting: SecretStr | None) -> tuple[Token, ...]:
    """Return the tokens of the setting `gateway.tokens`. Raises `SettingsError`, which quotes nothing of it."""
    entries = [] if setting is None else setting.get_secret_value().split(",")
    tokens = [_from_entry(number, entry.strip()) for number, entry in enumerate(entries, 1) if entry.strip()]
    if len({token.name for token in tokens}) < len(tokens):
        raise SettingsError("gateway.tokens: two of its tokens have the same name")
    return tuple(tokens)


def _from_entry(number: int, entry: str) -> Token:
    try:
        name, scopes, digest = entry.rsplit(":", 2)
        granted = ordered(Scope(scope) for scope in scopes.split("+"))
        return Token(check_name(name), granted, _digest_in(digest), None, "environment")
    except ValueError:
        # What was written there may be a token itself.
        raise SettingsError(
            f"gateway.tokens: entry {number} is not `name:scope[+scope]:sha256`, which `vectorize tokens create NAME "
            "--no-file` prints"
        ) from None


def _digest_in(text: str) -> bytes:
    if re.match(_HEX_DIGEST, text.lower()) is None:
        raise ValueError("no SHA-256")
    return bytes.fromhex(text)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, AfterValidator(check_name)]
    scopes: tuple[Scope, ...] = Field(min_length=1)
    sha256: str = Field(pattern=_HEX_DIGEST)
    created_at: AwareDatetime

    @property
    def token(self) -> Token:
        return Token(
            self.name, ordered(self.scopes), bytes.fromhex(self.sha256), self.created_at.astimezone(UTC), "file"
        )


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Literal[1]
    tokens: tuple[_Entry, ...]


class TokensFile:
    """The file of the tokens. Changes of several processes come one after the other; none is lost."""

    def __init__(self, file: Path, *, shared: bool = False) -> None:
        """`shared` leaves it to the operator who else may read and write the file."""
        self._file, self._shared = file, shared

    @classmethod
    def of(cls, settings: Settings) -> "TokensFile":
        """Return the file of an installation, which need not be there yet."""
        return cls(tokens_file(settings), shared=settings.home_shared)

    def read(self) -> tuple[Token, ...]:
        """Return the tokens, none where there is no file. Raises `VectorizeError` where it is not to be trusted."""
        return tuple(entry.token for entry in self._entries())

    def add(self, name: str, scopes: Iterable[Scope]) -> str:
        """Make a token and return it: the only time that it is to be seen.

        Raises `SettingsError` where the name is taken or none, `VectorizeError` where the file cannot be written.
        """
        try:
            check_name(name)
        except ValueError as error:
            raise SettingsError(f"the name of a token {error}") from None
        text = new_token()
        digest = digest_of(text.encode()).hex()
        entry = _Entry(name=name, scopes=ordered(scopes), sha256=digest, created_at=datetime.now(UTC))
        target = self._target()
        with making(target):
            known = self._entries()
            if any(each.name == name for each in known):
                raise SettingsError(
                    f"there is a token {name!r} already: take another name, or `vectorize tokens revoke` it first"
                )
            self._write(target, (*known, entry))
        return text

    def remove(self, name: str) -> tuple[Token, ...]:
        """Revoke a token, and return those that are left. Raises `SettingsError` where there is none of the name."""
        target = self._target()
        with making(target):
            known = self._entries()
            left = tuple(each for each in known if each.name != name)
            if len(left) == len(known):
                raise SettingsError(f"{self._file} has no token {name!r}; `vectorize tokens list` shows what there is")
            self._write(target, left)
        return tuple(entry.token for entry in left)

    def signature(self) -> object:
        """Return what differs once the file has been changed or replaced, or is gone."""
        try:
            found = self._file.stat()
        except OSError as error:
            return error.errno
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def _target(self) -> Path:
        """The file itself where its name is a link, which is to stay."""
        return Path(os.path.realpath(self._file))

    def _entries(self) -> tuple[_Entry, ...]:
        try:
            content = self._content()
        except OSError as error:
            raise explain(error, self._file) or StateError(f"{self._file} cannot be read: {error.strerror}") from None
        if content is None:
            return ()
        try:
            return _Content.model_validate_json(content).tokens
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            reason = ": ".join(part for part in (".".join(map(str, first["loc"])), first["msg"]) if part)
            raise DamagedStateError(f"{self._file} is damaged ({reason}); {_REMEDY}") from None

    def _content(self) -> bytes | None:
        try:
            # Without O_NONBLOCK, opening a pipe that somebody has put there waits for the other end.
            descriptor = os.open(self._file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            self._check_trusted(os.fstat(descriptor))
            with os.fdopen(descriptor, "rb", closefd=False) as opened:
                content = opened.read(_LARGEST_FILE + 1)
        finally:
            os.close(descriptor)
        if len(content) > _LARGEST_FILE:
            raise DamagedStateError(f"{self._file} is damaged (more than {_LARGEST_FILE} bytes); {_REMEDY}")
        return content

    def _check_trusted(self, found: os.stat_result) -> None:
        """Refuse a file that somebody else may have written, or may read. Raises `StateError`."""
        if not stat.S_ISREG(found.st_mode):
            raise StateError(f"{self._file} is no file: move away what lies there")
        if self._shared:
            return
        if found.st_uid not in (0, os.geteuid()):
            raise StateError(f"{self._file} belongs to another user, who could add tokens: `chown` it to your own")
        mode = stat.S_IMODE(found.st_mode)
        if mode & 0o077:
            raise StateError(
                f"{self._file} can be read or written by other users (mode {mode:04o}): look whose tokens are in it, "
                "then `chmod 600` it (home_shared: true leaves its mode to you)"
            )
        for folder in {self._file.parent, self._target().parent}:
            mode = stat.S_IMODE(folder.stat().st_mode)
            if mode & 0o022 and not mode & stat.S_ISVTX:
                raise StateError(
                    f"{folder} can be written by other users (mode {mode:04o}), who could replace {self._file.name} "
                    "in it: `chmod go-w` it (home_shared: true leaves its mode to you)"
                )

    def _write(self, target: Path, entries: tuple[_Entry, ...]) -> None:
        """Replace the file by one that is whole and on the disk. To be called under its lock. Raises `OSError`."""
        content = _Content(version=1, tokens=entries).model_dump_json(indent=2)
        beside = target.with_name(f".{target.name}.new")
        with suppress(FileNotFoundError):  # what a killed process has left
            beside.unlink()
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as opened:
                if self._shared:
                    os.fchmod(descriptor, _shared_mode(target))
                opened.write(content.encode() + b"\n")
                opened.flush()
                os.fsync(descriptor)
            beside.replace(target)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
        sync_folders(target.parent)


def _shared_mode(target: Path) -> int:
    """The mode that a file of several users has; a new one is for those who may use its folder."""
    try:
        return stat.S_IMODE(target.stat().st_mode)
    except FileNotFoundError:
        return stat.S_IMODE(target.parent.stat().st_mode) & 0o660


class Tokens:
    """The tokens that a running server goes by: those of the setting, and those of the file as it is now.

    The file is looked at once a second at most, by one call of `stat`, so that a token that is revoked is refused a
    second later. While the file cannot be read or trusted, nobody is let in.
    """

    def __init__(self, file: TokensFile, fixed: Sequence[Token] = (), every_seconds: float = 1.0) -> None:
        self._file, self._fixed, self._every_seconds = file, tuple(fixed), every_seconds
        self._look_at = float("-inf")
        self._signature: object = None
        self._failure: str | None = None
        self._any_ever = False
        self._take(())

    @classmethod
    def open(cls, settings: Settings) -> "Tokens":
        """Return the tokens of an installation. Raises `VectorizeError` where they cannot be read."""
        tokens = cls(TokensFile.of(settings), from_setting(settings.gateway.tokens))
        tokens.current()
        return tokens

    def current(self) -> tuple[Token, ...]:
        """Return the tokens that count now. Raises `StateError` where the file cannot be read or trusted."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + self._every_seconds
            self._look()
        if self._failure is not None:
            raise StateError(self._failure)
        return self._known

    def any_ever(self) -> bool:
        """Return whether there is, or was while this process ran, any token. Raises `StateError` as `current`.

        Who revokes the last token of a running server wants to let nobody in, not everybody.
        """
        self.current()
        return self._any_ever

    def find(self, text: bytes) -> Token | None:
        """Return the token with a text, None where there is none. Raises `StateError` as `current`.

        Every token is compared, in constant time, so that how long it takes says nothing.
        """
        digest = digest_of(text)
        found = None
        for token in self.current():
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found

    def with_digest(self, digest: bytes) -> Token | None:
        """Return the token that was found earlier, as long as it counts. Raises `StateError` as `current`."""
        self.current()
        return self._by_digest.get(digest)

    def _look(self) -> None:
        signature = self._file.signature()
        if signature == self._signature and self._failure is None:
            return
        try:
            self._take(self._file.read())
        except VectorizeError as error:
            if str(error) != self._failure:
                logger.error("%s; until then nobody is let in", error)  # noqa: TRY400 -- the message says it all
            self._failure = str(error)
        else:
            self._signature, self._failure = signature, None

    def _take(self, from_file: tuple[Token, ...]) -> None:
        self._known = (*self._fixed, *from_file)
        self._by_digest = {token.digest: token for token in self._known}
        self._any_ever = self._any_ever or bool(self._known)
