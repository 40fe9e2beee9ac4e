import math

import pytest

from serving_from_scratch.core.errors import InvalidRequest, QueueFull
from serving_from_scratch.core.limits import Limits
from serving_from_scratch.core.request import Request, SamplingParameters

LIMITS = Limits(vocabulary=100, max_length=50, max_waiting=2)


@pytest.mark.parametrize(
    ("field", "sampling", "told"),
    [
        ("max_tokens", {"max_tokens": -1}, "-1; the limit is at least 0"),
        ("max_tokens", {"max_tokens": 48}, "make 51 tokens; the limit is 50"),
        ("temperature", {"temperature": -0.1}, "-0.1; the limit is at least 0"),
        ("temperature", {"temperature": math.nan}, "nan"),
        ("temperature", {"temperature": math.inf}, "inf"),
        ("top_p", {"top_p": 0.0}, "above 0 and at most 1"),
        ("top_p", {"top_p": 1.1}, "above 0 and at most 1"),
        ("top_k", {"top_k": -1}, "at least 0"),
        ("seed", {"seed": 2**63}, "2\\^63"),
        ("stop", {"stop": ("a",) * 5}, "4 texts"),
        ("stop", {"stop": ("",)}, "at least one character"),
        ("logprobs", {"logprobs": 21}, "0 to 20"),
        ("prompt_logprobs", {"prompt_logprobs": -1}, "0 to 20"),
    ],
)
def test_a_refusal_names_field_value_and_limit(field, sampling, told):
    with pytest.raises(InvalidRequest, match=told) as refused:
        LIMITS.check(Request("a", (1, 2, 3), SamplingParameters(**sampling)))
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("prompt", "told"),
    [((), "no tokens"), ((1, 100), "100; ids"), ((-1,), "-1")],
)
def test_a_prompt_has_tokens_of_the_vocabulary(prompt, told):
    with pytest.raises(InvalidRequest, match=told):
        LIMITS.check(Request("a", prompt))


def test_everything_at_its_limit_is_taken():
    sampling = SamplingParameters(47, 2.0, 50, 1.0, 2**63 - 1, ("a",) * 4, True, 20, 0)
    LIMITS.check(Request("a", (0, 99, 1), sampling))
    LIMITS.check_queue(1)
    with pytest.raises(QueueFull, match="2 requests wait; the limit is 2") as refused:
        LIMITS.check_queue(2)
    assert refused.value.retry_after == 1.0
