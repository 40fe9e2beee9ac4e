"""Represents an OpenAI-compatible endpoint: all that asking and measuring need to know of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import httpx


@dataclass(frozen=True)
class Endpoint:
    """A served model, whatever serves it.

    Attributes:
        url: base URL, without `/v1`.
        model_name: name of the model in requests; also part of the names of logs.
        api_key: sent by every client; not printed. Empty: no key is sent.
        folder: a folder with the model's tokenizer, such as the checkpoint.
    """

    url: str
    model_name: str
    api_key: str = field(repr=False)
    folder: Path

    @property
    def headers(self) -> dict[str, str]:
        """Returns the headers that carry the key; none without a key."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def client(self, timeout: float | None = 120.0) -> httpx.Client:
        """Creates an HTTP client that sends the key; the caller closes the client.

        Args:
            timeout: in seconds; None: no limit.
        """
        return httpx.Client(
            base_url=self.url, headers=self.headers, timeout=timeout, trust_env=False
        )

    def require_alive(self) -> None:
        """Checks that what serves the model still runs; called twice a second during a load.

        This class knows no process, so it checks nothing. A subclass that knows one raises
        `ServerGone` if it ended.
        """
