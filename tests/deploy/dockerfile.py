"""Reads deploy/docker/Dockerfile as far as tests ask."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.paths import CHECKOUT

DOCKERFILE = CHECKOUT / "deploy" / "docker" / "Dockerfile"


@dataclass
class Stage:
    """A stage: what it begins with, and its instructions, such as ("USER", "10001:10001")."""

    begins_with: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        """Return the arguments of each instruction of a kind."""
        return [argument for name, argument in self.instructions if name == instruction]

    def variables(self) -> dict[str, str]:
        """Return what its ENV instructions set."""
        return dict(each.split("=", 1) for line in self.all("ENV") for each in shlex.split(line))

    def listed(self, instruction: str) -> list[str]:
        """Return the last instruction of a kind that has a list in JSON, options in front of it left out."""
        found: list[str] = json.loads(self.all(instruction)[-1][self.all(instruction)[-1].index("[") :])
        return found


def stages() -> dict[str, Stage]:
    """Return the stages by name."""
    found: dict[str, Stage] = {}
    for name, argument in _instructions():
        if name == "FROM":
            source, _, stage = argument.partition(" AS ")
            found[stage] = Stage(source)
        else:
            found[next(reversed(found))].instructions.append((name, argument))
    return found


def copied_from_context() -> set[str]:
    """Return what the stages copy from the checkout."""
    lines = (line for stage in stages().values() for line in stage.all("COPY") if not line.startswith("--from="))
    return {source for line in lines for source in line.split()[:-1]}


def _instructions() -> Iterator[tuple[str, str]]:
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    for line in filter(None, joined.splitlines()):
        name, _, argument = line.partition(" ")
        yield name, argument
