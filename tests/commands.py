"""The command as tests start it, and what it left."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

COMMAND = [sys.executable, "-c", "from vectorize_pipelines.cli import main; main()"]


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Vectorize = Callable[..., Done]
