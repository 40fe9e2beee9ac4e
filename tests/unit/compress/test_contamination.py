"""Evaluation items inside the calibration text."""

import json

import factories
import pytest

from model_serve_flow.compress.contamination import evaluation_texts, find_overlap
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.system.files import write_json

NEWS = (
    "Firefighters say the fire west of Goulburn is within containment lines, but the wind may "
    "carry embers over them. The Premier thanked the volunteers, and said that Stockholm is to "
    "Sweden as Rome is to Italy."
)


@pytest.mark.parametrize(
    "text",
    [
        "the fire west of Goulburn is within containment lines, but the wind may",
        "THE FIRE, west of Goulburn, is within: containment lines (but the wind may)",
        (
            "An unrelated beginning. The fire west of Goulburn is within containment lines, but "
            "the wind may. And an end."
        ),
        "Stockholm is to Sweden as Rome is to",  # eight words, looked for as a whole
    ],
)
def test_a_shared_run_of_words_is_found_whatever_its_case_and_punctuation(text):
    overlap = find_overlap(
        ["Other text.", NEWS], {"q/1": text, "q/2": "a b c d e f g h i j k l m n o p"}
    )
    assert overlap.overlapping == ("q/1",)
    assert (overlap.items, overlap.ngram) == (2, 13)


@pytest.mark.parametrize(
    "text",
    [
        # 12 words, and one more that differs:
        "the fire west of Goulburn is within containment lines, but the wind",
        "the fire west of Goulburn is within containment lines, but the wind could carry it",
        "Stockholm is to Sweden as Paris is to",
    ],
)
def test_what_is_shorter_or_differs_in_a_word_is_not(text):
    shared = text == "the fire west of Goulburn is within containment lines, but the wind"
    # as a whole item it is found
    assert bool(find_overlap([NEWS], {"q/1": text}).overlapping) == shared


def test_items_of_a_few_words_are_not_looked_at():
    overlap = find_overlap([NEWS], {"q/1": "The Premier thanked the volunteers, and said"})
    assert (overlap.items, overlap.overlapping) == (0, ())


def test_a_run_does_not_reach_from_one_text_into_the_next():
    words = "one two three four five six seven eight nine ten eleven twelve thirteen"
    assert find_overlap([words], {"q/1": words}).overlapping == ("q/1",)
    assert find_overlap([words[:30], words[30:]], {"q/1": words}).overlapping == ()


def test_items_are_packaged_rows_and_the_prompts_of_the_base(tmp_path):
    flow = Flow.open("ci", {"accuracy.tasks": ["word_analogies", "wikipedia"]}, tmp_path)
    flow.workspace.data.mkdir(parents=True)
    for task, row in {
        "word_analogies": {"question": "a is to b"},
        "wikipedia": {"text": "Red is a colour."},
    }.items():
        (flow.workspace.data / f"{task}.jsonl").write_text(json.dumps({"id": "1", **row}) + "\n")
    assert evaluation_texts(flow) == {
        "word_analogies/1": "a is to b",
        "wikipedia/1": "Red is a colour.",
    }

    mixed = Flow.open("ci", {"accuracy.tasks": ["word_analogies", "mmlu_dev"]}, tmp_path)
    assert evaluation_texts(mixed) is None, (
        "mmlu_dev has no rows here, and the base was not measured"
    )
    measured = factories.accuracy()
    write_json(flow.workspace.results("base") / "accuracy.json", measured)
    texts = evaluation_texts(mixed)
    prompts = {f"mmlu_dev/{item.id}": item.prompt for item in measured.tasks["mmlu_dev"].items}
    assert texts == {"word_analogies/1": "a is to b", **prompts} and None not in texts.values()

    other = Flow.open("ci", {"accuracy.tasks": ["arc_easy"]}, tmp_path)
    with pytest.raises(FlowError, match="not measured on arc_easy"):
        evaluation_texts(other)
