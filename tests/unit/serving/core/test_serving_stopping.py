import itertools

from hypothesis import given
from hypothesis import strategies as st

from serving_from_scratch.core.stopping import StopTexts

TEXT = "Größe 👩‍👩‍👧 é: one\n\ntwo END three"


def streamed(pieces, stops):
    stop_texts = StopTexts(stops)
    shown = "".join(stop_texts.feed(piece) for piece in pieces)
    return shown + stop_texts.end(), stop_texts.stopped


def cut(text, stops):
    """The rule itself: the text before the first stop text."""
    places = [(text.find(stop), stop) for stop in stops if stop in text]
    return (text[: min(places)[0]], min(places)[1]) if places else (text, None)


@given(
    st.lists(st.integers(0, len(TEXT)), max_size=12),
    st.lists(st.sampled_from(["\n\n", "END", "👧", "e\n", "zzz", "\u0301", "two E"]), max_size=4),
)
def test_a_stream_shows_the_whole_answer_however_it_is_cut(cuts, stops):
    edges = [0, *sorted(cuts), len(TEXT)]
    pieces = [TEXT[a:b] for a, b in itertools.pairwise(edges)]
    assert streamed(pieces, tuple(stops)) == cut(TEXT, stops)


def test_only_what_may_become_a_stop_text_is_held_back():
    stops = StopTexts(("\n\n",))
    assert [stops.feed(piece) for piece in ("one\n", "two", "\n", "\nthree")] == [
        "one",
        "\ntwo",
        "",
        "",
    ]
    assert stops.stopped == "\n\n" and stops.feed("more") == "" and stops.end() == ""


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=3), max_size=3))
def test_single_characters_and_overlapping_stop_texts(text, stops):
    shown, stopped = streamed(text, tuple(stops))
    expected, _ = cut(text, stops)
    # Character by character, the stop text that is complete first wins.
    assert (stopped is None) == (expected == text) and text.startswith(shown)
    assert not any(stop in shown for stop in stops)
