"""A client of a Weaviate past the store."""

from weaviate import WeaviateClient, connect_to_custom
from weaviate.classes.init import Auth

from vectorize_pipelines.settings import StoreSettings
from vectorize_pipelines.stores.weaviate.collections import described


def client_of(settings: StoreSettings) -> WeaviateClient:
    """A bare client of the server."""
    host, _, port = (settings.url or "").removeprefix("http://").partition(":")
    key = None if settings.api_key is None else Auth.api_key(settings.api_key.get_secret_value())
    return connect_to_custom(
        host, int(port), False, host, settings.grpc_port or 50051, False, auth_credentials=key, skip_init_checks=True
    )


def emptied(settings: StoreSettings) -> StoreSettings:
    """The settings of a server that has no collection of this project any more."""
    with client_of(settings) as client:
        own = [name for name, config in client.collections.list_all(simple=False).items() if described(config)]
        for alias, one in client.alias.list_all().items():
            if one.collection in own:
                client.alias.delete(alias_name=alias)
        for name in own:
            client.collections.delete(name)
    return settings
