"""Takes running text of articles out of a Wikipedia dump."""

from __future__ import annotations

import bz2
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from model_serve_flow.errors import FlowError
from model_serve_flow.system.files import Row

LIST_MARK = "\u2022"
SENTENCE_ENDS = (".", "!", "?", '."', '!"', '?"')
NOT_TEXT = ("file:", "image:", "category:")


def wikipedia_articles(data: bytes, documents: int, characters: int) -> list[Row]:
    """The first `documents` real articles that have `characters` of body text,
    cut there at the end of a sentence.

    Raises:
        FlowError: the dump has fewer such articles.
    """
    rows: list[Row] = []
    for title, wikitext in _articles(data):
        text = beginning(wikitext, characters)
        if len(text) >= characters:
            rows.append({"title": title, "text": cut(text, characters)})
        if len(rows) == documents:
            return rows
    raise FlowError(
        f"The Wikipedia dump has {len(rows)} articles of {characters} characters or more; "
        f"{documents} are asked for.",
        "Lower accuracy.packaged.wikipedia_documents or wikipedia_characters.",
    )


def _articles(data: bytes) -> Iterator[tuple[str, str]]:
    """Title and wikitext of the articles: main namespace, no redirects.

    The pinned file ends inside its last page.
    """
    parser = ElementTree.XMLPullParser(events=("end",))
    parser.feed(bz2.decompress(data))
    events: Any = parser.read_events()  # "end" comes with an element
    for _, page in events:
        if page.tag.rpartition("}")[2] != "page":
            continue
        if page.findtext("{*}ns") == "0" and page.find("{*}redirect") is None:
            yield page.findtext("{*}title", ""), page.findtext("{*}revision/{*}text", "")


def beginning(wikitext: str, characters: int) -> str:
    """The running text of an article's first sections, as many as hold more than `characters`;
    less if it is shorter.

    An article has ten times what is asked for, and to parse all of it would take a quarter of a
    second.
    """
    text = ""
    for section in re.split(r"^(?==)", wikitext, flags=re.MULTILINE):
        text = "\n\n".join(filter(None, (text, plain_text(section))))
        if len(text) > characters:
            break
    return text


def plain_text(wikitext: str) -> str:
    """The running text of an article: no templates, tables, references, pictures,
    headings or lists.
    """
    import mwparserfromhell

    code = mwparserfromhell.parse(wikitext)
    # `code.remove` searches the whole page for each node it removes; articles have thousands.
    code.nodes = [_replacement(node) for node in code.nodes]
    lines = (
        re.sub(r"\s+", " ", line).strip()
        for line in code.strip_code(normalize=True, collapse=True).splitlines()
    )
    text = "\n\n".join(
        line for line in lines if line.endswith(SENTENCE_ENDS) and not line.startswith(LIST_MARK)
    )
    # What a removed template leaves behind: "Connes (; born 1947)", "Aristotle ()".
    text = re.sub(r"\((?:\s*[;,])+\s*", "(", re.sub(r" ?\([^\w)]*\)", "", text))
    return re.sub(r"[;,]?[^\S\n]+(?=[,;.)])", "", text)


def _replacement(node: Any) -> Any:
    """What stands for a node of an article: a mark for an item of a list,
    nothing for what is not running text.
    """
    from mwparserfromhell import nodes

    removed = nodes.Text("")
    match node:
        case nodes.Heading():
            return removed
        case nodes.Wikilink() if str(node.title).strip().lower().startswith(NOT_TEXT):
            return removed
        case nodes.Tag() if str(node.tag) in ("ref", "table", "gallery", "math"):
            return removed
        case nodes.Tag() if str(node.tag) in ("li", "dd", "dt"):
            return nodes.Text(LIST_MARK)
    return node


def cut(text: str, characters: int) -> str:
    """The first `characters` of the text, shortened to the end of a sentence,
    or of a word where none is near.
    """
    if len(text) <= characters:
        return text
    head = text[: characters + 1]  # one more, to see whether the last sentence or word ends here
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s)", head)]
    if ends and ends[-1] >= characters // 2:
        return head[: ends[-1]]
    return re.sub(r"\s+\S*$", "", head)
