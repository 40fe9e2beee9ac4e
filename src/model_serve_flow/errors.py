"""The one exception users see: what was wrong, with which value, what to do next."""

# What every message asks for that a rerun repairs. It does again what is missing, changed or of
# other inputs, and nothing else.
RERUN = "Run again with the same options: model-serve-flow run."


class FlowError(Exception):
    """A failure the user can act on.

    Args:
        problem: what was wrong, with the value that was wrong.
        hint: what to do next.
    """

    def __init__(self, problem: str, hint: str = "") -> None:
        self.problem = problem
        self.hint = hint
        super().__init__(f"{problem} {hint}".strip())
