"""Serves the classifier of digits by LitServe, which puts waiting requests into one batch.

It needs the environment `predictors`: `python -m … litserve_digits --port 8003`.
"""

import argparse
import os
import signal
from typing import Any

import litserve

from serving_from_scratch.predictors import digits


class DigitsAPI(litserve.LitAPI):
    """Classifies a batch at once. Each answer carries the number of its batch."""

    def setup(self, device: str) -> None:
        digits.model()
        self.batches = 0

    def decode_request(self, request: dict[str, Any]) -> list[float]:
        return request["image"]

    def predict(self, images: list[list[float]]) -> list[dict[str, int]]:
        self.batches += 1
        found = digits.classify(images)
        return [{"digit": digit, "batch": self.batches, "size": len(images)} for digit in found]

    def unbatch(self, output: list[dict[str, int]]) -> list[dict[str, int]]:
        return output


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8003)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--batch-seconds", type=float, default=0.05, help="A batch waits so long.")
    options = parser.parse_args()
    api = DigitsAPI(max_batch_size=options.batch_size, batch_timeout=options.batch_seconds)
    server = litserve.LitServer(api, accelerator="cpu")
    main_process = os.getpid()

    def end(*_: object) -> None:
        """Lets LitServe end its children, which inherit this handler."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt if os.getpid() == main_process else SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    server.run("127.0.0.1", options.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
