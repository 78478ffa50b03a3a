"""The true float32 vectors of a model for `equality.sample_texts`, which the vectors of its engines are compared with.

They are sentence-transformers' where that is installed. Else they are those of a plain forward pass in numpy, for the
models that it covers (`refusal_of_numpy`); what is measured against these lies in a folder of its own, so that they are
taken for nothing else, and once sentence-transformers is installed its own are what counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vectorize_pipelines.core.extras import install_command, is_installed
from vectorize_pipelines.encoders.batching import out_of_memory
from vectorize_pipelines.encoders.engines.equality import sample_texts
from vectorize_pipelines.encoders.engines.measured_folder import NUMPY_REFERENCE, MeasuredFolder
from vectorize_pipelines.encoders.errors import EngineRefusedError
from vectorize_pipelines.encoders.models.files import read_json
from vectorize_pipelines.encoders.models.layout import MALFORMED, read_transformer_settings
from vectorize_pipelines.encoders.models.network import Network, read_arrays, refusal
from vectorize_pipelines.encoders.models.tokenizer import ModelTokenizer, model_tokenizer
from vectorize_pipelines.errors import UnknownModelError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from vectorize_pipelines.encoders.base import Vectors
    from vectorize_pipelines.encoders.engines.base import LoadRequest

_EXTRA = "sentence-transformers"

#: Settings in tokenizer_config.json that transformers applies over the normalizer of a BERT tokenizer.json -> the name
#: that each has in that normalizer.
_BERT_NORMALIZER_NAMES = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}

#: Arguments that a Transformer module may pass on to transformers without another result: the precision of its weights
#: and its attention kernel, which are sentence-transformers' own business, and the length limit, which a layout has.
_ARGUMENTS_WITHOUT_EFFECT = frozenset({"dtype", "torch_dtype", "attn_implementation", "model_max_length"})


@dataclass(frozen=True, slots=True)
class NumpyReference:
    """The model as numpy computes it.

    network, tokenizer  that were read
    vectors             of the sample
    """

    network: "Network[npt.NDArray[np.float32]]"
    tokenizer: ModelTokenizer
    vectors: "Vectors"


def measured_against(folder: MeasuredFolder) -> MeasuredFolder:
    """Return the folder to use in place of `folder`, made with sentence-transformers: it, or one with numpy's."""
    return folder if folder.complete or is_installed(_EXTRA) else folder.beside(NUMPY_REFERENCE)


def is_numpys(folder: MeasuredFolder) -> bool:
    """Return whether what is measured in a folder of `measured_against` is measured against numpy's vectors."""
    return folder.directory.name.endswith(f"-{NUMPY_REFERENCE}")


def discard_numpys(folder: MeasuredFolder) -> None:
    """Remove the folder with numpy's vectors beside a complete `folder` with sentence-transformers', which replaces it.

    A process that has loaded from it keeps what it has loaded.
    """
    if not is_numpys(folder) and folder.complete:
        folder.beside(NUMPY_REFERENCE).discard()


def refusal_of_reference(request: "LoadRequest", folder: MeasuredFolder) -> str | None:
    """Return why there are no vectors to hold an engine against; None where there are or may be some."""
    return None if folder.complete or is_installed(_EXTRA) else refusal_of_numpy(request)


def refusal_of_numpy(request: "LoadRequest") -> str | None:
    """Return why sentence-transformers might make other vectors of the model than numpy; None where it does not."""
    doubts = (refusal(request.layout), _doubt_of_arguments(request), _doubt_of_tokenizer(request))
    why_not = next((doubt for doubt in doubts if doubt is not None), None)
    return None if why_not is None else f"without sentence-transformers {why_not}: {install_command(_EXTRA)}"


def numpy_reference(request: "LoadRequest") -> NumpyReference:
    """Return the model read into numpy, and its vectors of the sample.

    Raises `EngineRefusedError` where numpy does not cover the model, its parts do not fit together or memory runs out,
    and `UnknownModelError` where its files are damaged.
    """
    from safetensors import SafetensorError

    from vectorize_pipelines.encoders.engines.numpy_forward import encode_ids

    why_not = refusal_of_numpy(request)
    if why_not is not None:
        raise EngineRefusedError(why_not)
    tokenizer = model_tokenizer(request.layout, cache_directory=request.cache_directory, revision=request.spec.revision)
    if not all(tokenizer.ids([""])):
        raise EngineRefusedError("its tokenizer gives an empty text no token")
    try:
        network = read_arrays(request.layout.transformer_directory)
        vectors = encode_ids(network, request.layout, tokenizer.ids(sample_texts(request.spec.max_length)))
    except (OSError, SafetensorError) as error:
        raise UnknownModelError(f"the model {request.name} cannot be loaded: {error}") from error
    except Exception as error:
        if out_of_memory(error):
            raise EngineRefusedError(f"memory ran out while its vectors were computed in numpy: {error}") from error
        raise EngineRefusedError(f"its weights are not what its configuration says ({error})") from error
    if vectors.shape[1] != request.spec.dimension:
        raise EngineRefusedError(
            f"its weights are not what its configuration says (vectors of {vectors.shape[1]} numbers, "
            f"not {request.spec.dimension})"
        )
    return NumpyReference(network, tokenizer, vectors)


def _doubt_of_arguments(request: "LoadRequest") -> str | None:
    """Return why a Transformer module's arguments for transformers might make another model; None where they do not."""
    settings = read_transformer_settings(request.layout.transformer_directory)
    for name, arguments in settings.items():
        if not name.endswith(("_args", "_kwargs")) or not arguments:
            continue
        if not isinstance(arguments, dict):
            return f"it does not cover {name}"
        foreign = sorted(set(arguments) - _ARGUMENTS_WITHOUT_EFFECT)
        if foreign:
            return f"it does not cover {foreign[0]} in {name}"
    return None


def _doubt_of_tokenizer(request: "LoadRequest") -> str | None:
    """Return why transformers might make another tokenizer of the folder than its tokenizer.json; None: it does not.

    It goes by tokenizer_config.json too, which most models have as it says the same.
    """
    directory = request.layout.transformer_directory
    if not (directory / "tokenizer.json").is_file():
        return f"its tokenizer cannot be had, because {directory} has no tokenizer.json"
    tokenizer, config = read_json(directory / "tokenizer.json"), read_json(directory / "tokenizer_config.json")
    if config.get("truncation_side", "right") != "right":
        return "it does not cover texts that are cut at their beginning (truncation_side in tokenizer_config.json)"
    try:
        stated = list(_stated_in(tokenizer))
    except MALFORMED as error:
        return f"its tokenizer cannot be had, because {directory / 'tokenizer.json'} makes no sense ({error!r})"
    for setting, value in stated:
        if setting in config and config[setting] != value:
            return f"its tokenizer cannot be had, because tokenizer_config.json and tokenizer.json differ in {setting}"
    return None


def _stated_in(tokenizer: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what a tokenizer.json says of settings that tokenizer_config.json may have too: name there and value."""
    normalizer = tokenizer.get("normalizer") or {}
    if normalizer.get("type") == "BertNormalizer":
        for setting, name in _BERT_NORMALIZER_NAMES.items():
            yield setting, normalizer.get(name)
    divided = tokenizer.get("pre_tokenizer") or {}
    for each in (divided, *divided.get("pretokenizers", ())):
        if each.get("type") == "ByteLevel":
            yield "add_prefix_space", each.get("add_prefix_space")
