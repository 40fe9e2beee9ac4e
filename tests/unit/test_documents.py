"""Every link between documents and notebooks leads somewhere."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("docs", "examples", "tests")
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


def documents():
    """(path, Markdown) of every document and notebook; hidden folders hold copies."""
    paths = [*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*"))]
    for path in sorted(paths):
        if any(part.startswith(".") for part in path.relative_to(ROOT).parts):
            continue
        if path.suffix == ".md":
            yield path, path.read_text(encoding="utf-8")
        elif path.suffix == ".ipynb":
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
            yield path, "\n\n".join(texts)


def links(text):
    """The relative links of a document; code is not looked at."""
    prose = re.sub(r"`[^`\n]*`", "code", FENCE.sub("", text))
    found = [a or b for a, b in LINK.findall(prose)]
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(text):
    """The names that GitHub gives to the headings of a document."""
    headings = [heading.lower() for heading in HEADING.findall(FENCE.sub("", text))]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


def problem(path, link):
    """What is wrong with a link of the document at `path`; empty if nothing is."""
    name, _, anchor = link.partition("#")
    target = (path.parent / name).resolve() if name else path
    if not target.exists():
        return f"{target} does not exist"
    if anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
        return f"{target} has no heading {anchor}"
    return ""


FOUND = [pytest.param(*found, id=str(found[0].relative_to(ROOT))) for found in documents()]


@pytest.mark.parametrize(("path", "text"), FOUND)
def test_every_link_leads_somewhere(path, text):
    assert [(link, why) for link in links(text) if (why := problem(path, link))] == []


def test_the_root_readme_leads_to_every_step_and_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    reached = {(ROOT / link.partition("#")[0]).resolve() for link in links(text)}
    notebooks = ROOT.glob("examples/model-serve-flow/0*/*.ipynb")
    steps = {path.with_name("README.md") for path in notebooks}
    assert steps | {*ROOT.glob("docs/*.md")} <= reached


def test_a_link_that_leads_nowhere_is_found():
    text = "[a](missing.md) `[b](code.md)` [c](https://h/x) [d](README.md#nowhere) [e](README.md)"
    assert links(text) == ["missing.md", "README.md#nowhere", "README.md"]
    assert [bool(problem(ROOT / "x.md", link)) for link in links(text)] == [True, True, False]


@pytest.mark.parametrize(("page", "least"), [("tests/README.md", 20), ("docs/Places.md", 10)])
def test_every_test_that_shows_a_promise_exists(page, least):
    named = set(re.findall(r"`(test_\w+)`", (ROOT / page).read_text(encoding="utf-8")))
    assert len(named) > least
    assert named <= {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
