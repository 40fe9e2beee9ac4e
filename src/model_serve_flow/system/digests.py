"""Says whether files changed: SHA-256 of a file, of a folder,
and of a folder that was asked for before.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

# path -> what its files looked like, and the digest they had
_known_digests: dict[Path, tuple[Any, str]] = {}


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a folder, by its path inside it;
    hidden files and README.md do not count.
    """
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in _content(folder)}


def combined_digest(files: dict[str, str]) -> str:
    """SHA-256 over names and digests, in the order given, as `content_digests` gives them."""
    return hashlib.sha256(
        "\n".join(f"{name} {digest}" for name, digest in files.items()).encode()
    ).hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 over the sorted names and SHA-256 of the files of a folder;
    hidden files and README.md do not count.
    """
    return combined_digest(content_digests(folder))


def digest_once(path: Path) -> str | None:
    """`file_digest` or `folder_digest`, computed once per process for as long as no file looks
    changed.

    Weights are many gigabytes and are asked for again and again. A file looks changed when its
    size, times or inode do. What must not rest on that (may this be deployed?) hashes from the disk
    with `content_digests`.

    Returns:
        None for a missing file, and for a folder without files that count.
    """
    path = path.absolute()
    files = _content(path) if path.is_dir() else [path] if path.is_file() else []
    if not files:
        return None
    state = [(file, _look(file.stat())) for file in files]
    known, digest = _known_digests.get(path, (None, ""))
    if known != state:
        digest = folder_digest(path) if path.is_dir() else file_digest(path)
        _known_digests[path] = (state, digest)
    return digest


def _look(status: os.stat_result) -> tuple[int, ...]:
    # The time of the last change of status too: unlike the others it cannot be set back after an
    # edit.
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _content(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.name != "README.md"
        and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )
