import pytest

from serving_from_scratch.core.errors import InvalidRequest, QueueFull
from serving_from_scratch.core.limits import Limits
from serving_from_scratch.core.request import Request, SamplingParameters

LIMITS = Limits(vocabulary=100, max_length=50, max_waiting=2)


def test_prompt_and_answer_too_long_together_are_refused_with_the_figures():
    told = r"prompt \(3 tokens\) and max_tokens \(48\) make 51 tokens; the limit is 50.*Shorten"
    with pytest.raises(InvalidRequest, match=told) as refused:
        LIMITS.check(Request("a", (1, 2, 3), SamplingParameters(max_tokens=48)))
    assert refused.value.field == "max_tokens"


@pytest.mark.parametrize(
    ("prompt", "told"),
    [((), "no tokens"), ((1, 100), "100; ids"), ((-1,), "-1")],
)
def test_a_prompt_has_tokens_of_the_vocabulary(prompt, told):
    with pytest.raises(InvalidRequest, match=told):
        LIMITS.check(Request("a", prompt))


def test_everything_at_its_limit_is_taken():
    LIMITS.check(Request("a", (0, 99, 1), SamplingParameters(max_tokens=47)))
    LIMITS.check_queue(1)
    with pytest.raises(QueueFull, match="2 requests wait; the limit is 2") as refused:
        LIMITS.check_queue(2)
    assert refused.value.retry_after == 1.0
