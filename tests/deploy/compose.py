"""Reads deploy/compose/compose.yaml as an engine does: variables filled in, one profile chosen."""

import re
from collections.abc import Mapping
from typing import Any

import yaml
from dotenv import dotenv_values

from tests.paths import CHECKOUT

FOLDER = CHECKOUT / "deploy" / "compose"
FILE = FOLDER / "compose.yaml"
PROFILES = ("cpu", "gpu")
#: $$, or ${NAME}, ${NAME:-default}, ${NAME:?message}.
_REFERENCE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\})")


def example() -> dict[str, str]:
    """Return the variables of env.example, as it is."""
    return {name: value or "" for name, value in dotenv_values(FOLDER / "env.example").items()}


def filled_in() -> dict[str, str]:
    """Return the same as an operator has it, with a secret of its own for each that is asked for."""
    return {name: value or (f"secret-{name.lower()}" if _is_secret(name) else "") for name, value in example().items()}


def references() -> dict[str, str | None]:
    """Return each variable that the file refers to, and how: "?" needed, "-" with a default."""
    return {found["name"]: found["kind"] for found in _REFERENCE.finditer(FILE.read_text()) if found["name"]}


def unfilled() -> dict[str, Any]:
    """Return the file's content with references as they stand there."""
    content: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return content


def content(variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the file's content, references filled in and anchors resolved. Raises `KeyError` for one that lacks."""
    found: dict[str, Any] = _filled(unfilled(), variables)
    return found


def services(profile: str | None = None) -> dict[str, dict[str, Any]]:
    """Return the services; with a profile, those that it starts."""
    found: dict[str, dict[str, Any]] = content(filled_in())["services"]
    return {name: each for name, each in found.items() if profile is None or profile in each.get("profiles", [profile])}


def own_services() -> dict[str, dict[str, Any]]:
    """Return the services that run this project's image."""
    return {name: each for name, each in services().items() if "build" in each}


def _filled(part: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(part, str):
        return _REFERENCE.sub(lambda each: _value(each, variables), part)
    if isinstance(part, list):
        return [_filled(each, variables) for each in part]
    return {name: _filled(each, variables) for name, each in part.items()} if isinstance(part, dict) else part


def _value(reference: re.Match[str], variables: Mapping[str, str]) -> str:
    name, kind, rest = reference["name"], reference["kind"], reference["rest"]
    if name is None:
        return "$"
    value = variables.get(name, "")
    if not value and kind == "?":
        raise KeyError(name)
    return value or (rest if kind == "-" else "")


def _is_secret(name: str) -> bool:
    return re.search(r"PASSWORD|SECRET|KEY", name) is not None
