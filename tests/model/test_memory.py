import pytest

from model.memory import kernel_name, memory_kernel, temporal_start


def test_relevance_decides_the_kernel() -> None:
    assert memory_kernel("previous") == (1, 2, 2)
    assert [memory_kernel("retrieved", rank) for rank in range(5)] == [(1, 4, 4)] * 3 + [(1, 8, 8)] * 2
    with pytest.raises(ValueError, match='needs "previous" or "retrieved"'):
        memory_kernel("recent", 0)


def test_three_disjoint_temporal_ranges() -> None:
    assert (temporal_start("previous", 5), temporal_start("retrieved", 5)) == (5, 10)
    assert kernel_name((1, 4, 4)) == "1x4x4"
