"""How well a small AST learns ten kinds of sound from 240 clips: ESC-10, five folds.

    python benchmarks/sound.py --data DATA/esc10

For each fold: the next one chooses the epoch, the other three train, the fold itself is scored
once. Clips are turned in time and lose a band of frequencies and a stretch of time at random
(SpecAugment, arXiv 1904.08779). Writes results/sound.json after every fold. Chance is .1.
"""

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from decode import load, write

from pipelines import waves
from zoo.encoders.audio import SpectrogramTransformer
from zoo.encoders.blocks import EncoderStack

OUT = Path(__file__).parent / "results" / "sound.json"
BANDS, FRAMES, WIDTH, BATCH, RATE = 64, 512, 64, 30, 1e-3
Array = jax.Array


class Classifier(nn.Module):
    """Log-probabilities of ten kinds."""

    @nn.compact
    def __call__(self, mel: Array, train: bool = False) -> Array:
        stack = EncoderStack(layers=3, heads=4, inner=4 * WIDTH, dropout=0.1)
        tower = SpectrogramTransformer(FRAMES, BANDS, 16, (16, 16), WIDTH, stack)
        tokens = tower(mel, train)["tokens"]
        return nn.log_softmax(nn.Dense(10)(tokens.mean(1)))


def clips(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(spectrograms float32 [n,frames,bands], kinds int [n], folds int [n])."""
    with open(folder / "clips.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    config = {"num_mel_bins": BANDS, "max_length": FRAMES}
    how = waves.hearing_of(config, "audio-spectrogram-transformer")
    x, there, problems = waves.decode_heard([folder / "clips" / r["file"] for r in rows], how)
    if not there.all():
        raise SystemExit(f"clips that cannot be read: {problems[:3]}")
    names = sorted({row["label"] for row in rows})
    kinds = np.array([names.index(row["label"]) for row in rows])
    return x, kinds, np.array([int(row["fold"]) for row in rows])


def augmented(key: Array, mel: Array) -> Array:
    """Clips [b,t,m] turned in time, without up to 12 bands and up to 100 frames."""
    turn, band, stretch = jax.random.split(key, 3)
    by = jax.random.randint(turn, (len(mel),), 0, mel.shape[1])
    mel = jax.vmap(lambda x, n: jnp.roll(x, n, axis=0))(mel, by)
    hidden = _run(band, mel, 2, 12)[:, None, :] | _run(stretch, mel, 1, 100)[:, :, None]
    return jnp.where(hidden, 0.0, mel)


def _run(key: Array, mel: Array, axis: int, most: int) -> Array:
    """bool [b,size]: a stretch of up to `most` places of an axis."""
    size, (a, b) = mel.shape[axis], jax.random.split(key)
    start = jax.random.randint(a, (len(mel), 1), 0, size)
    places = jnp.arange(size)[None]
    return (places >= start) & (places < start + jax.random.randint(b, start.shape, 0, most))


def fold_of(x: np.ndarray, kinds: np.ndarray, folds: np.ndarray, test: int, epochs: int) -> dict:
    """One fold: train, choose the epoch, score."""
    valid = test % 5 + 1
    train = np.flatnonzero((folds != test) & (folds != valid))
    model, key = Classifier(), jax.random.key(test)
    steps = len(train) // BATCH
    rate = optax.cosine_decay_schedule(RATE, epochs * steps)
    chain = optax.adamw(optax.warmup_constant_schedule(0.0, 1.0, 50), weight_decay=0.05)
    chain = optax.chain(chain, optax.scale_by_schedule(rate))
    params = model.init(key, x[:1])
    own = {"x": jnp.asarray(x[train]), "y": jnp.asarray(kinds[train])}

    def loss(params: Any, rows: Array, key: Array) -> Array:
        noise, drop = jax.random.split(key)
        mel = augmented(noise, own["x"][rows])
        said = model.apply(params, mel, True, rngs={"dropout": drop})
        return -jnp.mean(said[jnp.arange(len(rows)), own["y"][rows]])

    @jax.jit
    def epoch(params: Any, state: Any, key: Array):
        order, noise = jax.random.split(key)
        rows = jax.random.permutation(order, len(train))[: steps * BATCH].reshape(steps, BATCH)

        def step(carry, given):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, *given)
            updates, state = chain.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        keys = jax.random.split(noise, steps)
        (params, state), values = jax.lax.scan(step, (params, state), (rows, keys))
        return params, state, values.mean()

    right = jax.jit(lambda p, x, y: jnp.mean(jnp.argmax(model.apply(p, x), -1) == y))
    score = lambda p, one: float(right(p, x[folds == one], kinds[folds == one]))  # noqa: E731
    state, best, curve = chain.init(params), (-1.0, 0, params), []
    for number in range(1, epochs + 1):
        params, state, value = epoch(params, state, jax.random.fold_in(key, number))
        curve.append([round(float(value), 3), score(params, valid)])
        best = max(best, (curve[-1][1], number, params), key=lambda one: one[0])
        if number % 10 == 0:
            print(test, number, curve[-1], flush=True)
    found = {"valid": best[0], "epoch": best[1], "test": score(best[2], test)}
    return found | {"curve": curve[9::10]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=100)
    args = parser.parse_args()
    data, found = clips(args.data), {}
    for test in range(1, 6):
        begun = time.monotonic()
        found[test] = fold_of(*data, test, args.epochs)
        found[test]["seconds"] = round(time.monotonic() - begun, 1)
        print(json.dumps({test: found[test]}), flush=True)
        tests = [one["test"] for one in found.values()]
        told = {"accuracy": float(np.mean(tests)), "sd": float(np.std(tests)), "folds": found}
        write("esc10", {"epochs": args.epochs, "jax": jax.__version__, **told} | load(), OUT)


if __name__ == "__main__":
    main()
