"""The engine `open_clip` against open_clip itself, in float32, on small random models."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image, ImageOps

from tests.encoders.texts import ODD, passages
from tests.encoders.tiny_clips import CONFIG, add_own_tokenizer, build_clip
from tests.images.pictures import encoded, photo
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.encoders import describe_model, encoder_cache, lease_encoder, load_encoder
from vectorize_pipelines.encoders.base import Vectors
from vectorize_pipelines.encoders.engines.base import LoadRequest
from vectorize_pipelines.encoders.engines.open_clip import engine as engine_module
from vectorize_pipelines.encoders.engines.open_clip import export as export_module
from vectorize_pipelines.encoders.engines.open_clip.engine import OpenClipEncoder, TorchTowers
from vectorize_pipelines.encoders.engines.open_clip.tokenizer import ClipTokenizer
from vectorize_pipelines.encoders.hardware.devices import torch_precisions
from vectorize_pipelines.encoders.models.open_clip import ClipModel, locate_clip, pretrained_models, recognises
from vectorize_pipelines.encoders.models.weights import is_torchscript
from vectorize_pipelines.errors import ItemError, UnknownModelError, UntrustedModelError
from vectorize_pipelines.images import CorruptImageError, EmptyImageError, ImageLimits, ImageTooLargeError

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "quick-gelu": {"quick_gelu": True, "preprocess": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}},
    "squash": {
        "vision_cfg": {**CONFIG["vision_cfg"], "image_size": 48},
        "preprocess": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"},
    },
    "custom-text": {
        "custom_text": True,
        "text_cfg": {**CONFIG["text_cfg"], "no_causal_mask": True, "context_length": 32},
        "preprocess": {"resize_mode": "longest", "fill_color": 9},
    },
    "own-tokenizer": {"text_cfg": {**CONFIG["text_cfg"], "hf_tokenizer_name": "its-own", "context_length": 40}},
    "residual-network": {
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32},
        "safe": False,
    },
}

TEXTS = [*passages(24, 120), *ODD, "a photo of a cat", "北岸码头 😀", "It's &amp; <start_of_text> we'll"]


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """By variant: the model's folder."""
    root = tmp_path_factory.mktemp("clips")

    def build(variant: str) -> Path:
        directory = root / variant
        if not directory.is_dir():
            build_clip(directory, **VARIANTS[variant])
            if variant == "own-tokenizer":
                add_own_tokenizer(directory)
        return directory

    return build


@pytest.fixture(scope="session")
def load(clip: Callable[[str], Path], cache_directory: Path) -> Callable[[str], OpenClipEncoder]:
    """By variant: the model, loaded once."""
    loaded: dict[str, OpenClipEncoder] = {}

    def get(variant: str) -> OpenClipEncoder:
        if variant not in loaded:
            pickled = not VARIANTS[variant].get("safe", True)
            encoder = load_encoder(str(clip(variant)), "cpu", cache_directory=cache_directory, pickled_weights=pickled)
            assert isinstance(encoder, OpenClipEncoder)
            loaded[variant] = encoder
        return loaded[variant]

    return get


def pictures() -> dict[str, tuple[bytes, Image.Image]]:
    """By name: an image file, and what it shows: decoded in full, upright, RGB, on white."""
    shown: dict[str, tuple[bytes, Image.Image]] = {}

    def add(name: str, content: bytes, picture: Image.Image | None = None) -> None:
        shown[name] = content, _decoded(content) if picture is None else picture

    for number, size in enumerate([(64, 64), (300, 200), (200, 300), (1200, 900), (40, 30), (500, 70), (900, 1600)]):
        add(f"JPEG {size}", encoded(photo(number, *size), "JPEG", quality=85))
    for file_format in ("PNG", "WEBP", "BMP", "TIFF", "GIF"):
        add(file_format, encoded(photo(20, 160, 120), file_format))
    add("palette", encoded(photo(21, 100, 120).convert("P"), "PNG"))
    add("CMYK", encoded(photo(22, 700, 500).convert("CMYK"), "JPEG"))
    add("grey", encoded(photo(23, 90, 90).convert("L"), "JPEG"))
    transparent = photo(24, 128, 96)
    transparent.putalpha(Image.linear_gradient("L").resize((128, 96)))
    background = Image.new("RGBA", (128, 96), "white")
    background.alpha_composite(transparent)
    add("transparent", encoded(transparent, "PNG"), background.convert("RGB"))
    deep = np.linspace(0, 65535, 80 * 90).reshape(80, 90).astype(np.uint16)
    add("16 bits", encoded(Image.fromarray(deep), "PNG"), Image.fromarray(np.rint(deep / 257).astype(np.uint8)))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        add(f"orientation {orientation}", encoded(photo(25, 320, 200), "JPEG", exif=exif))
    return shown


def _decoded(content: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")


PICTURES = pictures()
FILES = [content for content, _ in PICTURES.values()]


def reference(directory: Path, items: Sequence[str | Image.Image]) -> Vectors:
    """What open_clip itself makes of texts and decoded images, one by one, in float32."""
    import open_clip
    import torch

    config = json.loads((directory / "open_clip_config.json").read_text())
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{directory}")
    if "fill_color" in config["preprocess_cfg"]:
        assert model.visual.preprocess_cfg["fill_color"] == config["preprocess_cfg"]["fill_color"]
    tokenizer = open_clip.get_tokenizer(f"local-dir:{directory}")
    model.eval()
    vectors = []
    with torch.inference_mode():
        for item in items:
            if isinstance(item, str):
                vectors.append(model.encode_text(tokenizer([item]), normalize=True))
            else:
                vectors.append(model.encode_image(preprocess(item.convert("RGB"))[None], normalize=True))
    return np.asarray(torch.cat(vectors), dtype=np.float32)


def assert_equal(vectors: Vectors, wanted: Vectors) -> None:
    assert vectors.shape == wanted.shape
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    cosines = (vectors * wanted).sum(axis=1)
    assert cosines.mean() >= 0.9999
    assert cosines.min() >= 0.999


@pytest.mark.parametrize("variant", VARIANTS)
def test_images_and_texts_in_one_call_are_open_clips(
    variant: str, clip: Callable[[str], Path], load: Callable[[str], OpenClipEncoder], tmp_path: Path
) -> None:
    items: list[str | Path | bytes] = []
    shown: list[str | Image.Image] = []
    for number, (content, picture) in enumerate(PICTURES.values()):
        path = tmp_path / f"{number}"
        path.write_bytes(content)
        items += [path if number % 2 else content, TEXTS[number]]
        shown += [picture, TEXTS[number]]
    items += TEXTS[len(PICTURES) :]
    shown += TEXTS[len(PICTURES) :]
    encoder = load(variant)
    assert encoder.choice.engine == "open_clip"
    assert "OpenVINO" in encoder.choice.reason
    assert_equal(encoder.encode(items), reference(clip(variant), shown))


def test_what_the_variants_differ_in_matters(
    clip: Callable[[str], Path], load: Callable[[str], OpenClipEncoder]
) -> None:
    """Were QuickGELU or the statistics lost, the vectors would be others: the test above would notice."""
    plain, quick = load("plain").encode(FILES[:4]), load("quick-gelu").encode(FILES[:4])
    assert (plain * quick).sum(axis=1).max() < 0.999


def test_neither_order_nor_company_changes_a_vector(load: Callable[[str], OpenClipEncoder]) -> None:
    encoder = load("plain")
    items: list[str | Path | bytes] = [*FILES, *TEXTS]
    together = encoder.encode(items)
    order = np.random.default_rng(3).permutation(len(items))
    assert_equal(encoder.encode([items[n] for n in order]), together[order])
    for position in (0, len(FILES) - 1, len(FILES), len(items) - 1):
        assert_equal(encoder.encode([items[position]]), together[position : position + 1])


def test_threads_share_an_encoder(load: Callable[[str], OpenClipEncoder]) -> None:
    encoder = load("plain")
    wanted = encoder.encode([*FILES, *TEXTS])
    with ThreadPoolExecutor(4) as pool:
        for vectors in pool.map(lambda _: encoder.encode([*FILES, *TEXTS]), range(4)):
            assert_equal(vectors, wanted)


def test_nothing_in_nothing_out(load: Callable[[str], OpenClipEncoder]) -> None:
    assert load("plain").encode([]).shape == (0, 32)
    vectors, failures = load("plain").encode_each([])
    assert (vectors.shape, failures) == ((0, 32), {})


def test_bad_images_fail_alone(load: Callable[[str], OpenClipEncoder], tmp_path: Path) -> None:
    encoder = load("plain")
    good = FILES[1]
    items: list[str | Path | bytes] = [good, b"", "a text", good[:-5000], tmp_path / "missing.png", good]
    vectors, failures = encoder.encode_each(items)
    assert {position: type(error).__name__ for position, error in failures.items()} == {
        1: "EmptyImageError",
        3: "CorruptImageError",
        4: "UnreadableFileError",
    }
    assert np.isnan(vectors[[1, 3, 4]]).all()
    assert_equal(vectors[[0, 2, 5]], encoder.encode([good, "a text", good]))
    with pytest.raises(EmptyImageError, match="item 1: the file has no bytes"):
        encoder.encode(items)
    with pytest.raises(CorruptImageError, match="item 0: "):
        encoder.encode([good[:-5000]])
    with pytest.raises(ItemError, match=r"item 0 \(.*missing.png\): cannot be read"):
        encoder.encode([tmp_path / "missing.png"])


def test_only_bad_images(load: Callable[[str], OpenClipEncoder]) -> None:
    vectors, failures = load("plain").encode_each([b""] * 20)
    assert np.isnan(vectors).all()
    assert set(failures) == set(range(20))


def test_the_limits_and_processes_are_the_callers(clip: Callable[[str], Path], cache_directory: Path) -> None:
    before = set(psutil.Process().children())
    limits = ImageLimits(max_pixels=1000)
    encoder = load_encoder(
        str(clip("plain")), "cpu", image_limits=limits, decoding_threads=1, cache_directory=cache_directory
    )
    _, failures = encoder.encode_each([FILES[0]])
    assert isinstance(failures[0], ImageTooLargeError)
    assert encoder.encode([encoded(photo(1, 30, 30), "PNG")] * 20).shape == (20, 32)
    assert len(set(psutil.Process().children()) - before) == 1
    encoder.close()
    assert set(psutil.Process().children()) <= before


def test_a_search_by_text_decodes_nothing(clip: Callable[[str], Path], cache_directory: Path) -> None:
    before = set(psutil.Process().children())
    encoder = load_encoder(str(clip("plain")), "cpu", cache_directory=cache_directory)
    assert encoder.encode(["a text"], "query").shape == (1, 32)
    assert set(psutil.Process().children()) <= before
    encoder.close()


def test_the_spec_loads_nothing(clip: Callable[[str], Path], tmp_path: Path) -> None:
    spec = describe_model(str(clip("custom-text")), cache_directory=tmp_path)
    assert (spec.dimension, spec.max_length, spec.normalized) == (32, 32, True)
    assert spec.modalities == {Modality.TEXT, Modality.IMAGE}
    assert spec.fingerprint.endswith("dim=32 pooling=tok+argmax max_length=32 normalized=true")
    script = (
        "import sys; from pathlib import Path; from vectorize_pipelines.encoders import describe_model; "
        f"describe_model({str(clip('plain'))!r}, cache_directory=Path({str(tmp_path)!r})); "
        "print([name for name in ('torch', 'open_clip', 'openvino', 'PIL') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"


def test_an_exported_model_needs_no_torch(
    clip: Callable[[str], Path], load: Callable[[str], OpenClipEncoder], cache_directory: Path, tmp_path: Path
) -> None:
    load("plain")
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(FILES[0])
    script = (
        "import sys; from pathlib import Path; from vectorize_pipelines.encoders import load_encoder; "
        f"encoder = load_encoder({str(clip('plain'))!r}, 'cpu', cache_directory=Path({str(cache_directory)!r})); "
        f"print(encoder.encode([Path({str(picture)!r}), 'a text']).shape, "
        "[name for name in ('torch', 'open_clip', 'transformers') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "(2, 32) []"


def test_the_revision_follows_what_decides_the_vectors(clip: Callable[[str], Path], tmp_path: Path) -> None:
    original = describe_model(str(clip("plain")), cache_directory=tmp_path).revision
    moved = shutil.copytree(clip("plain"), tmp_path / "moved")
    assert describe_model(str(moved), cache_directory=tmp_path).revision == original
    content = json.loads((moved / "open_clip_config.json").read_text())
    for change in ({"quick_gelu": True}, {}):
        content["model_cfg"].update(change)
        content["preprocess_cfg"] = {} if change else {"mean": 0.5}
        (moved / "open_clip_config.json").write_text(json.dumps(content))
        assert describe_model(str(moved), cache_directory=tmp_path).revision != original


def test_an_export_is_made_once_and_again_when_it_is_damaged(
    clip: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    export = export_module._write_files

    def counted(model: ClipModel, folder: Path) -> bool:
        made.append(folder)
        return export(model, folder)

    monkeypatch.setattr(export_module, "_write_files", counted)

    def encode() -> Vectors:
        encoder = load_encoder(str(clip("plain")), "cpu", cache_directory=tmp_path)
        vectors = encoder.encode([FILES[0], "a text"])
        assert encoder.memory_bytes > 0
        encoder.close()
        return vectors

    first = encode()
    assert_equal(encode(), first)
    assert len(made) == 1
    (folder,) = (tmp_path / "open_clip").glob("*-2")
    (folder / "image.bin").write_bytes((folder / "image.bin").read_bytes()[:-100])
    assert_equal(encode(), first)
    (folder / "measurement.json").write_text("{")
    assert_equal(encode(), first)
    assert len(made) == 2
    assert json.loads((folder / "measurement.json").read_text())
    assert not list((tmp_path / "open_clip").glob(".partial*"))


def test_where_openvino_does_not_reproduce_a_model_torch_runs_it(
    clip: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = export_module.reference_vectors
    monkeypatch.setattr(export_module, "reference_vectors", lambda *arguments: samples(*arguments)[:, ::-1].copy())
    encoder = load_encoder(str(clip("quick-gelu")), "cpu", cache_directory=tmp_path)
    assert encoder.choice.precision in torch_precisions("cpu")
    assert "torch runs it, because OpenVINO does not: its image vectors are not equal" in encoder.choice.reason
    shown = [picture for _, picture in PICTURES.values()]
    assert_equal(encoder.encode([*FILES, *TEXTS]), reference(clip("quick-gelu"), [*shown, *TEXTS]))
    encoder.close()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_torch_in_16_bits_is_taken_only_where_it_is_equal(
    precision: str, clip: Callable[[str], Path], cache_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = locate_clip(str(clip("plain")), cache_directory)
    request = LoadRequest(str(clip("plain")), "cpu", cache_directory)
    monkeypatch.setattr(engine_module, "torch_precisions", lambda device: (precision, "float32"))
    monkeypatch.setattr("vectorize_pipelines.encoders.engines.equality.MEAN_COSINE", 0.9)
    monkeypatch.setattr("vectorize_pipelines.encoders.engines.equality.WORST_COSINE", 0.9)
    lenient = TorchTowers(model, request)
    assert lenient.precision == precision
    assert lenient.run("text", np.array([[49406, 320, 49407]])).dtype == np.float32
    monkeypatch.setattr("vectorize_pipelines.encoders.engines.equality.WORST_COSINE", 1.1)
    strict = TorchTowers(model, request)
    assert strict.precision == "float32"
    assert strict.memory_bytes > lenient.memory_bytes > 0


def test_out_of_memory_splits_the_batch_that_failed(
    load: Callable[[str], OpenClipEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load("plain")
    wanted = encoder.encode([*FILES, *TEXTS])
    run, sizes = encoder._towers.run, []

    def narrow(tower: str, batch: Any) -> Vectors:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise RuntimeError("could not allocate memory")
        return run(tower, batch)

    monkeypatch.setattr(encoder._towers, "run", narrow)
    assert_equal(encoder.encode([*FILES, *TEXTS]), wanted)
    assert max(sizes) > 2


def test_other_faults_of_the_engine_are_not_hidden(
    load: Callable[[str], OpenClipEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load("plain")

    def broken(tower: str, batch: Any) -> Vectors:
        raise RuntimeError("a kernel failed")

    monkeypatch.setattr(encoder._towers, "run", broken)
    for item in ("a text", FILES[0]):
        with pytest.raises(RuntimeError, match="a kernel failed"):
            encoder.encode([item])


def test_the_cache_lends_it(clip: Callable[[str], Path], cache_directory: Path) -> None:
    with lease_encoder(str(clip("plain")), "cpu", cache_directory=cache_directory) as first:
        assert first.encode(["a text"]).shape == (1, 32)
    with lease_encoder(str(clip("plain")), "cpu", cache_directory=cache_directory) as second:
        assert second is first
    encoder_cache().clear()


def test_tokens_are_those_of_open_clip() -> None:
    import open_clip

    texts = [
        *TEXTS,
        "ﬁne ½ Ⅷ ١٢٣ ＡＢＣ İstanbul ß",
        "\x00\x01 a\u00a0b",
        "!!<start_of_text>x<End_Of_Text>",
        "&amp;lt;",
    ]
    for length in (77, 16):
        wanted = open_clip.SimpleTokenizer(context_length=length)(texts).tolist()
        assert [ids + [0] * (length - len(ids)) for ids in ClipTokenizer(length).ids(texts)] == wanted


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("ViT-B/32", "ViT-B-32:openai"),
        ("ViT-L/14@336px", "ViT-L-14-336:openai"),
        ("RN50", "RN50:openai"),
        ("ViT-B-32:openai", "ViT-B-32:openai"),
        ("ViT-B-32/laion2b_s34b_b79k", "ViT-B-32:laion2b_s34b_b79k"),
        ("ViT-B/32:laion2b-s34b-b79k", "ViT-B-32:laion2b_s34b_b79k"),
    ],
)
def test_names_of_the_hub(
    name: str, canonical: str, cache_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetched(name: str, repository: str, files: Sequence[str], *, fetch: bool) -> Path:
        assert fetch
        asked.append(repository)
        assert all(file.endswith(".safetensors") for file in files)
        return tmp_path / files[0]

    monkeypatch.setattr("vectorize_pipelines.encoders.models.open_clip._hub_file", fetched)
    assert recognises(name)
    model = locate_clip(name, cache_directory)
    assert model.name == canonical
    assert asked[0].startswith("timm/" if canonical.endswith("openai") else "laion/")
    assert model.config["quick_gelu"] is canonical.endswith("openai")


def test_a_repository_in_the_hubs_cache_is_found(
    clip: Callable[[str], Path], cache_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--someone--their-clip"
    shutil.copytree(clip("plain"), folder / "snapshots" / "abc")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    assert recognises("someone/their-clip")
    assert not recognises("someone/else")
    for name in ("someone/their-clip", "hf-hub:someone/their-clip"):
        spec = describe_model(name, cache_directory=cache_directory)
        assert spec.name == "hf-hub:someone/their-clip"
        assert spec.revision == describe_model(str(clip("plain")), cache_directory=cache_directory).revision


def test_weights_in_the_hubs_cache_are_found_by_their_name(
    cache_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--timm--vit_base_patch32_clip_224.openai" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "open_clip_model.safetensors").touch()
    assert locate_clip("ViT-B/32", cache_directory).weights == snapshot / "open_clip_model.safetensors"


def test_weights_in_a_file_have_the_settings_of_their_name(cache_directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.touch()
    openai = locate_clip(f"ViT-B-32:openai:{file}", cache_directory, pickled_weights=True)
    assert (openai.name, openai.weights) == ("ViT-B-32:openai", file)
    assert openai.config["quick_gelu"] is True
    with pytest.raises(UntrustedModelError, match="allow_pickled_weights"):
        locate_clip(f"ViT-B-32:openai:{file}", cache_directory)
    siglip = locate_clip(f"ViT-B-16-SigLIP:webli:{file}", cache_directory, pickled_weights=True)
    assert siglip.preprocessing.mean == (0.5, 0.5, 0.5)
    assert siglip.preprocessing.resize_mode == "squash"
    assert not siglip.has_clip_tokenizer
    with pytest.raises(UnknownModelError, match="no file"):
        locate_clip(f"ViT-B-32:openai:{tmp_path / 'missing.pt'}", cache_directory)


def test_every_entry_of_open_clips_table_can_be_described(cache_directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"weights")
    for architecture, entries in pretrained_models(cache_directory).items():
        for tag, entry in entries.items():
            model = locate_clip(f"{architecture}:{tag}:{file}", cache_directory)
            assert model.config["quick_gelu"] or not entry.get("quick_gelu")
            assert model.spec(None).dimension > 0


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch advises against the format
def test_openais_own_archives_are_read(clip: Callable[[str], Path], cache_directory: Path, tmp_path: Path) -> None:
    """OpenAI gives its weights as TorchScript in half precision, with three constants among them."""
    import torch

    model = locate_clip(str(clip("plain")), cache_directory)
    loaded = export_module.load_model(model)

    class Archive(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loaded = loaded.visual
            self.register_buffer("input_resolution", torch.tensor(64))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            vectors: torch.Tensor = self.loaded(pixels)
            return vectors

    archive = tmp_path / "ViT-B-32.pt"
    with torch.no_grad():
        torch.jit.trace(Archive(), torch.zeros(1, 3, 64, 64), check_trace=False).save(str(archive))  # type: ignore[no-untyped-call]
    assert is_torchscript(archive)
    assert not is_torchscript(model.weights)
    export_module._lay_weights(archive, tmp_path)
    from safetensors.torch import load_file

    names = load_file(tmp_path / "open_clip_model.safetensors")
    assert "loaded.conv1.weight" in names
    assert "input_resolution" not in names


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("vit-b/32", "did you mean ViT-B/32"),
        ("ViT-B-33", "did you mean ViT-B-32"),
        ("ViT-B-32", "needs the name of weights; open_clip knows ViT-B-32:openai"),
        ("ViT-B-32:openia", "has no weights called 'openia'; open_clip knows ViT-B-32:openai"),
        ("ViT-B/32", "not in the Hugging Face cache .* Give a folder that holds the weights"),
        ("hf-hub:nobody/nothing", "no CLIP model 'hf-hub:nobody/nothing'.* Give a folder"),
        ("local-dir:nowhere", "there is no model folder 'nowhere'"),
    ],
)
def test_models_that_are_not_there(
    name: str, says: str, cache_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HF_HUB_CACHE", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(UnknownModelError, match=says):
        load_encoder(name, "cpu", cache_directory=cache_directory)


def test_folders_that_hold_no_model(clip: Callable[[str], Path], cache_directory: Path, tmp_path: Path) -> None:
    def attempt(says: str) -> None:
        with pytest.raises(UnknownModelError, match=says):
            load_encoder(str(folder), "cpu", cache_directory=cache_directory)

    folder = shutil.copytree(clip("plain"), tmp_path / "model")
    weights = folder / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    attempt("cannot be loaded")
    weights.unlink()
    attempt("holds no weights")
    (folder / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 3}}')
    attempt("must have embed_dim, vision_cfg, text_cfg")
    (folder / "open_clip_config.json").write_text("{")
    attempt("cannot read")


def test_weights_that_do_not_fit_the_configuration(
    clip: Callable[[str], Path], cache_directory: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(clip("plain"), tmp_path / "model")
    content = json.loads((folder / "open_clip_config.json").read_text())
    content["model_cfg"]["embed_dim"] = 64
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(UnknownModelError, match="cannot be loaded"):
        load_encoder(str(folder), "cpu", cache_directory=cache_directory)


@pytest.mark.parametrize(
    "name", ["sentence-transformers/all-MiniLM-L6-v2", "bert-base-uncased", "my/model", "./folder"]
)
def test_text_models_are_left_to_other_engines(name: str) -> None:
    assert not recognises(name)
