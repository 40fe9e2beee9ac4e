"""Checks JSON schemas: what the grammar cannot hold an answer to is refused, never ignored."""

from collections.abc import Iterator
from typing import Any

from serving_from_scratch.core.errors import InvalidRequest

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
REMARKS = ("title", "description", "default", "examples", "$schema", "$id", "$comment")
MAX_SCHEMAS = 100  # 1,000 optional properties take the grammar compiler two minutes
MAX_COUNT = 256  # of items, characters and enum values
MAX_DEPTH = 16


def check_schema(schema: Any, field: str) -> None:
    """Checks that a grammar can hold answers to a schema.

    Args:
        field: of the request, for the message.

    Raises:
        InvalidRequest: names the keyword or the limit.
    """
    SchemaCheck(schema, field).check(schema, ())


class SchemaCheck:
    """Walks through a schema and the definitions that it refers to."""

    def __init__(self, root: Any, field: str) -> None:
        self.root, self.field, self.seen = root, field, 0

    def check(self, schema: Any, path: tuple[str, ...]) -> None:
        """Checks one schema, and those inside it.

        Args:
            path: the references that led here.
        """
        self.seen += 1
        if not isinstance(schema, dict):
            raise self._wrong(f"has {str(schema)[:40]!r} where an object must be.")
        if self.seen > MAX_SCHEMAS or len(path) > MAX_DEPTH:
            limit = f"{MAX_SCHEMAS} schemas, {MAX_DEPTH} levels"
            raise self._wrong(f"is too large; the limit is {limit}, references included.")
        for keyword, value in schema.items():
            self._check_keyword(keyword, value)
        missing = set(schema.get("required", ())) - set(schema.get("properties", ()))
        if missing:
            raise self._wrong(f"requires {min(missing)!r}, which is no property.")
        if "$ref" in schema:
            self._follow(schema["$ref"], path)
        for inner in children(schema):
            self.check(inner, (*path, ""))

    def _check_keyword(self, keyword: str, value: Any) -> None:
        kinds = [value] if isinstance(value, str) else value
        number = isinstance(value, int | float) and not isinstance(value, bool)
        count = isinstance(value, int) and not isinstance(value, bool)
        fine = {
            "type": isinstance(kinds, list) and kinds and all(kind in TYPES for kind in kinds),
            "properties": isinstance(value, dict),
            "required": isinstance(value, list) and all(isinstance(v, str) for v in value),
            "additionalProperties": value is False,
            "enum": isinstance(value, list) and 0 < len(value) <= MAX_COUNT,
            "anyOf": isinstance(value, list) and value,
            "$ref": isinstance(value, str),
            **dict.fromkeys(("$defs", "definitions"), isinstance(value, dict)),
            **dict.fromkeys(("items", "const", *REMARKS), True),
            **dict.fromkeys(BOUNDS, number and abs(value) < 2**53),
            **dict.fromkeys(COUNTS, count and 0 <= value <= MAX_COUNT),
        }
        if keyword not in fine:
            raise self._wrong(f"has {keyword!r}, which this server cannot enforce.")
        if not fine[keyword]:
            raise self._wrong(f"has {keyword} {str(value)[:40]}, which this server cannot use.")

    def _follow(self, name: str, path: tuple[str, ...]) -> None:
        """Checks a definition; one that leads to itself would have no end."""
        _, *keys = name.split("/")
        target = self.root
        for key in keys:
            target = target.get(key) if isinstance(target, dict) else None
        if target is None or not name.startswith("#"):
            raise self._wrong(f"refers to {name[:40]!r}, which it does not define.")
        if name in path or target is self.root:
            raise self._wrong(f"is recursive: {name[:40]!r} leads to itself.")
        self.check(target, (*path, name))

    def _wrong(self, problem: str) -> InvalidRequest:
        return InvalidRequest(f"The JSON schema {problem}", self.field)


def children(schema: dict[str, Any]) -> Iterator[Any]:
    """Lists the schemas inside a schema; definitions count where they are referred to."""
    yield from schema.get("properties", {}).values()
    yield from schema.get("anyOf", ())
    if "items" in schema:
        yield schema["items"]
