"""Takes the running text of articles out of a Wikipedia dump."""

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
    """Returns the first `documents` articles that have `characters` of body text.

    Each text is cut there, at the end of a sentence.

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
    """Yields title and wikitext of the articles: main namespace, no redirects.

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
    """Returns the running text of an article's first sections, until it exceeds `characters`.

    Parsing a whole article, ten times longer, would take a quarter of a second.
    """
    text = ""
    for section in re.split(r"^(?==)", wikitext, flags=re.MULTILINE):
        text = "\n\n".join(filter(None, (text, plain_text(section))))
        if len(text) > characters:
            break
    return text


def plain_text(wikitext: str) -> str:
    """Returns the running text of an article.

    Templates, tables, references, pictures, headings and lists are removed.
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
    # Removed templates leave traces: "Connes (; born 1947)", "Aristotle ()".
    text = re.sub(r"\((?:\s*[;,])+\s*", "(", re.sub(r" ?\([^\w)]*\)", "", text))
    return re.sub(r"[;,]?[^\S\n]+(?=[,;.)])", "", text)


def _replacement(node: Any) -> Any:
    """Replaces a node of an article: a list item by a mark, other non-text by nothing."""
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
    """Shortens the text to `characters`, at the end of a sentence.

    If no sentence ends in the second half, it cuts at the end of a word.
    """
    if len(text) <= characters:
        return text
    head = text[: characters + 1]  # one more, to see if the last sentence or word ends here
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s)", head)]
    if ends and ends[-1] >= characters // 2:
        return head[: ends[-1]]
    return re.sub(r"\s+\S*$", "", head)
