"""Reading YAML files whose values may be secrets: an error says where and what is wrong, and shows nothing of the file.

PyYAML's own message quotes the line with the error.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vectorize_pipelines.errors import SettingsError

#: What the parser calls by quotes of its own; anything else in quotes is part of the file.
_TOKENS = re.compile(r"'(?:[-:?,\[\]{}|>]|<[a-z ]+>)'")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_NAME = re.compile(r"[A-Za-z0-9_.-]*")


def read_yaml(file: Path) -> Any:
    """The content of a file; None where it is empty. Raises `SettingsError` with file, line and column."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file} cannot be read as YAML: byte {error.start + 1} is not UTF-8") from None
    return parse_yaml(file, text)


def parse_yaml(file: Path, text: str) -> Any:
    """The content of a text that stands in `file`. Raises `SettingsError` as `read_yaml` does."""
    import yaml  # here, since most commands read no YAML file
    from yaml.reader import ReaderError

    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        problem = _without_content(error.problem or error.context or "is not YAML")
        raise SettingsError(f"{file}{place}: cannot be read as YAML: {problem}") from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SettingsError(
            f"{file}, line {line}: cannot be read as YAML: the character #x{error.character:04x} is not allowed"
        ) from None
    except Exception as error:  # noqa: BLE001 (what makes the values raises whatever they make it raise)
        raise SettingsError(
            f"{file} cannot be read as YAML: a value in it is not of the type that it is written as "
            f"({type(error).__name__}); put it in quotes"
        ) from None


def fill_references(value: Any, environment: Mapping[str, str], filled: set[str]) -> Any:
    """Return the tree of a YAML file with the environment's values in place of `${NAME}`.

    What was filled in is added to `filled`: secrets stand there. Raises `KeyError` with the name of a variable that
    the environment does not have.
    """
    if isinstance(value, dict):
        return {name: fill_references(each, environment, filled) for name, each in value.items()}
    if isinstance(value, list):
        return [fill_references(each, environment, filled) for each in value]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        found = environment[match[1]]
        filled.add(found)
        return found

    return _REFERENCE.sub(variable, value)


def shown_name(name: str) -> str:
    """The name of a field as an error may repeat it: up to the first character that belongs to no name.

    Where the blank after a colon is missing, what is taken for the name holds the value.
    """
    found = _NAME.match(name)
    shown = found[0] if found else ""
    return shown if shown == name else f"{shown}…"


def _without_content(problem: str) -> str:
    def shown(match: re.Match[str]) -> str:
        return match[0] if _TOKENS.fullmatch(match[0]) else "…"

    return _QUOTED.sub(shown, problem)
