"""Every command that a message, a notebook or a document names can be typed as it is written
there.
"""

import ast
import itertools
import json
import os
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from model_serve_flow import cli
from model_serve_flow.errors import EXIT_CODES, RERUN, FlowError
from model_serve_flow.flow import default_profile
from model_serve_flow.flow.load import load_profile
from model_serve_flow.run import runner
from model_serve_flow.run.steps import select
from model_serve_flow.setup import fit, mirror, new_profile
from model_serve_flow.system import environments

ROOT = Path(__file__).resolve().parents[2]
GAP = "\N{WHITE SQUARE}"  # stands for what is filled in while the program runs
PROGRAM, MAKE = re.compile(r"\bmodel-serve-flow +(?=[a-z])"), re.compile(r"\bmake +(?=[a-z])")
NO_TARGET = {"a", "an", "another", "it", "the"}  # "make it readable"
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
SAMPLES = Path("examples/model-serve-flow/assets/sample-results")
PLACES = {  # names that a reader replaces, and paths in the checkout
    **{"P": "ci", "my-profile.yaml": "ci", "/data/mirror": "."},
    **{"BASE": str(ROOT / SAMPLES / "base"), "CANDIDATE": str(ROOT / SAMPLES / "candidate")},
    **{str(SAMPLES / side): str(ROOT / SAMPLES / side) for side in ("base", "candidate")},
}
AVX512 = "processor : 0\nmodel name : Xeon\nflags : avx2 avx512f\n"


@dataclass(frozen=True)
class Command:
    """A command line, the program left out, and where it was found."""

    words: tuple[str, ...]
    place: str

    def __str__(self):
        return " ".join(self.words).replace(GAP, "_")


def python_texts(source):
    """(line, text) of every text of a module but docstrings, a placeholder for what is filled in.

    A list of the words of a command is one text.
    """
    inner = set()
    for node in ast.walk(ast.parse(source)):
        if id(node) in inner:
            continue
        if isinstance(node, ast.Expr):
            inner.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            inner |= {id(part) for part in node.values}
            yield (
                node.lineno,
                "".join(p.value if isinstance(p, ast.Constant) else GAP for p in node.values),
            )
        elif (
            isinstance(node, ast.List)
            and getattr(next(iter(node.elts), None), "value", "") == "model-serve-flow"
        ):
            words = [part for part in node.elts if not isinstance(part, ast.Starred)]
            yield (
                node.lineno,
                " ".join(part.value if isinstance(part, ast.Constant) else GAP for part in words),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def markdown_texts(text):
    """(line, code) of every line of a block of code and every span of code."""
    for block in FENCE.finditer(text):
        first = text.count("\n", 0, block.start(1)) + 1
        yield from enumerate((re.split(r"\s#", line)[0] for line in block[1].splitlines()), first)
    spans = FENCE.sub(lambda block: "\n" * block[0].count("\n"), text)
    yield from (
        (spans.count("\n", 0, span.start()) + 1, " ".join(span[1].split()))
        for span in SPAN.finditer(spans)
    )


def texts():
    """(place, text, whether all of it is code) of all that the project says."""
    for path in [
        *ROOT.glob("src/**/*.py"),
        *ROOT.glob("examples/**/*.py"),
        *ROOT.glob("docs/**/*.py"),
    ]:
        for line, text in python_texts(path.read_text()):
            yield f"{path.relative_to(ROOT)}:{line}", text, False
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]:
        for line, text in markdown_texts(path.read_text()):
            yield f"{path.relative_to(ROOT)}:{line}", text, True
    for path in ROOT.glob("src/**/*.j2"):
        yield str(path.relative_to(ROOT)), path.read_text(), False
    for path in ROOT.glob("examples/*/*/*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            source, markdown = "".join(cell["source"]), cell["cell_type"] == "markdown"
            for _, text in markdown_texts(source) if markdown else python_texts(source):
                yield f"{path.name}, {cell['id']}", text, markdown


def takes_value(command, option):
    known = {
        name: not part.is_flag for part in cli.main.commands[command].params for name in part.opts
    }
    return known.get(option, False)


def in_prose(text):
    """The words of a command at the beginning of a text that goes on in words of another kind."""
    words, last = [], False
    for word in re.split(r"\s+", re.split(r"[`\n;'\"]", text)[0].strip()):
        value = len(words) > 1 and takes_value(words[0], words[-1])
        if last or (words and not value and not word.startswith("--")):
            break
        last = word.endswith((".", ",", ":", ")"))
        words.append(word.rstrip(".,:)"))
    return words


def found(program):
    commands = {}
    for place, text, is_code in texts():
        for match in program.finditer(text):
            rest = text[match.end() :]
            words = shlex.split(rest) if is_code else in_prose(rest)
            command = Command(tuple(words), place)
            commands.setdefault(str(command), command)
    return sorted(commands.values(), key=str)


FLOW = found(PROGRAM)
TARGETS = [command for command in found(MAKE) if command.words[0] not in NO_TARGET]


def test_commands_are_found_in_messages_documents_and_notebooks():
    shown = {str(command) for command in FLOW}
    # whole texts, f-strings, lists
    assert {"run", "doctor", "report", "mirror --to _", "run --profile _"} <= shown
    # a block of a document
    assert any("deploy.override_reason=Internal demo" in line for line in shown)
    assert "06_Comparison.ipynb, next" in {
        place for place, text, _ in texts() if PROGRAM.search(text)
    }
    assert {"demo", "test", "lock", "bootstrap", "audit"} <= {
        command.words[0] for command in TARGETS
    }


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What the commands would start; nothing is run, fetched or opened."""
    started = []

    def run(flow, only=(), start=None, force=False):
        started.append([step.number for step in select(only, start)])
        flow.config.model_dump()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL_SERVE_FLOW_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setattr(default_profile, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(AVX512)
    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr(cli, "_show_result", lambda _: None)
    monkeypatch.setattr(fit, "require", lambda _: None)
    monkeypatch.setattr(mirror, "pieces", lambda _: [])
    monkeypatch.setattr(new_profile, "new_profile", lambda *_: Path("new.yaml"))
    monkeypatch.setattr(environments, "ensure", lambda *_: None)
    monkeypatch.setattr(os, "execv", lambda *_: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return started


@pytest.mark.parametrize("command", FLOW, ids=str)
def test_the_program_understands_every_command(started, command):
    words = [PLACES.get(word, word) for word in command.words]
    filled = [
        word.replace(GAP, "ci" if before == "--profile" else "1")
        for before, word in itertools.pairwise(["", *words])
    ]
    outcome = CliRunner().invoke(cli.main, filled)
    verdicts = EXIT_CODES.values() if command.words[0] == "compare" else (0,)
    assert outcome.exit_code in verdicts, f"{command.place}: {outcome.output}"
    assert bool(started) == (command.words[0] in ("run", "report"))


@pytest.mark.parametrize("command", TARGETS, ids=str)
def test_make_knows_every_target(command):
    line = ["make", "-n", *(word.replace(GAP, "1") for word in command.words)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{command.place}: {done.stderr}"


def test_every_key_that_a_message_sets_is_one_of_the_profile():
    keys = {key for _, text, _ in texts() for key in re.findall(r"--set ([a-z_.]+)=", text)}
    assert {
        "deploy.candidate",
        "deploy.override_reason",
        "engine.startup_seconds",
        "performance.seconds",
    } <= keys
    for key in keys:
        try:
            load_profile("ci", {key: 1})
        except FlowError as error:
            assert "unknown key" not in error.problem, key


def messages():
    """(place, text) of what the library says; the command line's own options are left out."""
    for place, text, _ in texts():
        if place.startswith("src/") and "cli.py" not in place:
            yield place, text


MORE_THAN_A_RERUN = re.compile(
    r"--force|model-serve-flow run (?!--profile|--set)--|[Dd]elete it|[Rr]un (0\d|0\d_\w+)\b|\b0\d "
    r"again"
)


def test_no_message_asks_for_more_than_a_plain_rerun():
    assert MORE_THAN_A_RERUN.search("Make it again: model-serve-flow run --only 03 --force.")
    assert not MORE_THAN_A_RERUN.search(RERUN)
    asked = [f"{place}: {text}" for place, text in messages() if MORE_THAN_A_RERUN.search(text)]
    assert asked == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run. It measures", ["run"]),
        ("run --profile \N{WHITE SQUARE}. More", ["run", "--profile", "\N{WHITE SQUARE}"]),
        ("doctor' shows the need", ["doctor"]),
        ("run --from 03, then", ["run", "--from", "03"]),
        ("run --form 03", ["run", "--form"]),  # no such option: left for the program to refuse
        ("run again", ["run"]),
    ],
)
def test_a_command_ends_where_the_sentence_goes_on(text, words):
    assert in_prose(text) == words


def test_a_command_that_does_not_exist_is_refused(started):
    for words in (
        ["run", "--form", "03"],
        ["run", "--only", "12"],
        ["mirror"],
        ["compare"],
        ["plan", "--set", "x=1"],
    ):
        assert CliRunner().invoke(cli.main, words).exit_code != 0, words
