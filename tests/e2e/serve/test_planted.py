"""Things broken on purpose, against the real engine and the real checkpoints:
each must be found, and none may ship.
"""

import shutil

import psutil
import pytest
from conftest import ARTIFACTS, PER_TENSOR
from support.engines import VLLM
from support.profiles import CI, HAS_INT4, INT4_MISSING

from model_serve_flow.compare.comparison import compare_workspace
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.workspace import describe_model
from model_serve_flow.measure.accuracy import measure_accuracy
from model_serve_flow.measure.distribution import measure_distribution
from model_serve_flow.serve.kernels import require_expected_kernel
from model_serve_flow.serve.launch import serve, serve_each
from model_serve_flow.serve.server import Server
from model_serve_flow.system.files import write_json

INT8, INT4 = "w8a8-int8", "w4a16-int4"
# Fixed before any result: in the middle of the model, where a defect shows least (a layer at either
# end feeds or reads the embeddings), and one of its seven matrices only.
PLANTED_LAYER = "model.layers.15.mlp.down_proj"


@pytest.fixture
def broken(tmp_path):
    """A workspace of its own, with room for planted models."""
    finished = Flow.open(CI, {}, ARTIFACTS)
    assert finished.workspace.model("base").is_dir(), (
        "run the flow first: pytest tests/e2e/notebook"
    )
    planted = Flow.open(CI, {}, tmp_path)
    planted.workspace.model("base").parent.mkdir(parents=True)
    return finished, planted


@pytest.fixture
def plant(tmp_path):
    """Makes a workspace that has the finished run's base and data,
    and one candidate with a checkpoint of its own.
    """
    finished = Flow.open(CI, {}, ARTIFACTS)
    assert finished.workspace.model("base").is_dir(), (
        "run the flow first: pytest tests/e2e/notebook"
    )

    def make(name: str) -> tuple[Flow, Flow]:
        only = {"candidates": [finished.config.candidate(name).model_dump(mode="json")]}
        flow, theirs = Flow.open(CI, only, tmp_path), finished.workspace
        flow.workspace.model(name).parent.mkdir(parents=True)
        flow.workspace.data.symlink_to(theirs.data)
        flow.workspace.model("base").symlink_to(theirs.model("base"))
        shutil.copytree(theirs.results("base"), flow.workspace.results("base"))
        shutil.copytree(theirs.model(name), flow.workspace.model(name))
        return finished, flow

    return make


def edit(flow, name, change):
    """Rewrites the candidate's tensors."""
    from safetensors.torch import load_file, save_file

    path = flow.workspace.model(name) / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def take_over(finished, flow, name, original):
    """Gives a candidate the records of a whole one: speed and cost are not what was planted."""
    model = describe_model(name, flow.workspace.model(name))
    for kind, result in (
        ("compression", finished.workspace.compression(original)),
        ("performance", finished.workspace.performance(original)),
    ):
        write_json(
            flow.workspace.results(name) / f"{kind}.json",
            result.model_copy(update={"model": model}),
        )


def doubled_scales(tensors):
    tensors[f"{PLANTED_LAYER}.weight_scale"].mul_(2)


def shuffled_weights(tensors):
    import torch

    weight = tensors[f"{PLANTED_LAYER}.weight"]
    order = torch.randperm(weight.shape[0], generator=torch.Generator().manual_seed(0))
    tensors[f"{PLANTED_LAYER}.weight"] = weight[order].contiguous()


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """What the flow says of every broken candidate, measured by 04 and compared by 06:
    name -> its comparison.

    Their servers start together, as those of the profile's own candidates do.
    """
    finished = Flow.open(CI, {}, ARTIFACTS)
    assert finished.workspace.model("base").is_dir(), (
        "run the flow first: pytest tests/e2e/notebook"
    )
    sources = {
        "doubled": finished.workspace.model(INT8),
        "shuffled": finished.workspace.model(INT8),
    }
    if HAS_INT4:
        assert PER_TENSOR.is_dir(), "make the checkpoint first: pytest tests/e2e/compress"
        sources["per-tensor"] = PER_TENSOR
    originals = {name: INT4 if name == "per-tensor" else INT8 for name in sources}
    recipes = {
        name: finished.config.candidate(original).recipe for name, original in originals.items()
    }
    only = {
        "candidates": [
            {"name": name, "recipe": recipe.model_dump(mode="json")}
            for name, recipe in recipes.items()
        ]
    }
    flow, theirs = Flow.open(CI, only, tmp_path_factory.mktemp("judged")), finished.workspace
    flow.workspace.model("base").parent.mkdir(parents=True)
    flow.workspace.data.symlink_to(theirs.data)
    flow.workspace.model("base").symlink_to(theirs.model("base"))
    shutil.copytree(theirs.results("base"), flow.workspace.results("base"))
    for name, source in sources.items():
        shutil.copytree(source, flow.workspace.model(name))
    edit(flow, "doubled", doubled_scales)
    edit(flow, "shuffled", shuffled_weights)
    with serve_each(flow, sources, purpose="accuracy") as servers:
        for server in servers:
            measure_accuracy(flow, server)
            measure_distribution(flow, server)
    for name, original in originals.items():
        take_over(finished, flow, name, original)
    found = {candidate.name: candidate for candidate in compare_workspace(flow).candidates}
    for name, candidate in found.items():
        # -s
        print(
            name,
            candidate.verdict,
            *candidate.reasons,
            candidate.kl,
            candidate.top1_agreement,
            sep="\n",
        )
    return found


def test_one_layer_whose_scales_are_doubled_does_not_ship(judged):
    assert judged["doubled"].verdict != "SHIP", judged["doubled"].reasons


def test_one_layer_whose_weights_are_shuffled_does_not_ship(judged):
    assert judged["shuffled"].verdict != "SHIP", judged["shuffled"].reasons


@pytest.mark.skipif(not HAS_INT4, reason=INT4_MISSING)
def test_4_bits_with_one_scale_per_tensor_calibrated_on_random_tokens_do_not_ship(judged):
    assert judged["per-tensor"].verdict == "DO NOT SHIP"


def test_another_chat_template_is_refused_before_anything_is_asked(plant):
    _, flow = plant(INT8)
    folder = flow.workspace.model(INT8)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    )
    silent = Server(
        url="http://127.0.0.1:9", model_name=INT8, api_key=None, folder=folder, log=folder,
        process=psutil.Process(),
        start_seconds=0,
        engine=VLLM,
    )  # fmt: skip
    with pytest.raises(FlowError, match="chat template"):
        measure_accuracy(flow, silent)


def replaced(scored, again):
    """A task's items with those that were asked again in their places."""
    items = {item.id: item for item in (*scored.items, *(again.items if again else ()))}
    return scored.model_copy(update={"items": tuple(items[item.id] for item in scored.items)})


def test_an_identical_checkpoint_is_told_apart_from_the_base_by_nothing(plant):
    """The base's second measurement in the place of a candidate's first,
    with all that only says whose it is.

    What was not asked twice stays the first measurement's.
    """
    finished, flow = plant(INT8)
    space = flow.workspace
    whose = {
        "model": describe_model(INT8, space.model(INT8)),
        "engine": finished.workspace.accuracy(INT8).engine,
    }
    for kind, first, again in (
        ("accuracy", space.accuracy("base"), space.accuracy_again()),
        ("distribution", space.distribution("base"), space.distribution_again()),
    ):
        same = {"protocol": first.protocol, "protocol_hash": first.protocol_hash}
        if kind == "accuracy":
            same["tasks"] = {
                task: replaced(scored, again.tasks.get(task))
                for task, scored in first.tasks.items()
            }
        write_json(space.results(INT8) / f"{kind}.json", again.model_copy(update={**whose, **same}))
    take_over(finished, flow, INT8, INT8)
    (candidate,) = compare_workspace(flow).candidates
    assert candidate.verdict != "DO NOT SHIP", candidate.reasons
    for difference in [d for metrics in candidate.accuracy.values() for d in metrics.values()]:
        if difference.unit == "points":
            assert difference.ci95[0] <= 0 <= difference.ci95[1] and difference.mcnemar_p > 0.05
        else:
            # rounding moves every document a little: an interval narrower than that need not hold 0
            assert abs(difference.difference) < difference.margin / 10
    noise = candidate.noise_floor
    assert {
        task: metrics["acc"].flips
        for task, metrics in candidate.accuracy.items()
        if "acc" in metrics
    } == noise.flips
    assert (candidate.kl, candidate.top1_agreement) == (noise.kl, noise.top1_agreement)


def test_the_base_served_under_a_candidates_name_is_found(broken):
    finished, planted = broken
    shutil.copytree(finished.workspace.model("base"), planted.workspace.model(INT8))
    with (
        serve(planted, INT8) as server,
        pytest.raises(FlowError, match="without a quantised kernel"),
    ):
        require_expected_kernel(server.facts(), INT8, server.folder)


def test_a_server_that_dies_while_starting_shows_its_last_lines(broken):
    finished, planted = broken
    shutil.copytree(finished.workspace.model("base"), planted.workspace.model("base"))
    (planted.workspace.model("base") / "config.json").write_text('{"model_type": "no-such-model"}')
    with (
        pytest.raises(FlowError, match=r"(?s)ended with exit code .*no-such-model"),
        serve(planted, "base"),
    ):
        pass


def test_a_port_in_use_is_refused(broken):
    import socket

    finished, _ = broken
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(FlowError, match=f"Port {port} is in use"),
            serve(finished, "base", port=port),
        ):
            pass
