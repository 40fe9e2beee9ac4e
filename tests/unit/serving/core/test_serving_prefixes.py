from support.serving import serve
from support.spelling import Speller, spelled

from serving_from_scratch.core.batching import Continuous
from serving_from_scratch.core.blocks import Pages, digests
from serving_from_scratch.core.memory import Slots
from serving_from_scratch.core.request import Request, SamplingParameters
from serving_from_scratch.core.scheduler import Scheduler


def served(memory, prompts, places=2):
    scheduler, executor = Scheduler(Continuous(), memory, places), Speller()
    computed = []
    for place, prompt in enumerate(prompts):
        request = Request(str(place), tuple(prompt), SamplingParameters(max_tokens=3))
        trace = serve(scheduler, executor, [request])
        assert trace.answers[str(place)] == spelled(prompt, 3)
        computed.append(trace.steps[0].tokens)
    return computed


def test_a_shared_beginning_is_computed_once():
    shared = list(range(100, 140))
    prompts = [[*shared, 1, 2], [*shared, 3, 4, 5], [*shared, 1, 2]]
    assert served(Slots(2, 64, prefixes=True), prompts) == [42, 3, 2]
    assert served(Pages(40, 4, prefixes=True), prompts) == [42, 3, 2]
    assert served(Slots(2, 64), prompts) == [42, 43, 42]


def test_the_last_token_of_a_known_prompt_is_computed_again():
    prompt = list(range(100, 140))
    assert served(Slots(2, 64, prefixes=True), [prompt, prompt]) == [40, 1]
    assert served(Pages(40, 4, prefixes=True), [prompt, prompt]) == [40, 4]


def test_beginnings_of_equal_length_are_never_mixed_up():
    first, second = [7] * 40, [7] * 20 + [8] * 20
    assert served(Slots(2, 64, prefixes=True), [first, second, first]) == [40, 20, 20]
    assert served(Pages(40, 4, prefixes=True), [first, second, first]) == [40, 20, 4]


def test_a_running_sequence_lends_its_beginning():
    memory = Slots(2, 64, prefixes=True)
    scheduler, executor = Scheduler(Continuous(), memory, 2), Speller()
    shared = tuple(range(30))
    scheduler.submit(Request("a", (*shared, 50), SamplingParameters(max_tokens=9)))
    scheduler.update(step := scheduler.schedule(), executor.step(step))
    scheduler.submit(Request("b", (*shared, 60), SamplingParameters(max_tokens=9)))
    step = scheduler.schedule()
    assert [(c.tokens, c.source != c.target) for c in step.copies] == [(30, True)]
    assert [len(chunk.tokens) for chunk in step.chunks] == [1, 1]


def test_digests_name_everything_before_a_block():
    one, two = digests([1, 2, 3, 4, 9], 2), digests([5, 2, 3, 4], 2)
    assert len(one) == len(two) == 2 and not set(one) & set(two)
