"""Measures the engine torch on an NVIDIA GPU and prints a table: `make bench-gpu`, or `python -m benchmarks.gpu`.

Everything is made here, offline: models of the size of MiniLM and of BERT-base with random weights, a tokenizer
trained on the example corpus, texts from it. So it also runs on a bare machine with torch, transformers, tokenizers,
safetensors, numpy and sentence-transformers, from the project's folder. Every figure is a ratio of two things measured
in this run. Ends with 1 where a bound is missed, and with 2 where there is no GPU.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, report
from benchmarks.passages import passages, sentences
from vectorize_pipelines.encoders import load_encoder
from vectorize_pipelines.encoders.base import Encoder
from vectorize_pipelines.encoders.batching import TokenBudget, remembered_budget, token_batches
from vectorize_pipelines.encoders.engines.base import LoadRequest
from vectorize_pipelines.encoders.engines.equality import MEAN_COSINE, WORST_COSINE, compare
from vectorize_pipelines.encoders.engines.torch.engine import BATCH_TOKENS
from vectorize_pipelines.encoders.engines.torch.forward import pack, packed_forward
from vectorize_pipelines.encoders.engines.torch.weights import read_weights
from vectorize_pipelines.encoders.models.tokenizer import model_tokenizer

DEVICE = "cuda"
WORDS = 110
ROUNDS = 3

#: Of the ceiling, and times as fast as sentence-transformers.
SHARE_WANTED = 0.6
TIMES_WANTED = 8

#: Sizes of batches among which sentence-transformers is taken at its best.
BATCH_SIZES = (32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Size:
    """A model to measure with, and how many texts."""

    name: str
    layers: int
    hidden: int
    texts: int


SIZES = (Size("MiniLM-sized", 6, 384, 40_000), Size("BERT-base-sized", 12, 768, 16_000))


def build_model(directory: Path, size: Size) -> Path:
    """A sentence-transformers model of this size with random weights: mean pooling, normalised, 256 tokens."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    model_class: Any = BertModel
    config: Any = BertConfig
    torch.manual_seed(7)
    model_class(
        config(
            hidden_size=size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=12,
            intermediate_size=4 * size.hidden,
        )
    ).eval().save_pretrained(directory)
    tokenizer: Any = BertTokenizer
    tokenizer(vocab=_vocabulary(), model_max_length=256).save_pretrained(directory)
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"idx": n, "name": str(n), "path": f"{n}_{kind}" if n else "", "type": f"sentence_transformers.models.{kind}"}
        for n, kind in enumerate(kinds)
    ]
    (directory / "1_Pooling").mkdir()
    (directory / "2_Normalize").mkdir()
    for file, content in {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": 256},
        "1_Pooling/config.json": {"word_embedding_dimension": size.hidden, "pooling_mode_mean_tokens": True},
    }.items():
        (directory / file).write_text(json.dumps(content))
    return directory


def _vocabulary() -> dict[str, int]:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=30_000, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(sentences(), trainer)
    return dict(tokenizer.get_vocab())


def rate(texts: int, work: Callable[[], object], device: str) -> float:
    """Texts per second, the median of `ROUNDS`, after one to get warm."""
    import torch

    seconds = []
    for _ in range(1 + ROUNDS):
        started = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return texts / statistics.median(seconds[1:])


def ceiling(request: LoadRequest, texts: list[str], precision: str) -> float:
    """Packed forward passes over batches that lie tokenized on the device; no vector leaves it."""
    tokenizer = model_tokenizer(request.layout, cache_directory=None, revision=request.spec.revision)
    weights = read_weights(request.layout.transformer_directory)
    forward = packed_forward(request.layout, weights, request.device, precision)
    budget = TokenBudget(BATCH_TOKENS["cuda"])
    packed = [pack(batch, weights.padding) for batch in token_batches(texts, tokenizer.ids, budget)]
    batches = [tokens.on(tokens.numbers.to(request.device)) for tokens in packed]

    def work() -> None:
        for batch in batches:
            forward(batch)

    return rate(len(texts), work, request.device)


def sentence_transformers_rate(model: Path, texts: list[str], device: str) -> tuple[float, int]:
    """Texts per second of `SentenceTransformer.encode` in float16, and the size of batches at which it was best."""
    import torch
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(str(model), device=device, model_kwargs={"dtype": torch.float16})
    few = texts[:: max(1, len(texts) // 4000)]
    rates = {
        size: rate(len(few), lambda size=size: loaded.encode(few, batch_size=size, show_progress_bar=False), device)  # type: ignore[misc]
        for size in BATCH_SIZES
    }
    best = max(rates, key=lambda size: rates[size])
    return rates[best], best


def equality(size: Size, request: LoadRequest, encoder: Encoder, texts: list[str]) -> Figure:
    """Against sentence-transformers in float32."""
    some = texts[:: max(1, len(texts) // 500)]
    reference = load_encoder(
        request.name, request.device, "sentence-transformers", cache_directory=request.cache_directory
    )
    found = compare(encoder.encode(some), reference.encode(some))
    reference.close()
    wanted = f"mean ≥ {MEAN_COSINE}, worst ≥ {WORST_COSINE}"
    return Figure(f"{size.name}: {encoder.choice.precision} against float32", str(found), wanted, found.equal)


def recovery(size: Size, encoder: Encoder, texts: list[str]) -> Figure:
    """A third of the memory that a batch takes: is everything encoded, and to the same vectors?"""
    import torch

    some = texts[:2000]
    torch.cuda.empty_cache()
    loaded = torch.cuda.memory_allocated(DEVICE)
    torch.cuda.reset_peak_memory_stats(DEVICE)
    whole = encoder.encode(some)
    batch = torch.cuda.max_memory_allocated(DEVICE) - loaded
    torch.cuda.empty_cache()
    left = torch.cuda.memory_reserved(DEVICE) + batch // 3
    torch.cuda.set_per_process_memory_fraction(left / torch.cuda.get_device_properties(DEVICE).total_memory, DEVICE)
    try:
        found = compare(encoder.encode(some), whole)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)
    tokens = remembered_budget(encoder.spec.revision, DEVICE, BATCH_TOKENS["cuda"]).tokens
    measured = f"batches of {BATCH_TOKENS['cuda']} tokens became {tokens}; {found}"
    name = f"{size.name}: with {batch // 3 / 2**20:.0f} MiB where a batch takes {batch / 2**20:.0f}"
    return Figure(name, measured, "smaller batches, the same vectors", found.equal and tokens < BATCH_TOKENS["cuda"])


def measure(size: Size, place: Path, device: str) -> tuple[list[Figure], Encoder, list[str]]:
    """Ceiling, this engine and sentence-transformers, one after the other."""
    model = build_model(place / size.name, size)
    texts = passages(size.texts, WORDS)
    request = LoadRequest(str(model), device, place / "cache")
    encoder = load_encoder(request.name, request.device, "torch", cache_directory=request.cache_directory)
    print(f"{size.name}: {encoder.choice.reason}", file=sys.stderr, flush=True)
    highest = ceiling(request, texts, encoder.choice.precision)
    ours = rate(len(texts), lambda: encoder.encode(texts), device)
    theirs, batch_size = sentence_transformers_rate(model, texts, device)
    share, times = ours / highest, ours / theirs
    return (
        [
            Figure(
                f"{size.name}: encode from texts against packed {encoder.choice.precision} forward passes alone",
                f"{share:.0%} ({ours:,.0f} of {highest:,.0f} texts/s)",
                f"≥ {SHARE_WANTED:.0%}",
                share >= SHARE_WANTED,
            ),
            Figure(
                f"{size.name}: against sentence-transformers in float16 at its best batch size",
                f"{times:.1f} times ({theirs:,.0f} texts/s at {batch_size})",
                f"≥ {TIMES_WANTED} times",
                times >= TIMES_WANTED,
            ),
            equality(size, request, encoder, texts),
        ],
        encoder,
        texts,
    )


def main() -> None:
    import torch

    if not torch.cuda.is_available():
        print("there is no GPU here: torch sees no CUDA device, so nothing was measured", file=sys.stderr)
        sys.exit(2)
    print(f"{torch.cuda.get_device_name(DEVICE)}, torch {torch.__version__}", file=sys.stderr, flush=True)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="vectorize-bench-") as place:
        for size in SIZES:
            measured, encoder, texts = measure(size, Path(place), DEVICE)
            figures += [*measured, recovery(size, encoder, texts)]
            encoder.close()
    sys.exit(report(figures))


if __name__ == "__main__":
    main()
