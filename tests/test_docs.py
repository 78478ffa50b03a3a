"""What the documentation says is so."""

import re
import runpy
import subprocess
import sys

import pytest

from vectorize_pipelines.cli import COMMANDS
from vectorize_pipelines.settings import PREFIX, PROJECT_ROOT, setting_paths, variable_name

PAGES = [
    PROJECT_ROOT / "README.md",
    *sorted((PROJECT_ROOT / "docs").glob("*.md")),
    PROJECT_ROOT / "benchmarks/README.md",
]


def test_the_settings_page_is_that_of_the_settings() -> None:
    page = runpy.run_path(str(PROJECT_ROOT / "docs" / "settings_reference.py"))["render"]()
    assert (PROJECT_ROOT / "docs" / "settings.md").read_text() == page, "run python docs/settings_reference.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_and_settings_exist(page: object) -> None:
    path = PROJECT_ROOT / str(page)
    text = path.read_text()
    for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (path.parent / link).exists(), f"{path.name}: {link}"
    known = {variable_name(each) for each in setting_paths()}
    for name in re.findall(rf"{PREFIX}[A-Z]+(?:_+[A-Z]+)*__[A-Z_]+[A-Z]", text):
        assert name in known, f"{path.name}: {name}"


#: Every command in one process: most of what each would take alone is what they all import.
HELP = """
import sys
from vectorize_pipelines.cli import COMMANDS, main

for command in ("", *COMMANDS):
    sys.argv = ["vectorize", *filter(None, [command]), "--help"]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"{command}: {ended.code}")
"""


def test_help_of_every_command() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("", *COMMANDS):
        assert f"Usage: vectorize {command or '[OPTIONS]'}" in done.stdout
