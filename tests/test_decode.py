"""Beam search over the codes that exist: exact when wide, held to filters, cached or not."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import decode
from zoo import trie as tries

SIZES = (3, 4, 5)


def catalogue(n: int = 30, seed: int = 0, collisions: int = 0) -> np.ndarray:
    """int[n+1,3]: distinct codes but for the last `collisions` items; row 0 is padding."""
    rng = np.random.default_rng(seed)
    every = np.stack(np.unravel_index(rng.permutation(np.prod(SIZES)), SIZES), axis=1)
    codes = every[:n]
    codes[n - collisions :] = codes[:collisions]
    return np.concatenate([np.zeros((1, 3), int), codes])


def build(codes: np.ndarray, **fields) -> tries.Trie:
    return tries.build(codes, SIZES, np.arange(len(codes)) > 0, **fields)


class Model:
    """Log-probabilities of every next token by prefix and row: a table, and so a ground truth."""

    def __init__(self, batch: int, seed: int = 1):
        rng = np.random.default_rng(seed)
        shapes = [(batch, *SIZES[: i + 1]) for i in range(3)]
        self.tables = [np.log(rng.dirichlet(np.ones(s[-1]), s[:-1])) for s in shapes]

    def step(self, past, tokens, level):
        """`past` are the tokens so far [b,w,level]: what a cache would be made of."""
        rows = jnp.arange(len(self.tables[0]))[:, None]
        if level == 0:
            return jnp.asarray(self.tables[0], jnp.float32)[:, None], jnp.zeros((len(rows), 1, 0))
        past = jnp.concatenate([past, tokens[:, :, None]], axis=-1)
        at = tuple(past[:, :, i].astype(int) for i in range(level))
        return jnp.asarray(self.tables[level], jnp.float32)[(rows, *at)], past

    def exact(self, codes: np.ndarray) -> np.ndarray:
        """float[b,n]: the log-probability of every item."""
        parts = [t[(slice(None), *codes.T[: i + 1])] for i, t in enumerate(self.tables)]
        return np.sum(parts, axis=0)


def generate(model: Model, trie: tries.Trie, k: int, batch: int, beam: int, **arrays):
    fixed = {"k": k, "batch": batch, "beam": beam}
    flags = {name: arrays.pop(name) for name in ("renormalise",) if name in arrays}
    return jax.jit(partial(decode.generate, model.step, **fixed, **flags))(trie=trie, **arrays)


def ranked(scores: np.ndarray, keep: np.ndarray) -> list[list[int]]:
    """Items by score, then id, of those kept [b,n]."""
    order = [np.lexsort((np.arange(len(row)), -row)) for row in scores]
    return [[int(i) for i in o if k[i]] for o, k in zip(order, keep, strict=True)]


def listed(ids) -> list[list[int]]:
    return [[int(i) for i in row if i > 0] for row in np.asarray(ids)]


@pytest.mark.parametrize("collisions", [0, 7])
def test_a_beam_as_wide_as_the_catalogue_is_the_exact_ranking(collisions):
    codes, model = catalogue(collisions=collisions), Model(4)
    exact = model.exact(codes)
    exact[:, 0] = -np.inf
    ids, scores = generate(model, build(codes), 30, 4, 30)
    assert listed(ids) == ranked(exact, np.isfinite(exact))
    np.testing.assert_allclose(scores, np.take_along_axis(exact, np.asarray(ids), 1), atol=1e-5)


def test_history_and_filters_are_as_if_those_items_did_not_exist():
    codes, model = catalogue(collisions=5), Model(3)
    rng = np.random.default_rng(5)
    allowed = rng.random(len(codes)) < 0.6
    allowed[0] = False
    exclude = rng.integers(0, len(codes), (3, 8))
    exclude[:, 1] = exclude[:, 0]  # the same item twice
    keep = np.broadcast_to(allowed, (3, len(codes))).copy()
    np.put_along_axis(keep, exclude, False, axis=1)
    run = jax.jit(partial(decode.generate, model.step, k=4, batch=3, beam=5))
    ids, scores = run(trie=build(codes), allowed=jnp.asarray(allowed), exclude=jnp.asarray(exclude))
    for row in range(3):
        other = tries.build(codes, SIZES, keep[row])
        found, likely = run(trie=other)
        assert listed(ids)[row] == listed(found)[row]
        np.testing.assert_allclose(scores[row], likely[row], atol=1e-6)


def test_another_filter_is_no_new_compilation():
    codes, model = catalogue(), Model(2)
    traces = []

    def run(trie, allowed):
        traces.append(1)
        return decode.generate(model.step, trie, 3, 2, 8, allowed)

    run, trie = jax.jit(run), build(codes)
    for seed in range(3):
        allowed = np.random.default_rng(seed).random(len(codes)) < 0.3
        ids, _ = run(trie, jnp.asarray(allowed))
        assert all(allowed[i] for row in listed(ids) for i in row)
    some = tries.build(codes, allowed=np.arange(len(codes)) % 2 == 1, like=trie)
    assert all(i % 2 for row in listed(run(some, jnp.ones(len(codes), bool))[0]) for i in row)
    assert len(traces) == 1


def test_fewer_items_than_places_leave_places_empty():
    codes, model = catalogue(), Model(2)
    allowed = jnp.arange(len(codes)) == 7
    ids, scores = generate(model, build(codes), 5, 2, 10, allowed=allowed)
    assert np.asarray(ids).tolist() == [[7, 0, 0, 0, 0]] * 2
    assert np.isneginf(np.asarray(scores)[:, 1:]).all()
    ids, _ = generate(model, build(codes), 5, 2, 10, allowed=allowed, exclude=jnp.full((2, 1), 7))
    assert not np.asarray(ids).any()


def test_a_beam_of_one_is_greedy():
    codes, model = catalogue(), Model(3)
    ids, _ = generate(model, build(codes), 1, 3, 1)
    for row in range(3):
        left = codes[1:]
        for level in range(3):
            p = [model.tables[level][(row, *c[: level + 1])] for c in left]
            left = left[[c[level] == left[int(np.argmax(p))][level] for c in left]]
        assert codes[int(ids[row, 0])].tolist() == left[0].tolist()


def test_rows_do_not_depend_on_their_batch_nor_on_padding_of_the_trie():
    codes, model = catalogue(), Model(4)
    trie = build(codes)
    whole, scores = generate(model, trie, 6, 4, 8)
    padded, _ = generate(model, build(codes, parts=8), 6, 4, 8)
    assert np.array_equal(whole, padded)
    model.tables = [t[2:3] for t in model.tables]
    one, alone = generate(model, trie, 6, 1, 8)
    assert np.array_equal(one[0], whole[2])
    np.testing.assert_allclose(alone[0], scores[2], atol=1e-6)


def test_renormalised_scores_are_probabilities_of_what_exists():
    codes, model = catalogue(), Model(2)
    _, scores = generate(model, build(codes), 30, 2, 30, renormalise=True)
    np.testing.assert_allclose(np.exp(np.asarray(scores)).sum(1), 1, atol=1e-5)
