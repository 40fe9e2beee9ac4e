"""A program that the profile describes serves instead of vLLM, and 02's notebook measures it.

The program is the server of the second sequence. The profile asks for the base's performance only.
"""

import shutil

import pytest
import yaml
from conftest import CANARY, ROOT, call, flow_command
from support.profiles import CI

from model_serve_flow.flow.flow import Flow
from model_serve_flow.system.files import read_json

ARTIFACTS = ROOT / "artifacts" / "command-engine"
LOAD = {"concurrency": [1, 2], "prompt_tokens": 16, "output_tokens": 4, "seconds": 1}
SERVER = ("{python}", "-m", "serving_from_scratch.cli", "serve", "{model}", "--length", "256")
PROGRAM = {
    "name": "serving-from-scratch",
    "command": [*SERVER, "--host", "{host}", "--port", "{port}", "--name", "{served_name}"],
    "version": {"path": "/facts", "field": "version"},
    "key_variable": "SERVING_FROM_SCRATCH_API_KEY",
}
VLLM = {"enforce_eager": False, "kv_cache_gib": None, "in_process_worker": False}


@pytest.fixture(scope="module")
def measured(flow, tmp_path_factory):
    """The finished run's base, served by that program: (what the run said, its flow)."""
    profile = tmp_path_factory.mktemp("profile") / "own-server.yaml"
    absent = dict.fromkeys(("candidates", "calibration", "accuracy", "deploy"))
    load = {
        **LOAD,
        "warmup_seconds": 0.5,
        "min_requests": 1,
        "repeats": 1,
        "blocks": 1,
        "slo": None,
    }
    engine = {**VLLM, "kind": "command", "program": PROGRAM, "max_model_len": 256}
    document = {
        "extends": CI,
        "name": "own-server",
        "performance": load,
        "engine": engine,
        **absent,
    }
    document["model"] = {"wheel": None, "source": str(flow.workspace.model("base"))}
    profile.write_text(yaml.safe_dump(document))
    shutil.rmtree(ARTIFACTS, ignore_errors=True)
    outcome = call(flow_command(profile=str(profile), artifacts=ARTIFACTS))
    assert outcome.returncode == 0, outcome.stdout[-6000:] + outcome.stderr[-6000:]
    return outcome, Flow.open(str(profile), {}, ARTIFACTS)


def test_only_the_steps_that_the_profile_asks_for_run(measured):
    outcome, here = measured
    steps = {"00_Setup", "02_Base_Performance"}
    assert set(read_json(here.workspace.manifest)["steps"]) == steps
    assert all(f"{step}: finished" in outcome.stdout for step in steps)
    assert "01_Base_Accuracy" not in outcome.stdout and "06_Comparison" not in outcome.stdout


def test_every_load_point_is_measured_and_the_program_says_its_version(measured):
    result = measured[1].workspace.performance("base")
    assert result.unmeasured() == [] and set(result.measured_loads()) == {1, 2}
    assert all(point.output_tokens == LOAD["output_tokens"] for point in result.points)
    assert (result.engine.name, result.engine.names_kernels) == (PROGRAM["name"], False)
    assert result.engine.version and result.engine.peak_memory_bytes > 2**28
    assert result.protocol["engine_arguments"] == PROGRAM["command"]


def test_the_key_of_the_endpoint_is_in_no_file(measured):
    files = [path for path in measured[1].workspace.root.rglob("*") if path.is_file()]
    texts = [path for path in files if path.suffix not in (".safetensors", ".gguf")]
    assert any("02_Base_Performance" in path.name for path in texts)
    assert not [path for path in texts if CANARY.encode() in path.read_bytes()]
