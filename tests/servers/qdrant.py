"""A Qdrant server for tests: the gRPC interface of Qdrant in front of Qdrant's own engine.

The engine is `qdrant-edge-py`, the Rust code that a server's shards consist of (storage, payload indexes, filters,
facets, search); what a server puts around it stands here in a few lines: collections, aliases, the API key. So what
passes here has crossed the wire and been judged by Qdrant's code, but shards, replicas, consensus and the optimizer in
the background are not here: see VECTORIZE_TEST_QDRANT_URL in `test_qdrant` for a real server.

`requests` notes every call, `failing` lets some calls fail.
"""

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import qdrant_edge as edge
from qdrant_client import grpc as wire
from qdrant_client.conversions.conversion import grpc_to_payload, payload_to_grpc
from qdrant_client.grpc.collections_service_pb2_grpc import CollectionsServicer, add_CollectionsServicer_to_server
from qdrant_client.grpc.points_service_pb2_grpc import PointsServicer, add_PointsServicer_to_server
from qdrant_client.grpc.qdrant_pb2_grpc import QdrantServicer, add_QdrantServicer_to_server

#: How far every write gets.
STATUS = wire.UpdateStatus.Completed
_DISTANCES = {wire.Distance.Dot: edge.Distance.Dot, wire.Distance.Euclid: edge.Distance.Euclid}


class Refused(Exception):  # noqa: N818
    """Answered with this gRPC status."""

    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(message)
        self.code = code


@dataclass
class _Collection:
    shard: edge.EdgeShard
    created: Any
    metadata: dict[str, Any]
    indexing_threshold: int
    indexes: dict[str, Any] = field(default_factory=dict)
    status: Any = wire.CollectionStatus.Green


class Server:
    """Listens on `url` and `grpc_port` from the start until `stop`."""

    def __init__(self, folder: Path, api_key: str | None = None, version: str = "1.20.0"):
        self.folder = folder
        self.version = version
        self.collections: dict[str, _Collection] = {}
        self.aliases: dict[str, str] = {}
        self.requests: list[tuple[str, Any]] = []
        self.failing: Callable[[str, int], grpc.StatusCode | None] = lambda method, call: None
        self._api_key = api_key
        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1)])
        add_QdrantServicer_to_server(_answering(self, _Root, QdrantServicer), self._server)  # type: ignore[no-untyped-call]
        add_CollectionsServicer_to_server(_answering(self, _Collections, CollectionsServicer), self._server)  # type: ignore[no-untyped-call]
        add_PointsServicer_to_server(_answering(self, _Points, PointsServicer), self._server)  # type: ignore[no-untyped-call]
        self.grpc_port = self._server.add_insecure_port("127.0.0.1:0")
        self.url = "http://127.0.0.1:6333"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def named(self, name: str) -> _Collection:
        physical = self.aliases.get(name, name)
        if physical not in self.collections:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"Not found: Collection `{name}` doesn't exist!")
        return self.collections[physical]

    def check(self, method: str, context: grpc.ServicerContext) -> None:
        """Before every call: the key, as the server does it, and what the test wants to fail."""
        key = dict(context.invocation_metadata()).get("api-key")
        if method != "HealthCheck" and key != self._api_key:
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, "Invalid API key or JWT")
        code = self.failing(method, sum(1 for name, _ in self.requests if name == method))
        if code is not None:
            raise Refused(code, f"{method} fails because the test wants it to")


@contextmanager
def running(folder: Path, api_key: str | None = None) -> Iterator[Server]:
    server = Server(folder, api_key)
    try:
        yield server
    finally:
        server.stop()


def _answering(server: Server, methods: type, servicer: type) -> Any:
    """An instance of the servicer that answers by the methods of the class."""

    def answer(name: str) -> Callable[[Any, Any, grpc.ServicerContext], Any]:
        def method(_: Any, request: Any, context: grpc.ServicerContext) -> Any:
            server.requests.append((name, request))
            try:
                server.check(name, context)
                return getattr(methods, name)(server, request)
            except Refused as refused:
                context.abort(refused.code, str(refused))

        return method

    names = [name for name in vars(methods) if not name.startswith("_")]
    return type(methods.__name__, (servicer,), {name: answer(name) for name in names})()


class _Root:
    @staticmethod
    def HealthCheck(server: Server, _: Any) -> Any:  # noqa: N802
        return wire.HealthCheckReply(title="qdrant - vector search engine", version=server.version)


class _Collections:
    @staticmethod
    def List(server: Server, _: Any) -> Any:  # noqa: N802
        names = [wire.CollectionDescription(name=name) for name in server.collections]
        return wire.ListCollectionsResponse(collections=names)

    @staticmethod
    def Create(server: Server, request: Any) -> Any:  # noqa: N802
        name = request.collection_name
        if name in server.collections:
            raise Refused(grpc.StatusCode.ALREADY_EXISTS, f"Wrong input: Collection `{name}` already exists!")
        vectors = request.vectors_config.params
        folder = server.folder / uuid.uuid4().hex
        folder.mkdir()
        parameters = edge.EdgeVectorParams(size=vectors.size, distance=_DISTANCES[vectors.distance])
        server.collections[name] = _Collection(
            edge.EdgeShard.create(str(folder), edge.EdgeConfig(vectors=parameters)),
            request,
            grpc_to_payload(request.metadata),
            request.optimizers_config.indexing_threshold,
        )
        return wire.CollectionOperationResponse(result=True)

    @staticmethod
    def Get(server: Server, request: Any) -> Any:  # noqa: N802
        collection = server.named(request.collection_name)
        facts = collection.shard.info()
        info = wire.CollectionInfo(
            status=collection.status,
            optimizer_status=wire.OptimizerStatus(ok=True),
            segments_count=facts.segments_count,
            points_count=facts.points_count,
            indexed_vectors_count=facts.indexed_vectors_count,
            payload_schema=collection.indexes,
        )
        parameters = wire.CollectionParams(
            vectors_config=collection.created.vectors_config, shard_number=1, on_disk_payload=True
        )
        optimizers = wire.OptimizersConfigDiff(
            indexing_threshold=collection.indexing_threshold,
            deleted_threshold=0.2,
            vacuum_min_vector_number=1000,
            default_segment_number=0,
            flush_interval_sec=5,
        )
        config = wire.CollectionConfig(
            params=parameters,
            optimizer_config=optimizers,
            hnsw_config=wire.HnswConfigDiff(m=16, ef_construct=100, full_scan_threshold=10_000),
            wal_config=wire.WalConfigDiff(wal_capacity_mb=32, wal_segments_ahead=0),
            metadata=payload_to_grpc(collection.metadata),
        )
        info.config.CopyFrom(config)
        return wire.GetCollectionInfoResponse(result=info)

    @staticmethod
    def Update(server: Server, request: Any) -> Any:  # noqa: N802
        collection = server.named(request.collection_name)
        if request.optimizers_config.HasField("indexing_threshold"):
            collection.indexing_threshold = request.optimizers_config.indexing_threshold
        merged = collection.metadata | grpc_to_payload(request.metadata)
        collection.metadata = {key: value for key, value in merged.items() if value is not None}
        return wire.CollectionOperationResponse(result=True)

    @staticmethod
    def Delete(server: Server, request: Any) -> Any:  # noqa: N802
        name = request.collection_name
        server.collections.pop(name).shard.close()
        server.aliases = {alias: to for alias, to in server.aliases.items() if to != name}
        return wire.CollectionOperationResponse(result=True)

    @staticmethod
    def ListAliases(server: Server, _: Any) -> Any:  # noqa: N802
        aliases = [wire.AliasDescription(alias_name=alias, collection_name=to) for alias, to in server.aliases.items()]
        return wire.ListAliasesResponse(aliases=aliases)

    @staticmethod
    def UpdateAliases(server: Server, request: Any) -> Any:  # noqa: N802
        aliases = dict(server.aliases)
        for change in request.actions:
            if change.HasField("delete_alias"):
                del aliases[change.delete_alias.alias_name]
            else:
                aliases[change.create_alias.alias_name] = change.create_alias.collection_name
        server.aliases = aliases
        return wire.CollectionOperationResponse(result=True)


class _Points:
    @staticmethod
    def CreateFieldIndex(server: Server, request: Any) -> Any:  # noqa: N802
        collection = server.named(request.collection_name)
        given = request.field_index_params
        parameters: Any
        match given.WhichOneof("index_params"):
            case "keyword_index_params":
                keyword = given.keyword_index_params
                parameters = edge.KeywordIndexParams(prefix=keyword.HasField("prefix"), is_tenant=keyword.is_tenant)
                kind = wire.PayloadSchemaType.Keyword
            case "integer_index_params":
                integer = given.integer_index_params
                parameters = edge.IntegerIndexParams(lookup=integer.lookup, range=integer.range)
                kind = wire.PayloadSchemaType.Integer
            case _:
                parameters = edge.DatetimeIndexParams()
                kind = wire.PayloadSchemaType.Datetime
        collection.shard.update(edge.UpdateOperation.create_field_index(request.field_name, parameters))
        collection.indexes[request.field_name] = wire.PayloadSchemaInfo(data_type=kind, params=given)
        return _done()

    @staticmethod
    def Upsert(server: Server, request: Any) -> Any:  # noqa: N802
        points = [
            edge.Point(point.id.uuid, list(point.vectors.vector.dense.data), grpc_to_payload(point.payload))
            for point in request.points
        ]
        server.named(request.collection_name).shard.update(edge.UpdateOperation.upsert_points(points))
        return _done()

    @staticmethod
    def Delete(server: Server, request: Any) -> Any:  # noqa: N802
        chosen = request.points
        if chosen.HasField("filter"):
            operation = edge.UpdateOperation.delete_points_by_filter(_filter(chosen.filter))
        else:
            operation = edge.UpdateOperation.delete_points([one.uuid for one in chosen.points.ids])
        server.named(request.collection_name).shard.update(operation)
        return _done()

    @staticmethod
    def Get(server: Server, request: Any) -> Any:  # noqa: N802
        ids = [one.uuid for one in request.ids]
        records = server.named(request.collection_name).shard.retrieve(
            ids, with_payload=_payload(request.with_payload), with_vector=request.with_vectors.enable
        )
        return wire.GetResponse(result=[_retrieved(record) for record in records])

    @staticmethod
    def Scroll(server: Server, request: Any) -> Any:  # noqa: N802
        records, offset = server.named(request.collection_name).shard.scroll(
            edge.ScrollRequest(
                limit=request.limit,
                offset=request.offset.uuid if request.HasField("offset") else None,
                filter=_filter(request.filter) if request.HasField("filter") else None,
                with_payload=_payload(request.with_payload),
                with_vector=request.with_vectors.enable,
            )
        )
        next_page = None if offset is None else wire.PointId(uuid=str(offset))
        return wire.ScrollResponse(result=[_retrieved(record) for record in records], next_page_offset=next_page)

    @staticmethod
    def Count(server: Server, request: Any) -> Any:  # noqa: N802
        where = _filter(request.filter) if request.HasField("filter") else None
        rows = server.named(request.collection_name).shard.count(edge.CountRequest(exact=request.exact, filter=where))
        return wire.CountResponse(result=wire.CountResult(count=rows))

    @staticmethod
    def Facet(server: Server, request: Any) -> Any:  # noqa: N802
        answer = server.named(request.collection_name).shard.facet(
            edge.FacetRequest(
                request.key,
                limit=request.limit,
                exact=request.exact,
                filter=_filter(request.filter) if request.HasField("filter") else None,
            )
        )
        hits = [
            wire.FacetHit(value=wire.FacetValue(string_value=str(hit.value)), count=hit.count) for hit in answer.hits
        ]
        return wire.FacetResponse(hits=hits)

    @staticmethod
    def Query(server: Server, request: Any) -> Any:  # noqa: N802
        found = server.named(request.collection_name).shard.query(
            edge.QueryRequest(
                limit=request.limit,
                query=edge.Query.Nearest(list(request.query.nearest.dense.data)),
                filter=_filter(request.filter) if request.HasField("filter") else None,
                with_payload=_payload(request.with_payload),
                with_vector=False,
            )
        )
        points = [
            wire.ScoredPoint(
                id=wire.PointId(uuid=str(point.id)), payload=payload_to_grpc(point.payload or {}), score=point.score
            )
            for point in found
        ]
        return wire.QueryResponse(result=points)


def _done() -> Any:
    return wire.PointsOperationResponse(result=wire.UpdateResult(status=STATUS))


def _retrieved(record: edge.Record) -> Any:
    point = wire.RetrievedPoint(id=wire.PointId(uuid=str(record.id)), payload=payload_to_grpc(record.payload or {}))
    if record.vector is not None:
        point.vectors.vector.dense.data.extend(record.vector)
    return point


def _payload(selector: Any) -> Any:
    return list(selector.include.fields) if selector.HasField("include") else selector.enable


def _filter(given: Any) -> edge.Filter:
    return edge.Filter(
        must=[_condition(one) for one in given.must],
        should=[_condition(one) for one in given.should],
        must_not=[_condition(one) for one in given.must_not],
    )


def _condition(given: Any) -> Any:
    match given.WhichOneof("condition_one_of"):
        case "filter":
            return _filter(given.filter)
        case "has_id":
            return edge.HasIdCondition({one.uuid for one in given.has_id.has_id})
        case "is_empty":
            return edge.IsEmptyCondition(given.is_empty.key)
        case "field":
            return _field_condition(given.field)
    raise Refused(grpc.StatusCode.UNIMPLEMENTED, f"{given}")


def _field_condition(given: Any) -> edge.FieldCondition:
    def bounds(container: Any, convert: Callable[[Any], Any]) -> dict[str, Any]:
        names = [name for name in ("gte", "gt", "lte", "lt") if container.HasField(name)]
        return {name: convert(getattr(container, name)) for name in names}

    if given.HasField("range"):
        return edge.FieldCondition(given.key, range=edge.RangeFloat(**bounds(given.range, float)))
    if given.HasField("datetime_range"):
        moments = bounds(given.datetime_range, lambda moment: moment.ToJsonString())
        return edge.FieldCondition(given.key, range=edge.RangeDateTime(**moments))
    match given.match.WhichOneof("match_value"):
        case "keyword":
            match: Any = edge.MatchValue(given.match.keyword)
        case "integer":
            match = edge.MatchValue(given.match.integer)
        case "keywords":
            match = edge.MatchAny(list(given.match.keywords.strings))
        case "integers":
            match = edge.MatchAny(list(given.match.integers.integers))
        case "prefix":
            match = edge.MatchPrefix(given.match.prefix)
        case other:
            raise Refused(grpc.StatusCode.UNIMPLEMENTED, f"{other}")
    return edge.FieldCondition(given.key, match=match)
