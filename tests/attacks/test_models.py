"""Whoever makes a model, and whoever names one in a request, may be hostile: no code runs, and nobody else suffers.

The models lie on a hub of the tests' own and are loaded by processes that know only that one.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.attacks.hostile_models import (
    CONFIGURATION_AS_INDEX,
    INSTALLED,
    MALFORMED_MODALITIES,
    HostileModels,
    evil_source,
)
from tests.commands import COMMAND
from tests.encoders.tiny_models import write_json
from tests.pipeline.requests.installation import DIMENSION, Installation, install, text_request
from tests.servers import kafka
from tests.servers.hub import Hub, serving_hub
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.encoders import describe_model
from vectorize_pipelines.encoders.configured import lease_configured
from vectorize_pipelines.encoders.models.names import canonical
from vectorize_pipelines.encoders.models.open_clip import locate_clip
from vectorize_pipelines.encoders.models.vetting import check_folder, model_view
from vectorize_pipelines.errors import UnknownModelError, UntrustedModelError
from vectorize_pipelines.pipeline.requests.named_models import UnusableModelError
from vectorize_pipelines.pipeline.requests.runs import open_single
from vectorize_pipelines.pipeline.requests.single import SingleRequest
from vectorize_pipelines.pipeline.requests.targets import Target, Targets
from vectorize_pipelines.pipeline.writing import DirectWriter, written
from vectorize_pipelines.settings import PREFIX, PROJECT_ROOT, KafkaSettings, Settings
from vectorize_pipelines.stores import open_store

if TYPE_CHECKING:
    from tests.conftest import Broker

SECONDS = 300


class Scene:
    """A hub with hostile models, and processes that use it."""

    def __init__(self, root: Path, hub: Hub):
        self.root = root
        self.hub = hub
        self.marker = root / "marker"
        self.models = HostileModels(root / "models", self.marker)
        hub.repositories.update(self.models.folders)
        installed = root / "installed"
        installed.mkdir()
        (installed / f"{INSTALLED}.py").write_text(evil_source(self.marker))
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(PREFIX)},
            **hub.environment(root / "cache"),
            "PYTHONPATH": os.pathsep.join([str(PROJECT_ROOT), str(installed)]),
        }

    def run(self, *arguments: str) -> str:
        """What a Python process prints."""
        done = subprocess.run(
            [sys.executable, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
            stdin=subprocess.DEVNULL,
            cwd=self.root,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def load(self, *names: str) -> dict[str, list[str] | None]:
        """What loading each model raised, by name; None where it was used."""
        printed = self.run("-m", "tests.attacks.loading", str(self.root / "encoders"), *names)
        found: dict[str, list[str] | None] = json.loads(printed.splitlines()[-1])
        return found


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The same hub for all tests of the module."""
    with serving_hub() as hub:
        yield Scene(tmp_path_factory.mktemp("models"), hub)


def is_hostile(name: str) -> bool:
    return name.startswith("evil/") and name != "evil/tokenizer"


@dataclass(frozen=True)
class Loaded:
    """What came of loading each model, by name or folder, and what the hub was asked for meanwhile."""

    of_the_hub: dict[str, list[str] | None]
    of_folders: dict[str, list[str] | None]
    asked: list[str]


@pytest.fixture(scope="module")
def loaded(scene: Scene) -> Loaded:
    """Every model of the hub, sound ones among them, and every hostile one by its folder: all in one process."""
    scene.hub.asked.clear()
    names = sorted(name for name in scene.models.folders if name.startswith("sound/") or is_hostile(name))
    folders = [str(folder) for name, folder in scene.models.folders.items() if is_hostile(name)]
    found = scene.load(*names, *folders)
    assert not scene.marker.exists()
    return Loaded(
        {name: found[name] for name in names}, {folder: found[folder] for folder in folders}, list(scene.hub.asked)
    )


def test_no_model_of_the_hub_runs_code(loaded: Loaded) -> None:
    assert {name for name, error in loaded.of_the_hub.items() if error is None} == {"sound/text", "sound/clip"}
    for name, error in loaded.of_the_hub.items():
        assert error is None or error[0] in ("UntrustedModelError", "UnknownModelError"), (name, error)
    fetched = {path for path in loaded.asked if "/resolve/" in path}
    assert fetched
    assert not [path for path in fetched if not path.endswith((".json", ".txt", ".safetensors"))]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("evil/auto-map", "auto_map.*never run"),
        ("evil/own-module", "names the module 'evil.Evil'"),
        ("evil/folder-outside", "not the model's own"),
        ("evil/pickled", "VECTORIZE_MODELS__ALLOW_PICKLED_WEIGHTS.*prefetch"),
        ("evil/clip-pickled-weights", "VECTORIZE_MODELS__ALLOW_PICKLED_WEIGHTS.*prefetch"),
        ("evil/weights-outside", "not in its own folder"),
        ("evil/clip-trusting", "tokenizer_kwargs|trust_remote_code"),
        ("evil/kernel", "kernel"),
        ("evil/adapter", "adapter"),
        ("evil/another-configuration", "other files.*configuration_files"),
        ("evil/another-configuration-as-index", "other files.*configuration_files|auto_map|kernel"),
        ("evil/another-tokenizer", "other files.*fast_tokenizer_files"),
        ("evil/other-weights", "other files.*transformers_weights"),
        ("evil/index-called-configuration", "not in its own folder"),
        ("evil/modalities-0", "modality_config is no object"),
    ],
)
def test_the_reason_is_said(loaded: Loaded, name: str, says: str) -> None:
    error = loaded.of_the_hub[name]
    assert error is not None
    assert re.search(says, error[1]), error


def test_no_folder_runs_code(loaded: Loaded) -> None:
    assert loaded.of_folders
    for folder, error in loaded.of_folders.items():
        assert error is not None, f"{folder} was used"
        assert error[0] in ("UntrustedModelError", "UnknownModelError"), (folder, error)


def test_a_configuration_is_looked_through_whatever_its_name_is(scene: Scene, tmp_path: Path) -> None:
    """Each file by itself, as where nothing else in the folder is refused."""
    source = scene.models.folders["evil/another-configuration-as-index"] / CONFIGURATION_AS_INDEX
    for name in (source.name, "config.index.json", "model.safetensors.index.json", "pytorch_model.bin.index.json"):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copyfile(source, folder / name)
        with pytest.raises(UntrustedModelError, match=r"auto_map|kernel"):
            check_folder(folder)
        with pytest.raises(UntrustedModelError, match=r"auto_map|kernel"), model_view(folder):
            pass


@pytest.mark.parametrize("modalities", MALFORMED_MODALITIES, ids=repr)
def test_a_malformed_configuration_is_refused_as_one(tmp_path: Path, modalities: Any) -> None:
    write_json(tmp_path / "sentence_bert_config.json", {"modality_config": modalities})
    with pytest.raises(UnknownModelError, match=r"sentence_bert_config\.json: modality_config is no object"):
        check_folder(tmp_path)


@pytest.mark.parametrize(
    "modules", [5, {"type": "x"}, [5], [["type", "path"]], [{}], [{"type": 1, "path": ""}]], ids=repr
)
def test_a_malformed_list_of_modules_is_refused_as_one(tmp_path: Path, modules: Any) -> None:
    write_json(tmp_path / "modules.json", modules)
    with pytest.raises(UnknownModelError, match=r"modules\.json"):
        check_folder(tmp_path)


#: Carries out attacks, the first argument; prints of each whether it has left the marker, the second one.
TRY = """
import json, pathlib, sys
attacks, marker = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2])
left = {}
for name, attack in attacks.items():
    try:
        exec(attack)
    except Exception as error:
        print(repr(error))
    left[name] = marker.exists()
    marker.unlink(missing_ok=True)
print(json.dumps(left))
"""


def test_the_attacks_are_real(scene: Scene) -> None:
    """The libraries by themselves run what these models bring, so that a marker that is not there says something."""
    attacks = {
        "installed": f"import {INSTALLED}",
        "tokenizer": "import open_clip; open_clip.get_tokenizer('hf-hub:evil/clip-trusting')",
        "pickle": f"import torch; torch.load({str(scene.models.folders['evil/pickled'] / 'pytorch_model.bin')!r}, "
        "weights_only=False)",
        "auto_map": "import transformers; transformers.AutoConfig.from_pretrained('evil/auto-map', "
        "trust_remote_code=True)",
        "configuration": "import transformers; found = transformers.AutoConfig.from_pretrained("
        f"{str(scene.models.folders['evil/another-configuration-as-index'])!r}, trust_remote_code=True)",
    }
    tried = json.loads(scene.run("-c", TRY, json.dumps(attacks), str(scene.marker)).splitlines()[-1])
    assert tried == dict.fromkeys(attacks, True)
    assert not scene.marker.exists()


# Requests that name models


@pytest.fixture
def make_installation(tmp_path: Path, kafka_settings: KafkaSettings, scene: Scene) -> Callable[..., Installation]:
    """Makes the test's installation, whose encoders are real ones, with a tree of settings laid over."""
    servers = kafka_settings.bootstrap_servers
    assert servers is not None

    def make(**overrides: Any) -> Installation:
        encoder = {"cache_directory": str(scene.root / "encoders"), **overrides.pop("encoder", {})}
        made = install(tmp_path / "home", servers, kafka_settings.topic_prefix, encoder=encoder, **overrides)
        made.lease = partial(lease_configured, made.settings)  # type: ignore[assignment,method-assign]
        return made

    return make


def check_refused(installation: Installation, refused: Collection[str]) -> None:
    """Nothing is outstanding, and the dead letters are those of the requests that cannot be embedded.

    A broker shows what a transaction has written some time after it was committed.
    """
    deadline = time.monotonic() + SECONDS
    while True:
        found = {
            letter.key().decode(): dict(letter.headers())["vectorize.error.class"].decode()
            for letter in installation.letters()
        }
        if set(found) == set(refused) and not installation.outstanding():
            break
        assert time.monotonic() < deadline, (found, installation.outstanding())
    assert set(found.values()) == {"UnusableModelError"}


def broken_models(sound: Path, root: Path) -> Iterator[Path]:
    """Folders with models that nobody can load, each for another reason."""

    def altered(name: str) -> Path:
        return shutil.copytree(sound, root / name)

    cut_short = altered("cut-short") / "model.safetensors"
    cut_short.write_bytes(cut_short.read_bytes()[:-1000])
    yield cut_short.parent
    no_weights = altered("no-weights")
    (no_weights / "model.safetensors").write_bytes(b"\x00" * 4096)
    yield no_weights
    odd: dict[str, dict[str, Any]] = {
        "huge": {"vocab_size": 10**12},
        "other-shape": {"intermediate_size": 4096},
        "wide": {"hidden_size": 10**9},
        "odd": {"hidden_size": [1], "max_position_embeddings": {}},
        "unknown-kind": {"model_type": "no-such-architecture"},
        "no-heads": {"num_attention_heads": 0},
    }
    for name, changes in odd.items():
        folder = altered(name)
        content = json.loads((folder / "config.json").read_text())
        write_json(folder / "config.json", {**content, **changes})
        yield folder
    for name, source in {
        "no-tokenizer": "{}",
        "panicking-tokenizer": json.dumps({"model": {"type": "Unigram", "unk_id": 7, "vocab": []}}),
        "deep-tokenizer": "[" * 200_000,
    }.items():
        folder = altered(name)
        (folder / "tokenizer.json").write_text(source)
        yield folder
    deep = altered("deep-config")
    (deep / "config.json").write_text("[" * 200_000)
    yield deep


def test_good_requests_pass_beside_and_behind_bad_models(
    make_installation: Callable[..., Installation], scene: Scene, tmp_path: Path
) -> None:
    """One topic, hostile and broken models in folders that may be named, good requests between them."""
    sound = scene.models.folders["sound/text"]
    hostile = [folder for name, folder in scene.models.folders.items() if is_hostile(name) and "clip" not in name]
    bad = [*hostile, *broken_models(sound, tmp_path / "broken")]
    installation = make_installation(
        models={"text": str(sound)},
        kafka={"allowed_models": ["*"], "drain": {"attempts": 2, "retry_seconds": 0.01}},
        uris={"allowed_roots": [str(scene.root), str(tmp_path)]},
    )
    for number, folder in enumerate(bad):
        installation.send(
            text_request(f"good-{number}", f"a boat {number}"),
            text_request(f"bad-{number}", "a boat", model_name=str(folder), collection=f"of-{number}"),
            partition=number % 3,
        )
    installation.send(text_request("last", "the sea"))
    stream = installation.drain()
    assert not scene.marker.exists()
    check_refused(installation, {f"bad-{number}" for number in range(len(bad))})
    assert installation.store.count("texts") == len(bad) + 1
    assert stream.figures()["dead_letters"] == len(bad)
    done = {name for name, row in installation.ledger().items() if row.state is RequestState.COMPLETED}
    assert done == {"last", *(f"good-{number}" for number in range(len(bad)))}


def test_the_settings_own_model_fails_the_run(make_installation: Callable[..., Installation], scene: Scene) -> None:
    installation = make_installation(models={"text": str(scene.models.folders["evil/pickled"])})
    installation.send(text_request("one", "a boat"))
    with pytest.raises(UntrustedModelError, match="ALLOW_PICKLED_WEIGHTS"):
        installation.drain()
    assert installation.outstanding()


def test_by_default_only_models_that_the_operator_uses_are_named(
    make_installation: Callable[..., Installation], scene: Scene, tmp_path: Path
) -> None:
    sound = scene.models.folders["sound/text"]
    used, other = (shutil.copytree(sound, tmp_path / name) for name in ("used", "other"))
    installation = make_installation(
        models={"text": str(sound)}, uris={"allowed_roots": [str(scene.root), str(tmp_path)]}
    )
    installation.store.ensure_collection("taken", describe_model(str(used)))
    named = {
        "settings": {"model_name": str(sound)},
        "used": {"model_name": str(used), "collection": "taken"},
        "used-elsewhere": {"model_name": str(used), "collection": "mine"},
        "of-the-collection": {"collection": "taken"},
        "other": {"model_name": str(other)},
        "of-the-hub": {"model_name": "evil/auto-map"},
        "clip": {"model_name": "ViT-B-32:openai:/etc/passwd"},
    }
    installation.send(*[text_request(task_id, "a boat", **fields) for task_id, fields in named.items()])
    installation.drain()
    refused = {"other", "of-the-hub", "clip"}
    check_refused(installation, refused)
    ledger = installation.ledger()
    texts = {(ledger[name].error_message or "").replace(named[name]["model_name"], "…") for name in refused}
    assert len(texts) == 1, texts
    assert "VECTORIZE_KAFKA__ALLOWED_MODELS" in texts.pop()


def test_a_request_by_graphql_names_models_as_a_message_does(settings: Settings, scene: Scene) -> None:
    """The job `embed_request` gives its config to the same stream."""
    request = {
        "task_type": "text_vectorization",
        "data": "a boat",
        "model_name": str(scene.models.folders["sound/text"]),
    }
    single = SingleRequest.of(request, "run-1")
    store = open_store(settings.store, settings.home)
    with open_single(settings, single, store, partial(lease_configured, settings)) as stream:
        assert [batch.records.num_rows for batch in written(DirectWriter(settings, store), stream)] == [0]
    assert [(failure.error_class, "ALLOWED_MODELS" in failure.message) for failure in stream.failures] == [
        ("UnusableModelError", True)
    ]


# Names, without a broker


def aim(settings: Settings, name: str | None, collection: str | None = None) -> Target:
    """Where a run sends the first request that names this model."""
    named = {key: value for key, value in (("model_name", name), ("collection", collection)) if value is not None}
    request = SingleRequest.of(text_request("one", "a boat", **named), "run-1").request
    targets = Targets(settings, open_store(settings.store, settings.home), Modality.TEXT)
    try:
        return targets.of(request)
    finally:
        targets.close()


def changed(settings: Settings, **parts: dict[str, Any]) -> Settings:
    """The same settings, with others laid over."""
    laid_over = {name: getattr(settings, name).model_copy(update=part) for name, part in parts.items()}
    return settings.model_copy(update=laid_over)


@pytest.mark.parametrize("allowed", [(), ("*",)])
def test_no_name_of_a_user_fails_a_run_or_tells_of_one(settings: Settings, allowed: tuple[str, ...]) -> None:
    settings = changed(settings, kafka={"allowed_models": allowed})
    said = set()
    for prefix in ("ViT-B-32:openai:", "ViT-B/32:openai:", "hub:ViT-B-32:openai:", "local-dir:", ""):
        for user in ("~root/x", "~no-such-user/x", "~\0/x", "~/x", "\0"):
            with pytest.raises(UnusableModelError) as refusal:
                aim(settings, f"{prefix}{user}")
            said.add(str(refusal.value).replace(f"{prefix}{user}", "…"))
    assert len(said) == 1, said


@pytest.mark.parametrize("file", ["~no-such-user/x", "~\0/x", "/\0", "/" + "x" * 250 + "/y", "/not-here"])
def test_weights_in_a_place_that_cannot_be_are_an_unknown_model(tmp_path: Path, file: str) -> None:
    with pytest.raises(UnknownModelError):
        locate_clip(f"ViT-B-32:openai:{file}", tmp_path)


def test_what_is_loaded_is_what_was_looked_at(settings: Settings, scene: Scene, tmp_path: Path) -> None:
    sound = scene.models.folders["sound/text"]
    root, outside = tmp_path / "root", tmp_path / "outside"
    (outside / "releases" / "5").mkdir(parents=True)
    shutil.copytree(sound, outside / "releases" / "private")
    model = shutil.copytree(sound, root / "private")
    shutil.copytree(sound, root / "linking")
    (root / "cur").symlink_to(outside / "releases" / "5")
    (root / "current").symlink_to(model)
    (root / "chain").mkdir()
    (root / "chain" / "secret").symlink_to(outside)
    (root / "linking" / "1_Pooling").rename(root / "linking" / "2_Pooling")
    (root / "linking" / "1_Pooling").symlink_to(root / "chain")
    settings = changed(settings, kafka={"allowed_models": ("*",)}, uris={"allowed_roots": (root,)})
    for name in (
        f"{root}/cur/../private",
        f"local-dir:{root}/cur/../private",
        f"{root}/cur/../nothing",
        f"{root}/private/../private",
        f"ViT-B-32:openai:{root}/cur/../private/config.json",
        f"ViT-B-32:openai:{root}/cur/../private/nothing",
        f"{root}/linking",
    ):
        with pytest.raises(UnusableModelError, match="is a path"):
            aim(settings, name)
    assert aim(settings, f"{root}/current", "theirs").model == str(model)
    assert aim(settings, f"{root}/private/", "theirs").model == str(model)


@pytest.fixture
def folders(tmp_path: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which folders lie that are called as repositories of the hub are."""
    for name in ("models/foo", "foo", "all-MiniLM-L6-v2"):
        shutil.copytree(scene.models.folders["sound/text"], tmp_path / "work" / name)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


#: The operator's name of a folder, and names that are not that folder's.
NOT_THE_FOLDERS = [
    ("models/foo", "hub:models/foo"),
    ("models/foo", "hf-hub:models/foo"),
    ("models/foo", "hub:hf-hub:models/foo"),
    ("foo", "sentence-transformers/foo"),
    ("foo", "hub:foo"),
    ("foo", "hf-hub:foo"),
]


@pytest.mark.parametrize("place", ["settings", "allowed", "collection", "collections"])
@pytest.mark.parametrize(("folder", "name"), NOT_THE_FOLDERS)
def test_a_folder_and_a_repository_of_its_name_are_two_models(
    settings: Settings, folders: Path, folder: str, name: str, place: str
) -> None:
    collection = "theirs" if place == "collection" else None
    if place == "settings":
        settings = changed(settings, models={"text": folder, "dimension": None})
    elif place == "allowed":
        settings = changed(settings, kafka={"allowed_models": (folder,)})
    else:
        open_store(settings.store, settings.home).ensure_collection("theirs", describe_model(folder))
    with pytest.raises(UnusableModelError, match="not among the models"):
        aim(settings, name, collection)
    found = aim(settings, folder, collection)
    assert (found.model, found.own) == (folder, place == "settings")
    assert found.spec == describe_model(folder)


def test_what_is_loaded_is_called_as_the_operator_calls_it(settings: Settings, folders: Path) -> None:
    full = settings.models.text
    short = full.removeprefix("sentence-transformers/")
    assert (folders / short).is_dir()
    for name in (full, short, f"hub:{short}", f"hub:{full}", f"hf-hub:{full}"):
        found = aim(settings, name)
        assert (found.model, found.own) == (full, True)
    assert canonical("hf-hub:ViT-B/32") != canonical("ViT-B/32") == "ViT-B-32:openai"
    with pytest.raises(UnusableModelError, match="not among the models"):  # a repository, which anybody may own
        aim(changed(settings, kafka={"allowed_models": ("ViT-B/32",)}), "hf-hub:ViT-B/32")


# The hub, and a real command


def which_may_not_be_told_apart(folder: Path, scene: Scene) -> list[tuple[str, str]]:
    """Pairs of names of models, of which the first is there, below `folder` or elsewhere, and the second is not."""
    sound = scene.models.folders["sound/text"]
    root, outside = folder / "root", folder / "outside"
    root.mkdir()
    shutil.copytree(sound, outside / "is-here")
    shutil.copytree(scene.models.folders["sound/clip"], folder / "org" / "is-here")
    shutil.copytree(sound, folder / "is-here")
    (root / "is-here").symlink_to(outside / "is-here")
    (root / "not-here").symlink_to(outside / "not-here")
    linking = shutil.copytree(sound, root / "linking-is-here")
    (linking / "secret.json").symlink_to("/etc/passwd")
    other = shutil.copytree(sound, root / "linking-not-here")
    (other / "secret.json").symlink_to("/etc/not-here")
    (outside / "into").symlink_to(root)
    (outside / "release").mkdir()
    (root / "cur").symlink_to(outside / "release")
    return [
        ("/etc/passwd", "/etc/not-here"),
        ("/root", "/not-here"),
        (f"{outside}/is-here", f"{outside}/not-here"),
        (f"{root}/is-here", f"{root}/not-here"),
        (f"{root}/linking-is-here", f"{root}/linking-not-here"),
        (f"{root}/../outside/is-here", f"{root}/../outside/not-here"),
        (f"{outside}/into/x", f"{outside}/not-here/x"),
        ("./is-here", "./not-here"),
        ("~/is-here", "~/not-here"),
        ("local-dir:/etc", "local-dir:/not-here"),
        ("hf-hub:/etc/passwd", "hf-hub:/etc/not-here"),
        ("hub:/etc/passwd", "hub:/etc/not-here"),
        ("ViT-B-32:openai:/etc/passwd", "ViT-B-32:openai:/etc/not-here"),
        ("ViT-B-32:openai:~root/x", "ViT-B-32:openai:~no-such-user/x"),
        ("~root/x", "~no-such-user/x"),
        (f"{root}/cur/../is-here", f"{root}/cur/../not-here"),
        (f"ViT-B-32:openai:{root}/cur/../is-here/config.json", f"ViT-B-32:openai:{root}/cur/../not-here/config.json"),
        ("ViT-B-32/openai:is-here", "ViT-B-32/openai:not-here"),
        ("ViT-B-32:/etc/passwd", "ViT-B-32:/etc/not-here"),
        ("is-here", "not-here"),
        ("org/is-here", "org/not-here"),
        ("hf-hub:org/is-here", "hf-hub:org/not-here"),
    ]


HOSTILE = ("evil/auto-map", "evil/pickled", "evil/clip-trusting", "hf-hub:evil/clip-trusting", "evil/own-module")


@dataclass(frozen=True)
class Drained:
    """What a command has drained from a topic, and the pairs of names that requests in it gave."""

    installation: Installation
    pairs: Sequence[tuple[str, str]]
    asked: Sequence[str]


@pytest.fixture(scope="module")
def drained(kafka_server: "Broker | kafka.Server", scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Drained:
    """Requests for models of every kind. The hub is away for a moment, and of one of its models for ever."""
    folder = tmp_path_factory.mktemp("drained")
    pairs = which_may_not_be_told_apart(folder, scene)
    sound = scene.models.folders["sound/text"]
    scene.hub.repositories["sound/away"] = sound
    installation = install(folder / "home", kafka_server.bootstrap_servers, f"test-{uuid.uuid4().hex[:12]}")
    refused = {f"{number}-{kind}": name for number, pair in enumerate(pairs) for kind, name in enumerate(pair)}
    refused |= {f"bad {name}": name for name in HOSTILE} | {"away": "sound/away"}
    installation.send(
        text_request("first", "a boat"),
        *[text_request(task_id, "a boat", model_name=name) for task_id, name in refused.items()],
        text_request("sound", "a boat", model_name="sound/text", collection="theirs"),
        text_request("last", "a boat"),
    )
    scene.hub.asked.clear()
    scene.hub.failures, scene.hub.away = 2, {"sound/away"}
    try:
        done = drain(scene, installation, sound, folder)
    finally:
        scene.hub.failures, scene.hub.away = 0, set()
    assert done.returncode == 6, done.stderr[-3000:]
    assert not scene.marker.exists()
    check_refused(installation, refused)
    return Drained(installation, pairs, list(scene.hub.asked))


def drain(scene: Scene, installation: Installation, model: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """`vectorize drain text --once` in a folder, with the scene's hub."""
    settings = installation.settings.kafka
    assert settings.bootstrap_servers is not None
    own = {
        "HOME": str(folder / "outside"),
        "HF_HUB_CACHE": str(folder / "hub"),
        "VECTORIZE_HOME": str(installation.settings.home),
        "VECTORIZE_ENCODER__CACHE_DIRECTORY": str(scene.root / "encoders"),
        "VECTORIZE_KAFKA__BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "VECTORIZE_KAFKA__TOPIC_PREFIX": settings.topic_prefix,
        "VECTORIZE_KAFKA__ALLOWED_MODELS": "*",
        "VECTORIZE_KAFKA__DRAIN__ATTEMPTS": "3",
        "VECTORIZE_KAFKA__DRAIN__RETRY_SECONDS": "0.05",
        "VECTORIZE_MODELS__TEXT": str(model),
        "VECTORIZE_MODELS__DIMENSION": str(DIMENSION),
        "VECTORIZE_URIS__ALLOWED_ROOTS": str(folder / "root"),
    }
    return subprocess.run(
        [*COMMAND, "drain", "text", "--once"],
        env={**scene.environment, **own},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        stdin=subprocess.DEVNULL,
        cwd=folder,
    )


def test_nobody_learns_which_files_exist(drained: Drained) -> None:
    """The answers of each pair are the same but for the name."""
    ledger = drained.installation.ledger()

    def answer(task_id: str, name: str) -> str:
        """What is said of a request, without the name that it gave and what is made of that."""
        said = ledger[task_id].error_message or ""
        for part in (name, name.removeprefix("hf-hub:"), name.removeprefix("ViT-B-32:")):
            said = said.replace(part, "…")
        return said

    for number, (there, missing) in enumerate(drained.pairs):
        assert answer(f"{number}-0", there) == answer(f"{number}-1", missing), there


def test_models_of_the_hub_in_a_topic(drained: Drained) -> None:
    """What is hostile was refused, whatever else the topic holds."""
    store = drained.installation.store
    assert (store.count("texts"), store.count("theirs")) == (2, 1)


def test_a_hub_that_stays_away_fails_the_request_that_needs_it(drained: Drained) -> None:
    assert drained.installation.ledger()["away"].state is RequestState.FAILED
    assert len([path for path in drained.asked if path.startswith("/api/models/sound/away")]) >= 3
