"""What the tests of the teaching engine share: serving many requests,
and the reference's tokens.
"""

import random
from dataclasses import dataclass, field

from serving_from_scratch.core.request import Request, SamplingParameters, Sequence
from serving_from_scratch.core.scheduler import Scheduler
from serving_from_scratch.core.step import Step

STEPS = 20_000


@dataclass
class Trace:
    """What was served: finished sequences by id, and every step."""

    finished: dict[str, Sequence] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    @property
    def answers(self) -> dict[str, list[int]]:
        return {id: sequence.generated for id, sequence in self.finished.items()}


def serve(scheduler: Scheduler, executor, requests, seed=None, each_step=None) -> Trace:
    """Serves requests to the end: all at once, or in random order at random steps."""
    draw = random.Random(seed)
    requests = list(requests)
    if seed is not None:
        draw.shuffle(requests)
    trace = Trace()
    for turn in range(STEPS):
        while requests and (seed is None or draw.random() < 0.5):
            scheduler.submit(requests.pop())
        step = scheduler.schedule(now=float(turn))
        if step:
            trace.steps.append(step)
            for sequence in scheduler.update(step, executor.step(step)):
                if sequence.finished:
                    trace.finished[sequence.request.id] = sequence
        if each_step:
            each_step(scheduler)
        if not (requests or scheduler.waiting or scheduler.running):
            return trace
    raise AssertionError(f"not served after {STEPS} steps")


@dataclass
class Reference:
    """Prompts, and the token ids that transformers' greedy `generate` gives each of them alone."""

    prompts: list[tuple[int, ...]]
    answers: dict[str, list[int]]
    max_tokens: int

    def requests(self, **sampling) -> list[Request]:
        sampling = SamplingParameters(max_tokens=self.max_tokens, ignore_eos=True, **sampling)
        prompts = enumerate(self.prompts)
        return [Request(str(place), prompt, sampling) for place, prompt in prompts]

    @classmethod
    def of(cls, folder, prompts, max_tokens):
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model.generation_config.eos_token_id = None
        options = {"do_sample": False, "max_new_tokens": max_tokens, "pad_token_id": 0}
        answers = {}
        for place, prompt in enumerate(prompts):
            ids = torch.tensor([prompt])
            output = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
            answers[str(place)] = output[0, len(prompt) :].tolist()
        return cls(prompts, answers, max_tokens)


def save_llama(
    folder, layers=2, heads=4, kv_heads=2, hidden=64, head_dim=16, vocabulary=512, **other
):
    """Writes a random Llama with weights so large that its answers vary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=1024,
        initializer_range=0.3,
        eos_token_id=2,
        tie_word_embeddings=False,
        **other,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
