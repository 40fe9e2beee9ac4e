import pytest

from model_serve_flow.compress.calibration import calibration_facts
from model_serve_flow.compress.compression import _memory_errors, adopt, compress, kept_candidate
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.setup.fit import memory_advice

RECIPE = {"scheme": "W8A8", "algorithm": "gptq"}


def test_ready_made_and_recipe_are_told_apart(tmp_path):
    flow = Flow.open(
        "ci",
        {
            "candidates": [
                {"name": "a", "source": str(tmp_path)},
                {"name": "b", "recipe": {"scheme": "W8A8"}},
            ]
        },
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


def test_a_calibration_text_without_a_token_is_an_error(tmp_path):
    flow = Flow.open("ci", {}, tmp_path)
    dataset = {"input_ids": [[5, 6], []], "attention_mask": [[1, 1], []]}
    with pytest.raises(FlowError, match="1 of 2 calibration texts have no token"):
        calibration_facts(dataset, flow.config.calibration, True, None)


def test_calibration_facts_tell_other_text_apart(tmp_path):
    calibration = Flow.open("ci", {}, tmp_path).config.calibration

    def digest(tokens):
        dataset = {"input_ids": tokens, "attention_mask": [[1] * len(row) for row in tokens]}
        return calibration_facts(dataset, calibration, True, None).sha256

    assert digest([[5, 6], [7]]) == digest([[5, 6], [7]])
    assert (
        len(
            {
                digest(tokens)
                for tokens in ([[5, 6], [7]], [[7], [5, 6]], [[5], [6, 7]], [[5, 6], [8]])
            }
        )
        == 4
    )


def test_nothing_is_kept_where_nothing_was_made(tmp_path):
    flow = Flow.open(
        "ci",
        {"candidates": [{"name": "a", "source": "org/a"}, {"name": "b", "recipe": RECIPE}]},
        tmp_path,
    )
    assert [kept_candidate(flow, name, lambda model, recipe: None) for name in ("a", "b")] == [
        None,
        None,
    ]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "made code\n[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate "
            "memory: 9 bytes."
        ),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_memory_that_ends_gives_the_figures_and_the_keys(tmp_path, error):
    flow = Flow.open(
        "ci", {"candidates": [{"name": "a", "recipe": RECIPE}], "calibration.samples": 40}, tmp_path
    )
    with pytest.raises(FlowError, match="ran out of memory") as caught, _memory_errors(flow):
        try:
            raise error
        except (MemoryError, RuntimeError, OSError) as inner:
            raise RuntimeError("llm-compressor says more") from inner
    assert "made code" not in caught.value.problem
    assert "calibration.samples = 40" in caught.value.hint and "were available" in caught.value.hint
    assert "from 40 to 20 or less" in caught.value.hint


def test_other_errors_are_not_about_memory(tmp_path):
    with pytest.raises(RuntimeError, match="shapes"), _memory_errors(Flow.open("ci", {}, tmp_path)):
        raise RuntimeError("shapes differ")


def test_the_memory_of_a_gpu_has_a_key_of_its_own(tmp_path):
    advice = memory_advice(Flow.open("gpu-llama-3.1-8b", {}, tmp_path), 64 << 30)
    assert "sequential_targets: [Linear]" in advice and "64.0 GiB were available" in advice
    assert "sequential_targets" not in memory_advice(Flow.open("ci", {}, tmp_path))
