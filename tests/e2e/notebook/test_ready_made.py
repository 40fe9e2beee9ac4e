"""A checkpoint made elsewhere is taken over and verified, then measured,
compared and deployed as any candidate.

Elsewhere is played by the finished run: its INT8 candidate, saved in several files as large models
are. It must be judged exactly as the candidate that it is.
"""

import shutil

import pytest
import yaml
from conftest import ROOT, call, copy_linked, flow_command
from support.profiles import CI

from model_serve_flow.flow.flow import Flow
from model_serve_flow.system.files import read_json

NAME, ORIGINAL, SHARD = "from-elsewhere", "w8a8-int8", "60MB"
ARTIFACTS = ROOT / "artifacts" / "ready-made"


@pytest.fixture(scope="module")
def checkpoint(flow, tmp_path_factory):
    """The INT8 candidate in shards with an index,
    and none of the records that the flow keeps beside a model.
    """
    from huggingface_hub import save_torch_state_dict
    from safetensors.torch import load_file

    made, folder = flow.workspace.model(ORIGINAL), tmp_path_factory.mktemp("elsewhere")
    for name in (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        shutil.copy(made / name, folder)
    shutil.copy(made / "chat_template.jinja", folder)
    save_torch_state_dict(load_file(made / "model.safetensors"), folder, max_shard_size=SHARD)
    assert len(list(folder.glob("model-*.safetensors"))) >= 3
    return folder


@pytest.fixture(scope="module")
def judged(flow, checkpoint):
    """A run with that candidate in a workspace where the base is measured already:
    (what it said, its flow).
    """
    profile = checkpoint.parent / "ready-made.yaml"
    # so few items may leave it INCONCLUSIVE
    settings = {"candidate": NAME, "override_reason": "a test"}
    document = {
        "extends": CI,
        "name": NAME,
        "candidates": [{"name": NAME, "source": str(checkpoint)}],
    }
    profile.write_text(yaml.safe_dump({**document, "deploy": settings}))
    shutil.rmtree(ARTIFACTS, ignore_errors=True)
    copy_linked(flow.workspace.root, ARTIFACTS / NAME)
    outcome = call(flow_command(profile=str(profile), artifacts=ARTIFACTS))
    assert outcome.returncode == 0, outcome.stdout[-6000:] + outcome.stderr[-6000:]
    yield outcome.stdout, Flow.open(str(profile), {}, ARTIFACTS)
    shutil.rmtree(ARTIFACTS)


def test_the_base_is_not_measured_again(judged):
    output, _ = judged
    skipped = [line.split()[0] for line in output.splitlines() if "skipped" in line]
    assert skipped == ["00_Setup", "01_Base_Accuracy", "02_Base_Performance"]


def test_it_is_inspected_and_verified_and_nothing_of_a_recipe_is_made_up(flow, judged):
    _, ours = judged
    taken, made = ours.workspace.compression(NAME), flow.workspace.compression(ORIGINAL)
    assert (
        taken.recipe is None
        and taken.calibration is None
        and taken.origin == ours.candidates[0].source
    )
    assert (taken.scheme, taken.quantized_layers, taken.ignored_layers) == (
        made.scheme, made.quantized_layers, made.ignored_layers,
    )  # fmt: skip


def test_every_answer_is_that_of_the_candidate_it_is(flow, judged):
    _, ours = judged
    assert ours.workspace.accuracy(NAME).tasks == flow.workspace.accuracy(ORIGINAL).tasks
    assert "Int8" in " ".join(ours.workspace.accuracy(NAME).engine.kernels)


CORRECTED = {"adjusted_p", "simultaneous_ci95", "items_to_settle"}  # over all candidates of a run


def by_itself(candidate):
    """What is found of a candidate whatever other candidates there are."""
    found = candidate.model_dump(include={"accuracy", "suite", "kl"})
    differences = [d for task in found["accuracy"].values() for d in task.values()]
    for difference in (*differences, found["suite"]):
        for field in CORRECTED:
            difference.pop(field)
    return found


def test_it_is_judged_as_the_candidate_it_is(flow, judged):
    _, ours = judged
    (found,) = ours.workspace.comparison().candidates
    original = next(c for c in flow.workspace.comparison().candidates if c.name == ORIGINAL)
    assert by_itself(found) == by_itself(original)
    assert (found.verdict, found.scheme) == (original.verdict, original.scheme)


def test_it_is_deployed_from_its_own_files(judged):
    _, ours = judged
    record = read_json(ours.workspace.deploy / "deployment.json")
    assert record["checks"] and all(check["ok"] for check in record["checks"])
    assert (
        record["model"]["name"] == NAME
        and record["model"]["sha256"] == ours.workspace.accuracy(NAME).model.sha256
    )
