from support.spelling import Speller, spelled

from serving_from_scratch.core.batching import Continuous, Dynamic
from serving_from_scratch.core.memory import Slots
from serving_from_scratch.core.request import Request, SamplingParameters
from serving_from_scratch.core.scheduler import Scheduler
from serving_from_scratch.engine.replay import replay


def requests(*arrivals):
    sampling = SamplingParameters(max_tokens=5)
    return [Request(str(i), (i, 7), sampling, arrived) for i, arrived in enumerate(arrivals)]


def test_requests_are_served_when_they_come_and_every_token_has_its_time():
    asked = requests(0.0, 0.05, 0.02)
    timeline = replay(Scheduler(Continuous(), Slots(2, 16), 2), Speller(), asked)
    assert timeline.answers == {request.id: spelled(request.prompt, 5) for request in asked}
    for request in asked:
        times = timeline.tokens[request.id]
        assert len(times) == 5 and times == sorted(times) and times[0] >= request.arrived
    assert all(wait >= 0 for wait in timeline.ttft()) and len(timeline.gaps()) == 3 * 4
    tokens = sum(moment.step.tokens for moment in timeline.moments)
    assert tokens == 3 * (2 + 4) and timeline.row_length() == tokens / len(timeline.moments)
    ends = [moment.ended for moment in timeline.moments]
    assert ends == sorted(ends) and timeline.output_tokens_per_second == 15 / ends[-1]


def test_a_lone_request_waits_for_a_batch_no_longer_than_it_must():
    scheduler = Scheduler(Dynamic(size=2, max_wait=0.1), Slots(2, 16), 2)
    (wait,) = replay(scheduler, Speller(), requests(0.0)).ttft()
    assert 0.1 <= wait < 1
