"""Checks that the device can serve the profile: GPUs, driver, dtype, memory, and kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.profile import Candidate, FlowConfig
from model_serve_flow.setup.checks import Check, fits
from model_serve_flow.setup.gpu_memory import gpu_need
from model_serve_flow.setup.shape import base_settings, shape_of, source_settings
from model_serve_flow.system import schemes
from model_serve_flow.system.gpus import LEAST_DRIVER, Gpu, driver_is_old
from model_serve_flow.system.scheme_names import scheme_name
from model_serve_flow.system.schemes import Service
from model_serve_flow.system.sizes import gib

if TYPE_CHECKING:
    from model_serve_flow.system.hardware import Machine

GPU_SHARE = 0.9  # vLLM's own default of gpu_memory_utilization
NOT_KNOWN = "not known"
UNREAD = "UNKNOWN"
INT4 = "W4A16"  # schemes that begin so have the check "CPU for INT4"


def gpu_checks(flow: Flow, machine: Machine) -> list[Check]:
    """Runs all GPU checks of a GPU profile; only the failed count if there are too few GPUs."""
    used = machine.gpus[: flow.config.engine.gpus]
    count = _check_count(flow.config, machine)
    if not count.ok:
        return [count]
    checks = [count, *([_check_driver(used[0])] if driver_is_old(used[0]) else [])]
    lowest = min(used, key=lambda gpu: _number(gpu.compute_capability))
    dtype = _served_dtype(flow)
    if (refused := _check_dtype(lowest, dtype)) is not None:
        checks.append(refused)
        dtype = "float16"
    found = {scheme: schemes.on_gpu(scheme, lowest.compute_capability, dtype,
                                    experts=_experts(flow))
             for scheme in _schemes(flow)}  # fmt: skip
    checks += scheme_checks(flow, f"{lowest.name} ({lowest.compute_capability})", found)
    return [*checks, *_check_memory(flow, used)]


def cpu_checks(flow: Flow, machine: Machine) -> list[Check]:
    """Checks that vLLM's CPU build has a kernel for every scheme except W4A16.

    W4A16 has a check of its own.
    """
    features = (machine.architecture, machine.cpu_features)
    found = {scheme: schemes.on_cpu(scheme, *features, experts=_experts(flow))
             for scheme in _schemes(flow) if not scheme.startswith(INT4)}  # fmt: skip
    return scheme_checks(flow, machine.cpu, found)


def scheme_checks(flow: Flow, device: str, found: dict[str, Service | None]) -> list[Check]:
    """Checks each scheme: fails if vLLM has no kernel, warns if vLLM uses a fallback."""
    checks = []
    for scheme, service in found.items():
        names = ", ".join(c.name for c in flow.candidates if scheme in schemes_of(c))
        state = "unknown" if service is None else service.state
        checks.append(
            Check(
                name=f"kernel for {scheme}",
                ok=state != "absent",
                warning=state not in ("as stored", "absent"),
                value=f"{device}: {service or 'not in the table of kernels'}",
                needed=f"a kernel of vLLM {schemes.pinned_version()} that serves {names}",
                advice=ADVICE[state],
            )
        )
    return checks


ADVICE = {
    "as stored": "",
    "absent": "Take these candidates out of the profile, give them another scheme, or use another "
    "device.",
    "weights only": "It saves memory as a scheme for weights alone does, such as W4A16, and does "
    "not compute faster.",
    "emulated": "It is slower than the base: choose another scheme for this device.",
    "unknown": "Whether vLLM can serve it shows only when it starts.",
}


def scheme_lines(config: FlowConfig) -> list[str]:
    """Lists for each scheme how vLLM serves it on which kinds of device."""
    wanted = dict.fromkeys(scheme for c in config.candidates for scheme in schemes_of(c))
    return [f"{scheme}: {_where(scheme, config)}" for scheme in wanted]


def _where(scheme: str, config: FlowConfig) -> str:
    if config.device == "cpu":
        kinds = {
            "AVX2": ("avx2",),
            "AVX-512": ("avx2", "avx512f"),
            "AMX": ("avx2", "avx512f", "amx_tile"),
        }
        states = {
            kind: schemes.on_cpu(scheme, "x86_64", features) for kind, features in kinds.items()
        }
    else:
        dtype = "float16" if config.engine.dtype == "float16" else "bfloat16"
        states = {known: schemes.on_gpu(scheme, known, dtype) for known in schemes.capabilities()}
    groups: dict[str, list[str]] = {}
    for place, service in states.items():
        groups.setdefault(service.state if service else NOT_KNOWN, []).append(place)
    kind = "" if config.device == "cpu" else "compute capability "
    return "; ".join(f"{state} on {kind}{', '.join(places)}" for state, places in groups.items())


def _schemes(flow: Flow) -> list[str]:
    return list(dict.fromkeys(scheme for c in flow.candidates for scheme in schemes_of(c)))


def schemes_of(candidate: Candidate) -> list[str]:
    """Lists what the engine needs kernels for: the schemes of the weights, and of the KV cache.

    They are the recipe's, or those of a ready-made checkpoint whose config.json is here already.
    """
    if (recipe := candidate.recipe) is not None:
        return [recipe.scheme, *([schemes.KV_CACHE] if recipe.kv_cache_scheme else [])]
    settings = source_settings(str(candidate.source), candidate.revision) or {}
    quantised = settings.get("quantization_config")
    if not isinstance(quantised, dict):
        return []
    try:
        return scheme_name(quantised).split("+")
    except (KeyError, TypeError):
        return [UNREAD]  # 03 says what is wrong with it


def _experts(flow: Flow) -> bool:
    shape = shape_of(base_settings(flow) or {})
    return bool(shape and shape.experts)


def _served_dtype(flow: Flow) -> str:
    """Returns the dtype that the engine will use: the profile's, or the checkpoint's for "auto"."""
    dtype = flow.config.engine.dtype
    if dtype != "auto":
        return dtype
    settings = base_settings(flow) or {}
    named = settings.get("dtype") or settings.get("torch_dtype") or "bfloat16"
    # vLLM serves a float32 checkpoint in float16
    return "float16" if named == "float32" else str(named)


def _check_count(config: FlowConfig, machine: Machine) -> Check:
    wanted = max(config.engine.gpus, config.calibration.data_parallel)
    keys = "tensor_parallel x pipeline_parallel"
    if wanted > config.engine.gpus:
        keys = "calibration.data_parallel"
    value = ", ".join(gpu.name for gpu in machine.gpus) or f"none ({machine.gpu_problem})"
    problem = f" ({machine.gpu_problem})" if machine.gpus and machine.gpu_problem else ""
    return Check(
        name="GPU" if wanted == 1 else "GPUs",
        ok=len(machine.gpus) >= wanted,
        warning=bool(problem),
        value=f"{value}{problem}",
        needed="an NVIDIA GPU" if wanted == 1 else f"{wanted} NVIDIA GPUs ({keys})",
        advice="A GPU of this machine is lost or cannot be read: restart it, or hide the GPU from "
        "CUDA."
        if problem
        else "This profile cannot run here: use a machine with such GPUs, or the profile "
        "cpu-smollm2.",
    )


def _check_driver(gpu: Gpu) -> Check:
    return Check(
        name="GPU driver",
        ok=False,
        value=gpu.driver,
        needed=f"{LEAST_DRIVER} or newer, for the CUDA 13 that vLLM is built for",
        advice="Update the driver, or use a machine that has it.",
    )


def _check_dtype(gpu: Gpu, dtype: str) -> Check | None:
    """Returns a failed check if vLLM refuses the dtype on this GPU."""
    if dtype != "bfloat16" or not 0 < _number(gpu.compute_capability) < 8:
        return None
    return Check(
        name="engine.dtype",
        ok=False,
        value=f"{dtype} on {gpu.name}, of compute capability {gpu.compute_capability}",
        needed="compute capability 8.0 for bfloat16, or vLLM does not start",
        advice="Serve in 16-bit floats: --set engine.dtype=float16.",
    )


def _check_memory(flow: Flow, used: Sequence[Gpu]) -> list[Check]:
    """Checks that vLLM starts, and that all requests of the highest load fit at once."""
    need = gpu_need(flow.config, shape_of(base_settings(flow) or {}))
    known = [gpu.memory_bytes for gpu in used if gpu.memory_bytes is not None]
    if not known:
        return [_unknown_memory(used[0], need.least)]
    usable = int((flow.config.engine.gpu_memory_utilization or GPU_SHARE) * min(known))
    each = " of each" if len(used) > 1 else ""
    advice = (
        f"Use GPUs like the reference ({flow.config.reference_machine}), more of them, or a "
        "smaller model."
    )
    start = fits(f"GPU memory{each} to serve", usable, need.least, advice)
    if not start.ok or usable >= need.full:
        return [start]
    busiest = max(flow.config.performance.concurrency, default=0)
    waits = (
        f"Requests wait for each other's memory at concurrency {busiest}: the figures there show "
        "it too."
    )
    full = fits(f"GPU memory{each} for the whole load", usable, need.full, waits)
    return [start, full.model_copy(update={"ok": True, "warning": True})]


def _unknown_memory(gpu: Gpu, needed: int) -> Check:
    return Check(
        name="GPU memory to serve",
        ok=True,
        warning=True,
        value=f"{NOT_KNOWN} of {gpu.name}",
        needed=gib(needed),
        advice="nvidia-smi does not tell it, as for a MIG instance or memory shared with the "
        "processor: look yourself.",
    )


def _number(capability: str) -> float:
    try:
        return float(capability)
    except ValueError:
        return 0.0
