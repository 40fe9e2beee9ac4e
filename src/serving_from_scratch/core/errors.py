"""Errors that say what was wrong, with which value, and what to do next."""


class ServingError(Exception):
    """A failure that its reader can act on.

    Args:
        problem: what was wrong, with the value that was wrong.
        hint: what to do next.
    """

    def __init__(self, problem: str, hint: str = "") -> None:
        self.problem = problem
        self.hint = hint
        super().__init__(f"{problem} {hint}".strip())


class Refusal(ServingError):
    """A request that is not taken.

    Args:
        problem: what was wrong, with the value that was wrong.
        field: the field of the request, "" where no field is to blame.
        hint: what to do next.
    """

    def __init__(self, problem: str, field: str = "", hint: str = "") -> None:
        super().__init__(problem, hint)
        self.field = field


class InvalidRequest(Refusal):
    """A value that no server of this model could serve."""


class TryLater(Refusal):
    """Not now: the sender may try again after `retry_after` seconds."""

    def __init__(self, problem: str, retry_after: float) -> None:
        super().__init__(problem, hint=f"Try again in {retry_after:g} seconds.")
        self.retry_after = retry_after


class QueueFull(TryLater):
    """Too many requests wait."""


class Unavailable(TryLater):
    """Nothing is computed now: the worker is starting or down, or the server ends."""


class DeadlinePassed(Refusal):
    """The request's deadline passed before its answer was complete."""
