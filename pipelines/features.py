"""Plain content features in numpy, no network: colours, edges, words, bands.

A first content vector for every modality, for the first models and as a floor for encoders.
Every function returns float32 [n,f], standardised over the present rows; absent rows are zero.
"""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import scipy.sparse

BLOCK = 512  # rows worked on at once


def standardise(x: np.ndarray, present: np.ndarray, columns: bool = True) -> np.ndarray:
    """float32 [n,f]: mean 0, sd 1 over the present rows, clipped at 5 sd; absent rows zero.

    `columns=False` divides all columns by one common scale, which keeps their proportions.
    """
    rows = x[present].astype(np.float64)
    out = np.zeros(x.shape, np.float32)
    if len(rows):
        rows -= rows.mean(0)
        scale = rows.std(0) if columns else np.full(rows.shape[1], rows.std())
        out[present] = np.clip(rows / np.where(scale > 1e-6, scale, np.inf), -5, 5)
    return out


def _present(x: np.ndarray, present: np.ndarray | None) -> np.ndarray:
    return x.reshape(len(x), -1).any(1) if present is None else present


def image_features(images: np.ndarray, present: np.ndarray | None = None) -> np.ndarray:
    """uint8 [n,h,w,3] to float32 [n,384]: `describe_images`, standardised.

    Without `present` an all-black image counts as absent.
    """
    blocks = [describe_images(images[i : i + BLOCK]) for i in range(0, len(images), BLOCK)]
    return standardise(np.concatenate(blocks), _present(images, present))


def describe_images(images: np.ndarray) -> np.ndarray:
    """uint8 [n,h,w,3] to float32 [n,384]: colours 64, pixels 8x8x3, edges 4x4 cells x 8 angles.

    Colours are square roots of histogram shares, edges are gradient lengths by orientation
    (Dalal and Triggs, 2005).
    """
    parts = _colours(images), _pixels(images), _edges(images)
    return np.hstack(parts).astype(np.float32)


def _colours(images: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(images >> 6, 3, 0)  # 4 levels a channel
    return np.sqrt(_histogram((red << 4) | (green << 2) | blue, 64) / red[0].size)


def _histogram(bins: np.ndarray, n_bins: int, weights: np.ndarray | None = None) -> np.ndarray:
    """[n, n_bins]: counts, or sums of weights, of every image's bins [n,h,w]."""
    flat = bins + np.arange(len(bins), dtype=np.int32)[:, None, None] * n_bins
    weights = None if weights is None else weights.ravel()
    return np.bincount(flat.ravel(), weights, n_bins * len(bins)).reshape(-1, n_bins)


def _cell(size: int, cells: int) -> np.ndarray:
    """int32 [size]: which of `cells` even parts a row or column falls in."""
    return (np.arange(size) * cells // size).astype(np.int32)


def _pixels(images: np.ndarray) -> np.ndarray:
    """[n, 8*8*3]: mean colour of the parts, as two small matrix products."""
    down, across = (np.eye(8, dtype=np.float32)[_cell(s, 8)] for s in images.shape[1:3])
    down, across = (m / np.maximum(m.sum(0), 1) for m in (down, across))
    rows = np.einsum("nhwc,hp->nwcp", images.astype(np.float32) / 255, down, optimize=True)
    return np.einsum("nwcp,wq->npqc", rows, across, optimize=True).reshape(len(images), -1)


def _edges(images: np.ndarray) -> np.ndarray:
    """[n, 4*4*8]: gradient lengths, each shared by the two nearest of 8 angles in its cell."""
    grey = images @ np.full(3, 1 / 765, np.float32)
    down, right = np.gradient(grey, axis=(1, 2))
    length = np.hypot(down, right)
    angle = np.arctan2(down, right) * (8 / np.pi) % 8  # light to dark or dark to light is one
    low = np.minimum(angle.astype(np.int32), 7)
    share = angle - low
    h, w = grey.shape[1:]
    cell = (4 * _cell(h, 4)[:, None] + _cell(w, 4)) * 8
    cells = _histogram(cell + low, 128, length * (1 - share))
    cells += _histogram(cell + (low + 1) % 8, 128, length * share)
    return cells / (np.linalg.norm(cells, axis=1, keepdims=True) + 1e-6)


def text_features(texts: Sequence[str], dim: int = 64, seed: int = 0) -> np.ndarray:
    """float32 [n,dim]: TF-IDF, its leading singular directions; rows zero where ''.

    Columns beyond the rank are zero. All columns share one scale, so that the first ones weigh
    most (Deerwester et al., 1990). Deterministic by `seed`, signs included.
    """
    x = _leading(_tfidf(texts), dim, np.random.default_rng(seed))
    x *= np.sign((x**3).sum(0))  # a direction and its opposite are one: the longer tail is up
    present = np.array([bool(text) for text in texts], bool)
    return standardise(x, present, columns=False)


def hashed_text(texts: Sequence[str], dim: int = 1024) -> np.ndarray:
    """float32 [n,dim]: every word adds +1 or -1 at two hashed columns; rows of length one.

    No vocabulary and no statistics of the data (Weinberger et al., 2009, arXiv 0902.2206), so the
    same words give the same vector in every data set: what pretraining needs to be transferred.
    """
    out = np.zeros((len(texts), dim), np.float32)
    places: dict[str, list[tuple[int, float]]] = {}
    for row, text in enumerate(texts):
        for word in set(re.findall(r"\w+", text.lower())):
            if word not in places:
                digest = hashlib.blake2b(word.encode(), digest_size=16).digest()
                numbers = np.frombuffer(digest, "<u4")
                places[word] = [(int(x >> 1) % dim, 1.0 - 2.0 * (x & 1)) for x in numbers[:2]]
            for column, sign in places[word]:
                out[row, column] += sign
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-6)


def _leading(x: scipy.sparse.csr_array, dim: int, rng: np.random.Generator) -> np.ndarray:
    """[n,dim]: U S of the truncated SVD by a random sketch (Halko et al., 2011, algorithm 4.4).

    Exact where the rank is at most dim + 16; four power steps make it close where it is not.
    """
    width = min(dim + 16, *x.shape)
    basis = _orthonormal(x @ rng.normal(size=(x.shape[1], width)))
    for _ in range(4):
        basis = _orthonormal(x @ (x.T @ basis))
    small = x.T @ basis
    squares, turn = np.linalg.eigh(small.T @ small)
    kept = np.flatnonzero(squares > 1e-12 * squares.max(initial=1e-12))[::-1][:dim]
    out = np.zeros((x.shape[0], dim))
    out[:, : len(kept)] = basis @ turn[:, kept] * np.sqrt(squares[kept])
    return out


def _orthonormal(x: np.ndarray) -> np.ndarray:
    """[n, rank]: an orthonormal basis of the columns, by the eigenvectors of the small Gram matrix.

    Twice, for the precision of a QR decomposition, which is many times slower on busy cores.
    """
    for _ in range(2):
        squares, turn = np.linalg.eigh(x.T @ x)
        kept = squares > 1e-12 * squares.max(initial=1e-300)
        x = x @ (turn[:, kept] / np.sqrt(squares[kept]))
    return x


def _tfidf(texts: Sequence[str]) -> scipy.sparse.csr_array:
    """[n, words]: (1 + ln tf) ln((n+1)/df), rows of length one (Salton and Buckley, 1988)."""
    words, rows, columns = {}, [], []
    for row, text in enumerate(texts):
        for word in re.findall(r"\w+", text.lower()):
            rows.append(row)
            columns.append(words.setdefault(word, len(words)))
    shape = (len(texts), max(len(words), 1))
    counts = scipy.sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape)
    counts.sum_duplicates()
    df = np.bincount(counts.indices, minlength=shape[1])
    counts.data = (1 + np.log(counts.data)) * np.log((len(texts) + 1) / np.maximum(df, 1))[
        counts.indices
    ]
    norms = np.sqrt((counts**2).sum(1))
    return scipy.sparse.dia_array((1 / np.maximum(norms, 1e-12), 0), [len(texts)] * 2) @ counts


def sound_features(sounds: np.ndarray, rate: int, present: np.ndarray | None = None) -> np.ndarray:
    """float32 [n,samples] to float32 [n,64]: `describe_sounds`, standardised.

    Without `present` a silent row counts as absent.
    """
    return standardise(describe_sounds(sounds, rate), _present(sounds, present))


def describe_sounds(sounds: np.ndarray, rate: int, bands: int = 32) -> np.ndarray:
    """float32 [n,samples] to float32 [n, 2*bands]: mean and sd over frames of log band energies.

    Frames of 32 ms, half overlapping, Hann window, triangular bands on the mel scale from 50 Hz
    to rate/2 (Davis and Mermelstein, 1980). Frames of zeros, which is padding, do not count.
    """
    width = min(sounds.shape[1], 2 * round(rate * 0.016))
    filters, window = _mel(width, rate, bands), np.hanning(width).astype(np.float32)
    out = np.zeros((len(sounds), 2 * bands), np.float32)
    for row, sound in enumerate(sounds):
        frames = np.lib.stride_tricks.sliding_window_view(sound, width)[:: width // 2]
        frames = frames[frames.any(1)]
        if len(frames):
            energy = np.log(np.abs(np.fft.rfft(frames * window)) ** 2 @ filters + 1e-6)
            out[row] = np.concatenate([energy.mean(0), energy.std(0)])
    return out


def _mel(width: int, rate: int, bands: int) -> np.ndarray:
    """[frequencies, bands]: triangles with corners evenly spaced in mel = 1127 ln(1 + f/700)."""
    low, high = 1127 * np.log1p(np.array([50, rate / 2]) / 700)
    corners = 700 * np.expm1(np.linspace(low, high, bands + 2) / 1127)
    f = np.fft.rfftfreq(width, 1 / rate)[:, None]
    rise = (f - corners[:-2]) / (corners[1:-1] - corners[:-2])
    fall = (corners[2:] - f) / (corners[2:] - corners[1:-1])
    return np.maximum(0, np.minimum(rise, fall)).astype(np.float32)
