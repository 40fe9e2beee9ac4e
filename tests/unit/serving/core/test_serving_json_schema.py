import json
import re

import pytest

from serving_from_scratch.core.errors import InvalidRequest
from serving_from_scratch.core.json_schema import check_schema

STRING = {"type": "string"}
PERSON = {
    "$defs": {"name": {"type": "string", "maxLength": 20}},
    "type": "object",
    "title": "Person",
    "properties": {
        "name": {"$ref": "#/$defs/name"},
        "friends": {"type": "array", "items": {"$ref": "#/$defs/name"}, "maxItems": 3},
        "age": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]},
        "kind": {"enum": ["a", "b", 3]},
    },
    "required": ["name"],
    "additionalProperties": False,
}


def objects(depth):
    return {"type": "object", "properties": {"a": objects(depth - 1)}} if depth else STRING


def test_a_schema_as_clients_send_it_is_accepted():
    check_schema(PERSON, "response_format")


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}, "recursive"),
        ({"type": "array", "items": {"$ref": "#"}}, "recursive"),
        ({"$ref": "#/$defs/b"}, "does not define"),
        ({"$ref": "http://x/y"}, "does not define"),
        ({"type": "object", "properties": {str(n): STRING for n in range(200)}}, "too large"),
        (objects(40), "too large"),
        ({"type": "array", "items": STRING, "maxItems": 10**9}, "maxItems 1000000000"),
        ({"type": "string", "maxLength": float("inf")}, "maxLength inf"),
        ({"type": "number", "minimum": float("nan")}, "minimum nan"),
        ({"type": "number", "maximum": 10**400}, "maximum 1000"),
        ({"enum": []}, "enum"),
        ({"enum": ["x"] * 1000}, "enum"),
        ({"type": "surprise"}, "type surprise"),
        ({"type": "string", "pattern": "a+"}, "'pattern', which this server cannot enforce"),
        ({"not": STRING}, "'not'"),
        ({"type": "object", "additionalProperties": STRING}, "additionalProperties"),
        ({"type": "object", "properties": {}, "required": ["a"]}, "requires 'a'"),
        ({"type": "object", "properties": {"a": 5}}, "5"),
        ({"anyOf": 5}, "anyOf"),
        ({"properties": []}, "properties"),
    ],
)
def test_what_no_grammar_can_hold_is_refused_with_its_name(schema, told):
    with pytest.raises(InvalidRequest, match=re.escape(told)) as refused:
        check_schema(schema, "tools")
    assert refused.value.field == "tools"


def test_definitions_that_double_at_each_level_are_refused_soon():
    levels = {
        f"d{n}": {
            "type": "object",
            "properties": {key: {"$ref": f"#/$defs/d{n + 1}"} for key in "ab"},
        }
        for n in range(30)
    }
    with pytest.raises(InvalidRequest, match="too large"):
        check_schema({"$defs": {**levels, "d30": STRING}, "$ref": "#/$defs/d0"}, "tools")


def test_the_check_changes_nothing():
    before = json.dumps(PERSON)
    check_schema(PERSON, "tools")
    assert json.dumps(PERSON) == before
