"""Which remote models requests may name: those of the operator, whose money they cost."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vectorize_pipelines.pipeline.requests.named_models import NamedModels, UnusableModelError
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.stores import open_store


@pytest.fixture
def resolving(home: Path) -> Callable[[list[str]], NamedModels]:
    """The rule where the operator uses `remote:embed`, and allows these models."""

    def rule(allowed: list[str]) -> NamedModels:
        settings = load_settings(home=str(home), models={"text": "remote:embed"}, kafka={"allowed_models": allowed})
        return NamedModels(settings, open_store(settings.store, settings.home))

    return rule


def test_those_of_the_operator_by_any_name(resolving: Callable[[list[str]], NamedModels]) -> None:
    named = resolving(["remote:mine/organization/other"])
    assert named.resolve("remote:embed", None) == "remote:embed"
    assert named.resolve("remote:default/embed", "articles") == "remote:embed"
    assert named.resolve("remote:mine/organization/other", None) == "remote:mine/organization/other"


@pytest.mark.parametrize("allowed", [[], ["*"]])
@pytest.mark.parametrize("name", ["remote:another", "remote:mine/embed", "remote:", "remote:../embed"])
def test_no_others_whatever_is_allowed(
    allowed: list[str], name: str, resolving: Callable[[list[str]], NamedModels]
) -> None:
    with pytest.raises(UnusableModelError, match="is not among the models"):
        resolving(allowed).resolve(name, None)
