"""The one exception users see: what was wrong, with which value, what to do next."""

# What every message asks for that a rerun repairs. It does again what is missing, changed or of
# other inputs, and nothing else.
RERUN = "Run again with the same options: model-serve-flow run."

# What a gate ends with. 1 is an error and 2 is bad input, so a crash is never read as a verdict.
EXIT_CODES = {"SHIP": 0, "DO NOT SHIP": 10, "INCONCLUSIVE": 20}


class FlowError(Exception):
    """A failure the user can act on.

    Args:
        problem: what was wrong, with the value that was wrong.
        hint: what to do next.
    """

    exit_code = 1

    def __init__(self, problem: str, hint: str = "") -> None:
        self.problem = problem
        self.hint = hint
        super().__init__(f"{problem} {hint}".strip())


class BadInput(FlowError):
    """Files or options of the user that cannot be used; the command ends with status 2."""

    exit_code = 2
