"""Measured latencies against the roofline of decoding, with figures like those of a 2-core CPU."""

import pytest
from factories import load_point, performance

from model_serve_flow.compare.roofline import diagnose
from model_serve_flow.flow.results.measured import Latency, Model

BASE_BYTES, INT8_BYTES, INT4_BYTES = 269_060_552, 163_226_688, 113_175_416


def measured(name, itl_ms, ttft_ms=68.0, output_tokens=32, concurrency=1):
    """Two repeats at the lowest load, 4 % apart, and one at a higher load that must not count."""

    def latency(value):
        return Latency(mean=value, p50=value, p95=value, p99=value)

    points = [
        load_point(
            concurrency,
            40.0,
            repeat=repeat,
            itl_ms=latency(itl),
            ttft_ms=latency(ttft_ms),
            request_latency_s=latency((ttft_ms + (output_tokens - 1) * itl) / 1000),
        )
        for repeat, itl in ((1, 0.98 * itl_ms), (2, 1.02 * itl_ms))
    ]
    higher = [load_point(concurrency * 8, 200.0, repeat=repeat) for repeat in (1, 2)]
    protocol = {"performance": {"concurrency": [concurrency, concurrency * 8], "repeats": 2}}
    return performance(name, protocol=protocol, points=(*points, *higher))


def test_the_figures_are_those_of_the_lowest_load_over_its_repeats():
    found = diagnose(
        measured("base", 20.0), measured("w8a8-int8", 14.0), BASE_BYTES, INT8_BYTES, "Int8Kernel"
    )
    assert found.decode_share == pytest.approx(620 / 688)
    assert found.bound == "decode"
    assert found.expected_speedup == pytest.approx(1.648, abs=1e-3)
    assert found.reached == pytest.approx(20 / 14 / 1.648, abs=1e-3)
    assert (found.base_bytes_per_token, found.candidate_bytes_per_token) == (BASE_BYTES, INT8_BYTES)


def model(size: int, values: int, width: int) -> Model:
    sizes = {"size_bytes": size, "float_values": values, "float_bytes": width * values}
    return Model(name="m", sha256="0", **sizes)


@pytest.mark.parametrize(
    ("stored", "dtype", "held"),
    [
        (model(200, 100, 2), "bfloat16", 200),
        (model(400, 100, 4), "bfloat16", 200),  # stored in FP32, served in 16 bits
        (model(400, 100, 4), "float32", 400),
        (model(200, 100, 2), "float32", 400),
        (model(140, 20, 2), "float32", 180),  # the 100 bytes of quantised weights stay
        (model(180, 20, 4), "float16", 140),
        (model(400, 100, 4), None, 400),
        (Model(name="m", sha256="0", size_bytes=400), "bfloat16", 400),  # an older result
    ],
)
def test_an_engine_holds_floats_in_its_own_dtype_and_quantised_weights_as_stored(
    stored, dtype, held
):
    assert stored.held_bytes(dtype) == held


@pytest.mark.parametrize(
    ("itl_ms", "size", "figures", "finding"),
    [
        (
            12.6,
            INT8_BYTES,
            "1.65x as fast; measured with Kernel: 1.59x (96% of that)",
            "its speed follows the bytes",
        ),
        (16.5, INT8_BYTES, "1.21x (74% of that)", "not limited by reading weights alone"),
        (
            33.9,
            INT4_BYTES,
            "2.38x as fast; measured with Kernel: 0.59x (25% of that)",
            "It is not faster",
        ),
        (9.0, INT8_BYTES, "2.22x (135% of that)", "do not explain that much"),
        (10.0, BASE_BYTES, "decoding measured 2.00x as fast with Kernel", "saves nothing to read"),
    ],
)
def test_each_case_has_its_sentence(itl_ms, size, figures, finding):
    sentence = diagnose(
        measured("base", 20.0), measured("w8a8-int8", itl_ms), BASE_BYTES, size, "Kernel"
    ).sentence
    assert figures in sentence and finding in sentence
    assert sentence.startswith(
        "At one request at a time 90% of the base's time goes into decoding."
    )


def test_a_long_prompt_makes_it_prefill_bound():
    base, candidate = (measured(name, 20.0, ttft_ms=1500.0) for name in ("base", "w8a8-int8"))
    found = diagnose(base, candidate, BASE_BYTES, INT8_BYTES, "Kernel")
    assert found.bound == "prefill" and found.decode_share == pytest.approx(620 / 2120)
    assert "most of the base's time (71%) goes into reading the prompt" in found.sentence


def test_where_the_lowest_load_is_not_measured_on_both_sides_the_next_one_counts():
    found = diagnose(
        measured("base", 20.0), measured("w8a8-int8", 0.0), BASE_BYTES, INT8_BYTES, "Kernel"
    )
    assert found.sentence.startswith("At 8 requests at a time") and found.reached == pytest.approx(
        1 / 1.648, abs=1e-3
    )


@pytest.mark.parametrize(
    ("candidate", "size", "problem"),
    [
        (
            measured("w8a8-int8", 14.0, concurrency=4),
            INT8_BYTES,
            r"no load point is measured of both: \[1, 8\] of base, \[4, 32\] of candidate",
        ),
        (measured("w8a8-int8", 14.0), 0, "0 bytes"),
    ],
)
def test_measurements_that_cannot_be_compared_are_refused(candidate, size, problem):
    with pytest.raises(ValueError, match=problem):
        diagnose(measured("base", 20.0), candidate, BASE_BYTES, size, "Kernel")
