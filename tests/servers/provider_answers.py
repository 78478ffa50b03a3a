"""What the provider of the tests answers: made from the content of the question alone, so that it is the same again."""

import base64
import hashlib
import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np

#: Tokens that the provider counts for a picture, whatever its size.
IMAGE_TOKENS = 300
#: An input with this text in it is refused, as providers refuse what they cannot embed or will not judge.
REFUSED_TEXT = "REFUSED BY THE PROVIDER"


def digest_of(content: object) -> str:
    """Return a name for the content of a request, by which repeated calls are counted."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def count_tokens(content: object) -> int:
    """Return the tokens of messages or inputs: four characters each, pictures all alike."""
    if isinstance(content, str):
        return IMAGE_TOKENS if content.startswith("data:image/") else max(1, len(content) // 4)
    if isinstance(content, Mapping):
        if "image" in content:
            return IMAGE_TOKENS
        return sum(count_tokens(value) for name, value in content.items() if name not in {"role", "type"})
    if isinstance(content, list):
        return sum(map(count_tokens, content))
    return 0


def chat_content(request: Mapping[str, Any]) -> str:
    """Return a JSON object that the schema of the request allows."""
    drawn = random.Random(digest_of(request["messages"][:2]))
    return json.dumps(_example(schema_of(request), drawn, {}))


def schema_of(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema that is asked for: that of `response_format`, else the last one in the system message."""
    response_format = request.get("response_format") or {}
    if response_format.get("type") == "json_schema":
        schema: Mapping[str, Any] = response_format["json_schema"]["schema"]
        return schema
    for line in reversed(str(request["messages"][0]["content"]).splitlines()):
        if line.startswith("{") and '"properties"' in line:
            found: Mapping[str, Any] = json.loads(line)
            return found
    return {"type": "object", "properties": {"answer": {"type": "string"}}}


def vector_of(model: str, given: object, dimension: int) -> list[float]:
    """Return a vector that model and input alone decide, not of unit length."""
    seed = int(digest_of([model, given]), 16)
    return [round(float(value), 6) for value in np.random.default_rng(seed).normal(size=dimension)]


def packed(vector: list[float]) -> str:
    """Return a vector as `encoding_format: base64` has it."""
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()


def _example(schema: Mapping[str, Any], drawn: random.Random, known: Mapping[str, Any]) -> Any:
    """Return a value of the schema; `known` has the definitions that it may refer to."""
    known = {**known, **schema.get("$defs", {})}
    if "$ref" in schema:
        return _example(known[schema["$ref"].rpartition("/")[2]], drawn, known)
    if "enum" in schema:
        return drawn.choice(schema["enum"])
    if "const" in schema:
        return schema["const"]
    if "anyOf" in schema:
        return _example(drawn.choice(schema["anyOf"]), drawn, known)
    match schema.get("type"):
        case "object":
            return {name: _example(part, drawn, known) for name, part in schema.get("properties", {}).items()}
        case "array":
            return [_example(schema.get("items", {}), drawn, known) for _ in range(drawn.randint(0, 3))]
        case "number":
            return round(drawn.uniform(schema.get("minimum", 0), schema.get("maximum", 1)), 3)
        case "integer":
            return drawn.randint(int(schema.get("minimum", 0)), int(schema.get("maximum", 100)))
        case "boolean":
            return drawn.random() < 0.5
        case "null":
            return None
    return f"text {drawn.randrange(10**6)}"
