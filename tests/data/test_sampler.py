"""Batches of similar lengths, the same for everybody who knows seed and epoch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt_lightning.data.sampler import LengthSampler, length_batches

some_lengths = st.lists(st.integers(1, 300), min_size=1, max_size=60)


@settings(deadline=None)
@given(some_lengths, st.integers(1, 70), st.booleans())
def test_each_text_comes_once_in_as_few_batches_as_can_be_none_of_them_much_smaller(
    lengths: list[int], batch_size: int, shuffle: bool
) -> None:
    generator = torch.Generator().manual_seed(0) if shuffle else None
    batches = length_batches(lengths, batch_size, generator)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // batch_size)
    sizes = {len(batch) for batch in batches}
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_a_batch_has_similar_lengths() -> None:
    lengths = torch.randint(20, 200, (1000,), generator=torch.Generator().manual_seed(0)).tolist()
    batches = length_batches(lengths, 50, torch.Generator().manual_seed(1))
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    assert padded < 1.2 * sum(lengths)
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest != sorted(longest), "but the batches come in any order"


def sampler(
    rank: int = 0, world_size: int = 1, batch_size: int = 4, shuffle: bool = True, n: int = 22
) -> LengthSampler:
    return LengthSampler([5 * (i % 7) + 9 for i in range(n)], batch_size, shuffle, world_size, rank)


def test_seed_and_epoch_decide_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def epoch(number: int, seed: str) -> list[list[int]]:
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        one = sampler()
        one.set_epoch(number)
        list(one)  # having been read before makes no difference
        return list(one)

    assert epoch(3, "1") == epoch(3, "1")
    assert epoch(3, "1") != epoch(4, "1")
    assert epoch(3, "1") != epoch(3, "2")


@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_share_the_batches_of_one_that_has_as_much_room_as_all(shuffle: bool) -> None:
    alone = list(sampler(batch_size=6, shuffle=shuffle))
    shares = [list(sampler(rank, 3, 2, shuffle)) for rank in range(3)]
    assert {len(share) for share in shares} == {len(alone), len(sampler(0, 3, 2))}
    for whole, *parts in zip(alone, *shares, strict=True):
        assert sorted(i for part in parts for i in part) == sorted(whole)
        assert max(map(len, parts)) <= 2


def test_too_few_for_all_processes_are_taken_by_each_and_counted_by_the_first() -> None:
    for n in (1, 2):
        shares = [[row for batch in sampler(rank, world_size=3, n=n) for row in batch] for rank in range(3)]
        assert sorted(shares[0]) == list(range(n))
        for share in shares[1:]:
            assert sorted(~row for row in share) == list(range(n))
