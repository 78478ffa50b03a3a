"""The base of all sections of the settings."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from vectorize_pipelines.core.installation import project_folder

#: The checkout; the working directory that the process began in where the package is installed.
PROJECT_ROOT = project_folder()

COLLECTION_NAME = r"^[a-z][a-z0-9_-]{0,62}$"
COLLECTION_CHARACTERS = 63
#: The same in words, for messages that begin with the name.
COLLECTION_RULE = f"must match {COLLECTION_NAME}: lower-case letters, digits, _ and -, a letter first, 63 at most"


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _split_commas(value: Any) -> Any:
    """An environment variable holds a list as `a,b`, or as JSON; YAML has lists of its own."""
    if not isinstance(value, str):
        return value
    with suppress(ValueError):  # a pattern may begin with a bracket too
        if value.lstrip().startswith("["):
            return json.loads(value)
    return tuple(part.strip() for part in value.split(",") if part.strip())


def read_json(value: Any) -> Any:
    """Read a mapping that an environment variable holds as JSON; YAML has mappings of its own."""
    if isinstance(value, str):
        with suppress(ValueError):
            return json.loads(value)
    return value


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
Names = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]


class Section(BaseModel):
    """A part of the settings. Names that it does not have are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
