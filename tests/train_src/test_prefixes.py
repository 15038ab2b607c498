"""What is remembered of a prompt gives the bits that reading it again would, and no more room is taken than allowed."""

import pytest
import torch
from test_decoders import decoded, make, prompt
from torch import Tensor

from decoders import Row
from llama import LlamaDecoder
from prefixes import Prefixes

BLOCK = 4
SIZE = 2 * 2 * 3 * BLOCK * 5 * 4  # bytes of a block of the caches below


def cache_of(ids: list[int]) -> Tensor:
    """(layers, 2, heads, room, size), each place told apart by its token."""
    return torch.tensor(ids, dtype=torch.float32).view(1, 1, 1, -1, 1).expand(2, 2, 3, -1, 5).contiguous()


def prefixes(blocks: int) -> Prefixes:
    made = Prefixes(BLOCK)
    made.most_bytes = blocks * SIZE
    return made


def found(where: Prefixes, ids: list[int], shares: object = ()) -> list[int]:
    return [int(token) for block in where.find(shares, ids) for token in block[0, 0, 0, :, 0]]


def test_whole_blocks_of_the_longest_common_beginning_are_found() -> None:
    where, ids = prefixes(10), list(range(11))
    where.keep((), ids, cache_of(ids))
    assert found(where, [*ids, 11, 12]) == ids[:8], "the third block was not whole"
    assert found(where, [0, 1, 2, 3, 4, 5, 6, 9, 9]) == ids[:4]
    assert found(where, [9, *ids[1:]]) == []
    assert found(where, [*ids[4:8], 0, 0]) == [], "a block belongs to what stands before it"


def test_the_last_token_of_a_prompt_is_always_read_anew() -> None:
    where, ids = prefixes(10), list(range(8))
    where.keep((), ids, cache_of(ids))
    assert found(where, ids) == ids[:4]
    assert found(where, [*ids, 8]) == ids


def test_what_was_not_used_for_longest_is_forgotten_first_and_ends_before_beginnings() -> None:
    where = prefixes(3)
    long, other = list(range(8)), list(range(50, 54))
    where.keep((), long, cache_of(long))
    where.keep((), other, cache_of(other))
    assert found(where, [*long, 0]) == long
    newest = list(range(70, 74))
    where.keep((), newest, cache_of(newest))
    assert found(where, [*other, 0]) == []
    where.keep((), other, cache_of(other))
    assert found(where, [*long, 0]) == long[:4], "its end went first"
    assert where._bytes == 3 * SIZE


@pytest.mark.parametrize(("blocks", "kept"), [(0, 0), (2, 8)])
def test_a_prompt_longer_than_the_room_is_remembered_as_far_as_it_goes(blocks: int, kept: int) -> None:
    where, ids = prefixes(blocks), list(range(20))
    where.keep((), ids, cache_of(ids))
    assert found(where, ids) == ids[:kept]
    assert where._bytes == blocks * SIZE


def test_what_was_read_with_an_adapter_is_its_own_and_goes_with_it() -> None:
    where, ids = prefixes(10), list(range(9))
    one, other = object(), object()
    where.keep(((one, 1.0),), ids, cache_of(ids))
    where.keep(((other, 1.0),), ids, cache_of(ids))
    assert found(where, ids) == found(where, ids, ((one, -1.0),)) == []
    assert found(where, ids, ((one, 1.0),)) == ids[:8]
    where.forget(one)
    assert found(where, ids, ((one, 1.0),)) == []
    assert found(where, ids, ((other, 1.0),)) == ids[:8]
    assert where._bytes == 2 * SIZE


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("same", [1, 2, 2.5])
def test_an_answer_has_the_same_bits_whether_its_prompts_beginning_was_known(name: str, same: float) -> None:
    cold, warm = (LlamaDecoder(make(name), 1024) for _ in range(2))
    warm.prefixes.most_bytes = 1_000_000_000
    block = warm.block
    first = prompt(3 * block - 5)
    shared = int(same * block)
    second = first[:shared] + prompt(block + 9, 1)
    tokens = [prompt(4, 2)]
    for ids, known in ((first, 0), (second, int(same) * block), (second, (len(second) - 1) // block * block)):
        row = Row(ids, 600)
        answer = decoded(warm, [row], tokens)
        assert row.known == known
        assert torch.equal(answer, decoded(cold, [Row(ids, 500)], tokens))
