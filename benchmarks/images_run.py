"""One way of embedding a folder of JPEGs with a CLIP model, in this process; prints what it took as JSON.

Called by `images.py`, each time in a process of its own: python -m benchmarks.images_run NAME MODEL IMAGES VECTORS

ours       the engine `open_clip` of this project
open_clip  open_clip's own: Pillow, its preprocessing, torch; the fastest of several batch sizes, with and without
           processes that decode
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vectorize_pipelines.encoders.base import Vectors

WARM_UP, TRIAL = 8, 48
#: (batch size, decoding processes)
CANDIDATES = [(batch, workers) for workers in (0, 1, 2) for batch in (1, 8, 32)]


def ours(model: str, files: Sequence[Path]) -> tuple[float, Vectors, str]:
    """`encode` of paths."""
    from vectorize_pipelines.encoders import load_encoder

    encoder = load_encoder(model, device="cpu")
    encoder.encode(files[:WARM_UP])
    started = time.perf_counter()
    vectors = encoder.encode(files)
    return time.perf_counter() - started, vectors, encoder.choice.precision


def open_clip(model: str, files: Sequence[Path]) -> tuple[float, Vectors, str]:
    """The loop of open_clip's documentation, over torch's `DataLoader`."""
    import open_clip
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    network, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{model}")
    network.eval()

    class Images(Dataset[Any]):
        def __init__(self, chosen: Sequence[Path]) -> None:
            self.chosen = chosen

        def __len__(self) -> int:
            return len(self.chosen)

        def __getitem__(self, number: int) -> Any:
            return preprocess(Image.open(self.chosen[number]))

    def embed(chosen: Sequence[Path], batch: int, workers: int) -> tuple[float, Vectors]:
        started = time.perf_counter()
        with torch.no_grad():
            loader = DataLoader(Images(chosen), batch_size=batch, num_workers=workers)
            parts = [network.encode_image(pixels, normalize=True).numpy() for pixels in loader]
        return time.perf_counter() - started, np.concatenate(parts)

    embed(files[:WARM_UP], WARM_UP, 0)
    batch, workers = min(CANDIDATES, key=lambda candidate: embed(files[:TRIAL], *candidate)[0])
    seconds, vectors = embed(files, batch, workers)
    return seconds, vectors, f"batches of {batch}, {workers} decoding processes"


def main() -> None:
    name, model, images, vectors = sys.argv[1:]
    files = sorted(Path(images).glob("*.jpg"))
    seconds, found, how = {"ours": ours, "open_clip": open_clip}[name](model, files)
    np.save(vectors, found)
    print(json.dumps({"seconds": seconds, "how": how}))


if __name__ == "__main__":
    main()
