"""Runs GuideLLM in a process that waits for jobs, because its imports take 20 s of two cores.

The imports take longer than a load. A job (see `worker`) has three fields: `arguments` (of
`guidellm`, from `run` on), `api_key` (of the server; it is on no command line and in no file) and
`log` (the file for all output of the job). The answer says whether the job succeeded. The log says
why it failed.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from model_serve_flow.system.processes import end_when_orphaned
from model_serve_flow.system.worker import answer_jobs, take_streams, written_to

HIDDEN = b"**********"


def main() -> None:
    """Imports GuideLLM, then runs one job after the other.

    GuideLLM's event loop needs the main thread.
    """
    jobs, answers = take_streams()
    # Without this, PyTorch's data workers would wait forever for a driver that was killed.
    os.register_at_fork(after_in_child=end_when_orphaned)
    multiprocessing.set_forkserver_preload(["model_serve_flow.measure.guidellm.workers"])
    forkserver.ensure_running()
    # Before GuideLLM's command line, which knows only the constraints registered before its import.
    importlib.import_module("model_serve_flow.measure.guidellm.constraint")
    # GuideLLM would import this module only when a run starts.
    importlib.import_module("guidellm.benchmark.entrypoints")
    # Keeps the garbage collector from scanning imported objects during a load and at exit.
    gc.freeze()
    answer_jobs(jobs, answers, _do)


def _do(arguments: Sequence[str], api_key: str, log: str) -> bool:
    """Runs GuideLLM's own command and returns whether it succeeded."""
    import click
    from guidellm.cli import cli

    with _hidden_in(Path(log), api_key):
        try:
            return not cli.main(
                with_values(arguments, "--backend", api_key=api_key),
                "guidellm",
                standalone_mode=False,
            )
        except click.ClickException as error:
            error.show()
        except Exception:
            traceback.print_exc()
        return False


def with_values(command: Sequence[str], option: str, **values: Any) -> list[str]:
    """Returns the command line with these values added to the JSON object of an option."""
    place = command.index(option) + 1
    return [
        *command[:place],
        json.dumps({**json.loads(command[place]), **values}),
        *command[place + 1 :],
    ]


@contextlib.contextmanager
def _hidden_in(log: Path, secret: str) -> Iterator[None]:
    """Sends the output of this process and its workers to a new log and hides the secret in it."""
    from guidellm.logger import logger

    try:
        with written_to(log):
            try:
                yield
            finally:
                logger.complete()  # a separate thread writes the log
    finally:
        written = log.read_bytes()
        if secret.encode() in written:  # an error message may repeat its input
            log.write_bytes(written.replace(secret.encode(), HIDDEN))


if __name__ == "__main__":
    main()
