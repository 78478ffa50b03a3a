"""What lies inside of a file: members of archives, attachments of messages, as documents of their own."""

import base64
import io
import tarfile
import zipfile
from datetime import UTC, datetime
from email.message import EmailMessage

import pytest

from tests.documents import compound, packages
from tests.documents.builders import SETTINGS, docx, settings
from vectorize_pipelines.core.notices import MAX_NOTICES, NoticeKind
from vectorize_pipelines.documents import ParsedDocument, parse
from vectorize_pipelines.documents.codec import ParseOutcome, answer_limits, from_message, to_message
from vectorize_pipelines.documents.errors import (
    CorruptDocumentError,
    DecompressionLimitError,
    EmptyDocumentError,
    EncryptedDocumentError,
    UnsupportedFormatError,
)


def read(content: bytes, name: str, **changes: object) -> ParsedDocument:
    return parse(content, name, settings(**changes) if changes else SETTINGS)


def texts(document: ParsedDocument) -> dict[str, str]:
    return {member.name: member.document.text for member in document.members}


def tar(mode: str, **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            information = tarfile.TarInfo(name)
            information.size = len(content)
            archive.addfile(information, io.BytesIO(content))
    return buffer.getvalue()


def test_an_archives_members_are_documents_of_their_own() -> None:
    inner = packages.package({"deep/b.md": "# Fees\nForty crowns."})
    content = packages.package(
        {
            "a.txt": "North pier",
            "table.csv": "text,n\none,1\ntwo,2\n",
            "folder/": "",
            "folder/inner.zip": inner,
            "__MACOSX/._a.txt": "x",
            ".hidden.txt": "x",
            "~$a.docx": "x",
            "empty.txt": "",
            "picture.png": "x",
            "report.docx": docx("A docx"),
        }
    )
    document = read(content, "a.zip")
    assert texts(document) == {
        "a.txt": "North pier",
        "table.csv": "one\ntwo",
        "folder/inner.zip!/deep/b.md": "# Fees\nForty crowns.",
        "report.docx": "A docx",
    }
    assert len(next(each for each in document.members if each.name == "table.csv").document.rows) == 2
    assert [(notice.kind, notice.what) for notice in document.notices] == [
        ("assumed", "1 member(s) of other kinds are left out: 1 .png")
    ]


@pytest.mark.parametrize(
    ("name", "mode"), [("a.tar", "w"), ("a.tgz", "w:gz"), ("a.tar.bz2", "w:bz2"), ("a.tar.xz", "w:xz")]
)
def test_tars_of_every_compression(name: str, mode: str) -> None:
    assert texts(read(tar(mode, **{"a.txt": b"one", "b/c.md": b"two"}), name)) == {"a.txt": "one", "b/c.md": "two"}


def test_a_tar_that_is_damaged_in_the_middle_is_not_taken_for_a_shorter_one() -> None:
    content = tar("w:", **{f"{number}.txt": b"text" for number in range(3)})
    end = 2 * 1024
    damaged = content[:end] + b"x" * 20 + content[end + 20 :]
    for broken in (damaged, content[: end + 100], content[: end + 514]):
        document = read(broken, "a.tar")
        assert list(texts(document)) == ["0.txt", "1.txt"]
        assert (document.notices[0].kind, "behind its member 1.txt" in document.notices[0].what) == ("omitted", True)
    with pytest.raises(CorruptDocumentError):
        read(content[:514], "a.tar")
    without_end = read(content[:end], "a.tar")
    assert (without_end.notices[0].kind, list(texts(without_end))) == ("assumed", ["0.txt", "1.txt"])


def test_a_bad_member_is_a_notice_and_the_others_are_read() -> None:
    content = packages.package({"good.txt": "good", "bad.docx": "no docx", "bad.pdf": "<html>"})
    document = read(content, "a.zip")
    assert texts(document) == {"good.txt": "good"}
    assert "its member bad.docx is not embedded: it is no DOCX file" in document.notices[0].what
    assert document.notices[0].remedy == "it may be a failed download, fetch it again"
    assert "bad.pdf" in document.notices[1].what


def test_a_member_in_an_old_format_of_office_is_refused_by_name_and_no_file_of_another_kind() -> None:
    old = compound.compound({"WordDocument": b"x"})
    document = read(packages.package({"old.doc": old, "rtf.DOC": b"{\\rtf1 North pier}", "a.exe": b"x"}), "a.zip")
    assert texts(document) == {"rtf.DOC": "North pier"}
    refused, others = document.notices
    assert (refused.kind, "old.doc is not embedded: it is a document of Word" in refused.what) == ("omitted", True)
    assert (others.kind, others.what) == ("assumed", "1 member(s) of other kinds are left out: 1 .exe")


def test_an_encrypted_member_is_noticed() -> None:
    content = bytearray(packages.package({"secret.txt": "x" * 50, "open.txt": "open"}))
    for mark in (b"PK\x03\x04", b"PK\x01\x02"):
        place = content.find(mark) + (6 if mark.endswith(b"\x04") else 8)
        content[place] |= 1
    document = read(bytes(content), "a.zip")
    assert texts(document) == {"open.txt": "open"}
    assert "secret.txt is not embedded: it is encrypted" in document.notices[0].what


def test_names_lead_nowhere() -> None:
    content = packages.package({"../../etc/passwd.txt": "one", "/absolute.txt": "two", "a\\b.txt": "three"})
    assert list(texts(read(content, "a.zip"))) == ["etc/passwd.txt", "absolute.txt", "a/b.txt"]


def test_archives_are_read_three_deep() -> None:
    content = packages.package({"a.txt": "deepest"})
    for _ in range(3):
        content = packages.package({"a.txt": "text", "in.zip": content})
    document = read(content, "a.zip")
    assert list(texts(document)) == ["a.txt", "in.zip!/a.txt", "in.zip!/in.zip!/a.txt"]
    assert "inside of 3 others" in document.notices[0].what


def test_all_members_together_stay_within_the_limits() -> None:
    content = packages.package({"a.zip": packages.package({"a.txt": "a" * 600}), "b.txt": "b" * 600})
    with pytest.raises(DecompressionLimitError, match="MAX_DECOMPRESSED_BYTES"):
        read(content, "a.zip", max_decompressed_bytes=1_000)
    with pytest.raises(DecompressionLimitError, match="MAX_MEMBERS"):
        read(content, "a.zip", max_members=2)
    with pytest.raises(DecompressionLimitError, match="unpacks to more than"):
        read(tar("w:gz", **{"a.bin": b"\0" * 5_000_000}), "a.tgz", max_decompressed_bytes=1_000)


def test_an_archive_without_documents_says_why() -> None:
    with pytest.raises(EmptyDocumentError, match=r"holds no document.*1 \.png"):
        read(packages.package({"a.png": "x"}), "a.zip")


def mail(**headers: str) -> EmailMessage:
    message = EmailMessage()
    given = {"Subject": "The lease", "From": "Ada <ada@example.com>", "To": "Bob <bob@example.com>"} | headers
    for name, value in given.items():
        message[name] = value
    return message


def test_a_message_with_attachments() -> None:
    message = mail(Date="Mon, 06 May 2024 07:08:09 +0200")
    message.set_content("It ends in June.")
    message.add_alternative("<p>It ends in <b>June</b>.</p>", subtype="html")
    message.add_attachment(b"a,text\n1,x\n", maintype="text", subtype="csv", filename="fees.csv")
    message.add_attachment(
        packages.pptx(("Fees", ["Forty"], "")), maintype="application", subtype="x", filename="f.pptx"
    )
    message.add_attachment(b"x", maintype="image", subtype="png", filename="a.png")
    forwarded = mail(Subject="Before")
    forwarded.set_content("It began in May.")
    message.add_attachment(forwarded)
    document = read(message.as_bytes(), "a.eml")
    assert document.text == "The lease\n\nIt ends in June."
    assert {**document.metadata, "language": ""} == {
        "title": "The lease",
        "author": "Ada <ada@example.com>",
        "to": "Bob <bob@example.com>",
        "created": "2024-05-06T07:08:09+02:00",
        "parser": "eml",
        "language": "",
    }
    assert texts(document) == {"fees.csv": "x", "f.pptx": "Fees\n\nForty", "Before.eml": "Before\n\nIt began in May."}
    assert [notice.what for notice in document.notices] == ["1 attachment(s) of other kinds are left out: 1 .png"]


def test_the_html_of_a_message_is_read_where_its_text_is_a_stub() -> None:
    message = mail()
    message.set_content("See HTML.")
    message.add_alternative("<p>The lease ends in June, unless it is renewed.</p>", subtype="html")
    assert read(message.as_bytes(), "a.eml").text == "The lease\n\nThe lease ends in June, unless it is renewed."


def test_parts_of_a_message_that_stand_behind_each_other_are_all_read() -> None:
    content = (
        b"Subject: s\nFrom: a@example.com\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=x\n\n"
        b"--x\nContent-Type: multipart/alternative; boundary=y\n\n--y\n\nThe pier is closed.\n"
        b"--y\nContent-Type: text/html\n\n<p>The pier is closed.\n--y\nContent-Type: text/calendar\n\nBEGIN\n--y--\n"
        b"--x\nContent-Type: text/html\n\n<p>From Monday on.\n--x\n\nSent by a list\n"
        b"--x\nContent-Type: text/calendar\n\nBEGIN\n--x--\n"
    )
    document = read(content, "a.eml")
    assert document.text == "s\n\nThe pier is closed.\n\nFrom Monday on.\n\nSent by a list"
    assert [notice.what for notice in document.notices] == [
        "1 attachment(s) of other kinds are left out: 1 without an ending"
    ]


def test_lines_that_were_broken_to_send_them_are_joined() -> None:
    head = b"Subject: s\nFrom: a@example.com\nContent-Type: text/plain; charset=koi8-r; format=flowed\n\n"
    assert read(head + "Первая \nстрока\nвторая\n".encode("koi8-r"), "a.eml").text == "s\n\nПервая строка\nвторая"


def test_a_message_in_an_encoding_that_nobody_knows_is_read_as_what_it_is() -> None:
    head = b"Subject: s\nFrom: a@example.com\nContent-Type: text/plain; charset=unknown-8bit\n\n"
    assert read(head + "Größe".encode(), "a.eml").text == "s\n\nGröße"


def test_an_encrypted_message_is_named() -> None:
    content = b"Subject: s\nFrom: a@example.com\nContent-Type: multipart/encrypted; boundary=x\n\n--x\n\nx\n--x--\n"
    with pytest.raises(EncryptedDocumentError, match="save it decrypted"):
        read(content, "a.eml")


def test_an_outlook_message_with_attachments() -> None:
    content = compound.message(
        "The lease",
        "It ends in June.",
        "ada@example.com",
        {"Bob": "bob@example.com"},
        {"fees.csv": b"text,n\nForty,1\n", "Before": None},
    )
    document = read(content, "a.msg")
    assert document.text == "The lease\n\nIt ends in June."
    wanted = {"title": "The lease", "author": "<ada@example.com>", "to": "Bob <bob@example.com>", "parser": "msg"}
    assert {key: document.metadata[key] for key in wanted} == wanted
    assert texts(document) == {"fees.csv": "Forty"}
    assert "Before is a message or a link and not embedded" in document.notices[0].what
    assert read(content, "a.docx").metadata["parser"] == "msg"


def test_the_text_of_an_outlook_message_that_is_not_read_is_said() -> None:
    document = read(compound.message("The lease", "", "ada@example.com", {}, {}, {0x1009: b"compressed"}), "a.msg")
    assert document.text == "The lease"
    assert [(notice.kind, notice.what) for notice in document.notices] == [
        ("omitted", "its text is kept as compressed RTF alone, and not embedded")
    ]


@pytest.mark.parametrize(
    ("stream", "said"), [("WordDocument", "Word before 2007"), ("PowerPoint Document", "save it as .pptx")]
)
def test_old_office_files_are_told_apart_by_their_streams(stream: str, said: str) -> None:
    # A presentation may have a workbook inside, which counts for nothing.
    content = compound.compound({stream: b"x", "embedded": {"Workbook": b"x"}})
    with pytest.raises(UnsupportedFormatError, match=said):
        read(content, "a.doc.docx")


def test_members_cross_to_the_run_as_they_are() -> None:
    document = read(packages.package({"a.txt": "Größe", "b.csv": "text,n\né,1\n", "c.md": "# T\nx"}), "a.zip")
    outcome = ParseOutcome("0" * 32, document)
    limits = answer_limits(SETTINGS)
    assert from_message(to_message(outcome, limits)) == outcome


def test_the_rows_of_a_member_have_its_address() -> None:
    from vectorize_pipelines.documents.cutting import Cutting
    from vectorize_pipelines.settings import Settings

    document = read(packages.package({"a.txt": "one", "b.csv": "text,member\ntwo,mine\n"}), "a.zip")
    items = Cutting(Settings(), "sentence-transformers/all-MiniLM-L6-v2").items(
        document, source_id="/x/a.zip", uri="/x/a.zip", occurred_at=datetime.now(UTC)
    )
    assert [(item.item_index, item.source_id, item.uri) for item in items] == [
        (0, "/x/a.zip", "/x/a.zip!/a.txt"),
        (1, "/x/a.zip", "/x/a.zip!/b.csv"),
    ]
    assert [item.metadata["member"] for item in items] == ["a.txt", "mine"]


def test_the_rows_of_a_member_say_what_of_it_is_missing_and_no_others() -> None:
    from vectorize_pipelines.documents.cutting import Cutting
    from vectorize_pipelines.settings import Settings

    document = read(packages.package({"a.txt": "one", "b.csv": "text,n\ntwo,1\nthree\n"}), "a.zip")
    assert [notice.what.partition(":")[0] for notice in document.notices] == ["b.csv"]
    items = Cutting(Settings(), "sentence-transformers/all-MiniLM-L6-v2").items(
        document, source_id="/x/a.zip", uri="/x/a.zip", occurred_at=datetime.now(UTC)
    )
    assert ["line 3" in str(item.metadata.get("omitted")) for item in items] == [False, True]


def test_a_name_in_utf8_that_does_not_say_so_is_read() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("tide.txt", "x")
    content = buffer.getvalue().replace(b"tide.txt", "gré.txt".encode())
    assert list(texts(read(content, "a.zip"))) == ["gré.txt"]


def test_programs_leftovers_in_an_archive_are_passed_over_as_in_a_folder() -> None:
    leftovers = ["THUMBS.DB", "docs/~$a.docx", "docs/a.txt~", "a.pdf.part", ".~lock.a.odt#", "x.tmp"]
    document = read(packages.package({"a.txt": "one", **dict.fromkeys(leftovers, "x")}), "a.zip")
    assert texts(document) == {"a.txt": "one"}
    assert document.notices == ()


def test_guesses_in_many_members_are_not_said_to_be_missing() -> None:
    content = "Größe und Maße der schönen Brücke über den Fluß, die früher unmöglich gewesen wäre.".encode("cp1252")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(2 * MAX_NOTICES):
            archive.writestr(f"{number}.txt", content)
    outcome = ParseOutcome("0" * 32, read(buffer.getvalue(), "a.zip"))
    document = from_message(to_message(outcome, answer_limits(SETTINGS))).document
    assert document is not None
    assert len(document.notices) == MAX_NOTICES
    assert {notice.kind for notice in document.notices} == {NoticeKind.ASSUMED}


def test_the_rows_of_a_member_say_what_is_missing_in_it() -> None:
    from vectorize_pipelines.documents.cutting import Cutting
    from vectorize_pipelines.settings import Settings

    table = "text,n\none,1\ntoo,many,fields\ntwo,2\n"
    inner = packages.package({"a.csv": table, "b.txt": "whole"})
    parsed = read(packages.package({"in.zip": inner, "c.txt": "whole"}), "a.zip")
    assert [notice.what.partition(": ")[0] for notice in parsed.notices] == ["in.zip"]
    document = from_message(to_message(ParseOutcome("0" * 32, parsed), answer_limits(SETTINGS))).document
    assert document is not None
    items = Cutting(Settings(), "sentence-transformers/all-MiniLM-L6-v2").items(
        document, source_id="/x/a.zip", uri="/x/a.zip", occurred_at=datetime.now(UTC)
    )
    assert {str(item.metadata["member"]): "omitted" in item.metadata for item in items} == {
        "in.zip!/a.csv": True,
        "in.zip!/b.txt": False,
        "c.txt": False,
    }


def test_a_message_that_came_as_text_has_no_other_encoding() -> None:
    head = "Subject: s\nFrom: a@example.com\nContent-Type: text/plain; charset=koi8-r\n"
    as_text = parse(f"{head}\nПервая".encode(), "document.eml", SETTINGS, "message/rfc822; charset=utf-8")
    assert as_text.text == "s\n\nПервая"
    encoded = f"{head}Content-Transfer-Encoding: base64\n\n".encode() + base64.encodebytes("Первая".encode("koi8-r"))
    assert parse(encoded, "document.eml", SETTINGS, "message/rfc822; charset=utf-8").text == "s\n\nПервая"


def test_an_attachment_has_the_encoding_that_its_part_states() -> None:
    message = mail()
    message.set_content("See the list.")
    message.add_attachment("Größe".encode("cp1250"), maintype="text", subtype="plain", filename="a.txt")
    part = next(message.iter_attachments())
    part.set_param("charset", "windows-1250")
    document = read(message.as_bytes(), "a.eml")
    assert texts(document) == {"a.txt": "Größe"}
    assert document.notices == ()
