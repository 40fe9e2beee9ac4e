import pytest

from serving_from_scratch.core.errors import ServingError
from serving_from_scratch.core.proposers import NGram, NoProposer, make_proposer, speed_up


@pytest.mark.parametrize(
    ("text", "guesses"),
    [
        ([1, 2, 3, 4, 5, 1, 2], [3, 4, 5]),
        ([1, 2, 3, 1, 2, 4, 1, 2], [4, 1, 2]),  # the latest place
        ([9, 1, 2, 3, 8, 1, 2, 4, 9, 1, 2], [3, 8, 1]),  # the longest end
        ([7, 7, 7, 7], [7]),
        ([1, 2, 3, 4], []),
        ([1, 5, 1], []),  # one equal token is no repetition
        ([], []),
    ],
)
def test_ngram_guesses_what_followed_the_same_words(text, guesses):
    assert list(NGram(n=3, k=3).propose(text)) == guesses


def test_the_cost_model_says_when_guessing_pays():
    assert speed_up(share=0.5, guesses=4, cost=0.1) == pytest.approx(3 / 1.4)
    assert speed_up(share=0.1, guesses=4, cost=0.1) == 1
    assert speed_up(share=0.0, guesses=4, cost=0.1) < 1


def test_proposers_are_found_by_name():
    assert isinstance(make_proposer("none"), NoProposer)
    assert make_proposer("ngram", 7) == NGram(k=7)
    assert make_proposer("draft", 7, draft_cost=0.3).cost == pytest.approx(0.4)
    with pytest.raises(ServingError, match=r"'crystal ball'.*none, ngram"):
        make_proposer("crystal ball")
    with pytest.raises(ServingError, match="guesses is 0"):
        make_proposer("ngram", 0)
