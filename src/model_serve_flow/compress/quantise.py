"""Calls llm-compressor: the one call that quantises a loaded model."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_serve_flow.compress.recipes import recipe_modifiers
from model_serve_flow.flow.profile import Recipe

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

# torchrun sets it for every process that it starts.
TORCHRUN_VARIABLE = "TORCHELASTIC_RUN_ID"


def quantise(model: PreTrainedModel, recipe: Recipe, dataset: Dataset | None) -> None:
    """Quantises the model in place with llm-compressor.

    Args:
        model: the base.
        recipe: what 03 shows as modifiers.
        dataset: the calibration texts, as token ids.
    """
    from llmcompressor import oneshot

    oneshot(
        model=model,
        recipe=recipe_modifiers(recipe),
        dataset=dataset,
        num_calibration_samples=None if dataset is None else len(dataset),
        shuffle_calibration_samples=False,  # the seed has decided the order already
        sequential_targets=recipe.sequential_targets,  # None: decoder layer by decoder layer
    )


def with_texts(dataset: Dataset | None) -> Callable[[PreTrainedModel, Recipe], None]:
    """Returns `quantise` for these texts; its source is that of `quantise`."""

    @functools.wraps(quantise)
    def bound(model: PreTrainedModel, recipe: Recipe) -> None:
        quantise(model, recipe, dataset)

    return bound


def load_base(folder: Path, recipe: Recipe, *, trust_remote_code: bool) -> PreTrainedModel:
    """Loads the base into the host's memory.

    With `offload`, weights that do not fit wait in a hidden folder beside the base until this
    process ends. Processes of torchrun share one copy, in /dev/shm or on disk.
    Source: llm-compressor's guide, "Model Loading".
    """
    from transformers import AutoModelForCausalLM

    settings: dict[str, Any] = {"dtype": "auto", "trust_remote_code": trust_remote_code}
    if not recipe.offload and TORCHRUN_VARIABLE not in os.environ:
        return AutoModelForCausalLM.from_pretrained(folder, **settings)
    from compressed_tensors.offload import load_offloaded_model

    on_disk = folder.with_name(f".{folder.name}.offloaded")
    on_disk.mkdir(exist_ok=True)
    if is_first():
        atexit.register(shutil.rmtree, on_disk, ignore_errors=True)
    settings |= {"device_map": "auto_offload", "offload_folder": on_disk}
    with load_offloaded_model():
        return AutoModelForCausalLM.from_pretrained(folder, **settings)


def is_first() -> bool:
    """Checks whether this is the process that saves and records: the only one, or torchrun's 0."""
    return TORCHRUN_VARIABLE not in os.environ or os.environ.get("RANK") == "0"


def join() -> None:
    """Joins the other processes of torchrun; does nothing without torchrun.

    With GPUs it does what llm-compressor's guide says, and each process has a GPU of its own.
    """
    if TORCHRUN_VARIABLE not in os.environ:
        return
    import torch
    from compressed_tensors.offload import init_dist

    if torch.accelerator.is_available():
        init_dist()
    else:
        torch.distributed.init_process_group("gloo")


def leave() -> None:
    """Leaves the other processes: what follows, such as loading the candidate, is done alone.

    After an error there is no leaving: the others may wait forever, and torchrun ends them.
    """
    if TORCHRUN_VARIABLE in os.environ:
        import torch

        torch.distributed.destroy_process_group()
