"""In every block every server starts anew, in ABBA order;
a rerun starts only the servers that lack something.
"""

import contextlib
import dataclasses
from dataclasses import dataclass, field

import factories
import psutil
import pytest
from support.engines import VLLM

from model_serve_flow.compare.comparison import compare
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.load import load_profile
from model_serve_flow.flow.results.measured import Busy
from model_serve_flow.measure import blocks, load_points, performance
from model_serve_flow.measure.blocks import measure_in_blocks, schedule
from model_serve_flow.measure.guidellm.client_cpu import ClientCpu
from model_serve_flow.report.sections import sections
from model_serve_flow.run.steps import STEPS, expand
from model_serve_flow.serve.server import Server
from model_serve_flow.system.files import write_json

LOADS = {"concurrency": [1, 8], "repeats": 3, "blocks": 3}
QUIET = Busy(load_average=0.1, cores=2, others_share=0.01, steal_share=0.0, seconds=5.0)
BUSY = QUIET.model_copy(update={"others_share": 0.5})
CANDIDATES = ["w8a8-int8", "w4a16-int4"]


def test_the_order_turns_round_from_block_to_block():
    assert [name for _, name in schedule(["base", "a", "b"], 3)] == [
        "base",
        "a",
        "b",
        "b",
        "a",
        "base",
        "base",
        "a",
        "b",
    ]
    assert [block for block, _ in schedule(["base", "a"], 2)] == [1, 1, 2, 2]


def test_blocks_that_do_not_divide_the_repeats_are_refused():
    with pytest.raises(FlowError, match="repeats is 4 and blocks is 3"):
        load_profile("cpu-smollm2", {"performance.repeats": 4, "performance.blocks": 3})
    config = load_profile(
        "cpu-smollm2", {"performance.repeats": 6, "performance.blocks": 3}
    ).performance
    assert [config.block(repeat) for repeat in range(1, 7)] == [1, 1, 2, 2, 3, 3]


@dataclass
class Machine:
    """Engines and GuideLLM, as far as this is about which of them are asked for what."""

    flow: Flow
    folder: object
    started: list = field(default_factory=list)
    loads: list = field(default_factory=list)
    busy: dict = field(default_factory=dict)  # file of GuideLLM -> how busy the machine was
    fails: set = field(default_factory=set)  # (model, start) of servers that do not start

    @contextlib.contextmanager
    def serve(self, flow, name, purpose):
        self.started.append(name)
        if (name, self.started.count(name)) in self.fails:
            raise FlowError("vLLM ended.")
        folder = flow.workspace.model(name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(name.encode())
        yield Server(
            "http://127.0.0.1:1",
            name,
            "key",
            folder,
            self.folder / "log",
            psutil.Process(),
            1.0,
            engine=VLLM,
        )

    def run(self, server, command, path):
        self.loads.append(f"{server.model_name}/{path.stem}")
        self.now = self.busy.get(path.stem, QUIET)
        return ClientCpu()

    def points(self, path, config, client, places):
        speed = 100 if self.started[-1] == "base" else 130
        start = 1 + 0.1 * self.started.count(self.started[-1])
        return tuple(
            factories.load_point(load, speed * load * start, repeat=turn) for load, turn in places
        )

    def measure(self):
        self.started, self.loads = [], []
        return measure_in_blocks(self.flow, CANDIDATES, self, lambda server: None)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    settings = {f"performance.{key}": value for key, value in {**LOADS, "slo": None}.items()}
    (tmp_path / "log").write_text(
        "Initializing a V1 LLM engine (v0.32.0) with config: dtype=torch.bfloat16"
    )
    found = Machine(Flow.open("cpu-smollm2", settings, tmp_path), tmp_path)

    class Watch:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def result(self):
            return found.now

    monkeypatch.setattr(blocks, "serve", found.serve)
    monkeypatch.setattr(load_points, "watch_machine", Watch)
    monkeypatch.setattr(load_points, "read_load_points", found.points)
    monkeypatch.setattr(load_points, "load_command", lambda *_: [])
    monkeypatch.setattr(performance, "proven_facts", lambda server: server.facts())
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.8.1")
    return found


def test_every_server_starts_in_every_block_and_each_repeat_is_of_its_block(machine):
    results = machine.measure()
    assert machine.started == [name for _, name in schedule(["base", *CANDIDATES], 3)]
    assert machine.loads[:3] == [f"{name}/block-1-1" for name in ("base", *CANDIDATES)]
    for result in results.values():
        assert [(p.concurrency, p.repeat, p.block) for p in result.points] == [
            (load, turn, turn) for turn in (1, 2, 3) for load in (1, 8)
        ]
        assert result.unmeasured() == [] and result.blocks == 3
    assert machine.flow.workspace.performance_in_blocks() == results["base"]


def test_a_rerun_starts_each_server_once_and_measures_nothing(machine):
    first = machine.measure()
    again = machine.measure()
    assert sorted(machine.started) == sorted(["base", *CANDIDATES]) and machine.loads == []
    assert again == first


def test_after_an_interruption_only_what_is_missing_is_measured(machine):
    machine.fails = {("w8a8-int8", 2)}
    with pytest.raises(FlowError, match="vLLM ended"):
        machine.measure()
    machine.fails = set()
    results = machine.measure()
    assert machine.started == ["base", *CANDIDATES, "w8a8-int8", "base", "base", *CANDIDATES]
    assert [load for load in machine.loads if "block-1" in load] == []
    assert "w4a16-int4/block-2-2" not in machine.loads
    assert all(result.unmeasured() == [] for result in results.values())


def test_a_busy_block_is_measured_once_more_and_the_quieter_one_kept(machine, capsys):
    machine.busy = {"block-2-2": BUSY}
    results = machine.measure()
    again = [load for load in machine.loads if load.endswith("block-2-undisturbed")]
    assert len(again) == 3
    assert "other programs took up to 50% of the CPU" in capsys.readouterr().out
    assert {point.busy.others_share for point in results["base"].points} == {0.01}


def test_another_kernel_or_engine_measures_all_blocks_anew(machine):
    machine.measure()
    (machine.folder / "log").write_text(
        "Initializing a V1 LLM engine (v0.33.0) with config: dtype=torch.bfloat16"
    )
    machine.measure()
    assert len(machine.started) == 9 and len(machine.loads) == 9


def test_one_block_leaves_the_base_to_02(machine, monkeypatch):
    one = machine.flow.config.performance.model_copy(update={"blocks": 1})
    machine.flow = Flow(
        machine.flow.config.model_copy(update={"performance": one}), machine.flow.workspace
    )
    write_json(machine.flow.workspace.results("base") / "performance.json", factories.performance())

    @contextlib.contextmanager
    def serve_each(flow, names, purpose):
        yield (stack.enter_context(machine.serve(flow, name, purpose)) for name in names)

    with contextlib.ExitStack() as stack:
        monkeypatch.setattr(blocks, "serve_each", serve_each)
        results = machine.measure()
    assert machine.started == CANDIDATES and results["base"] == factories.performance()
    assert not (machine.flow.workspace.results("base") / "performance_in_blocks.json").exists()


@pytest.mark.parametrize(("number", "there"), [(1, False), (3, True)])
def test_the_steps_know_the_result_of_the_base_in_blocks(number, there):
    config = load_profile("cpu-smollm2", {"performance.blocks": number})
    step = next(step for step in STEPS if step.module == "05_Compressed_Performance")
    comparison = next(step for step in STEPS if step.module == "06_Comparison")
    assert ("results/base/performance_in_blocks.json" in expand(step.outputs, config)) is there
    assert ("results/base/performance_in_blocks.json" in expand(comparison.inputs, config)) is there


def test_the_report_says_what_the_interval_holds():
    def texts(comparison):
        section = next(s for s in sections(comparison) if s.title == "Speed under the same load")
        return " ".join(note.text for note in section.notes)

    assert "not between two starts" in texts(factories.sample_comparison())
    base, candidate = (in_blocks(factories.performance(name)) for name in ("base", "w8a8-int8"))
    found = compare(
        factories.config(),
        dataclasses.replace(factories.base(), performance=base),
        [dataclasses.replace(factories.candidate(), performance=candidate)],
    )
    assert "holds what differs between starts" in texts(found)
    assert found.candidates[0].performance[0].blocks == 3


def in_blocks(result):
    """The sample's result, each of its repeats on a server started anew."""
    points = tuple(point.model_copy(update={"block": point.repeat}) for point in result.points)
    return result.model_copy(update={"points": points})
