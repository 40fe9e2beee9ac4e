"""Computes SHA-256 digests of files and folders, to detect changes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

# path -> (sizes, times and inodes of its files, their digest)
_known_digests: dict[Path, tuple[Any, str]] = {}


def file_digest(path: Path) -> str:
    """Computes the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digests(folder: Path) -> dict[str, str]:
    """Computes path in the folder -> SHA-256; ignores hidden files and README.md."""
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in _content(folder)}


def combined_digest(files: dict[str, str]) -> str:
    """Computes the SHA-256 over names and digests from `content_digests`, in the given order."""
    return hashlib.sha256(
        "\n".join(f"{name} {digest}" for name, digest in files.items()).encode()
    ).hexdigest()


def folder_digest(folder: Path) -> str:
    """Computes the SHA-256 over the sorted names and digests of a folder's files.

    Hidden files and README.md are ignored.
    """
    return combined_digest(content_digests(folder))


def digest_once(path: Path) -> str | None:
    """Returns `file_digest` or `folder_digest`, and computes it again only if a file changed.

    Weights are many gigabytes, and their digest is needed often. A file counts as changed if its
    size, times or inode changed. A safety decision (may this be deployed?) must read the disk with
    `content_digests` instead.

    Args:
        path: a file or a folder.

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
    # The time of the last status change is included: unlike the others, it cannot be set back.
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _content(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.name != "README.md"
        and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )
