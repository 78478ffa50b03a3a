"""URLs as they may be shown and stored: without user, password, query and fragment, where secrets stand.

Whatever writes a URL into an error, a log, a run or a row does so through these functions.
"""

import re
from urllib.parse import SplitResult, parse_qsl, quote, quote_plus, unquote, urlsplit

HIDDEN = "***"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
#: How a URL within a text begins. The bound keeps a long text from taking long.
_BEGIN = r"[A-Za-z][A-Za-z0-9+.-]{0,40}://"
#: The same up to a colon without a port behind it: what follows is a password, in which anything may stand.
_PASSWORD = _BEGIN + r"[^\s/@?#\[]*:(?![0-9]*(?:[/\s'\"<>`).,;:}\\]|$))"
_WITH_SPACED_PASSWORD = re.compile(_PASSWORD + r"[^\n@]{0,200}@\S*")
_WITH_PASSWORD = re.compile(rf"{_PASSWORD}\S*")
_ANY = re.compile(rf"{_BEGIN}\S*")
#: A URL without user, query and fragment: up to what encloses it.
_PLAIN = re.compile(_BEGIN + r"[^\s'\"<>`]+")
_TOKEN = re.compile(r"\S+")
#: A name in a query that says that its value is a secret.
_SECRET_NAME = re.compile(r"pass|pwd|secret|token|sig|key|cred|auth|sas|code|session", re.IGNORECASE)
#: A shorter value under any other name is a word of the language, or a number: `require`, `10`.
_SECRET_LENGTH = 8
_HTTP = ("http", "https")


def shown_url(url: str) -> str:
    """Return `scheme://host:port/path`; a path without a scheme as it is. No secret is shown, however malformed."""
    found = _SCHEME.match(url)
    if found is None:
        return url
    parts = _split(url)
    if parts is None or not url.startswith("//", found.end()):
        return f"{found[1]}:…"
    host, path = parts.netloc.rpartition("@")[2], parts.path.rstrip("/")
    if "@" in path or not _is_host(host):  # a password with a / in it, which nobody can tell from a path
        return f"{found[1]}://…"
    return f"{found[1]}://{host}{path}"


def shown_origin(url: str) -> str:
    """Return `scheme://host:port` alone, of a URL whose path may be the secret, as those of webhooks are."""
    scheme, separator, rest = shown_url(url).partition("://")
    return f"{scheme}{separator}{rest.partition('/')[0]}"


def shown_text(text: str, *urls: str | None) -> str:
    """Return a text of somebody else's, such as a library's error, with every URL in it as it may be shown.

    The secret parts of `urls` are taken out too where they stand alone: a library may name an object without its
    scheme and host.
    """
    for url in urls:
        if url and shown_url(url) != url:
            text = text.replace(url, shown_url(url))
    text = _TOKEN.sub(_shown_token, _WITH_SPACED_PASSWORD.sub(_shown_match, text))
    return without_secrets(text, *(secret for url in urls if url is not None for secret in _secrets(url)))


def _shown_token(match: re.Match[str]) -> str:
    """Return a part of a text between blanks as it may be shown. A quote ends a URL only where no secret has it."""
    token = match[0]
    if "://" not in token:
        return token
    secret = _ANY.search(token)
    if secret is None or not any(mark in secret[0] for mark in "@?#"):
        secret = _WITH_PASSWORD.search(token)
    if secret is None:
        return _PLAIN.sub(_shown_match, token)
    return _PLAIN.sub(_shown_match, token[: secret.start()]) + _shown_match(secret)


def _shown_match(match: re.Match[str]) -> str:
    url = match[0].rstrip(").,;:}'\"<>`")  # of the sentence that the URL stands in
    return shown_url(url) + match[0][len(url) :]


def without_secrets(text: str, *secrets: str | None) -> str:
    """Return the text with `***` for each of the secrets, also where it stands percent-encoded.

    A short one is replaced where it is no part of a longer word or number, which would tell it from what is left.
    """
    spellings = {each for secret in secrets if secret for each in (secret, quote(secret, safe=""), quote_plus(secret))}
    for spelling in sorted(spellings, key=len, reverse=True):
        text = _occurrences(spelling).sub(HIDDEN, text)
    return text


def _occurrences(secret: str) -> re.Pattern[str]:
    if len(secret) >= _SECRET_LENGTH:
        return re.compile(re.escape(secret))
    # The end of an escape, such as `\n` or `%20`, begins no word.
    before = r"(?:(?<![^\W_])|(?<=\\[a-z])|(?<=%[0-9A-Fa-f]{2}))" if secret[0].isalnum() else ""
    return re.compile(before + re.escape(secret) + (r"(?![^\W_])" if secret[-1].isalnum() else ""))


def stored_uri(uri: str, *, keep_query: bool) -> str:
    """Return the URI of a content as records keep it. A path without a scheme stays as it is.

    The query goes, unless `keep_query`: it may be a signature. So does the fragment, which is never sent to a web
    server; in other schemes it may belong to the name, and goes with the query.
    """
    found = _SCHEME.match(uri)
    if found is None:
        return uri
    if not keep_query:
        return re.split(r"[?#]", uri, maxsplit=1)[0]
    return uri.partition("#")[0] if found[1].lower() in _HTTP else uri


def is_data(uri: str) -> bool:
    """Return whether it is a `data:` URI, which holds the content itself."""
    return uri[:5].lower() == "data:"


def scheme_of(uri: str) -> str:
    """Return the scheme of a URI, in lower case; empty for a path without one."""
    found = _SCHEME.match(uri)
    return "" if found is None else found[1].lower()


def other_spelling(uri: str) -> str:
    """Return another URI of the same content, whatever its scheme."""
    scheme = scheme_of(uri)
    if scheme in _HTTP:
        return uri.removesuffix("#") if uri.endswith("#") else f"{uri}#"
    if scheme == "file":
        return unquote(urlsplit(uri).path)
    # Capitals and small letters are the same in a scheme; anything behind it may belong to the name of an object.
    return f"{uri[: len(scheme)].swapcase()}{uri[len(scheme) :]}" if scheme else f"file://{quote(uri)}"


def _split(url: str) -> SplitResult | None:
    try:
        return urlsplit(url)
    except ValueError:
        return None


def _is_host(netloc: str) -> bool:
    """Return whether it is a host, perhaps with a port."""
    return re.fullmatch(r"(\[[^\]@]*\]|[^:@]*)(:[0-9]*)?", netloc) is not None


def _secrets(url: str) -> set[str]:
    """Return what a text must not hold of a URL, as it stands there and decoded."""
    parts = _split(url)
    if parts is None or _SCHEME.match(url) is None:
        return set()
    user, colon, password = parts.netloc.rpartition("@")[0].partition(":")
    found = {password if colon else user}
    found |= {each for each in (parts.query, parts.fragment) if len(each) >= _SECRET_LENGTH}
    for part in (parts.query, parts.fragment):
        found |= {
            value
            for name, value in parse_qsl(part)
            if len(value) >= _SECRET_LENGTH or _SECRET_NAME.search(name) is not None
        }
    return {each for secret in found if secret for each in (secret, unquote(secret))}
