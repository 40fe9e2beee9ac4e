"""The flow of these tests ran with a Service named vllm, a proxy that answers nothing,
and no compiler.
"""

import os
import shutil
from pathlib import Path

from conftest import call, flow_command
from support.surroundings import COMPILER, SERVICE, hostile

from model_serve_flow.flow.results.measured import Busy
from model_serve_flow.run.steps import STEPS
from model_serve_flow.system.files import read_json

PURPOSES = {"accuracy", "performance", "deploy"}


def test_the_surroundings_were_as_bad_as_they_say(tmp_path):
    environment = hostile(tmp_path)
    assert shutil.which("sh", path=environment["PATH"]) and shutil.which(
        "git", path=environment["PATH"]
    )
    assert not [
        path for path in Path(environment["PATH"]).iterdir() if COMPILER.fullmatch(path.name)
    ]
    assert (
        shutil.which("g++", path=environment["PATH"]) is None
        and shutil.which(environment["CXX"]) is None
    )
    assert not {"NO_PROXY", "no_proxy", "TORCH_COMPILE_DISABLE"} & environment.keys()


def test_every_step_ran_to_its_end(flow, tmp_path):
    """And a second run, in the same surroundings, has nothing to do."""
    outcome = call(flow_command(), hostile(tmp_path))
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert outcome.stdout.count("skipped") >= len(STEPS)


def test_every_server_was_started_without_what_breaks_it_and_that_is_recorded(flow):
    servers = read_json(flow.workspace.manifest)["servers"]
    assert {name.partition("-")[0] for name in servers} == PURPOSES
    for record in servers.values():
        assert set(SERVICE) <= set(record["not_handed_on"])
        assert record["variables"]["TORCH_COMPILE_DISABLE"] == "1"
        assert record["variables"]["OMP_WAIT_POLICY"] == os.environ.get(
            "OMP_WAIT_POLICY", "passive"
        )


def test_no_process_compiled_anything(flow):
    logs = "".join(path.read_text(errors="replace") for path in flow.workspace.logs.glob("*.log"))
    assert (
        "LLM engine (v" in logs and "InvalidCxxCompiler" not in logs and "torchinductor" not in logs
    )


def test_how_busy_the_machine_was_is_in_the_manifest(flow):
    manifest = read_json(flow.workspace.manifest)
    found = Busy.model_validate(manifest["busy"])
    assert found.seconds >= 2 and found.cores == manifest["hardware"]["cores"]
    assert manifest["variables"]["OMP_WAIT_POLICY"] == os.environ.get("OMP_WAIT_POLICY", "passive")
