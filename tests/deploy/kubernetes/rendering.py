"""The chart as `helm template` renders it, for values from the least to everything."""

from pathlib import Path
from typing import Any

import yaml

from tests.deploy.kubernetes.installation import CHART
from tests.servers.kubernetes.cluster import run_helm
from tests.servers.kubernetes.programs import VERSION
from vectorize_pipelines.core.worker_queues import QUEUES

LEAST: dict[str, Any] = {
    "database": {"secret": "database"},
    "gateway": {"tokens": {"secret": "tokens"}},
    "store": {"url": "http://weaviate:8080"},
}
EVERYTHING: dict[str, Any] = {
    **LEAST,
    "gateway": {
        "replicas": 2,
        "tokens": {"secret": "tokens"},
        "hosts": ["box.example:8443"],
        "ingress": {"enabled": True, "host": "vectors.example", "className": "nginx", "tlsSecret": "tls"},
    },
    "store": {"kind": "qdrant", "url": "http://qdrant:6333", "apiKey": {"secret": "store"}},
    "redis": {"secret": "redis"},
    "kafka": {"bootstrapServers": "kafka:9092"},
    "image": {"pullSecrets": ["registry"]},
    "settings": {"VECTORIZE_MODELS__TEXT": "some/model", "VECTORIZE_CORPUS__WATCH": False},
    "secretSettings": [{"name": "VECTORIZE_CALLBACKS__SECRET", "secret": "callbacks", "key": "secret"}],
    "dagster": {"concurrency": {"runs": {"max_concurrent_runs": 3}}},
    "models": {"create": True, "prefetch": ["some/model"]},
    "runs": {"pools": {"image": {"gpus": 2, "image": "vectorize:cuda", "nodeSelector": {"gpu": "yes"}}}},
    "networkPolicy": {"gatewayFrom": [{"namespaceSelector": {"matchLabels": {"ingress": "yes"}}}]},
}
CELERY: dict[str, Any] = {
    **LEAST,
    "redis": {"secret": "redis"},
    "runs": {"launcher": "celery"},
    "workers": [
        {"name": "text", "replicas": 2, "queues": ["text", "document"]},
        {"name": "gpu", "queues": ["image"], "gpus": 1, "image": "vectorize:cuda"},
    ],
}
SCALED: dict[str, Any] = {
    **CELERY,
    "redis": {
        "secret": "redis",
        "address": "redis:6379",
        "database": 2,
        "tls": True,
        "username": "keda",
        "passwordKey": "password",
    },
    "workers": [
        {"name": "all", "queues": list(QUEUES), "autoscaling": {"maxReplicas": 8}},
        {
            "name": "seen",
            "queues": ["text", "gpu-large"],
            "autoscaling": {
                "minReplicas": 0,
                "maxReplicas": 2,
                "runsPerReplica": 3,
                "prometheus": "http://prometheus:9090",
            },
        },
        {"name": "fixed", "queues": ["image"], "replicas": 2},
    ],
}


def rendered(tmp_path: Path, values: dict[str, Any]) -> list[dict[str, Any]]:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    output = run_helm(
        "template", "release", str(CHART), "--namespace", "there", "--kube-version", VERSION, "--values", str(file)
    )
    return [each for each in yaml.safe_load_all(output) if each]


def of_kind(objects: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in objects if each["kind"] == kind}
