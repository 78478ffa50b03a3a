"""The Dockerfile against hadolint, the settings and the package that it installs."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

from tests.deploy.dockerfile import DOCKERFILE, copied_from_context, stages
from tests.paths import CHECKOUT
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.settings.loading import LEGACY_NAMES, PREFIX


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--failure-threshold", "style", DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_its_settings_exist_and_lie_in_its_volumes(tmp_path: Path) -> None:
    runtime = stages()["runtime"]
    variables = {name: value for name, value in runtime.variables().items() if name.startswith(PREFIX)}
    settings = load_settings(variables, tmp_path)  # refuses what is no setting
    assert not set(variables) & set(LEGACY_NAMES)
    volumes = [Path(each) for each in runtime.listed("VOLUME")]
    assert settings.home in volumes
    assert runtime.variables()["DAGSTER_HOME"] == str(settings.home / "dagster")
    models = (settings.encoder.cache_directory, Path(runtime.variables()["HF_HOME"]))
    assert all(each is not None and each.parent in volumes for each in models)


def test_it_serves_at_the_ports_of_the_settings_as_a_user_without_rights(tmp_path: Path) -> None:
    runtime, gateway = stages()["runtime"], load_settings({}, tmp_path).gateway
    assert runtime.all("EXPOSE")[-1].split() == [str(gateway.port), str(gateway.metrics_port)]
    (asked,) = re.findall(r"http://[^']*", runtime.all("HEALTHCHECK")[-1])
    assert (urlsplit(asked).port, urlsplit(asked).path) == (gateway.port, "/livez")
    user, _, group = runtime.all("USER")[-1].partition(":")
    assert int(user) == int(group) > 999
    assert runtime.listed("CMD") == ["vectorize", "serve", "--with-daemon"]


def test_both_images_end_as_the_same_user_and_differ_by_their_dependencies_only() -> None:
    found = stages()
    for name in ("cpu", "cuda"):
        assert found[name].begins_with == "runtime"
        assert found[name].all("COPY") == [
            f"--from={name}-dependencies /opt/vectorize /opt/vectorize",
            "--from=project /project /opt/vectorize",
        ]
        assert not found[name].all("USER")


def test_the_image_for_processors_has_every_extra_but_those_that_bring_pytorch() -> None:
    extras = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    heavy = {name for name, packages in extras.items() if any(re.match(r"torch\b", each) for each in packages)}
    cpu, cuda = ("\n".join(stages()[f"{name}-dependencies"].all("RUN")) for name in ("cpu", "cuda"))
    assert set(re.findall(r"--no-extra (\S+)", cpu)) == {"all", *heavy}
    assert "--all-extras" in cpu
    assert "--all-extras" in cuda
    assert "--no-extra" not in cuda


def test_only_what_is_copied_is_sent_to_the_engine() -> None:
    lines = (CHECKOUT / ".dockerignore").read_text().splitlines()
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert sent == copied_from_context()
    assert lines[1] == "*"
    assert all((CHECKOUT / each).exists() for each in sent)
