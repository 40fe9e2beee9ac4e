"""Defines errors that say what was wrong, with which value, and what to do next."""


class ServingError(Exception):
    """A failure that the reader can act on.

    Args:
        problem: what was wrong, with the value.
        hint: what to do next.
    """

    def __init__(self, problem: str, hint: str = "") -> None:
        self.problem = problem
        self.hint = hint
        super().__init__(f"{problem} {hint}".strip())


class Refusal(ServingError):
    """A request that is refused.

    Args:
        field: the wrong field of the request; "" if no field is wrong.
    """

    def __init__(self, problem: str, field: str = "", hint: str = "") -> None:
        super().__init__(problem, hint)
        self.field = field


class InvalidRequest(Refusal):
    """A request that this model cannot serve on any server."""


class UnknownModel(Refusal):
    """No such model is served here."""


class PredictorFailed(Refusal):
    """Another server, which should have answered, did not answer as it should."""


class TryLater(Refusal):
    """The sender may try again after `retry_after` seconds."""

    def __init__(self, problem: str, retry_after: float) -> None:
        super().__init__(problem, hint=f"Try again in {retry_after:g} seconds.")
        self.retry_after = retry_after


class QueueFull(TryLater):
    """Too many requests are waiting."""


class Unavailable(TryLater):
    """The worker is starting or down, or the server is ending."""


class DeadlinePassed(Refusal):
    """The deadline passed before the answer was complete."""
