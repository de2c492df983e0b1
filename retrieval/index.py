"""Which earlier segments of a video are most like this one: exact inner product, FAISS's one door.

Knows nothing of shots, roles or kernels (`pipeline/plan.py`). The paper ranks earlier SOURCE segments by cosine
similarity (App. D.2, Alg. 2). A film has hundreds of segments: exact search is right and takes well under a
millisecond (`faiss.IndexFlatIP`).
"""

import faiss
import numpy as np
from jaxtyping import Float

# Summation order may move a score by an ulp. Scores closer than this are ties, and ties are broken by a rule.
SCORE_DECIMALS = 6
TIE = 10.0**-SCORE_DECIMALS
UNIT_NORM_TOLERANCE = 1e-3


class SourceIndex:
    """The embeddings of a video's source segments, in order, unit norm.

    Raises:
        ValueError: if `embeddings` is not a finite matrix of unit rows; names the first segment that is not.
    """

    def __init__(self, embeddings: Float[np.ndarray, "segments dim"]) -> None:
        matrix = np.ascontiguousarray(embeddings, dtype=np.float32)
        if matrix.ndim != 2 or not matrix.shape[1]:
            raise ValueError(f"embeddings have shape {matrix.shape}; needs [segments, dim] with dim above 0")
        norms = np.linalg.norm(matrix, axis=1)
        for segment in np.flatnonzero(~(np.abs(norms - 1) <= UNIT_NORM_TOLERANCE))[:1]:
            raise ValueError(f"embedding of segment {segment} has norm {norms[segment]}; needs 1")
        faiss.omp_set_num_threads(1)
        self.embeddings = matrix
        self._index = faiss.IndexFlatIP(matrix.shape[1])

    def __len__(self) -> int:
        return len(self.embeddings)

    def score(self, i: int, j: int) -> float:
        """Cosine of segments `i` and `j`, in [-1, 1]."""
        return float(rounded(np.dot(self.embeddings[i : i + 1], self.embeddings[j]))[0])

    def search_earlier(self, i: int, k: int, *, slack: float = 0.0) -> list[tuple[int, float]]:
        """The `k` best of the segments before `i`, and all that score at most `slack` less than the k-th, ties included.

        As (segment, score): best score first, then most recent first. Fastest when `i` only grows.
        """
        if not 0 <= i < len(self):
            raise ValueError(f"segment is {i}; needs 0 to {len(self) - 1}")
        if k < 0:
            raise ValueError(f"k is {k}; needs 0 or more")
        k = min(k, i)
        if not k:
            return []
        if self._index.ntotal > i:
            self._index.reset()
        if self._index.ntotal < i:
            self._index.add(self.embeddings[self._index.ntotal : i])
        query = self.embeddings[i : i + 1]
        # A few more than asked for mostly show where the slack ends; only if not, all candidates down to there are needed.
        scores, ids = self._index.search(query, min(i, k + 8))
        worst = float(scores[0, k - 1]) - slack - 4 * TIE
        if scores.shape[1] < i and float(scores[0, -1]) >= worst:
            _, scores_found, ids_found = self._index.range_search(query, worst)
        else:
            scores_found, ids_found = scores[0], ids[0]
        ranked = rounded(scores_found)
        order = np.lexsort((-ids_found, -ranked))
        least = float(ranked[order[k - 1]]) - slack - TIE / 2
        return [(int(ids_found[place]), float(ranked[place])) for place in order if ranked[place] >= least]


def rounded(scores: np.ndarray) -> Float[np.ndarray, "..."]:
    """Scores as they are ordered and frozen: on a grid of 1e-6, in [-1, 1], float32."""
    return np.clip(np.round(scores.astype(np.float64), SCORE_DECIMALS), -1.0, 1.0).astype(np.float32)
