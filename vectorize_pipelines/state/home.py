"""The places of everything below VECTORIZE_HOME. Each folder is made by whoever writes to it first.

Another VECTORIZE_HOME is a fully separate installation: nothing is shared, nothing is written elsewhere.
"""

import contextlib
import errno
import hashlib
import logging
import os
import socket
import stat
import uuid
from pathlib import Path

from vectorize_pipelines.core.installation import default_file
from vectorize_pipelines.errors import SettingsError, StateError
from vectorize_pipelines.settings import Settings, load_settings

logger = logging.getLogger(__name__)

DAGSTER_YAML = default_file("dagster.yaml")
#: The folders that are made in a home, by name.
FOLDERS = frozenset(
    {"cache", "dagster", "encoders", "kafka", "keys", "lancedb", "locks", "manifests", "qdrant", "spill"},
)
_TOKENS = "tokens.json"
#: The files that are made in a home itself. Their modes are never mended, as others may have written what lies open:
#: whoever reads them looks at their modes.
FILES = frozenset({_TOKENS, f"{_TOKENS}.lock", f".{_TOKENS}.new"})


def manifest_file(settings: Settings, collection: str) -> Path:
    """The file of what is known of the files in a collection."""
    return settings.home / "manifests" / f"{collection}.sqlite"


def manifest_lock(settings: Settings, collection: str) -> Path:
    """The lock of the one run that brings a collection up to date with its files."""
    return settings.home / "locks" / f"manifest-{collection}.lock"


def shard_lock(settings: Settings, collection: str, shard: str) -> Path:
    """The lock of the one run that brings a shard of a collection, such as `0/4`, up to date with its files."""
    return settings.home / "locks" / f"manifest-{collection}" / f"{shard.replace('/', '-of-')}.lock"


def generations_lock(settings: Settings, collection: str) -> Path:
    """The lock of a write to several generations of a collection, where the database is SQLite."""
    return settings.home / "locks" / f"generations-{collection}.lock"


def request_lock(settings: Settings, collection: str) -> Path:
    """The lock of a write of rows that come from requests to a collection, where the database is SQLite."""
    return settings.home / "locks" / f"requests-{collection}.lock"


def table_lock(settings: Settings, name: str) -> Path:
    """The lock of a write to a table that does not lie on this machine, where the database is SQLite."""
    return settings.home / "locks" / f"table-{name}.lock"


def attempt_lock(settings: Settings, name: str) -> Path:
    """The lock that is held while a run that has notes of what it has in hand lives, where the database is SQLite."""
    return settings.home / "locks" / "attempts" / f"{name}.lock"


def model_cache(settings: Settings) -> Path:
    """The folder of what was found out about models: revisions, exports, measurements."""
    return settings.encoder.cache_directory or settings.home / "encoders"


def embedding_cache(settings: Settings) -> Path:
    """The file of vectors of earlier runs, by model and content."""
    return settings.home / "cache" / "embeddings.sqlite"


def answers(settings: Settings) -> Path:
    """The file of answers of remote models, for what they were asked before."""
    return settings.home / "cache" / "answers.sqlite"


def spill(settings: Settings) -> Path:
    """The folder of batches that wait for a store that is away; the files in it have no names."""
    return settings.home / "spill"


def tokens_file(settings: Settings) -> Path:
    """The file of the hashed tokens of the HTTP server."""
    return settings.gateway.tokens_file or settings.home / _TOKENS


def key_use_file(settings: Settings) -> Path:
    """The file of what was used of the limits of API keys, where Redis does not hold it."""
    return settings.home / "keys" / "keys.sqlite"


def run_locks(settings: Settings) -> Path:
    """The folder of the locks that runs of `vectorize ingest` hold while their processes live."""
    return settings.home / "locks" / "runs"


def put_aside_in(settings: Settings) -> list[Path]:
    """The folders in which damaged files are put aside and made again."""
    return [settings.home / "manifests", settings.home / "cache", settings.home / "keys"]


def enter_home() -> Settings:
    """The settings, with the home that they name closed to other users: how each command begins.

    Raises `SettingsError`.
    """
    settings = load_settings()
    keep_private(settings)
    return settings


def keep_private(settings: Settings) -> None:
    """Close the home to other users: what this process and its children make from now on, and what is there already.

    To be called at the start of every process of the project. An existing home that is open is mended, and a line says
    so. `home_shared` leaves everything as the operator has set it up. Raises `SettingsError` where it is no folder.
    """
    if settings.home.exists() and not settings.home.is_dir():
        raise SettingsError(f"VECTORIZE_HOME {settings.home} is no folder: name one, or move away what lies there")
    if settings.home_shared:
        return
    os.umask(os.umask(0o077) | 0o077)
    closed = _close_to_others(settings.home)
    if closed:
        logger.warning(
            "other users of this machine could read %s: closed to them (home_shared: true leaves it open)",
            ", ".join(map(str, closed)),
        )


def open_to_others(settings: Settings) -> list[Path]:
    """Return what lies open in the home after `keep_private`: it is somebody else's, or on a read-only disk."""
    return [] if settings.home_shared else _open(settings.home)


def server_lock(settings: Settings) -> Path:
    """The lock of the one `vectorize serve` of an installation that has a code server, until all of it has ended.

    Its name, and that of the folder below, are those of `make dev` before there was that command.
    """
    return settings.home / "locks" / "dev.lock"


def server_folder_prefix(settings: Settings) -> str:
    """The beginning of the name of the temporary folder of that command: of this installation, on this machine."""
    place = f"{socket.gethostname()}/{settings.home}"
    return f"vectorize-dev-{hashlib.blake2b(place.encode(), digest_size=6).hexdigest()}-"


def dagster_home(settings: Settings) -> Path:
    """Dagster's own home; made with the package's `dagster.yaml` where it has none yet.

    A link, not a copy, so that it is always that of the version installed. An installation that needs another one puts
    it there. Raises `SettingsError` where the folder cannot be written, `StateError` where there is no room for it.
    """
    home = settings.home / "dagster"
    try:
        home.mkdir(parents=True, exist_ok=True)
        _link(home / "dagster.yaml")
        if not os.access(home, os.W_OK | os.X_OK):
            read_only = os.statvfs(home).f_flag & os.ST_RDONLY
            code = errno.EROFS if read_only else errno.EACCES
            raise OSError(code, os.strerror(code))  # noqa: TRY301 -- said below in the same words as any other
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StateError(
                f"VECTORIZE_HOME {settings.home}: no space is left on its disk; free some, or set VECTORIZE_HOME to a "
                "larger disk"
            ) from None
        where = f" ({error.filename})" if error.filename else ""
        raise SettingsError(
            f"VECTORIZE_HOME {settings.home} cannot be written: {error.strerror}{where}; name a folder that can "
            "be made, and that this user may write"
        ) from None
    return home


def use_dagster_home(settings: Settings) -> None:
    """Point this process, and those that it starts, at the project's Dagster instance; telemetry stays off.

    A DAGSTER_HOME that is set already gives way, or another VECTORIZE_HOME would share its instance.
    Raises `SettingsError` where the folder cannot be written.
    """
    keep_private(settings)
    os.environ["DAGSTER_HOME"] = str(dagster_home(settings))


def _link(config: Path) -> None:
    """Link the package's `dagster.yaml` where there is none. Processes that start together all find one.

    A link to that of another installation of the package, which may be an older one, is turned to this one's.
    """
    if config.exists() and not _is_of_another_installation(config):
        return
    if not config.is_symlink():
        with contextlib.suppress(FileExistsError):  # another process made it at the same moment
            config.symlink_to(DAGSTER_YAML)
        return
    beside = config.with_name(f".{config.name}.{uuid.uuid4().hex}")
    beside.symlink_to(DAGSTER_YAML)
    beside.replace(config)  # nobody finds none meanwhile


def _is_of_another_installation(config: Path) -> bool:
    target = config.resolve()
    return config.is_symlink() and target.parts[-3:] == DAGSTER_YAML.parts[-3:] and target != DAGSTER_YAML.resolve()


def _close_to_others(home: Path) -> list[Path]:
    """Take the rights of group and others from what lies open, where it is ours to do so."""
    closed = []
    for path in _open(home):
        try:
            if path.stat().st_uid == os.geteuid():
                path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o077)
                closed.append(path)
        except OSError:
            continue  # read-only: `vectorize doctor` says that it is open
    return closed


def _open(home: Path) -> list[Path]:
    """Return what others may enter or read: the home where nothing but ours lies in it, else our folders in it.

    Nobody gets to what lies below a closed folder, so these few suffice. Links are left alone: what they lead to may
    be meant for others.
    """
    try:
        if not stat.S_IMODE(home.stat().st_mode) & 0o077:
            return []
        entries = list(home.iterdir())
        folders = [path for path in entries if path.name in FOLDERS and not path.is_symlink()]
        lies_open = [path for path in folders if stat.S_IMODE(path.stat().st_mode) & 0o077]
    except OSError:  # none yet, or not ours to look into: whoever writes there says so
        return []
    only_ours = all(path.name in FOLDERS | FILES for path in entries)
    return [home, *lies_open] if only_ours else lies_open
