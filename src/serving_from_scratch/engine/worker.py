"""Computes steps in the process that owns torch: `… -m serving_from_scratch.engine.worker FD`.

It receives `ModelOptions` through the pipe, answers with `ModelFacts`, then computes one `Step`
after the other. It sends any failure as a ServingError and ends; the API process starts a new one.
"""

import os
import select
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection

from serving_from_scratch.core.errors import ServingError
from serving_from_scratch.core.step import StepResult
from serving_from_scratch.model.loading import ModelManager


class ModelWorker:
    """Computes the steps that come through a pipe from the API process."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def serve(self) -> None:
        """Computes until the pipe is closed."""
        runner = ModelManager().runner(self.pipe.recv())
        self.pipe.send(runner.facts)
        while True:
            step = self.pipe.recv()
            started = time.perf_counter()
            model = runner.model
            model.sent, model.exchange = 0, 0.0
            outcomes = runner.run(step)
            seconds = time.perf_counter() - started
            self.pipe.send(StepResult(outcomes, seconds, model.sent, model.exchange))


def main() -> int:
    """Serves; sends the reason through the pipe if it fails."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the API process, which ends us
    pipe = Connection(int(sys.argv[1]))
    threading.Thread(target=end_with, args=(pipe,), daemon=True).start()
    try:
        ModelWorker(pipe).serve()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return 0
    except Exception as error:
        if not isinstance(error, ServingError):
            traceback.print_exc()
            error = ServingError(f"The worker failed: {type(error).__name__}: {error}.")
        pipe.send(ServingError(error.problem, error.hint))
    return 1


def end_with(pipe: Connection) -> None:
    """Ends this process as soon as the API process has ended, even in the middle of a step."""
    poll = select.poll()
    poll.register(pipe.fileno(), 0)  # the hang-up is always reported
    poll.poll()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
