"""Packaged tasks and calibration text, from small files of the same form as the real ones."""

import bz2
import json
from pathlib import Path

import pytest
import yaml

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.profile import PackagedFile
from model_serve_flow.setup import calibration_text, wikipedia
from model_serve_flow.setup import tasks as tasks_module
from model_serve_flow.setup.calibration_text import write_calibration
from model_serve_flow.setup.tasks import prepare_tasks, word_analogies
from model_serve_flow.setup.wikipedia import cut, plain_text
from model_serve_flow.system.files import read_rows

SENTENCE = "The quick brown fox jumps over the lazy dog near the river. "
MMLU = {
    "world_religions": "Answer these.\n\n"
    "Q: What is red?\n(A) sky (B) blood (C) grass (D) coal\nA: Let's think. The answer is (B).\n\n"
    "Q: What is red?\n(A) sky (B) blood (C) grass (D) coal\nA: Let's think. The answer is (B).\n\n"
    "Q: No options here\nA: The answer is (A).",
}
ANALOGIES = ": capitals\n" + "".join(
    f"City{i} Land{i} City{j} Land{j}\n" for i in range(8) for j in range(8) if i != j
)
ANALOGIES += (
    ": family\n"
    + "".join(f"boy girl man{i} woman{i}\n" for i in range(6))
    + "City0 Land0 City1 Land1\n"
)


def page(title: str, text: str, namespace: str = "0", extra: str = "") -> str:
    revision = f"<revision><text>{text}</text></revision>"
    return f"<page><title>{title}</title><ns>{namespace}</ns>{extra}{revision}</page>"


WIKIPEDIA = (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">'
    + page("Moved", SENTENCE * 9, extra='<redirect title="Fox" />')
    + page("Talk:Fox", SENTENCE * 9, namespace="1")
    + page("Stub", SENTENCE)
    + "".join(page(f"Fox {i}", f"'''Fox {i}''' is here. " + SENTENCE * 9) for i in range(30))
    + "<page><title>Cut off"
)
NEWS = (
    "\n".join(f"Story {i}. " + SENTENCE * 12 for i in range(80))
    + "\nStory 0. "
    + SENTENCE * 12
    + "\n"
)
CONTENT = {
    "_cot_prompts.json": json.dumps(MMLU).encode(),
    "questions-words.txt": ANALOGIES.encode(),
    "lee_background.cor": NEWS.encode(),
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the downloads: every packaged file is one of the small ones above."""

    def fetch(file: PackagedFile) -> Path:
        name = Path(file.path).name
        path = tmp_path / "packages" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(
            bz2.compress(WIKIPEDIA.encode()) if name.endswith(".bz2") else CONTENT[name]
        )
        return path

    monkeypatch.setattr(tasks_module, "fetch_packaged", fetch)
    monkeypatch.setattr(calibration_text, "fetch_packaged", fetch)
    monkeypatch.setattr(tasks_module, "fetch_all", lambda files: [fetch(file) for file in files])


def open_flow(tmp_path: Path, **overrides: object) -> Flow:
    small = {
        "accuracy.packaged.analogies_per_category": 5,
        "accuracy.packaged.wikipedia_documents": 20,
        "accuracy.packaged.wikipedia_characters": 200,
    }
    return Flow.open(
        "cpu-smollm2",
        {**small, **{k.replace("__", "."): v for k, v in overrides.items()}},
        tmp_path / "a",
    )


@pytest.mark.usefixtures("files")
def test_tasks_are_written_for_lm_eval(tmp_path: Path) -> None:
    pytest.importorskip("mwparserfromhell")
    flow = open_flow(tmp_path)
    assert prepare_tasks(flow) == {"mmlu_dev": 1, "word_analogies": 10, "wikipedia": 20}
    for task in ("mmlu_dev", "word_analogies", "wikipedia"):
        definition = yaml.safe_load((flow.workspace.data / "tasks" / f"{task}.yaml").read_text())
        assert definition["task"] == task
        data = Path(definition["dataset_kwargs"]["data_files"]["test"])
        assert data.is_absolute()
        rows = read_rows(data)
        assert len({row["id"] for row in rows}) == len(rows)


@pytest.mark.usefixtures("files")
def test_the_same_profile_gives_the_same_bytes_and_another_seed_other_questions(
    tmp_path: Path,
) -> None:
    tasks = ["word_analogies"]
    written = []
    for seed in (0, 0, 1):
        flow = open_flow(tmp_path, seed=seed, accuracy__tasks=tasks)
        prepare_tasks(flow)
        written.append((flow.workspace.data / "word_analogies.jsonl").read_bytes())
    assert written[0] == written[1] != written[2]


@pytest.mark.usefixtures("files")
def test_a_task_taken_out_of_the_profile_is_taken_away(tmp_path: Path) -> None:
    prepare_tasks(open_flow(tmp_path, accuracy__tasks=["word_analogies", "mmlu_dev"]))
    flow = open_flow(tmp_path, accuracy__tasks=["mmlu_dev", "arc_easy"])
    assert prepare_tasks(flow) == {"mmlu_dev": 1}
    assert [path.name for path in (flow.workspace.data / "tasks").iterdir()] == ["mmlu_dev.yaml"]


def test_packaged_task_without_its_data_is_refused(tmp_path: Path) -> None:
    flow = Flow.open("gpu-llama-3.1-8b", {"accuracy.tasks": ["mmlu", "word_analogies"]}, tmp_path)
    with pytest.raises(FlowError, match=r"Task word_analogies comes out of a package"):
        prepare_tasks(flow)


def test_profile_with_stock_tasks_only_needs_nothing(tmp_path: Path) -> None:
    flow = Flow.open("gpu-llama-3.1-8b", {}, tmp_path)
    assert prepare_tasks(flow) == {}
    assert write_calibration(flow) is None
    assert not flow.workspace.root.exists()


def test_mmlu_question() -> None:
    first, *_ = tasks_module.mmlu_questions(json.dumps(MMLU).encode(), per_subject=5, subjects=57)
    assert first == {
        "question": "What is red?",
        "choices": ["sky", "blood", "grass", "coal"],
        "answer": 1,
        "subject": "world religions",
    }


def test_mmlu_takes_the_first_questions_of_each_subject() -> None:
    many = json.dumps(
        {subject: "\n\n".join([prompt] * 3) for subject, prompt in MMLU.items()}
    ).encode()
    once, twice = (
        tasks_module.mmlu_questions(many, per_subject=number, subjects=57) for number in (1, 2)
    )
    assert len(twice) == 2 * len(once)


def test_mmlu_subjects_are_taken_at_even_distances() -> None:
    prompts = {f"subject_{number}": MMLU["world_religions"] for number in range(57)}
    for subjects, expected in ((57, range(57)), (19, range(0, 57, 3)), (1, [0])):
        rows = tasks_module.mmlu_questions(
            json.dumps(prompts).encode(), per_subject=1, subjects=subjects
        )
        assert [row["subject"] for row in rows] == [f"subject {number}" for number in expected]


def test_an_article_is_read_as_far_as_it_is_needed_and_no_other_text_comes_of_it() -> None:
    pytest.importorskip("mwparserfromhell")
    lead, sections = (
        SENTENCE * 3,
        [f"\n== Part {number} ==\n{SENTENCE * 3}\n* no text\n" for number in range(9)],
    )
    article = lead + "".join(sections)
    for characters in (100, len(lead.strip()), 400, 1000, 10_000):
        text = wikipedia.beginning(article, characters)
        assert cut(text, characters) == cut(plain_text(article), characters)
    assert len(wikipedia.beginning(article, 100)) < len(plain_text(article)) / 9


def test_analogies_have_one_right_answer_and_distractors_of_their_category() -> None:
    rows = word_analogies(ANALOGIES.encode(), per_category=100, seed=0)
    assert len(rows) == 8 * 7 + 6  # all of them; the question that two categories share counts once
    for row in rows:
        assert len(set(row["choices"])) == 4
        answer = row["choices"][row["answer"]]
        asked = row["question"].split()[-3]
        assert answer == asked.replace("City", "Land").replace("man", "woman")
        assert all(
            choice.startswith("Land" if row["category"] == "capitals" else "woman")
            for choice in row["choices"]
        )
        assert not set(row["choices"]) & set(row["question"].split())


def test_answers_are_at_every_place() -> None:
    places = [row["answer"] for row in word_analogies(ANALOGIES.encode(), per_category=100, seed=0)]
    assert all(places.count(place) >= 5 for place in range(4))


def test_wikipedia_takes_real_articles_that_are_long_enough() -> None:
    pytest.importorskip("mwparserfromhell")
    data = bz2.compress(WIKIPEDIA.encode())
    rows = wikipedia.wikipedia_articles(data, documents=3, characters=200)
    assert [row["title"] for row in rows] == ["Fox 0", "Fox 1", "Fox 2"]
    assert all(row["text"].startswith("Fox ") and row["text"].endswith("river.") for row in rows)
    assert all(100 < len(row["text"]) <= 200 for row in rows)
    with pytest.raises(
        FlowError, match="has 30 articles of 200 characters or more; 31 are asked for"
    ):
        wikipedia.wikipedia_articles(data, documents=31, characters=200)


def test_plain_text_has_no_markup() -> None:
    pytest.importorskip("mwparserfromhell")
    wikitext = (
        "{{Infobox|name=Fox}}\n[[File:Fox.jpg|thumb|A fox in the snow.]]\n"
        "A '''fox''' ({{lang|la|vulpes}}; plural [[fox|foxes]]) is an [[animal]].<ref>A "
        "book.</ref>\n"
        "== History ==\n* A list item.\n{| class=x\n| A cell.\n|}\nIt was known "
        "early.\n[[Category:Foxes.]]\n"
    )
    assert plain_text(wikitext) == "A fox (plural foxes) is an animal.\n\nIt was known early."


@pytest.mark.parametrize(
    ("text", "characters", "expected"),
    [
        ("One two. Three four five.", 20, "One two. Three four"),
        ("One two three. Four five.", 20, "One two three."),
        ("One two.", 100, "One two."),
    ],
)
def test_cut_ends_with_a_sentence_or_a_word(text: str, characters: int, expected: str) -> None:
    assert cut(text, characters) == expected


@pytest.mark.usefixtures("files")
def test_calibration_is_one_conversation_per_article(tmp_path: Path) -> None:
    flow = open_flow(tmp_path)
    rows = read_rows(write_calibration(flow))
    assert len(rows) == flow.config.calibration.samples
    articles = NEWS.splitlines()
    restored = set()
    for row in rows:
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        beginning = user["content"].removeprefix("Continue this news article:\n\n")
        assert len(assistant["content"]) > len(beginning)
        restored.add(f"{beginning} {assistant['content']}")
    assert len(restored) == len(rows)
    assert restored <= {article.strip() for article in articles}
    assert [row["messages"][0]["content"] for row in rows] != sorted(
        row["messages"][0]["content"] for row in rows
    )


@pytest.mark.usefixtures("files")
def test_too_few_calibration_articles(tmp_path: Path) -> None:
    with pytest.raises(
        FlowError, match=r"calibration\.samples is 81, but the packaged text has 80 articles"
    ):
        write_calibration(open_flow(tmp_path, calibration__samples=81))


@pytest.mark.usefixtures("files")
def test_evaluation_text_cannot_be_calibration_text(tmp_path: Path) -> None:
    flow = open_flow(tmp_path)
    shared = flow.config.calibration.packaged.model_dump()
    flow = open_flow(tmp_path, accuracy__packaged__wikipedia=shared)
    with pytest.raises(FlowError, match="both calibration and evaluation text"):
        write_calibration(flow)
