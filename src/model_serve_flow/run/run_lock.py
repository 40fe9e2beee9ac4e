"""One run at a time in one artifacts folder."""

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
    """Holds the workspace until the block ends;
    the system lets go of it when this process ends, however it does.

    Raises:
        FlowError: another run holds it; its process id and start time are named.
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
    """Who wrote the lock; it may have been taken a moment ago, and not be written yet."""
    try:
        entry = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {entry['pid']}, started at {entry['started_at']}"
    except (ValueError, KeyError, TypeError):
        return "a process that has just started"
