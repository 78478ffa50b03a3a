"""Server-Sent Events as bytes. Called by `live.hub` and `gateway.routes.live`.

See https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from vectorize_pipelines.messaging.events import ResultEvent


def encoded_status(data: bytes, identity: str) -> bytes:
    """A state of a request, whose JSON is at hand. Neither it nor the id has line breaks."""
    return b"event: status\nid: %s\ndata: %s\n\n" % (identity.encode(), data)


def status(event: ResultEvent, identity: str) -> bytes:
    """A state of a request."""
    return encoded_status(event.to_json(), identity)


def reset(identity: str) -> bytes:
    """Return the event that says that changes may have been missed: a client has to load again what it shows."""
    return b'event: reset\nid: %s\ndata: {"reason":"changes may have been missed"}\n\n' % identity.encode()


def comment(text: str) -> bytes:
    """A line that clients pass over."""
    return f": {text}\n\n".encode()
