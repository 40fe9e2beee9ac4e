"""Reads what lm-eval 0.4 writes with `--output_path` and `--log_samples`."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from model_serve_flow.compare.reading import PRIMARY_METRICS, primary_metric
from model_serve_flow.errors import BadInput, FlowError
from model_serve_flow.flow.results.measured import TaskAccuracy
from model_serve_flow.from_files.sides import Answers, Task, require_plain
from model_serve_flow.measure import lm_eval_results
from model_serve_flow.system.files import read_json

KIND = "lm-eval"
SAMPLES_HINT = (
    "lm-eval writes one samples_<task>_<date>.jsonl for each task beside its results_<date>.json. "
    "Run it with --log_samples and --output_path."
)
AGAIN = "Compare files that lm-eval 0.4 wrote, as it wrote them."
PROPORTION = "Is the score in percent? Divide it by 100, or drop the task."
DATE = re.compile(r"_(\d{4}-\d{2}-\d{2}T[\d.:-]+)\.json$")
SETTINGS = ("output_type", "repeats", "generation_kwargs")  # of a task; equal on both sides
# model_args that change what the model reads or may write, though the prompt's hash is the same
READ_BY_MODEL = (
    "max_gen_toks",
    "add_bos_token",
    "truncation",
    "truncate",
    "prefix_token_id",
    "think_end_token",
)
ASKED = {"doc_id", "doc", "target", "arguments", "doc_hash", "prompt_hash", "target_hash"}
NO_METRICS = ASKED | {"resps", "filtered_resps", "filter", "metrics"}  # keys of every sample
SHOWN = ("doc_id", "doc_hash", "filter")  # keys of a sample that are printed
CLUSTERS = ("subject", "category")  # keys of a document that become the item's groups
PARTS = ("results", "configs", "versions", "group_subtasks", "n-shot", "higher_is_better", "config")
FIGURES = ("results", "higher_is_better")  # parts of a results file that have a value per task
SAME_FIGURE = 1e-6

Sample = dict[str, Any]


def is_lm_eval(document: Any) -> bool:
    """Checks whether the JSON is lm-eval's results."""
    parts = ("results", "configs", "versions")
    return isinstance(document, dict) and all(isinstance(document.get(p), dict) for p in parts)


def read_lm_eval(paths: Iterable[Path]) -> Answers:
    """Reads the results files of one side, with the samples of their tasks.

    Raises:
        BadInput: a file is missing or has another format, or two files have the same task.
    """
    tasks: dict[str, Task] = {}
    places: dict[str, Path] = {}
    model, around = "", {}
    for path in paths:
        run = _Run(path)
        for name, task in run.tasks():
            if name in tasks:
                problem = f"{places[name]} and {path} both hold the task {name}."
                raise BadInput(problem, "Name one of the two files in place of the folder.")
            tasks[name], places[name] = task, path
        model, around = run.model, run.surroundings()
    return Answers(KIND, tasks, model, around)


class _Run:
    """One results file and its samples."""

    def __init__(self, path: Path) -> None:
        self.path, self.document = path, read_json(path, AGAIN)
        _require_form(path, self.document)
        self.groups: Mapping[str, list[str]] = self.document.get("group_subtasks", {})
        self.samples: dict[str, list[Sample]] = {}

    @property
    def model(self) -> str:
        """The model's name, as given to lm-eval."""
        return str(self.document.get("model_name") or "")

    @property
    def arguments(self) -> dict[str, str]:
        """What was given as --model_args, which lm-eval stores as text or as a mapping."""
        given = self.document.get("config", {}).get("model_args") or {}
        if isinstance(given, str):
            pairs = (part.partition("=") for part in given.split(",") if part)
            given = {key.strip(): value.strip() for key, _, value in pairs}
        return {key: str(value) for key, value in given.items()}

    def surroundings(self) -> dict[str, Any]:
        """Returns the settings that may differ."""
        return {
            "lm_eval_version": self.document.get("lm_eval_version"),
            "lm-eval's --model": self.document.get("config", {}).get("model"),
            "dtype": self.arguments.get("dtype"),
        }

    def tasks(self) -> Iterator[tuple[str, Task]]:
        """Yields the tasks that were asked for; a group with a figure of its own is one task."""
        results = self.document["results"]
        members = {m for group, names in self.groups.items() if group in results for m in names}
        asked = [name for name in results if name not in members]
        if not asked:
            raise BadInput(f"{self.path} holds no task.", AGAIN)
        for name in asked:
            yield from self._unit(name)

    def _unit(self, name: str) -> Iterator[tuple[str, Task]]:
        leaves = self._leaves(name)
        if leaves == [name]:
            yield name, Task(self._single(name), self._protocol(leaves), self._questions(leaves))
        elif pooled := self._pooled(name, leaves):
            questions = self._questions(leaves, in_group=True)
            yield name, Task(pooled, self._protocol(leaves), questions)
        else:
            for member in self.groups[name]:
                yield from self._unit(member)

    def _leaves(self, name: str) -> list[str]:
        members = self.groups.get(name) or []
        return [leaf for member in members for leaf in self._leaves(member)] if members else [name]

    def _single(self, name: str) -> TaskAccuracy:
        """Reads one task as the flow does; errors name its file."""
        label = f"{name} in {self._samples_path(name)}"
        parts = {p: {label: self.document.get(p, {}).get(name, {})} for p in FIGURES}
        raw = {**self.document, **parts, "samples": {label: self._samples(name)}}
        found = _read(label, raw)
        _require_proportions(label, found)
        return found

    def _pooled(self, group: str, leaves: list[str]) -> TaskAccuracy | None:
        """Reads the group as one task if its figure is the mean over its items; else None."""
        if not any("," in key for key in self.document["results"].get(group, {})):
            return None
        samples = {leaf: self._samples(leaf) for leaf in leaves}
        found = _read(group, {**self.document, "samples": samples})
        _require_proportions(f"{group} in {self.path}", found)
        metric = primary_metric(found.metrics)
        values = [item.values[metric] for item in found.items if metric in item.values]
        if len(values) < len(found.items):
            return None
        same = math.isclose(fmean(values), found.metrics[metric].value, abs_tol=SAME_FIGURE)
        return found if same else None

    def _questions(self, leaves: list[str], *, in_group: bool = False) -> dict[str, str]:
        """Returns a digest of each item's question, by the item's id in the flow."""
        return {
            f"{leaf}/{sample['doc']['id']}" if in_group else sample["doc"]["id"]: sample["question"]
            for leaf in leaves
            for sample in self._samples(leaf)
        }

    def _protocol(self, leaves: list[str]) -> dict[str, Any]:
        found: dict[str, Any] = {key: self.arguments.get(key) for key in READ_BY_MODEL}
        found["max_length"] = self.document.get("max_length", self.arguments.get("max_length"))
        for leaf in leaves:
            of = f" of {leaf}" if len(leaves) > 1 else ""
            config = self.document["configs"].get(leaf, {})
            found[f"task version{of}"] = self.document["versions"].get(leaf)
            found[f"few-shot examples{of}"] = self.document.get("n-shot", {}).get(leaf)
            found |= {f"{key}{of}": config.get(key) for key in SETTINGS}
        return found

    def _samples_path(self, task: str) -> Path:
        date = DATE.search(self.path.name)
        if date is None:
            problem = f"{self.path}: its name does not end in the date that tells its samples."
            raise BadInput(problem, SAMPLES_HINT)
        return self.path.with_name(f"samples_{task}_{date[1]}.jsonl")

    def _samples(self, task: str) -> list[Sample]:
        """Returns the task's samples in lm-eval's own form, each with a stable id."""
        if task not in self.samples:
            path = self._samples_path(task)
            written = self.document["configs"].get(task, {}).get("output_type") == "generate_until"
            try:
                samples = [_restored(sample, written) for sample in _lines(path)]
                self.samples[task] = _identified(path, samples)
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                problem = f"{path} is not as lm-eval 0.4 writes it: {error!r}."
                raise BadInput(problem, AGAIN) from error
        return self.samples[task]


def _require_form(path: Path, document: dict[str, Any]) -> None:
    """Refuses results whose parts are no mappings, or whose groups cannot be used.

    Raises:
        BadInput: names the file and the part.
    """
    for part in PARTS:
        found = document.get(part, {})
        _require(path, part, found, isinstance(found, dict))
        for name, value in found.items() if part in ("results", "configs") else ():
            require_plain(path, "task", name)
            _require(path, f"{part}.{name}", value, isinstance(value, dict))
    _require_groups(path, document.get("group_subtasks", {}))


def _require_groups(path: Path, groups: Mapping[str, Any]) -> None:
    """Refuses groups that are no lists of tasks, or that hold themselves."""
    for name, members in groups.items():
        are_names = isinstance(members, list) and all(isinstance(one, str) for one in members)
        _require(path, f"group_subtasks.{name}", members, are_names)
        for task in (name, *members):
            require_plain(path, "task", task)
    left = {name: set(members) for name, members in groups.items()}
    while ended := [name for name, members in left.items() if not members & left.keys()]:
        for name in ended:
            del left[name]
    if left:
        name = min(left)
        raise BadInput(f"{path}: the group {name!r} of group_subtasks holds itself.", AGAIN)


def _require(path: Path, part: str, value: Any, fits: bool) -> None:
    if not fits:
        problem = f"{path} is not as lm-eval 0.4 writes it: {part!r} is {value!r:.80}."
        raise BadInput(problem, AGAIN)


def _read(name: str, raw: dict[str, Any]) -> TaskAccuracy:
    try:
        return lm_eval_results.read_task(name, raw)
    except FlowError as error:
        raise BadInput(error.problem, AGAIN) from error


def _require_proportions(label: str, task: TaskAccuracy) -> None:
    """Refuses a score outside 0 to 1 of a metric that counts as a share of right answers.

    Raises:
        BadInput: names the task, its file, the item and the value.
    """
    shares = {name for name in task.metrics if name.partition(",")[0] in PRIMARY_METRICS}
    primary = primary_metric(task.metrics)
    if task.metrics[primary].higher_is_better:  # a perplexity is not
        shares.add(primary)
    for item in task.items:
        for metric in sorted(shares & item.values.keys()):
            if not 0 <= (score := item.values[metric]) <= 1:
                place = f"Task {label}: {metric} of the item {item.id}"
                raise BadInput(f"{place} is {score:g}, not in the range of 0 to 1.", PROPORTION)


def _lines(path: Path) -> Iterator[Sample]:
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                yield _sample(path, number, line)
    except FileNotFoundError as error:
        raise BadInput(f"{path} is missing.", SAMPLES_HINT) from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}.", SAMPLES_HINT) from error


def _sample(path: Path, number: int, line: str) -> Sample:
    try:
        sample = json.loads(line)
        if not {"doc_id", "doc", "arguments", "filtered_resps"} <= sample.keys():
            raise ValueError("it is not a sample of lm-eval")
    except (ValueError, AttributeError, RecursionError) as error:
        raise BadInput(f"{path}, line {number}: {error}.", AGAIN) from error
    for key in SHOWN:
        require_plain(f"{path}, line {number}", key, str(sample.get(key)))
    return _writable(sample)


def _writable(value: Any) -> Any:
    """Writes half characters as '\\ud83d', because no file and no terminal takes them.

    JSON allows them. A model that stops in the middle of an emoji can write one.
    """
    if isinstance(value, str):
        return value if value.isascii() else value.encode(errors="backslashreplace").decode()
    if isinstance(value, list):
        return [_writable(part) for part in value]
    if isinstance(value, dict):
        return {_writable(key): _writable(part) for key, part in value.items()}
    return value


def _restored(sample: Sample, written: bool) -> Sample:
    """Undoes lm-eval's changes for the file: tuples became mappings, and numbers text."""
    answers, arguments = sample["filtered_resps"], sample["arguments"]
    if isinstance(arguments, dict):
        arguments = [tuple(given.values()) for given in arguments.values()]
    if written:  # text of the model; lm-eval may have drawn several
        answers = [drawn[0] if isinstance(drawn, list) and drawn else drawn for drawn in answers]
    metrics = sample.get("metrics") or [key for key in sample if key not in NO_METRICS]
    target = sample.get("target")
    if not written and isinstance(target, str) and target.isdecimal():
        target = int(target)  # the number of the right choice
    changed = {
        "arguments": arguments,
        "filtered_resps": answers,
        "metrics": metrics,
        "target": target,
    }
    return {**sample, "filter": sample.get("filter", "none"), **changed}


def _identified(path: Path, samples: list[Sample]) -> list[Sample]:
    """Sorts the samples by document and gives each an id that is the same in every run.

    The id is lm-eval's hash of the document, plus a number if a dataset holds the document twice.
    Without the hash, the id is the document's number. This is safe, because the prompts are
    compared too.
    """
    seen: dict[tuple[str, str], int] = {}
    _require_once(path, samples)
    for sample in sorted(samples, key=_place):
        sample["question"] = _asked(path, sample)
        name = sample["doc_hash"][:16] if sample.get("doc_hash") else f"document {sample['doc_id']}"
        count = seen[sample["filter"], name] = seen.get((sample["filter"], name), 0) + 1
        document = sample["doc"] if isinstance(sample["doc"], dict) else {}
        groups = {key: document[key] for key in CLUSTERS if isinstance(document.get(key), str)}
        sample["doc"] = {"id": name if count == 1 else f"{name}-{count}", **groups}
    return samples


def _require_once(path: Path, samples: list[Sample]) -> None:
    seen = set()
    for sample in samples:
        place = sample["filter"], str(sample["doc_id"])
        if place in seen:
            problem = f"{path}: document {place[1]} has two samples of the filter {place[0]!r}."
            raise BadInput(problem, AGAIN)
        seen.add(place)


def _place(sample: Sample) -> tuple[int, str]:
    number = sample["doc_id"]
    return (number, "") if isinstance(number, int) else (0, str(number))


def _asked(path: Path, sample: Sample) -> str:
    """Computes a digest of the prompt and the expected answer."""
    prompt = sample.get("prompt_hash") or _digest(sample["arguments"], lambda given: given[0][0])
    if prompt is None:
        problem = f"{path}: document {sample['doc_id']} has neither prompt_hash nor arguments."
        raise BadInput(problem, "Items are paired only where their prompts can be compared.")
    return f"{prompt} {sample.get('target_hash') or sample.get('target')}"


def _digest(arguments: list[Any], prompt: Callable[[list[Any]], Any]) -> str | None:
    try:
        return hashlib.sha256(str(prompt(arguments)).encode()).hexdigest()
    except LookupError:
        return None
