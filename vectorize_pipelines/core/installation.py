"""Where this package lies: in a checkout of the project, or installed somewhere, and the files that it brings.

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
    """The folder of the package."""
    return Path(str(files(_PACKAGE)))


@cache
def checkout() -> Path | None:
    """The checkout that this package is run from; None where it is installed.

    Told by the `pyproject.toml` of this project beside the package, which no wheel brings.
    """
    above = package_folder().resolve().parent
    try:
        project = tomllib.loads((above / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError):
        return None
    return above if project.get("name") == _PROJECT else None


def project_folder() -> Path:
    """The checkout, or the working directory where there is none."""
    return checkout() or Path.cwd()


def default_file(name: str) -> Path:
    """A configuration that the package brings, such as `dagster.yaml`."""
    return package_folder() / "defaults" / name
