"""Small random models on disk, built as transformers and sentence-transformers write them.

Their vectors mean nothing, but every step from the folder to the vectors is the real one.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.encoders.texts import ODD, WORDS

WIDTH = 32
POSITIONS = 128
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "initializer_range": 0.2}

ARCHITECTURES = ("bert", "roberta", "distilbert", "mpnet", "xlm-roberta", "camembert")
#: Each as a plain encoder (False). sentence-transformers adds the same modules to all: one of each kind of tokenizer.
LAYOUTS = (*((each, False) for each in ARCHITECTURES), *((each, True) for each in ("bert", "roberta", "xlm-roberta")))


def build_encoder(directory: Path, architecture: str, *, max_length: int | None = 96) -> Path:
    """A plain Hugging Face encoder: configuration, random weights, tokenizer trained on the tests' words."""
    import torch
    from transformers import AutoConfig, AutoModel

    tokenizer = _tokenizer(architecture, max_length)
    width = {"dim": WIDTH, "hidden_dim": 64, "n_layers": 2, "n_heads": 4} if architecture == "distilbert" else {}
    offset = 2 if architecture in {"roberta", "mpnet", "xlm-roberta", "camembert"} else 0
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=POSITIONS + offset,
        **({"initializer_range": 0.2, **width} if width else {"hidden_size": WIDTH, **SIZES}),
    )
    torch.manual_seed(7)
    model: Any = AutoModel
    model.from_config(config).eval().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def add_modules(
    directory: Path,
    *,
    pooling: Mapping[str, Any] | None = None,
    normalize: bool = True,
    settings: Mapping[str, Any] | None = None,
    general: Mapping[str, Any] | None = None,
) -> Path:
    """Turns a plain encoder into a sentence-transformers model; None leaves the pooling out."""
    modules = [("", "sentence_transformers.models.Transformer")]
    if pooling is not None:
        modules.append(("1_Pooling", "sentence_transformers.models.Pooling"))
        write_json(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": WIDTH, **pooling})
    if normalize:
        modules.append(("2_Normalize", "sentence_transformers.models.Normalize"))
    write_json(
        directory / "modules.json",
        [{"idx": n, "name": str(n), "path": path, "type": kind} for n, (path, kind) in enumerate(modules)],
    )
    write_json(directory / "sentence_bert_config.json", dict(settings or {"max_seq_length": 64}))
    if general is not None:
        write_json(directory / "config_sentence_transformers.json", dict(general))
    return directory


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def _tokenizer(architecture: str, max_length: int | None) -> Any:
    from transformers import (
        BertTokenizer,
        CamembertTokenizer,
        DistilBertTokenizer,
        MPNetTokenizer,
        RobertaTokenizer,
        XLMRobertaTokenizer,
    )

    limit: dict[str, Any] = {} if max_length is None else {"model_max_length": max_length}
    if architecture == "roberta":
        vocabulary, merges = _byte_pairs()
        return RobertaTokenizer(vocab=vocabulary, merges=merges, **limit)
    if architecture in {"xlm-roberta", "camembert"}:
        made = XLMRobertaTokenizer if architecture == "xlm-roberta" else CamembertTokenizer
        return made(vocab=_unigrams(), **limit)
    if architecture == "mpnet":
        return MPNetTokenizer(vocab=_word_pieces(["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]), **limit)
    kind = DistilBertTokenizer if architecture == "distilbert" else BertTokenizer
    return kind(vocab=_word_pieces(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]), **limit)


def _corpus() -> list[str]:
    return [" ".join(words) for words in WORDS.values()] + ODD


def _word_pieces(special: list[str]) -> dict[str, int]:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(_corpus(), trainer)
    return dict(tokenizer.get_vocab())


def _byte_pairs() -> tuple[dict[str, int], list[Any]]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def _unigrams() -> list[tuple[str, float]]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(_corpus(), trainer)
    pieces = [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
    return [*((name, 0.0) for name in special), *(each for each in pieces if each[0] not in special), ("<mask>", 0.0)]
