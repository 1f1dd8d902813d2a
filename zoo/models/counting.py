"""Counting on the host: item graphs from train interactions and from content, sparse and exact.

Matrices are [n,n], n = items + 1, row and column 0 the padding item; float64 while they are
counted, so that equal counts give equal scores after the one rounding to float32. A history list
is flat: `values` item ids [e], oldest first, `offsets` int64 [u+1], as in a training table.
"""

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
from scipy.linalg import lapack


def user_items(values: np.ndarray, offsets: np.ndarray, n: int) -> sp.csr_array:
    """X [u,n], 1 where the user has the item, however often."""
    ones = np.ones(len(values))
    x = sp.csr_array((ones, values, offsets), shape=(len(offsets) - 1, n))
    x.sum_duplicates()
    x.data[:] = 1.0
    return x


def transitions(values: np.ndarray, offsets: np.ndarray, n: int, lag: int = 1) -> sp.csr_array:
    """How often the column item came `lag` places after the row item in one history."""
    users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    same = users[:-lag] == users[lag:]
    pairs = values[:-lag][same], values[lag:][same]
    return sp.coo_array((np.ones(len(pairs[0])), pairs), shape=(n, n)).tocsr()


def _scaled(matrix: sp.csr_array, left: np.ndarray, right: np.ndarray) -> sp.csr_array:
    scaled = sp.diags_array(left) @ matrix @ sp.diags_array(right)
    return sp.csr_array(scaled)


def _without_diagonal(matrix: sp.csr_array) -> sp.csr_array:
    matrix = sp.csr_array(matrix - sp.diags_array(matrix.diagonal()))
    matrix.eliminate_zeros()
    return matrix


def markov_matrix(values: np.ndarray, offsets: np.ndarray, n: int) -> sp.csr_array:
    """First-order transition shares: T1[i,j] = #(i then j) / #(i then anything)."""
    counts = transitions(values, offsets, n)
    return _scaled(counts, 1.0 / np.maximum(counts.sum(axis=1), 1.0), np.ones(n))


def co_occurrence(x: sp.csr_array) -> sp.csr_array:
    """C = XᵀX without its diagonal: users that have both items."""
    return _without_diagonal(x.T @ x)


def cosine_knn(x: sp.csr_array) -> sp.csr_array:
    """Item-item cosine over users, K_ij = C_ij / √(c_i c_j) (Sarwar et al. 2001)."""
    root = 1.0 / np.sqrt(np.maximum(x.sum(axis=0), 1.0))
    return _scaled(co_occurrence(x), root, root)


def sequence_counts(
    values: np.ndarray, offsets: np.ndarray, n: int, window: int = 20
) -> sp.csr_array:
    """C[i,j] = Σ 1/(t'−t) over all j at most `window` places after i in one history."""
    longest = int(np.diff(offsets).max(initial=1))
    counts = sp.csr_array((n, n))
    for lag in range(1, min(window, longest - 1) + 1):
        counts = counts + transitions(values, offsets, n, lag) / lag
    return sp.csr_array(counts)


def sr_matrix(
    counts: sp.csr_array, alpha: tuple[float, float] = (0.5, 0.25), symmetry: float = 0.3
) -> sp.csr_array:
    """SR-graph: C + ςCᵀ divided by powers of its row and column sums.

    Sequential rules (Ludewig & Jannach 2018) with backward steps and degree normalisation:
    M = diag(r)^−α1 (C + ςCᵀ) diag(c)^−α2.
    """
    both = sp.csr_array(counts + symmetry * counts.T)
    rows, columns = both.sum(axis=1) + 1e-9, both.sum(axis=0) + 1e-9
    return _scaled(both, rows ** -alpha[0], columns ** -alpha[1])


def cf_counts(x: sp.csr_array) -> sp.csr_array:
    """offdiag(Xᵀ D_u^−½ X): co-occurrence in which a user with many items counts less."""
    weight = sp.diags_array((x.sum(axis=1) + 1e-9) ** -0.5)
    return _without_diagonal(x.T @ weight @ x)


def cf_matrix(
    counts: sp.csr_array, degree: np.ndarray, c: tuple[float, float] = (0.25, 0.1)
) -> sp.csr_array:
    """CF-graph: W = D_i^−c1 offdiag(Xᵀ D_u^−½ X) D_i^−c2; `degree` [n] are train counts."""
    return _scaled(counts, (degree + 1e-9) ** -c[0], (degree + 1e-9) ** -c[1])


def ease_matrix(x: sp.csr_array, lam: float) -> np.ndarray:
    """EASE (Steck 2019, eq. 8): B float32 [n,n], s(u) = x_u B; zero diagonal.

    P = (XᵀX + λI)⁻¹ by Cholesky, in the one array of 4n² bytes that it returns.
    Raises ValueError where λ is too small for float32.
    """
    gram = x.T @ x
    table = np.zeros(gram.shape, np.float32, order="F")
    gram.astype(np.float32).toarray(out=table)
    table[np.diag_indices_from(table)] += np.float32(lam)
    factor, failed = lapack.spotrf(table, lower=1, clean=0, overwrite_a=1)
    if failed:
        raise ValueError(
            f"EASE with lam={lam} on {gram.shape[0]} items: the float32 Cholesky failed at row "
            f"{failed}. lam must be positive; take a larger one."
        )
    inverse, _ = lapack.spotri(factor, lower=1, overwrite_c=1)
    inverse = inverse.T  # the same symmetric numbers in row order, as sparse products want them
    _mirror_upper(inverse)
    diagonal = np.diagonal(inverse).copy()
    inverse /= -diagonal[None, :]
    np.fill_diagonal(inverse, 0.0)
    return inverse


def _mirror_upper(square: np.ndarray, block: int = 1024) -> None:
    """Copy the upper triangle onto the lower one, in place and block by block."""
    for at in range(0, len(square), block):
        end = min(at + block, len(square))
        square[end:, at:end] = square[at:end, end:].T
        corner = square[at:end, at:end]
        corner[:] = np.triu(corner) + np.triu(corner, 1).T


def tfidf(
    items: np.ndarray, words: np.ndarray, n: int, n_items: int, smooth: bool = True
) -> sp.csr_array:
    """Word sets as unit rows [n,v]; weight ln((N+1)/df), or ln(N/df) without `smooth`.

    `items`, `words` [w]: one entry for each distinct word id of an item.
    """
    if not len(words):
        raise ValueError("tfidf got no words at all: leave the text floors out for such data.")
    sets = sp.csr_array((np.ones(len(items)), (items, words)), shape=(n, int(words.max()) + 1))
    sets.sum_duplicates()
    sets.data[:] = 1.0
    frequency = np.maximum(sets.sum(axis=0), 1.0)
    weighted = sp.csr_array(sets @ sp.diags_array(np.log((n_items + smooth) / frequency)))
    norms = np.sqrt((weighted * weighted).sum(axis=1)) + 1e-9
    return sp.csr_array(sp.diags_array(1.0 / norms) @ weighted)


def unit_rows(features: np.ndarray, present: np.ndarray | None = None) -> np.ndarray:
    """Feature rows [n,f] at length 1, float32; rows of items without the modality are zero."""
    rows = np.asarray(features, np.float64)
    rows = rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-9)
    if present is not None:
        rows = np.where(present[:, None], rows, 0.0)
    rows[0] = 0.0
    return rows.astype(np.float32)


def content_neighbours(rows: sp.csr_array | np.ndarray, k: int = 10, block: int = 512):
    """T [n,n]: the k largest positive cosines of each unit row without itself, as values.

    Ties go to the smaller id. `rows` [n,f] sparse or dense; only [n,block] is ever dense.
    """
    n = rows.shape[0]
    parts = []
    for at in range(0, n, block):
        some = rows[at : at + block]
        some = some.toarray() if sp.issparse(some) else some
        cosine = (rows @ some.T).T.astype(np.float32)
        cosine[np.arange(len(some)), np.arange(at, at + len(some))] = 0.0
        parts.append(_largest(cosine, k))
    return sp.vstack(parts, format="csr")


def _largest(scores: np.ndarray, k: int) -> sp.csr_array:
    """The k largest positive entries of each row; ties to the smaller column."""
    k = min(k, scores.shape[1])
    least = np.partition(scores, -k, axis=1)[:, -k]
    rows, columns = np.nonzero(scores >= np.maximum(least, np.finfo(np.float32).tiny)[:, None])
    values = scores[rows, columns].astype(np.float64)
    order = np.lexsort((columns, -values, rows))  # ties of the k-th may stand in for more than k
    kept = order[np.arange(len(rows)) - np.searchsorted(rows, rows) < k]
    return sp.csr_array((values[kept], (rows[kept], columns[kept])), shape=scores.shape)


def content_parts(graph: sp.csr_array, content: sp.csr_array) -> list[sp.csr_array]:
    """[M, T̃, TM + MT]: what is mixed; T̃ is T scaled to the total weight of M."""
    scaled = content * (graph.sum() / max(content.sum(), 1e-12))  # content may have no edge
    return [graph, sp.csr_array(scaled), sp.csr_array(content @ graph + graph @ content)]


def fuse_content(graph: sp.csr_array, content: sp.csr_array, g: float, h: float) -> sp.csr_array:
    """M' = M + g·T̃ + h·(TM + MT): neighbours of neighbours reach items nobody has seen yet."""
    m, t, crossed = content_parts(graph, content)
    return sp.csr_array(m + g * t + h * crossed)


def ell(matrix: sp.csr_array, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """The `keep` largest positive entries of each row: ids int32 [n,keep], weights float32.

    0 and 0 stand behind them. Ties at the border go to the smaller id.
    """
    n = matrix.shape[0]
    best = sp.vstack(
        [_largest(matrix[at : at + 64].toarray(), keep) for at in range(0, n, 64)], format="csr"
    )
    lengths = np.diff(best.indptr)
    rows, place = np.repeat(np.arange(n), lengths), np.arange(best.nnz)
    place = place - np.repeat(best.indptr[:-1], lengths)
    ids, weights = np.zeros((n, keep), np.int32), np.zeros((n, keep), np.float32)
    ids[rows, place], weights[rows, place] = best.indices, best.data
    return ids, weights


def history_weights(
    values: np.ndarray, offsets: np.ndarray, n: int, depth: int | None = None, decay: float = 0.0
) -> sp.csr_array:
    """H [b,n]: (k+1)^−decay at the item k places before the end, for the last `depth` items."""
    lengths = np.diff(offsets)
    age = np.repeat(offsets[1:], lengths) - 1 - np.arange(offsets[0], offsets[-1])
    kept = age < (len(values) if depth is None else depth)
    rows = np.repeat(np.arange(len(lengths)), lengths)[kept]
    items = values[offsets[0] : offsets[-1]][kept]
    weights = (age[kept] + 1.0) ** -decay
    return sp.coo_array((weights, (rows, items)), shape=(len(lengths), n)).tocsr()


def history_scores(
    parts: list, histories: sp.csr_array, block: int = 64
) -> Iterator[tuple[slice, list[np.ndarray]]]:
    """H M for each matrix M of `parts`, dense float32 [block,n], block by block."""
    for at in range(0, histories.shape[0], block):
        rows = slice(at, min(at + block, histories.shape[0]))
        some = histories[rows]
        products = [some.astype(part.dtype) @ part for part in parts]
        yield rows, [_dense(p) if sp.issparse(p) else p for p in products]


def _dense(product: sp.csr_array) -> np.ndarray:
    """float32; `astype` of the matrix would sort it first."""
    data = product.data.astype(np.float32)
    return sp.csr_array((data, product.indices, product.indptr), shape=product.shape).toarray()
