"""Prints `docs/settings.md` from the settings themselves: `python docs/settings_reference.py > docs/settings.md`."""

from typing import Any

from pydantic import BaseModel, SecretStr

from vectorize_pipelines.settings import (
    LEGACY_NAMES,
    LEGACY_WITHOUT_EFFECT,
    PROJECT_ROOT,
    Settings,
    setting_paths,
    variable_name,
)

#: Defaults that depend on the machine, or on where the package lies.
COMPUTED = {
    ("home",): "`.vectorize`",
    ("kafka", "config_file"): "`kafka.yaml` of the package",
    ("providers", "keys_file"): "`config/api_keys.yaml`",
    ("node_name",): "the host's name",
    ("documents", "parser_processes"): "half of the processors",
}

HEAD = """# Settings

Strongest first: environment variables, `.env`, `vectorize.yaml`, defaults. The files lie in the working directory. In
YAML the same names form a tree: `store: {kind: lancedb}`. Lists are `a,b` in a variable and lists in YAML. A name that
does not exist and a value that does not fit are refused, with the name and where it came from. Relative defaults lie in
the project's checkout, or, where the package is installed, in the working directory; `corpus.path` then has none.

| variable | default | |
|---|---|---|
"""

ALIASES = """
## Names of the earlier master and worker services

Read as aliases; where both are given, the name above wins.

| variable | sets |
|---|---|
"""


def render() -> str:
    """The whole page."""
    lines = [HEAD]
    for path in setting_paths():
        field = _field(path)
        lines.append(f"| `{variable_name(path)}` | {_default(path)} | {field.description} |\n")
    lines.append(ALIASES)
    lines += [f"| `{name}` | `{variable_name(path)}` |\n" for name, path in LEGACY_NAMES.items()]
    lines += [f"| `{name}` | nothing: {instead} |\n" for name, instead in LEGACY_WITHOUT_EFFECT.items()]
    return "".join(lines)


def _field(path: tuple[str, ...]) -> Any:
    model: type[BaseModel] = Settings
    for part in path[:-1]:
        model = model.model_fields[part].annotation  # type: ignore[assignment]
    return model.model_fields[path[-1]]


def _default(path: tuple[str, ...]) -> str:
    if path in COMPUTED:
        return COMPUTED[path]
    value = _field(path).default
    if value is None or value in ((), {}) or isinstance(value, SecretStr):
        return ""
    text = ",".join(value) if isinstance(value, tuple) else str(value)
    return f"`{text.removeprefix(f'{PROJECT_ROOT}/')}`"


if __name__ == "__main__":
    print(render(), end="")
