"""Keeps lm-eval's answers of an interrupted measurement, so that they are not asked again."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import sqlite3
from collections.abc import Iterator
from numbers import Real
from pathlib import Path
from typing import Any

from model_serve_flow.flow.results.measured import Model, protocol_hash
from model_serve_flow.flow.workspace import Workspace

DIGEST_LENGTH = 16


@contextlib.contextmanager
def request_cache(
    workspace: Workspace,
    model: Model,
    protocol: dict[str, Any],
    measurement: str = "",
    *,
    keep: bool = False,
) -> Iterator[Path | None]:
    """Yields the path for lm-eval's `use_cache`; deletes the answers when the block succeeds.

    lm-eval's keys do not name the model. So each model, protocol and measurement has its own cache:
    `cache/lm-eval/<model><measurement>-<digest of model and protocol>`. The cached values are
    pickles, which may run code when they are read. So the folder must be readable and writable for
    its owner only.

    Args:
        workspace: the folders of the profile.
        model: the measured model.
        protocol: the protocol of the measurement.
        measurement: distinguishes two measurements of one model; "_again" for the second.
        keep: keeps the answers after a success.

    Yields:
        The path, or None if the folder cannot be made private. Then no answer is kept.
    """
    folder = cache_folder(workspace)
    name = f"{model.name}{measurement}"
    if not _is_private(folder):
        print(
            f"note: others may write to {folder}; lm-eval's answers are not kept until "
            "accuracy.json is written"
        )
        yield None
        return
    path = folder / f"{name}-{_digest(model, protocol)}"
    _drop_if_damaged(path.with_name(f"{path.name}_rank0.db"))  # lm-eval adds this suffix
    yield path
    if not keep:
        forget_answers(workspace, name)


def forget_answers(workspace: Workspace, measurement: str) -> None:
    """Deletes the cached answers of a measurement, of every protocol.

    Args:
        workspace: the folders of the profile.
        measurement: 'base', 'base_again' or a candidate's name.
    """
    pattern = f"{glob.escape(measurement)}-{'[0-9a-f]' * DIGEST_LENGTH}_rank*"
    for path in cache_folder(workspace).glob(pattern):
        path.unlink(missing_ok=True)


def cache_folder(workspace: Workspace) -> Path:
    """Returns the folder of lm-eval's request caches."""
    return workspace.root / "cache" / "lm-eval"


def _digest(model: Model, protocol: dict[str, Any]) -> str:
    return hashlib.sha256(f"{model.sha256} {protocol_hash(protocol)}".encode()).hexdigest()[
        :DIGEST_LENGTH
    ]


def _is_private(folder: Path) -> bool:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & 0o077


def _drop_if_damaged(database: Path) -> None:
    """Deletes a cache that cannot be read completely, for instance after a power failure."""
    if not database.is_file():
        return
    try:
        damage = _damage(database)
    except Exception as error:  # a truncated pickle may raise anything
        damage = repr(error)
    if damage:
        print(f"damaged: {database.name}, lm-eval asks everything again. {damage}")
        database.unlink()
        database.with_name(f"{database.name}-journal").unlink(missing_ok=True)


def _damage(database: Path) -> str:
    """Describes the damage of a cache; empty if every entry is an answer."""
    from sqlitedict import SqliteDict

    with contextlib.closing(sqlite3.connect(database)) as connection:
        if (found := connection.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
            return found
    with SqliteDict(str(database)) as answers:
        wrong = [key for key, answer in answers.items() if len(key) != 64 or not _is_answer(answer)]
    return f"{len(wrong)} entries are no answers" if wrong else ""


def _is_answer(value: Any) -> bool:
    """Checks whether a value is an answer of lm-eval.

    An answer is a text, a log-likelihood, or a log-likelihood with a flag for the greedy choice.
    """
    if isinstance(value, tuple | list):
        return len(value) == 2 and isinstance(value[0], Real) and isinstance(value[1], bool)
    return isinstance(value, str | Real)
