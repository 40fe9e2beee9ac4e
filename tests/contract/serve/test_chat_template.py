"""The real lm-eval asks through the model's chat template where the profile says so."""

from test_resume import SETTINGS, Endpoint, folder, serving  # noqa: F401 (a fixture)
from transformers import AutoTokenizer

from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.results.measured import RIGHT_CHOICE
from model_serve_flow.measure.accuracy import measure_accuracy

TEMPLATE = (
    "{% for message in messages %}({{ message.role }}) {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}(assistant)\n{% endif %}"
)


def test_questions_choices_and_written_answers_go_through_the_template(folder):  # noqa: F811
    chosen = {"accuracy.tasks": ["word_analogies", "free"], "accuracy.apply_chat_template": True}
    flow = Flow.open("ci", SETTINGS | chosen, folder)
    base = flow.workspace.model("base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(base)
    with Endpoint() as endpoint:
        result = measure_accuracy(flow, serving(flow, endpoint.url))
    analogies, free = result.tasks.values()
    assert (analogies.n, free.n) == (30, 8)
    for item in (*analogies.items, *free.items):
        assert item.prompt.startswith("(user) ") and item.prompt.endswith("(assistant)\n")
    assert all(0 < item.values[RIGHT_CHOICE] < 1 for item in analogies.items)
    asked = {tokenizer.decode(prompt) for prompt in endpoint.asked if len(prompt) > 1}
    assert all("u s e r" in text or "(user)" in text.replace(" ", "") for text in asked)
