"""Measures the teaching server's techniques side by side, each against its goal.

`make bench-serving` writes `docs/benchmarks/serving.json` and prints a table. Both sides of a
comparison run at the same time and get the load in turns, so a machine that slows down does so for
both. A goal that is missed is reported; no figure is a test. Run it on an idle machine: it takes
twenty minutes on two cores.

The same tokens first: the tests hold every strategy, cache and proposer to the tokens of
transformers before anything here is timed (`tests/contract/serve/serving`).
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from provenance import ROOT, provenance
from serving_load import (
    Ask,
    Seen,
    Speed,
    longest_gap,
    random_asks,
    send,
    tokens_per_s,
    ttft_median,
    ttft_p95,
)

from model_serve_flow.flow.flow import Flow
from model_serve_flow.serve.endpoint import Endpoint
from model_serve_flow.serve.launch import serve
from model_serve_flow.serve.local_server import LocalServer
from model_serve_flow.system.files import write_json

FIGURES = ROOT / "docs" / "benchmarks" / "serving.json"
COMMAND = (sys.executable, "-m", "serving_from_scratch.cli")
NAME = "base"

Side = tuple[str, ...]  # options of `serving-from-scratch serve`
VLLM: Side = ("vllm",)
GATEWAY: Side = ("gateway",)  # the gateway in front of the teaching server
BEST: Side = ("--strategy=continuous",)
ONE_BY_ONE: Side = ("--strategy=one-by-one",)
STATIC: Side = ("--strategy=static",)
NO_CACHE: Side = ("--cache=none",)
Load = Callable[[int], list[Ask]]  # seed -> requests


@dataclass(frozen=True)
class Goal:
    """A ratio that the technique should reach.

    Attributes:
        figure: name of what is measured.
        read: computes the figure from the answers.
        ratio: the goal for technique / against; None: the ratio is reported only.
        at_least: whether the ratio should be at least the goal; otherwise at most.
    """

    figure: str
    read: Callable[[Sequence[Seen]], float]
    ratio: float | None = None
    at_least: bool = True


@dataclass(frozen=True)
class Comparison:
    """A technique, what it is compared with, and the load that both get."""

    name: str
    technique: Side
    against: Side
    load: Load
    concurrency: int
    goals: tuple[Goal, ...]


@dataclass(frozen=True)
class Found:
    """One ratio: the median over the turns, the lowest and the highest turn, and the goal."""

    name: str
    figure: str
    technique: float
    against: float
    ratio: float
    lowest: float
    highest: float
    goal: float | None
    at_least: bool

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None: there is none."""
        if self.goal is None:
            return None
        return self.ratio >= self.goal if self.at_least else self.ratio <= self.goal


def plain(count: int, prompt: int = 128, answer: int = 32) -> Load:
    """Makes loads of equal requests with random prompts."""
    return lambda seed: random_asks(count, prompt, [answer], seed)


def mixed(seed: int) -> list[Ask]:
    """Makes 24 requests with answers of 4 to 64 tokens."""
    return random_asks(24, 64, [4, 64, 12, 40, 24, 8, 56, 16], seed)


def long_among_streams(seed: int) -> list[Ask]:
    """Makes seven streams, and a prompt of 1,024 tokens that arrives when all of them run."""
    streams = random_asks(7, 16, [96], seed)
    [long] = random_asks(1, 1024, [8], seed + 1)
    return [Ask(long.prompt, long.tokens, after=1.5), *streams]


def same_beginning(seed: int) -> list[Ask]:
    """Makes six requests, one after the other, that share 400 of their 416 tokens."""
    return random_asks(6, 416, [4], seed, shared=400)


def after_the_first(read: Callable[[Sequence[Seen]], float]) -> Callable[[Sequence[Seen]], float]:
    """Leaves out the first answer, which computes what the others share."""
    return lambda seen: read(seen[1:])


def gap_of_streams(seen: Sequence[Seen]) -> float:
    """Returns the longest gap that one of the seven streams saw."""
    return longest_gap(seen[1:])


def ttft_of_long(seen: Sequence[Seen]) -> float:
    """Returns the time to first token of the long prompt."""
    return seen[0].ttft


def copying(seed: int) -> list[Ask]:
    """Asks the model to copy a text: an n-gram of it says what comes next."""
    words = [f"{name} counted {seed + place} boats." for place, name in enumerate(NAMES)]
    text = " ".join(words)
    return [Ask(f"Text: {text}\nThe same text again: {words[0]}", 64) for _ in range(2)]


def chatting(seed: int) -> list[Ask]:
    """Asks questions whose answers repeat little."""
    return [Ask(f"Question {seed}: Why is the {thing}?\nAnswer:", 64) for thing in THINGS]


NAMES = ("Anna", "Bela", "Carl", "Dora", "Emil", "Fred", "Gita", "Hans", "Ines", "Jan")
THINGS = ("sky blue", "sea salty", "night dark")
SPEED = "output tokens/s"

COMPARISONS = (
    Comparison(
        "KV cache, 1 request of 128 + 32",
        ONE_BY_ONE,
        ONE_BY_ONE + NO_CACHE,
        plain(3),
        1,
        (Goal(SPEED, tokens_per_s, 2),),
    ),
    Comparison(
        "KV cache, 1 request of 400 + 64",
        ONE_BY_ONE,
        ONE_BY_ONE + NO_CACHE,
        plain(1, 400, 64),
        1,
        (Goal(SPEED, tokens_per_s, 5),),
    ),
    Comparison(
        "static batch of 8 against one by one",
        STATIC,
        ONE_BY_ONE,
        plain(16),
        8,
        (Goal(SPEED, tokens_per_s, 4),),
    ),
    Comparison(
        "static batch of 8 against one by one, 16 + 64",
        STATIC,
        ONE_BY_ONE,
        plain(8, 16, 64),
        8,
        (Goal(SPEED, tokens_per_s),),
    ),
    Comparison(
        "continuous against static, answers of 4 to 64",
        BEST,
        STATIC,
        mixed,
        16,
        (Goal(SPEED, tokens_per_s, 1.3), Goal("TTFT p95", ttft_p95, 0.5, at_least=False)),
    ),
    Comparison(
        "continuous against one by one, both without cache",
        BEST + NO_CACHE,
        ONE_BY_ONE + NO_CACHE,
        plain(8, 64, 16),
        8,
        (Goal(SPEED, tokens_per_s, 1),),
    ),
    Comparison(
        "chunks of 256 against whole prompts",
        ("--strategy=chunked", "--chunk=256"),
        BEST,
        long_among_streams,
        8,
        (
            Goal("longest gap of 7 streams", gap_of_streams, 0.5, at_least=False),
            Goal("TTFT of a prompt of 1,024", ttft_of_long, 1.6, at_least=False),
        ),
    ),
    Comparison(
        "prefix cache, 400 of 416 tokens shared",
        (*BEST, "--prefixes"),
        BEST,
        same_beginning,
        1,
        (Goal("TTFT", after_the_first(ttft_median), 0.25, at_least=False),),
    ),
    Comparison(
        "n-gram guesses, copying",
        (*BEST, "--proposer=ngram"),
        BEST,
        copying,
        1,
        (Goal(SPEED, tokens_per_s, 1.5),),
    ),
    Comparison(
        "n-gram guesses, chat",
        (*BEST, "--proposer=ngram"),
        BEST,
        chatting,
        1,
        (Goal(SPEED, tokens_per_s, 0.95),),
    ),
    Comparison(
        "tensor parallel 2 x 1 thread, decoding",
        (*BEST, "--parallel=tensor", "--ranks=2", "--threads=1"),
        BEST,
        plain(2, 16, 64),
        1,
        (Goal(SPEED, tokens_per_s),),
    ),
    Comparison(
        "tensor parallel 2 x 1 thread, prompt of 1,024",
        (*BEST, "--parallel=tensor", "--ranks=2", "--threads=1"),
        BEST,
        plain(1, 1024, 2),
        1,
        (Goal("speed of the first token", lambda seen: 1 / ttft_median(seen), 0.9),),
    ),
    Comparison(
        "data parallel 2 x 1 thread, 8 streams",
        (*BEST, "--parallel=data", "--ranks=2", "--threads=1"),
        BEST,
        plain(16),
        8,
        (Goal(SPEED, tokens_per_s),),
    ),
    Comparison(
        "gateway in front, 8 streams",
        GATEWAY,
        BEST,
        plain(16),
        8,
        (Goal(SPEED, tokens_per_s, 0.97), Goal("TTFT", ttft_median, at_least=False)),
    ),
    Comparison(
        "own server against vLLM, 8 streams",
        BEST,
        VLLM,
        plain(16),
        8,
        (Goal(SPEED, tokens_per_s, 0.7),),
    ),
    Comparison(
        "own server against vLLM, 1 stream",
        BEST,
        VLLM,
        plain(2),
        1,
        (Goal(SPEED, tokens_per_s, 0.7),),
    ),
)


@contextlib.contextmanager
def served(flow: Flow, side: Side) -> Iterator[Endpoint]:
    """Serves the base with vLLM, with the teaching server and these options, or by the gateway."""
    if side == VLLM:
        with serve(flow, NAME, purpose="performance") as server:
            yield server
    elif side == GATEWAY:
        with served(flow, BEST) as behind, tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(f"models:\n  - name: {NAME}\n    urls: [{behind.url}]\n")
            file.flush()
            with started("gateway", file.name, "--port=0") as url:
                yield Endpoint(url, NAME, "", flow.workspace.model(NAME))
    else:
        folder = flow.workspace.model(NAME)
        with started("serve", str(folder), "--port=0", f"--name={NAME}", *side) as url:
            yield Endpoint(url, NAME, "", folder)


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[str]:
    """Runs a command of the teaching server until the block ends; gives its address."""
    server = LocalServer([*COMMAND, *arguments])
    try:
        yield server.url
    finally:
        server.stop()


def compare(flow: Flow, comparison: Comparison, turns: int) -> list[Found]:
    """Gives both sides the same load in turns: technique, against, against, technique, ..."""
    seen: dict[Side, list[list[Seen]]] = {comparison.technique: [], comparison.against: []}
    with contextlib.ExitStack() as servers:
        endpoints = {side: servers.enter_context(served(flow, side)) for side in seen}
        for endpoint in endpoints.values():
            send(endpoint, random_asks(1, 16, [4], seed=0), 1)  # warms up
        for turn in range(turns):
            asks = comparison.load(100 * (turn + 1))
            for side in list(seen)[:: 1 if turn % 2 == 0 else -1]:
                seen[side].append(send(endpoints[side], asks, comparison.concurrency))
    return [_found(comparison, goal, *seen.values()) for goal in comparison.goals]


def _found(
    comparison: Comparison, goal: Goal, technique: list[list[Seen]], against: list[list[Seen]]
) -> Found:
    ours, theirs = ([goal.read(seen) for seen in turns] for turns in (technique, against))
    return found_of(comparison.name, goal.figure, ours, theirs, goal.ratio, goal.at_least)


def in_process(flow: Flow, turns: int) -> Iterator[Found]:
    """Compares the engine in this process with transformers, and the whole server with it."""
    from serving_in_process import teaching_engine, transformers

    folder = flow.workspace.model(NAME)
    engine, reference = teaching_engine(folder), transformers(folder)
    for streams, goal in ((1, 1.1), (8, 1.3)):
        speeds = in_turns(engine, reference, plain(streams, 16, 64), turns)
        yield found_of(
            f"own forward against transformers, {streams} requests", SPEED, *speeds, goal
        )
    with served(flow, BEST) as endpoint:
        speeds = in_turns(
            lambda asks: tokens_per_s(send(endpoint, asks, 8)), engine, plain(8), turns
        )
    yield found_of("whole server against the engine in process, 8 streams", SPEED, *speeds, 0.9)


def in_turns(ours: Speed, theirs: Speed, load: Load, turns: int) -> tuple[list[float], list[float]]:
    """Measures both sides in turns, after one turn that warms up."""
    speeds = [(ours(asks), theirs(asks)) for asks in map(load, range(turns + 1))][1:]
    return [one for one, _ in speeds], [other for _, other in speeds]


def starting(flow: Flow, turns: int) -> Iterator[Found]:
    """Compares the seconds until each server answers."""
    seconds: dict[Side, list[float]] = {BEST: [], VLLM: []}
    for _ in range(turns):
        for side, found in seconds.items():
            begun = time.monotonic()
            with served(flow, side):
                found.append(time.monotonic() - begun)
    yield found_of(
        "own server against vLLM, start", "seconds", *seconds.values(), 0.25, at_least=False
    )


def found_of(
    name: str,
    figure: str,
    ours: list[float],
    theirs: list[float],
    goal: float | None,
    at_least: bool = True,
) -> Found:
    """Computes the median, lowest and highest ratio over the turns."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return Found(
        name=name,
        figure=figure,
        technique=statistics.median(ours),
        against=statistics.median(theirs),
        ratio=statistics.median(ratios),
        lowest=min(ratios),
        highest=max(ratios),
        goal=goal,
        at_least=at_least,
    )


def line(found: Found) -> str:
    """Formats one ratio as a line of the table."""
    spread = f"{found.ratio:.2f} ({found.lowest:.2f} to {found.highest:.2f})"
    goal = "reported"
    if found.goal is not None:
        sign, verdict = ">=" if found.at_least else "<=", "met" if found.met else "missed"
        goal = f"{sign} {found.goal:<5} {verdict}"
    return f"{found.name:50} {found.figure:26} {spread:22} {goal}"


def measured(flow: Flow, turns: int, word: str) -> Iterator[Found]:
    """Measures the comparisons whose name contains the word, one after the other."""
    for comparison in COMPARISONS:
        if word in comparison.name:
            yield from compare(flow, comparison, turns)
    for measure in (in_process, starting):
        if word in measure.__name__:
            yield from measure(flow, turns)


def main() -> None:
    """Measures all comparisons, or those whose name contains a word."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile", nargs="?", help="whose base model is served")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", default="", help="a word in the name of the comparisons")
    options = parser.parse_args()
    flow = Flow.open(options.profile)
    found: list[Found] = []
    for one in measured(flow, options.turns, options.only):
        print(line(one), flush=True)
        found.append(one)
    if not options.only:
        ratios = [asdict(one) | {"met": one.met} for one in found]
        figures = {"profile": flow.config.name, "turns": options.turns, "ratios": ratios}
        write_json(FIGURES, figures | provenance(flow))


if __name__ == "__main__":
    main()
