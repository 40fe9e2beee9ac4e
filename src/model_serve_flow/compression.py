"""llm-compressor in, a verified checkpoint and a CompressionResult out; ready-made checkpoints are verified too."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from model_serve_flow.checkpoint import inspect_checkpoint, verify_checkpoint, verify_same_tokenizer
from model_serve_flow.config import Candidate, Recipe
from model_serve_flow.errors import FlowError
from model_serve_flow.flow import Flow
from model_serve_flow.recipes import algorithm_text, check_group_size
from model_serve_flow.results import CalibrationFacts, CompressionResult
from model_serve_flow.sources import check_checkpoint, resolve_checkpoint
from model_serve_flow.workspace import describe_model, swap_folder, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPT = "What is the capital of France? Answer in one sentence."
SAMPLING_SECONDS = 0.05

Quantise = Callable[["PreTrainedModel", Recipe], None]


def compress(
    flow: Flow, name: str, quantise: Quantise, calibration: CalibrationFacts | None = None
) -> CompressionResult:
    """Makes the candidate `name` by its recipe and writes its `compression.json`.

    The checkpoint takes its place in `models/` only when it is verified; until then the old one stays.

    Args:
        flow: the profile and its workspace, with the base model in `models/base`.
        name: a candidate with a recipe.
        quantise: called with the loaded base model and the recipe; calls `oneshot` on the model.
        calibration: what the calibration data were; recorded if the recipe uses them.

    Raises:
        FlowError: no base model, a group size that does not fit, no GPU for a GPU profile, a checkpoint that is not
            what the recipe says or whose tokenizer is not the base's.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

    candidate, base = flow.config.candidate(name), flow.workspace.model("base")
    recipe = _recipe_of(candidate)
    _require_device(flow, recipe)
    trust = {"trust_remote_code": flow.config.model.trust_remote_code}
    check_checkpoint(base, **trust)
    check_group_size(recipe, AutoConfig.from_pretrained(base, **trust))
    set_seed(flow.config.seed)
    with _replacing(flow.workspace.model(name)) as folder:
        with _logged(_log(flow, name), mode="w"), _measured(flow.config.device) as cost:
            model = AutoModelForCausalLM.from_pretrained(base, dtype="auto", **trust)
            quantise(model, recipe)
            model.save_pretrained(folder, save_compressed=True)
        AutoTokenizer.from_pretrained(base, **trust).save_pretrained(folder)
        verify_checkpoint(folder, recipe, **trust)
        verify_same_tokenizer(base, folder, **trust)
    return _record(flow, candidate, cost, calibration if recipe.needs_calibration else None)


def adopt(flow: Flow, name: str) -> CompressionResult:
    """Takes over the ready-made checkpoint of the candidate `name`, verifies it and writes its `compression.json`.

    Raises:
        FlowError: the source cannot be had, its checkpoint is not quantised or not whole, or its tokenizer or chat
            template is not the base's.
    """
    candidate = flow.config.candidate(name)
    if candidate.source is None:
        raise FlowError(f"Candidate {name!r} has a recipe, not a ready-made checkpoint.", "Make it with compress().")
    trust = {"trust_remote_code": flow.config.model.trust_remote_code}
    started = time.perf_counter()
    resolve_checkpoint(candidate.source, candidate.revision, flow.workspace.model(name), **trust)
    verify_checkpoint(flow.workspace.model(name), **trust)
    verify_same_tokenizer(flow.workspace.model("base"), flow.workspace.model(name), **trust)
    return _record(flow, candidate, Cost(seconds=time.perf_counter() - started), None)


def _recipe_of(candidate: Candidate) -> Recipe:
    if candidate.recipe is None:
        raise FlowError(f"Candidate {candidate.name!r} has no recipe: it is ready-made.", "Take it over with adopt().")
    return candidate.recipe


def _require_device(flow: Flow, recipe: Recipe) -> None:
    import torch

    if flow.config.device == "gpu" and not torch.cuda.is_available():
        raise FlowError(
            f"Profile {flow.config.name!r} needs a GPU, and PyTorch sees none.",
            "Check nvidia-smi, or use a CPU profile.",
        )
    if recipe.algorithm == "awq" and not torch.accelerator.is_available():
        raise FlowError(
            "llm-compressor's AWQ pins its activations for an accelerator and cannot run on a CPU alone.",
            "Set algorithm to gptq or rtn, or compress on a GPU.",
        )


def _record(flow: Flow, candidate: Candidate, cost: Cost, calibration: CalibrationFacts | None) -> CompressionResult:
    name, recipe, folder = candidate.name, candidate.recipe, flow.workspace.model(candidate.name)
    trust = {"trust_remote_code": flow.config.model.trust_remote_code}
    checkpoint = inspect_checkpoint(folder, **trust)
    sample = ""
    if checkpoint.quant_method == "compressed-tensors":  # transformers needs further packages for other formats
        with _logged(_log(flow, name)):
            sample = generate_sample(folder, **trust)
    result = CompressionResult(
        model=describe_model(name, folder),
        base=describe_model("base", flow.workspace.model("base")),
        scheme=checkpoint.scheme,
        algorithm=algorithm_text(recipe) if recipe else checkpoint.quant_method,
        origin=candidate.source or "recipe",
        recipe=recipe.model_dump(mode="json") if recipe else None,
        calibration=calibration,
        quantization_config=checkpoint.quantization_config,
        quantized_layers=len(checkpoint.quantized_layers),
        ignored_layers=checkpoint.ignored_layers,
        bits_per_weight=checkpoint.bits_per_weight,
        seconds=cost.seconds,
        peak_memory_bytes=cost.peak_memory_bytes,
        sample=sample,
    )
    write_json(flow.workspace.results(name) / "compression.json", result)
    return result


@dataclass
class Cost:
    """What making a candidate took: wall seconds, and peak resident (CPU) or device (GPU) memory in bytes."""

    seconds: float = 0.0
    peak_memory_bytes: int = 0


@contextlib.contextmanager
def _measured(device: str) -> Iterator[Cost]:
    """Fills in the cost of the block; resident memory is sampled, as the system's own peak cannot be reset."""
    import torch

    cost, process, done = Cost(), psutil.Process(), threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLING_SECONDS):
            cost.peak_memory_bytes = max(cost.peak_memory_bytes, process.memory_info().rss)

    cost.peak_memory_bytes = process.memory_info().rss
    sampler = threading.Thread(target=sample, daemon=True)
    if device == "gpu":
        torch.cuda.reset_peak_memory_stats()
    else:
        sampler.start()
    started = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - started
        done.set()
        if device == "gpu":
            cost.peak_memory_bytes = torch.cuda.max_memory_allocated()
        else:
            sampler.join()


def _log(flow: Flow, name: str) -> Path:
    return flow.workspace.logs / f"compress-{name}.log"


@contextlib.contextmanager
def _logged(log: Path, mode: str = "a") -> Iterator[None]:
    """Sends llm-compressor's messages and progress bars to a file: hundreds of lines that would bury the lesson."""
    from llmcompressor.logger import LoggerConfig, configure_logger

    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            log.open(mode, encoding="utf-8") as file,
            contextlib.redirect_stdout(file),
            contextlib.redirect_stderr(file),
        ):
            configure_logger(LoggerConfig())  # binds its messages to the redirected output
            yield
    finally:
        configure_logger(LoggerConfig(console_log_level="ERROR"))


@contextlib.contextmanager
def _replacing(destination: Path) -> Iterator[Path]:
    """A hidden sibling folder that takes the place of `destination` only if the block succeeds."""
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        swap_folder(partial, destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def generate_sample(
    folder: Path, prompt: str = PROMPT, max_new_tokens: int = 32, *, trust_remote_code: bool = False
) -> str:
    """The model's greedy answer to `prompt` with transformers: does it still speak?

    compressed-tensors weights are decompressed on the way, so this shows the weights and not the speed.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    trust = {"trust_remote_code": trust_remote_code}
    tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **trust).to(device)
    text = prompt
    if tokenizer.chat_template is not None:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=tokenizer.chat_template is None).to(device)
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
