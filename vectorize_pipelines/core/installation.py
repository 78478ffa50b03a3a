"""The place of this package: in a checkout of the project, or installed somewhere, and the files that it brings.

In its checkout everything is kept in the checkout's folder, from whichever folder a command is called. An installed
package belongs to nobody's project: state then lies in the working directory.
"""

import tomllib
from functools import cache
from importlib.resources import files
from pathlib import Path

_PACKAGE = "vectorize_pipelines"
_PROJECT = "vectorize-pipelines"


@cache
def package_folder() -> Path:
    """Return the folder of the package."""
    return Path(str(files(_PACKAGE)))


@cache
def checkout() -> Path | None:
    """Return the checkout that this package is run from; None where it is installed.

    Known by the `pyproject.toml` of this project beside the package, which no wheel brings.
    """
    above = package_folder().resolve().parent
    try:
        project = tomllib.loads((above / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError):
        return None
    return above if project.get("name") == _PROJECT else None


def project_folder() -> Path:
    """Return the checkout, or the working directory where there is none."""
    return checkout() or Path.cwd()


def default_file(name: str) -> Path:
    """Return a configuration that the package brings, such as `dagster.yaml`."""
    return package_folder() / "defaults" / name
