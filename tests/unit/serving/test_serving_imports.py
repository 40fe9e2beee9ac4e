"""Who may import what: read from the source, also the imports that run only sometimes."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[3] / "src"
PACKAGES = ("serving_from_scratch", "model_serve_flow")
TORCH = {"torch", "transformers", "safetensors", "numba", "vllm", "xgrammar"}
# Each room of the engine, and the rooms below it.
BELOW = {
    "core": set(),
    "model": {"core"},
    "engine": {"core", "model"},
    "api": {"core", "engine"},
    "predictors": set(),
    "gateway": {"core", "api", "predictors"},
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            yield node.module


def files(package):
    found = sorted((SOURCE / package).rglob("*.py"))
    assert len(found) > 10
    return found


def of_room(room):
    folder = SOURCE / "serving_from_scratch" / room
    return [(path, name) for path in folder.rglob("*.py") for name in imports(path)]


@pytest.mark.parametrize(("package", "other"), [PACKAGES, PACKAGES[::-1]])
def test_engine_and_flow_import_nothing_of_each_other(package, other):
    met = [path for path in files(package) for name in imports(path) if name.split(".")[0] == other]
    assert met == []


def test_torch_is_imported_in_the_model_only():
    room = SOURCE / "serving_from_scratch" / "model"
    every = [(path, name) for path in files("serving_from_scratch") for name in imports(path)]
    met = {path for path, name in every if name.split(".")[0] in TORCH}
    assert met and all(room in path.parents for path in met)


@pytest.mark.parametrize("room", BELOW)
def test_a_room_imports_only_rooms_below_it(room):
    for path, name in of_room(room):
        parts = name.split(".")
        if parts[0] == "serving_from_scratch":
            assert parts[1] in BELOW[room] | {room}, f"{path} imports {name}"


def test_the_core_needs_no_library_and_starts_no_process():
    foreign = {"fastapi", "multiprocessing", "numpy", "asyncio", "subprocess", "socket"}
    assert not {name.split(".")[0] for _, name in of_room("core")} & (foreign | TORCH)


def test_strategies_are_named_in_one_file():
    names = ("OneByOne", "Static", "Dynamic", "Continuous", "ChunkedPrefill")
    for path in files("serving_from_scratch"):
        if path.name != "batching.py":
            named = [name for name in names if f"{name}(" in path.read_text()]
            assert not named, f"{path} names {named}"
