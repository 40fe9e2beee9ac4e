"""What nvidia-smi prints, read: programs of that name print what is known from the field."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from support.nvidia_smi import line, put_on_path

from model_serve_flow.system.gpus import driver_is_old, find_gpus

MIG = """<?xml version="1.0" ?>
<nvidia_smi_log>
  <driver_version>580.95.05</driver_version>
  <gpu id="00000000:3B:00.0">
    <product_name>NVIDIA H100 80GB HBM3</product_name>
    <uuid>GPU-1</uuid>
    <fb_memory_usage><total>Insufficient Permissions</total></fb_memory_usage>
    <mig_devices><mig_device>
      <fb_memory_usage><total>20096 MiB</total></fb_memory_usage>
    </mig_device></mig_devices>
  </gpu>
</nvidia_smi_log>
"""
UNIFIED = (
    MIG.replace("Insufficient Permissions", "N/A").partition("    <mig_devices>")[0]
    + "</gpu></nvidia_smi_log>"
)
LOST = (
    "Unable to determine the device handle for GPU0000:86:00.0: GPU is lost. Reboot the system to "
    "recover this GPU"
)


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return functools.partial(put_on_path, tmp_path, monkeypatch)


def test_without_a_driver_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert find_gpus({}) == ((), "nvidia-smi was not found: no NVIDIA driver is installed")


@pytest.mark.parametrize(
    ("lines", "status", "problem"),
    [
        (("No devices were found",), 6, "No devices were found"),
        ((), 0, "lists no GPU"),
        (('Field "compute_cap" is not a valid field to query.',), 2, "not a valid field"),
        (
            ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver",),
            9,
            "communicate",
        ),
    ],
)
def test_why_there_is_none(
    nvidia_smi: Callable[..., None], lines: tuple[str, ...], status: int, problem: str
) -> None:
    nvidia_smi(*lines, status=status)
    gpus, reason = find_gpus({})
    assert gpus == () and problem in reason


def test_all_gpus_count(nvidia_smi: Callable[..., None]) -> None:
    nvidia_smi(*(line(number) for number in range(4)))
    gpus, problem = find_gpus({})
    assert [gpu.memory_bytes for gpu in gpus] == [23034 << 20] * 4 and problem is None


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["NVIDIA L40S", "NVIDIA T400 4GB"]),
        ("0", ["NVIDIA L40S"]),
        ("1", ["NVIDIA T400 4GB"]),
        ("1,0", ["NVIDIA T400 4GB", "NVIDIA L40S"]),
        ("GPU-7", ["NVIDIA L40S"]),
        ("0,5,1", ["NVIDIA L40S"]),
        ("", []),
        ("-1", []),
    ],
)
def test_only_the_gpus_that_cuda_sees_count(
    nvidia_smi: Callable[..., None], visible: str | None, names: list[str]
) -> None:
    nvidia_smi(line(6, "NVIDIA T400 4GB", "4096", sm="7.5"), line(7, "NVIDIA L40S", "46068"))
    gpus, problem = find_gpus({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert [gpu.name for gpu in gpus] == names
    assert names or "CUDA_VISIBLE_DEVICES" in problem


def test_in_the_order_of_the_bus_where_cuda_is_told_so(nvidia_smi: Callable[..., None]) -> None:
    nvidia_smi(line(6, "NVIDIA T400 4GB", "4096", sm="7.5"), line(7, "NVIDIA L40S", "46068"))
    gpus, _ = find_gpus({"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
    assert [gpu.name for gpu in gpus] == ["NVIDIA T400 4GB"]


def test_a_mig_instance_has_its_own_memory(nvidia_smi: Callable[..., None]) -> None:
    nvidia_smi(line(1, "NVIDIA H100 80GB HBM3", "[Insufficient Permissions]", sm="9.0"), xml=MIG)
    ((gpu,), problem) = find_gpus({"CUDA_VISIBLE_DEVICES": "MIG-4d806f22"})
    assert (gpu.memory_bytes, gpu.compute_capability, problem) == (20096 << 20, "9.0", None)
    assert "MIG" in gpu.name


@pytest.mark.parametrize("xml", ["", UNIFIED, "no XML"])
@pytest.mark.parametrize("memory", ["[N/A]", "[Insufficient Permissions]", "[Unknown Error]"])
def test_memory_that_nvidia_smi_does_not_tell_is_unknown(
    nvidia_smi: Callable[..., None], xml: str, memory: str
) -> None:
    nvidia_smi(line(1, "NVIDIA GB10", memory, sm="12.1"), xml=xml)
    (gpu,) = find_gpus({})[0]
    assert gpu.memory_bytes is None and gpu.name == "NVIDIA GB10"


def test_a_lost_gpu_is_named_and_the_others_count(nvidia_smi: Callable[..., None]) -> None:
    nvidia_smi(line(0), LOST, line(2), status=15)
    gpus, problem = find_gpus({})
    assert len(gpus) == 2 and "GPU is lost" in problem


def test_a_driver_before_cuda_13_is_old(nvidia_smi: Callable[..., None]) -> None:
    nvidia_smi(line(0, driver="550.54.15"), line(1, driver="580.65.06"), line(2, driver="[N/A]"))
    assert [driver_is_old(gpu) for gpu in find_gpus({})[0]] == [True, False, False]
