"""A profile that the flow wrote for a local folder runs: its base is taken over by 00."""

import shutil

from conftest import PROGRAM, ROOT, call, flow_command

from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.workspace import describe_model

ARTIFACTS = ROOT / "artifacts" / "new-profile"


def test_a_written_profile_is_set_up_with_its_model(flow, tmp_path):
    base, profile = flow.workspace.model("base"), tmp_path / "mine.yaml"
    written = call(
        [*PROGRAM, "new-profile", str(base), "--device", "cpu", "--output", str(profile)]
    )
    assert written.returncode == 0, written.stdout + written.stderr
    shutil.rmtree(ARTIFACTS, ignore_errors=True)
    done = call(flow_command("--only", "00", profile=str(profile), artifacts=ARTIFACTS))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    ours = Flow.open(str(profile), {}, ARTIFACTS).workspace
    sizes = [describe_model("base", place).size_bytes for place in (ours.model("base"), base)]
    assert sizes[0] == sizes[1]
    shutil.rmtree(ARTIFACTS)
