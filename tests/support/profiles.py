"""The profile of the end-to-end tests that this machine can serve whole."""

from model_serve_flow.flow.default_profile import for_this_processor
from model_serve_flow.flow.flow import Flow
from model_serve_flow.system.processor import INT4_FEATURE

CI = for_this_processor("ci")
HAS_INT4 = CI == "ci"
INT4_MISSING = f"vLLM's CPU build has its INT4 kernel for processors with {INT4_FEATURE} only"


def candidates(flow: Flow) -> list[str]:
    """The names, in the order in which 03 makes them."""
    return [candidate.name for candidate in flow.candidates]
