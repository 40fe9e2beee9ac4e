"""The kernel in Triton's language agrees with the formula: on a GPU, or by Triton's interpreter."""

import pytest
import torch
from support.lessons import lesson

from serving_from_scratch.core.step import Chunk, Step
from serving_from_scratch.model.attention import Eager
from serving_from_scratch.model.kv_cache import KVShape, PagedCache
from serving_from_scratch.model.row import Row

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def paged_decode():
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            patch.setenv("TRITON_INTERPRET", "1")
        pytest.importorskip("triton", reason="this environment has no Triton")
        yield lesson("02_Attention_and_KV_Cache", "triton_kernel").paged_decode


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "page"),
    [(9, 3, 64, 16), (32, 8, 128, 16), (4, 4, 32, 8), (8, 1, 80, 12)],
)
@pytest.mark.parametrize("lengths", [(1,), (16, 17), (100, 1, 33, 240)])
def test_decoding_over_pages_agrees_with_the_formula(
    paged_decode, heads, kv_heads, width, page, lengths
):
    torch.manual_seed(0)
    pages = [-(-length // page) for length in lengths]
    order = iter(torch.randperm(sum(pages) + 5).tolist())  # some pages are nobody's
    blocks = [tuple(next(order) for _ in range(count)) for count in pages]
    chunks = (
        Chunk(str(n), n, length - 1, (0,), sample=True, blocks=blocks[n])
        for n, length in enumerate(lengths)
    )
    cache = PagedCache(KVShape(1, kv_heads, width), sum(pages) + 5, page)
    cache.keys.normal_(), cache.values.normal_()
    cache.begin(row := Row(Step(tuple(chunks))))
    queries = torch.randn(len(lengths), heads, width)
    expected = Eager().attend(queries, cache, 0, row)

    tables, ends = cache.tables.int(), (row.positions + 1).int()
    tensors = (queries, cache.keys[0], cache.values[0], tables, ends)
    found = paged_decode(*(tensor.to(DEVICE) for tensor in tensors)).cpu()
    assert torch.allclose(found, expected, atol=1e-5)
