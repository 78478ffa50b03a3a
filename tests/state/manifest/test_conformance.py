"""What every manifest promises: the file of one machine, and the tables of a real PostgreSQL."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from threading import Thread

import pytest

from tests.state.rows import MakeSettings
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.sources.files import SourceFile
from vectorize_pipelines.state.manifest import (
    AloneInHand,
    AttemptNotes,
    Manifest,
    ManifestEntry,
    open_existing_manifest,
    open_manifest,
)

COLLECTION = "corpus"
ENTRY = ManifestEntry("/d/a.md", 4, 17, "", "hash", "print", 3, notices='[["omitted", "a page", "read it"]]')
FAILED = ManifestEntry(
    "/d/b.md", 0, -(2**62), "etag", "", "print limits", 2**40, "EmptyDocumentError", "it is empty", True, 2
)
FILE = SourceFile("/d/a.md", 4, 17, "etag")


@pytest.fixture
def manifest(installation: Settings) -> Iterator[Manifest]:
    with closing(open_manifest(installation, COLLECTION)) as opened:
        yield opened


@pytest.fixture
def notes(manifest: Manifest) -> Iterator[AttemptNotes]:
    with closing(manifest.open_attempts()) as opened:
        yield opened


def entries_of(manifest: Manifest) -> dict[str, ManifestEntry]:
    """Return every entry by source id, and see that none comes twice."""
    found = list(manifest.entries())
    by_name = {entry.source_id: entry for entry in found}
    assert len(by_name) == len(found)
    return by_name


def read_again(settings: Settings, collection: str = COLLECTION) -> dict[str, ManifestEntry]:
    """Return what another process would find."""
    with closing(open_manifest(settings, collection)) as opened:
        return entries_of(opened)


# ---- entries


def test_entries_come_back_as_they_were_recorded(installation: Settings, manifest: Manifest) -> None:
    assert entries_of(manifest) == {}
    manifest.record([ENTRY, FAILED])
    assert read_again(installation) == entries_of(manifest) == {"/d/a.md": ENTRY, "/d/b.md": FAILED}
    manifest.record([], ["/d/a.md"])
    assert read_again(installation) == {"/d/b.md": FAILED}


def test_the_latest_record_of_a_file_counts(manifest: Manifest) -> None:
    manifest.record([FAILED])
    once_more = replace(FAILED, error_class="", error_message="", retryable=False, attempts=0, rows=7)
    manifest.record([ENTRY, FAILED, once_more])
    assert entries_of(manifest) == {"/d/a.md": ENTRY, "/d/b.md": once_more}


def test_a_file_that_is_recorded_and_forgotten_at_once_is_forgotten(manifest: Manifest) -> None:
    manifest.record([ENTRY, FAILED], ["/d/a.md"])
    assert list(entries_of(manifest)) == ["/d/b.md"]


def test_forgetting_takes_what_is_named_and_nothing_else(manifest: Manifest) -> None:
    manifest.record([ENTRY, FAILED])
    manifest.record([], ["/d/b.md", "/d/never-there.md"])
    assert entries_of(manifest) == {"/d/a.md": ENTRY}


def test_more_entries_than_are_read_or_forgotten_at_once(manifest: Manifest) -> None:
    entries = {f"/d/{n:05}": replace(ENTRY, source_id=f"/d/{n:05}", size=n) for n in range(10_050)}
    manifest.record(entries.values())
    assert entries_of(manifest) == entries
    manifest.record([], [name for name in entries if name != "/d/10049"])
    assert list(entries_of(manifest)) == ["/d/10049"]


@pytest.mark.parametrize(
    "source_id",
    [
        "/d/Ünïcode 日本 😀.md",
        's3://bucket/it\'s "quoted"; drop table files; --%s:name',
        "/d/" + "a/" * 2_000,
        "/d/" + "é" * 998 + "a",
        "/d/" + "é" * 998 + "ab",
        "memory://with\0nul",
        "\1/d/a.md",
    ],
    ids=["unicode", "quotes", "long", "longest key", "too long for a key", "NUL", "like a key"],
)
def test_whatever_a_file_is_called(manifest: Manifest, notes: AttemptNotes, source_id: str) -> None:
    entry = replace(ENTRY, source_id=source_id)
    others = [replace(ENTRY, source_id=f"{source_id}2"), replace(ENTRY, source_id=f"{source_id}/3")]
    file = replace(FILE, source_id=source_id)
    manifest.record([entry, *others])
    notes.note_alone(file, "reading", "run")
    notes.count_deaths(lambda _: ["died"])
    assert entries_of(manifest) == {each.source_id: each for each in (entry, *others)}
    assert [(suspect.source_id, suspect.deaths) for suspect in notes.suspects()] == [(source_id, ["died"])]
    assert manifest.attempted() == [(source_id, '["died"]')]
    manifest.record([], [source_id])
    assert entries_of(manifest) == {each.source_id: each for each in others}
    assert notes.suspects() == []


def test_long_names_that_begin_alike_are_two(manifest: Manifest) -> None:
    names = ["/d/" + "a" * 4_000 + end for end in ("1", "2")]
    manifest.record([replace(ENTRY, source_id=name) for name in names])
    manifest.record([], names[:1])
    assert list(entries_of(manifest)) == names[1:]


def test_an_error_that_quotes_nul_is_recorded(manifest: Manifest) -> None:
    manifest.record([replace(FAILED, error_message="found \0 in it")])
    assert entries_of(manifest)["/d/b.md"].error_message in {"found \0 in it", "found \ufffd in it"}


def test_collections_are_apart(installation: Settings, manifest: Manifest, notes: AttemptNotes) -> None:
    manifest.record([ENTRY], days=["2024-01-01"])
    notes.note_alone(FILE, "reading", "run")
    with closing(open_manifest(installation, "gallery")) as other, closing(other.open_attempts()) as other_notes:
        assert (entries_of(other), other.unreported_days(), other.attempted()) == ({}, set(), [])
        other.record([replace(ENTRY, size=5)], days=["2024-02-02"])
        other.record([], ["/d/a.md"])
        other.days_reported(["2024-01-01"])
        other.doubt_everything()
        assert list(other.below("/d")) == []
        other_notes.count_deaths(lambda _: ["died"])
        other_notes.forget_in_hand()
        assert other_notes.suspects() == []
    assert (entries_of(manifest), manifest.unreported_days()) == ({"/d/a.md": ENTRY}, {"2024-01-01"})
    assert manifest.attempted() == [("/d/a.md", "[]")]


def test_what_exists_is_opened_without_making_anything(installation: Settings, manifest: Manifest) -> None:
    manifest.record([ENTRY])
    existing = open_existing_manifest(installation, COLLECTION)
    assert existing is not None
    with closing(existing):
        assert entries_of(existing) == {"/d/a.md": ENTRY}


def test_closing_twice_is_closing(new_installation: MakeSettings) -> None:
    opened = open_manifest(new_installation(), COLLECTION)
    attempts = opened.open_attempts()
    for each in (attempts, opened, attempts, opened):
        each.close()


# ---- what lies below a folder, in order

#: As they come in the order of their code points.
ORDERED = [
    "/d",
    "/d/ and more",
    "/d/A",
    "/d/a",
    "/d/a\0b",
    "/d/a.md",
    "/d/a/b",
    "/d/" + "a" * 2_500,
    "/d/" + "a" * 2_500 + "b",
    "/d/aab",
    "/d/é",
    "/d/日本",
    "/d/😀",
]
OTHERS = ["/", "/c", "/d.md", "/d0", "/da", "/e/d/a", "\1/d/a", "s3://d/a"]


def fill(manifest: Manifest) -> dict[str, ManifestEntry]:
    names = [*OTHERS, *ORDERED]
    entries = {name: replace(ENTRY, source_id=name, rows=n) for n, name in enumerate(names)}
    manifest.record(reversed(entries.values()))
    return entries


def test_entries_come_in_the_order_of_code_points(manifest: Manifest) -> None:
    assert sorted(ORDERED) == ORDERED
    entries = fill(manifest)
    for root in ("/d", "/d/"):
        found = [entries[name] for name in ORDERED if root == "/d" or name != "/d"]
        assert list(manifest.below(root)) == found
        assert manifest.count_below(root) == len(found)
        assert manifest.rows_below(root) == sum(entry.rows for entry in found)
    assert [entry.source_id for entry in manifest.below("/d/a")] == ["/d/a", "/d/a/b"]
    assert [entry.source_id for entry in manifest.below("/")] == [n for n in sorted(entries) if n[0] == "/"]
    for root in ("/d/a.md/b", ORDERED[7] + "/b", "with\0nul"):
        assert (list(manifest.below(root)), manifest.count_below(root), manifest.rows_below(root)) == ([], 0, 0)
    assert [entry.source_id for entry in manifest.below(ORDERED[7])] == [ORDERED[7]]


def test_entries_below_are_read_some_at_a_time_while_others_write(installation: Settings, manifest: Manifest) -> None:
    entries = [replace(ENTRY, source_id=f"/d/{n:05}", size=n) for n in range(10_050)]
    manifest.record(entries)
    found = manifest.below("/d")
    first = next(found)
    with closing(open_manifest(installation, COLLECTION)) as other:
        other.record([replace(ENTRY, source_id="/d/99999")], [entries[0].source_id, entries[-1].source_id])
    assert [first, *found] == [*entries[:-1], replace(ENTRY, source_id="/d/99999")]


# ---- entries in doubt


def test_of_what_is_in_doubt_everything_but_the_fingerprint_stays(manifest: Manifest, notes: AttemptNotes) -> None:
    manifest.record([ENTRY, FAILED])
    notes.note_together([FILE], "run")
    manifest.doubt(iter(["/d/a.md", "/d/new.md", "/d/a.md"]))
    manifest.doubt([])
    in_doubt = replace(ENTRY, fingerprint="")
    unknown = ManifestEntry("/d/new.md", 0, 0, "", "", "", 0)
    assert list(manifest.below("/d")) == [in_doubt, FAILED, unknown]
    assert [entry.is_in_doubt for entry in entries_of(manifest).values()] == [True, False, True]
    assert (manifest.count_below("/d"), manifest.rows_below("/d")) == (3, ENTRY.rows + FAILED.rows)
    assert manifest.attempted() == [("/d/a.md", "[]")], "it is in hand while its rows change"
    manifest.record([ENTRY], ["/d/new.md"])
    assert entries_of(manifest) == {"/d/a.md": ENTRY, "/d/b.md": FAILED}


def test_everything_in_doubt(manifest: Manifest) -> None:
    entries = fill(manifest)
    manifest.doubt_everything()
    assert entries_of(manifest) == {name: replace(entry, fingerprint="") for name, entry in entries.items()}


# ---- days


def test_days_wait_until_they_are_reported(installation: Settings, manifest: Manifest) -> None:
    manifest.record([ENTRY], days=["2024-01-02", "2024-01-01", "2024-01-02"])
    manifest.record([], ["/d/a.md"], days=["2024-01-02", "2024-01-03"])
    with closing(open_manifest(installation, COLLECTION)) as again:
        assert again.unreported_days() == {"2024-01-01", "2024-01-02", "2024-01-03"}
    manifest.days_reported({"2024-01-03", "2024-01-01", "1999-01-01"})
    assert manifest.unreported_days() == {"2024-01-02"}
    manifest.days_reported([])
    assert manifest.unreported_days() == {"2024-01-02"}


# ---- all or nothing


def test_a_record_that_fails_changes_nothing(manifest: Manifest, notes: AttemptNotes) -> None:
    manifest.record([ENTRY])
    notes.note_together([FILE], "run")
    impossible = replace(FAILED, size=2**63)
    with pytest.raises(Exception, match=r"too large|out of range"):
        manifest.record([replace(ENTRY, size=5), impossible], days=["2024-01-01"])
    assert (entries_of(manifest), manifest.unreported_days()) == ({"/d/a.md": ENTRY}, set())
    assert manifest.attempted() == [("/d/a.md", "[]")]


def test_a_judge_that_fails_changes_nothing(manifest: Manifest, notes: AttemptNotes) -> None:
    notes.note_alone(FILE, "reading", "run")

    def failing(note: AloneInHand) -> Sequence[str] | None:
        raise ZeroDivisionError(note.stage)

    with pytest.raises(ZeroDivisionError, match="reading"):
        notes.count_deaths(failing)
    assert notes.suspects() == []
    assert manifest.attempted() == [("/d/a.md", "[]")]


# ---- notes of what is in hand


def test_a_part_leaves_the_notes_of_the_others(manifest: Manifest, notes: AttemptNotes) -> None:
    """Each of several runs has notes of its own files; only those are of a run that died."""
    files = [replace(FILE, source_id=f"/d/{name}.md") for name in "abcd"]
    with closing(manifest.open_attempts(lambda name: name < "/d/c")) as part:
        for file in files:
            notes.note_alone(file, "reading", "run")
        part.count_deaths(lambda note: [note.source_id])
        found = {suspect.source_id: suspect.deaths for suspect in notes.suspects()}
        assert found == {"/d/a.md": ["/d/a.md"], "/d/b.md": ["/d/b.md"]}
        part.note_together(files[1:2], "run")
        part.forget_in_hand()
    assert [name for name, _ in manifest.attempted()] == [file.source_id for file in files]
    notes.count_deaths(lambda note: [note.source_id])
    assert len(notes.suspects()) == 4


def test_what_is_in_hand_together_is_suspected_without_a_death(manifest: Manifest, notes: AttemptNotes) -> None:
    files = [FILE, replace(FILE, source_id="/d/b.md")]
    notes.note_together(files, "run")
    notes.note_together([], "run")
    assert notes.suspects() == []
    notes.count_deaths(lambda note: pytest.fail(f"{note} was not alone"))
    found = {suspect.source_id: (suspect.deaths, suspect.unproven) for suspect in notes.suspects()}
    assert found == {"/d/a.md": ([], 0), "/d/b.md": ([], 0)}
    manifest.record([ENTRY], ["/d/b.md"])
    assert (notes.suspects(), manifest.attempted()) == ([], [])


def test_a_death_alone_in_hand_is_judged_by_the_deaths_before(notes: AttemptNotes) -> None:
    seen = []

    def judge(note: AloneInHand) -> Sequence[str] | None:
        seen.append(note)
        return [*note.deaths, f"{note.run_id} while {note.stage}"]

    notes.note_alone(FILE, "reading", "one")
    notes.count_deaths(judge)
    notes.count_deaths(judge)  # nothing is in hand any more
    notes.note_alone(FILE, "embedding", "two")
    notes.count_deaths(judge)
    assert seen == [
        AloneInHand("/d/a.md", "reading", "one", []),
        AloneInHand("/d/a.md", "embedding", "two", ["one while reading"]),
    ]
    (suspect,) = notes.suspects()
    assert (suspect.source_id, suspect.size, suspect.modified_ns, suspect.version) == ("/d/a.md", 4, 17, "etag")
    assert (suspect.deaths, suspect.unproven) == (["one while reading", "two while embedding"], 0)


def test_deaths_that_prove_nothing_are_counted(manifest: Manifest, notes: AttemptNotes) -> None:
    for expected in (1, 2):
        notes.note_alone(FILE, "reading", "run")
        notes.count_deaths(lambda _: None)
        assert [(suspect.deaths, suspect.unproven) for suspect in notes.suspects()] == [([], expected)]
    assert manifest.attempted() == [("/d/a.md", "[]")]


@pytest.mark.parametrize("change", [{"size": 5}, {"modified_ns": 18}, {"version": "another"}])
def test_nothing_is_held_against_a_file_that_has_changed(notes: AttemptNotes, change: dict[str, object]) -> None:
    notes.note_alone(FILE, "reading", "run")
    notes.count_deaths(lambda _: ["died"])
    notes.note_together([FILE, FILE], "run")
    assert [suspect.deaths for suspect in notes.suspects()] == [["died"]]
    notes.note_together([replace(FILE, **change)], "run")  # type: ignore[arg-type]
    assert notes.suspects() == []


def test_a_run_that_ends_in_order_leaves_the_suspects_only(manifest: Manifest, notes: AttemptNotes) -> None:
    notes.note_alone(FILE, "reading", "one")
    notes.count_deaths(lambda _: ["died"])
    notes.note_together([FILE, replace(FILE, source_id="/d/b.md")], "two")
    notes.forget_in_hand()
    notes.count_deaths(lambda note: pytest.fail(f"{note} is in hand no more"))
    assert [(suspect.source_id, suspect.deaths) for suspect in notes.suspects()] == [("/d/a.md", ["died"])]
    assert manifest.attempted() == [("/d/a.md", '["died"]')]


def test_threads_note_at_the_same_time(manifest: Manifest, notes: AttemptNotes) -> None:
    def work(number: int) -> None:
        for n in range(20):
            notes.note_together([replace(FILE, source_id=f"/d/{number}-{n}")], "run")

    threads = [Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(manifest.attempted()) == 80
