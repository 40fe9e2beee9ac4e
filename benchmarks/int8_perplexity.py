"""Compares the candidates' word perplexity as served with the one from exact sums.

The exact sums come from transformers on the same checkpoints of a finished run. The profile must
have the task `wikipedia`. Run it with the Python of the `compress` environment:

    .environments/compress/bin/python benchmarks/int8_perplexity.py cpu-smollm2-avx2
"""

import argparse
import math
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_serve_flow.flow.flow import Flow
from model_serve_flow.system.files import read_rows


def log_likelihood(folder: Path, texts: list[str]) -> float:
    """Sums the natural log probabilities of all tokens of the texts.

    Each text follows the end-of-text token, as lm-eval asks for it.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    total = 0.0
    for text in texts:
        tokens = torch.tensor([tokenizer.eos_token_id, *tokenizer(text).input_ids])
        with torch.no_grad():
            expected = model(tokens[None]).logits[0, :-1].double().log_softmax(-1)
        total += expected.gather(1, tokens[1:, None]).sum().item()
    return total


def main() -> None:
    """Prints how much each candidate's word perplexity rises, as served and with exact sums."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile", help="profile of the finished run")
    flow = Flow.open(parser.parse_args().profile)
    texts = [row["text"] for row in read_rows(flow.workspace.data / "wikipedia.jsonl")]
    served, exact = {}, {}
    for name in ("base", *(candidate.name for candidate in flow.candidates)):
        items = flow.workspace.accuracy(name).tasks["wikipedia"].items
        words = sum(item.words for item in items)
        served[name] = sum(item.loglikelihood for item in items) / words
        exact[name] = log_likelihood(flow.workspace.model(name), texts) / words
        rises = (math.expm1(values["base"] - values[name]) for values in (served, exact))
        print("{}: served {:+.1%}, exact sums {:+.1%}".format(name, *rises), flush=True)


if __name__ == "__main__":
    main()
