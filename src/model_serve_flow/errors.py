"""Defines the exceptions for users: what was wrong, with which value, and what to do next."""

# The hint of every error that a rerun repairs. The rerun repeats only the steps whose results are
# missing, changed or made from other inputs.
RERUN = "Run again with the same options: model-serve-flow run."

# Exit codes of `--gate`. 1 is an error and 2 is bad input, so a crash is never read as a verdict.
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
    """The user's files or options cannot be used; the command ends with status 2."""

    exit_code = 2
