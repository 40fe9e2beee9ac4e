"""Formats numbers and texts for the report, the model card and the notebooks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from model_serve_flow.flow.results.compared import Difference, Flips, SpeedPoint
from model_serve_flow.flow.results.measured import Capacity

NOT_RECORDED = "not recorded"
NOT_MEASURED = "not measured"


def number(value: float, digits: int = 1) -> str:
    """Writes a number with thousands separated and a true minus sign."""
    return f"{value:,.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 1) -> str:
    """Writes a number with its sign, and without a sign if it rounds to zero."""
    return (
        number(0.0, digits)
        if round(value, digits) == 0
        else f"{value:+,.{digits}f}".replace("-", "−")
    )


def times(value: float) -> str:
    """Writes a ratio, e.g. '1.33×'."""
    return f"{value:.2f}×"


def percent(value: float, digits: int = 0) -> str:
    """Writes a share of 1 as percent."""
    return f"{value * 100:.{digits}f} %"


def nats(value: float) -> str:
    """Writes a divergence with four decimals, or in powers of ten if these would show nothing."""
    return f"{value:.4f}" if value >= 0.001 or value == 0 else f"{value:.1e}".replace("e-0", "e−")


def dollars(value: float) -> str:
    """Writes US dollars with three significant digits; from 1 dollar on, with cents."""
    return f"${value:,.2f}" if value >= 1 else f"${value:.3g}"


def byte_text(count: float) -> str:
    """Writes bytes with three digits, in MB or GB: 269 MB, 1.91 GB."""
    scale, unit = (1e9, "GB") if count >= 1e9 else (1e6, "MB")
    value = count / scale
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"


def memory(count: int | None) -> str:
    """Writes bytes, or that they are not recorded."""
    return NOT_RECORDED if count is None else byte_text(count)


def count(value: int | None) -> str:
    """Writes a whole number with thousands separated, or that it is not recorded."""
    return NOT_RECORDED if value is None else f"{value:,}"


def seconds(value: float | None) -> str:
    """Writes seconds, or that they are not recorded."""
    return f"{value:,.1f} s" if isinstance(value, int | float) else NOT_RECORDED


def digits(difference: Difference) -> int:
    """Returns the number of decimals: three for bits/byte, which are small numbers, else one."""
    return 3 if difference.unit == "bits/byte" else 1


def unit(difference: Difference) -> str:
    """Returns the unit as written after a number."""
    return {"percent": "%"}.get(difference.unit, difference.unit)


def change(difference: Difference) -> str:
    """Writes the difference with sign and unit."""
    return f"{signed(difference.difference, digits(difference))} {unit(difference)}"


def interval(difference: Difference) -> str:
    """Writes the 95 % interval that agrees with the verdict, in the difference's unit."""
    low, high = difference.shown_ci95
    return f"{signed(low, digits(difference))} to {signed(high, digits(difference))}"


def margin(difference: Difference) -> str:
    """Writes the accepted drop with its unit."""
    return f"{number(difference.margin, digits(difference))} {unit(difference)}"


def retention(difference: Difference) -> str:
    """Writes the drop that retention accepts, if it is smaller than the margin."""
    if difference.limit == difference.margin:
        return ""
    assert difference.retention is not None
    return f"{number(difference.limit)} to keep {percent(difference.retention)} above guessing"


def value(value: float, difference: Difference) -> str:
    """Writes a score or loss of one model."""
    return number(value, 3 if difference.unit == "bits/byte" else 2)


def detectable(difference: Difference) -> str:
    """Writes the smallest drop that the items detect with 80 % power."""
    drop = difference.smallest_detectable_drop
    return "–" if drop is None else f"{number(drop, digits(difference))} {unit(difference)}"


def recovery(difference: Difference) -> str:
    """Writes candidate over base in percent, or '–' if it is not given."""
    share = difference.recovery_percent
    return "–" if share is None or difference.near_chance else f"{share:.1f} %"


def flips(flips: Flips | None) -> str:
    """Writes the flips right to wrong / wrong to right, e.g. '8 / 7'."""
    return "–" if flips is None else f"{flips.right_to_wrong} / {flips.wrong_to_right}"


def gross_loss(difference: Difference) -> str:
    """Writes the gross loss: '4.1 % of the right ones (2.3 to 7.3)'; empty if not known."""
    found = difference.gross_loss
    if found is None:
        return ""
    return f"{found.percent:.1f} % of the right ones ({found.ci95[0]:.1f} to {found.ci95[1]:.1f})"


def ratio_interval(point: SpeedPoint) -> str:
    """Writes the 95 % interval of a speed-up, or that there is only one repeat."""
    return (
        "one repeat"
        if point.speedup_ci95 is None
        else "{:.2f} to {:.2f}".format(*point.speedup_ci95)
    )


def capacity_text(capacity: Capacity) -> str:
    """Writes the highest concurrency within the objectives, or that it is not measured."""
    return str(capacity.streams) if capacity.measured else NOT_MEASURED


def capacity_interval(capacity: Capacity) -> str:
    """Writes the interval of a capacity, e.g. '7 to 9'.

    If a search ended without a failed load, the interval is '7 or more'. After a single search it
    names the load that failed. If nothing was measured, it says why.
    """
    if not capacity.measured:
        return capacity.stopped
    if capacity.ci95 is None:
        failed = "no load failed" if capacity.failed is None else f"{capacity.failed} failed"
        return f"{failed}; one search gives no interval"
    low, high = capacity.ci95
    between = f"{low} or more" if high is None else f"{low} to {high}"
    return f"{between}, {capacity.searches} searches"


def search_end(capacity: Capacity) -> str:
    """Says why the search or searches ended."""
    return f"the {'search' if capacity.searches == 1 else 'searches'} ended: {capacity.stopped}"


def objectives(capacity: Capacity) -> str:
    """Says in words which latency the objectives promise to users."""
    return (
        f"{percent(capacity.attainment)} of the requests get their first token within "
        f"{capacity.ttft_ms:,g} ms and the others {capacity.itl_ms:,g} ms apart or less"
    )


def shortened(text: str | None, length: int = 300) -> str:
    """Keeps at most the last `length` characters of a text.

    The end of a prompt holds the question, and the end of an answer its conclusion.
    """
    if text is None:
        return NOT_RECORDED
    return text if len(text) <= length else "…" + text[1 - length :]


def flatten(value: Any, key: str = "") -> dict[str, str]:
    """Turns nested mappings into dotted keys; a list becomes one line of text."""
    if isinstance(value, Mapping):
        flat: dict[str, str] = {}
        for name, child in value.items():
            flat |= flatten(child, f"{key}.{name}" if key else str(name))
        return flat
    if value is None or value == [] or value == "":
        return {key: NOT_RECORDED} if key else {}
    if isinstance(value, list | tuple):
        value = ", ".join(
            item if isinstance(item, str) else json.dumps(item, default=str) for item in value
        )
    return {key or "value": str(value)}


def markdown(value: Any) -> str:
    """Escapes text for Markdown, in a table or not, so that nothing in it is read as markup."""
    text = str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # An underscore inside a word is no markup, so names such as word_analogies stay readable.
    return re.sub(r"([\\`*|\[\]~]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", " ".join(text.split()))


def capacity_sentence(capacity: Capacity) -> str:
    """Says the capacity and its interval in words."""
    if not capacity.measured:
        return f"Not measured: {capacity.stopped}. The next run searches again."
    interval = f"{capacity_interval(capacity)}; {search_end(capacity)}"
    if capacity.streams == 0:
        return f"No load was found at which {objectives(capacity)} ({interval})."
    return (
        f"Up to {capacity.streams} requests at once, {objectives(capacity)}: "
        f"{capacity.output_tokens_per_s:.0f} output tokens/s ({interval})."
    )
