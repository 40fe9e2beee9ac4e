import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.serving import serve
from support.spelling import Speller, spelled

from serving_from_scratch.core.batching import (
    Budget,
    ChunkedPrefill,
    Continuous,
    Dynamic,
    OneByOne,
    Static,
)
from serving_from_scratch.core.blocks import Pages
from serving_from_scratch.core.errors import InvalidRequest, ServingError
from serving_from_scratch.core.memory import NoMemory, Slots
from serving_from_scratch.core.request import (
    FinishReason,
    Request,
    SamplingParameters,
    Sequence,
    Status,
)
from serving_from_scratch.core.scheduler import Scheduler

PLACES = 4
STRATEGIES = (OneByOne(), Static(3), Dynamic(3, max_wait=5), Continuous(), ChunkedPrefill(6))
MEMORIES = {
    "nothing": lambda: NoMemory(PLACES, 64),
    "slots": lambda: Slots(PLACES, 64),
    "slots, prefixes": lambda: Slots(PLACES, 64, prefixes=True, shortest=2),
    "pages": lambda: Pages(64, 4),
    "pages, prefixes": lambda: Pages(64, 4, prefixes=True),
    "too few pages": lambda: Pages(18, 4),
    "too few pages, prefixes": lambda: Pages(18, 4, prefixes=True),
}


def request(id, prompt, max_tokens=8, arrived=0.0, deadline=math.inf, **sampling):
    sampling = SamplingParameters(max_tokens=max_tokens, **sampling)
    return Request(str(id), tuple(prompt), sampling, arrived, deadline)


def some_requests(count, seed=0):
    """Prompts of 1 to 40 tokens; half of them begin alike."""
    draw = random.Random(seed)
    shared = [draw.randrange(50) for _ in range(20)]
    for id in range(count):
        own = [draw.randrange(50) for _ in range(draw.randint(1, 20))]
        yield request(id, (shared if id % 2 else []) + own, draw.randint(1, 20))


def scheduler_of(strategy, memory, **other):
    return Scheduler(strategy, memory, PLACES, **other)


def combinations():
    for strategy in STRATEGIES:
        for name in MEMORIES:
            if not (strategy.chunks and name == "nothing"):
                yield pytest.param(strategy, name, id=f"{type(strategy).__name__}-{name}")


@pytest.mark.parametrize(("strategy", "memory"), list(combinations()))
@pytest.mark.parametrize("seed", range(3))
def test_every_answer_is_the_one_of_its_prompt_alone(strategy, memory, seed):
    requests = list(some_requests(24, seed))
    memory = MEMORIES[memory]()
    free = memory.free_tokens
    trace = serve(scheduler_of(strategy, memory), Speller(), requests, seed=seed)
    assert trace.answers == {r.id: spelled(r.prompt, r.sampling.max_tokens) for r in requests}
    assert memory.free_tokens == free
    assert {s.finish_reason for s in trace.finished.values()} == {FinishReason.LENGTH}


def test_a_full_cache_preempts_the_youngest_and_all_still_end():
    requests = [request(id, [id] * 10, max_tokens=30) for id in range(4)]
    trace = serve(scheduler_of(Continuous(), Pages(18, 4)), Speller(), requests)
    assert trace.answers == {r.id: spelled(r.prompt, 30) for r in requests}
    preemptions = {id: sequence.preemptions for id, sequence in trace.finished.items()}
    assert preemptions[requests[-1].id] == 0 and sum(preemptions.values()) > 0


def test_who_lost_a_place_is_overtaken_by_nobody():
    scheduler, executor = scheduler_of(Continuous(), Pages(8, 4)), Speller()
    old, young = (scheduler.submit(request(id, [id] * 12, max_tokens=20)) for id in range(2))
    while old.pending + old.computed <= 16:  # four pages each: all there are
        scheduler.update(step := scheduler.schedule(), executor.step(step))
    short = scheduler.submit(request("short", [5], max_tokens=1))
    step = scheduler.schedule()
    assert [chunk.request for chunk in step.chunks] == [old.request.id]
    assert scheduler.waiting == [young, short] and young.preemptions == 1


class YoungestFirst(Continuous):
    """Plans those first who are the first to lose their place."""

    def plan(self, waiting, running, budget):
        return super().plan(waiting, running[::-1], budget)


def test_a_step_never_computes_who_lost_a_place_while_it_was_planned():
    requests = [request(id, [id] * 10, max_tokens=30) for id in range(4)]
    trace = serve(scheduler_of(YoungestFirst(), Pages(18, 4)), Speller(), requests)
    assert trace.answers == {r.id: spelled(r.prompt, 30) for r in requests}
    assert sum(sequence.preemptions for sequence in trace.finished.values()) > 0
    assert all(chunk.slot is not None for step in trace.steps for chunk in step.chunks)


def test_a_prompt_longer_than_a_step_is_computed_beside_few_others():
    scheduler = scheduler_of(Continuous(), Slots(PLACES, 64), step_tokens=10)
    requests = [request(id, range(length), 3) for id, length in enumerate((30, 40, 4, 5, 30))]
    trace = serve(scheduler, Speller(), requests[::-1])
    assert len(trace.answers) == 5
    assert [len(step.chunks) for step in trace.steps[:2]] == [1, 2]


@pytest.mark.parametrize("memory", ["slots", "pages"])
@pytest.mark.parametrize("strategy", STRATEGIES[:4], ids=lambda s: type(s).__name__)
def test_decoding_feeds_one_token_a_sequence_and_step(strategy, memory):
    trace = serve(scheduler_of(strategy, MEMORIES[memory]()), Speller(), some_requests(20), seed=1)
    prompts = {r.id: r.prompt for r in some_requests(20)}
    for chunk in (chunk for step in trace.steps for chunk in step.chunks):
        first = chunk.tokens == prompts[chunk.request] and chunk.start == 0
        assert first or len(chunk.tokens) == 1


def test_without_a_cache_a_step_computes_whole_texts():
    requests = [request(id, range(5 + id), max_tokens=4) for id in range(3)]
    trace = serve(scheduler_of(Continuous(), NoMemory(PLACES, 64)), Speller(), requests)
    assert [step.tokens for step in trace.steps] == [5 + 6 + 7 + 3 * n for n in range(4)]


@pytest.mark.parametrize("budget", [1, 2, 5, 16])
@pytest.mark.parametrize("memory", ["slots", "slots, prefixes", "pages", "too few pages"])
def test_a_chunked_step_keeps_its_budget_and_delays_no_decoding_sequence(memory, budget):
    decoding = set()

    def watch(scheduler):
        decoding.clear()
        decoding.update(s.request.id for s in scheduler.running if s.decoding and s.pending == 1)

    scheduler = scheduler_of(ChunkedPrefill(budget), MEMORIES[memory]())
    for each in some_requests(20):
        scheduler.submit(each)
    executor = Speller()
    while step := scheduler.schedule():
        served = {chunk.request for chunk in step.chunks}
        running = {sequence.request.id for sequence in scheduler.running}
        assert step.tokens <= budget
        assert decoding & running <= served  # unless it lost its place in this very step
        scheduler.update(step, executor.step(step))
        watch(scheduler)
    assert not scheduler.waiting and not scheduler.running


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_no_prompt_starves_while_others_keep_coming(strategy):
    scheduler = scheduler_of(strategy, Slots(PLACES, 64))
    executor = Speller()
    long = scheduler.submit(request("long", range(40), max_tokens=2))
    for turn in range(60):
        scheduler.submit(request(turn, [1, 2], max_tokens=6, arrived=float(turn)))
        if step := scheduler.schedule(now=float(turn)):
            scheduler.update(step, executor.step(step))
        if long.decoding:
            break
    assert turn <= 20


def test_a_late_request_gets_its_first_token_before_an_early_one_ends():
    scheduler, executor = scheduler_of(Continuous(), Slots(PLACES, 64)), Speller()
    early = scheduler.submit(request("early", [1], max_tokens=20))
    scheduler.update(step := scheduler.schedule(), executor.step(step))
    late = scheduler.submit(request("late", [2], max_tokens=20))
    scheduler.update(step := scheduler.schedule(), executor.step(step))
    assert len(late.generated) == 1 and not early.finished


def test_dynamic_starts_a_full_batch_at_once_and_a_lone_request_after_max_wait():
    strategy = Dynamic(size=2, max_wait=0.5)
    one, two = (Sequence(request(id, [1], arrived=10.0)) for id in range(2))
    assert strategy.plan((one,), (), Budget(8, 100, now=10.4)) == {}
    assert strategy.plan((one,), (), Budget(8, 100, now=10.5)) == {one: 1}
    assert strategy.plan((one, two), (), Budget(8, 100, now=10.0)) == {one: 1, two: 1}


def test_a_static_batch_lets_nobody_join():
    scheduler, executor = scheduler_of(Static(2), Slots(PLACES, 64)), Speller()
    for id, tokens in enumerate((1, 9, 9)):
        scheduler.submit(request(id, [id], max_tokens=tokens))
    sizes = []
    while step := scheduler.schedule():
        sizes.append(len(step.chunks))
        scheduler.update(step, executor.step(step))
    assert sizes == [2] + [1] * 8 + [1] * 9


def test_end_of_sequence_stops_unless_it_is_ignored():
    answer = spelled([5], 9)
    eos = answer[3]
    for ignore, expected in ((False, answer[:4]), (True, answer)):
        scheduler = scheduler_of(Continuous(), Slots(PLACES, 64), eos=(eos,))
        requests = [request("a", [5], max_tokens=9, ignore_eos=ignore)]
        (ended,) = serve(scheduler, Speller(), requests).finished.values()
        assert ended.generated == expected
        assert ended.finish_reason == (FinishReason.LENGTH if ignore else FinishReason.STOP)


def test_a_prompt_may_ask_for_its_log_probabilities_and_no_answer():
    for memory in ("nothing", "slots, prefixes", "pages, prefixes"):
        scheduler = scheduler_of(Continuous(), MEMORIES[memory]())
        requests = [request(id, range(30), 0, prompt_logprobs=0) for id in range(2)]
        for ended in serve(scheduler, Speller(), requests).finished.values():
            assert [entry.token for entry in ended.prompt_logprobs] == list(range(1, 30))
            assert ended.generated == [] and ended.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("budget", [3, 7, 64])
def test_log_probabilities_of_a_prompt_come_once_a_token_also_in_chunks(budget):
    scheduler = scheduler_of(ChunkedPrefill(budget), Pages(18, 4))
    requests = [request(id, range(20), 12, prompt_logprobs=0) for id in range(4)]
    for ended in serve(scheduler, Speller(), requests).finished.values():
        assert [entry.token for entry in ended.prompt_logprobs] == list(range(1, 20))


def test_an_embedding_is_the_state_after_the_last_token_of_the_prompt():
    scheduler = scheduler_of(ChunkedPrefill(4), Slots(PLACES, 64))
    trace = serve(scheduler, Speller(), [Request("a", tuple(range(11)), embed=True)])
    assert trace.finished["a"].embedding == (float(spelled(range(11), 1)[0]),)
    assert trace.finished["a"].generated == []


def test_a_request_that_leaves_frees_its_place_also_during_its_step():
    memory = Pages(64, 4)
    scheduler, executor = scheduler_of(ChunkedPrefill(6), memory), Speller()
    scheduler.submit(request("leaver", range(30)))
    step = scheduler.schedule()
    assert scheduler.finish("leaver", FinishReason.ABORT).status is Status.FINISHED
    assert scheduler.update(step, executor.step(step)) == []
    assert memory.free_tokens == 256 and scheduler.finish("leaver", FinishReason.ABORT) is None


def test_a_passed_deadline_ends_a_request_wherever_it_is():
    scheduler = Scheduler(Continuous(), Slots(1, 64), places=1)
    running = scheduler.submit(request("running", [1], deadline=5.0))
    waiting = scheduler.submit(request("waiting", [1], deadline=5.0))
    patient = scheduler.submit(request("patient", [1]))
    scheduler.schedule(now=1.0)
    assert scheduler.expire(4.9) == [] and scheduler.expire(5.0) == [running, waiting]
    assert waiting.computed == 0 and scheduler.waiting == [patient] and not scheduler.running


@pytest.mark.parametrize("memory", MEMORIES)
def test_answers_go_on_after_the_cache_was_lost(memory):
    requests = list(some_requests(6))
    scheduler, executor = scheduler_of(Continuous(), MEMORIES[memory]()), Speller()
    sequences = [scheduler.submit(each) for each in requests]
    turns = 0
    while step := scheduler.schedule():
        if (turns := turns + 1) == 6:  # this step's result never comes
            executor.cells.clear()
            scheduler.restart()
            continue
        scheduler.update(step, executor.step(step))
    expected = [spelled(r.prompt, r.sampling.max_tokens) for r in requests]
    assert [sequence.generated for sequence in sequences] == expected


def test_what_the_cache_cannot_hold_is_refused_with_the_figures():
    scheduler = scheduler_of(Continuous(), Slots(PLACES, 64))
    with pytest.raises(InvalidRequest, match=r"65 tokens; the limit is 64.*Shorten"):
        scheduler.submit(request("a", range(60), max_tokens=5))
    with pytest.raises(ServingError, match="ChunkedPrefill splits prompts; NoMemory keeps nothing"):
        scheduler_of(ChunkedPrefill(4), NoMemory(PLACES, 64))


class Oracle:
    """Guesses `right` tokens rightly and one wrongly; never pauses."""

    cost = -1.0

    def __init__(self, right):
        self.right = right

    def propose(self, tokens):
        return [*spelled(tokens, self.right), 1000]


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("right", [0, 1, 5])
def test_guesses_change_no_answer_and_right_ones_save_steps(memory, right):
    requests = [request(id, range(id, id + 9), max_tokens=13) for id in range(6)]
    plain = serve(scheduler_of(Continuous(), MEMORIES[memory]()), Speller(), requests)
    scheduler = scheduler_of(Continuous(), MEMORIES[memory](), proposer=Oracle(right))
    guessed = serve(scheduler, Speller(), requests)
    assert guessed.answers == plain.answers == {r.id: spelled(r.prompt, 13) for r in requests}
    assert right == 0 or len(guessed.steps) < len(plain.steps)
    assert all(len(chunk.tokens) <= 21 for step in guessed.steps for chunk in step.chunks)


def test_an_end_of_sequence_among_right_guesses_ends_the_answer_there():
    answer = spelled([5], 9)
    scheduler = scheduler_of(Continuous(), Slots(PLACES, 64), eos=(answer[4],), proposer=Oracle(6))
    (ended,) = serve(scheduler, Speller(), [request("a", [5], max_tokens=9)]).finished.values()
    assert ended.generated == answer[:5] and ended.finish_reason is FinishReason.STOP


@pytest.mark.parametrize("memory", ["slots", "pages", "too few pages"])
def test_guesses_keep_the_budget_of_a_chunked_step(memory):
    requests = [request(id, range(id, id + 9), max_tokens=13) for id in range(6)]
    scheduler = scheduler_of(ChunkedPrefill(6), MEMORIES[memory](), proposer=Oracle(3))
    trace = serve(scheduler, Speller(), requests)
    assert trace.answers == {r.id: spelled(r.prompt, 13) for r in requests}
    assert max(step.tokens for step in trace.steps) == 6
    assert any(chunk.guesses for step in trace.steps for chunk in step.chunks)


def test_an_answer_that_ends_among_guesses_has_one_log_probability_a_token():
    answer = spelled([5], 9)
    scheduler = scheduler_of(Continuous(), Slots(PLACES, 64), eos=(answer[4],), proposer=Oracle(6))
    asked = [request("a", [5], max_tokens=9, logprobs=0)]
    (ended,) = serve(scheduler, Speller(), asked).finished.values()
    assert [entry.token for entry in ended.logprobs] == ended.generated == answer[:5]


def test_guesses_are_counted():
    scheduler = scheduler_of(Continuous(), Slots(PLACES, 64), proposer=Oracle(2))
    (ended,) = serve(scheduler, Speller(), [request("a", [5], max_tokens=13)]).finished.values()
    # After the first token: four steps of two right guesses and a wrong one.
    assert (ended.guessing.guessed, ended.guessing.right) == (11, 8)


class Wrong:
    """Guesses wrongly; a guess costs a tenth of a step."""

    cost = 0.1

    def propose(self, tokens):
        return [1000]


def test_guessing_pauses_while_it_does_not_pay_and_is_tried_again():
    scheduler = scheduler_of(Continuous(), Slots(1, 300), proposer=Wrong())
    trace = serve(scheduler, Speller(), [request("a", [5], max_tokens=200)])
    guessed = "".join(str(step.chunks[0].guesses) for step in trace.steps)
    assert "1111" + "0" * 16 + "1111" + "0" * 16 in guessed
    assert guessed.count("1") < 60


class History:
    """A random history of a scheduler: arrivals, steps, leavers, lost caches."""

    def __init__(self, memory, strategy):
        self.memory = memory
        self.executor = Speller()
        self.scheduler = scheduler_of(strategy, memory)
        self.sequences = []

    def do(self, action, number):
        scheduler = self.scheduler
        if action == "arrive":
            text = [number % 3] * (number % 23 + 1)
            asked = request(len(self.sequences), text, max_tokens=number % 9 + 1)
            self.sequences.append(scheduler.submit(asked))
        elif action == "leave" and self.sequences:
            left = self.sequences[number % len(self.sequences)]
            scheduler.finish(left.request.id, FinishReason.ABORT)
        elif action == "lose":
            self.executor.cells.clear()
            scheduler.restart()
        elif step := scheduler.schedule():
            scheduler.update(step, self.executor.step(step))

    def check(self):
        tables = [sequence.blocks for sequence in self.scheduler.running]
        held = [block for table in tables for block in table]
        references = self.memory.manager.references
        assert references == [held.count(block) for block in range(len(references))]
        assert self.memory.manager.free == sum(count == 0 for count in references)
        if not self.memory.prefixes:
            assert len(held) == len(set(held))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["arrive", "step", "step", "leave", "lose"]),
            st.integers(0, 999),
        ),
        max_size=60,
    ),
    st.booleans(),
    st.sampled_from(STRATEGIES[3:]),
)
def test_no_history_loses_a_block_or_mixes_two_texts(actions, prefixes, strategy):
    history = History(Pages(12, 4, prefixes), strategy)
    for action, number in actions:
        history.do(action, number)
        history.check()
    while history.scheduler.running or history.scheduler.waiting:
        history.do("step", 0)
        history.check()
    assert history.memory.manager.free == 12
    for sequence in history.sequences:
        answer = spelled(sequence.request.prompt, len(sequence.generated))
        assert sequence.finished and sequence.generated == answer
