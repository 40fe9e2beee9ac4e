import pytest

from model_serve_flow.calibration import calibration_facts
from model_serve_flow.compression import _replacing, adopt, compress
from model_serve_flow.errors import FlowError
from model_serve_flow.flow import Flow


def test_a_failed_run_leaves_the_old_folder(tmp_path):
    old = tmp_path / "candidate"
    old.mkdir()
    (old / "mark").write_text("old")
    with pytest.raises(RuntimeError), _replacing(old) as partial:
        (partial / "mark").write_text("new")
        raise RuntimeError
    assert (old / "mark").read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]
    with _replacing(old) as partial:
        (partial / "mark").write_text("new")
    assert (old / "mark").read_text() == "new"
    assert list(tmp_path.iterdir()) == [old]


def test_ready_made_and_recipe_are_told_apart(tmp_path):
    flow = Flow.open(
        "ci",
        {"candidates": [{"name": "a", "source": str(tmp_path)}, {"name": "b", "recipe": {"scheme": "W8A8"}}]},
        tmp_path,
    )
    with pytest.raises(FlowError, match="'a' has no recipe"):
        compress(flow, "a", lambda model, recipe: None)
    with pytest.raises(FlowError, match="'b' has a recipe"):
        adopt(flow, "b")


def test_a_gpu_profile_without_a_gpu_stops_before_it_loads_anything(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    flow = Flow.open("gpu-llama-3.1-8b", {}, tmp_path)
    with pytest.raises(FlowError, match="needs a GPU"):
        compress(flow, "w8a8-int8", lambda model, recipe: pytest.fail("must not be called"))


def test_compressing_without_a_base_says_so(tmp_path):
    flow = Flow.open("ci", {}, tmp_path)
    with pytest.raises(FlowError, match="base"):
        compress(flow, "w8a8-int8", lambda model, recipe: pytest.fail("must not be called"))


def test_padding_in_the_calibration_text_is_an_error(tmp_path):
    flow = Flow.open("ci", {}, tmp_path)
    dataset = {"input_ids": [[5, 6, 7], [8, 0, 0]], "attention_mask": [[1, 1, 1], [1, 0, 0]]}
    with pytest.raises(FlowError, match="2 of 6 calibration tokens are padding"):
        calibration_facts(dataset, flow.config.calibration, True, None)
