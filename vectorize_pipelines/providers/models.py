"""Names of remote models: `MODEL` of the default provider, or `PROVIDER/MODEL` of one that the settings name."""

from dataclasses import dataclass

from vectorize_pipelines.settings.providers import DEFAULT_PROVIDER, ProvidersSettings


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model of a provider, under the names that keys and the provider have for them."""

    provider: str
    model: str

    @property
    def full_name(self) -> str:
        """`PROVIDER/MODEL`, also for the default provider."""
        return f"{self.provider}/{self.model}"

    @property
    def short_name(self) -> str:
        """`MODEL`, and `PROVIDER/MODEL` where that is not the default provider."""
        return self.model if self.provider == DEFAULT_PROVIDER else self.full_name


def parse_model(name: str, settings: ProvidersSettings) -> RemoteModel:
    """Return what a name stands for.

    What comes before the first slash is a provider only where the settings know one of that name: models are called
    `ORGANIZATION/MODEL`, too.
    """
    provider, _, model = name.partition("/")
    if model and (provider == DEFAULT_PROVIDER or provider in settings.base_urls):
        return RemoteModel(provider, model)
    return RemoteModel(DEFAULT_PROVIDER, name)
