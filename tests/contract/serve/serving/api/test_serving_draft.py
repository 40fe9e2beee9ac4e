"""A server whose guesses come from a draft model: same texts, also after a death."""


def texts(server, prompts):
    return [answer["text"] for answer in server.generate(prompts, max_tokens=60)]


def test_a_draft_model_changes_no_text(server, start, tiny_model):
    prompts = ["one two three", "def f(x):", "a b a b a b a b"]
    expected = texts(server, prompts)
    with start("--proposer", "draft", "--draft", str(tiny_model)) as other:
        assert texts(other, prompts) == expected
        guessed = other.metric("guessed_tokens_total")
        assert other.metric("right_guesses_total") > 0.9 * guessed > 0  # it knows its own choice
        other.worker.kill()
        other.wait_until(lambda: other.metric("worker_deaths_total") == 1, seconds=10)
        other.wait_until(other.healthy)
        assert texts(other, prompts) == expected
        assert other.metric("guessed_tokens_total") > guessed
    assert "Traceback" not in other.log.read_text()
