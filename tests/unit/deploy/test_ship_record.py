"""A verdict is good only for the checkpoint, the results and the profile it was reached on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from factories import sample_comparison

from model_serve_flow.deploy.ship_record import RECORD, require_shippable, write_ship_records
from model_serve_flow.errors import RERUN, FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.results.compared import Comparison, MarginSeal
from model_serve_flow.system import digests
from model_serve_flow.system.digests import digest_once, file_digest, folder_digest
from model_serve_flow.system.files import write_json

SHIPS, FAILS = "w8a8-int8", "w4a16-int4"
REASON = "Asked for by the owner of the demo."


def compared(flow: Flow) -> Comparison:
    """Checkpoints and results on the disk, and the comparison that 06 makes of them."""
    space, comparison = flow.workspace, sample_comparison()
    for name in ("base", SHIPS, FAILS):
        space.model(name).mkdir(parents=True)
        (space.model(name) / "model.safetensors").write_bytes(f"weights of {name}".encode())
        (space.model(name) / "tokenizer.json").write_text("{}")
        for kind in ("accuracy", "performance"):
            write_json(space.results(name) / f"{kind}.json", {"model": name})
    seal = {name: {"sha256": folder_digest(space.model(name))} for name in ("base", SHIPS, FAILS)}
    comparison = comparison.model_copy(
        update={
            "base": comparison.base.model_copy(update=seal["base"]),
            "candidates": tuple(c.model_copy(update=seal[c.name]) for c in comparison.candidates),
        }
    )
    write_json(space.report / "comparison.json", comparison)
    return comparison


@pytest.fixture
def flow(tmp_path):
    flow = Flow.open("cpu-smollm2", {}, tmp_path)
    write_ship_records(flow, compared(flow))
    return flow


def record_of(flow: Flow) -> dict:
    return json.loads((flow.workspace.root / RECORD).read_text())


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def refused(flow: Flow, name: str = SHIPS) -> str:
    with pytest.raises(FlowError, match=f"{name} must not be deployed") as caught:
        require_shippable(flow, name)
    return str(caught.value)


# --- the record


def test_the_record_holds_the_digest_of_all_that_the_verdict_rests_on(flow):
    space, record = flow.workspace, record_of(flow)
    assert record["comparison_sha256"] == file_digest(space.report / "comparison.json")
    assert record["base_sha256"] == folder_digest(space.model("base"))
    assert record["results"] == {
        f"results/{name}/{kind}.json": file_digest(space.results(name) / f"{kind}.json")
        for name in ("base", SHIPS, FAILS)
        for kind in ("accuracy", "performance")
    }
    ships, fails = record["candidates"]
    assert (ships["name"], ships["verdict"], ships["recommended"]) == (SHIPS, "SHIP", True)
    assert (fails["name"], fails["verdict"], fails["recommended"]) == (FAILS, "DO NOT SHIP", False)
    assert ships["files"]["model.safetensors"] == file_digest(
        space.model(SHIPS) / "model.safetensors"
    )
    assert ships["sha256"] == folder_digest(space.model(SHIPS))
    assert ships["reason"] == space.comparison().candidates[0].reasons[0]


def test_the_record_says_which_margins_changed_after_the_measurement(flow):
    seal = MarginSeal(at="then", before_measuring=True, changed={"retention": (0.95, 0.5)})
    comparison = flow.workspace.comparison().model_copy(update={"margins": seal})
    write_json(flow.workspace.report / "comparison.json", comparison)
    write_ship_records(flow, comparison)
    assert record_of(flow)["margins"]["changed"] == {"retention": [0.95, 0.5]}


def test_no_record_of_a_checkpoint_that_was_not_measured(flow):
    (flow.workspace.model(FAILS) / "model.safetensors").write_bytes(b"made again")
    with pytest.raises(FlowError, match=f"models/{FAILS} is not the checkpoint that was measured"):
        write_ship_records(flow, flow.workspace.comparison())


def test_no_record_of_another_comparison_than_the_one_on_the_disk(flow):
    comparison = flow.workspace.comparison()
    with pytest.raises(FlowError, match="does not hold the comparison"):
        write_ship_records(
            flow, comparison.model_copy(update={"candidates": comparison.candidates[:1]})
        )


# --- what passes


def test_what_was_measured_and_may_ship_passes(flow):
    decision = require_shippable(flow, SHIPS)
    assert (decision.verdict, decision.override) == ("SHIP", None)
    assert decision.sha256 == folder_digest(flow.workspace.model(SHIPS))


def test_the_base_that_was_compared_passes_without_a_verdict(flow):
    decision = require_shippable(flow, "base")
    assert (decision.verdict, decision.override) == (None, None)


def test_a_model_card_does_not_change_a_checkpoint(flow):
    (flow.workspace.model(SHIPS) / "README.md").write_text("# A model card")
    assert require_shippable(flow, SHIPS).override is None


def test_where_and_how_it_is_deployed_is_no_part_of_the_verdict(flow):
    elsewhere = Flow.open(
        "cpu-smollm2", {"deploy.namespace": "elsewhere"}, flow.workspace.root.parent
    )
    assert require_shippable(elsewhere, SHIPS).verdict == "SHIP"


# --- what does not


def test_one_changed_byte_in_a_checkpoint_is_named_with_both_digests(flow):
    path = flow.workspace.model(SHIPS) / "model.safetensors"
    before = file_digest(path)
    path.write_bytes(b"Weights of w8a8-int8")
    said = refused(flow)
    assert f"models/{SHIPS}/model.safetensors has SHA-256 {file_digest(path)[:12]}" in said
    assert f"the ship record says {before[:12]}" in said


def test_a_checkpoint_is_read_from_the_disk_whatever_this_process_remembers(flow, monkeypatch):
    folder = flow.workspace.model(SHIPS)
    monkeypatch.setattr(digests, "_look", lambda status: ())  # no file ever looks changed
    before = digest_once(folder)
    (folder / "model.safetensors").write_bytes(b"Weights of w8a8-int8")
    assert digest_once(folder) == before
    assert f"models/{SHIPS}/model.safetensors has SHA-256" in refused(flow)


def test_a_file_that_came_or_went_is_named(flow):
    folder = flow.workspace.model(SHIPS)
    (folder / "tokenizer.json").rename(folder / "chat_template.jinja")
    said = refused(flow)
    assert f"models/{SHIPS}/tokenizer.json is missing" in said
    assert f"models/{SHIPS}/chat_template.jinja is not in the ship record" in said


def test_the_checkpoint_of_another_candidate_under_the_name_of_one_that_ships_is_refused(flow):
    shutil.rmtree(flow.workspace.model(SHIPS))
    shutil.copytree(flow.workspace.model(FAILS), flow.workspace.model(SHIPS))
    assert f"models/{SHIPS}/model.safetensors has SHA-256" in refused(flow)


def test_another_base_is_refused(flow):
    (flow.workspace.model("base") / "model.safetensors").write_bytes(b"other weights")
    assert "models/base has the digest" in refused(flow, "base")


def test_a_verdict_other_than_ship_is_refused_with_its_reason(flow):
    reason = flow.workspace.comparison().candidates[1].reasons[0]
    said = refused(flow, FAILS)
    assert f"The verdict of {FAILS} is DO NOT SHIP: {reason}" in said
    assert RERUN not in said, "another run would reach the same verdict"


def test_a_missing_record_is_refused(flow):
    (flow.workspace.root / RECORD).unlink()
    said = refused(flow)
    assert f"{RECORD} is missing" in said and RERUN in said


def test_a_record_that_is_half_there_is_refused(flow):
    path = flow.workspace.root / RECORD
    path.write_text(path.read_text()[:100])
    assert "ship-record.json is not valid JSON" in refused(flow)


def test_a_comparison_edited_afterwards_is_refused(flow):
    edit(flow.workspace.report / "comparison.json", '"verdict": "DO NOT SHIP"', '"verdict": "SHIP"')
    assert "report/comparison.json has SHA-256" in refused(flow, FAILS)


def test_a_verdict_edited_in_the_record_alone_is_refused(flow):
    edit(flow.workspace.root / RECORD, '"verdict": "DO NOT SHIP"', '"verdict": "SHIP"')
    assert f"{RECORD} was edited: it says SHIP of {FAILS}" in refused(flow, FAILS)


def test_a_result_measured_again_after_the_verdict_is_refused(flow):
    write_json(flow.workspace.results(SHIPS) / "accuracy.json", {"model": SHIPS, "again": True})
    assert f"results/{SHIPS}/accuracy.json has SHA-256" in refused(flow)


def test_another_engine_setting_than_the_one_measured_is_refused(flow):
    other = Flow.open("cpu-smollm2", {"engine.dtype": "float16"}, flow.workspace.root.parent)
    assert "The profile has changed since the verdict" in refused(other)


def test_a_candidate_that_was_never_compared_is_refused(flow):
    shutil.copytree(flow.workspace.model(SHIPS), flow.workspace.model("w8a8-new"))
    assert "holds no candidate 'w8a8-new'" in refused(flow, "w8a8-new")


# --- overrides


def test_an_override_passes_and_is_written_with_what_it_overrode(flow):
    decision = require_shippable(flow, FAILS, REASON)
    assert (decision.verdict, decision.override.reason) == ("DO NOT SHIP", REASON)
    (written,) = record_of(flow)["overrides"]
    assert written == decision.override.model_dump()
    assert (written["candidate"], written["reason"]) == (FAILS, REASON)
    assert "The verdict of w4a16-int4 is DO NOT SHIP" in written["problem"]


def test_an_override_is_for_one_deployment_and_not_for_the_next(flow):
    require_shippable(flow, FAILS, REASON)
    refused(flow, FAILS)


def test_every_override_is_kept(flow):
    require_shippable(flow, FAILS, REASON)
    (flow.workspace.model(SHIPS) / "model.safetensors").write_bytes(b"patched")
    decision = require_shippable(flow, SHIPS, "A patch of today.")
    assert decision.sha256 == folder_digest(flow.workspace.model(SHIPS)), (
        "of what is deployed, not of what was measured"
    )
    assert [entry["candidate"] for entry in record_of(flow)["overrides"]] == [FAILS, SHIPS]


def test_an_override_that_nothing_needs_is_not_written(flow):
    assert require_shippable(flow, SHIPS, REASON).override is None
    assert record_of(flow)["overrides"] == []


def test_without_a_record_the_decision_alone_holds_the_override(flow):
    (flow.workspace.root / RECORD).unlink()
    decision = require_shippable(flow, SHIPS, REASON)
    assert decision.verdict is None and decision.override.problem == f"{RECORD} is missing."
    assert not (flow.workspace.root / RECORD).exists()


def test_an_empty_reason_is_no_reason(flow):
    with pytest.raises(FlowError, match="must not be deployed"):
        require_shippable(flow, FAILS, "  ")


def test_no_reason_can_deploy_a_checkpoint_that_is_not_there(flow):
    shutil.rmtree(flow.workspace.model(SHIPS))
    with pytest.raises(FlowError, match="holds no checkpoint"):
        require_shippable(flow, SHIPS, REASON)
