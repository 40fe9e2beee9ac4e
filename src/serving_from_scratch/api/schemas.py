"""Defines what clients may send. An unknown field is refused, never ignored."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

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
        grammar: str = "",
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
            grammar=grammar,
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


class Part(BaseModel):
    """The base of what is inside a body: strict JSON types, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Called(Part):
    """The name of a called function, and its arguments as JSON in a text."""

    name: str
    arguments: str


class Call(Part):
    """A function call of an earlier turn."""

    id: str
    type: Literal["function"] = "function"
    function: Called


class Message(Part):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[Call] | None = Field(None, max_length=16)
    tool_call_id: str | None = None
    refusal: None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only the assistant has tool_calls")
        if self.content is None and not self.tool_calls:
            raise ValueError("content is missing")
        return self

    @property
    def text(self) -> str:
        """The content as one text."""
        parts = self.content or ""
        return parts if isinstance(parts, str) else "".join(part.text for part in parts)


class Function(Part):
    """A function that the model may call; its parameters are a JSON schema."""

    name: str = Field(pattern="^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] = {}
    strict: bool | None = None


class Tool(Part):
    """A tool; there are only functions."""

    type: Literal["function"]
    function: Function


class Name(Part):
    """The name of a function."""

    name: str


class ToolChoice(Part):
    """Asks for a call of one function."""

    type: Literal["function"]
    function: Name


class NamedSchema(Part):
    """A JSON schema, as OpenAI wraps it."""

    name: str
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Part):
    """The form of an answer: text, or JSON of a schema."""

    type: Literal["text", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.json_schema is None) != (self.type == "text"):
            raise ValueError("json_schema belongs to the type json_schema, and only to it")
        return self

    def schema_of(self) -> dict[str, Any] | None:
        """Returns the JSON schema; None for text."""
        return self.json_schema.schema_ if self.json_schema else None


class ChatBody(OpenAISampling):
    """The body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(None, max_length=32)
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None  # an answer has at most one call


class EmbeddingBody(Body):
    """The body of /v1/embeddings."""

    input: str | Ids | Prompts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
