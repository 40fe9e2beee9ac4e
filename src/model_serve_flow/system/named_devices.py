"""Names the devices that a profile can be written for: those found here, and well-known GPUs."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass

from model_serve_flow.errors import FlowError
from model_serve_flow.system.gpus import LEAST_DRIVER, MEBIBYTE, Gpu, find_gpus
from model_serve_flow.system.processor import CPUINFO, describe_cpu

MOST_GPUS = 8  # in one machine
# name -> what nvidia-smi prints: product, MiB, compute capability
GPUS = {
    "t4": ("Tesla T4", 15360, "7.5"),
    "a10": ("NVIDIA A10", 23028, "8.6"),
    "a100-40gb": ("NVIDIA A100-SXM4-40GB", 40960, "8.0"),
    "a100": ("NVIDIA A100-SXM4-80GB", 81920, "8.0"),
    "l4": ("NVIDIA L4", 23034, "8.9"),
    "l40s": ("NVIDIA L40S", 46068, "8.9"),
    "h100": ("NVIDIA H100 80GB HBM3", 81559, "9.0"),
    "h200": ("NVIDIA H200", 143771, "9.0"),
    "b200": ("NVIDIA B200", 183359, "10.0"),
}


@dataclass(frozen=True)
class Device:
    """What a profile is written for.

    Attributes:
        label: short name, such as "cpu" or "h100".
        gpus: the GPUs that it may use; none: a CPU.
        cpu: the processor's name.
        architecture: the processor's, such as "x86_64".
        features: of the processor, as in /proc/cpuinfo.
    """

    label: str
    gpus: tuple[Gpu, ...]
    cpu: str
    architecture: str
    features: tuple[str, ...]


def find_device(name: str | None = None) -> Device:
    """Returns the named device; without a name, this machine's GPUs, or its processor.

    Args:
        name: "cpu", or a GPU such as "h100" or "4xh100". Without a number, as many as a machine
            holds.

    Raises:
        FlowError: the name is unknown; the message lists the known ones.
    """
    if name == "cpu":
        return _device("cpu", ())
    if name is not None:
        return _device(name.lower(), _named(name.lower()))
    gpus, _ = find_gpus()
    if not gpus:
        return _device("cpu", ())
    return _device(re.sub(r"[^a-z0-9]+", "-", gpus[0].name.lower()).strip("-"), gpus)


def _named(name: str) -> tuple[Gpu, ...]:
    match = re.fullmatch(r"(?:([1-8])x)?(.+)", name)
    if match is None or match[2] not in GPUS:
        raise FlowError(
            f"Unknown device {name!r}.",
            f"Devices: cpu, {', '.join(GPUS)}; several GPUs as in 4xh100 (at most {MOST_GPUS}).",
        )
    product, mebibytes, capability = GPUS[match[2]]
    gpu = Gpu(
        name=product,
        memory_bytes=mebibytes * MEBIBYTE,
        driver=str(LEAST_DRIVER),
        compute_capability=capability,
    )
    return (gpu,) * int(match[1] or MOST_GPUS)


def _device(label: str, gpus: tuple[Gpu, ...]) -> Device:
    there = CPUINFO.is_file()
    text = CPUINFO.read_text(encoding="utf-8", errors="replace") if there else ""
    cpu, features = describe_cpu(text)
    return Device(label, gpus, cpu, platform.machine(), features)
