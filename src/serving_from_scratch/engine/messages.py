"""Names what crosses the pipe to a worker process: plain values of the core."""

from serving_from_scratch.core.options import ModelFacts, ModelOptions, Rank
from serving_from_scratch.core.step import Chunk, Copy, Outcome, Step, StepResult

__all__ = [
    "Chunk",
    "Copy",
    "ModelFacts",
    "ModelOptions",
    "Outcome",
    "Rank",
    "Step",
    "StepResult",
]
