"""A server that answers what S3 answers to a listing (ListObjectsV2), page by page, and to HEAD, and nothing else."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1000


@contextmanager
def s3_listing_server(bucket: str, keys: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The endpoint of a server with one bucket, and the queries that it has been asked, in order."""
    queries: list[str] = []
    in_order = sorted(keys, key=str.encode)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(200 if unquote(self.path).partition(f"/{bucket}/")[2] in in_order else 404, "")

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if parts.path.strip("/") != bucket:
                return self._answer(404, "<Error><Code>NoSuchKey</Code></Error>")
            queries.append(parts.query)
            return self._answer(200, _page(bucket, in_order, parse_qs(parts.query)))

        def _answer(self, status: int, text: str) -> None:
            content = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", queries
        finally:
            server.shutdown()
            thread.join()


def _page(bucket: str, keys: Sequence[str], query: dict[str, list[str]]) -> str:
    prefix = query.get("prefix", [""])[0]
    after = query.get("continuation-token", [""])[0]
    most = int(query.get("max-keys", [str(PAGE)])[0])
    found = [key for key in keys if key.startswith(prefix) and key.encode() > after.encode()]
    page = found[: min(PAGE, most)]
    contents = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>2024-03-01T12:00:00.000Z</LastModified>"
        f"<ETag>&quot;{number:032x}&quot;</ETag><Size>7</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for number, key in enumerate(page)
    )
    more = len(page) < len(found)
    token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>{bucket}</Name>'
        f"<Prefix>{escape(prefix)}</Prefix>"
        f"<KeyCount>{len(page)}</KeyCount><MaxKeys>{most}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>"
        f"{contents}{token}</ListBucketResult>"
    )
