import subprocess
import sys

import numpy as np
import pytest

from retrieval.index import SourceIndex


def unit(matrix: np.ndarray) -> np.ndarray:
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def random_embeddings(num: int, dim: int, *, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((num, dim)))


def slow_search(embeddings: np.ndarray, i: int, k: int) -> list[tuple[int, float]]:
    """The definition, in double precision."""
    scores = embeddings[:i].astype(np.float64) @ embeddings[i].astype(np.float64)
    scores = np.round(np.clip(scores, -1, 1), 6)
    order = sorted(range(i), key=lambda j: (-scores[j], -j))[:k]
    return [(j, float(scores[j])) for j in order]


@pytest.mark.parametrize(("num", "dim", "k"), [(50, 3, 4), (300, 64, 1), (300, 512, 7), (40, 16, 100)])
def test_equals_the_slow_search(num: int, dim: int, k: int) -> None:
    embeddings = random_embeddings(num, dim)
    index = SourceIndex(embeddings)
    for i in range(num):
        found, wanted = index.search_earlier(i, k)[:k], slow_search(embeddings, i, k)
        assert [segment for segment, _ in found] == [segment for segment, _ in wanted]
        assert [score for _, score in found] == pytest.approx([score for _, score in wanted], abs=2e-6)


@pytest.mark.parametrize("num", [10, 12, 100, 1000])
def test_equal_sources_are_ordered_most_recent_first(num: int) -> None:
    """However many there are, and wherever FAISS's summation order puts them."""
    one, other = random_embeddings(2, 512)
    embeddings = np.stack([other if i % 3 == 1 else one for i in range(num)])
    index = SourceIndex(embeddings)
    i = num - 1
    same = [j for j in range(i) if (j % 3 == 1) == (i % 3 == 1)][::-1]
    assert index.search_earlier(i, 3) == [(j, 1.0) for j in same]


def test_float_noise_is_a_tie() -> None:
    base = random_embeddings(1, 64)[0]
    noise = np.random.default_rng(1).standard_normal((200, 64)) * 1e-8
    index = SourceIndex(unit(base + noise))
    assert index.search_earlier(199, 3) == [(j, 1.0) for j in range(198, -1, -1)]


@pytest.mark.parametrize("slack", [0.0, 0.02, 0.3])
def test_slack_adds_all_that_are_nearly_as_good(slack: float) -> None:
    embeddings = random_embeddings(300, 8)
    index = SourceIndex(embeddings)
    for i in (1, 5, 60, 299):
        every = slow_search(embeddings, i, i)
        least = every[:3][-1][1] - slack
        wanted = [segment for segment, score in every if score >= least - 1e-6]
        assert [segment for segment, _ in index.search_earlier(i, 3, slack=slack)] == wanted


def test_only_earlier_segments_in_any_order_of_asking() -> None:
    embeddings = random_embeddings(60, 8)
    index = SourceIndex(embeddings)
    forward = [index.search_earlier(i, 3) for i in range(60)]
    assert forward[0] == []
    assert [len(found) for found in forward[:5]] == [0, 1, 2, 3, 3]
    assert all(segment < i for i, found in enumerate(forward) for segment, _ in found)
    order = np.random.default_rng(0).permutation(60)
    assert all(index.search_earlier(int(i), 3) == forward[i] for i in order)


def test_scores_are_float32_cosines() -> None:
    embeddings = np.array([[1, 0], [0.6, 0.8], [-1, 0], [1, 0]], dtype=np.float32)
    index = SourceIndex(embeddings)
    assert index.search_earlier(3, 3) == [(0, 1.0), (1, float(np.float32(0.6))), (2, -1.0)]
    assert index.score(3, 1) == float(np.float32(0.6))
    assert len(index) == 4


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (np.zeros((3, 4)), "segment 0 has norm 0"),
        (np.array([[1, 0], [np.nan, 0]]), "segment 1 has norm nan"),
        (np.array([[1, 0], [1, 1]]), "segment 1 has norm 1.41"),
        (np.array([[1, 0], [np.inf, 1]]), "segment 1 has norm inf"),
        (np.ones(4), r"shape \(4,\)"),
        (np.ones((4, 0)), r"shape \(4, 0\)"),
    ],
)
def test_embeddings_must_be_unit_rows(embeddings: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceIndex(embeddings.astype(np.float32))


@pytest.mark.parametrize(("i", "k", "message"), [(-1, 1, "segment is -1"), (3, 1, "segment is 3"), (1, -1, "k is -1")])
def test_unusable_questions(i: int, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceIndex(random_embeddings(3, 4)).search_earlier(i, k)


def test_needs_no_torch() -> None:
    """The driver plans, and stays small."""
    code = "import sys, pipeline.plan; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
