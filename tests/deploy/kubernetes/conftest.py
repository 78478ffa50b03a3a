"""One cluster for all tests here, with the chart installed beside PostgreSQL, Weaviate, Kafka and Redis."""

import base64
import hashlib
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.components import missing
from tests.deploy.kubernetes.installation import NAMESPACE, Installation, image
from tests.encoders.tiny_models import build_encoder
from tests.servers import kafka, postgresql, redis, weaviate
from tests.servers.kubernetes import programs
from tests.servers.kubernetes.cluster import Cluster
from tests.servers.packages import UnavailableError
from vectorize_pipelines.encoders import load_encoder
from vectorize_pipelines.settings import StoreSettings

_PASSWORD = "the-password-of-the-redis"
GPU_TAINT = "nvidia.com/gpu=present:NoSchedule"


@pytest.fixture(scope="session")
def helm_program() -> None:
    """What renders the chart: `tests.servers.kubernetes.programs.helm`."""
    try:
        programs.helm()
    except UnavailableError as error:
        missing(str(error))


@pytest.fixture(scope="session")
def kubernetes_cluster(tmp_path_factory: pytest.TempPathFactory, exported_models: Path) -> Iterator[Cluster]:
    """A node for what always runs, two for runs, and one with a GPU."""
    folder = tmp_path_factory.mktemp("cluster")
    images = {name: image() for name in ("vectorize:cpu", "vectorize:next")}
    with ExitStack() as stack:
        try:
            programs.control_plane()
            started = stack.enter_context(Cluster(folder, images))
        except UnavailableError as error:
            missing(str(error))
        started.add_node("services", labels={"for": "services"})
        for name in ("one", "two"):
            started.add_node(name, labels={"for": "runs"})
        started.add_node("gpu", gpus=1, labels={"for": "models"}, taint=GPU_TAINT)
        yield started


@pytest.fixture(scope="session")
def store(weaviate_program: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[weaviate.Server]:
    with weaviate.Server(tmp_path_factory.mktemp("weaviate")) as server:
        yield server


@pytest.fixture(scope="session")
def store_settings(store: weaviate.Server) -> StoreSettings:
    """The store as this machine reaches it."""
    return StoreSettings(kind="weaviate", url=store.url, grpc_port=store.grpc_port)


@pytest.fixture(scope="session")
def broker(
    kafka_program: None, kubernetes_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[kafka.Server]:
    """A broker at an address that pods and this machine reach alike, as clients are told it by the broker."""
    with kafka.Server(tmp_path_factory.mktemp("kafka"), host=kubernetes_cluster.network.host) as server:
        yield server


@pytest.fixture(scope="session")
def memory(
    redis_program: None, kubernetes_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[redis.Server]:
    """A Redis, likewise."""
    folder = tmp_path_factory.mktemp("redis")
    with redis.Server(folder, _PASSWORD, host=kubernetes_cluster.network.host) as server:
        yield server


@pytest.fixture(scope="session")
def installation(
    kubernetes_cluster: Cluster,
    store: weaviate.Server,
    broker: kafka.Server,
    memory: redis.Server,
    postgresql_program: None,
    helm_program: None,
    exported_models: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Installation]:
    """The chart, installed; its runs are watched every second."""
    shared = tmp_path_factory.mktemp("shared")
    (shared / "documents").mkdir()
    (shared / "models").mkdir()
    model = build_encoder(shared / "model", "bert")
    # Made ready here: that takes more memory than its runs may have.
    load_encoder(str(model), "cpu", cache_directory=exported_models).close()
    token = f"vec_{secrets.token_urlsafe(32)}"
    network = kubernetes_cluster.network
    with postgresql.running() as database:
        address = database.url().replace(
            f"127.0.0.1:{database.port}", f"{network.host}:{network.forward(database.port)}"
        )
        hashed = f"tests:admin:{hashlib.sha256(token.encode()).hexdigest()}"
        secrets_of_values = {
            "database": {"url": address},
            "tokens": {"tokens": hashed},
            "redis": {"url": memory.url},
        }
        _prepare(kubernetes_cluster, shared, secrets_of_values)
        values = {
            "database": {"secret": "database"},
            "redis": {"secret": "redis"},
            "kafka": {"bootstrapServers": broker.bootstrap_servers},
            "gateway": {"tokens": {"secret": "tokens"}, "nodeSelector": {"for": "services"}},
            "store": {"url": f"http://{network.host}:{network.forward(int(store.url.rsplit(':', 1)[1]))}"},
            "settings": {
                "VECTORIZE_STORE__GRPC_PORT": network.forward(store.grpc_port),
                # A run that tests look at is not to end meanwhile.
                "VECTORIZE_KAFKA__DRAIN__IDLE_SECONDS": 30,
                "VECTORIZE_CORPUS__PATH": str(shared / "documents"),
                "VECTORIZE_CORPUS__WATCH": False,
                "VECTORIZE_MODELS__TEXT": str(model),
                "VECTORIZE_ENCODER__CACHE_DIRECTORY": str(exported_models),
            },
            "dagster": {
                "run_monitoring": {"poll_interval_seconds": 1},
                # Runs over files beside each other: in shards, and of several collections.
                "concurrency": {"pools": {"default_limit": 4}},
            },
            "models": {"existingClaim": "models"},
            "runs": {
                "default": {"nodeSelector": {"for": "runs"}},
                "pools": {"image": {"gpus": 1, "nodeSelector": {"for": "models"}}},
            },
            **{name: {"nodeSelector": {"for": "services"}} for name in ("web", "daemon", "code")},
            "extraVolumes": [
                {"name": "shared", "hostPath": {"path": str(shared)}},
                {"name": "exports", "hostPath": {"path": str(exported_models)}},
            ],
            "extraVolumeMounts": [
                {"name": "shared", "mountPath": str(shared)},
                {"name": "exports", "mountPath": str(exported_models)},
            ],
        }
        installed = Installation(kubernetes_cluster, values, token, shared, broker.bootstrap_servers)
        installed.install()
        yield installed


def _prepare(cluster: Cluster, shared: Path, contents: dict[str, dict[str, str]]) -> None:
    """Make what the chart refers to: a namespace, secrets, a claim on a volume for models."""
    from kubernetes import client

    core = client.CoreV1Api(cluster.client())
    core.create_namespace({"metadata": {"name": NAMESPACE}})
    for name, data in contents.items():
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
        core.create_namespaced_secret(NAMESPACE, {"metadata": {"name": name}, "data": encoded})
    size = {"storage": "1Gi"}
    volume = {"capacity": size, "accessModes": ["ReadWriteMany"], "hostPath": {"path": str(shared / "models")}}
    core.create_persistent_volume({"metadata": {"name": "models"}, "spec": volume})
    claim = {"accessModes": ["ReadWriteMany"], "storageClassName": "", "resources": {"requests": size}}
    core.create_namespaced_persistent_volume_claim(NAMESPACE, {"metadata": {"name": "models"}, "spec": claim})
