"""Holds answers to a grammar: tokens that would break it are never chosen (xgrammar)."""

import math
import re
from collections import OrderedDict
from pathlib import Path

import xgrammar
from tokenizers import Tokenizer
from torch import Tensor

from serving_from_scratch.core.errors import InvalidRequest
from serving_from_scratch.core.step import Chunk

CONTROL = re.compile(rb"[\x00-\x09\x0b-\x1f]")  # all but the line break
KEPT = 256  # matchers of requests; one that was dropped is made again from the answer
CACHE_BYTES = 64_000_000  # of compiled grammars


class Grammars:
    """The grammars of the requests that a model answers.

    Args:
        folder: the checkpoint, for its tokens.
        vocabulary: number of token ids.
        eos: the end-of-sequence tokens; allowed where an answer is complete.
    """

    def __init__(self, folder: Path, vocabulary: int, eos: tuple[int, ...]) -> None:
        info = token_texts(Tokenizer.from_file(str(folder / "tokenizer.json")), vocabulary, eos)
        self._compiler = xgrammar.GrammarCompiler(info, cache_limit_bytes=CACHE_BYTES)
        self._matchers: OrderedDict[str, Matcher] = OrderedDict()

    def matcher(self, chunk: Chunk) -> "Matcher":
        """Finds the matcher of a chunk's request, and brings it to the end of its answer.

        Raises:
            InvalidRequest: the grammar cannot be compiled.
        """
        matcher = self._matchers.pop(chunk.request, None)
        if matcher is None or tuple(matcher.tokens) != chunk.answer:
            try:
                compiled = self._compiler.compile_structural_tag(chunk.sampling.grammar)
            except RuntimeError as error:
                problem = str(error).strip().partition(": ")[2] or str(error)
                raise InvalidRequest(f"The grammar cannot be used: {problem}.") from error
            matcher = Matcher(compiled)
            for token in chunk.answer:
                matcher.accept(token)
        self._matchers[chunk.request] = matcher
        if len(self._matchers) > KEPT:
            self._matchers.popitem(last=False)
        return matcher


class Matcher:
    """Follows one answer through its grammar."""

    def __init__(self, compiled: xgrammar.CompiledGrammar) -> None:
        self.tokens: list[int] = []
        self._matcher = xgrammar.GrammarMatcher(compiled)
        self._mask = xgrammar.allocate_token_bitmask(1, compiled.tokenizer_info.vocab_size)

    def allowed(self, logits: Tensor) -> Tensor:
        """Returns the scores, with minus infinity for every token that the grammar forbids."""
        self._matcher.fill_next_token_bitmask(self._mask)
        logits = logits.clone()
        xgrammar.apply_token_bitmask_inplace(logits[None], self._mask)
        if logits.max() == -math.inf:
            raise InvalidRequest("The grammar allows no token here.")
        return logits

    def accept(self, token: int) -> None:
        """Goes on by one token."""
        self._matcher.accept_token(token)
        self.tokens.append(token)


def token_texts(
    tokenizer: Tokenizer, vocabulary: int, eos: tuple[int, ...]
) -> xgrammar.TokenizerInfo:
    """Lists the bytes of each token; forbidden tokens have none.

    Special tokens are no text. Control characters are no JSON inside a string, but xgrammar allows
    them where a string has minLength or maxLength.
    """
    tokens = [tokenizer.id_to_token(id) or "" for id in range(vocabulary)]
    kinds = xgrammar.VocabType
    kind = kinds.BYTE_FALLBACK if "<0x0A>" in tokens else kinds.BYTE_LEVEL
    for id, raw in enumerate(xgrammar.TokenizerInfo(tokens, kind).decoded_vocab):
        if CONTROL.search(raw):
            tokens[id] = ""
    for id, token in tokenizer.get_added_tokens_decoder().items():
        if token.special and id < vocabulary:
            tokens[id] = ""
    return xgrammar.TokenizerInfo(tokens, kind, vocab_size=vocabulary, stop_token_ids=list(eos))
