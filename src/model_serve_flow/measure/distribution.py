"""Measures the model's likeliest next tokens on held-out text: writes `DistributionResult`."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from model_serve_flow.errors import RERUN, FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.profile import Distribution, HubDataset
from model_serve_flow.flow.results.measured import DistributionResult, TokenTops
from model_serve_flow.measure.provenance import kept, proven_facts, provenance, require_arguments
from model_serve_flow.serve.engine import ACCURACY
from model_serve_flow.serve.engines import engine_of
from model_serve_flow.serve.server import Server
from model_serve_flow.setup.hub import hub_rows
from model_serve_flow.system import live
from model_serve_flow.system.files import read_rows, write_text

LEAST_TOKENS = 16  # a shorter document has too little context
# English text has fewer, so a row is long enough if it has `tokens` / 4 words
TOKENS_PER_WORD = 4
DECIMALS = 6
TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class Document:
    """A held-out text as token ids."""

    id: str
    tokens: tuple[int, ...]


def measure_distribution(
    flow: Flow, server: Server, again: bool = False
) -> DistributionResult | None:
    """Asks the served model for its likeliest next tokens along the held-out text.

    The function writes `distribution.json`. An earlier result of the same model and protocol is
    kept.

    Args:
        flow: the profile and its workspace.
        server: the served model.
        again: makes the second measurement, for the noise floor: documents in reverse order,
            `accuracy.again.concurrency` requests at a time. Writes `distribution_again.json`.

    Returns:
        None if the profile has no `accuracy.distribution`, or no `accuracy.again` for the second
        measurement.

    Raises:
        FlowError: there is too little text, a request failed, or the kernel does not fit the
            checkpoint.
    """
    accuracy = flow.config.accuracy
    if accuracy.distribution is None or (again and accuracy.again is None):
        return None
    started, facts, k = time.monotonic(), proven_facts(server), accuracy.distribution.top_k
    documents = held_out_documents(flow, server.folder)
    concurrency = accuracy.again.concurrency if again and accuracy.again else accuracy.concurrency
    protocol = distribution_protocol(flow, documents, concurrency, facts.version)
    require_arguments(server, protocol)
    path = (
        flow.workspace.results(server.model_name) / f"distribution{'_again' if again else ''}.json"
    )
    if (earlier := kept(path, DistributionResult, server, facts, protocol)) is not None:
        return earlier
    turn = -1 if again else 1
    what = f"{server.model_name}{', again' if again else ''}: distributions"
    found = _ask_all(server, documents[::turn], k, concurrency, what)[::turn]
    source = provenance(server, proven_facts(server), protocol, started)
    result = DistributionResult(
        model=source.model,
        protocol=source.protocol,
        protocol_hash=source.protocol_hash,
        engine=source.engine,
        seconds=source.seconds,
        k=k,
        documents=tuple(found),
    )
    # On one line: a line for each of hundreds of thousands of numbers would double the size.
    write_text(path, result.model_dump_json() + "\n")
    return result


def distribution_protocol(
    flow: Flow, documents: list[Document], concurrency: int, engine_version: str
) -> dict[str, Any]:
    """Lists everything that must be equal for two distribution results to be comparable.

    The token ids represent the text and the tokenizer.
    """
    settings = flow.config.accuracy.distribution
    assert settings is not None
    content = json.dumps([[document.id, document.tokens] for document in documents])
    return {
        "documents": len(documents),
        "documents_sha256": hashlib.sha256(content.encode()).hexdigest(),
        "tokens": settings.tokens,
        "top_k": settings.top_k,
        "own_tokens": True,
        "concurrency": concurrency,
        "engine_arguments": list(engine_of(flow.config).arguments(ACCURACY)),
        "engine_version": engine_version,
        "seed": flow.config.seed,
    }


def held_out_documents(flow: Flow, folder: Path) -> list[Document]:
    """Tokenises the profile's documents and cuts each after `tokens` tokens.

    A shorter document keeps its length.

    Args:
        flow: the profile and its workspace.
        folder: the checkpoint with the tokenizer.

    Raises:
        FlowError: there are fewer documents than `accuracy.distribution.documents`, or a document
            has fewer than 16 tokens.
    """
    from transformers import AutoTokenizer

    settings = flow.config.accuracy.distribution
    assert settings is not None
    texts = _hub_texts(settings, settings.dataset) if settings.dataset else _packaged_texts(flow)
    if len(texts) < settings.documents:
        raise FlowError(
            f"accuracy.distribution.documents is {settings.documents}, but there are {len(texts)} "
            "documents.",
            "Lower it, or name a larger accuracy.distribution.dataset.",
        )
    tokenizer = AutoTokenizer.from_pretrained(
        folder, trust_remote_code=flow.config.model.trust_remote_code
    )
    chosen = itertools.islice(texts.items(), settings.documents)
    documents = [
        Document(name, tuple(tokenizer(text).input_ids[: settings.tokens])) for name, text in chosen
    ]
    for document in documents:
        if len(document.tokens) < LEAST_TOKENS:
            raise FlowError(
                f"Held-out document {document.id} has {len(document.tokens)} tokens; "
                f"{LEAST_TOKENS} are needed.",
                "Name other text in accuracy.distribution.dataset.",
            )
    return documents


def _packaged_texts(flow: Flow) -> dict[str, str]:
    path = flow.workspace.data / "wikipedia.jsonl"
    if not path.is_file():
        raise FlowError(
            f"{path} is missing: the distributions are compared on the text of the packaged task "
            "wikipedia.",
            f"Name it in accuracy.tasks, or name an accuracy.distribution.dataset. {RERUN}",
        )
    return {row["id"]: row["text"] for row in read_rows(path)}


def _hub_texts(settings: Distribution, source: HubDataset) -> dict[str, str]:
    """Returns the first rows that are long enough; titles and empty lines are too short."""
    words = settings.tokens // TOKENS_PER_WORD

    def choose(stream: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        # A row without the column passes, because hub_rows reports the missing column.
        long = (
            row
            for row in stream
            if source.column not in row or len(row[source.column].split()) >= words
        )
        return itertools.islice(long, settings.documents)

    texts = [row["text"] for row in hub_rows(source, "accuracy.distribution.dataset", choose)]
    return {
        f"{index}-{hashlib.sha256(text.encode()).hexdigest()[:16]}": text
        for index, text in enumerate(texts)
    }


def _ask_all(
    server: Server,
    documents: list[Document],
    k: int,
    concurrency: int,
    what: str,
) -> list[TokenTops]:
    """Returns one result per document, in the given order.

    Args:
        server: the served model.
        documents: the documents to score.
        k: likeliest tokens per position.
        concurrency: requests at a time.
        what: name of the measurement, for the runner's live line.
    """
    found: list[TokenTops] = []
    with server.client(TIMEOUT_SECONDS) as client, ThreadPoolExecutor(concurrency) as pool:
        live.report(what, 0, len(documents), "documents")
        for tops in pool.map(lambda document: _ask(client, server, document, k), documents):
            found.append(tops)
            live.report(what, len(found), len(documents), "documents")
    return found


def _ask(client: httpx.Client, server: Server, document: Document, k: int) -> TokenTops:
    body = {
        "model": server.model_name,
        "prompt": list(document.tokens),
        "prompt_logprobs": k,
        "max_tokens": 1,
        "temperature": 0,
    }
    try:
        response = client.post("/v1/completions", json=body)
        response.raise_for_status()
        positions = response.json()["choices"][0].get("prompt_logprobs")
    except httpx.HTTPStatusError as error:
        raise FlowError(
            f"{server.engine.name} refused to score document {document.id} "
            f"({error.response.status_code}): "
            f"{error.response.text[:500]}",
            f"See {server.log}.",
        ) from error
    except httpx.HTTPError as error:
        raise FlowError(
            f"{server.engine.name} did not score document {document.id}: {error!r}",
            f"See {server.log}.",
        ) from error
    if positions is None:
        raise FlowError(
            f"{server.engine.name} gives no 'prompt_logprobs' for document {document.id}.",
            "Only some engines do: leave out accuracy.distribution.",
        )
    return token_tops(document, positions, k)


def token_tops(
    document: Document, positions: list[dict[str, dict[str, Any]] | None], k: int
) -> TokenTops:
    """Converts an engine's `prompt_logprobs` into the k likeliest tokens of each position.

    There is no entry for the first token. Beside the k likeliest tokens the engine returns the
    text's own token, with a rank beyond k if it is not among them. The own token is stored
    separately, so that all models have the same number of tokens.

    Args:
        document: N tokens.
        positions: the engine's `prompt_logprobs`: N entries, token id -> rank and natural
            log-probability.
        k: likeliest tokens per position.

    Returns:
        N - 1 rows of k token ids and log-probabilities, and N - 1 log-probabilities of own tokens.

    Raises:
        FlowError: there is not one entry per token, or a position lacks one of the k tokens or the
            text's own token.
    """
    if len(positions) != len(document.tokens) or positions[0] is not None:
        raise FlowError(
            f"The engine scored {len(positions)} positions of {len(document.tokens)} tokens of "
            f"document {document.id}.",
            "Does this version of the engine give 'prompt_logprobs' in another form?",
        )
    ids, logprobs, own = [], [], []
    for place, entries in enumerate(positions[1:], start=1):
        position = entries or {}
        ranked = sorted(
            (entry["rank"], int(token), entry["logprob"]) for token, entry in position.items()
        )
        top = [entry for entry in ranked if entry[0] <= k]
        token = str(document.tokens[place])
        if len(top) != k or token not in position:
            lacking = (
                f"{len(top)} of the {k} likeliest tokens"
                if len(top) != k
                else f"nothing of token {token}"
            )
            raise FlowError(
                f"The engine gave {lacking} at place {place} of document {document.id}.",
                "Does this version of the engine give 'prompt_logprobs' in another form?",
            )
        ids.append(tuple(token for _, token, _ in top))
        logprobs.append(tuple(round(logprob, DECIMALS) for _, _, logprob in top))
        own.append(round(position[token]["logprob"], DECIMALS))
    return TokenTops(
        id=document.id,
        tokens=document.tokens,
        top_ids=tuple(ids),
        top_logprobs=tuple(logprobs),
        own_logprobs=tuple(own),
    )
