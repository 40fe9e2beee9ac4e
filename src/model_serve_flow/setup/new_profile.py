"""Writes a profile for a model and a device, with a comment on every choice."""

from __future__ import annotations

import json
import re
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.default_profile import default_profile
from model_serve_flow.flow.load import load_profile
from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.setup.device_choice import Fit, choose_fit, group_size, services
from model_serve_flow.setup.model_facts import ModelFacts, read_model
from model_serve_flow.system.files import write_text
from model_serve_flow.system.named_devices import Device, find_device
from model_serve_flow.system.schemes import Service
from model_serve_flow.system.sizes import GIB, gib

GPU_PARENT = "gpu-llama-3.1-8b"
WIDTH = 96
LONGEST_NAME = 63  # of the profile, and so of its folder of results
SMALL = 500_000_000  # weights; below it, several servers start on a CPU at once
# Kinds whose layers have the names and the order that SmoothQuant expects.
SMOOTHED = ("llama", "mistral", "qwen2", "qwen3", "granite", "smollm3")
NAMES = {"W8A8": "w8a8-int8", "FP8_DYNAMIC": "fp8-dynamic", "W4A16": "w4a16-int4", "NVFP4": "nvfp4"}


@dataclass(frozen=True)
class _Draft:
    """Everything that the text of the profile is made from."""

    name: str
    parent: FlowConfig
    model: ModelFacts
    device: Device
    fit: Fit

    @property
    def place(self) -> str:
        """The device in words."""
        if not self.device.gpus:
            return self.device.cpu
        gpu = self.device.gpus[0]
        count = f"{self.fit.tensor_parallel} x " if self.fit.tensor_parallel > 1 else ""
        return f"{count}{gpu.name} (compute capability {gpu.compute_capability})"


def new_profile(
    source: str,
    output: Path | None = None,
    device: str | None = None,
    parameters: int | None = None,
) -> Path:
    """Writes a profile for a model, and checks that it loads.

    Args:
        source: hub id, or local folder.
        output: the file; None: `<name of the profile>.yaml` in the working folder.
        device: as for `find_device`; None: this machine's.
        parameters: number of weights, for a model whose config.json does not tell.

    Returns:
        The path of the profile.

    Raises:
        FlowError: the file exists, the model cannot be read or does not fit the device, or the
            device has no kernel for any scheme.
    """
    if output is not None:
        _require_new(output)
    found, model = find_device(device), read_model(source, parameters)
    parent = load_profile(GPU_PARENT if found.gpus else default_profile())
    name = _slug(f"{found.label}-{model.name}")
    path = output or Path(f"{name}.yaml")
    _require_new(path)
    draft = _Draft(name, parent, model, found, choose_fit(model, found, parent))
    text = profile_text(draft)
    _require_valid(text)
    write_text(path, text)
    return path


def _require_valid(text: str) -> None:
    with tempfile.TemporaryDirectory(prefix="profile-") as folder:
        path = Path(folder) / "new.yaml"
        write_text(path, text)
        load_profile(str(path))


def _require_new(path: Path) -> None:
    if path.suffix not in (".yaml", ".yml"):
        raise FlowError(f"{path} does not end with .yaml.", "A profile is a YAML file.")
    if path.exists():
        raise FlowError(f"{path} exists already.", "Choose another --output, or remove it.")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower())[:LONGEST_NAME].strip("-.") or "model"


def profile_text(draft: _Draft) -> str:
    """Returns the profile as YAML; what it does not say comes from the profile that it extends."""
    sections = (_head, _model, _candidates, _accuracy, _performance, _engine, _deploy)
    return "\n".join("\n".join(section(draft)) + "\n" for section in sections if section(draft))


def _comment(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _head(draft: _Draft) -> list[str]:
    kind = "one GPU or several" if draft.device.gpus else "a CPU"
    return [
        *_comment(
            "Written by the command new-profile. Tasks, load, calibration text and margins "
            f"are those of {draft.parent.name}, the profile for {kind}: this file holds what "
            "depends on the model and the device. The margins were derived for the other model; "
            "its file says how to derive yours."
        ),
        f"extends: {draft.parent.name}",
        f"name: {draft.name}",
        f"description: {json.dumps(f'{draft.model.name} on {draft.place}.')}",
        f"reference_machine: {json.dumps(draft.place)}",
    ]


def _model(draft: _Draft) -> list[str]:
    model, shape = draft.model, draft.model.shape
    lines = ["model:", f"  name: {json.dumps(model.name)}", f"  source: {json.dumps(model.source)}"]
    if model.revision is not None:
        lines += [*_comment("the commit that was read: the hub's own branch may move", "  ")]
        lines += [f"  revision: {json.dumps(model.revision)}"]
    if draft.parent.model.wheel is not None:
        lines += [*_comment("instead of the wheel of the profile above", "  "), "  wheel: null"]
        lines += ['  note: ""']
    experts = f", {shape.experts} experts in a layer" if shape and shape.experts else ""
    origin = "computed from config.json" if shape else "counted, or as you gave it"
    lines += _comment(f"{origin}: {model.kind or 'unknown kind'}{experts}", "  ")
    return [*lines, f"  parameters: {model.parameters}"]


def _candidates(draft: _Draft) -> list[str]:
    made: list[str] = []
    for scheme, service in services(draft.model, draft.device, draft.fit.dtype).items():
        recipe = _recipe(scheme, draft)
        if service is None or service.state != "as stored":
            made += _comment(f"{scheme} is left out: {_why_not(service)}", "  ")
        elif recipe is None:
            made += _comment(f"{scheme} is left out: 32 columns do not divide its layers", "  ")
        else:
            text, why = recipe
            made += _comment(f"{scheme}: {service.kernels[0]} serves it here. {why}", "  ")
            made += [f"  - name: {NAMES[scheme]}", f"    recipe: {{{text}}}"]
    if not any(line.startswith("  - name") for line in made):
        raise FlowError(
            f"vLLM has no kernel that computes a scheme in its own types on {draft.place}.",
            "Name another device: --device h100.",
        )
    return ["candidates:", *made]


def _why_not(service: Service | None) -> str:
    if service is None:
        return "the table of kernels does not know it for this device"
    if service.state == "absent":
        return service.why
    return f"{service.state} on this device, so it would not compute faster"


def _recipe(scheme: str, draft: _Draft) -> tuple[str, str] | None:
    """Returns a scheme's recipe as YAML, and why; None if the scheme does not fit the model."""
    text, why = f"scheme: {scheme}, ", ""
    if scheme == "W4A16":
        size = group_size(draft.model, draft.fit.tensor_parallel)
        if size is None:
            return None
        text += f"algorithm: gptq, group_size: {size}, observer: mse"
        why = f"{size} columns share a scale: the most that divides every layer. GPTQ loses less."
    elif scheme == "W8A8":
        algorithm, why = ("gptq", "") if draft.device.gpus else ("rtn", "RTN takes minutes here.")
        text += f"algorithm: {algorithm}"
        if draft.model.kind in SMOOTHED:
            text += ", smoothing_strength: 0.8"
            why = f"{why} Activations are hard to quantise: SmoothQuant moves that to the weights."
        else:
            why = f"{why} SmoothQuant does not know the layers of {draft.model.kind!r}."
    elif scheme == "NVFP4":
        text, why = f"{text}algorithm: gptq", "Of four bits, GPTQ loses less than rounding."
    else:
        text, why = f"{text}algorithm: rtn", "Floats of 8 bits lose little by rounding alone."
    if draft.model.kind == "qwen2_moe":
        text += ", ignore: [lm_head, 're:.*shared_expert_gate$']"
    return text, why.strip()


def _accuracy(draft: _Draft) -> list[str]:
    chat, packaged = draft.model.chat, draft.parent.accuracy.packaged is not None
    if packaged:
        why = "the packaged tasks are texts to go on with, not questions in a chat"
    elif chat:
        why = "the model has a chat template, behind which it is deployed"
    else:
        why = "the model has no chat template"
    use = str(chat and not packaged).lower()
    return ["accuracy:", *_comment(why, "  "), f"  apply_chat_template: {use}"]


def _performance(draft: _Draft) -> list[str]:
    """Shortens the load for a model whose context is shorter than the load of the parent."""
    load, length = draft.parent.performance, draft.fit.length
    if load.prompt_tokens + load.output_tokens < length:
        return []
    return [
        "performance:",
        *_comment(f"the model's context is {length} tokens", "  "),
        f"  prompt_tokens: {length // 2}",
        f"  output_tokens: {length // 4}",
    ]


def _engine(draft: _Draft) -> list[str]:
    fit, model = draft.fit, draft.model
    known = model.context if model.context is not None else "an unknown number of"
    lines = [
        "engine:",
        *_comment(f"the model was made for {known} tokens; longer costs KV cache", "  "),
        f"  max_model_len: {fit.length}",
        *_comment(_why_dtype(draft), "  "),
        f"  dtype: {fit.dtype}",
    ]
    if not draft.device.gpus:
        return [*lines, *_cpu_engine(draft)]
    return [*lines, *_comment(_why_parallel(draft), "  "),
            f"  tensor_parallel: {fit.tensor_parallel}"]  # fmt: skip


def _why_dtype(draft: _Draft) -> str:
    if draft.fit.dtype == "float32":
        return "this processor converts every BF16 number before it computes"
    if draft.fit.dtype == "float16" and draft.model.dtype != "float16":
        return "vLLM refuses bfloat16 below compute capability 8.0"
    return f"the weights are published in {draft.model.dtype or 'a type that is not known'}"


def _why_parallel(draft: _Draft) -> str:
    need, usable = draft.fit.need, draft.fit.usable
    assert need is not None
    has = "an amount that is not known" if usable is None else gib(usable)
    start = f"to start, each GPU needs {gib(need.least)} ({gib(need.weights)} of weights)"
    if draft.fit.waits:
        return (
            f"{start}; vLLM may use {has}: the fewest GPUs that hold the model. The whole "
            f"load would need {gib(need.full)}, so requests wait for memory"
        )
    return (
        f"{start}, for the whole load {gib(need.full)}; vLLM may use {has}: the fewest GPUs that "
        "hold both"
    )


def _cpu_engine(draft: _Draft) -> list[str]:
    shape, fit = draft.model.shape, draft.fit
    width = 4 if fit.dtype == "float32" else 2
    cache = shape.cache_bytes(fit.length, width=width) if shape else GIB
    together = draft.model.parameters < SMALL
    why = "hold" if together else "might not hold"
    return [
        *_comment("room for one request of full length, and more for short ones", "  "),
        f"  kv_cache_gib: {max(1, -(-2 * cache // GIB))}",
        *_comment(f"the memory would {why} all candidates at once", "  "),
        f"  start_together: {str(together).lower()}",
    ]


def _deploy(draft: _Draft) -> list[str]:
    return [
        "deploy:",
        *_comment("put the price of your machine here, for the cost per million tokens", "  "),
        "  hourly_price_usd: null",
        *_comment("where your cluster will find the candidate: correct it before 07", "  "),
        f"  storage_uri: pvc://models/{_slug(draft.model.name)}",
    ]
