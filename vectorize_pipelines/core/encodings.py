"""Encodings of text as the encoding standard has them (https://encoding.spec.whatwg.org): labels and decoders.

webencodings has the standard's table of labels. Python's codecs leave out bytes that the standard decodes, which are
added here. Used by the settings, to check labels, and by the parsers of documents.
"""

import codecs
from functools import lru_cache
from typing import Literal

#: What the standard has read as something else: its bytes can hide markup from those who check a page.
REPLACEMENT = "replacement"

#: Python's codecs for the standard's names, where another one is nearer to the standard's decoder.
_CODECS = {
    "big5": "big5hkscs",
    "euc-kr": "cp949",
    "gbk": "gb18030",
    "iso-2022-jp": "iso2022_jp_ext",
    "iso-8859-8-i": "iso8859-8",
    "macintosh": "mac_roman",
    "shift_jis": "cp932",
    "windows-874": "cp874",
    "x-mac-cyrillic": "mac_cyrillic",
}

_MULTI_BYTE = frozenset((
    "big5", "euc-jp", "euc-kr", "gb18030", "gbk", "iso-2022-jp", "shift_jis", "utf-16be", "utf-16le", "utf-8",
))  # fmt: skip

#: Where the standard's tables differ from Python's.
_DIFFERENT = {
    "koi8-u": {0xAE: "\u045e", 0xBE: "\u040e"},
    "windows-1255": {0xCA: "\u05ba"},
    "x-mac-cyrillic": {0xA2: "\u0490", 0xB6: "\u0491", 0xFF: "\u20ac"},
}

#: Characters of JIS X 0208 as the standard maps them, which is as Windows does, for Python's.
_JIS_AS_WINDOWS = {
    "\u2016": "\u2225", "\u2212": "\uff0d", "\u301c": "\uff5e", "\xa2": "\uffe0", "\xa3": "\uffe1", "\xac": "\uffe2",
}  # fmt: skip

#: Characters that Python's codecs have where the standard has others.
_OTHERS = {
    "big5": {
        "\u2022": "\u2027", "\uff64": "\ufe51", "\u203e": "\xaf", "\u223c": "\uff5e", "\u2641": "\u2295",
        "\u2609": "\u2299", "\xa5": "\uffe5", "\xa2": "\uffe0", "\xa3": "\uffe1",
    },
    "euc-jp": _JIS_AS_WINDOWS,
    "iso-2022-jp": _JIS_AS_WINDOWS,
    # Since 2022; before they were in the area for private use.
    "gb18030": dict(zip(
        "\ue5e5\ue78d\ue78e\ue78f\ue790\ue791\ue792\ue793\ue794\ue795\ue796\ue7c7\ue81e\ue826\ue82b\ue82c\ue832"
        "\ue843\ue854\ue864",
        "\u3000\ufe10\ufe12\ufe11\ufe13\ufe14\ufe15\ufe16\ufe17\ufe18\ufe19\u1e3f\u9fb4\u9fb5\u9fb6\u9fb7\u9fb8"
        "\u9fb9\u9fba\u9fbb",
        strict=True,
    )),
}  # fmt: skip
_OTHERS["gbk"] = _OTHERS["gb18030"]

#: Of Big5 with the supplement of Hong Kong, what Python's codec lacks: the first pair of bytes, and its characters.
_BIG5 = (
    "877a㡵𡵓𣚞𦀡㻬 87a1𥣞㫵竼龗𤅡𨤍𣇪𠪊𣉞䌊蒄龖鐯䤰蘓墖靊鈘秐稲晠権袝瑌篅枂稬剏遆㓦珄𥶹瓆鿇垳䤯呌䄱𣚎堘穲𧭥讏䚮"
    "𦺈䆁𥶙箮𢒼鿈𢓁𢓉𢓌鿉蔄𣖻䂴鿊䓡𪷿拁灮鿋 8e69箸 8e6f簆 8e7e糎 8eab緒 8eb4縝 8ecd者 8ed0耨 8f57菁 8f69蒨 8f6e萏"
    " 8fcb覦覩 8ffe起 906d都 907a銹 90dc靜 90f1響 91bf鼖 9244蔃 92af兙兛兝兞 92c8鍮 92d1瑹 9447浧 94ca禛 95d9邗 9"
    "644靝 96ed瀞 96fc嬨 9b76爁 9b78矗 9b7b纇 9bc6駖 9bde釔 9bec惞 9bf6澶 9c42輶 9c53侻 9c62營 9c68鄄 9c6b鷰 9c77"
    "菏 9cbc尐秣 9cd0婧 9d57輋 9d5a筑 9dc4拐 9ea9恢 9eef痹 9efd汊 9f60鬮 9f66鼗 9fcb僭 9fd8弌 a063蠏 a077拎 a0d5"
    "瑨 a0df煢 a0e4牐 a3c0␀␁␂␃␄␅␆␇␈␉␊␋␌␍␎␏␐␑␒␓␔␕␖␗␘␙␚␛␜␝␞␟␡€ c6cf廴 c6d3无 c6d5癶 c6d7隶 c6de〃仝 fa5f倩 fa66偽 f"
    "abd包 fac5卄 fad5卿 fb48嘅 fbb8婷 fbf3幵 fbf9廐 fc4f彘 fc6c悤 fcb9撐 fce2晴 fcf1杞 fdb7沜渝 fdbb港 fdf1煮 fe"
    "52猪 fe6f瑜 feaa瓩 fedd砉"
)

#: Codecs of Python that are not encodings of files.
_NOT_OF_FILES = frozenset(("idna", "mbcs", "oem", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"))

Errors = Literal["strict", "replace"]


def standard_name(label: str) -> str | None:
    """Return the standard's name, in lower case, of the encoding that has this label; None for what is no label."""
    import webencodings

    try:
        encoding = webencodings.lookup(label)
    except UnicodeError:  # a lone surrogate
        return None
    return None if encoding is None else str(encoding.name)


def encoding_name(label: str) -> str | None:
    """Return the name to decode with for a label of the standard or a codec of Python: DOS's and Apple's code pages.

    None for what is neither.
    """
    if (name := standard_name(label)) is not None:
        return name
    try:
        codec = codecs.lookup(label)
    except (LookupError, UnicodeError, ValueError):
        return None
    # Not public, and the only mark of codecs that turn bytes into text.
    is_text = getattr(codec, "_is_text_encoding", True)
    return codec.name if is_text and codec.name.replace("_", "-") not in _NOT_OF_FILES else None


def decode_as(content: bytes, encoding: str, errors: Errors = "strict") -> str:
    """Return the bytes as text. `encoding` is a name from `encoding_name`; with "replace", U+FFFD for what is damaged.

    Raises `UnicodeDecodeError` with "strict".
    """
    if encoding in _MULTI_BYTE:
        handler = _REPLACING if errors == "replace" else _STRICT
        text = content.decode(_CODECS.get(encoding, encoding), handler)
        for found, standard in _OTHERS.get(encoding, {}).items():
            text = text.replace(found, standard)
        return text
    if standard_name(encoding) == encoding:
        return codecs.charmap_decode(content, errors, _table(encoding))[0]
    return content.decode(encoding, errors)


@lru_cache(maxsize=64)
def _table(encoding: str) -> str:
    """Return the 256 characters of a single-byte encoding; U+FFFE, as codecs expect it, for those that have none."""
    import webencodings

    found = webencodings.lookup(encoding)
    assert found is not None
    different = _DIFFERENT.get(encoding, {})
    characters = []
    for byte in range(256):
        try:
            character = found.codec_info.decode(bytes([byte]), "strict")[0]
        except UnicodeDecodeError:
            # The standard has the control character of that number wherever Windows has none.
            character = chr(byte) if 0x80 <= byte < 0xA0 else "\ufffe"
        characters.append(different.get(byte, character))
    return "".join(characters)


def _strict(error: UnicodeError) -> tuple[str, int]:
    found = _in_the_standard(error)
    if found is None:
        raise error
    return found


def _replacing(error: UnicodeError) -> tuple[str, int]:
    found = _in_the_standard(error)
    if found is not None:
        return found
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd", error.end


def _in_the_standard(error: UnicodeError) -> tuple[str, int] | None:
    """Return the character that the standard has where Python's codec found none, and where its bytes end."""
    assert isinstance(error, UnicodeDecodeError)
    lead, pair = error.object[error.start], error.object[error.start : error.start + 2]
    if error.encoding == "gb18030" and lead == 0x80:
        return "\u20ac", error.start + 1
    if error.encoding == "cp932" and lead == 0x80:
        return "\x80", error.start + 1
    character = None
    if error.encoding == "big5hkscs":
        character = _big5().get(pair)
    elif len(pair) == 2 and (error.encoding == "iso2022_jp_ext" or (error.encoding == "euc_jp" and min(pair) > 0xA0)):
        character = _nec_or_ibm(pair)
    return None if character is None else (character, error.start + 2)


@lru_cache(maxsize=1)
def _big5() -> dict[bytes, str]:
    """Return what `_BIG5` says, by the pair of bytes."""
    runs = ((int(run[:4], 16), run[4:]) for run in _BIG5.split())
    return {(first + index).to_bytes(2, "big"): character for first, run in runs for index, character in enumerate(run)}


def _nec_or_ibm(pair: bytes) -> str | None:
    """Return the vendor's character of a pair of JIS X 0208, which Python has in its codec for Shift_JIS alone."""
    row, cell = (pair[0] & 0x7F) - 0x21, (pair[1] & 0x7F) - 0x21
    if not (0 <= row < 94 and 0 <= cell < 94):
        return None
    lead = row // 2 + (0x81 if row < 62 else 0xC1)
    trail = cell + (0x9F if row % 2 else 0x40 if cell < 63 else 0x41)
    try:
        return bytes((lead, trail)).decode("cp932")
    except UnicodeDecodeError:
        return None


_STRICT, _REPLACING = "vectorize-standard-strict", "vectorize-standard-replace"
codecs.register_error(_STRICT, _strict)
codecs.register_error(_REPLACING, _replacing)
