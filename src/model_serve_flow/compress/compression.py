"""Makes a candidate with llm-compressor, or adopts a ready-made checkpoint, and verifies it."""

from __future__ import annotations

import contextlib
import inspect
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from model_serve_flow.compress.checkpoint import inspect_checkpoint
from model_serve_flow.compress.quantise import leave, load_base
from model_serve_flow.compress.recipes import algorithm_text, check_group_size, check_ignore
from model_serve_flow.compress.verify import verify_checkpoint
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.manifest import package_versions
from model_serve_flow.flow.profile import Candidate, Recipe
from model_serve_flow.flow.results.measured import CalibrationFacts, CompressionResult
from model_serve_flow.flow.workspace import describe_model
from model_serve_flow.setup.fit import check_int4, is_int4, memory_advice, require
from model_serve_flow.setup.integrity import check_checkpoint
from model_serve_flow.setup.models import resolve_checkpoint
from model_serve_flow.setup.tokenizer import verify_same_tokenizer
from model_serve_flow.system import live
from model_serve_flow.system.digests import digest_once
from model_serve_flow.system.files import partial_folder, replacing_folder, write_json, writing
from model_serve_flow.system.hardware import available_memory, inspect_machine

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel

PROMPT = "What is the capital of France? Answer in one sentence."
SAMPLING_SECONDS = 0.05
MADE_WITH = ("llmcompressor", "compressed-tensors", "torch", "transformers", "model-serve-flow")
NO_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "defaultcpuallocator",
    "out of memory",
    "bad_alloc",
)

Quantise = Callable[["PreTrainedModel", Recipe], None]


def compress(
    flow: Flow, name: str, quantise: Quantise, calibration: CalibrationFacts | None = None
) -> CompressionResult:
    """Makes the candidate `name` by its recipe and writes its `compression.json`.

    The checkpoint replaces the old one in `models/` only after it is verified.

    Args:
        flow: the profile and its workspace, with the base model in `models/base`.
        name: a candidate with a recipe.
        quantise: called with the loaded base model and the recipe; calls `oneshot` on the model.
        calibration: the facts of the calibration text; recorded if the recipe uses it.

    Raises:
        FlowError: there is no base model, the group size does not fit, or a GPU profile finds no
            GPU; the checkpoint differs from its recipe, or its tokenizer from the base's; memory
            runs out (the message says what to change in the profile); the disk is full or not
            writable.
    """
    from transformers import AutoConfig, AutoTokenizer, set_seed

    candidate, base = flow.config.candidate(name), flow.workspace.model("base")
    recipe = _recipe_of(candidate)
    _require_device(flow, recipe)
    trust: dict[str, Any] = {"trust_remote_code": flow.config.model.trust_remote_code}
    check_checkpoint(base, **trust)
    model_config = AutoConfig.from_pretrained(base, **trust)
    check_group_size(recipe, model_config)
    check_ignore(recipe, model_config)
    set_seed(flow.config.seed)
    with replacing_folder(flow.workspace.model(name), "checkpoint") as folder, _memory_errors(flow):
        with _logged(_log(flow, name), mode="w"), _measured(flow.config.device) as cost:
            live.report(f"{name}: llm-compressor", 0, 0)
            model = load_base(base, recipe, **trust)
            with _layers_shown(name, model, recipe):
                quantise(model, recipe)
            _save(model, base, folder)
            leave()
        AutoTokenizer.from_pretrained(base, **trust).save_pretrained(folder)
        verify_checkpoint(folder, recipe, **trust)
        verify_same_tokenizer(base, folder, **trust)
    return _record(flow, candidate, cost, _inputs(flow, recipe, quantise, calibration))


def assist(flow: Flow, name: str, quantise: Quantise) -> None:
    """Does the share of another process of torchrun in `compress`; that one saves and records.

    Both call llm-compressor in the same order, because it waits for all processes in each call.
    """
    from transformers import set_seed

    recipe, base = _recipe_of(flow.config.candidate(name)), flow.workspace.model("base")
    set_seed(flow.config.seed)
    model = load_base(base, recipe, trust_remote_code=flow.config.model.trust_remote_code)
    quantise(model, recipe)
    model.save_pretrained(partial_folder(flow.workspace.model(name)), save_compressed=True)
    leave()


def _save(model: PreTrainedModel, base: Path, folder: Path) -> None:
    """Saves the compressed model with the base's own generation settings.

    transformers refuses to save some settings that it accepts when it loads them, such as a
    temperature beside `do_sample: false`.
    """
    from transformers import GenerationConfig

    settings = base / "generation_config.json"
    if settings.is_file():
        model.generation_config = GenerationConfig()
    model.save_pretrained(folder, save_compressed=True)
    if settings.is_file():
        shutil.copyfile(settings, folder / settings.name)


def kept_candidate(
    flow: Flow, name: str, quantise: Quantise, calibration: CalibrationFacts | None = None
) -> CompressionResult | None:
    """Returns the candidate `name` of an earlier run if `compress` would make the same again.

    The arguments are those of `compress`. The candidate is kept if its record is valid, candidate
    and base have the recorded digests, and recipe, calibration text, seed, tool versions and the
    source of `quantise` are the recorded ones. The evaluation items may differ: their overlap with
    the calibration text is recorded again.

    Returns:
        None if there is no such candidate or anything differs. Always None for a ready-made
        checkpoint, which `adopt` keeps.
    """
    recipe = flow.config.candidate(name).recipe
    if recipe is None or not (flow.workspace.results(name) / "compression.json").is_file():
        return None
    try:
        made = flow.workspace.compression(name)
    except FlowError:
        # The record was edited or has another version: make the candidate again.
        return None
    asked: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"),
        **_inputs(flow, recipe, quantise, calibration),
    }
    text = asked.pop("calibration")
    same = (
        all(getattr(made, key) == value for key, value in asked.items())
        and made.quantise is not None
    )
    same = same and _without_overlap(made.calibration) == _without_overlap(text)
    digests = [digest_once(flow.workspace.model(model)) for model in (name, "base")]
    if not same or digests != [made.model.sha256, made.base.sha256]:
        return None
    if made.calibration != text:
        made = made.model_copy(update={"calibration": text})
        write_json(flow.workspace.results(name) / "compression.json", made)
    return made


def _without_overlap(calibration: CalibrationFacts | None) -> CalibrationFacts | None:
    return None if calibration is None else calibration.model_copy(update={"overlap": None})


def _inputs(
    flow: Flow, recipe: Recipe, quantise: Quantise, calibration: CalibrationFacts | None
) -> dict[str, Any]:
    """Returns what decides the result besides base and recipe, as fields of CompressionResult."""
    try:
        source = inspect.getsource(quantise)
    except (OSError, TypeError):
        # An interpreter may keep no source. Then the candidate is never taken for the same.
        source = None
    return {
        "calibration": calibration if recipe.needs_calibration else None,
        "seed": flow.config.seed,
        "quantise": source,
        "versions": package_versions(MADE_WITH),
    }


@contextlib.contextmanager
def _layers_shown(name: str, model: PreTrainedModel, recipe: Recipe) -> Iterator[None]:
    """Reports how many layers llm-compressor has calibrated.

    It calibrates layer by layer, each with all texts: a layer is finished when the next one starts.
    A recipe without calibration never runs the model, so it reports nothing until the end.
    """
    kinds = recipe.sequential_targets or model._no_split_modules or ()
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    what, reached = f"{name}: llm-compressor", set()

    def reach(layer: Module, _: tuple[Any, ...]) -> None:
        reached.add(layer)
        live.report(what, len(reached) - 1, len(layers), "layers")

    hooks = [layer.register_forward_pre_hook(reach) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    live.report(what, len(layers), len(layers), "layers")


@contextlib.contextmanager
def _memory_errors(flow: Flow) -> Iterator[None]:
    """Turns an out-of-memory error into a FlowError with the figures of this profile.

    The available memory is measured before the block starts.
    """
    available = available_memory()
    try:
        yield
    except Exception as error:
        if not (reason := _out_of_memory(error)):
            raise
        raise FlowError(
            f"Compressing ran out of memory: {reason}.", memory_advice(flow, available)
        ) from error


def _out_of_memory(error: BaseException | None) -> str:
    """Returns the allocator's message if memory ran out; empty if it did not.

    PyTorch has its own exception for this on a GPU only. llm-compressor wraps it into exceptions
    whose text begins with generated code.
    """
    while error is not None:
        lines = str(error).strip().splitlines()
        if said := next(
            (line for line in lines if any(text in line.lower() for text in NO_MEMORY)), ""
        ):
            return said.strip().rstrip(".")
        if isinstance(error, MemoryError):
            return type(error).__name__
        error = error.__cause__
    return ""


def adopt(flow: Flow, name: str) -> CompressionResult:
    """Takes over the ready-made checkpoint of the candidate `name` and verifies it.

    It writes the candidate's `compression.json`.

    Raises:
        FlowError: the source cannot be fetched; its checkpoint is not quantised or not complete;
            its tokenizer or chat template differs from the base's; or the engine has no kernel for
            it on this processor.
    """
    candidate = flow.config.candidate(name)
    if candidate.source is None:
        raise FlowError(
            f"Candidate {name!r} has a recipe, not a ready-made checkpoint.",
            "Make it with compress().",
        )
    trust: dict[str, Any] = {"trust_remote_code": flow.config.model.trust_remote_code}
    started = time.perf_counter()
    resolve_checkpoint(candidate.source, candidate.revision, flow.workspace.model(name), **trust)
    checkpoint = verify_checkpoint(flow.workspace.model(name), **trust)
    verify_same_tokenizer(flow.workspace.model("base"), flow.workspace.model(name), **trust)
    if flow.config.device == "cpu" and is_int4(checkpoint.scheme):
        require([check_int4([name], inspect_machine())])
    return _record(flow, candidate, Cost(seconds=time.perf_counter() - started), {})


def _recipe_of(candidate: Candidate) -> Recipe:
    if candidate.recipe is None:
        raise FlowError(
            f"Candidate {candidate.name!r} has no recipe: it is ready-made.",
            "Take it over with adopt().",
        )
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
            "llm-compressor's AWQ pins its activations for an accelerator and cannot run on a CPU "
            "alone.",
            "Set algorithm to gptq or rtn, or compress on a GPU.",
        )


def _record(
    flow: Flow, candidate: Candidate, cost: Cost, inputs: dict[str, Any]
) -> CompressionResult:
    name, recipe, folder = candidate.name, candidate.recipe, flow.workspace.model(candidate.name)
    trust: dict[str, Any] = {"trust_remote_code": flow.config.model.trust_remote_code}
    checkpoint = inspect_checkpoint(folder, **trust)
    sample = ""
    # transformers needs more packages to load other formats
    if checkpoint.quant_method == "compressed-tensors":
        with writing(_log(flow, name), "log"), _logged(_log(flow, name)):
            sample = generate_sample(folder, **trust)
    made_with: dict[str, Any] = {"calibration": None, **inputs}
    result = CompressionResult(
        model=describe_model(name, folder),
        base=describe_model("base", flow.workspace.model("base")),
        scheme=checkpoint.scheme,
        algorithm=algorithm_text(recipe) if recipe else checkpoint.quant_method,
        origin=candidate.source or "recipe",
        recipe=recipe.model_dump(mode="json") if recipe else None,
        **made_with,
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
    """The cost of making a candidate.

    Attributes:
        seconds: wall time.
        peak_memory_bytes: resident memory on a CPU, device memory on a GPU.
    """

    seconds: float = 0.0
    peak_memory_bytes: int = 0


@contextlib.contextmanager
def _measured(device: str) -> Iterator[Cost]:
    """Measures the cost of the block.

    Resident memory is sampled, because the system's own peak cannot be reset.
    """
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
    """Sends llm-compressor's messages and progress bars to a file.

    Its hundreds of lines would hide everything else in the notebook.
    """
    from llmcompressor.logger import LoggerConfig, configure_logger

    with writing(log, "log"):
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open(mode, encoding="utf-8")
    try:
        with (
            file,
            contextlib.redirect_stdout(file),
            contextlib.redirect_stderr(file),
        ):
            configure_logger(LoggerConfig())  # binds its messages to the redirected output
            yield
    finally:
        configure_logger(LoggerConfig(console_log_level="ERROR"))


def generate_sample(
    folder: Path, prompt: str = PROMPT, max_new_tokens: int = 32, *, trust_remote_code: bool = False
) -> str:
    """Generates the model's greedy answer to `prompt` with transformers.

    The answer shows whether the weights still work. It says nothing about speed, because
    transformers decompresses compressed-tensors weights first.
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
    inputs = tokenizer(
        text, return_tensors="pt", add_special_tokens=tokenizer.chat_template is None
    ).to(device)
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return tokenizer.decode(
        output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    ).strip()
