"""Provides what the notebook of 00_Setup uses, and the views that only it shows."""

from typing import Any

import pandas as pd

from model_serve_flow.flow.busy import in_words, sample_machine
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.manifest import read_manifest, update_manifest
from model_serve_flow.flow.workspace import describe_model
from model_serve_flow.setup.calibration_text import write_calibration
from model_serve_flow.setup.checks import Check
from model_serve_flow.setup.fit import Estimate, check, estimate, require
from model_serve_flow.setup.models import prepare_base, source_of
from model_serve_flow.setup.tasks import prepare_tasks
from model_serve_flow.system.environments import variables_in_force
from model_serve_flow.system.files import read_rows
from model_serve_flow.system.hardware import Machine, inspect_machine
from model_serve_flow.system.sizes import gib

__all__ = [
    "Flow", "check", "checks_table", "estimate", "gib", "in_words", "inspect_machine",
    "machine_table", "model_record",
    "prepare_base", "prepare_tasks", "read_manifest", "read_rows", "require", "room_chart",
    "sample_items",
    "sample_machine", "update_manifest", "variables_in_force", "write_calibration",
]  # fmt: skip


def machine_table(machine: Machine) -> pd.DataFrame:
    """Lists the machine's properties, one per row; sizes in GiB."""
    rows = {}
    for name, value in machine.model_dump(exclude={"gpus", "gpu_problem"}).items():
        shown = gib(value) if name.endswith("_bytes") else value
        rows[name.removesuffix("_bytes").replace("_", " ")] = (
            ", ".join(shown) if isinstance(shown, tuple) else shown
        )
    gpus = [
        f"{gpu.name}, {'memory not known' if gpu.memory_bytes is None else gib(gpu.memory_bytes)}, "
        f"driver {gpu.driver}"
        for gpu in machine.gpus
    ]
    rows["GPUs"] = "; ".join(gpus) or f"none ({machine.gpu_problem})"
    return pd.DataFrame({"this machine": {name: str(value) for name, value in rows.items()}})


def checks_table(checks: list[Check]) -> pd.DataFrame:
    """Lists the checks, one per row, with advice where a check failed or warns."""
    words = {"ok": "yes", "warning": "with a warning", "does not fit": "NO"}
    rows = [
        {"check": item.name, "ok": words[item.outcome], "here": item.value, "needed": item.needed}
        | {"what to do": "" if item.outcome == "ok" else item.advice}
        for item in checks
    ]
    return pd.DataFrame(rows).set_index("check")


def room_chart(flow: Flow, machine: Machine, needs: Estimate) -> Any:
    """Draws what the profile needs beside what the machine has, in GiB.

    The axis is logarithmic, because a small model uses a hundredth of what there is.
    """
    import matplotlib.pyplot as plt

    from model_serve_flow.report.chart_style import house_style

    gpu = flow.config.device == "gpu"
    sizes = [found.memory_bytes for found in machine.gpus if found.memory_bytes is not None]
    serve = min(sizes, default=0) if gpu else machine.memory_available_bytes
    rows = {
        "GPU memory to serve" if gpu else "memory to serve": (needs.serve_bytes, serve),
        "memory to compress": (needs.compress_bytes, machine.memory_available_bytes),
        "disk": (needs.disk_bytes, machine.disk_free_bytes),
    }
    with house_style():
        figure, axis = plt.subplots(figsize=(8, 2.4), layout="constrained")
        for offset, label, column, colour in (
            (-0.19, "needed", 0, "#b5541c"),
            (0.19, "available", 1, "#8a8f98"),
        ):
            values = [pair[column] for pair in rows.values()]
            places = [place + offset for place in range(len(rows))]
            bars = axis.barh(
                places, [v / (1 << 30) for v in values], 0.36, color=colour, label=label
            )
            axis.bar_label(bars, [gib(v) for v in values], padding=3)
        axis.set(
            yticks=range(len(rows)), yticklabels=rows, xscale="log", xlabel="GiB (logarithmic)"
        )
        axis.set_xlim(0.5, 3 * max(max(pair) for pair in rows.values()) / (1 << 30))
        axis.invert_yaxis()
        figure.legend(loc="outside upper center", ncols=2)
        plt.close(figure)  # shown once, as the cell's value
    return figure


def sample_items(flow: Flow, tasks: dict[str, int]) -> pd.DataFrame:
    """Shows the first item of each packaged task, as the model will be asked."""
    rows = []
    for task, items in tasks.items():
        item = read_rows(flow.workspace.data / f"{task}.jsonl")[0]
        if "text" in item:
            shown = {"first item": item["text"][:200], "scored": "every token of the text"}
        else:
            right = item["choices"][item["answer"]]
            shown = {
                "first item": item["question"],
                "scored": f"{', '.join(item['choices'])} (right: {right})",
            }
        rows.append({"task": task, "items": items, **shown})
    return pd.DataFrame(rows).set_index("task")


def model_record(flow: Flow) -> dict[str, Any]:
    """Returns the manifest's section `model`: name, digest, bytes, source and note."""
    model = flow.config.model
    described = describe_model("base", flow.workspace.model("base"))
    return {
        "name": model.name,
        "sha256": described.sha256,
        "size_bytes": described.size_bytes,
        "parameters": model.parameters,
        "source": source_of(flow.workspace.model("base")),
        "note": model.note,
    }
