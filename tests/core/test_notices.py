"""Notices are words that any place takes, and few."""

from hypothesis import given, settings
from hypothesis import strategies as st

from vectorize_pipelines.core import notices
from vectorize_pipelines.core.items import MetadataLimits
from vectorize_pipelines.core.notices import MAX_NOTICE_CHARACTERS, MAX_NOTICES, NoticeKind, assumed, limited, omitted

LIMITS = MetadataLimits(max_bytes=1000, max_values=100)


@settings(max_examples=50)
@given(st.text(), st.text())
def test_any_words_are_kept_as_printable_ones(what: str, remedy: str) -> None:
    notice = omitted(what, remedy)
    assert notice.what.isprintable()
    assert len(notice.what) <= MAX_NOTICE_CHARACTERS
    assert notices.from_json(notices.to_json([notice])) == (notice,)
    notice.what.encode()


def test_numbers_are_listed_as_a_person_writes_them() -> None:
    assert notices.listed_numbers([3, 5, 6, 8, 9, 10]) == "3, 5, 6, 8 to 10"
    assert notices.listed_numbers([*range(1, 42, 2), 42]).endswith("39 and 2 more")


def test_of_many_the_missing_ones_come_first_and_the_last_says_how_many_there_are() -> None:
    few = (assumed("a", "b"), omitted("c", "d"))
    assert limited(few) == few
    many = [assumed(f"guess {n}", "") for n in range(30)] + [omitted(f"page {n}", "") for n in range(5)]
    found = limited(many)
    assert len(found) == MAX_NOTICES
    assert [each.what for each in found[:6]] == ["page 0", "page 1", "page 2", "page 3", "page 4", "guess 0"]
    assert found[-1].what == "16 further things were assumed"
    assert limited([omitted(str(n), "") for n in range(21)])[-1].what == "2 further parts are missing"
    mixed = limited([*(omitted(str(n), "") for n in range(20)), assumed("a", "")])[-1]
    assert (mixed.kind, mixed.what) == (
        NoticeKind.OMITTED,
        "1 further parts are missing and 1 further things were assumed",
    )


def test_rows_say_it_beside_the_users_own_fields_and_within_the_limits() -> None:
    told = (omitted("2 of 7 pages", ""), assumed("windows-1251", ""))
    row = {"omitted": "mine", "zip": "02134"}
    assert notices.row_fields(told, row, LIMITS) == {"assumed": ["windows-1251"], **row}
    assert notices.row_fields((), row, LIMITS) is row
    full = {"text": "x" * 980}
    assert notices.row_fields(told, full, LIMITS) == full
    (said,) = notices.row_fields([omitted("p" * 400, "")], {}, LIMITS).values()
    assert said == ["p" * 199 + "…"]
