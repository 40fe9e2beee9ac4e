"""Starts programs that do not outlive their parent."""

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import IO

END_SECONDS = 35.0  # a little longer than our server drains
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
_LIBC = ctypes.CDLL(None)


class Child(subprocess.Popen[bytes]):
    """A process with a group of its own; the kernel ends it when its parent dies, however.

    Args:
        variables: added to the environment; the program is looked up in its PATH.
        output: where it writes; by default where its parent does.
    """

    def __init__(
        self, command: Sequence[str], variables: dict[str, str], output: IO[bytes] | None = None
    ) -> None:
        super().__init__(
            command,
            env={**os.environ, **variables},
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=lambda: _LIBC.prctl(DIE_WITH_PARENT, signal.SIGTERM),
        )

    def end(self, seconds: float = END_SECONDS) -> None:
        """Waits for the end after SIGTERM, and kills what is left of the whole group."""
        if self.poll() is None:
            self.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(seconds)
        with contextlib.suppress(ProcessLookupError):  # nobody of its group is left
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()
