"""Decodes in this process, without a server: by the teaching engine, or by transformers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from serving_load import Ask, Speed
from transformers import AutoModelForCausalLM

from serving_from_scratch.core.batching import Continuous
from serving_from_scratch.core.options import ModelOptions
from serving_from_scratch.core.request import Request, SamplingParameters
from serving_from_scratch.core.scheduler import Scheduler
from serving_from_scratch.engine.executor import InProcess
from serving_from_scratch.engine.replay import replay
from serving_from_scratch.model.loading import ModelManager

PLACES = 8


def teaching_engine(folder: Path) -> Speed:
    """Loads the model in BF16 with a slot cache; requests run together, up to eight."""
    options = ModelOptions(str(folder), "bfloat16", places=PLACES)
    runner = ModelManager().runner(options)

    def speed(asks: Sequence[Ask]) -> float:
        scheduler = Scheduler(Continuous(), options.memory(), PLACES)
        requests = [_request(*pair) for pair in enumerate(asks)]
        return replay(scheduler, InProcess(runner), requests).output_tokens_per_second

    return speed


def _request(number: int, ask: Ask) -> Request:
    sampling = SamplingParameters(max_tokens=ask.tokens, ignore_eos=True)
    return Request(str(number), tuple(ask.prompt), sampling)


def transformers(folder: Path) -> Speed:
    """Loads the model in BF16; all requests are one batch of `generate`, and equally long."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)

    @torch.inference_mode()
    def speed(asks: Sequence[Ask]) -> float:
        ids, tokens = torch.tensor([ask.prompt for ask in asks]), asks[0].tokens
        started = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=0,
        )
        return tokens * len(asks) / (time.perf_counter() - started)

    return speed
