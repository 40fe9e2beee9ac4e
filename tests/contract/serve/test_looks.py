"""Real lm-eval, a part of the items at a time: no answer is asked for twice,
and the prompts are the base's.
"""

import pytest
from test_repeats import Sampling, opened
from test_resume import SETTINGS, Endpoint, caches, folder, serving  # noqa: F401
from test_subsample import examples  # noqa: F401

from model_serve_flow.compare.looks import compare_answers
from model_serve_flow.flow.flow import Flow
from model_serve_flow.measure.accuracy import measure_accuracy, measure_accuracy_in_looks


@pytest.fixture
def flow(examples):  # noqa: F811
    tasks = {"accuracy.tasks": ["both", "word_analogies", "wikipedia"], "verdict.looks": 3}
    return Flow.open("ci", {**SETTINGS, **tasks}, examples)


def until(looks):
    """Decided after so many looks."""
    seen = []

    def decided(result):
        seen.append({name: task.n for name, task in result.tasks.items()})
        return len(seen) == looks

    return decided, seen


def base_of(flow, server):
    result = measure_accuracy(flow, server)
    (flow.workspace.results("base") / "accuracy.json").unlink()
    return result


def test_all_looks_ask_every_item_once_with_the_prompts_of_the_base(flow):
    with Endpoint() as endpoint:
        server = serving(flow, endpoint.url)
        base = base_of(flow, server)
        everything, endpoint.asked[:] = len(endpoint.asked), []
        decided, seen = until(9)
        result = measure_accuracy_in_looks(flow, server, decided)
        # each look checks its way of asking
        assert everything <= len(endpoint.asked) < 1.2 * everything
        assert measure_accuracy_in_looks(flow, server, decided) == result, "kept"
    assert len(seen) == 2 and len(result.looks) == 3
    assert sum(result.requests.values()) == sum(base.requests.values())
    assert "before an interruption" not in result.requests
    assert result.comparable_hash == base.comparable_hash != result.protocol_hash
    found = compare_answers(base, result, flow.config.verdict, 0)  # refuses other prompts
    assert {pairs.task: len(pairs.rows) for pairs in found.tasks} == {
        name: task.n for name, task in base.tasks.items()
    }
    assert found.looks.items == found.looks.of_items
    assert result.tasks == base.tasks


def test_a_candidate_that_is_decided_is_asked_no_more_and_goes_on_where_it_was(flow):
    with Endpoint() as endpoint:
        server = serving(flow, endpoint.url)
        base = base_of(flow, server)
        everything, endpoint.asked[:] = len(endpoint.asked), []
        early = measure_accuracy_in_looks(flow, server, until(1)[0])
        part, endpoint.asked[:] = len(endpoint.asked), []
        assert len(early.looks) == 1 and part < everything / 2
        assert compare_answers(base, early, flow.config.verdict, 0).looks.made == 1
        later = measure_accuracy_in_looks(flow, server, until(9)[0])
    assert later.looks[0] == early.looks[0] and len(later.looks) == 3
    assert later.tasks == base.tasks


@pytest.mark.parametrize("looks", [1, 3])
def test_a_task_that_is_added_later_is_asked_alone_up_to_the_look_made(flow, looks):
    every = flow.config.accuracy.tasks
    fewer = flow.config.accuracy.model_copy(update={"tasks": every[:2]})
    part = Flow(flow.config.model_copy(update={"accuracy": fewer}), flow.workspace)
    with Endpoint() as endpoint:
        server = serving(flow, endpoint.url)
        base = base_of(flow, server)
        before = measure_accuracy_in_looks(part, server, until(looks)[0])
        endpoint.asked.clear()
        after = measure_accuracy_in_looks(flow, server, until(1)[0])
    checks = 2  # of how to ask
    windows = 2  # of a text, at most
    assert len(endpoint.asked) <= windows * after.tasks[every[2]].n + checks
    assert {task: after.tasks[task] for task in every[:2]} == before.tasks
    assert len(after.looks) == len(before.looks) == looks
    assert set(after.looks[0]) == set(every)
    found = compare_answers(base, after, flow.config.verdict, 0)
    text = found.differences[every[2]]["word_perplexity"]
    assert text.look_shares == (pytest.approx(after.tasks[every[2]].n / base.tasks[every[2]].n),)


def test_a_part_of_the_items_is_not_taken_for_all_of_them(flow):
    once = flow.config.verdict.model_copy(update={"looks": 1})
    whole = Flow(flow.config.model_copy(update={"verdict": once}), flow.workspace)
    with Endpoint() as endpoint:
        server = serving(flow, endpoint.url)
        base = base_of(flow, server)
        measure_accuracy_in_looks(flow, server, until(1)[0])
        assert measure_accuracy_in_looks(whole, server, until(1)[0]).tasks == base.tasks


def test_a_look_asks_its_items_with_every_seed(folder):  # noqa: F811
    flow = opened(folder, "word_analogies", "free", looks=3)
    with Sampling() as endpoint:
        server = serving(flow, endpoint.url)
        base = base_of(flow, server)
        endpoint.written.clear()
        early = measure_accuracy_in_looks(flow, server, until(1)[0])
        asked = {item.groups["question"] for item in early.tasks["free"].items}
        assert (
            early.tasks["free"].n == len(endpoint.written) == 3 * len(asked) < base.tasks["free"].n
        )
        later = measure_accuracy_in_looks(flow, server, until(9)[0])
    assert len(endpoint.written) == len(set(endpoint.written)) == base.tasks["free"].n == 24
    assert later.looks[0] == early.looks[0] and len(later.looks) == 3
    assert sorted(later.tasks["free"].items, key=by_id) == sorted(
        base.tasks["free"].items, key=by_id
    )
    assert (
        compare_answers(base, early, flow.config.verdict, 0).looks.items
        == early.tasks["free"].n + 10
    )
    assert caches(flow) == []


def by_id(item):
    return item.id
