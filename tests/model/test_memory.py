import pytest

from model.memory import MemorySettings, kernel_name, memory_kernel, temporal_start


def test_relevance_decides_the_kernel() -> None:
    relevant = [(1, 4, 4)] * 3 + [(1, 8, 8)] * 2
    for is_anchored in (False, True):
        assert memory_kernel("previous", is_anchored=is_anchored) == (1, 2, 2)
        assert [memory_kernel("retrieved", rank, is_anchored=is_anchored) for rank in range(5)] == relevant
    assert memory_kernel("previous", kernels="anchored") == (1, 2, 2)
    assert memory_kernel("previous", kernels="anchored", is_anchored=True) == (1, 4, 4)
    assert [memory_kernel("retrieved", rank, kernels="anchored", is_anchored=True) for rank in range(5)] == [
        (1, 2, 2), (1, 4, 4), (1, 4, 4), (1, 8, 8), (1, 8, 8)
    ]  # fmt: skip
    with pytest.raises(ValueError, match='needs "previous" or "retrieved"'):
        memory_kernel("recent", 0)
    for kernels, kernel in (("fine", (1, 2, 2)), ("coarse", (1, 8, 8))):
        assert memory_kernel("previous", kernels=kernels) == kernel
        assert {memory_kernel("retrieved", rank, kernels=kernels) for rank in range(5)} == {kernel}


def test_settings_leave_nothing_open_once_they_are_resolved() -> None:
    def merged(**settings: object) -> tuple:
        found = MemorySettings(**settings).resolved(sampler)
        assert found.resolved({"merging_share": 0.9}) == found
        return found.merging, found.merging_share

    sampler: dict = {"shift": 5.0}
    assert merged() == merged(merging="off") == ("off", 0.0)
    assert merged(merging="discard-high") == ("discard-high", 0.5)
    sampler = {"merging_share": 0.4}
    assert merged() == ("merge-low", 0.4)
    assert merged(merging="off") == ("off", 0.0)
    assert merged(merging="merge-high", merging_share=0.7) == ("merge-high", 0.7)
    kept = MemorySettings(kernels="fine", has_source=False).resolved(sampler)
    assert (kept.kernels, kept.has_source) == ("fine", False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernels": "tiny"}, "kernels is 'tiny'; needs one of anchored, dynamic, fine, coarse"),
        ({"merging": "low"}, "merging is 'low'; needs one of off, merge-low, merge-high, discard-low, discard-high"),
        ({"merging_share": 0.5}, "merging_share is 0.5; needs merging to be given with it"),
        ({"merging": "off", "merging_share": 0.5}, "merging_share is 0.5 and merging is off"),
        ({"merging": "merge-low", "merging_share": 1.5}, "merging_share is 1.5; needs above 0, to 1"),
        ({"merging": "merge-low", "merging_share": 0.0}, "merging_share is 0.0; needs above 0, to 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MemorySettings(**settings)


def test_three_disjoint_temporal_ranges() -> None:
    assert (temporal_start("previous", 5), temporal_start("retrieved", 5)) == (5, 10)
    assert (temporal_start("previous", 5, positions="reversed"), temporal_start("previous", 5, positions="shared")) == (
        5,
        0,
    )
    assert kernel_name((1, 4, 4)) == "1x4x4"
