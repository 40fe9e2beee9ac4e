"""Attention backends agree, whatever the chunks are."""

import itertools

import pytest
import torch

from serving_from_scratch.core.errors import ServingError
from serving_from_scratch.core.options import ModelOptions
from serving_from_scratch.core.step import Chunk, Copy, Step
from serving_from_scratch.model.attention import Eager, PagedNumba, Sdpa, Tiled
from serving_from_scratch.model.kv_cache import KVShape, NoCache, PagedCache, SlotCache
from serving_from_scratch.model.row import Row

SHAPE = KVShape(layers=1, heads=3, width=16)
HEADS = 9
# (start, tokens): texts that begin, go on, and decode, of unequal lengths.
MIXTURE = ((0, 40), (33, 1), (0, 1), (16, 25), (70, 1), (7, 1))


def chunks(mixture):
    free = itertools.count()
    for slot, (start, tokens) in enumerate(mixture):
        blocks = tuple(next(free) * 7 % 61 for _ in range(-(-(start + tokens) // 8)))
        yield Chunk(str(slot), slot, start, (0,) * tokens, sample=True, blocks=blocks)


def filled(cache, mixture, seed=0):
    """A cache that holds what came before each chunk, the row, and the row's queries."""
    torch.manual_seed(seed)
    texts = [torch.randn(2, end, SHAPE.heads, SHAPE.width) for end in map(sum, mixture)]
    row = Row(Step(tuple(chunks(mixture))))
    before = tuple(earlier(chunk) for chunk in row.chunks if chunk.start)
    if before:
        write(cache, Row(Step(before)), texts)
    write(cache, row, texts)
    return row, torch.randn(len(row.ids), HEADS, SHAPE.width)


def earlier(chunk):
    """What came before a chunk."""
    tokens = (0,) * chunk.start
    return Chunk(chunk.request, chunk.slot, 0, tokens, sample=False, blocks=chunk.blocks)


def write(cache, row, texts):
    cache.begin(row)
    parts = [texts[int(c.request)][:, c.start : c.end] for c in row.chunks]
    cache.write(0, *torch.cat(parts, dim=1))


CACHES = {
    "slots": lambda: SlotCache(SHAPE, 6, 96),
    "paged": lambda: PagedCache(SHAPE, 61, 8),
}


@pytest.mark.parametrize(
    ("backend", "cache"),
    [
        *itertools.product((Sdpa, Tiled, lambda: Tiled(7)), CACHES),
        (Eager, "paged"),
        (PagedNumba, "paged"),
    ],
)
def test_backends_agree_with_the_formula(backend, cache):
    slots, other = CACHES["slots"](), CACHES[cache]()
    row, queries = filled(slots, MIXTURE)
    expected = Eager().attend(queries, slots, 0, row)
    row, queries = filled(other, MIXTURE)
    assert torch.allclose(backend().attend(queries, other, 0, row), expected, atol=1e-5)


def test_without_a_cache_the_row_attends_to_itself():
    mixture = [(0, tokens) for tokens in (1, 12, 1, 5)]
    row, queries = filled(slots := CACHES["slots"](), mixture)
    expected = Eager().attend(queries, slots, 0, row)
    row, queries = filled(nothing := NoCache(), mixture)
    for backend in (Eager(), Tiled(4), Sdpa()):
        assert torch.allclose(backend.attend(queries, nothing, 0, row), expected, atol=1e-5)


def test_what_lies_behind_a_text_does_not_count():
    clean, dirty = CACHES["slots"](), CACHES["slots"]()
    dirty.keys.fill_(50.0), dirty.values.fill_(50.0)
    for backend in (Eager(), Tiled(), Sdpa()):
        row, queries = filled(clean, MIXTURE)
        expected = backend.attend(queries, clean, 0, row)
        row, queries = filled(dirty, MIXTURE)
        assert torch.equal(backend.attend(queries, dirty, 0, row), expected)


def test_a_copied_beginning_is_the_beginning():
    cache = CACHES["slots"]()
    filled(cache, ((0, 40),))
    cache.copy(Copy(source=0, target=3, tokens=30))
    assert torch.equal(cache.keys[:, 3, :, :30], cache.keys[:, 0, :, :30])
    assert torch.equal(cache.values[:, 3, :, :30], cache.values[:, 0, :, :30])
    assert not cache.keys[:, 3, :, 30:].any()


def test_what_cannot_work_together_is_refused():
    row, queries = filled(slots := CACHES["slots"](), MIXTURE)
    with pytest.raises(ServingError, match="paged kernel cannot read SlotCache"):
        PagedNumba().attend(queries, slots, 0, row)
    with pytest.raises(ServingError, match="goes on at token 33"):
        NoCache().begin(row)
    with pytest.raises(ServingError, match="nothing to copy"):
        NoCache().copy(Copy(0, 1, 2))
    with pytest.raises(ServingError, match="Pages are shared"):
        CACHES["paged"]().copy(Copy(0, 1, 2))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"cache": "disk"}, "cache is 'disk'"),
        ({"cache": "none", "prefixes": True}, "no prefix is kept"),
    ],
)
def test_a_memory_that_does_not_exist_is_refused(wrong, told):
    prefixes = wrong.pop("prefixes", False)
    with pytest.raises(ServingError, match=told):
        ModelOptions("folder", **wrong).memory(prefixes)
