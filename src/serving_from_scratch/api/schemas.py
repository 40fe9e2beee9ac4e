"""Defines what clients may send. An unknown field is refused, never ignored."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from serving_from_scratch.core.request import SamplingParameters

Ids = Annotated[list[int], Field(min_length=1)]
Prompts = Annotated[list[str] | list[Ids], Field(min_length=1, max_length=256)]
Never = Annotated[float, Field(ge=0, le=0)]  # a feature that this server lacks
Likeliest = Annotated[int, Field(ge=0, le=20)]  # how many log probabilities per token


def in_list(stop: Any) -> Any:
    """Makes a list of one stop text."""
    return [stop] if isinstance(stop, str) else stop


Stops = Annotated[
    list[Annotated[str, Field(min_length=1)]], Field(max_length=4), BeforeValidator(in_list)
]


class Part(BaseModel):
    """The base of all that clients send: strict JSON types, finite numbers, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Body(Part):
    """The base of all bodies."""

    model: str | None = None
    user: str | None = None
    timeout: float | None = Field(None, gt=0)  # seconds


class StreamOptions(BaseModel):
    """Asks for the usage at the end of a stream, or in every chunk."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class Sampling(Body):
    """How to answer. What a client leaves out, the endpoint decides."""

    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)  # -1: all tokens
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: Stops | None = None
    ignore_eos: bool = False

    def sampling(self, choice: int = 0, **defaults: Any) -> SamplingParameters:
        """Fills in defaults; each choice of a prompt gets its own seed."""
        fields = Sampling.model_fields.keys() - Body.model_fields.keys()
        given = self.model_dump(include=fields, exclude_none=True)
        given["stop"] = tuple(given.get("stop", ()))
        given["top_k"] = max(given.get("top_k", 0), 0)
        if "seed" in given:
            given["seed"] = (given["seed"] + choice) % 2**63
        return SamplingParameters(**(defaults | given))


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

    max_tokens: int | None = Field(None, ge=0)
    prompt: str | Ids | Prompts
    echo: bool = False
    logprobs: Likeliest | None = None
    best_of: Literal[1] | None = None
    suffix: None = None


class TextPart(Part):
    """A part of a message; this server reads text only."""

    type: Literal["text"]
    text: str


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
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: Likeliest | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(None, max_length=32)
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None  # an answer has at most one call


class EmbeddingBody(Body):
    """The body of /v1/embeddings."""

    input: str | Ids | Prompts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
