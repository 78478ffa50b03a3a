"""What a model's name stands for, by its form alone: nothing on disk is looked at, and nobody is asked.

For names that strangers give. Called by `pipeline.requests.named_models`.
"""

from vectorize_pipelines.encoders.models.locate import HUB_PREFIX, full_name
from vectorize_pipelines.encoders.models.open_clip import canonical_clip_name, is_architecture, weights_file
from vectorize_pipelines.encoders.models.vetting import is_repository

#: In front of a name: a provider is asked, and nothing lies here.
REMOTE_PREFIX = "remote:"
_DEFAULT_PROVIDER_PREFIX = "default/"
_REPOSITORY_PREFIX = "hf-hub:"
_FOLDER_PREFIX = "local-dir:"


def path_in(name: str) -> str | None:
    """Return the path on this machine that a name is, or holds; None for names of the hub, open_clip and providers.

    `ViT-B-32:openai:/models/w.safetensors` -> `/models/w.safetensors`. What is neither counts as a path.
    """
    if name.startswith(_FOLDER_PREFIX):
        return name.removeprefix(_FOLDER_PREFIX)
    bare = name.removeprefix(HUB_PREFIX)
    file = weights_file(bare)
    if file is not None:
        return file
    if bare.startswith(_REPOSITORY_PREFIX):
        bare = bare.removeprefix(_REPOSITORY_PREFIX)
        return None if is_repository(bare) else bare
    return None if is_repository(bare) or is_architecture(bare) else bare


def may_be_a_folder(name: str) -> bool:
    """Whether a folder of this name, where there is one, is the model; names of the hub are never one."""
    return not name.startswith((HUB_PREFIX, _REPOSITORY_PREFIX))


def of_the_hub(name: str) -> str:
    """The same name, which no folder stands for."""
    return name if name.startswith(HUB_PREFIX) else f"{HUB_PREFIX}{name}"


def canonical(name: str) -> str:
    """One spelling for all names of a model: `ViT-B/32` -> `ViT-B-32:openai`; paths unchanged.

    `remote:default/MODEL` -> `remote:MODEL`.

    A name that `may_be_a_folder` counts as the hub's here: the caller knows whether there is such a folder.
    """
    if name.startswith(REMOTE_PREFIX):
        model = name.removeprefix(REMOTE_PREFIX).removeprefix(_DEFAULT_PROVIDER_PREFIX)
        return name if "/" in model else f"{REMOTE_PREFIX}{model}"
    bare = name.removeprefix(HUB_PREFIX)
    if bare.startswith(_REPOSITORY_PREFIX):  # what follows is a repository, even where an architecture is called so
        repository = bare.removeprefix(_REPOSITORY_PREFIX)
        return repository if "/" in repository and is_repository(repository) else bare
    if is_architecture(bare):
        return canonical_clip_name(bare)
    return full_name(bare) if is_repository(bare) else name
