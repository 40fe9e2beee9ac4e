"""Provides what the notebook of 03_Compress uses, and the views that only it shows."""

import pandas as pd
import yaml
from datasets import disable_progress_bars
from llmcompressor.logger import LoggerConfig, configure_logger
from transformers.utils import logging

from model_serve_flow.compress.apart import compress_apart, sample_apart
from model_serve_flow.compress.calibration import calibration_dataset
from model_serve_flow.compress.compression import kept_candidate
from model_serve_flow.compress.contamination import SHORTEST
from model_serve_flow.compress.quantise import quantise
from model_serve_flow.compress.recipes import recipe_modifiers
from model_serve_flow.compress.verify import verify_checkpoint
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.profile import Recipe
from model_serve_flow.flow.results.measured import CalibrationFacts, CompressionResult
from model_serve_flow.flow.workspace import describe_model
from model_serve_flow.report import measurement_charts as charts
from model_serve_flow.report.formatting import byte_text

__all__ = [
    "Flow", "calibration_dataset", "calibration_table", "charts", "compress_apart", "cost_table",
    "describe_model", "kept_candidate", "overlap_text", "quantise", "recipe_text", "sample_apart",
    "verify_checkpoint",
]  # fmt: skip

# the messages of making the recipes' modifiers
configure_logger(LoggerConfig(console_log_level="ERROR"))
logging.set_verbosity_error()
disable_progress_bars()


def calibration_table(facts: CalibrationFacts) -> pd.DataFrame:
    """Shows what the compressor will see, in one row."""
    row = {
        "source": facts.source,
        "texts": facts.samples,
        "tokens seen": facts.tokens,
        "chat template": "yes" if facts.chat_template else "no",
    }
    return pd.DataFrame([row]).set_index("source")


def overlap_text(facts: CalibrationFacts) -> str:
    """Says which evaluation items were found in the calibration text."""
    if (overlap := facts.overlap) is None:
        return "Not looked for: these tasks bring their items only when 01 has measured them."
    searched = f"{overlap.items} evaluation items of {SHORTEST} words or more were looked for"
    shared = (
        f"{overlap.ngram} words in a row (a shorter item: all of its words) with the calibration "
        "text"
    )
    if not overlap.overlapping:
        return f"{searched}; none shares {shared}."
    shown = "\n".join(f"  {name}" for name in overlap.overlapping[:20])
    return (
        f"WARNING: {searched}; {len(overlap.overlapping)} share {shared}, which may flatter the "
        f"candidates. Choose other calibration text, or read their results with care:\n{shown}"
    )


def recipe_text(recipe: Recipe) -> str:
    """Writes the recipe's modifiers as YAML.

    Only values that the recipe sets are shown; the rest are llm-compressor's defaults.
    """
    dumped = {"mode": "json", "exclude_unset": True, "exclude_none": True}
    modifiers = {type(m).__name__: m.model_dump(**dumped) for m in recipe_modifiers(recipe)}
    return yaml.safe_dump(modifiers, sort_keys=False)


def cost_table(base_bytes: int, results: dict[str, CompressionResult]) -> pd.DataFrame:
    """Lists the models, one per row: size, scheme, and what compressing cost."""
    rows = [{"model": "base", "size": byte_text(base_bytes), "of base": "100 %"}]
    rows += [
        {
            "model": name,
            "size": byte_text(made.model.size_bytes),
            "of base": f"{made.model.size_bytes / base_bytes:.0%}",
            "scheme": made.scheme,
            "algorithm": made.algorithm,
            "bits per weight": f"{made.bits_per_weight:.2f}",
            "seconds": f"{made.seconds:.0f}",
            "peak memory": byte_text(made.peak_memory_bytes)
            if made.peak_memory_bytes
            else "not measured",
            "layers quantised": str(made.quantized_layers),
            "layers left": ", ".join(made.ignored_layers) or "none",
        }
        for name, made in results.items()
    ]
    return pd.DataFrame(rows).set_index("model").fillna("")
