"""Writes the model card of a candidate: what it is, how it was made, and what it lost.

The hub shows the card as README.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_serve_flow.compare.reading import must_not_ship
from model_serve_flow.errors import RERUN, FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.manifest import read_manifest
from model_serve_flow.flow.results.compared import CandidateComparison, Comparison
from model_serve_flow.flow.results.measured import CompressionResult
from model_serve_flow.report.formatting import flatten
from model_serve_flow.report.report import template
from model_serve_flow.report.tables import accuracy_table, shift_table, summary
from model_serve_flow.report.wording import MEANING, caveat
from model_serve_flow.serve.engines import engine_of
from model_serve_flow.setup.offline import on_hub
from model_serve_flow.system.files import write_text

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData


def write_model_card(flow: Flow, comparison: Comparison, name: str) -> Path:
    """Writes `models/<name>/README.md` and returns its path.

    The card does not count in the digest of the checkpoint.

    Args:
        flow: the profile and its workspace.
        comparison: the result of step 06.
        name: a candidate made by a recipe.

    Raises:
        FlowError: no such candidate in profile or comparison, a ready-made checkpoint (the flow
            does not write into its folder), no checkpoint, or no `compression.json`.
    """
    if flow.config.candidate(name).recipe is None:
        raise FlowError(
            f"{name} is a ready-made checkpoint: it gets no model card from this flow.",
            "Cards are written for candidates made by a recipe.",
        )
    folder = flow.workspace.model(name)
    if not folder.is_dir():
        raise FlowError(f"{folder} does not exist.", RERUN)
    candidate = comparison.candidate(name)
    alone = comparison.model_copy(update={"candidates": (candidate,)})
    return write_text(folder / "README.md", _card(flow, alone, flow.workspace.compression(name)))


def _card(flow: Flow, comparison: Comparison, made: CompressionResult) -> str:
    """Returns the text of the card: the hub's metadata, then the Markdown."""
    [candidate] = comparison.candidates
    metadata = card_data(flow, comparison.base.name, candidate).to_yaml()
    body = template("model_card.md.j2").render(
        c=candidate,
        base=comparison.base,
        meaning=MEANING[candidate.verdict],
        caveat=caveat(comparison, read_manifest(flow.workspace)),
        struck=must_not_ship(candidate),
        recipe=flatten(made.recipe),
        calibration=flatten(made.calibration.model_dump(mode="json", exclude={"overlap"}))
        if made.calibration
        else {},
        made=made,
        summary=summary(comparison),
        accuracy=accuracy_table([candidate]),
        shift=shift_table(comparison),
        engine=engine_of(flow.config).name,
        command=engine_of(flow.config).shown_command(candidate.name),
    )
    return f"---\n{metadata}\n---\n\n{body.strip()}\n"


def card_data(flow: Flow, base_name: str, candidate: CandidateComparison) -> ModelCardData:
    """Builds the metadata that the hub reads: base, tags, and a result per task and metric."""
    from huggingface_hub import ModelCardData

    model = flow.config.model
    from_hub = model.source is not None and on_hub(model.source)
    schemes = candidate.scheme.lower().replace("_", "-").split("+")
    engine = engine_of(flow.config).name.lower()
    return ModelCardData(
        base_model=model.source if from_hub else base_name,
        license=_license(flow),
        library_name=engine,
        pipeline_tag="text-generation",
        tags=["compressed-tensors", engine, "quantized", *schemes],
        model_name=f"{base_name}-{candidate.name}",
        eval_results=_eval_results(candidate) or None,
        base_model_relation="quantized",
    )


def _eval_results(candidate: CandidateComparison) -> list[EvalResult]:
    """Lists the candidate's own figures: scores in percent, texts in the metric's unit."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=task,
            dataset_name=task,
            metric_type=metric,
            metric_name=f"{metric} (percent)" if d.unit == "points" else metric,
            metric_value=round(d.candidate, 4),
        )
        for task, metrics in candidate.accuracy.items()
        for metric, d in metrics.items()
    ]


def _license(flow: Flow) -> str | None:
    """Returns the license that the base's own card names, or None without a card."""
    from huggingface_hub import ModelCard

    source = flow.config.model.source
    folders = [flow.workspace.model("base"), *([Path(source).expanduser()] if source else [])]
    cards = [folder / "README.md" for folder in folders if (folder / "README.md").is_file()]
    if not cards:
        return None
    data: Any = ModelCard(cards[0].read_text(encoding="utf-8")).data
    return data.license
