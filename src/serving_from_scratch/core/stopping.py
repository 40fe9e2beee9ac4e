"""Decides when an answer ends: end-of-sequence, max_tokens, or a stop text."""

from collections.abc import Collection

from serving_from_scratch.core.request import FinishReason, Sequence


def finish_reason(sequence: Sequence, eos: Collection[int]) -> FinishReason | None:
    """Says why a sequence ends after its newest token; None if it continues."""
    sampling = sequence.request.sampling
    generated = len(sequence.tokens) - len(sequence.request.prompt)
    if generated and sequence.tokens[-1] in eos and not sampling.ignore_eos:
        return FinishReason.STOP
    return FinishReason.LENGTH if generated >= sampling.max_tokens else None


class StopTexts:
    """Cuts a growing text before the first of its stop texts.

    It holds back text that may be the beginning of a stop text:

        stops = StopTexts(("\\n\\n",))
        stops.feed("one\\n")   # "one": the line break may begin the stop text
        stops.feed("two")     # "\\ntwo": it did not
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.stops = stops
        self.stopped: str | None = None  # the stop text that was found
        self._held = ""

    def feed(self, text: str) -> str:
        """Takes the next piece of text and returns what may be shown; nothing once stopped."""
        if self.stopped is not None:
            return ""
        text = self._held + text
        met = [(text.find(stop), stop) for stop in self.stops if stop in text]
        if met:
            place, self.stopped = min(met)
            self._held = ""
            return text[:place]
        held = max((self._overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def end(self) -> str:
        """Returns the held text, because the answer has ended without a stop text."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        lengths = range(min(len(stop) - 1, len(text)), 0, -1)
        return next((n for n in lengths if text.endswith(stop[:n])), 0)
