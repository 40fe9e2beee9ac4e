"""Executes notebooks with papermill, in a process that waits for jobs.

The process is kept between notebooks, because papermill's imports take longer than a kernel's
start. A job (see `worker`) has `arguments` (of `papermill.execute_notebook`) and `log` (the file
for all output, also of the kernel and its children). The answer says whether every cell succeeded;
the log says why not.
"""

from __future__ import annotations

import importlib
import logging
import traceback
from pathlib import Path
from typing import Any

from model_serve_flow.system.worker import answer_jobs, take_streams, written_to


def main() -> None:
    """Imports papermill, then executes one notebook after the other."""
    jobs, answers = take_streams()
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # as papermill's own program does
    importlib.import_module("papermill")
    answer_jobs(jobs, answers, execute)


def execute(arguments: dict[str, Any], log: str) -> bool:
    """Executes a notebook and returns whether every cell succeeded.

    The kernel is killed after the last cell, when everything is written. A kernel that has imported
    PyTorch would take three seconds to end.
    """
    import papermill

    with written_to(Path(log)):
        try:
            papermill.execute_notebook(
                **arguments, progress_bar=False, log_output=True, shutdown_kernel="immediate"
            )
        except Exception:
            traceback.print_exc()
            return False
        return True


if __name__ == "__main__":
    main()
