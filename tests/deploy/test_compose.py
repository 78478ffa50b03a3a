"""compose.yaml against the schema of the Compose specification, the settings, the commands and the other files."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from compose_spec import PyCompose

from tests.deploy import compose
from tests.deploy.dockerfile import stages
from tests.paths import CHECKOUT
from tests.servers import kafka, weaviate
from vectorize_pipelines.core.installation import default_file
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.settings.loading import LEGACY_NAMES, PREFIX
from vectorize_pipelines.state.database import dagster_storage

#: What may hold a secret, by the name of a variable.
_SECRET = re.compile(r"PASSWORD|SECRET|AUTH$|KEYS?$|_URL$|TOKENS?$")


def _environment(service: dict[str, Any]) -> dict[str, str]:
    """Return the settings among the variables of a service, those of its image included."""
    variables = stages()["runtime"].variables() | service["environment"]
    return {name: value for name, value in variables.items() if name.startswith(PREFIX)}


def test_it_is_what_the_specification_says() -> None:
    found = PyCompose.from_json(json.dumps(compose.content(compose.filled_in())))
    assert set(found.to_dict()["services"]) == set(compose.services())


def test_a_mistake_in_it_would_be_seen() -> None:
    content = compose.content(compose.filled_in())
    content["services"]["web"]["depends_on"]["postgres"]["condition"] = "service_is_healthy"
    with pytest.raises(ValueError, match="unknown variant `service_is_healthy`"):
        PyCompose.from_json(json.dumps(content))


def test_what_has_to_be_given_stands_in_the_example() -> None:
    assert compose.references().keys() <= compose.example().keys() - {"COMPOSE_PROFILES"}
    needed = {name for name, kind in compose.references().items() if kind == "?"}
    assert {name for name, value in compose.example().items() if not value} - {"PUBLIC_HOSTS"} == needed
    for name in needed:
        with pytest.raises(KeyError, match=name):
            compose.content({**compose.filled_in(), name: ""})


def test_no_secret_stands_in_it() -> None:
    literal = [
        f"{name}: {variable}"
        for name, service in compose.unfilled()["services"].items()
        for variable, value in service.get("environment", {}).items()
        if _SECRET.search(variable) and "${" not in value and urlsplit(value).password is not None
    ]
    secrets = {name: value for name, value in compose.filled_in().items() if value.startswith("secret-")}
    given = [
        (name, variable)
        for name, service in compose.services().items()
        for variable, value in service.get("environment", {}).items()
        if any(secret in value for secret in secrets.values())
    ]
    assert literal == []
    assert {variable for name, variable in given if name in compose.own_services()} == {
        "DAGSTER_DATABASE_URL",
        "VECTORIZE_REDIS__URL",
        "VECTORIZE_STORE__API_KEY",
    }
    commands = json.dumps([service.get("command") for service in compose.services().values()])
    assert not any(secret in commands for secret in secrets.values())


@pytest.mark.parametrize("name", compose.own_services())
def test_its_settings_exist(name: str, tmp_path: Path) -> None:
    environment = _environment(compose.services()[name])
    settings = load_settings(environment, tmp_path)  # refuses what is no setting, and values that do not fit
    assert not set(environment) & set(LEGACY_NAMES)
    servers = compose.services()
    assert settings.kafka.bootstrap_servers is not None
    addresses = [settings.kafka.bootstrap_servers, urlsplit(settings.store.url or "").netloc]
    addresses.append(urlsplit(settings.redis.url.get_secret_value() if settings.redis.url else "").netloc)
    assert {re.sub(r".*@|:\d+$", "", each) for each in addresses} <= servers.keys()
    assert settings.kafka.bootstrap_servers in servers["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]


@pytest.mark.parametrize(
    "command", sorted({tuple(service["command"]) for service in compose.own_services().values()}), ids=" ".join
)
@pytest.mark.slow
def test_its_commands_exist(command: tuple[str, ...]) -> None:
    words = [each for each in command if not each.startswith("--")]
    program, *arguments = words
    place = Path(sys.executable).with_name(program)
    asked = subprocess.run([place, *arguments, "--help"], capture_output=True, text=True, check=True)
    for option in (each.split("=")[0] for each in command if each.startswith("--")):
        assert re.search(rf"{option}\b", asked.stdout), f"{option} is no option of {' '.join(words)}"


@pytest.mark.parametrize("profile", compose.PROFILES)
def test_everything_waits_for_what_it_needs(profile: str) -> None:
    started = compose.services(profile)
    assert ("worker-gpu" in started, "worker" in started) == (profile == "gpu", profile == "cpu")
    for name, service in started.items():
        needed = service.get("depends_on", {})
        assert needed or name in ("kafka", "postgres", "redis", "weaviate")
        for other, how in needed.items():
            if how.get("required", True):
                assert other in started
            if other in started and how["condition"] == "service_healthy":
                assert "test" in started[other].get("healthcheck", {})
            elif other in started:
                assert (how["condition"], started[other]["restart"]) == ("service_completed_successfully", "no")
    assert {name for name, service in started.items() if service["restart"] != "unless-stopped"} == {"topics"}


def test_the_gateway_alone_is_reached_from_outside() -> None:
    published = {name: service["ports"] for name, service in compose.services().items() if "ports" in service}
    assert published == {"gateway": ["127.0.0.1:8000:8000"]}
    assert load_settings(_environment(compose.services()["gateway"])).gateway.port == 8000
    assert compose.content(compose.filled_in())["networks"]["inside"] == {"internal": True}
    outside = {name for name, service in compose.services().items() if "outside" in service["networks"]}
    assert outside == {"gateway", "code", "worker", "worker-gpu"}


def test_the_services_find_each_other() -> None:
    found = compose.services()
    (location,) = yaml.safe_load((compose.FOLDER / "workspace.yaml").read_text())["load_from"]
    server = location["grpc_server"]
    code = found[server["host"]]
    assert {f"--port={server['port']}", f"--location-name={server['location_name']}"} <= set(code["command"])
    assert f"--port={server['port']}" in code["healthcheck"]["test"]
    web = urlsplit(load_settings(_environment(found["gateway"])).gateway.dagster_url or "")
    assert web.hostname in found
    assert {f"--port={web.port}", f"--allow-host={web.netloc}"} <= set(found["web"]["command"])
    assert f"localhost:{web.port}/dagster/" in found["web"]["healthcheck"]["test"][-1]


def test_what_is_mounted_is_there() -> None:
    content = compose.content(compose.filled_in())
    mounts = {
        name: [each.split(":") for each in service["volumes"]]
        for name, service in content["services"].items()
        if "volumes" in service
    }
    named = {mount[0] for each in mounts.values() for mount in each if not mount[0].startswith(".")}
    assert named == set(content["volumes"])
    files = [mount for each in mounts.values() for mount in each if mount[0].startswith(".")]
    assert all((compose.FOLDER / source).is_file() and mode == "ro" for source, _, mode in files)
    for name in compose.own_services():
        assert set(stages()["runtime"].listed("VOLUME")) <= {mount[1] for mount in mounts[name]}
        assert content["services"][name]["read_only"] is True
    folder = stages()["runtime"].all("WORKDIR")[-1]
    assert [f"{folder}/workspace.yaml"] == [mount[1] for mount in mounts["web"] if "workspace" in mount[0]]
    build = content["services"]["web"]["build"]
    assert (compose.FOLDER / build["context"]).resolve() == CHECKOUT
    assert (CHECKOUT / build["dockerfile"]).is_file()
    assert build["target"] in stages()


def test_the_instance_is_the_packages_own_with_postgresql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = (CHECKOUT / "deploy" / "dagster.yaml").read_text()
    own = yaml.safe_load(given)
    del own["storage"]
    assert own == yaml.safe_load(default_file("dagster.yaml").read_text())
    (tmp_path / "dagster.yaml").write_text(given)
    monkeypatch.setenv("DAGSTER_DATABASE_URL", compose.services()["web"]["environment"]["DAGSTER_DATABASE_URL"])
    url = dagster_storage(tmp_path)
    assert url is not None
    assert not isinstance(url, Path)
    database = compose.services()["postgres"]["environment"]
    assert (url.host, url.username, url.password, url.database) == (
        "postgres",
        *(database[f"POSTGRES_{name}"] for name in ("USER", "PASSWORD", "DB")),
    )


def test_the_servers_are_of_the_versions_that_are_tested() -> None:
    found = compose.services()
    assert found["kafka"]["image"] == f"apache/kafka:{kafka.VERSION}"
    assert found["weaviate"]["image"] == f"semitechnologies/weaviate:{weaviate.VERSION}"


def test_kafka_remembers_offsets_as_long_as_requests() -> None:
    topics = yaml.safe_load(default_file("kafka.yaml").read_text())["topics"]
    kept = max(topics[name]["config"]["retention.ms"] for name in ("text", "image", "document", "dead_letter"))
    minutes = int(compose.services()["kafka"]["environment"]["KAFKA_OFFSETS_RETENTION_MINUTES"])
    assert minutes * 60_000 >= kept
