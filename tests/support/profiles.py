"""The profile of the end-to-end tests that this machine can serve whole."""

from model_serve_flow.flow import Flow
from model_serve_flow.machine import INT4_FEATURE, inspect_machine

HAS_INT4 = INT4_FEATURE in inspect_machine().cpu_features
CI = "ci" if HAS_INT4 else "ci-avx2"
INT4_MISSING = f"vLLM's CPU build has its INT4 kernel for processors with {INT4_FEATURE} only"


def candidates(flow: Flow) -> list[str]:
    """The names, in the order in which 03 makes them."""
    return [candidate.name for candidate in flow.candidates]
