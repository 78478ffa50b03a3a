"""The units against systemd's own checks, the settings, and what confined processes need."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from dotenv import dotenv_values

from tests.components import need
from tests.paths import CHECKOUT
from tests.servers.packages import PROGRAMS, ensure
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.settings.loading import LEGACY_NAMES, PREFIX

FOLDER = CHECKOUT / "deploy" / "systemd"
UNITS = [path.name for path in sorted(FOLDER.glob("*.service"))]
#: Where the documentation says that the project is installed.
_PROGRAM = "/opt/vectorize/bin/vectorize"


@pytest.fixture(scope="module")
def systemd() -> None:
    """What looks at units: `systemd-analyze`."""
    need(lambda: ensure("systemd-analyze", PROGRAMS["systemd-analyze"]))


def _analyze(*arguments: str | Path) -> tuple[int, str]:
    done = subprocess.run(["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def _installed(unit: str, folder: Path, *drop_ins: str) -> Path:
    """Return a copy of a unit, whose command exists here, with drop-ins beside it."""
    copy = folder / unit.replace("@", "@1")
    text = (FOLDER / unit).read_text()
    assert f"ExecStart={_PROGRAM} " in text
    copy.write_text(text.replace(_PROGRAM, shutil.which("true") or ""))
    for each in drop_ins:
        place = folder / f"{copy.name}.d"
        place.mkdir()
        shutil.copy(FOLDER / each, place)
    return copy


@pytest.mark.usefixtures("systemd")
@pytest.mark.parametrize("drop_ins", [(), ("gpu.conf",)], ids=["alone", "gpu"])
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_nothing_wrong(unit: str, drop_ins: tuple[str, ...], tmp_path: Path) -> None:
    assert _analyze("verify", "--man=no", _installed(unit, tmp_path, *drop_ins)) == (0, "")


@pytest.mark.usefixtures("systemd")
def test_systemd_would_see_a_mistake(tmp_path: Path) -> None:
    unit = _installed(UNITS[0], tmp_path)
    unit.write_text(unit.read_text().replace("ProtectSystem=strict", "ProtectSytem=strict"))
    _, said = _analyze("verify", "--man=no", unit)  # whose exit code is 0
    assert "ProtectSytem" in said


@pytest.mark.usefixtures("systemd")
@pytest.mark.parametrize("unit", UNITS)
def test_little_is_exposed(unit: str, tmp_path: Path) -> None:
    code, said = _analyze("security", "--offline=true", "--threshold=20", _installed(unit, tmp_path))
    assert code == 0, said


@pytest.mark.parametrize("unit", UNITS)
def test_confined_processes_may_confine_themselves(unit: str) -> None:
    lines = (FOLDER / unit).read_text().splitlines()
    (allowed,) = (line.partition("=")[2].split() for line in lines if line.startswith("SystemCallFilter="))
    assert {"seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"} <= set(allowed)
    # Both keep them from the figures of the machine, or the engines from compiling.
    assert not [line for line in lines if re.match("ProcSubset=|MemoryDenyWriteExecute=", line)]


@pytest.mark.usefixtures("systemd")
def test_the_account_is_one_that_systemd_makes(tmp_path: Path) -> None:
    command = ["systemd-sysusers", "--dry-run", f"--root={tmp_path}", str(FOLDER / "vectorize.sysusers")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Creating user 'vectorize'" in done.stdout + done.stderr


def test_workers_are_left_as_little_as_the_server() -> None:
    server, worker = ((FOLDER / unit).read_text() for unit in ("vectorize.service", "vectorize-worker@.service"))
    begin = "# Nothing is written but"
    assert server[server.index(begin) :] == worker[worker.index(begin) :]


def test_the_settings_of_the_example_exist(tmp_path: Path) -> None:
    text = (FOLDER / "env.example").read_text()
    file = tmp_path / "example"
    file.write_text(re.sub(r"^#(\w+=)", r"\1", text, flags=re.MULTILINE))  # what is commented out, too
    variables = {name: value or "" for name, value in dotenv_values(file).items()}
    settings = {name: value for name, value in variables.items() if name.startswith(PREFIX)}
    assert len(settings) > len(re.findall(r"^VECTORIZE_", text, re.MULTILINE)) > 0
    assert not set(settings) & set(LEGACY_NAMES)
    load_settings(settings, tmp_path)  # refuses what is no setting
    assert set(variables) - set(settings) == set(
        re.findall(r"env: (\w+)", (CHECKOUT / "deploy" / "dagster.yaml").read_text())
    )


@pytest.mark.parametrize("unit", UNITS)
def test_state_lies_where_the_unit_may_write(unit: str) -> None:
    text = (FOLDER / unit).read_text()
    folders = {"/var/lib/vectorize", "/var/cache/vectorize"}
    assert {"StateDirectory=vectorize", "CacheDirectory=vectorize"} <= set(text.splitlines())
    for name in ("VECTORIZE_HOME", "HF_HOME", "HOME"):
        (place,) = re.findall(rf"\b{name}=(\S+)", text)
        assert any(Path(place).is_relative_to(folder) for folder in folders)
