"""Loads a profile: finds its file, applies overrides, and explains errors in it."""

from __future__ import annotations

import copy
import functools
import json
import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.default_profile import default_profile
from model_serve_flow.flow.profile import OPTIONAL_SECTIONS, SECRET, FlowConfig, _is_beside
from model_serve_flow.system.checkout import MODULES, checkout
from model_serve_flow.system.settings import settings
from model_serve_flow.system.variables import PROFILE_PREFIX

# most values of a profile; a YAML alias can expand to any number of values, even without end
MOST_VALUES = 10_000
LARGEST = 1e15  # largest number in a profile


def profiles_folder() -> Path:
    """Returns the folder of the profile files.

    It is `MODEL_SERVE_FLOW_PROFILES`, or the folder beside the notebooks of this checkout.
    """
    return settings().profiles or checkout() / MODULES / "profiles"


def load_profile(profile: str | None = None, overrides: dict[str, Any] | None = None) -> FlowConfig:
    """Reads a profile and applies overrides: first of the environment, then `overrides`.

    The value null takes an optional section away, as in ``--set accuracy=null``.

    Args:
        profile: name of a file in the profiles folder without `.yaml`, or the path of a YAML file;
            None: the default of this machine.
        overrides: dotted key -> value, for instance ``{"performance.seconds": 10}``.

    Raises:
        FlowError: the profile is unknown, or a key, type or value is wrong; names the key and what
            is allowed.
    """
    profile = profile or default_profile()
    document = _read(_find(profile))
    for key, value in {**environment_overrides(), **(overrides or {})}.items():
        _set(document, key, copy.deepcopy(value))
    for section in OPTIONAL_SECTIONS:
        if section in document and document[section] is None:  # takes away what `extends` brought
            del document[section]
    _require_plain(profile, document)
    try:
        # Strict: "5" is no number, and true is not 1. As JSON, because a list may then become a
        # tuple.
        return FlowConfig.model_validate_json(json.dumps(document), strict=True)
    except ValidationError as error:
        raise FlowError(f"Profile {profile!r} is not valid:\n{_explain(error)}") from error


def parse_set(assignments: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """Parses `["performance.seconds=10"]` to `{"performance.seconds": 10}`; values are YAML.

    Raises:
        FlowError: an assignment is not of the form key=value, or its value is not YAML.
    """
    overrides = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise FlowError(
                f"--set {assignment!r} is not of the form key=value.",
                "Example: performance.seconds=10",
            )
        overrides[key.strip()] = _parse(value, f"The value of --set {assignment!r}")
    return overrides


def environment_overrides() -> dict[str, Any]:
    """Reads overrides from variables such as `MODEL_SERVE_FLOW__PERFORMANCE__SECONDS=10`."""
    return {
        name.removeprefix(PROFILE_PREFIX).lower().replace("__", "."): _parse(
            value, f"The variable {name}"
        )
        for name, value in sorted(os.environ.items())
        if name.startswith(PROFILE_PREFIX)
    }


def _find(profile: str) -> Path:
    path = (
        Path(profile)
        if profile.endswith((".yaml", ".yml"))
        else profiles_folder() / f"{profile}.yaml"
    )
    if not os.path.isfile(path):  # noqa: PTH113 (Path.is_file fails where a name is too long)
        known = sorted(file.stem for file in profiles_folder().glob("*.yaml"))
        raise FlowError(
            f"Unknown profile {profile!r}.",
            f"Profiles: {', '.join(known) or 'none'}, or a path to a YAML file.",
        )
    return path


def _read(path: Path, readers: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Reads a profile and merges it over the profile that it `extends`.

    Args:
        path: the YAML file.
        readers: the profiles that extend this profile, to detect a circle.
    """
    if path.resolve() in readers:
        raise FlowError(
            f"{path} extends itself.", "Remove 'extends' from one of the profiles in the circle."
        )
    try:
        # some editors write a byte order mark at the beginning
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FlowError(
            f"{path} cannot be read: {error}", "A profile is a file of UTF-8 text."
        ) from error
    document = _parse(text, str(path))
    if not isinstance(document, dict):
        raise FlowError(f"{path} must hold a mapping of keys, got {type(document).__name__}.")
    _make_absolute(document, path.resolve().parent)
    parent = document.pop("extends", None)
    if parent is None:
        return document
    try:
        beside = path.resolve().parent / str(parent)
        found = beside if os.path.isfile(beside) else _find(str(parent))  # noqa: PTH113 (as in _find)
    except FlowError as error:
        raise FlowError(f"{path}: extends: {error.problem}", error.hint) from error
    return _merge(_read(found, (*readers, path.resolve())), document)


def _make_absolute(document: dict[str, Any], folder: Path) -> None:
    """Makes relative model folders absolute; they are relative to the profile's folder.

    A value such as org/model is a folder if that folder exists, else the name of a repository.
    """
    candidates = document.get("candidates")
    sections = [document.get("model"), *(candidates if isinstance(candidates, list) else [])]
    for section in sections:
        if not isinstance(section, dict):
            continue
        source = section.get("source")
        if isinstance(source, str) and _is_beside(source, folder):
            section["source"] = str((folder / source).resolve())


def _parse(text: str, what: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise FlowError(
            f"{what} is not readable as YAML: {error}", "Put quotes around a text."
        ) from error
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        # raised by PyYAML's own converters
        raise FlowError(
            f"{what} is not readable as YAML: {error!r:.200}", "Put quotes around a text."
        ) from error


def _require_plain(profile: str, document: dict[str, Any]) -> None:
    """Refuses YAML that no profile needs: other types, NaN, endless or huge structures."""
    waiting: list[tuple[str, Any]] = [("", document)]
    values = 0
    while waiting:
        place, node = waiting.pop()
        values += 1
        if (
            problem := _not_plain(node)
            or (values > MOST_VALUES and "more values than any profile has")
            or ""
        ):
            raise FlowError(
                f"Profile {profile!r} is not valid:\n  {place.lstrip('.')[:200] or '(profile)'}: "
                f"{problem}"
            )
        if isinstance(node, dict):
            waiting += [(f"{place}.{key}", value) for key, value in node.items()]
        elif isinstance(node, list | tuple):
            waiting += [(f"{place}.{number}", value) for number, value in enumerate(node)]


def _not_plain(value: Any) -> str:
    if isinstance(value, dict):
        return next(
            (f"the key {key!r:.80} is not text" for key in value if not isinstance(key, str)), ""
        )
    if isinstance(value, str):
        return (
            ""
            if value.isascii() or value.encode(errors="replace").decode() == value
            else "not Unicode text"
        )
    if isinstance(value, int | float):
        return (
            "" if abs(value) <= LARGEST else f"{value!r:.40} is no number that a profile can have"
        )
    return (
        ""
        if value is None or isinstance(value, list | tuple)
        else f"{type(value).__name__}: put quotes around it"
    )


# OmegaConf would merge and set keys in fewer lines. But it rejects a text with "${", ignores the
# text "???", and turns a number into a section for a wrong override.
def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _merge(below[key], value) if both else value
    return merged


def _set(document: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key; a number in the key is a place in a list.

    Unknown keys are found later, by validation.
    """
    *parents, last = key.split(".")
    node: Any = document
    for part in parents:
        listed = isinstance(node, list) and part.isdigit() and int(part) < len(node)
        node = node[int(part)] if listed else _child(node, part, key)
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise FlowError(f"Override {key!r} leads into a value that has no keys.")


def _child(node: Any, part: str, key: str) -> Any:
    if not isinstance(node, dict):
        raise FlowError(f"Override {key!r}: {part!r} is not inside a section.")
    if node.get(part) is None:
        node[part] = {}
    return node[part]


def _explain(error: ValidationError) -> str:
    """Writes one line per problem: the key, what is allowed, and the given value."""
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "(profile)"
        if problem["type"] == "extra_forbidden":
            lines.append(
                f"  {key}: unknown key; allowed here: "
                f"{', '.join(_allowed_keys(problem['loc'][:-1]))}"
            )
        else:
            given = (
                "" if problem["type"] in ("missing", SECRET) else f" (got {problem['input']!r:.80})"
            )
            lines.append(f"  {key}: {problem['msg']}{given}")
    return "\n".join(lines)


def _allowed_keys(location: tuple[Any, ...]) -> list[str]:
    """Lists the field names of the section at `location`, from the JSON schema."""
    schema = _schema()
    node: dict[str, Any] = schema
    for part in location:
        node = node["items"] if isinstance(part, int) else node["properties"][part]
        options = [node, *node.get("anyOf", [])]
        reference = next((option["$ref"] for option in options if "$ref" in option), None)
        if reference:
            node = schema["$defs"][reference.rsplit("/", 1)[-1]]
    return sorted(node.get("properties", {}))


@functools.cache
def _schema() -> dict[str, Any]:
    return FlowConfig.model_json_schema()
