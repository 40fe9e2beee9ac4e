"""Real faults while the real llm-compressor works: memory that ends, a disk that fills;
and what is kept after them.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from model_serve_flow.compress.calibration import calibration_dataset
from model_serve_flow.compress.compression import compress, kept_candidate
from model_serve_flow.compress.recipes import recipe_modifiers
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.results.measured import Overlap
from model_serve_flow.system.files import write_json

RECIPE = {"scheme": "W8A8", "algorithm": "gptq"}
SETTINGS = {"calibration.samples": 4, "calibration.max_sequence_length": 16}
HIDDEN = 256
PRELUDE = """
import resource, sys
from model_serve_flow.compress.calibration import calibration_dataset
from model_serve_flow.compress.compression import compress
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.compress.recipes import recipe_modifiers
from transformers import AutoTokenizer
from llmcompressor import oneshot
artifacts, samples, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
recipe = {"scheme": "W8A8", "algorithm": "gptq"}
overrides = {"candidates": [{"name": "a", "recipe": recipe}], "calibration.samples": samples,
             "calibration.max_sequence_length": length}
flow = Flow.open("ci", overrides, artifacts)
tokenizer = AutoTokenizer.from_pretrained(flow.workspace.model("base"))
dataset, facts = calibration_dataset(flow, tokenizer)
def quantise(model, recipe):
    modifiers, count = recipe_modifiers(recipe), len(dataset)
    oneshot(model=model, recipe=modifiers, dataset=dataset, num_calibration_samples=count)
def attempt():
    try:
        compress(flow, "a", quantise, facts)
    except FlowError as error:
        print(error)
        return
    sys.exit("no FlowError")
"""


def save_base(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2, vocab_size=128, tie_word_embeddings=True, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    words = Tokenizer(
        models.WordLevel({f"w{i}": i for i in range(127)} | {"<unk>": 127}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="w0"
    ).save_pretrained(folder)


def write_texts(flow: Flow, count: int, words: int) -> None:
    rows = [{"text": " ".join(f"w{(7 * i + j) % 120}" for j in range(words))} for i in range(count)]
    flow.workspace.data.mkdir(parents=True, exist_ok=True)
    (flow.workspace.data / "calibration.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )


def open_flow(artifacts: Path, **overrides) -> Flow:
    candidates = [
        {"name": "a", "recipe": RECIPE},
        {"name": "b", "recipe": {"scheme": "FP8_DYNAMIC"}},
    ]
    changed = {key.replace("__", "."): value for key, value in overrides.items()}
    return Flow.open("ci", {"candidates": candidates, **SETTINGS, **changed}, artifacts)


@pytest.fixture
def flow(tmp_path) -> Flow:
    flow = open_flow(tmp_path / "artifacts")
    save_base(flow.workspace.model("base"))
    write_texts(flow, 4, 16)
    return flow


@pytest.fixture
def calibrated(flow):
    """The quantise function and the facts, as the notebook has them."""
    from llmcompressor import oneshot
    from transformers import AutoTokenizer

    dataset, facts = calibration_dataset(
        flow, AutoTokenizer.from_pretrained(flow.workspace.model("base"))
    )

    def quantise(model, recipe):
        oneshot(
            model=model,
            recipe=recipe_modifiers(recipe),
            dataset=dataset,
            num_calibration_samples=len(dataset),
        )

    return quantise, facts


def run_script(flow: Flow, script: str, samples: int, length: int, *prefix: str) -> str:
    command = [
        *prefix,
        sys.executable,
        "-c",
        PRELUDE + script,
        flow.workspace.root.parent,
        str(samples),
        str(length),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


def test_memory_that_ends_while_quantising_says_which_values_to_try(flow):
    # 256 masks of 1024 x 1024 x 2 bytes, and the activations: more than 600 MiB between two layers
    write_texts(flow, 256, 1024)
    said = run_script(
        flow,
        """
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20),) * 2)
attempt()
""",
        256,
        1024,
    )
    assert re.search(r"Compressing ran out of memory: .*DefaultCPUAllocator: .* bytes", said), said
    assert "'ulimit -v' allows" in said
    assert (
        "Lower calibration.samples from 256 to 128 or less, or calibration.max_sequence_length "
        "from 1024" in said
    )
    assert [path.name for path in flow.workspace.model("base").parent.iterdir()] == ["base"]


def test_a_disk_that_fills_while_the_checkpoint_is_saved_leaves_the_old_one(flow, tmp_path):
    mount = ["unshare", "--map-root-user", "--mount", "sh", "-ec"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*mount, f"mount -t tmpfs tmpfs {tmp_path}"], check=False).returncode
    ):
        pytest.skip("mounting a small disk in a namespace is not allowed here")
    models = flow.workspace.root / "models"
    small = (
        'd=$(mktemp -d); cp -r "$0"/. "$d"; mount -t tmpfs -o size=5m tmpfs "$0"; cp -r "$d"/. '
        '"$0"; exec "$@"'
    )
    said = run_script(
        flow,
        """
first = compress(flow, "a", quantise, facts)
folder = flow.workspace.model("a")
before = {path.name: path.read_bytes() for path in folder.iterdir()}
(folder.parent / "filler").write_bytes(bytes(900_000))
attempt()
assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
assert sorted(path.name for path in folder.parent.iterdir()) == ["a", "base", "filler"]
assert flow.workspace.compression("a") == first
""",
        4,
        16,
        *mount,
        small,
        str(models),
    )
    assert "models/a could not be written: the disk is full" in said


def test_a_finished_candidate_is_kept_for_as_long_as_nothing_that_made_it_changes(flow, calibrated):
    quantise, facts = calibrated
    assert kept_candidate(flow, "a", quantise, facts) is None
    made = compress(flow, "a", quantise, facts)
    assert kept_candidate(flow, "a", quantise, facts) == made
    assert made.versions["llmcompressor"] and "recipe=recipe_modifiers(recipe)" in made.quantise
    artifacts = flow.workspace.root.parent
    assert kept_candidate(open_flow(artifacts, seed=7), "a", quantise, facts) is None
    assert (
        kept_candidate(
            open_flow(artifacts, candidates__0__recipe__algorithm="rtn"), "a", quantise, facts
        )
        is None
    )
    assert kept_candidate(flow, "a", lambda model, recipe: quantise(model, recipe), facts) is None
    for change in ({"sha256": "0" * 64}, {"max_sequence_length": 17}):
        assert kept_candidate(flow, "a", quantise, facts.model_copy(update=change)) is None
    assert kept_candidate(flow, "a", quantise, facts) == made
    assert kept_candidate(flow, "b", quantise, facts) is None


def test_a_finished_candidate_is_kept_whatever_is_evaluated(flow, calibrated):
    quantise, facts = calibrated
    made = compress(flow, "a", quantise, facts)
    found = facts.model_copy(
        update={"overlap": Overlap(ngram=13, items=700, overlapping=("mmlu_dev/1",))}
    )
    kept = kept_candidate(flow, "a", quantise, found)
    assert kept == made.model_copy(update={"calibration": found}) == flow.workspace.compression("a")


@pytest.mark.parametrize("damage", ["weights", "base", "record", "version"])
def test_a_damaged_candidate_is_made_again(flow, calibrated, damage):
    made = compress(flow, "b", *calibrated)
    assert kept_candidate(flow, "b", *calibrated) == made
    record = flow.workspace.results("b") / "compression.json"
    if damage in ("weights", "base"):
        path = flow.workspace.model("b" if damage == "weights" else "base") / "config.json"
        path.write_text(path.read_text() + " ")
    elif damage == "record":
        record.write_text(record.read_text()[:-20])
    else:
        write_json(
            record,
            {
                **json.loads(record.read_text()),
                "versions": {**made.versions, "llmcompressor": "0.1"},
            },
        )
    assert kept_candidate(flow, "b", *calibrated) is None


def test_linear_layers_one_after_the_other_give_a_candidate_too(flow):
    from llmcompressor import oneshot
    from transformers import AutoTokenizer

    flow = open_flow(
        flow.workspace.root.parent, candidates__0__recipe__sequential_targets=["Linear"]
    )
    dataset, facts = calibration_dataset(
        flow, AutoTokenizer.from_pretrained(flow.workspace.model("base"))
    )

    def quantise(model, recipe):
        oneshot(
            model=model, recipe=recipe_modifiers(recipe), dataset=dataset,
            num_calibration_samples=len(dataset),
            sequential_targets=recipe.sequential_targets,
        )  # fmt: skip

    assert compress(flow, "a", quantise, facts).quantized_layers == 14
    log = (flow.workspace.logs / "compress-a.log").read_text()
    steps = {int(number) for number in re.findall(r"\(\d+/(\d+)\): Calibrating", log)}
    assert steps and min(steps) >= 14, log[-2000:]  # two decoder layers have 14 linear layers


def test_a_source_that_may_not_be_loaded_is_no_problem_of_memory(flow, calibrated):
    with pytest.raises(FlowError, match="base") as caught:
        shutil.rmtree(flow.workspace.model("base"))
        compress(flow, "a", *calibrated)
    assert "memory" not in str(caught.value)
