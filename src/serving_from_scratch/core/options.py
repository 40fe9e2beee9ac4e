"""Defines the options for loading a model, and the facts of the loaded model, as plain values."""

from dataclasses import dataclass

from serving_from_scratch.core.blocks import Pages
from serving_from_scratch.core.errors import ServingError
from serving_from_scratch.core.memory import Memory, NoMemory, Slots


@dataclass(frozen=True, slots=True)
class Rank:
    """One of several processes that compute one model together.

    Attributes:
        number: 0 to count - 1.
        count: of all ranks.
        kind: "tensor" (each has a part of every layer) or "pipeline" (each has some layers).
        meeting: where the ranks find each other: "file:///path" or "tcp://host:port".
    """

    number: int
    count: int
    kind: str
    meeting: str


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How a model is loaded.

    Attributes:
        folder: a checkpoint: config.json and safetensors.
        precision: "float32" (the reference) or "bfloat16".
        cache: "slots", "paged" or "none".
        attention: "sdpa", "eager", "tiled" or "paged".
        places: how many sequences may run at once.
        length: the longest prompt and answer together, in tokens.
        blocks: pages of the paged cache; 0: enough for every place at full length.
        block_tokens: tokens per page.
        threads: of torch; 0: torch's own number.
        packed: whether matrices are laid out once for fast multiplication; by hand, only plain
            ones can be read.
        rank: which part of the model this process computes; None: all of it.
        draft: the checkpoint of a draft model that makes the guesses; "": there is none.
    """

    folder: str
    precision: str = "bfloat16"
    cache: str = "slots"
    attention: str = "sdpa"
    places: int = 8
    length: int = 2048
    blocks: int = 0
    block_tokens: int = 16
    threads: int = 0
    packed: bool = True
    rank: Rank | None = None
    draft: str = ""

    @property
    def pages(self) -> int:
        """Number of pages of the paged cache."""
        return self.blocks or self.places * -(-self.length // self.block_tokens)

    def memory(self, prefixes: bool = False) -> Memory:
        """Makes the scheduler's side of the cache; `prefixes` reuses equal beginnings."""
        if self.cache == "slots":
            return Slots(self.places, self.length, prefixes)
        if self.cache == "paged":
            return Pages(self.pages, self.block_tokens, prefixes, self.length)
        if self.cache == "none" and not prefixes:
            return NoMemory(self.places, self.length)
        raise ServingError(
            f"cache is {self.cache!r} and prefixes {prefixes}.",
            'Choose "slots", "paged" or "none"; without a cache no prefix is kept.',
        )


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Facts of the loaded model.

    Attributes:
        vocabulary: number of token ids.
        max_length: the longest sequence that the model supports, in tokens.
        eos: the end-of-sequence tokens.
        hidden: width of a hidden state.
        parameters: number of weights.
        kv_bytes: bytes of keys and values per token.
    """

    vocabulary: int
    max_length: int
    eos: tuple[int, ...]
    hidden: int
    parameters: int
    kv_bytes: int
