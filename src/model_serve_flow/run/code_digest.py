"""Finds which of our own source files a step uses, by following imports from its notebook."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = next(
    path for path in Path(__file__).resolve().parents if path.name == __name__.partition(".")[0]
)
_NAMED = re.compile(rf"{PACKAGE.name}(?:\.\w+)+")


def code_digest(folder: Path, notebook: str) -> str:
    """Computes the SHA-256 over every file of the library that a step uses, directly or not.

    Args:
        folder: of the step, with its notebook and `utils.py`.
        notebook: the name of the notebook.
    """
    files = sorted(files_used(folder, notebook))
    lines = [
        f"{path.relative_to(PACKAGE)} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in files
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def files_used(folder: Path, notebook: str) -> set[Path]:
    """Lists the files that `code_digest` covers."""
    cells = json.loads((folder / notebook).read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    utils = (folder / "utils.py").read_text(encoding="utf-8")
    waiting = [*_uses(code, PACKAGE), *_uses(utils, PACKAGE)]
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _used_by(path)
    return found


@functools.cache
def _used_by(path: Path) -> list[Path]:
    return (
        list(_uses(path.read_text(encoding="utf-8"), path.parent)) if path.suffix == ".py" else []
    )


def _uses(code: str, folder: Path) -> Iterator[Path]:
    """Yields the files of the library that Python code in `folder` names.

    The code names them in an import, in a text that starts a module, or as a folder of data beside
    it.
    """
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from _files(*(alias.name for alias in node.names))
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from _files(node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from _files(*_NAMED.findall(node.value))
            if node.value.isidentifier():
                yield from _data(folder / node.value)


def _files(*modules: str) -> Iterator[Path]:
    for module in modules:
        package, *parts = module.split(".")
        if package == PACKAGE.name:
            place = PACKAGE.joinpath(*parts)
            yield from (
                path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()
            )
            yield from _data(place)


def _data(folder: Path) -> Iterator[Path]:
    """Yields the files beside the code in a folder of the library, such as `templates`."""
    if folder != PACKAGE and folder.is_dir():
        yield from (
            path
            for path in folder.iterdir()
            if path.is_file() and path.suffix not in (".py", ".pyc")
        )
