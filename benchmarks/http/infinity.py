"""Infinity, a server of embeddings from PyPI, with the weights of the default model. Called by `http.embeddings`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import ProcessFailedError, process, table
from benchmarks.http.serving import load, serving
from benchmarks.peers.environments import interpreter
from tests.servers.ports import free_ports
from vectorize_pipelines.encoders.models.locate import locate_model
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL

#: Its engine `optimum` is ONNX Runtime.
ENGINES = (("torch", "float32"), ("torch", "bfloat16"), ("optimum", "float32"))
BATCHES = (8, 32, 64)
_PATH = "/v1/embeddings"
_OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True)
class Setting:
    """One way to start it. `model` is the folder of the weights, for ONNX Runtime that of their graph."""

    engine: str
    precision: str
    batch: int
    model: Path

    def __str__(self) -> str:
        return f"{self.engine}, {self.precision}, batches of {self.batch}"


def best_setting(passages: Sequence[bytes], clients: int, place: Path) -> Setting | None:
    """Return the engine, precision and batch size with which it is fastest here; None where none of them runs.

    Prints a table of all. `place` is where the weights are written as a graph.
    """
    rows: list[list[str]] = []
    found: dict[Setting, float] = {}
    for engine, precision in ENGINES:
        for batch in BATCHES:
            try:
                setting = Setting(engine, precision, batch, _model(engine, place))
                found[setting] = rate(setting, passages, clients)
            except ProcessFailedError as error:
                rows.append([f"Infinity {engine} {precision}", str(batch), "not measured"])
                print(f"Infinity {engine} {precision}: {error}", flush=True)
                break
            rows.append([f"Infinity {engine} {precision}", str(batch), f"{found[setting]:.0f}"])
    print(table(["server", "batch", "texts/s"], rows), flush=True)
    return max(found, key=lambda setting: found[setting], default=None)


def rate(setting: Setting, passages: Sequence[bytes], clients: int) -> float:
    """Texts a second for these clients. Raises `ProcessFailedError` where it cannot be installed or started."""
    (port,) = free_ports(1)
    command: list[str | Path] = [_program("infinity_emb"), "v2", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model-id", setting.model, "--served-model-name", DEFAULT_TEXT_MODEL, "--url-prefix", "/v1"]
    command += ["--engine", setting.engine, "--dtype", setting.precision, "--device", "cpu"]
    command += ["--batch-size", str(setting.batch)]
    with serving(command, port, "/health", **_OFFLINE) as server:
        load(server.url, _PATH, passages[:clients], clients)
        return len(passages) / load(server.url, _PATH, passages, clients).seconds


def _model(engine: str, place: Path) -> Path:
    weights = locate_model(DEFAULT_TEXT_MODEL).directory
    if engine != "optimum":
        return weights
    graph = place / "onnx"
    if not (graph / "model.onnx").exists():
        options: list[str | Path] = ["--task", "feature-extraction", "--model", weights]
        process(_program("optimum-cli"), "export", "onnx", *options, graph, **_OFFLINE)
    return graph


def _program(name: str) -> Path:
    return interpreter("infinity").with_name(name)
