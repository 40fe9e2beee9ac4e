"""Checks that two checkpoints have the same tokenizer and chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model_serve_flow.errors import RERUN, FlowError
from model_serve_flow.setup.integrity import REMAKE

# text that tokenizers treat differently
PROBE = "Grüße! 3.14 € for  two\n\ttabs, CamelCase, isn't 東京 🙂"


def verify_same_tokenizer(base: Path, candidate: Path, *, trust_remote_code: bool = False) -> None:
    """Checks that a candidate has its base's tokenizer and chat template.

    Compression changes the weights only. The loaded tokenizers are compared and not their files,
    because tools write the files differently.

    Raises:
        FlowError: names what differs (chat template, vocabulary, added tokens, merges, or the ids
            of a sample text), or a tokenizer cannot be loaded.
    """
    ours, theirs = (_tokenizer_facts(folder, trust_remote_code) for folder in (base, candidate))
    for what, expected in ours.items():
        if theirs[what] != expected:
            raise FlowError(
                f"The tokenizer of {candidate} is not that of {base}: its {what} differs "
                f"({_example(expected, theirs[what])}).",
                f"Copy the base's tokenizer files into it if it is ready-made. {RERUN}",
            )


def _tokenizer_facts(folder: Path, trust_remote_code: bool) -> dict[str, Any]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise FlowError(f"The tokenizer in {folder} cannot be loaded: {said}", REMAKE) from error
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"] if tokenizer.is_fast else {}
    text = PROBE
    if tokenizer.chat_template is not None:
        messages = [{"role": "user", "content": PROBE}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return {
        "chat template": tokenizer.chat_template,
        "vocabulary": tokenizer.get_vocab(),
        "set of added tokens": {
            key: repr(token) for key, token in tokenizer.added_tokens_decoder.items()
        },
        "list of merges": model.get("merges"),
        "tokenisation of a sample text": [tokenizer(PROBE).input_ids, tokenizer(text).input_ids],
    }


def _example(expected: Any, found: Any) -> str:
    """Shows the first place at which two values differ."""
    if isinstance(expected, dict):
        key = next(key for key in [*expected, *found] if expected.get(key) != found.get(key))
        return f"{key!r}: {expected.get(key)!r} became {found.get(key)!r}"
    ours, theirs = str(expected), str(found)
    at = next(
        (i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), 0
    )
    return f"{ours[at : at + 60]!r} became {theirs[at : at + 60]!r}"
