"""The tokenizer: offsets in characters, the same ids as sentence-transformers, truncation, conversion."""

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.encoders.texts import ODD, passages
from tests.encoders.tokenizers import local_tokenizer
from vectorize_pipelines.encoders.models.tokenizer import ModelTokenizer
from vectorize_pipelines.errors import UnknownModelError

BUNDLED = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def tokenizers(plain_model: Callable[[str], Path], cache_directory: Path) -> dict[str, ModelTokenizer]:
    """One of each kind: word pieces, byte-level pairs, unigrams, and the bundled model's."""
    models = {kind: str(plain_model(kind)) for kind in ("bert", "roberta", "xlm-roberta")}
    models["bundled"] = BUNDLED
    return {kind: local_tokenizer(model, cache_directory=cache_directory) for kind, model in models.items()}


def test_offsets_are_characters_not_bytes(tokenizers: dict[str, ModelTokenizer]) -> None:
    text = "é中文 😀 ok"
    (offsets,) = tokenizers["bundled"].offsets([text])
    assert [text[start:end] for start, end in offsets] == ["é", "中", "文", "😀", "ok"]


def test_combining_characters_belong_to_their_letter(tokenizers: dict[str, ModelTokenizer]) -> None:
    text = "cafe\u0301 s"
    (offsets,) = tokenizers["bundled"].offsets([text])
    assert text[offsets[0][0] : offsets[0][1]].startswith("cafe")
    assert text[offsets[-1][0] : offsets[-1][1]] == "s"


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "bundled"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=80) | st.sampled_from(ODD + passages(40, longest=60)))
def test_offsets_lie_in_order_inside_the_text(tokenizers: dict[str, ModelTokenizer], kind: str, text: str) -> None:
    tokenizer = tokenizers[kind]
    (offsets,) = tokenizer.offsets([text])
    assert all(0 <= start <= end <= len(text) for start, end in offsets)
    assert all(before[0] <= after[0] and before[1] <= after[1] for before, after in itertools.pairwise(offsets))
    (ids,) = tokenizer.ids([text])
    assert len(ids) == min(len(offsets) + tokenizer.special_tokens, tokenizer.max_length or len(ids))


@pytest.mark.parametrize("kind", ["bert", "roberta", "bundled"])
def test_every_visible_character_is_covered(tokenizers: dict[str, ModelTokenizer], kind: str) -> None:
    for text in passages(30, longest=40):
        (offsets,) = tokenizers[kind].offsets([text])
        covered = {position for start, end in offsets for position in range(start, end)}
        missing = {character for position, character in enumerate(text) if position not in covered}
        assert not any(character.isalnum() for character in missing)


def test_offsets_are_not_truncated(tokenizers: dict[str, ModelTokenizer]) -> None:
    text = "word " * 2000
    (offsets,) = tokenizers["bundled"].offsets([text])
    assert len(offsets) == 2000
    assert offsets[-1] == (9995, 9999)
    assert len(tokenizers["bundled"].ids([text])[0]) == 256


def test_prompt_counts_as_tokens_around_every_text(sentence_model: Callable[..., Path], cache_directory: Path) -> None:
    general = {"prompts": {"document": "the northern harbour: ", "query": "before "}}
    prompted = local_tokenizer(
        str(sentence_model("bert", "prompted-tokens", general=general)), cache_directory=cache_directory
    )
    plain = local_tokenizer(str(sentence_model("bert")), cache_directory=cache_directory)
    extra = prompted.special_tokens - plain.special_tokens
    assert extra == len(plain.offsets(["the northern harbour: "])[0]) > 0
    assert prompted.offsets(["a storm"]) == plain.offsets(["a storm"])
    assert len(prompted.ids(["a storm"])[0]) == len(plain.ids(["a storm"])[0]) + extra
    assert prompted.ids(["a storm"], prompt="") == plain.ids(["a storm"])


def test_model_without_tokenizer_json_is_converted_once(
    plain_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = plain_model("bert")
    model = tmp_path / "model"
    model.mkdir()
    for path in source.iterdir():
        if path.name != "tokenizer.json":
            (model / path.name).write_bytes(path.read_bytes())
    whole = local_tokenizer(str(source), cache_directory=tmp_path)
    vocabulary = whole._tokenizer.get_vocab()
    (model / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=lambda piece: vocabulary[piece])))
    texts = passages(20)
    assert local_tokenizer(str(model), cache_directory=tmp_path).ids(texts) == whole.ids(texts)
    monkeypatch.setattr(
        "vectorize_pipelines.encoders.models.tokenizer._convert", lambda directory: pytest.fail("converted")
    )
    assert local_tokenizer(str(model), cache_directory=tmp_path).ids(texts) == whole.ids(texts)


def test_broken_tokenizer_is_the_models_fault() -> None:
    with pytest.raises(UnknownModelError, match=r"tokenizer\.json"):
        ModelTokenizer("{}")


def test_several_threads_get_the_same_tokens(tokenizers: dict[str, ModelTokenizer]) -> None:
    tokenizer = tokenizers["bundled"]
    texts = passages(60)
    expected = (tokenizer.ids(texts), tokenizer.offsets(texts))
    results: list[bool] = []
    threads = [
        threading.Thread(target=lambda: results.append((tokenizer.ids(texts), tokenizer.offsets(texts)) == expected))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4


def test_tokenizing_in_parallel_gives_the_same(
    tokenizers: dict[str, ModelTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizers["bundled"]
    texts = passages(80)
    expected = (tokenizer.ids(texts), tokenizer.offsets(texts))
    monkeypatch.setattr("vectorize_pipelines.encoders.models.tokenizer.PARALLEL_FROM_CORES", 1)
    assert (tokenizer.ids(texts), tokenizer.offsets(texts)) == expected


def test_half_a_surrogate_pair_keeps_the_offsets(tokenizers: dict[str, ModelTokenizer]) -> None:
    text = "tide \ud83d storm"
    (offsets,) = tokenizers["bundled"].offsets([text])
    assert (text[slice(*offsets[0])], text[slice(*offsets[-1])]) == ("tide", "storm")
