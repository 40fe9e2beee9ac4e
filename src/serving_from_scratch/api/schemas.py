"""Defines what clients may send. An unknown field is refused, never ignored."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving_from_scratch.core.request import SamplingParameters

Ids = Annotated[list[int], Field(min_length=1)]
Prompts = Annotated[list[str] | list[Ids], Field(min_length=1, max_length=256)]
Never = Annotated[float, Field(ge=0, le=0)]  # a feature that this server lacks


class Body(BaseModel):
    """The base of all bodies: strict JSON types, finite numbers, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str | None = None
    user: str | None = None
    timeout: float | None = Field(None, gt=0)  # seconds


class StreamOptions(BaseModel):
    """Asks for the usage at the end of a stream, or in every chunk."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class Sampling(Body):
    """How to answer; `core.limits` checks the ranges."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool = False

    def sampling(
        self,
        tokens: int,
        temperature: float,
        choice: int = 0,
        logprobs: int | None = None,
        echo: bool = False,
    ) -> SamplingParameters:
        """Fills in defaults; each choice of a prompt gets its own seed."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return SamplingParameters(
            max_tokens=tokens if self.max_tokens is None else self.max_tokens,
            temperature=temperature if self.temperature is None else self.temperature,
            top_k=0 if self.top_k in (None, -1) else self.top_k,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=None if self.seed is None else self.seed + choice,
            stop=tuple(stop),
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
            prompt_logprobs=logprobs if echo else None,
        )


class GenerateBody(Sampling):
    """The body of the plain endpoints; greedy without a temperature."""

    prompt: str | Ids | Prompts


class OpenAISampling(Sampling):
    """The common fields of completions and chat completions."""

    n: int = Field(1, ge=1, le=4)
    stream: bool = False
    stream_options: StreamOptions | None = None
    frequency_penalty: Never | None = None
    presence_penalty: Never | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None


class CompletionBody(OpenAISampling):
    """The body of /v1/completions."""

    prompt: str | Ids | Prompts
    echo: bool = False
    logprobs: int | None = None
    best_of: Literal[1] | None = None
    suffix: None = None


class TextPart(Body):
    """A part of a message; this server reads text only."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """Returns the message as a chat template reads it."""
        whole = isinstance(self.content, str)
        parts = self.content if whole else "".join(part.text for part in self.content)
        return {"role": self.role, "content": parts}


class ChatBody(OpenAISampling):
    """The body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    response_format: dict[str, Literal["text"]] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None


class EmbeddingBody(Body):
    """The body of /v1/embeddings."""

    input: str | Ids | Prompts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
