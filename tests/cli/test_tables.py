"""Tables: plain columns for other programs, headings within its width for a terminal."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from vectorize_pipelines.cli.tables import print_table

CODE = """
from vectorize_pipelines.cli.tables import print_table
print_table(("name", "rows"), [("notes", "12"), ("[red]a name[/red] " * 12, "7")], right=("rows",))
"""


def test_a_pipe_gets_columns_without_headings_colours_and_breaks(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(("ok", "green"), "x" * 300, ""), (("warning", "red"), "\u5716\u5716", "[b]last[/b]")]
    print_table(("state", "long", "further"), rows)
    print_table(("number", "of"), [("7", "a"), ("1000", "b")], right=("number",))
    print_table(("none",), [])
    assert capsys.readouterr().out.splitlines() == [
        f"ok       {'x' * 300}",
        f"warning  \u5716\u5716{' ' * 36}  [b]last[/b]",  # a long cell of another row widens no other
        "   7  a",
        "1000  b",
    ]


def test_a_terminal_gets_headings_and_no_line_beyond_its_width() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    environment.pop("COLUMNS", None)
    subprocess.run([sys.executable, "-c", CODE], stdout=theirs, env=environment, check=True, timeout=60)
    os.close(theirs)
    printed = b""
    while b"7" not in printed:
        printed += os.read(ours, 65536)
    os.close(ours)
    lines = printed.decode().replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert lines[0].split() == ["name", "rows"]
    assert max(map(len, lines)) <= 60
    assert sum(line.count("[red]") for line in lines) == 12
