"""The benchmark `images`: ViT-B/32 on JPEGs, this project's engine against open_clip's own loop, on the CPU.

The weights are random: they take as long as trained ones, and no model hub is needed.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import RESULTS, Figure, python, table
from benchmarks.plots import bars
from vectorize_pipelines.encoders.engines.equality import compare

IMAGES, WIDTH, HEIGHT = 192, 1600, 1200
WANTED = 3


def run(place: Path) -> list[Figure]:
    """Measures both on the same files and prints the table."""
    model, folder = place / "model", place / "images"
    _write_model(model)
    size = _write_images(folder)
    rates, how = {}, {}
    for name in ("ours", "open_clip"):
        if name == "ours":  # exports the model
            _measure(name, model, folder, place, place / "home")
        outcome = _measure(name, model, folder, place, place / "home")
        rates[name], how[name] = IMAGES / outcome["seconds"], outcome["how"]
    agreement = compare(np.load(place / "ours.npy"), np.load(place / "open_clip.npy"))
    labels = {"ours": "this project", "open_clip": "open_clip: Pillow, torch"}
    print(f"ViT-B/32, random weights, {IMAGES} JPEGs of {WIDTH}x{HEIGHT} and {size / 1024:.0f} KiB on average, CPU:\n")
    rows = [[labels[name], f"{rate:.1f}", how[name]] for name, rate in rates.items()]
    print(table(["", "images/s", "how"], rows))
    print(f"\ncosine between the two, whose scaling of JPEGs differs: {agreement}")
    plot = bars({labels[name]: rate for name, rate in rates.items()}, "images/s", RESULTS / "images.png")
    print(f"\nplot: {plot}\n")
    times = rates["ours"] / rates["open_clip"]
    measured = f"{times:.1f} times ({rates['ours']:.1f} and {rates['open_clip']:.1f} images/s)"
    return [Figure("images: ViT-B/32 against open_clip's own loop", measured, f"≥ {WANTED} times", times >= WANTED)]


def _measure(name: str, model: Path, images: Path, place: Path, home: Path) -> dict[str, Any]:
    vectors = place / f"{name}.npy"
    done = python("-m", "benchmarks.images_run", name, model, images, vectors, VECTORIZE_HOME=str(home))
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


def _write_model(folder: Path) -> None:
    """As open_clip lays a model out for others to download."""
    python("-c", _MODEL, folder)


_MODEL = """
import json, sys
from pathlib import Path
import open_clip, torch
from safetensors.torch import save_file

folder = Path(sys.argv[1])
folder.mkdir()
torch.manual_seed(0)
save_file(open_clip.create_model("ViT-B-32").state_dict(), folder / "open_clip_model.safetensors")
config = {"model_cfg": open_clip.get_model_config("ViT-B-32"), "preprocess_cfg": {}}
(folder / "open_clip_config.json").write_text(json.dumps(config))
"""


def _write_images(folder: Path) -> float:
    """Pictures with what photographs have: gradients, soft and hard edges, texture, grain. Gives bytes an image."""
    from PIL import Image, ImageDraw

    folder.mkdir()
    random_numbers = np.random.default_rng(0)
    for number in range(IMAGES):
        image = Image.new("RGB", (WIDTH, HEIGHT))
        for cells in (4, 40, 200):  # clouds of three sizes, the large ones strongest
            noise = random_numbers.integers(0, 256, size=(cells * 3 // 4, cells, 3), dtype=np.uint8)
            layer = Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            image = layer if cells == 4 else Image.blend(image, layer, 8 / cells**0.9)
        draw = ImageDraw.Draw(image)
        for left, top, width, height, *color in random_numbers.integers(
            [0, 0, 40, 40, 0, 0, 0], [WIDTH, HEIGHT, 500, 500, 256, 256, 256], size=(12, 7)
        ).tolist():
            shape = draw.ellipse if left % 2 else draw.rectangle
            shape((left, top, left + width, top + height), fill=tuple(color))
        grain = random_numbers.normal(scale=4, size=(HEIGHT, WIDTH, 1))
        pixels = np.clip(np.asarray(image, dtype=np.float32) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04}.jpg", quality=88)
    return sum(file.stat().st_size for file in folder.iterdir()) / IMAGES
