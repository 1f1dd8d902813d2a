"""The trie: allowed tokens by brute force, every path ends at an item, moulds, odd catalogues."""

from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FIXTURES

from zoo import trie as tries


def after(codes: np.ndarray) -> dict[tuple, set[int]]:
    """By brute force: prefix -> the tokens that may follow it."""
    out = defaultdict(set)
    for row in codes.tolist():
        for level, token in enumerate(row):
            out[tuple(row[:level])].add(token)
    return out


def walk(trie: tries.Trie, prefix: tuple) -> int:
    """The state of a prefix, step by step through `children`, on the host's copy of the trie."""
    state = jnp.asarray(tries.ROOT)
    for token in prefix:
        state = STEP(trie, state, jnp.asarray(token))
    return int(state)


STEP = jax.jit(tries.children)
MASK = jax.jit(tries.mask, static_argnums=2)


def published() -> np.ndarray:
    """20 items of three tokens, of one vocabulary with level offsets."""
    return np.load(FIXTURES / "t5_trie_beam.npz")["items"]


def test_allowed_tokens_of_the_published_catalogue():
    codes = published()
    trie = tries.build(codes, (42, 42, 42))
    for prefix, expected in after(codes).items():
        state = walk(trie, prefix)
        allowed = MASK(trie, jnp.asarray([state]), len(prefix))[0]
        assert set(np.flatnonzero(allowed).tolist()) == expected
        tokens = jnp.arange(-1, 43)
        onward = np.asarray(tries.children(trie, jnp.full_like(tokens, state), tokens))
        assert set(np.asarray(tokens)[onward >= 0].tolist()) == expected


def test_the_published_beams_are_items_and_their_scores_are_theirs():
    z = np.load(FIXTURES / "t5_trie_beam.npz")
    trie = tries.build(z["items"], (42, 42, 42))
    for beams, scores, exact in zip(
        z["out_beam_items"], z["out_beam_scores"], z["out_item_logprob"], strict=True
    ):
        states = jnp.zeros(len(beams), jnp.int32)
        for level in range(3):
            states = STEP(trie, states, jnp.asarray(z["items"][beams, level]))
        found = np.asarray(tries.items(trie, states))[:, 0]
        np.testing.assert_array_equal(found, beams)
        np.testing.assert_allclose(exact[found], scores, atol=1e-5)


def test_every_greedy_path_through_the_masks_ends_at_its_item():
    rng = np.random.default_rng(0)
    codes = np.unique(rng.integers(0, [5, 9, 7], (60, 3)), axis=0)
    codes = rng.permutation(codes)
    trie = tries.build(codes, (5, 9, 7))
    state = jnp.zeros(300, jnp.int32)
    chosen = []
    for level, size in enumerate(trie.sizes):
        scores = jnp.asarray(rng.normal(size=(300, size)))
        token = jnp.where(MASK(trie, state, level), scores, -1e9).argmax(1)
        tokens, onward, exists = tries.candidates(trie, state, level)
        at = ((tokens == token[:, None]) & exists).argmax(1)
        state = STEP(trie, state, token)
        np.testing.assert_array_equal(jnp.take_along_axis(onward, at[:, None], 1)[:, 0], state)
        chosen.append(token)
    rows = np.asarray(tries.items(trie, state))[:, 0]
    np.testing.assert_array_equal(codes[rows], np.stack(chosen, 1))
    assert len(set(rows.tolist())) > len(codes) / 2


def test_a_collision_keeps_its_items_at_one_leaf_smallest_first():
    trie = tries.build(np.asarray([[1, 1], [0, 2], [1, 1], [0, 0]]))
    leaf = jnp.asarray([walk(trie, (1, 1)), walk(trie, (0, 2)), tries.DEAD])
    np.testing.assert_array_equal(tries.items(trie, leaf, 3), [[0, 2, -1], [1, -1, -1], [-1] * 3])
    below = tries.items(trie, jnp.asarray([walk(trie, (0,))]), 2)
    np.testing.assert_array_equal(below, [[3, 1]])


def test_a_dead_beam_stays_dead():
    trie = tries.build(published(), (42, 42, 42))
    dead = jnp.asarray([tries.DEAD, tries.DEAD])
    np.testing.assert_array_equal(STEP(trie, dead, jnp.asarray([2, 3])), dead)
    assert not MASK(trie, dead, 0).any()
    assert not tries.candidates(trie, dead, 1)[2].any()


def test_one_item_one_prefix_and_unequal_branching():
    one = tries.build(np.asarray([[3, 0, 2]]))
    assert one.branching == (1, 1, 1)
    assert tries.items(one, jnp.asarray([walk(one, (3, 0, 2))])).tolist() == [[0]]
    codes = np.asarray([[0, 0], [1, 0], [1, 1], [1, 2], [1, 3]])
    many = tries.build(codes)
    assert many.branching == (2, 4)
    for row, code in enumerate(codes.tolist()):
        assert tries.items(many, jnp.asarray(walk(many, tuple(code)))).tolist() == [row]
    assert walk(many, (0, 1)) == tries.DEAD


@pytest.mark.parametrize("parts", [1, 8])
def test_fewer_allowed_items_fit_the_mould_without_a_new_compilation(parts):
    codes = published()
    whole = tries.build(codes, (42, 42, 42), parts=parts)
    allowed = np.arange(20) % 3 > 0
    some = tries.build(codes, allowed=allowed, like=whole)
    traces = []

    @jax.jit
    def leaves(trie, codes):
        traces.append(1)
        state = jnp.zeros(codes.shape[0], jnp.int32)
        for level in range(3):
            state = tries.children(trie, state, codes[:, level])
        return tries.items(trie, state)[:, 0]

    np.testing.assert_array_equal(leaves(whole, jnp.asarray(codes)), np.arange(20))
    expected = np.where(allowed, np.arange(20), -1)
    np.testing.assert_array_equal(leaves(some, jnp.asarray(codes)), expected)
    assert len(traces) == 1


def test_errors_teach():
    codes = published()
    with pytest.raises(ValueError, match="first, row 0 level 2, is 12 of 12"):
        tries.build(codes, (12, 12, 12))
    with pytest.raises(ValueError, match="names 2"):
        tries.build(codes, (42, 42))
    with pytest.raises(ValueError, match="no item is allowed"):
        tries.build(codes, allowed=np.zeros(20, bool))
    with pytest.raises(ValueError, match="at least one row of codes"):
        tries.build(codes[:0])
    small = tries.build(codes[:4], (42, 42, 42))
    with pytest.raises(ValueError, match="`like` has room for"):
        tries.build(codes, like=small)
