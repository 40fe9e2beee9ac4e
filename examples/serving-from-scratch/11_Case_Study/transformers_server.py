"""Serves a checkpoint by transformers' own server: `python transformers_server.py FOLDER`.

`transformers serve` itself cannot be measured by GuideLLM. It refuses requests with the field
`ignore_eos` (422), loads no model without accelerate, and knows a model by its folder's name only.
This program adds what is missing. The server, its continuous batching and its arithmetic are
transformers' own.
"""

import argparse
from pathlib import Path
from typing import Any

import uvicorn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.server import build_server
from transformers.cli.serving.transcription import TranscriptionHandler
from transformers.cli.serving.utils import GenerationState
from transformers.generation import ContinuousBatchingConfig

VLLM_FIELDS = {"ignore_eos", "return_token_ids"}  # the second one is not obeyed
NO_TOKEN = -1  # as the end of an answer: none
PAGE = 256  # tokens


class Models(ModelManager):
    """One model under its public name, loaded without accelerate."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        super().__init__(device="cpu", force_model=name)

    def _load_processor(self, *_: Any, **__: Any) -> Any:
        return AutoTokenizer.from_pretrained(self.folder)

    def _load_model(self, *_: Any, **__: Any) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype="auto")


class Completions(CompletionHandler):
    """Completions that go on after the end-of-sequence token if the client says `ignore_eos`."""

    def _validate_request(self, body: dict[str, Any]) -> None:
        super()._validate_request({key: body[key] for key in body.keys() - VLLM_FIELDS})

    def _build_generation_config(self, body: dict[str, Any], *given: Any, **named: Any) -> Any:
        config: GenerationConfig = super()._build_generation_config(body, *given, **named)
        if body.get("ignore_eos"):
            config.eos_token_id = NO_TOKEN
        return config


def main() -> None:
    """Serves until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8006)
    parser.add_argument("--name", default="base", help="Of the model, as clients say it.")
    parser.add_argument("--places", type=int, default=8, help="Requests that run at once.")
    parser.add_argument("--length", type=int, default=2048, help="Tokens of prompt and answer.")
    options = parser.parse_args()
    # Without a limit the cache takes nine tenths of the machine's memory.
    blocks = options.places * -(-options.length // PAGE)
    cache = {"page_size": PAGE, "num_blocks": blocks, "max_batch_tokens": options.length}
    config = ContinuousBatchingConfig(**cache, max_requests_per_batch=options.places)
    state = GenerationState(continuous_batching=True, cb_config=config)
    models = Models(options.folder, options.name)
    handlers = (ChatCompletionHandler, Completions, ResponseHandler, TranscriptionHandler)
    app = build_server(models, *(handler(models, state) for handler in handlers), state)
    uvicorn.run(app, host="127.0.0.1", port=options.port)


if __name__ == "__main__":
    main()
