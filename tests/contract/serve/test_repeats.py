"""The real lm-eval asks some tasks several times: with temperature,
and another seed for each answer.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field

import pytest
from test_resume import SETTINGS, Endpoint, caches, folder, serving  # noqa: F401 (a fixture)

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.measure.accuracy import measure_accuracy, measure_accuracy_again

REPEATS = {"tasks": ["free"], "count": 3, "temperature": 0.6}


@dataclass
class Sampling(Endpoint):
    """Writes another text for every seed, and remembers how it was asked."""

    written: list = field(default_factory=list)

    def choice(self, index, prompt, body):
        if body.get("echo") or "logprobs" in body:
            assert body["temperature"] == 0
            return super().choice(index, prompt, body)
        with self.lock:
            self.written.append((prompt, body["seed"], body["temperature"]))
        return {
            "index": index,
            "text": hashlib.sha256(f"{prompt} {body['seed']}".encode()).hexdigest()[:8],
        }


def opened(folder, *tasks, looks=1, **repeats):  # noqa: F811
    chosen = {
        "accuracy.tasks": list(tasks),
        "accuracy.repeats": REPEATS | repeats,
        "verdict.looks": looks,
    }
    return Flow.open("ci", SETTINGS | chosen, folder)


def test_every_item_has_an_answer_of_each_seed_and_other_tasks_are_asked_once(folder):  # noqa: F811
    flow = opened(folder, "word_analogies", "free")
    with Sampling() as endpoint:
        result = measure_accuracy(flow, serving(flow, endpoint.url))
    task = result.tasks["free"]
    seen = Counter((item.groups["question"], item.id.rpartition("#")[2]) for item in task.items)
    assert (task.n, len(seen), set(seen.values())) == (24, 24, {1})
    assert {seed for _, seed in seen} == {"1", "2", "3"} and len(
        {item.answer for item in task.items}
    ) == 24
    assert {(seed, temperature) for _, seed, temperature in endpoint.written} == {
        (s, 0.6) for s in (1, 2, 3)
    }
    assert len(endpoint.written) == 24 and result.requests["written"] == 24
    assert result.tasks["word_analogies"].n == 30
    assert "question" not in result.tasks["word_analogies"].items[0].groups
    raw = sorted(path.name for path in flow.workspace.raw("base").iterdir())
    assert raw == [
        "lm-eval-seed-1.json",
        "lm-eval-seed-2.json",
        "lm-eval-seed-3.json",
        "lm-eval.json",
    ]
    assert caches(flow) == []


def test_the_noise_floor_asks_the_first_seed_again(folder):  # noqa: F811
    flow = opened(folder, "free")
    with Sampling() as endpoint:
        first = measure_accuracy(flow, serving(flow, endpoint.url))
        again = measure_accuracy_again(flow, serving(flow, endpoint.url))
    ours = {item.id: item for item in first.tasks["free"].items}
    assert again.tasks["free"].n == 8
    assert all(
        ours[item.id] == item and item.id.endswith("#1") for item in again.tasks["free"].items
    )


def test_an_interrupted_measurement_goes_on_and_mixes_no_seeds(folder):  # noqa: F811
    flow = opened(folder, "free")
    with Sampling() as endpoint:
        whole = measure_accuracy(flow, serving(flow, endpoint.url)).tasks
    flow.workspace.accuracy("base")
    (flow.workspace.results("base") / "accuracy.json").unlink()
    with Sampling(refuse_after=13) as endpoint:
        with pytest.raises(FlowError, match="vLLM did not answer lm-eval"):
            measure_accuracy(flow, serving(flow, endpoint.url))
        answered, first, endpoint.refuse_after = len(endpoint.answered), len(endpoint.asked), None
        assert answered >= 8  # the first seed is done
        assert measure_accuracy(flow, serving(flow, endpoint.url)).tasks == whole
        assert len(endpoint.asked) - first <= 24 - 8


def test_only_what_is_asked_differently_is_asked_again(folder):  # noqa: F811
    with Sampling() as endpoint:
        flow = opened(folder, "word_analogies", "free")
        first = measure_accuracy(flow, serving(flow, endpoint.url))
        before = len(endpoint.written)
        other = opened(folder, "word_analogies", "free", count=2)
        asked = len(endpoint.asked)
        second = measure_accuracy(other, serving(other, endpoint.url))
        assert len(endpoint.written) - before == len(endpoint.asked) - asked == 16
    assert second.tasks["word_analogies"] == first.tasks["word_analogies"]


def test_a_task_with_choices_cannot_be_repeated(folder):  # noqa: F811
    flow = opened(folder, "word_analogies", tasks=["word_analogies"])
    with (
        Sampling() as endpoint,
        pytest.raises(FlowError, match="repeats names word_analogies, whose answers the"),
    ):
        measure_accuracy(flow, serving(flow, endpoint.url))
