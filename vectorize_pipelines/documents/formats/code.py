"""Source code: as it stands, cut at its definitions, which become sections: `Harbour > moor`.

Definitions are found line by line: by what begins them in the language of the file's ending, and by how far they are
indented. That is right for code that is laid out as usual; other code is cut at fewer places, and nothing is lost.
"""

import re

from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.formats.outline import Heading, sections
from vectorize_pipelines.documents.formats.text import decode
from vectorize_pipelines.documents.recognition import ending
from vectorize_pipelines.documents.types import ParsedDocument

#: Longer lines are generated.
MAX_LINE_CHARACTERS = 400
MAX_DEPTH = 6
TAB = 8

_BRACES_TYPE = (
    r"(?:(?:export|default|public|private|protected|internal|static|final|abstract|sealed|partial|open|data|declare"
    r"|pub(?:\([a-z: ]+\))?|unsafe|async)\s+)*"
    r"(?:class|interface|enum(?: class)?|struct|trait|impl(?:<[^>]*>)?|namespace|module|mod|record|object|union"
    r"|protocol|extension|actor)\s+(?P<type>[\w$.:]+)"
)
_NOT_A_NAME = frozenset((
    "if", "for", "while", "switch", "catch", "return", "else", "do", "try", "new", "throw", "sizeof", "elif", "with",
    "lock", "using", "foreach", "when", "match", "case", "await", "yield", "typeof", "delete", "assert",
    "super", "this",
))  # fmt: skip

_PYTHON = re.compile(r"\s*(?:async\s+)?(?:def|class)\s+(?P<name>\w+)")
_RUBY = re.compile(r"\s*(?:def|class|module)\s+(?P<name>[\w.:?!=]+)")
_SHELL = re.compile(r"\s*(?:function\s+(?P<word>[\w:.-]+)|(?P<name>[\w:.-]+)\s*\(\s*\))")
_LUA = re.compile(r"\s*(?:local\s+)?function\s+(?P<name>[\w.:]+)")
_PERL = re.compile(r"\s*(?:sub|package)\s+(?P<name>[\w:]+)")
_R = re.compile(r"\s*(?P<name>[\w.]+)\s*(?:<-|=)\s*function\b")
_SQL = re.compile(
    r"\s*create\s+(?:or\s+replace\s+)?(?:(?:global|local|temp|temporary|unique|materialized|external|recursive)\s+)*"
    r"(?:table|view|function|procedure|trigger|index|type|schema|sequence|policy|domain)\s+(?:if\s+not\s+exists\s+)?"
    r"(?P<name>[\w.\"`\[\]]+)",
    re.IGNORECASE,
)
_GO = re.compile(r"(?:func\s+(?:\([^)]*\)\s*)?(?P<name>\w+)|type\s+(?P<type>\w+))")
_RUST = re.compile(
    r"\s*(?:pub(?:\([a-z: ]+\))?\s+)?(?:(?:const|async|unsafe|extern(?:\s+\"[^\"]*\")?)\s+)*"
    r"(?:fn\s+(?P<name>\w+)|macro_rules!\s*(?P<word>\w+))|\s*" + _BRACES_TYPE
)
_SCRIPT = re.compile(
    r"\s*(?:export\s+)?(?:default\s+)?(?:async\s+)?function\s*\*?\s*(?P<name>[\w$]+)"
    r"|\s*(?:export\s+)?(?:const|let|var)\s+(?P<word>[\w$]+)\s*(?::[^=]{1,100})?=\s*(?:async\s*)?"
    r"(?:function\b|\([^()]{0,200}\)[^=]{0,100}=>|[\w$]+\s*=>)"
    r"|\s+(?:(?:static|async|get|set|public|private|protected|readonly|override)\s+)*(?P<method>[\w$#]+)\s*"
    r"(?:<[^<>]{1,100}>)?\([^;]{0,200}\{\s*$"
    r"|\s*" + _BRACES_TYPE
)
_PHP = re.compile(
    r"\s*(?:(?:public|private|protected|static|final|abstract)\s+)*function\s+&?(?P<name>\w+)|\s*" + _BRACES_TYPE
)
_KOTLIN = re.compile(
    r"\s*(?:(?:public|private|protected|internal|open|override|suspend|inline|static|final|mutating|func)\s+)*"
    r"(?:fun|func|def)\s+(?:<[^<>]{1,100}>\s*)?(?P<name>[\w.]+)|\s*" + _BRACES_TYPE
)
#: C and its relatives: a type, a name and brackets on one line that is no statement.
_BRACES = re.compile(
    r"\s*" + _BRACES_TYPE + r"(?!\s*[;*&(\w])|\s*(?:#\s*define\s+(?P<word>\w+)\()"
    r"|\s*(?:[\w:<>,\[\]*&~@?.]+\s+){1,8}[*&]*(?P<name>[\w:~]+)\s*\([^;=]{0,300}$"
)

_LANGUAGES: dict[str, tuple[str, re.Pattern[str]]] = {
    **dict.fromkeys((".py", ".pyi"), ("python", _PYTHON)),
    **dict.fromkeys((".js", ".mjs", ".cjs", ".jsx"), ("javascript", _SCRIPT)),
    **dict.fromkeys((".ts", ".tsx"), ("typescript", _SCRIPT)),
    ".rb": ("ruby", _RUBY),
    **dict.fromkeys((".sh", ".bash"), ("shell", _SHELL)),
    ".lua": ("lua", _LUA),
    ".pl": ("perl", _PERL),
    ".r": ("r", _R),
    ".sql": ("sql", _SQL),
    ".go": ("go", _GO),
    ".rs": ("rust", _RUST),
    ".php": ("php", _PHP),
    **dict.fromkeys((".kt",), ("kotlin", _KOTLIN)),
    ".scala": ("scala", _KOTLIN),
    ".swift": ("swift", _KOTLIN),
    ".java": ("java", _BRACES),
    ".cs": ("c#", _BRACES),
    **dict.fromkeys((".c", ".h"), ("c", _BRACES)),
    **dict.fromkeys((".cc", ".cpp", ".cxx", ".hh", ".hpp"), ("c++", _BRACES)),
}


def parse_code(content: bytes, context: ParseContext) -> ParsedDocument:
    """Return the text as it stands, a section for each definition. Raises `NotTextError`."""
    text, notices = decode(content, context)
    language, pattern = _LANGUAGES.get(ending(context.name), ("", _PYTHON))
    headings = _definitions(text, pattern)
    metadata = {"parser": "code"} | ({"programming_language": language} if language else {})
    return ParsedDocument(text, metadata, sections(text, headings), notices=notices)


def _definitions(text: str, pattern: re.Pattern[str]) -> list[Heading]:
    """Return the definitions as headings, in order; what is indented further lies in the one before."""
    found: list[Heading] = []
    indents: list[int] = []
    position = begin = 0
    for line in text.split("\n"):
        start, position = position, position + len(line) + 1
        if _belongs_to_next(line):
            continue
        begin, first = position, begin
        if len(line) > MAX_LINE_CHARACTERS or not line.strip():
            continue
        name, end = _name(pattern, line)
        if not name:
            continue
        indent = len(line.expandtabs(TAB)) - len(line.expandtabs(TAB).lstrip())
        while indents and indents[-1] >= indent:
            indents.pop()
        if len(indents) < MAX_DEPTH:
            indents.append(indent)
            found.append(Heading(first, start + end, len(indents), name))
    return found


def _belongs_to_next(line: str) -> bool:
    """Return whether a line says something of the definition behind it: a comment, a decorator, an attribute."""
    start = line.lstrip()[:3]
    return start.startswith(("@", "//", "/*", "* ", "*/", "--", "#[", "///")) or (
        start.startswith("#") and not line.lstrip().startswith(("#define", "#include", "#if", "#end", "#else"))
    )


def _name(pattern: re.Pattern[str], line: str) -> tuple[str, int]:
    """Return the name that a line defines and where it ends; an empty one where it defines nothing."""
    match = pattern.match(line)
    if match is None:
        return "", 0
    name = next((value for value in match.groupdict().values() if value), "")
    before = line[: match.end()].split()
    if name in _NOT_A_NAME or (before and before[0] in _NOT_A_NAME):
        return "", 0
    return name.strip('"`[]'), line.find(name) + len(name)
