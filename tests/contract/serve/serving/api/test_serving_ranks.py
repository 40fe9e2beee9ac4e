"""A server with guesses whose steps are computed by two ranks: same texts, also after a death."""

import psutil


def texts(server, prompts):
    return [answer["text"] for answer in server.generate(prompts, max_tokens=60)]


def test_two_ranks_with_guesses_answer_as_one_process_does(server, start):
    prompts = ["one two one two one two", "def f(x):", "a b a b a b a b"]
    expected = texts(server, prompts)
    with start("--parallel", "tensor", "--proposer", "ngram") as other:
        assert texts(other, prompts) == expected
        assert other.metric("guessed_tokens_total") >= other.metric("right_guesses_total")
        assert other.metric("guessed_tokens_total") > 0
        ranks = other.process.children()
        assert len(ranks) == 2
        ranks[1].kill()
        other.wait_until(lambda: other.metric("worker_deaths_total") == 1, seconds=10)
        assert not psutil.pid_exists(ranks[0].pid)
        other.wait_until(other.healthy)
        assert texts(other, prompts) == expected
    assert "Traceback" not in other.log.read_text()
