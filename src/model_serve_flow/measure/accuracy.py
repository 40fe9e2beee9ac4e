"""Measures accuracy: runs lm-eval against the served model and writes `AccuracyResult`."""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib.metadata
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.busy import MachineWatch
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.flow.results.measured import (
    LOOK,
    AccuracyResult,
    Busy,
    Measurement,
    Model,
    TaskAccuracy,
)
from model_serve_flow.flow.workspace import describe_model
from model_serve_flow.measure.lm_eval_cache import forget_answers, request_cache
from model_serve_flow.measure.lm_eval_results import plain, read_task, was_asked
from model_serve_flow.measure.lm_eval_subsample import first_looks, subsample
from model_serve_flow.measure.lm_eval_units import rehearse, units
from model_serve_flow.measure.provenance import (
    earlier,
    proven_facts,
    provenance,
    require_arguments,
    say_kept,
)
from model_serve_flow.measure.repeats import joined, repeated_tasks, require_written, seeds
from model_serve_flow.serve.engine import ACCURACY
from model_serve_flow.serve.engines import engine_of
from model_serve_flow.serve.server import Server
from model_serve_flow.setup.offline import working_folder
from model_serve_flow.setup.tasks import TASKS
from model_serve_flow.setup.tokenizer import verify_same_tokenizer
from model_serve_flow.system import live
from model_serve_flow.system.digests import file_digest
from model_serve_flow.system.files import read_json, write_json

# Limit of one answer: enough for a full batch of long texts on two cores. A server that hangs is
# killed earlier (`watchdog`).
TIMEOUT_SECONDS = 1800
SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
Found = TypeVar("Found")
ATTEMPTS = 3  # a second apart, so that a server that ended is noticed at once


def prepare_evaluation(flow: Flow) -> None:
    """Imports lm-eval and the tokenizer library, and rehearses the tasks; needs no server.

    This work keeps one core busy for ten seconds and more, and can run while the server starts.

    Raises:
        FlowError: the profile names an unknown task, or one whose items cannot be paired.
    """
    import datasets  # noqa: F401
    from transformers import AutoTokenizer  # noqa: F401

    import model_serve_flow.measure.lm_eval_client  # noqa: F401

    manager, accuracy = task_manager(flow), measured_units(flow).config.accuracy
    run = functools.partial(rehearse, manager, accuracy.tasks, accuracy.num_fewshot)
    _alone(run, flow.workspace.logs / "lm-eval-rehearsal.log")


def measure_accuracy(flow: Flow, server: Server) -> AccuracyResult:
    """Scores the served model on the profile's tasks and writes `accuracy.json`.

    lm-eval's samples are written to `raw/`. A task is kept if an earlier run scored it for the same
    model in the same way. If a measurement was interrupted, answers that the server already gave
    are not asked again.

    Args:
        flow: the profile and its workspace.
        server: the served model.

    Raises:
        FlowError: lm-eval does not know a task; a task has no per-item values; the kernel does not
            fit the checkpoint; the tokenizer or chat template of a candidate differs from the
            base's; or the server did not answer.
    """
    return _measure(flow, server)


def measure_accuracy_again(flow: Flow, server: Server) -> AccuracyResult | None:
    """Asks some items again in other batches, and writes `accuracy_again.json`.

    The second measurement uses the concurrency and batch size of `accuracy.again`. It draws
    `accuracy.again.items_per_task` items of each task. Tasks without answers that could flip are
    left out. The prompts stay the same. The engine computes other prompts together, which changes
    the rounding of its sums.

    Returns:
        None if the profile has no `accuracy.again`.

    Raises:
        FlowError: as `measure_accuracy`.
    """
    if (again := flow.config.accuracy.again) is None:
        return None
    return _measure(
        Flow(second_measurement(flow.config), flow.workspace),
        server,
        "_again",
        again.items_per_task,
    )


def measure_accuracy_in_looks(
    flow: Flow, server: Server, decided: Callable[[AccuracyResult], bool]
) -> AccuracyResult:
    """Scores a candidate in looks (`verdict.looks`) and stops when the candidate is decided.

    Each look adds a part of the items. The profile's seed sets the random order of the items.
    `accuracy.json` holds all items asked so far, and no item is asked twice. After an interruption
    the measurement continues with the interrupted look. With one look, this is `measure_accuracy`.

    Args:
        flow: the profile and its workspace.
        server: the served candidate.
        decided: says whether the answers so far decide; called after every look but the last.

    Raises:
        FlowError: as `measure_accuracy`.
    """
    looks = flow.config.verdict.looks
    if looks == 1:
        return measure_accuracy(flow, server)
    look = 0
    while True:
        result = _measure(flow, server, look=look + 1)
        look = result.protocol[LOOK][0]
        print(
            f"{server.model_name}: look {look} of {looks}, "
            f"{sum(task.n for task in result.tasks.values())} items"
        )
        if look == looks:  # until then a changed margin may need another look
            forget_answers(flow.workspace, server.model_name)
        if look == looks or decided(result):
            return result


def measured_units(flow: Flow) -> Flow:
    """Returns the flow with the tasks that its tags and groups stand for; see `lm_eval_units`."""
    index, accuracy = task_manager(flow).task_index, flow.config.accuracy
    changed: dict[str, Any] = {"tasks": units(index, accuracy.tasks)}
    if accuracy.repeats is not None:
        repeated = units(index, accuracy.repeats.tasks)
        changed["repeats"] = accuracy.repeats.model_copy(update={"tasks": repeated})
    config = flow.config.model_copy(update={"accuracy": accuracy.model_copy(update=changed)})
    return Flow(config, flow.workspace, flow.profile, flow.overrides, flow.command)


def second_measurement(config: FlowConfig) -> FlowConfig:
    """Returns the profile with the concurrency and batch size of `accuracy.again`.

    The profile must have `accuracy.again`.
    """
    accuracy = config.accuracy
    assert accuracy.again is not None
    again = {"concurrency": accuracy.again.concurrency, "batch_size": accuracy.again.batch_size}
    return config.model_copy(update={"accuracy": accuracy.model_copy(update=again)})


def _measure(
    flow: Flow, server: Server, suffix: str = "", items: int | None = None, look: int | None = None
) -> AccuracyResult:
    """Measures the tasks, or keeps an earlier result that is still valid.

    Args:
        flow: the profile and its workspace.
        server: the served model.
        suffix: of the result's file name, such as "_again".
        items: how many items of each task are drawn; None: all.
        look: items up to this look are asked; None: all.
    """
    started, name, workspace = time.monotonic(), server.model_name, flow.workspace
    _require_same_tokenizer(flow, server)
    flow = measured_units(flow)
    path, facts = workspace.results(name) / f"accuracy{suffix}.json", proven_facts(server)
    protocol = accuracy_protocol(flow, facts.version) | ({"items_per_task": items} if items else {})
    protocol |= {LOOK: [look, flow.config.verdict.looks]} if look else {}
    require_arguments(server, protocol)
    before = earlier(path, AccuracyResult, server, facts)
    if before is not None and _is_complete(before, protocol):
        say_kept(path)
        if not look:
            forget_answers(workspace, f"{name}{suffix}")
        return before
    scored = {} if before is None else _scored_before(before, protocol)
    if scored and look and before is not None:  # new tasks are asked up to the look already made
        look = before.protocol[LOOK][0]
        protocol[LOOK] = before.protocol[LOOK]
    kept = frozenset(scored)
    ways = collections.Counter(_asked_before(before) if before and scored else {})
    spent = before.seconds if before is not None and (scored or (look or 1) > 1) else 0.0
    live.report(f"{name}{suffix.replace('_', ', ')}: lm-eval", 0, 0)
    watch, model = MachineWatch(), describe_model(name, server.folder)
    with contextlib.ExitStack() as caches:  # caches keep all answers until the result is written
        ask = _Asker(
            flow,
            server,
            suffix,
            items,
            look,
            model,
            _manner(protocol),
            caches,
            ways,
            kept,
        )
        tasks = _complete(flow.config, scored, ask)
        source = provenance(server, proven_facts(server), protocol, started - spent)
        result = _result(source, tasks, watch.result(), ways, before, kept)
        write_json(path, result)
    return result


def _require_same_tokenizer(flow: Flow, server: Server) -> None:
    """Checks that a candidate has the base's tokenizer; else both would not get the same tokens."""
    if server.model_name != "base":
        base, trust = flow.workspace.model("base"), flow.config.model.trust_remote_code
        verify_same_tokenizer(base, server.folder, trust_remote_code=trust)


def _is_complete(before: AccuracyResult, protocol: dict[str, Any]) -> bool:
    """Checks whether an earlier result holds all that this measurement would ask."""
    return before.protocol == protocol or (LOOK in protocol and _looked_already(before, protocol))


def _result(
    source: Measurement,
    tasks: dict[str, TaskAccuracy],
    busy: Busy,
    ways: collections.Counter[str],
    before: AccuracyResult | None,
    kept: frozenset[str],
) -> AccuracyResult:
    """Builds the result; with looks, it lists the items of each.

    Args:
        kept: tasks whose items are those of `before`.
    """
    cut_prompts = _say_cut(ways)
    result = AccuracyResult(
        model=source.model,
        protocol=source.protocol,
        protocol_hash=source.protocol_hash,
        engine=source.engine,
        seconds=source.seconds,
        busy=busy,
        tasks=tasks,
        cut_prompts=cut_prompts,
        requests=dict(ways),
    )
    if LOOK not in source.protocol:
        return result
    looks = _looks(before, result, kept)
    requests = result.requests if kept else _requests(before, result)
    return result.model_copy(update={"looks": looks, "requests": requests})


def _asked_before(before: AccuracyResult) -> dict[str, int]:
    from model_serve_flow.measure.lm_eval_client import CUT

    return {**before.requests, CUT: before.cut_prompts}


def _say_cut(ways: collections.Counter[str]) -> int:
    """Takes the number of prompts that lost their beginning out of `ways`, and prints it."""
    from model_serve_flow.measure.lm_eval_client import CUT

    if count := ways.pop(CUT, 0):
        print(
            f"{count:,} prompts were longer than engine.max_model_len allows and lost their "
            "beginning: raise it, or lower accuracy.num_fewshot."
        )
    return count


@dataclass(frozen=True)
class _Asker:
    """Asks the tasks of one measurement, with a request cache, log and raw file for every seed."""

    flow: Flow
    server: Server
    suffix: str
    items: int | None
    look: int | None
    model: Model
    manner: dict[str, Any]
    caches: contextlib.ExitStack
    ways: collections.Counter[str]
    kept: frozenset[str]

    def __call__(self, tasks: Sequence[str], seed: int | None = None) -> dict[str, TaskAccuracy]:
        """Scores the tasks; with a seed, the model samples its answers."""
        workspace, name = self.flow.workspace, self.server.model_name
        part = self.suffix if seed is None else f"{self.suffix}-seed-{seed}"
        manner = self.manner if seed is None else {**self.manner, "seed of the answers": seed}
        # lm-eval's cache key of an answer does not contain the seed
        caching = request_cache(
            workspace, self.model, manner, self.suffix, keep=self.look is not None
        )
        cache = self.caches.enter_context(caching)
        log = workspace.logs / f"lm-eval-{name}{part}.log"
        raw, new = evaluate(self.flow, self.server, log, cache, tasks, self.items, seed, self.look)
        _write_raw(workspace.raw(name) / f"lm-eval{part}.json", raw, set(self.kept))
        self.ways.update(new)
        return {
            task: read_task(task, raw) for task in tasks if not self.items or was_asked(task, raw)
        }


def _complete(
    config: FlowConfig, scored: dict[str, TaskAccuracy], ask: _Asker
) -> dict[str, TaskAccuracy]:
    """Asks the tasks that are not scored yet; returns all in the order of the profile."""
    asked = [task for task in config.accuracy.tasks if task not in scored]
    several = repeated_tasks(config, asked)
    found = scored | ask([task for task in asked if task not in several])
    found |= _ask_several(config, several, ask, only_one=ask.items is not None)
    return {task: found[task] for task in config.accuracy.tasks if task in found}


def _ask_several(
    config: FlowConfig, tasks: Sequence[str], ask: _Asker, only_one: bool
) -> dict[str, TaskAccuracy]:
    """Asks the tasks of `accuracy.repeats` once per seed, or with the first seed only."""
    answers: dict[str, dict[int, TaskAccuracy]] = {task: {} for task in tasks}
    for seed in seeds(config)[: 1 if only_one else None] if tasks else ():
        for task, measured in ask(tasks, seed).items():
            require_written(task, measured)
            answers[task][seed] = measured
    return {task: joined(by_seed) for task, by_seed in answers.items() if by_seed}


def _looked_already(before: AccuracyResult, protocol: dict[str, Any]) -> bool:
    """Checks whether an earlier result is of the same protocol, and of this look or a later one."""
    others = [
        {key: value for key, value in one.items() if key != LOOK}
        for one in (before.protocol, protocol)
    ]
    ours, theirs = protocol[LOOK], before.protocol.get(LOOK)
    return (
        others[0] == others[1]
        and theirs is not None
        and theirs[1] == ours[1]
        and theirs[0] >= ours[0]
    )


def _looks(
    before: AccuracyResult | None, result: AccuracyResult, kept: frozenset[str]
) -> tuple[dict[str, tuple[str, ...]], ...]:
    """Lists the items of every look; the last look has the items that are new in this result.

    A task that was added after some looks is asked up to the last of them at once. Its items count
    as those of the first look, so it is looked at once.

    Args:
        kept: tasks whose items are those of `before`.
    """
    if before is not None and kept:
        added = {
            task: tuple(item.id for item in scored.items)
            for task, scored in result.tasks.items()
            if task not in kept
        }
        looks = [{task: one[task] for task in one.keys() & kept} for one in before.looks]
        nothing_new = dict.fromkeys(added, ())
        return ({**looks[0], **added}, *({**one, **nothing_new} for one in looks[1:]))
    earlier_looks = before.looks if before is not None and _follows(before, result) else ()
    known = {(task, key) for one in earlier_looks for task, keys in one.items() for key in keys}
    new = {
        name: tuple(item.id for item in task.items if (name, item.id) not in known)
        for name, task in result.tasks.items()
    }
    return (*earlier_looks, new)


def _follows(before: AccuracyResult, result: AccuracyResult) -> bool:
    """Checks whether `before` is the look before the result's."""
    look, planned = result.protocol[LOOK]
    return before.protocol.get(LOOK) == [look - 1, planned]


def _requests(before: AccuracyResult | None, result: AccuracyResult) -> dict[str, int]:
    """Counts how the requests of all looks were asked.

    lm-eval takes the answers of earlier looks from its cache, where they look like answers from
    before an interruption.
    """
    from model_serve_flow.measure.lm_eval_client import EARLIER

    if before is None or not _follows(before, result):
        return result.requests
    known, new = collections.Counter(before.requests), collections.Counter(result.requests)
    new[EARLIER] = max(0, new[EARLIER] - known.total())
    return dict(+(known + new))


def _scored_before(before: AccuracyResult, protocol: dict[str, Any]) -> dict[str, TaskAccuracy]:
    """Returns and prints the tasks of an earlier result whose protocol has not changed.

    With looks, the earlier result must be of the same number of planned looks, and of this look or
    a later one. Without looks, it must have all items.
    """
    made, planned = before.protocol.get(LOOK, (1, 1))
    look, looks = protocol.get(LOOK, (planned, planned))
    if made < look or planned != looks:
        return {}
    wanted = protocol["accuracy"]["tasks"]
    same = [
        task
        for task in wanted
        if task in before.tasks and _of(task, before.protocol) == _of(task, protocol)
    ]
    if same:
        print(f"kept: {', '.join(same)} of {before.model.name}, scored before")
    return {task: before.tasks[task] for task in same}


def _of(task: str, protocol: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of the protocol that concerns one task."""
    parts = {part: protocol[part].get(task) for part in ("data_sha256", "task_definitions")}
    repeats = protocol["accuracy"].get("repeats")
    return {
        **_manner(protocol),
        **parts,
        "repeats": repeats if repeats and task in repeats["tasks"] else None,
    }


def _manner(protocol: dict[str, Any]) -> dict[str, Any]:
    """Returns the protocol without the keys that choose tasks, items and repeats."""
    apart = ("tasks", "packaged", "repeats")
    settings = {key: value for key, value in protocol["accuracy"].items() if key not in apart}
    rest = {
        key: value
        for key, value in protocol.items()
        if key not in ("data_sha256", "task_definitions", LOOK)
    }
    return {**rest, "accuracy": settings}


def _write_raw(path: Path, raw: dict[str, Any], kept: set[str]) -> None:
    """Writes lm-eval's results, and keeps the results of tasks that were scored before."""
    new = plain(raw)
    if kept and path.is_file():
        old = read_json(path)
        both = {
            key
            for key in old.keys() & new.keys()
            if isinstance(old[key], dict) and isinstance(new[key], dict)
        }
        new = {**old, **new, **{key: {**old[key], **new[key]} for key in both}}
    write_json(path, new)


def evaluate(
    flow: Flow,
    server: Server,
    log: Path,
    cache: Path | None = None,
    tasks: Sequence[str] | None = None,
    items: int | None = None,
    seed: int | None = None,
    look: int | None = None,
) -> tuple[dict[str, Any], dict[str, int]]:
    """Runs lm-eval's `simple_evaluate` against the endpoint.

    Args:
        flow: the profile and its workspace.
        server: the served model.
        log: the file in which progress can be followed.
        cache: lm-eval's `use_cache`: known answers are not asked again, and new answers are added.
        tasks: the tasks to score; None: all of the profile.
        items: how many items of each task are asked; None: all.
        seed: seed of answers sampled at `accuracy.repeats.temperature`; None: as each task says.
        look: items up to this look of `verdict.looks` are asked; None: all.

    Returns:
        lm-eval's results with all samples, and way of asking -> number of requests.

    Raises:
        FlowError: a task is unknown, or the server did not answer. Answers that the server gave are
            in `cache`.
    """
    import aiohttp
    import requests

    # lm-eval reads the key from this variable and does not write it to any file
    os.environ["OPENAI_API_KEY"] = server.api_key
    ways: collections.Counter[str] = collections.Counter()
    chosen = flow.config.accuracy.tasks if tasks is None else tuple(tasks)
    try:
        run = functools.partial(_ask, flow, server, cache, chosen, items, look, ways, seed)
        return _alone(run, log), dict(ways)
    except (aiohttp.ClientError, requests.RequestException, httpx.HTTPError, TimeoutError) as error:
        raise FlowError(
            f"{server.engine.name} did not answer lm-eval: {error!r:.500}",
            f"See {log} and {server.log}. What was answered is kept: run again to go on.",
        ) from error


def _ask(
    flow: Flow,
    server: Server,
    cache: Path | None,
    tasks: tuple[str, ...],
    items: int | None,
    look: int | None,
    ways: collections.Counter[str],
    answers_seed: int | None,
) -> dict[str, Any]:
    """Runs lm-eval, returns its results, and counts in `ways` how its requests were asked."""
    import lm_eval

    accuracy = flow.config.accuracy
    selection = _selection(flow, tasks, items, look)
    sampled = {} if answers_seed is None else {"seed": answers_seed}
    if not selection["tasks"]:
        return {"samples": {}}
    with server.client(TIMEOUT_SECONDS) as client:
        ours: dict[str, Any] = {"client": client, "ways": ways}
        ours["cache_block"] = server.engine.cache_block
        ours["templated"] = accuracy.apply_chat_template
        raw = lm_eval.simple_evaluate(
            **_endpoint(flow, server, **ours, **sampled),
            **selection,
            task_manager=task_manager(flow),
            num_fewshot=accuracy.num_fewshot,
            apply_chat_template=accuracy.apply_chat_template,
            gen_kwargs={"temperature": accuracy.repeats.temperature}
            if sampled and accuracy.repeats
            else None,
            use_cache=None if cache is None else str(cache),
            log_samples=True,
            **dict.fromkeys(SEEDS, flow.config.seed),
        )
    raw["config"] |= _endpoint(flow, server, **sampled)  # without client and counter
    return raw


def _selection(
    flow: Flow, tasks: tuple[str, ...], items: int | None, look: int | None
) -> dict[str, Any]:
    """Builds lm-eval's arguments that choose the items.

    The items are: all up to `accuracy.limit`, a look's part, or a drawn number that could flip.
    """
    limit, seed = flow.config.accuracy.limit, flow.config.seed
    if look is not None:
        return first_looks(
            task_manager(flow), tasks, look, flow.config.verdict.looks, limit=limit, seed=seed
        )
    if items is None:
        return {"tasks": list(tasks), "limit": limit}
    return subsample(task_manager(flow), tasks, items, limit=limit, seed=seed)


def _endpoint(flow: Flow, server: Server, **ours: Any) -> dict[str, Any]:
    """Builds lm-eval's arguments for its client and the endpoint; `ours` are added."""
    from model_serve_flow.measure.lm_eval_client import NAME

    accuracy = flow.config.accuracy
    endpoint = {
        "model": server.model_name,
        "base_url": f"{server.url}/v1/completions",
        "tokenizer": str(server.folder),
        "tokenizer_backend": "huggingface",
        "trust_remote_code": flow.config.model.trust_remote_code,
        "tokenized_requests": True,
        "num_concurrent": accuracy.concurrency,
        "batch_size": accuracy.batch_size,
        "max_length": flow.config.engine.max_model_len,
        "timeout": TIMEOUT_SECONDS,
        "max_retries": ATTEMPTS,
    }
    return {"model": NAME, "model_args": endpoint | ours}


def _alone(run: Callable[[], Found], log: Path) -> Found:
    """Runs lm-eval in its own thread, with its progress in a log and not in the notebook."""
    import datasets

    # A notebook would show these bars as widgets, which no redirection catches.
    datasets.disable_progress_bars()
    log.parent.mkdir(parents=True, exist_ok=True)
    # lm-eval's progress bars would fill hundreds of lines of a notebook, so they go to a log.
    # lm-eval starts an event loop. In a notebook's thread this fails, because a loop already runs.
    with (
        log.open("w", encoding="utf-8", buffering=1) as sink,
        contextlib.redirect_stderr(sink),
        working_folder(),
        ThreadPoolExecutor(max_workers=1) as thread,
    ):
        return thread.submit(run).result()


def task_manager(flow: Flow) -> Any:
    """Creates lm-eval's index of tasks.

    The index holds the packaged tasks. It also holds lm-eval's own tasks if the profile names any
    of them.

    Raises:
        FlowError: the profile names an unknown task.
    """
    folder = flow.workspace.data / "tasks"
    packaged = frozenset(path.stem for path in folder.glob("*.yaml"))
    stock = [task for task in flow.config.accuracy.tasks if task not in packaged]
    manager = _task_index(folder, packaged, bool(stock))
    unknown = [task for task in stock if task not in manager.all_tasks]
    if unknown:
        raise FlowError(
            f"Unknown task {', '.join(unknown)} in accuracy.tasks.",
            f"Packaged tasks: {', '.join(sorted(packaged)) or 'none'}. lm-eval's own: 'lm-eval ls "
            "tasks' prints them.",
        )
    return manager


@functools.lru_cache(maxsize=1)
def _task_index(folder: Path, packaged: frozenset[str], stock: bool) -> Any:
    """Indexes tasks once, because indexing lm-eval's thousands of tasks takes seconds.

    lm-eval's own tasks are indexed only if the profile names any of them.
    """
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder) if packaged else None, include_defaults=stock)


def accuracy_protocol(flow: Flow, engine_version: str) -> dict[str, Any]:
    """Lists everything that must be equal for two accuracy results to be comparable.

    The keys `again` and `distribution` of the profile's section are left out: they do not affect
    these figures.
    """
    tasks = flow.config.accuracy.tasks
    packaged = [task for task in tasks if (flow.workspace.data / f"{task}.jsonl").is_file()]
    return {
        "accuracy": flow.config.accuracy.model_dump(mode="json", exclude={"again", "distribution"}),
        "data_sha256": {
            task: file_digest(flow.workspace.data / f"{task}.jsonl") for task in packaged
        },
        "task_definitions": {task: TASKS[task] for task in packaged},
        "engine_arguments": list(engine_of(flow.config).arguments(ACCURACY)),
        "engine_version": engine_version,
        "lm_eval_version": importlib.metadata.version("lm-eval"),
        "seed": flow.config.seed,
    }
