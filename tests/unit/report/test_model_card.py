"""The model card: metadata the hub can read, the verdict first,
and nothing written to a folder that is not ours.
"""

import factories
import pytest
from huggingface_hub import ModelCard

pytest.importorskip("matplotlib")

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.profile import Candidate
from model_serve_flow.flow.workspace import Workspace
from model_serve_flow.report.model_card import write_model_card
from model_serve_flow.system.digests import folder_digest
from model_serve_flow.system.files import write_json

COMPARISON = factories.sample_comparison()


@pytest.fixture
def flow(tmp_path):
    space = Workspace(tmp_path)
    for name in ("w8a8-int8", "w4a16-int4"):
        space.model(name).mkdir(parents=True)
        (space.model(name) / "model.safetensors").write_bytes(name.encode())
        write_json(space.results(name) / "compression.json", factories.compression(name))
    return Flow(factories.config(), space)


def with_model(flow, **changes):
    return Flow(
        flow.config.model_copy(update={"model": flow.config.model.model_copy(update=changes)}),
        flow.workspace,
    )


def test_metadata_is_read_back_by_the_hub_library(flow):
    data = ModelCard.load(write_model_card(flow, COMPARISON, "w8a8-int8")).data
    assert (
        data.base_model == "SmolLM2-135M-Instruct"
        and data.model_name == "SmolLM2-135M-Instruct-w8a8-int8"
    )
    assert {"compressed-tensors", "vllm", "w8a8"} <= set(data.tags)
    assert data.license is None
    found = {
        (result.dataset_name, result.metric_type): result.metric_value
        for result in data.eval_results
    }
    accuracy = COMPARISON.candidates[0].accuracy
    wanted = {
        (task, metric): d.candidate
        for task, metrics in accuracy.items()
        for metric, d in metrics.items()
    }
    assert found == pytest.approx(wanted, abs=1e-4) and len(found) == 4


def test_card_does_not_change_the_digest_of_the_checkpoint(flow):
    before = folder_digest(flow.workspace.model("w8a8-int8"))
    card = write_model_card(flow, COMPARISON, "w8a8-int8")
    assert card == flow.workspace.model("w8a8-int8") / "README.md"
    assert folder_digest(card.parent) == before


@pytest.mark.parametrize(
    ("name", "verdict"), [("w8a8-int8", "SHIP"), ("w4a16-int4", "DO NOT SHIP")]
)
def test_the_verdict_is_the_first_thing_said(flow, name, verdict):
    text = ModelCard.load(write_model_card(flow, COMPARISON, name)).text
    assert text.strip().splitlines()[2].startswith(f"**{verdict}**: {name}")
    assert ("~~" in text) == (verdict == "DO NOT SHIP")


def test_body_says_how_it_was_made_and_how_to_serve_it(flow):
    text = ModelCard.load(write_model_card(flow, COMPARISON, "w8a8-int8")).text
    wanted = ("| scheme | W8A8 |", "gensim 4.4.0", "vllm serve . --served-model-name w8a8-int8",
              "--max-model-len 2048",
              "4-bit grid", COMPARISON.candidates[0].sha256, "w4a16")  # fmt: skip
    # the other candidate is not in this card
    assert [word for word in wanted if word not in text] == ["w4a16"]


def test_a_loss_that_is_the_processors_is_said_of_the_candidate_that_has_it(flow):
    write_json(
        flow.workspace.manifest, {"hardware": {"architecture": "x86_64", "cpu_features": ["avx2"]}}
    )
    cards = [
        write_model_card(flow, COMPARISON, name).read_text("utf-8")
        for name in ("w8a8-int8", "w4a16-int4")
    ]
    assert ["has no VNNI" in card for card in cards] == [True, False]


@pytest.mark.parametrize("source", ["meta-llama/Llama-3.1-8B-Instruct", "gpt2"])
def test_base_from_the_hub_is_named_by_its_id_and_a_local_one_by_its_name(flow, tmp_path, source):
    hub = with_model(flow, source=source, wheel=None)
    data = ModelCard.load(write_model_card(hub, COMPARISON, "w8a8-int8")).data
    assert data.base_model == source
    local = write_model_card(
        with_model(flow, source=str(tmp_path), wheel=None), COMPARISON, "w8a8-int8"
    )
    assert str(tmp_path) not in local.read_text(encoding="utf-8")


def test_license_is_that_of_the_base(flow):
    base = flow.workspace.model("base")
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n", encoding="utf-8")
    assert (
        ModelCard.load(write_model_card(flow, COMPARISON, "w8a8-int8")).data.license == "apache-2.0"
    )


def test_ready_made_checkpoint_is_not_written_to(flow):
    ready = Candidate(name="w8a8-int8", source="org/model")
    flow = Flow(flow.config.model_copy(update={"candidates": (ready,)}), flow.workspace)
    with pytest.raises(FlowError, match="ready-made"):
        write_model_card(flow, COMPARISON, "w8a8-int8")
    assert not (flow.workspace.model("w8a8-int8") / "README.md").exists()


def test_missing_checkpoint_or_candidate_is_refused(flow):
    other = COMPARISON.model_copy(update={"candidates": COMPARISON.candidates[1:]})
    with pytest.raises(FlowError, match="holds no candidate"):
        write_model_card(flow, other, "w8a8-int8")
    (flow.workspace.model("w8a8-int8") / "model.safetensors").unlink()
    flow.workspace.model("w8a8-int8").rmdir()
    with pytest.raises(FlowError, match="does not exist"):
        write_model_card(flow, COMPARISON, "w8a8-int8")
