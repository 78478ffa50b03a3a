"""Damaged files, a full disk and a read-only one: a sentence with the remedy, the right exit code, never a traceback.

Each test damages an installation that holds some documents, and calls every command on it.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from tests.attacks.together import together
from tests.commands import Done, Vectorize
from tests.components import missing
from tests.forks import run
from vectorize_pipelines.cli import main
from vectorize_pipelines.runs.instance import open_instance
from vectorize_pipelines.runs.retention import purge_runs
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state.damage import left_aside
from vectorize_pipelines.state.manifest import open_manifest
from vectorize_pipelines.stores import open_store

RUNS = "dagster/history/runs.db"
EVENTS = "dagster/history/runs/index.db"
SCHEDULES = "dagster/schedules/schedules.db"
LEDGER = "dagster/history/vectorize.db"
CONFIG = "dagster/dagster.yaml"
MANIFEST = "manifests/corpus.sqlite"
CACHE = "cache/embeddings.sqlite"
SECRET = "s3cret-of-a-file"
GARBAGE = b"no database at all, and long enough for several pages. " * 400

#: What each command gives on an installation that is whole.
COMMANDS = {
    ("search", "how often is the tide gauge read"): 0,
    ("collections",): 0,
    ("collections", "show", "corpus"): 0,
    ("status", "nobody"): 8,
    ("requests",): 0,
    ("models", "list"): 0,
}
#: The names of doctor's findings, whatever is broken.
FINDINGS = {
    *(
        "python",
        "settings",
        "home",
        "dagster",
        "ledger",
        "store",
        "model",
        "corpus",
        "kafka",
        "redis",
        "keys",
        "alerts",
    ),
}


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    for n in range(3):
        (folder / f"{n}.md").write_text(f"# Gauge {n}\n\nThe tide gauge {n} is read every six minutes.")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, exported_models: Path, documents: Path) -> Path:
    """An installation that has the documents."""
    home = tmp_path_factory.mktemp("whole")
    (home / "encoders").symlink_to(exported_models)
    done = run("vectorize", "ingest", documents, environment={**os.environ, "VECTORIZE_HOME": str(home)})
    assert done.code == 0, done.err
    return home


@pytest.fixture
def installation(home: Path, whole: Path, documents: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it that the test may damage; the home of the environment."""
    shutil.copytree(whole, home, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("encoders"))
    monkeypatch.setenv("VECTORIZE_CORPUS__PATH", str(documents))
    return home


@pytest.fixture
def vectorize_here(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Vectorize:
    """Runs a command in the test's own process; what it logs counts as printed, an error that escapes fails."""

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["vectorize", *map(str, arguments)])
        caplog.clear()
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err, err
        return Done(int(ended.value.code or 0), out, err + caplog.text)

    return call


def garbage(home: Path, name: str) -> None:
    (home / name).write_bytes(GARBAGE)


def cut(home: Path, name: str) -> None:
    file = home / name
    os.truncate(file, file.stat().st_size // 2 + 100)


def deep(home: Path, name: str, table: str) -> None:
    """Damage that does not show before the table is read."""
    with closing(sqlite3.connect(home / name)) as connection:
        (page,) = connection.execute("select rootpage from sqlite_master where name = ?", (table,)).fetchone()
        (size,) = connection.execute("pragma page_size").fetchone()
    with (home / name).open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(GARBAGE[:size])


def a_folder(home: Path, name: str) -> None:
    (home / name).unlink()
    (home / name).mkdir()


def configured(home: Path, content: str) -> None:
    (home / CONFIG).unlink()
    (home / CONFIG).write_text(content)


@dataclass(frozen=True)
class Damage:
    """What is done to an installation, what is said of it, and the exit codes of the commands that cannot go on.

    doctor  its exit code    ingest  that of `vectorize ingest`    refused  the other commands that fail
    """

    do: Callable[[Path], None]
    said: str
    ingest: int
    doctor: int = 1
    refused: dict[str, int] = field(default_factory=dict)


WITH_LEDGER = ("collections show", "status", "requests")
NO_LEDGER = dict.fromkeys(WITH_LEDGER, 1)
NO_CONFIG = dict.fromkeys(WITH_LEDGER, 2)

DAMAGES = {
    "runs are garbage": Damage(lambda home: garbage(home, RUNS), f"{RUNS} is damaged", 1),
    "runs are cut off": Damage(lambda home: cut(home, RUNS), f"{RUNS} is damaged", 1),
    "runs are damaged deep inside": Damage(lambda home: deep(home, RUNS, "runs"), f"{RUNS} is damaged", 1),
    "runs are a folder": Damage(lambda home: a_folder(home, RUNS), f"{RUNS} cannot be opened", 1),
    "events are garbage": Damage(lambda home: garbage(home, EVENTS), f"{EVENTS} is damaged", 1),
    "events are cut off": Damage(lambda home: cut(home, EVENTS), f"{EVENTS} is damaged", 1),
    "schedules are garbage": Damage(lambda home: garbage(home, SCHEDULES), f"{SCHEDULES} is damaged", 1),
    "the ledger is garbage": Damage(lambda home: garbage(home, LEDGER), f"{LEDGER} is damaged", 1, refused=NO_LEDGER),
    "the ledger is cut off": Damage(lambda home: cut(home, LEDGER), f"{LEDGER} is damaged", 1, refused=NO_LEDGER),
    "the ledger is a folder": Damage(
        lambda home: a_folder(home, LEDGER), f"{LEDGER} cannot be opened", 1, refused=NO_LEDGER
    ),
    "dagster.yaml is no YAML": Damage(
        lambda home: configured(home, f"storage: [{SECRET}"),
        f"{CONFIG}, line 1, column 27: cannot be read as YAML",
        2,
        refused=NO_CONFIG,
    ),
    "dagster.yaml is a list": Damage(
        lambda home: configured(home, "- a"), f"{CONFIG} is no configuration of Dagster", 2, refused=NO_CONFIG
    ),
    "dagster.yaml names a class that is not there": Damage(
        lambda home: configured(home, "instance_class: {module: nowhere, class: Nothing}"),
        f"{CONFIG} is no valid configuration of Dagster",
        2,
        doctor=0,
    ),
    "dagster.yaml has a value of another type": Damage(
        lambda home: configured(home, f"concurrency: {{runs: {{max_concurrent_runs: {SECRET}}}}}"),
        f"{CONFIG} is no valid configuration of Dagster: the value at path root:concurrency:runs:max_concurrent_runs",
        2,
        doctor=0,
    ),
    "dagster.yaml has no folder for SQLite": Damage(
        lambda home: configured(home, "storage: {sqlite: {base_dir: [a]}}"),
        f"{CONFIG}: storage.sqlite.base_dir must be the name of a folder",
        2,
        refused=NO_CONFIG,
    ),
    "dagster.yaml has a field too many": Damage(
        lambda home: configured(home, "nonsense: 3"), f"{CONFIG} is no valid configuration of Dagster", 2, doctor=0
    ),
}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_cannot_be_made_again_is_told(
    installation: Path, documents: Path, vectorize_here: Vectorize, damage: Damage
) -> None:
    damage.do(installation)
    doctor = vectorize_here("doctor", "--json")
    findings = json.loads(doctor.out)
    assert {finding["name"] for finding in findings} >= FINDINGS
    assert doctor.code == damage.doctor
    if damage.doctor:
        assert [each for each in findings if each["status"] == "error" and damage.said in each["detail"]]
    for command, code in COMMANDS.items():
        name = " ".join(command)
        expected = next((each for begin, each in damage.refused.items() if name.startswith(begin)), code)
        done = vectorize_here(*command)
        assert done.code == expected, (command, done)
        assert damage.said in done.err or expected == code, (command, done.err)
    ran = vectorize_here("ingest", documents)
    assert ran.code == damage.ingest, ran.err
    assert damage.said in ran.err
    if CONFIG in damage.said:
        assert "correct it, or delete it for the project's own" in ran.err
    assert SECRET not in doctor.out + doctor.err + ran.err
    assert list(installation.rglob("*.damaged-*")) == [], "what cannot be made again was put aside"


def test_runs_over_messages_are_told_it_too(
    installation: Path, vectorize_here: Vectorize, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECTORIZE_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    garbage(installation, RUNS)
    done = vectorize_here("drain", "text", "--once")
    assert done.code == 1
    assert f"{RUNS} is damaged" in done.err


def test_the_remedy_that_is_told_works(installation: Path, documents: Path, vectorize_here: Vectorize) -> None:
    """Whoever moves a file away, as they are told, goes on without what was in it."""
    for name in (RUNS, EVENTS, SCHEDULES, LEDGER):
        garbage(installation, name)
        (installation / name).rename(installation / f"{name} of yesterday")
    assert vectorize_here("ingest", documents).code == 0
    assert vectorize_here("doctor").code == 0
    assert vectorize_here("collections").code == 0


def newer(home: Path, name: str = MANIFEST) -> None:
    with closing(sqlite3.connect(home / name)) as connection, connection:
        connection.execute("pragma user_version = 1000")


def other_columns(home: Path) -> None:
    with closing(sqlite3.connect(home / MANIFEST)) as connection, connection:
        connection.execute("alter table files add column of_another_version text")


def small(home: Path) -> None:
    os.truncate(home / MANIFEST, 5000)


def pages_of_the_manifest(home: Path) -> None:
    deep(home, MANIFEST, "unreported_days")


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("file", "damage", "label"),
    [
        (MANIFEST, lambda home: garbage(home, MANIFEST), "damaged"),
        (MANIFEST, small, "damaged"),
        (MANIFEST, newer, "format"),
        (MANIFEST, other_columns, "format"),
        (CACHE, lambda home: garbage(home, CACHE), "damaged"),
        (CACHE, lambda home: cut(home, CACHE), "damaged"),
        (CACHE, lambda home: newer(home, CACHE), "format"),
    ],
    ids=[
        "garbage",
        "cut off",
        "newer format",
        "other columns",
        "cache is garbage",
        "cache is cut off",
        "cache of a newer format",
    ],
)
def test_what_can_be_made_again_is_put_aside_and_made_again(
    installation: Path,
    documents: Path,
    vectorize_here: Vectorize,
    file: str,
    damage: Callable[[Path], None],
    label: str,
) -> None:
    damage(installation)
    content = (installation / file).read_bytes()
    (documents / "new.md").write_text(f"# New\n\nWritten for {file} with {label} at {datetime.now(UTC)}.")
    ran = vectorize_here("ingest", documents)
    assert ran.code == 0, ran.err
    assert f"{installation / file} is " in ran.err
    assert "put aside as" in ran.err
    (aside,) = left_aside((installation / file).parent)
    assert f".{label}-" in aside.name
    assert aside.read_bytes() == content
    assert "1 encoded" in ran.out, "what is in the collection was encoded again"
    assert "put aside" not in vectorize_here("ingest", documents).err
    doctor = vectorize_here("doctor")
    assert doctor.code == 0, doctor.out
    assert str(aside) in doctor.out


def test_a_manifest_of_which_pages_are_damaged_is_made_again(
    installation: Path, documents: Path, vectorize_here: Vectorize
) -> None:
    pages_of_the_manifest(installation)
    (documents / "another.md").write_text(f"# Another\n\nWritten at {datetime.now(UTC)}.")
    assert vectorize_here("ingest", documents).code == 0
    assert len(left_aside(installation / "manifests")) == 1


def _open_the_manifest(home: str) -> None:
    with closing(open_manifest(load_settings({"VECTORIZE_HOME": home}), "corpus")) as manifest:
        assert list(manifest.entries()) == []


def test_a_damaged_file_is_put_aside_by_one_of_many(tmp_path: Path) -> None:
    homes = [tmp_path / str(n) for n in range(10)]
    for home in homes:
        (home / "manifests").mkdir(parents=True)
        garbage(home, MANIFEST)
    assert together([(_open_the_manifest, home) for home in homes]) == []
    assert [len(left_aside(home / "manifests")) for home in homes] == [1] * len(homes)


def test_bare_dagster_tells_it_in_a_sentence(installation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    garbage(installation, RUNS)
    monkeypatch.setenv("DAGSTER_HOME", str(installation / "dagster"))
    done = run("dagster", "instance", "info")
    assert done.code == 1
    assert f"Error: {installation / RUNS} is damaged" in done.err
    assert "Traceback" not in done.err


def test_a_damaged_log_of_a_run_keeps_no_other_from_being_removed(
    installation: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_instance(load_settings()) as instance:
        (run,) = instance.get_runs()
        garbage(installation, f"dagster/history/runs/{run.run_id}.db")
        newer = instance.create_run_for_job(_nothing_to_do, status=dg.DagsterRunStatus.SUCCESS)
        with closing(sqlite3.connect(installation / EVENTS)) as events, events:
            events.execute("delete from event_logs")  # or the run would be needed, as the latest of a partition
            events.execute("delete from asset_keys")
        assert purge_runs(instance, datetime.now(UTC) + timedelta(hours=1)) == 2
        assert instance.get_runs() == []
        assert newer.run_id
    assert len([record for record in caplog.records if run.run_id in record.message]) == 1


@dg.job
def _nothing_to_do() -> None:
    pass


def test_the_doctor_never_raises(
    installation: Path, vectorize_here: Vectorize, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("vectorize_pipelines.stores.open_store", broken)
    doctor = vectorize_here("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(doctor.out)}
    assert findings.keys() >= FINDINGS
    assert doctor.code == 1
    assert "RuntimeError: a defect" in findings["store"]["detail"]


def test_a_defect_is_not_taken_for_a_broken_disk(
    installation: Path, vectorize_here: Vectorize, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "a defect")

    monkeypatch.setattr("vectorize_pipelines.cli.search.open_store", broken)
    with pytest.raises(FileNotFoundError):
        vectorize_here("search", "tide")


# ---- file systems


@contextmanager
def file_system(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own at a folder that is there, with so much room."""
    if os.geteuid() != 0:
        missing("only root mounts a file system")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        missing(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Leave nothing of a file system, to the last page."""
    with (folder / "filled").open("wb", buffering=0) as file:
        for size in (2**16, 2**12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


@pytest.mark.timeout(400)
def test_a_full_disk(installation: Path, whole: Path, documents: Path, vectorize_here: Vectorize) -> None:
    with file_system(installation, "64m"):
        shutil.copytree(whole, installation, symlinks=True, dirs_exist_ok=True)
        fill(installation)
        for command, code in COMMANDS.items():
            done = vectorize_here(*command)
            if command[0] in ("status", "requests") or "show" in command:
                assert done.code == 1, done
                assert f"{installation / LEDGER}: no space is left on its disk" in done.err
            else:
                assert done.code == code, done
        doctor = vectorize_here("doctor", "--json")
        findings = json.loads(doctor.out)
        assert doctor.code == 1
        assert {finding["name"] for finding in findings} >= FINDINGS
        (documents / "more.md").write_text(f"# More\n\nWritten at {datetime.now(UTC)}.")
        ran = vectorize_here("ingest", documents)
        assert ran.code == 1
        assert "no space is left on its disk" in ran.err
        (installation / "filled").unlink()
        assert vectorize_here("ingest", documents).code == 0


@pytest.fixture(scope="module")
def whole_size(whole: Path) -> int:
    """What an installation with the documents takes of a disk, in bytes, when nobody works on it."""
    files = [path for path in whole.rglob("*") if path.is_file() and not path.is_relative_to(whole / "encoders")]
    return sum(path.stat().st_blocks * 512 for path in files)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.8, 1.05, 1.2, 1.4, 4])
def test_a_disk_that_fills_up_while_a_new_home_is_made(
    home: Path,
    exported_models: Path,
    documents: Path,
    whole_size: int,
    share: float,
    monkeypatch: pytest.MonkeyPatch,
    vectorize_here: Vectorize,
) -> None:
    """Wherever it happens: the databases, a run, the vectors. With room, the same command goes on from there.

    With less than what stays on the disk, a run cannot succeed, but for the tenth that the cache of vectors takes,
    which it can do without. What it takes beside that on the way decides between there and a disk that is large enough.
    """
    monkeypatch.setenv("VECTORIZE_PIPELINE__STORE_OUTAGE_SECONDS", "0")
    monkeypatch.setenv("VECTORIZE_ENCODER__CACHE_DIRECTORY", str(exported_models))
    with file_system(home, str(int(whole_size * share))):
        # In a process of its own, as a user calls it: what a run that broke off holds ends with its process.
        ran = run("vectorize", "ingest", documents)
        assert ran.code in ((1, 5) if share < 0.9 else (0,) if share > 2 else (0, 1, 5)), ran.err
        assert "Traceback" not in ran.err, ran.err
        if ran.code:
            assert "no space" in ran.err.lower()
        else:
            assert len(documents_in(home)) == len(list(documents.iterdir())), "success was said, and not all is there"
        remount(home, "size=64m")
        again = vectorize_here("ingest", documents)
        assert again.code == 0, again.err
        assert len(documents_in(home)) == len(list(documents.iterdir()))


def documents_in(home: Path) -> set[str]:
    """Which documents have vectors in the store, by a client of its own."""
    settings = load_settings({"VECTORIZE_HOME": str(home)})
    with closing(open_store(settings.store, settings.home)) as store:
        return set(store.count_by("corpus", "source_id"))


@pytest.mark.timeout(400)
def test_a_read_only_home(installation: Path, whole: Path, documents: Path, vectorize_here: Vectorize) -> None:
    with file_system(installation, "64m"):
        shutil.copytree(whole, installation, symlinks=True, dirs_exist_ok=True)
        remount(installation, "ro")
        for command, code in COMMANDS.items():
            done = vectorize_here(*command)
            if command[0] in ("status", "requests") or "show" in command:
                assert done.code == 2, done
                assert f"VECTORIZE_HOME {installation} cannot be written: Read-only file system" in done.err
            else:
                assert done.code == code, done
        doctor = vectorize_here("doctor", "--json")
        assert doctor.code == 1
        assert {finding["name"] for finding in json.loads(doctor.out)} >= FINDINGS
        ran = vectorize_here("ingest", documents)
        assert ran.code == 2
        assert "cannot be written: Read-only file system" in ran.err


@pytest.mark.parametrize("name", ["", "dagster", "manifests", "locks", "lancedb", "cache"])
def test_a_file_lies_where_a_folder_belongs(
    home: Path, tmp_path: Path, documents: Path, vectorize_here: Vectorize, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("VECTORIZE_HOME", str(home / "new"))
    monkeypatch.setenv("VECTORIZE_ENCODER__CACHE_DIRECTORY", str(home / "encoders"))
    blocked = home / "new" / name
    blocked.parent.mkdir(exist_ok=True)
    blocked.write_text("in the way")
    doctor = vectorize_here("doctor", "--json")
    assert {finding["name"] for finding in json.loads(doctor.out)} >= FINDINGS
    ran = vectorize_here("ingest", documents)
    expected = {"lancedb": 5, "cache": 0}.get(name, 2)
    assert ran.code == expected, ran.err
    assert str(blocked) in ran.err or expected == 0
