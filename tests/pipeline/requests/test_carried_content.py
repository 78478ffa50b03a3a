"""The forms in which messages carry and name documents: each becomes the text that a person would read."""

import base64
from typing import Any

from tests.documents.builders import docx, pdf
from tests.pipeline.requests.installation import MakeInstallation
from tests.servers.web import answer, serving
from vectorize_pipelines.core.items import Modality

CYRILLIC = "Маяк виден за двадцать миль"
WORDS = "The lighthouse stands on a rock."
PDF = pdf([WORDS])
PAGE = f"<!DOCTYPE html><title>Rock</title><p>{WORDS}</p>"
#: Path -> content type and content of what the server has.
SERVED: dict[str, tuple[str, bytes]] = {
    "/pdf/2101.00001v2": ("application/pdf", PDF),
    "/wiki/Lighthouse": ("text/html; charset=utf-8", PAGE.encode()),
    "/octets/1": ("application/octet-stream", PDF),
    "/plain/2.txt": ("text/plain", PDF),
    "/wrong/3.html": ("text/html", docx(WORDS)),
    "/untyped/4": ("", PAGE.encode()),
    "/export.php": ("text/csv", f"text\n{WORDS}\n".encode()),
    "/raw/notes.md": ("text/plain", f"# Rock\n\n{WORDS}\n".encode()),
}


def document(task_id: str, data: Any) -> dict[str, Any]:
    return {"task_id": task_id, "task_type": "document_vectorization", "data": data, "collection": "texts"}


def in_lines(content: bytes, end: str) -> str:
    text = base64.b64encode(content).decode()
    return end.join(text[place : place + 76] for place in range(0, len(text), 76))


def quoted(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


def test_documents_as_messages_carry_them(make_installation: MakeInstallation) -> None:
    installation = make_installation(uris={"allow_private": True})
    installation.modality = Modality.DOCUMENT
    with serving(_serve) as web:
        named = {f"served{path}": web.url(path) for path in SERVED}
        named["redirected"] = web.url("/to/pdf/2101.00001v2")
        carried = {
            "wrapped": {"content": in_lines(PDF, "\n"), "content_type": "application/pdf"},
            "crlf": {"content": in_lines(PDF, "\r\n"), "content_type": "application/pdf; name=a.pdf"},
            "page": {"content": PAGE, "content_type": "text/html"},
            # A text is text already, whatever it declares.
            "cyrillic": {"content": f'<meta charset="windows-1251"><p>{CYRILLIC} {WORDS}', "content_type": "text/html"},
            "uri-pdf": f"data:application/pdf;base64,{in_lines(PDF, '')}",
            "uri-pdf-lines": f"data:application/pdf;base64,{in_lines(PDF, chr(10))}",
            "uri-octets": f"data:;base64,{in_lines(PDF, '')}",
            "uri-page": f"data:text/html;charset=utf-8,{quoted(PAGE)}",
            "uri-text": f"data:,{WORDS}",
            "uri-table": f"data:text/csv,{quoted(f'text{chr(10)}{WORDS}')}",
            "uri-markdown": f"data:text/markdown;charset=utf-8;base64,{in_lines(WORDS.encode(), '')}",
        }
        installation.send(*(document(task_id, data) for task_id, data in {**carried, **named}.items()))
        installation.drain()
    assert installation.final_events() == {task_id: ["completed"] for task_id in (*carried, *named)}
    found: dict[str, str] = {}
    for (task_id, _), text in installation.texts().items():
        found[task_id] = f"{found.get(task_id, '')} {text}"
    assert CYRILLIC in found["cyrillic"]
    assert {task_id for task_id, text in found.items() if WORDS in " ".join(text.split())} == {*carried, *named}


def _serve(handler: Any) -> None:
    if handler.path.startswith("/to/"):
        answer(handler, 302, location=handler.path.removeprefix("/to"))
    else:
        content_type, content = SERVED[handler.path]
        answer(handler, body=content, content_type=content_type)
