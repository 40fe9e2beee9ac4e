"""Writes files completely or not at all, and reads them; errors name the file and the field."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from model_serve_flow.errors import RERUN, FlowError
from model_serve_flow.system.places import home_variables, own_places
from model_serve_flow.system.settings import settings

Result = TypeVar("Result", bound=BaseModel)

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of disk space is used up",
    errno.EFBIG: "a file would be larger than this file system, or 'ulimit -f', allows",
}
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)

Row = dict[str, Any]


@contextlib.contextmanager
def writing(path: Path, what: str = "file") -> Iterator[None]:
    """Explains to the user when the block cannot write `path`: disk full, or no permission.

    Use it around the block that deletes half-written files, so that the reported free space is
    right.

    Args:
        path: the file or folder that the block writes.
        what: what `path` is, for the message.

    Raises:
        FlowError: names the path, the reason and the free space.
    """
    try:
        yield
    except FlowError:
        raise
    except Exception as error:
        number = _system_error(error)
        if number in _FULL:
            raise FlowError(*_full(path, what, number)) from error
        if number in _REFUSED and _concerns(error, path):
            raise FlowError(
                f"The {what} {path} cannot be written: {os.strerror(number)}.",
                "What was there before is as it was. Make it, and the folder around it, writable "
                "for this user (owner, permissions, a disk that became read-only), or choose "
                "another with --artifacts or MODEL_SERVE_FLOW_ARTIFACTS.",
            ) from error
        raise


def _full(path: Path, what: str, number: int) -> tuple[str, str]:
    place = next(
        folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists()
    )
    temporary = Path(tempfile.gettempdir())
    free, other = (shutil.disk_usage(folder).free / (1 << 20) for folder in (place, temporary))
    return (
        (
            f"The {what} {path} could not be written: {_FULL[number]} ({free:,.0f} MiB are free "
            f"there, {other:,.0f} MiB for temporary files in {temporary})."
        ),
        (
            "What was there before is as it was. Free space, or put the artifacts on a larger disk "
            "(--artifacts, or MODEL_SERVE_FLOW_ARTIFACTS), and run again: finished work is kept. "
            "'model-serve-flow doctor' shows the need."
        ),
    )


def _system_error(error: Exception) -> int | None:
    """Returns the number of the system's error; safetensors gives it only as text."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def _concerns(error: Exception, path: Path) -> bool:
    """Checks whether the error concerns `path`, and not a source file that cannot be read."""
    name = getattr(error, "filename", None)
    if not isinstance(name, str | bytes):
        return True  # the error names no file: it wrote to an open file
    place = Path(os.fsdecode(name)).absolute()
    return place.is_relative_to(path.absolute().parent) or path.absolute().is_relative_to(place)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; it replaces `path` only if the block succeeds.

    Raises:
        FlowError: the disk is full or cannot be written. The new file is deleted, and the old file
            stays.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def swap_folder(partial: Path, destination: Path) -> None:
    """Moves a finished folder to its destination, then deletes the old folder.

    Raises:
        FlowError: the disk is full or cannot be written. The old folder stays.
    """
    old = destination.with_name(f".{destination.name}.old")
    with writing(destination, "folder"):
        for file in partial.iterdir():
            if file.is_file() and not file.is_symlink():
                # safetensors writes files with mode 0600, but a server of another user must read
                # them
                file.chmod(0o644)
        shutil.rmtree(old, ignore_errors=True)
        if destination.exists():
            destination.rename(old)
        try:
            partial.rename(destination)
        except OSError:
            if old.exists():
                old.rename(destination)
            raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def replacing_folder(
    destination: Path, what: str = "folder", partial: Path | None = None, *, resumable: bool = False
) -> Iterator[Path]:
    """Yields a hidden sibling folder, which replaces `destination` only if the block succeeds.

    Args:
        destination: the folder to replace.
        what: what the folder is, for messages.
        partial: the sibling folder, if it needs a name of its own.
        resumable: keeps the sibling after a failure, and the next try continues with its files.

    Raises:
        FlowError: the disk is full or cannot be written. The old folder stays, and the sibling is
            deleted unless it is resumable.
    """
    partial = partial or partial_folder(destination)
    with writing(destination, what):
        if not resumable:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            swap_folder(partial, destination)
        finally:
            if not resumable:
                shutil.rmtree(partial, ignore_errors=True)


def partial_folder(destination: Path) -> Path:
    """Returns the hidden sibling folder in which `replacing_folder` prepares `destination`."""
    return destination.with_name(f".{destination.name}.partial")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock for `path` during the block; other processes wait.

    The lock is the separate file `.<stem>.lock` beside the path, because the path may be replaced
    meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.stem}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_text(path: Path, text: str) -> Path:
    """Writes UTF-8 text atomically and returns the path."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, value: BaseModel | dict[str, Any] | list[Any]) -> Path:
    """Writes a result or plain value as JSON atomically and returns the path.

    Raises:
        ValueError: the value contains NaN or infinity.
    """
    document = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return write_text(
        path, json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    )


def read_json(path: Path, hint: str = RERUN, *, finite: bool = True) -> Any:
    """Reads a JSON file.

    Args:
        path: the file.
        hint: what the user should do if the file is not JSON.
        finite: refuses NaN and infinity, which JSON does not have. With False they are accepted, as
            in Python and transformers, because published models have them in their settings.

    Raises:
        FlowError: the file is missing, cannot be read, or is not JSON.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FlowError(f"{path} is missing.", RERUN) from error
    except OSError as error:
        raise FlowError(
            f"{path} cannot be read: {error.strerror}.", "Is it a file, and yours to read?"
        ) from error
    except (ValueError, RecursionError) as error:
        # includes bytes that are not text, and integers of thousands of digits
        raise FlowError(f"{path} is not valid JSON: {error}", hint) from error
    for place, value in leaves(document) if finite else ():
        if isinstance(value, float) and not math.isfinite(value):
            raise FlowError(f"{path} is not valid JSON: {place or 'it'} is {value}.", hint)
    return document


def leaves(document: Any) -> Iterator[tuple[str, Any]]:
    """Yields every value of nested lists and mappings with its dotted place, at any depth."""
    waiting = [("", document)]
    while waiting:
        place, node = waiting.pop()
        if not isinstance(node, dict | list):
            yield place.removeprefix("."), node
            continue
        entries = node.items() if isinstance(node, dict) else enumerate(node)
        waiting += [(f"{place}.{key}", value) for key, value in entries]


def read_result(path: Path, kind: type[Result]) -> Result:
    """Reads a typed result without converting values.

    Raises:
        FlowError: the file is not such a result; names the file and the field.
    """
    return read_document(
        path, kind, f"a valid {kind.__name__}", "It was edited, or written by another version"
    )


def read_document(path: Path, kind: type[Result], what: str, reason: str) -> Result:
    """Reads the JSON of any tool into a typed document.

    Args:
        path: the file.
        kind: the type of the document.
        what: what the file should be, for the message.
        reason: why it may not be that, for the message.

    Raises:
        FlowError: names the file and the wrong field.
    """
    try:
        # Strict: "5" is no number, and true is not 1. As JSON, because a list may then become a
        # tuple.
        return kind.model_validate_json(json.dumps(read_json(path)), strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in problem["loc"]) or "(whole file)"
        raise FlowError(
            f"{path} is not {what}: {field}: {problem['msg']}.", f"{reason}. {RERUN}"
        ) from error
    except RecursionError as error:
        raise FlowError(
            f"{path} is not {what}: it is nested too deeply.", f"{reason}. {RERUN}"
        ) from error


def now() -> str:
    """Returns the time in UTC as every file writes it: '2026-01-05T09:00:00Z'."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def read_rows(path: Path) -> list[Row]:
    """Reads the rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, rows: Iterable[Row]) -> Path:
    """Writes rows as JSON Lines atomically and returns the path."""
    return write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def cache_folder() -> Path:
    """Returns `MODEL_SERVE_FLOW_CACHE`, or `~/.cache/model-serve-flow`.

    If the home cannot be written, the home that `home_variables` finds is used instead.

    Raises:
        FlowError: no home can be written.
    """
    if named := settings().cache:
        return named
    home = home_variables(os.environ, own_places()).get("HOME") or Path.home()
    return Path(home) / ".cache" / "model-serve-flow"
