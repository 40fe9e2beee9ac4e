"""Provides what the notebook of 11_Case_Study uses: the gate of tokens, the ladder, and lm-eval."""

import math
import statistics
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter
from servers import SAME, VLLM, Rung, own, rung_flow, yardsticks
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from model_serve_flow.compare.stats.paired import geometric_ratio
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.load import load_profile
from model_serve_flow.measure.accuracy import measure_accuracy, prepare_evaluation
from model_serve_flow.measure.guidellm.commands import load_command
from model_serve_flow.measure.guidellm.generator import LoadGenerator, load_generator
from model_serve_flow.measure.load_points import measure_load
from model_serve_flow.report.chart_style import MUTED, PALETTE, house_style
from model_serve_flow.serve.endpoint import Endpoint
from model_serve_flow.serve.engine import ACCURACY, PERFORMANCE
from model_serve_flow.serve.launch import serve
from model_serve_flow.serve.server import Server
from model_serve_flow.system.files import write_json

__all__ = [
    "Flow",
    "Gate",
    "Ladder",
    "case_flow",
    "decide",
    "figures",
    "ladder_chart",
    "ladder_table",
    "load_command",
    "load_generator",
    "score_table",
    "scores",
    "write_json",
    "yardsticks",
]

KEPT = ("start", "kept")
CLOSE = 0.25  # nats: BF16 may turn round two tokens whose reference logits are closer than this
PROMPTS = (
    "The capital of France is",
    "Water boils at",
    "def add(a, b):\n    return",
    "Once upon a time there was a king who",
    "The three primary colours are",
    "To brew tea, first",
)


@dataclass(frozen=True)
class Score:
    """What lm-eval found: the accuracy, and for each item 1 if its answer was right, else 0."""

    accuracy: float
    right: dict[str, float] = field(repr=False)


class Gate:
    """Compares greedy answers with those of transformers in FP32.

    A server in BF16 rounds. It may choose another token only where both tokens are within `CLOSE`
    of each other in the reference's logits. After such a token the rest of the answer is not
    compared.

    Args:
        base: the checkpoint.
        tokens: how many tokens each answer has.
    """

    def __init__(self, base: Path, tokens: int = 16) -> None:
        self.tokens = tokens
        self.tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
        self.prompts = [self.tokenizer.encode(text).ids for text in PROMPTS]
        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self.answers = [self._reference(prompt) for prompt in self.prompts]

    @torch.inference_mode()
    def _reference(self, prompt: list[int]) -> list[int]:
        ids = torch.tensor([prompt])
        options = {"do_sample": False, "min_new_tokens": self.tokens, "pad_token_id": 0}
        output = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=self.tokens, **options
        )
        return output[0, len(prompt) :].tolist()

    def problem(self, server: Endpoint) -> str:
        """Says which answer of the server is wrong; empty if none is."""
        with ThreadPoolExecutor(len(PROMPTS)) as pool:  # at once: a batch can be wrong, too
            answers = list(pool.map(partial(self.ask, server), PROMPTS))
        for number, answer in enumerate(answers):
            if why := self.difference(number, answer):
                return f"{PROMPTS[number]!r}: {why}"
        return ""

    def ask(self, server: Endpoint, prompt: str) -> list[int]:
        """Returns the token ids of a greedy answer, or of its text if the server tells no ids."""
        body = {"prompt": prompt, "max_tokens": self.tokens, "temperature": 0, "ignore_eos": True}
        with server.client() as client:
            reply = client.post("/generate", json=body)  # only our server has it
            if reply.status_code != httpx.codes.NOT_FOUND:
                return reply.raise_for_status().json()["answers"][0]["token_ids"]
            body |= {"model": server.model_name, "return_token_ids": True}
            reply = client.post("/v1/completions", json=body).raise_for_status()
        answer = reply.json()["choices"][0]
        return answer.get("token_ids") or self.tokenizer.encode(answer["text"]).ids

    def difference(self, number: int, found: Sequence[int]) -> str:
        """Says where an answer leaves the reference by more than rounding; empty if nowhere."""
        expected = self.answers[number]
        pairs = enumerate(zip(expected, found, strict=False))
        place = next((place for place, (one, other) in pairs if one != other), None)
        if place is None:
            lengths = f"{len(found)} tokens instead of {len(expected)}"
            return "" if len(found) == len(expected) else lengths
        logits = self._logits(self.prompts[number] + expected[:place])
        gap = float(logits[expected[place]] - logits[found[place]])
        if abs(gap) <= CLOSE:
            return ""
        return f"token {place + 1} is {found[place]}, the reference's {gap:.2f} nats likelier"

    @torch.inference_mode()
    def _logits(self, ids: list[int]) -> torch.Tensor:
        return self.model(torch.tensor([ids])).logits[0, -1]


def case_flow(flow: Flow, **load: Any) -> Flow:
    """Opens the profile with the load of this case study.

    Args:
        flow: the profile as the reader chose it.
        load: keys of its section `performance`.
    """
    overrides = {f"performance.{name}": value for name, value in load.items()}
    fixed = {"performance.repeats": 1, "performance.blocks": 1, "performance.slo": None}
    return replace(
        flow, config=load_profile(flow.profile, {**flow.overrides, **fixed, **overrides})
    )


class Ladder:
    """Measures one change after the other, and keeps what pays.

    Args:
        flow: the profile with a load of one concurrency.
        gate: compares the tokens.
        generator: a running GuideLLM.
        turns: loads a rung; each turn has its own prompts, the same for all rungs.
    """

    def __init__(self, flow: Flow, gate: Gate, generator: LoadGenerator, turns: int) -> None:
        self.flow, self.gate, self.generator = flow, gate, generator
        [concurrency] = flow.config.performance.concurrency
        self.loads = [(concurrency, turn) for turn in range(1, turns + 1)]
        self.rungs: list[Rung] = []

    @property
    def kept(self) -> Rung:
        """The last rung that was kept."""
        return next(r for r in reversed(self.rungs) if r.decision in KEPT)

    def start(self, name: str, **options: str) -> None:
        """Measures the server that the ladder starts from."""
        rung = self.measure(own(name, options))
        if why := obstacle(rung):
            raise FlowError(f"The ladder cannot start from {name!r}: {why}.")
        self._add(rung, "start")

    def climb(self, name: str, **change: str) -> None:
        """Adds a change to what was kept, and keeps it only if it is right and faster."""
        rung = self.attempt(name, **change)
        self._add(rung, decide(self.kept, rung))

    def attempt(self, name: str, **change: str) -> Rung:
        """Measures a change on top of what was kept; the ladder stays as it is."""
        kept = self.kept
        assert kept.options is not None
        return self.measure(own(name, kept.options | change))

    def yardstick(self, rung: Rung) -> None:
        """Measures another server with the same load."""
        rung = self.measure(rung)
        self._add(rung, ": ".join(filter(None, ("yardstick", obstacle(rung)))))

    def measure(self, rung: Rung) -> Rung:
        """Serves the rung, compares its tokens, and only then measures it.

        A rung that fails keeps the reason, so that the others are still measured.
        """
        try:
            return self._measure(rung)
        except FlowError as error:
            return replace(rung, failure=" ".join(error.problem.split()))

    def _measure(self, rung: Rung) -> Rung:
        flow = rung_flow(self.flow, rung)
        with serve(flow, rung.model, purpose=PERFORMANCE) as server:
            if rung.weights == SAME and (wrong := self.gate.problem(server)):
                return replace(rung, wrong=wrong)
            path = flow.workspace.raw(server.model_name) / "turns.json"
            points = measure_load(flow.config, server, self.generator, path, self.loads)
            return replace(rung, points=points, version=server.facts().version)

    def _add(self, rung: Rung, decision: str) -> None:
        rung = replace(rung, decision=decision)
        self.rungs.append(rung)
        print(f"{rung.name}: {statement(rung)}")


def decide(kept: Rung, rung: Rung) -> str:
    """Keeps a rung whose tokens are right and whose speed-up is above 1 with its whole interval."""
    if why := obstacle(rung):
        return f"dropped: {why}"
    ratio, interval = geometric_ratio(kept.speeds, rung.speeds)
    low, high = interval or (0.0, math.inf)
    shown = f"{ratio:.2f}x [{low:.2f}, {high:.2f}] of {kept.name}"
    if low > 1:
        return "kept"
    return f"dropped: slower, {shown}" if high < 1 else f"dropped: no difference shown, {shown}"


def obstacle(rung: Rung) -> str:
    """Says why a rung has no speed that counts; empty if it has one."""
    if rung.failure:
        return f"not served ({rung.failure})"
    if rung.wrong:
        return f"wrong tokens ({rung.wrong})"
    problems = [point.invalid_reason for point in rung.points if not point.valid]
    return f"not measured ({problems[0]})" if problems else ""


def statement(rung: Rung) -> str:
    """Says in one line what was found."""
    if not rung.measured:
        return rung.decision
    speed = statistics.fmean(rung.speeds)
    return f"{speed:.1f} output tokens/s, {rung.decision}"


def ladder_table(rungs: Iterable[Rung]) -> pd.DataFrame:
    """Builds one row a rung: speed with its lowest and highest turn, latencies, the decision."""
    rows = {rung.name: _row(rung) for rung in rungs}
    return pd.DataFrame.from_dict(rows, orient="index").fillna("")


def _row(rung: Rung) -> dict[str, Any]:
    said = {"weights": rung.weights, "decision": rung.decision.split(" (")[0]}
    if not rung.measured:
        return said
    ttft = statistics.fmean(point.ttft_ms.p95 for point in rung.measured)
    itl = statistics.fmean(point.itl_ms.p95 for point in rung.measured)
    return {
        "output tokens/s": round(statistics.fmean(rung.speeds), 1),
        "lowest to highest": f"{min(rung.speeds):.1f} to {max(rung.speeds):.1f}",
        "TTFT p95 (ms)": round(ttft),
        "ITL p95 (ms)": round(itl, 1),
        **said,
    }


def ladder_chart(rungs: Sequence[Rung]) -> None:
    """Draws output tokens/s and TTFT of each rung; lines reach from the lowest to the highest."""
    drawn = [rung for rung in rungs if rung.measured]
    names = [
        rung.name if rung.weights == SAME else f"{rung.name} ({rung.weights})" for rung in drawn
    ]
    with house_style():
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(9.4, 0.5 * len(drawn) + 1.2), sharey=True
        )
        for line, rung in enumerate(drawn):
            _mark(left, line, rung, rung.speeds)
            _mark(right, line, rung, [point.ttft_ms.p95 for point in rung.measured])
        left.set_yticks(range(len(drawn)), names)
        left.set(xlabel="Output tokens/s (right is better)", ylim=(len(drawn) - 0.5, -0.5), xlim=0)
        right.set(xlabel="TTFT p95, ms, logarithmic (left is better)", xscale="log")
        right.xaxis.set_major_formatter(ScalarFormatter())  # 1000 instead of a power of ten
        figure.tight_layout()
        plt.show()


def _mark(axis: Axes, line: int, rung: Rung, values: list[float]) -> None:
    colour = MUTED if rung.options is None else PALETTE[0]
    face = "white" if rung.decision.startswith("dropped") else colour
    axis.plot([min(values), max(values)], [line, line], color=colour, linewidth=2)
    axis.plot(statistics.fmean(values), line, "o", color=colour, markerfacecolor=face)


def scores(flow: Flow, rungs: Sequence[Rung], task: str, items: int) -> dict[str, Score]:
    """Scores the model behind each rung with lm-eval, as 01 does.

    The server of the last rung starts while lm-eval scores the others.
    """
    limit = {"accuracy.tasks": [task], "accuracy.limit": items, "accuracy.again": None}
    settings = {**flow.overrides, **limit, "accuracy.distribution": None}
    case = replace(flow, config=load_profile(flow.profile, settings))
    found: dict[str, Score] = {}

    def score(rung: Rung, server: Server) -> None:
        result = measure_accuracy(rung_flow(case, rung), server).tasks[task]
        right = {item.id: item.values["acc"] for item in result.items}
        found[rung.name] = Score(result.metrics["acc"].value, right)

    def score_others() -> None:
        prepare_evaluation(rung_flow(case, last))
        for rung in others:
            with serve(rung_flow(case, rung), rung.model, purpose=ACCURACY) as server:
                score(rung, server)

    *others, last = rungs
    starting = serve(rung_flow(case, last), last.model, purpose=ACCURACY, meanwhile=score_others)
    with starting as server:
        score(last, server)
    return found


def score_table(found: dict[str, Score]) -> pd.DataFrame:
    """Shows each rung's score, and how many answers differ from the last rung's."""
    last = list(found.values())[-1]
    rows = {
        name: {
            "items": len(score.right),
            "accuracy": f"{score.accuracy:.1%}",
            "other answers than the last": sum(
                score.right[item] != last.right[item] for item in last.right
            ),
        }
        for name, score in found.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def figures(rungs: Sequence[Rung], found: dict[str, Score]) -> dict[str, Any]:
    """Collects what the notebook found, as plain values for its file."""
    best = next(rung for rung in reversed(rungs) if rung.decision in KEPT)
    vllm = next(rung for rung in rungs if rung.name == VLLM)
    ratio, interval = geometric_ratio(vllm.speeds, best.speeds) if vllm.measured else (None, None)
    return {
        "rungs": [
            {
                "name": rung.name,
                "options": rung.options,
                "weights": rung.weights,
                "version": rung.version,
                "output_tokens_per_s": rung.speeds,
                "ttft_ms_p95": [point.ttft_ms.p95 for point in rung.measured],
                "decision": rung.decision,
            }
            for rung in rungs
        ],
        "best_of_vllm": {"ratio": ratio, "ci95": interval},
        "accuracy": {name: score.accuracy for name, score in found.items()},
    }
