"""A real Apache Kafka (KRaft, one node), for tests and for `make kafka`: from its published Maven artifacts.

`python -m tests.servers.kafka` fetches it. Nothing here knows the project's own code, but for `--serve`.
"""

import argparse
import base64
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import filelock

from tests.servers.packages import UnavailableError
from tests.servers.ports import free_ports
from tests.servers.process import ServerProcess

VERSION = "4.1.1"
_ARTIFACTS = (
    ("org.apache.kafka", "kafka_2.13", VERSION),
    ("org.apache.logging.log4j", "log4j-slf4j-impl", "2.25.1"),
    ("org.apache.logging.log4j", "log4j-core", "2.25.1"),
    ("org.apache.logging.log4j", "log4j-api", "2.25.1"),
)
_FETCH_SECONDS = 900.0
_LOGGING = """\
status=error
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d %p %c: %m%n
rootLogger.level=warn
rootLogger.appenderRef.out.ref=out
"""


def jars() -> Path:
    """The folder of the server's jars, fetched (seconds) where it is not there. Any number of processes may call it.

    Raises `UnavailableError` where there is no Java or Maven, or where Maven cannot fetch them.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "vectorize-pipelines" / "servers" / f"kafka-{VERSION}"
    for program, package in (("java", "openjdk-17-jre-headless"), ("mvn", "maven")):
        if shutil.which(program) is None and not (program == "mvn" and (folder / "jars").exists()):
            raise UnavailableError(
                f"there is no `{program}` to run Kafka with (Debian: apt-get install {package}), "
                "and VECTORIZE_TEST_KAFKA names no broker"
            )
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / "fetch.lock", timeout=_FETCH_SECONDS):
        if not (folder / "jars").exists():
            _fetch(folder)
    return folder / "jars"


def _fetch(folder: Path) -> None:
    dependencies = "".join(
        f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>"
        "</dependency>"
        for group, artifact, version in _ARTIFACTS
    )
    with tempfile.TemporaryDirectory(dir=folder) as place:
        (Path(place) / "pom.xml").write_text(
            '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
            "<groupId>local</groupId><artifactId>kafka</artifactId><version>1</version>"
            f"<dependencies>{dependencies}</dependencies></project>"
        )
        command = ["mvn", "-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime"]
        done = subprocess.run(
            [*command, "-DoutputDirectory=jars"], cwd=place, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise UnavailableError(f"Maven cannot fetch Kafka {VERSION}: {(done.stdout + done.stderr).strip()[-1000:]}")
        (Path(place) / "jars").rename(folder / "jars")


@dataclass
class Server(ServerProcess):
    """A broker with its data in `folder`. Starting it again after `kill` or `stop` finds that data, at the same ports.

    listeners  name of a listener -> its security protocol, beside the plain one (`PLAINTEXT`) that is always there
    properties laid over the server's configuration, for instance `listener.name.….sasl.enabled.mechanisms`
    users      SCRAM-SHA-256 and SCRAM-SHA-512 users, with their passwords, known from the first start on
    port       of the plain listener; None: a free one
    host       the address that it listens at, and is reached by
    compiling  how Java compiles: by default with the first of its compilers alone, since the second one takes more time
               than it saves a broker that lives for minutes
    """

    name = "Kafka"
    folder: Path
    listeners: dict[str, str] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)
    users: dict[str, str] = field(default_factory=dict)
    port: int | None = None
    host: str = "localhost"
    heap: str = "512m"
    compiling: Sequence[str] = ("-XX:TieredStopAtLevel=1",)

    def __post_init__(self) -> None:
        names = ("PLAINTEXT", "CONTROLLER", *self.listeners)
        self._ports = dict(zip(names, free_ports(len(names)), strict=True))
        if self.port is not None:
            self._ports["PLAINTEXT"] = self.port

    @property
    def bootstrap_servers(self) -> str:
        """The address of the plain listener."""
        return self.address("PLAINTEXT")

    def address(self, listener: str) -> str:
        """The address of a listener."""
        return f"{self.host}:{self._ports[listener]}"

    def restart(self) -> None:
        """Stops and starts it; data and addresses stay."""
        self.stop()
        self.start()

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Has it answer nothing until the end of the block; its connections stay."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def wait(self) -> int:
        """Waits until the broker ends by itself, and returns its exit status."""
        return self._process.wait() if self._process is not None else 0

    def _command(self) -> list[str]:
        self._format()
        return self._java("kafka.Kafka", str(self.folder / "server.properties"))

    def _format(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "log4j2.properties").write_text(_LOGGING)
        file = self.folder / "server.properties"
        file.write_text("".join(f"{name}={value}\n" for name, value in self._configuration().items()))
        if (self.folder / "data" / "meta.properties").exists():
            return
        # One that begins with a dash would be taken for an option.
        cluster = "A" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
        scram = [
            f"--add-scram={mechanism}=[name={user},password={password}]"
            for user, password in self.users.items()
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
        ]
        command = self._java("kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(file), *scram)
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.folder)
        if done.returncode:
            raise RuntimeError(f"Kafka cannot format {self.folder}: {(done.stdout + done.stderr)[-2000:]}")

    def _configuration(self) -> dict[str, str]:
        protocols = {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT", **self.listeners}
        addresses = {name: f"{name}://{self.host}:{port}" for name, port in self._ports.items()}
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{self.host}:{self._ports['CONTROLLER']}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listeners": ",".join(addresses.values()),
            "advertised.listeners": ",".join(address for name, address in addresses.items() if name != "CONTROLLER"),
            "listener.security.protocol.map": ",".join(f"{name}:{kind}" for name, kind in protocols.items()),
            "log.dirs": str(self.folder / "data"),
            "auto.create.topics.enable": "false",
            # One node: everything once. Few partitions of Kafka's own topics, each of which costs time at a start.
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "4",
            "group.initial.rebalance.delay.ms": "0",
            "offsets.retention.minutes": str(365 * 24 * 60),
            **self.properties,
        }

    def _java(self, main: str, *arguments: str) -> list[str]:
        logging = f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}"
        memory = (f"-Xmx{self.heap}", "-Xms128m", "-XX:+UseSerialGC")
        return ["java", *memory, *self.compiling, logging, "-cp", f"{jars()}/*", main, *arguments]

    def _is_ready(self) -> bool:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        client = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})
        try:
            return bool(client.list_topics(timeout=0.5).brokers)
        except KafkaException:
            return False


def _serve(port: int) -> None:
    """`make kafka`: a broker in the foreground, with its data in the home of this installation."""
    from vectorize_pipelines.settings import load_settings

    server = Server(load_settings().home / "kafka", port=port, compiling=())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with server:
        print(f"Kafka {VERSION} on {server.bootstrap_servers}, data in {server.folder}; Ctrl-C ends it", flush=True)
        print(f"export VECTORIZE_KAFKA__BOOTSTRAP_SERVERS={server.bootstrap_servers}", flush=True)
        sys.exit(server.wait())


def main() -> None:
    """Fetches the server. Where it cannot be had, its tests are left out, which is a failure only where CI is set."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--serve", type=int, metavar="PORT", help="start a broker in the foreground at this port")
    port: int | None = parser.parse_args().serve
    try:
        jars()
        if port is not None:
            _serve(port)
    except UnavailableError as error:
        print(error if port is not None else f"tests on Kafka are left out: {error}", file=sys.stderr)
        sys.exit(port is not None or os.environ.get("CI") == "true")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
