"""Allows one run at a time in an artifacts folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.workspace import Workspace
from model_serve_flow.system.files import now

NAME = ".run.lock"


@contextlib.contextmanager
def only_run(workspace: Workspace) -> Iterator[None]:
    """Locks the workspace until the block ends.

    The system releases the lock when this process ends, however it ends. filelock would take as
    many lines; its older releases empty the holder's file.

    Raises:
        FlowError: another run holds the lock; the message names its process id and start time.
    """
    with (workspace.root / NAME).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FlowError(
                f"Another run works in {workspace.root}: {_holder(file.fileno())}.",
                "Wait for it, stop it, or give this one another folder: --artifacts DIR.",
            ) from error
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "started_at": now()}))
        file.flush()
        yield


def _holder(descriptor: int) -> str:
    """Names the process that holds the lock.

    A process that has just taken the lock may not have written its name yet.
    """
    try:
        entry = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {entry['pid']}, started at {entry['started_at']}"
    except (ValueError, KeyError, TypeError):
        return "a process that has just started"
