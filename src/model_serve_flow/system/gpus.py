"""Finds the NVIDIA GPUs that CUDA would use in this process, with nvidia-smi.

The library NVML answers the same, but in this process: a driver that hangs would hang the flow.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field

from model_serve_flow.system.records import Record

FIELDS = ("uuid", "name", "memory.total", "driver_version", "compute_cap")
LEAST_DRIVER = 580  # driver of CUDA 13, for which the pinned vLLM and PyTorch are built
ANSWER_SECONDS = 60
VISIBLE = "CUDA_VISIBLE_DEVICES"
MEBIBYTE = 1 << 20
MIG_PROFILE = r"(?:\d+c\.)?\d+g\.\d+gb(?:\+me)?"


class Gpu(Record):
    """One GPU, or one MIG instance of a GPU."""

    name: str
    memory_bytes: int | None = Field(description="none: nvidia-smi does not say")
    driver: str
    compute_capability: str


@dataclass(frozen=True)
class _Listed:
    uuid: str
    gpu: Gpu


def find_gpus(environment: Mapping[str, str] = os.environ) -> tuple[tuple[Gpu, ...], str | None]:
    """Finds the GPUs that CUDA would use, in CUDA's order.

    `CUDA_VISIBLE_DEVICES` is applied. A GPU that is split into MIG instances is replaced by its
    first instance, because a CUDA process uses only one. Memory is None if nvidia-smi does not
    report it.

    Args:
        environment: the environment variables.

    Returns:
        The GPUs, and a problem: why there is none, or which is lost. None: no problem.
    """
    if shutil.which("nvidia-smi") is None:
        return (), "nvidia-smi was not found: no NVIDIA driver is installed"
    text, problem = ask(f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits")
    rows = [row for row in map(_row, text.splitlines()) if row is not None]
    said = "; ".join(
        line.strip() for line in text.splitlines() if line.strip() and _row(line) is None
    )
    if not rows:
        return (), problem or (f"nvidia-smi failed: {said}" if said else "nvidia-smi lists no GPU")
    instances = _instances() if any(row.gpu.memory_bytes is None for row in rows) else {}
    listed = [found for row in rows for found in (instances.get(row.uuid) or [row])]
    seen = _visible(listed, environment)
    if not seen:
        return (
            (),
            (
                f"{VISIBLE} is {environment.get(VISIBLE, '')!r}, which leaves none of the "
                f"{len(listed)} GPUs"
            ),
        )
    return tuple(found.gpu for found in seen), (said or problem)


def driver_is_old(gpu: Gpu) -> bool:
    """Checks whether the driver is too old for the CUDA of the locks.

    Returns:
        False if the driver's version cannot be read.
    """
    major = gpu.driver.partition(".")[0]
    return major.isdigit() and int(major) < LEAST_DRIVER


def mig_profile(gpu: Gpu) -> str | None:
    """Returns the profile of a MIG instance as Kubernetes writes it, such as "1g.10gb".

    Returns:
        None for a whole GPU, or if nvidia-smi does not name the profile.
    """
    found = re.search(rf" MIG ({MIG_PROFILE})$", gpu.name)
    return found[1].replace("+", ".") if found else None


def ask(*arguments: str) -> tuple[str, str | None]:
    """Runs nvidia-smi and returns its output, and why the output may be incomplete."""
    try:
        done = subprocess.run(
            ["nvidia-smi", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=ANSWER_SECONDS,
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        return "", f"nvidia-smi did not answer: {error}"
    said = (done.stdout + done.stderr).strip()
    return done.stdout, f"nvidia-smi failed: {said}" if done.returncode else None


def _row(line: str) -> _Listed | None:
    """Parses a line of the output; None for a message, such as that of a lost GPU."""
    fields = [field.strip() for field in line.split(",")]
    if len(fields) < len(FIELDS) or not fields[0].startswith("GPU-"):
        return None
    uuid, *name, memory, driver, capability = fields
    size = int(memory) * MEBIBYTE if memory.isdigit() else None
    gpu = Gpu(name=", ".join(name), memory_bytes=size, driver=driver, compute_capability=capability)
    return _Listed(uuid, gpu)


def _instances() -> dict[str, list[_Listed]]:
    """Returns GPU uuid -> its first MIG instance with its memory, from nvidia-smi's XML."""
    text, _ = ask("-q", "-x")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return {}
    driver, profiles = root.findtext("driver_version", ""), _mig_profiles()
    found: dict[str, list[_Listed]] = {}
    for gpu in root.iter("gpu"):
        uuid, name = gpu.findtext("uuid", ""), gpu.findtext("product_name", "")
        capability = gpu.findtext("compute_cap") or _capability(uuid)
        for number, instance in enumerate(gpu.iter("mig_device")):
            total = instance.findtext("fb_memory_usage/total", "").split()
            size = int(total[0]) * MEBIBYTE if total and total[0].isdigit() else None
            profile = profiles.get(uuid, [])[number : number + 1]
            part = Gpu(
                name=" ".join([name, "MIG", *profile]),
                memory_bytes=size,
                driver=driver,
                compute_capability=capability,
            )
            found.setdefault(uuid, []).append(_Listed(f"MIG-{uuid}-{number}", part))
    return {uuid: parts[:1] for uuid, parts in found.items()}


def _mig_profiles() -> dict[str, list[str]]:
    """Returns GPU uuid -> the profiles of its MIG instances, such as "1g.10gb", in their order."""
    text, _ = ask("-L")
    found: dict[str, list[str]] = {}
    uuid = ""
    for line in text.splitlines():
        if gpu := re.search(r"^GPU \d+: .*\(UUID: (GPU-[^)]+)\)", line):
            uuid = gpu[1]
        elif instance := re.search(rf"^\s+MIG ({MIG_PROFILE})\s", line):
            found.setdefault(uuid, []).append(instance[1])
    return found


def _capability(uuid: str) -> str:
    text, _ = ask(f"--id={uuid}", "--query-gpu=compute_cap", "--format=csv,noheader")
    return text.strip()


def _visible(listed: list[_Listed], environment: Mapping[str, str]) -> list[_Listed]:
    """Returns the GPUs that `CUDA_VISIBLE_DEVICES` allows, in its order.

    As in CUDA, the first unknown entry ends the list.
    """
    if environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        # CUDA's default order: fastest first
        listed = sorted(listed, key=lambda found: _generation(found.gpu), reverse=True)
    if (value := environment.get(VISIBLE)) is None:
        return listed
    seen: list[_Listed] = []
    for entry in (part.strip() for part in value.split(",")):
        if entry.isdigit() and int(entry) < len(listed):
            seen.append(listed[int(entry)])
        elif named := [found for found in listed if entry and found.uuid.startswith(entry)]:
            seen.append(named[0])
        elif entry.startswith("MIG-") and len(listed) == 1:
            seen.append(listed[0])
        else:
            break
    return seen


def _generation(gpu: Gpu) -> tuple[int, ...]:
    return tuple(int(part) for part in gpu.compute_capability.split(".") if part.isdigit())
