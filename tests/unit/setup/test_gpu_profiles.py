"""Every GPU profile: `plan` and `doctor` on the machine it was written for, and on others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.nvidia_smi import line, put_on_path

from model_serve_flow import cli
from model_serve_flow.flow.load import load_profile
from model_serve_flow.system import hardware
from model_serve_flow.system.sizes import GIB

T4 = line(1, "Tesla T4", "15360", sm="7.5")
L40S = line(1, "NVIDIA L40S", "46068")
A100 = line(1, "NVIDIA A100-SXM4-80GB", "81920", sm="8.0")
H100S = tuple(line(number, "NVIDIA H100 80GB HBM3", "81559", sm="9.0") for number in range(4))
H200 = line(1, "NVIDIA H200", "143771", sm="9.0")
B200 = line(1, "NVIDIA B200", "183359", sm="10.0")
SMALL, LARGE, HUGE = "colab-t4", "gpu-llama-3.1-8b", "gpu-llama-3.3-70b"
FASTER = "gpu-h200-llama-3.1-8b"

Doctor = Callable[..., Result]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """Runs `doctor` on a machine with these lines of nvidia-smi, and so much memory and disk."""
    inspect = hardware.inspect_machine
    monkeypatch.setenv("MODEL_SERVE_FLOW_ARTIFACTS", str(tmp_path / "artifacts"))

    def run(profile: str, *lines: str, memory: int = 400, disk: int = 900) -> Result:
        put_on_path(tmp_path, monkeypatch, *lines)
        room = {"memory_available_bytes": memory * GIB, "disk_free_bytes": disk * GIB}
        monkeypatch.setattr(
            hardware, "inspect_machine", lambda where: inspect(where).model_copy(update=room)
        )
        return CliRunner().invoke(cli.main, ["doctor", "--profile", profile])

    return run


@pytest.mark.parametrize(
    ("profile", "gpus", "memory"),
    [
        (SMALL, (T4,), 12),
        (LARGE, (L40S,), 64),
        (FASTER, (H200,), 64),
        (HUGE, H100S, 384),
    ],
)
def test_each_profile_fits_its_reference_machine_without_a_warning(
    doctor: Doctor, profile: str, gpus: tuple[str, ...], memory: int
) -> None:
    done = doctor(profile, *gpus, memory=memory)
    assert done.exit_code == 0, done.output
    assert "WARNING" not in done.output and "does not fit" not in done.output
    assert f"{memory} GiB" in load_profile(profile).reference_machine


@pytest.mark.parametrize(
    ("profile", "gpus", "said"),
    [
        (SMALL, (L40S,), ""),
        (LARGE, (A100,), "WARNING kernel for FP8_DYNAMIC"),
        (FASTER, (A100,), "WARNING GPU memory for the whole load"),
        (HUGE, (H200,), "4 NVIDIA GPUs (tensor_parallel x"),
        (HUGE, (L40S,) * 4, "WARNING GPU memory of each for the whole load"),
        (HUGE, (line(1),) * 4, "GPU memory of each to serve: 20.2 GiB"),
        (LARGE, (T4,), "engine.dtype=float16"),
        (LARGE, (B200,), "kernel for W8A8"),
        (SMALL, (B200,), "no compiled INT8 kernel"),
    ],
)
def test_on_other_machines_what_is_missing_is_said(
    doctor: Doctor, profile: str, gpus: tuple[str, ...], said: str
) -> None:
    done = doctor(profile, *gpus)
    shown = " ".join(done.output.split())
    assert said in shown
    refused = "does not fit the profile" in shown
    assert done.exit_code == (1 if refused else 0)
    assert refused == bool(said and "WARNING" not in said)


@pytest.mark.parametrize(
    ("profile", "served"),
    [
        (SMALL, "W8A8: as stored on compute capability 7.5"),
        (LARGE, "FP8_DYNAMIC: absent on compute capability 7.5; weights only on"),
        (FASTER, "W4A16: absent on compute capability 7.5; as stored on"),
        (HUGE, "--tensor-parallel-size 4"),
    ],
)
def test_plan_shows_kernels_and_parallelism(profile: str, served: str) -> None:
    done = CliRunner().invoke(cli.main, ["plan", "--profile", profile])
    assert done.exit_code == 0 and served in done.output


@pytest.mark.parametrize("profile", [SMALL, LARGE, FASTER, HUGE])
def test_instruct_models_are_asked_behind_their_chat_template(profile: str) -> None:
    config = load_profile(profile)
    assert config.accuracy.apply_chat_template and "Instruct" in config.model.name
    assert config.model.source is not None and "Instruct" in config.model.source
