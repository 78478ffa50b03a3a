"""The collections and aliases of a Weaviate server, by the names that users know. Called by `store`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vectorize_pipelines.encoders.base import EncoderSpec
from vectorize_pipelines.errors import StoreError
from vectorize_pipelines.stores.base import Collection
from vectorize_pipelines.stores.contents import check_model
from vectorize_pipelines.stores.failures import no_such_collection
from vectorize_pipelines.stores.weaviate.collections import Described, create, described
from vectorize_pipelines.stores.weaviate.texts import collection_name, own_name

if TYPE_CHECKING:
    from weaviate import WeaviateClient
    from weaviate.collections import Collection as Native
    from weaviate.collections.classes.config import CollectionConfig

    from vectorize_pipelines.settings import WeaviateSettings


class Catalogue:
    """The collections that the server has now: nothing is remembered from one call to the next."""

    def __init__(
        self,
        client: "WeaviateClient",
        place: str,
        settings: "WeaviateSettings",
        attempt: Callable[[Callable[[], Any]], Any],
    ) -> None:
        """Take `place`, the server's address as users see it, and `attempt`, which makes a call with its retries."""
        self._client, self._place, self._own, self._attempt = client, place, settings, attempt
        # Making one takes the client as long as a tenth of a search; it holds names and no state of the server's.
        self._bound: dict[str, Native[Any, Any]] = {}

    def found(self, name: str) -> Described | None:
        """Return what the server says of an alias or a physical name now; None where it knows none."""
        native = collection_name(name)
        if native is None:
            return None
        config = self._attempt(lambda: self._configuration_when_ready(native))
        if config is None:
            return None
        found = described(config)
        if found is None:
            raise StoreError(f"the collection {native!r} in {self._place} is not a collection of this project")
        return found

    def _configuration_when_ready(self, native: str) -> "CollectionConfig | None":
        """Return the configuration once the server is ready: one that is starting says that there is no collection."""
        config = self._configuration(native)
        if config is not None:
            return config
        if not self._client.is_ready():
            raise ConnectionError(f"the server is not ready to say whether there is a collection {native}")
        return self._configuration(native)

    def _configuration(self, native: str) -> "CollectionConfig | None":
        from weaviate.exceptions import UnexpectedStatusCodeError

        try:
            return self._client.collections.use(native).config.get()
        except UnexpectedStatusCodeError as error:
            if error.status_code != 404:
                raise
            return None

    def resolved(self, name: str) -> Described:
        """Return what `found` does; raises `CollectionNotFoundError` where that is None, and as `check_tenancy`."""
        found = self.found(name)
        if found is None:
            known = {own.physical for own in self.all_described().values()} | self.aliases().keys()
            raise no_such_collection(name, self._place, known)
        self.check_tenancy(name, found)
        return found

    def physical(self, name: str) -> Described:
        """Resolve a physical name alone: an alias is no collection that could be dropped or pointed at."""
        found = self.resolved(name)
        if found.physical != name:
            raise no_such_collection(name, self._place, {own.physical for own in self.all_described().values()})
        return found

    def check_tenancy(self, name: str, found: Described) -> None:
        """Raise `StoreError` where calls have to name a tenant and the settings do not, or the other way round."""
        if found.multi_tenant != (self._own.tenant is not None):
            raise StoreError(
                f"the collection {name!r} in {self._place} is multi-tenant: name the tenant in "
                "VECTORIZE_STORE__WEAVIATE__TENANT"
                if found.multi_tenant
                else f"the collection {name!r} in {self._place} has no tenants: unset "
                "VECTORIZE_STORE__WEAVIATE__TENANT, or use another collection"
            )

    def all_described(self) -> dict[str, Described]:
        """Return the collections of this project by their names in Weaviate."""
        configs = self._attempt(lambda: self._client.collections.list_all(simple=False))
        return {native: own for native, config in configs.items() if (own := described(config)) is not None}

    def aliases(self) -> dict[str, str]:
        """Return the aliases that may be this project's, with the names in Weaviate that they stand for."""
        aliases = self._attempt(self._client.alias.list_all)
        return {name: one.collection for alias, one in aliases.items() if (name := own_name(alias)) is not None}

    def made(self, named: str, spec: EncoderSpec, physical: str) -> Described:
        """Return the collection behind a name that stood for none; an older one without an alias is taken up again."""
        found = self.found(physical)
        created = found is None
        if found is None:
            self._create(physical, spec)
            found = self.resolved(physical)
        check_model(self.collection(named, found), found.revision, spec)
        if named == physical or self._new_alias(named, found.native):
            return found
        standing = self.found(named)
        if standing is None:
            # The server keeps an alias whose collection was deleted.
            self.turn_alias(named, found.native)
            return found
        if created and standing.native != found.native:
            # Another process gave the name to another model's collection first: ours was made for nothing.
            self._client.collections.delete(found.native)
        return standing

    def _create(self, physical: str, spec: EncoderSpec) -> None:
        """Create a collection. Another process may come first: then its collection stands."""
        from weaviate.exceptions import UnexpectedStatusCodeError

        try:
            create(self._client, physical, spec, self._own)
        except UnexpectedStatusCodeError as error:
            if "already exists" not in str(error):
                raise

    def _new_alias(self, name: str, native: str) -> bool:
        """Make the alias; False where it is there already."""
        from weaviate.exceptions import UnexpectedStatusCodeError

        alias = collection_name(name)
        if alias is None:
            raise StoreError(f"{name!r} cannot be an alias: lower-case letters, digits, _ and -, a letter first")
        try:
            self._client.alias.create(alias_name=alias, target_collection=native)
        except UnexpectedStatusCodeError as error:
            if "already exists" not in str(error):
                raise
            return False
        return True

    def turn_alias(self, name: str, native: str) -> None:
        """Point an alias at a collection by its name in Weaviate; make it where it is missing."""
        if not self._new_alias(name, native):
            self._client.alias.update(alias_name=collection_name(name) or name, new_target_collection=native)

    def collection(self, name: str, found: Described) -> Collection:
        """Return the collection as the protocol describes it."""
        return Collection(
            name=name,
            physical=found.physical,
            store="weaviate",
            location=self._place,
            model=found.model,
            dimension=found.dimension,
        )

    def ensure_tenant(self, found: Described) -> None:
        """Make the settings' tenant where the collection lacks it."""
        if self._own.tenant is None or not found.multi_tenant:
            return
        tenants = self._client.collections.use(found.native).tenants
        if not tenants.exists(self._own.tenant):
            tenants.create([self._own.tenant])

    def is_readable(self, found: Described) -> bool:
        """Return whether calls of this store's tenant, or without one, can go to the collection."""
        if found.multi_tenant != (self._own.tenant is not None):
            return False
        tenants = self._client.collections.use(found.native).tenants
        return self._own.tenant is None or bool(tenants.exists(self._own.tenant))

    def native(self, found: Described) -> "Native[Any, Any]":
        """Return what calls on a collection go through."""
        return self.bound(found.native)

    def bound(self, native: str) -> "Native[Any, Any]":
        """Return what calls go through for a collection's or an alias's name in Weaviate."""
        if native not in self._bound:
            self._bound[native] = self._newly_bound(native)
        return self._bound[native]

    def _newly_bound(self, native: str) -> "Native[Any, Any]":
        from weaviate.classes.config import ConsistencyLevel

        collection = self._client.collections.use(native, skip_argument_validation=True)
        if self._own.consistency is not None:
            collection = collection.with_consistency_level(ConsistencyLevel(self._own.consistency))
        return collection if self._own.tenant is None else collection.with_tenant(self._own.tenant)
