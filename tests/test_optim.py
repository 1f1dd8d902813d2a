"""The Optax chain: schedules, decay and rates by parameter name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.optim import match_names, optimizer, schedule, with_rates

PARAMS = {"items": {"id": {"table": jnp.ones((3, 2))}}, "trunk": {"norm": {"scale": jnp.ones(2)}}}


def step(chain, grads):
    updates, _ = jax.jit(chain.update)(grads, chain.init(PARAMS), PARAMS)
    return updates


def test_rates_by_name_first_match_wins():
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    plain = step(optimizer(1e-2), grads)
    slow = step(optimizer(1e-2, rates=[("items", 0.1), ("items/id", 5.0), ("norm", 0.0)]), grads)
    np.testing.assert_allclose(slow["items"]["id"]["table"], 0.1 * plain["items"]["id"]["table"])
    assert not np.asarray(slow["trunk"]["norm"]["scale"]).any(), "rate 0 freezes"


def test_rates_of_a_run_multiply_those_of_its_stage():
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    stage = optimizer(1e-2, rates=[("items", 1.0), (".*", 0.0)])
    slow, plain = step(with_rates(stage, [("table|norm", 0.1)]), grads), step(stage, grads)
    np.testing.assert_allclose(slow["items"]["id"]["table"], 0.1 * plain["items"]["id"]["table"])
    assert not np.asarray(slow["trunk"]["norm"]["scale"]).any()


def test_accumulated_batches_are_one_step_of_their_mean():
    rng = np.random.default_rng(0)
    several = [jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), PARAMS) for _ in "abc"]
    chain = optimizer(1e-2, 30, 6, "cosine", accumulate=3)
    state, moved = chain.init(PARAMS), []
    for _ in range(4):
        for grads in several:
            updates, state = jax.jit(chain.update)(grads, state, PARAMS)
            moved.append(updates)
    assert all(not np.any(x) for i in (0, 1, 3, 4) for x in jax.tree.leaves(moved[i]))
    mean = jax.tree.map(lambda *x: sum(x) / 3, *several)
    plain = optimizer(1e-2, 10, 2, "cosine")
    state = plain.init(PARAMS)
    for i in range(4):
        updates, state = jax.jit(plain.update)(mean, state, PARAMS)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-9),
                     moved[3 * i + 2], updates)  # fmt: skip
    with pytest.raises(ValueError, match="accumulate is 0"):
        optimizer(accumulate=0)


def test_norms_are_not_decayed():
    still = jax.tree.map(jnp.zeros_like, PARAMS)
    moved = step(optimizer(1e-2, weight_decay=0.1), still)
    np.testing.assert_allclose(moved["items"]["id"]["table"], -1e-3, rtol=1e-5)
    assert not np.asarray(moved["trunk"]["norm"]["scale"]).any()


def test_l2_is_of_the_gradient_which_adam_then_scales():
    still = jax.tree.map(jnp.zeros_like, PARAMS)
    moved = step(optimizer(1e-2, l2=1e-4), still)
    np.testing.assert_allclose(moved["items"]["id"]["table"], -1e-2, rtol=1e-3)
    assert not np.asarray(moved["trunk"]["norm"]["scale"]).any()


def test_schedules():
    cosine = schedule("cosine", 1.0, 110, warmup=10)
    assert cosine(0) == 0 and cosine(10) == pytest.approx(1.0)
    assert cosine(60) == pytest.approx(0.5, abs=1e-6) and cosine(110) == pytest.approx(0.0)
    assert schedule("constant", 0.3, 10)(7) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="cosine, linear, inverse-sqrt"):
        schedule("step", 1.0, 10)


def test_the_inverse_square_root_is_flat_over_the_warmup():
    """TIGER's: .01 for 10,000 steps, then .01 sqrt(10,000 / step), whatever the length."""
    rate = schedule("inverse-sqrt", 0.01, 200_000, warmup=10_000)
    assert [float(rate(i)) for i in (0, 1, 10_000)] == pytest.approx([0.01] * 3)
    for i in (10_001, 40_000, 200_000):
        assert rate(i) == pytest.approx(0.01 * (10_000 / i) ** 0.5)
    bare = schedule("inverse-sqrt", 2.0, 10)
    assert [float(bare(i)) for i in (0, 1, 4)] == pytest.approx([2.0, 2.0, 1.0])
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    early = step(optimizer(1e-2, 100, 50, "inverse-sqrt"), grads)
    constant = step(optimizer(1e-2, 100), grads)
    jax.tree.map(np.testing.assert_allclose, early, constant)


def test_an_uncovered_name_is_an_error():
    with pytest.raises(ValueError, match="trunk/norm/scale"):
        match_names(PARAMS, [("items", 1)])


def test_a_clipped_shock_is_forgotten():
    loud, soft = (jax.tree.map(lambda x, c=c: c * jnp.ones_like(x), PARAMS) for c in (1e6, 1.0))
    after = {}
    for clip in (None, 1.0):
        chain = optimizer(1e-2, clip=clip)
        state = chain.update(loud, chain.init(PARAMS), PARAMS)[1]
        for _ in range(30):
            updates, state = chain.update(soft, state, PARAMS)
        after[clip] = float(jnp.abs(updates["trunk"]["norm"]["scale"]).max())
    assert after[1.0] > 2 * after[None], "unclipped, the second moment still holds the shock"
