"""The catalogue through an encoder: every item's vector, resumable, with its provenance.

What the vectors are of is written down (encoder, weights, preprocessing, pooling, items, content);
vectors of another making are refused, so that two spaces never mix in one feature.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from checkpoints.digest import file_sha256
from checkpoints.hub import encoder_folder
from checkpoints.rows import Shards, read_rows
from pipelines.content import Problem
from pipelines.schema import Dataset
from zoo import mesh as meshes
from zoo.blockwise import in_blocks
from zoo.embedded import LAYERS, ROWS, ids_of
from zoo.encoders.blocks import DTYPES, mean_of_tokens
from zoo.encoders.inputs import Content, content_of, json_sha256
from zoo.encoders.load import Encoder, encoder, which
from zoo.encoders.own import is_own, own_encoder
from zoo.names import unknown

SHARD = 8  # batches; a kill costs at most these
HELD = {"cpu": 1024}  # tokens an encoder reads at a time: their attention stays in the cache
log = logging.getLogger("zoo")


def embed(
    dataset: Dataset,
    path: str | Path,
    out: str | Path,
    modality: str | None = None,
    batch: int = 64,
    pooling: str = "pooled",
    dtype: str = "float32",
    max_length: int | None = None,
    seconds: float = 5.0,
    sentences: int = 0,
    mesh: Mesh | None = None,
    report: Callable[[int, int, dict], None] = lambda step, steps, metrics: None,
) -> dict[str, Any]:
    """Vectors of every item by the encoder in the folder `path`, to OUT; called again, it goes on.

    path: config.json and safetensors of a published one, its repository "owner/name" on the Hugging
    Face Hub, or the run of `zoo pretrain OBJECTIVE`.
    modality: text, image, audio or video; None: the one that the encoder has, else text. pooling:
    which vector [b,d] of what the encoder returns, or `layers`, the mean token of every layer side
    by side, for side networks. dtype: of the layers; the vectors are float32.
    max_length: tokens a text is cut to, None: as many as the encoder was trained on. seconds: how
    much of a clip Wav2Vec2 hears. sentences: above 0, so many rows an item, a sentence each, side
    by side and zeros behind the last: what MP4SR pools. mesh: rows of a batch go over its data
    axis, the encoder by its rules. report(rows done, of, {}).

    OUT gets <modality>_feat.npy float32 [n_items, d], of s sentences [n_items, s d], row r of item
    r + 1, zero where <modality>_present.npy is False, and manifest.json. Returns what was done.
    Raises ValueError for an unknown name, for content that the data lack, for vectors that are not
    finite, and where OUT holds vectors of another making, naming what differs.
    """
    if dtype not in DTYPES:
        raise unknown("unknown dtype", dtype, DTYPES)
    if batch < 1 or jax.process_count() > 1:
        raise ValueError(
            f"batch is {batch} on {jax.process_count()} processes; expected >= 1 on 1."
        )
    if sentences < 0 or sentences and pooling == LAYERS:
        raise ValueError(
            f"sentences is {sentences} with pooling '{pooling}': expected at least 0, and 0 with "
            f"'{LAYERS}', whose rows are layers."
        )
    folder = Path(path) if is_own(Path(path)) else encoder_folder(path)
    reading = {"max_length": max_length, "seconds": seconds, "sentences": sentences}
    enc, content = _opened(dataset, folder, modality, dtype, mesh, reading)
    modality = which(enc.modules, modality, folder)
    run = _runner(enc, modality, pooling, content, mesh)
    named = folder.resolve().name if Path(path).exists() else f"{path}@{folder.name}"
    facts = _facts(dataset, folder, content) | {"encoder": named}
    facts |= {"modality": modality, "pooling": pooling, "dtype": dtype, "batch": batch}
    facts |= {"layers": enc.modules[modality].stack.layers + 1} if pooling == LAYERS else {}
    facts |= {ROWS: sentences} if sentences else {}
    shards = Shards(out, facts)
    before = shards.done
    if not shards.complete:
        _fill(shards, run, enc.params[modality], content, dataset, mesh, report)
        places = (content.rows - 1) * max(sentences, 1) + content.part
        shards.finish(modality, places, ids_of(dataset), max(sentences, 1))
    made = read_rows(out)
    told = {k: facts[k] for k in ("data", "encoder", "modality", "pooling", "items")}
    told |= {"present": int(made.present.sum()), "width": made.vectors.shape[1]}
    return {**told, "resumed_at": before, "out": str(out)}


def _opened(
    dataset: Dataset,
    folder: Path,
    modality: str | None,
    dtype: str,
    mesh: Mesh | None,
    reading: dict[str, Any],
) -> tuple[Encoder, Content]:
    """An encoder, published or of a pretraining run, and what of the items it reads."""
    if is_own(folder):
        if dtype != "float32" or reading["max_length"] is not None or reading["sentences"]:
            raise ValueError(
                f"{folder} is a pretraining run: it computes in float32 and reads as many tokens "
                "as it was trained on. Leave --dtype, --max-length and --sentences away."
            )
        return own_encoder(folder, dataset, modality)
    enc = encoder(folder, mesh=mesh, dtype=DTYPES[dtype])
    modality = which(enc.modules, modality, folder)
    return enc, content_of(dataset, folder, enc, modality, **reading)


def _fill(
    shards: Shards,
    run: Callable[..., jax.Array],
    params: Any,
    content: Content,
    dataset: Dataset,
    mesh: Mesh | None,
    report: Callable[[int, int, dict], None],
) -> None:
    """The rows that are not done yet, shard by shard."""
    batch, total = shards.manifest["facts"]["batch"], len(content.rows)
    if mesh is not None:
        meshes.check_batch_fits(batch, mesh)
    params = jax.device_put(params, mesh and meshes.shardings(params, mesh))
    vectors, absent = [], []
    for x, there, problems, places in _batches(run, params, content, shards.done, batch, mesh):
        _check_finite(x[there], dataset.item_ids[content.rows[places][there]])
        for problem in problems:
            log.warning("masked: %s", problem)
        absent += list(np.flatnonzero(~there) + sum(map(len, vectors)))
        vectors.append(np.where(there[:, None], x, 0))
        if len(vectors) == SHARD or places[-1] == total - 1:
            shards.add(np.concatenate(vectors), absent)
            vectors, absent = [], []
        report(int(places[-1]) + 1, total, {})


def _batches(
    run: Callable[..., jax.Array],
    params: Any,
    content: Content,
    start: int,
    batch: int,
    mesh: Mesh | None,
) -> Iterator[tuple[np.ndarray, np.ndarray, list[Problem], np.ndarray]]:
    """(vectors, present, problems, places) a batch; the next is read while this one runs."""
    running = None
    for at in range(start, len(content.rows), batch):
        places = np.arange(at, min(at + batch, len(content.rows)))
        inputs, *told = content.take(places)
        full = {str(i): x[np.arange(batch) % len(x)] for i, x in enumerate(inputs)}  # one shape
        full = full if mesh is None else meshes.shard_batch(full, mesh)
        made = run(params, *full.values())
        if running is not None:
            yield _landed(*running)
        running = made, *told, places
    if running is not None:
        yield _landed(*running)


def _landed(made: jax.Array, there: np.ndarray, problems: list[Problem], places: np.ndarray):
    return np.asarray(made, np.float32)[: len(places)], there, problems, places


def _check_finite(x: np.ndarray, ids: np.ndarray) -> None:
    bad = ~np.isfinite(x).all(1)
    if bad.any():
        raise ValueError(
            f"the encoder's vectors are NaN or infinite for {bad.sum()} items of a batch, first "
            f"{ids[bad][:3].tolist()}. Expected finite ones: try --dtype float32, look at the "
            "weights and at the content of these items. What was done before is kept."
        )


def _runner(
    enc: Encoder, modality: str, pooling: str, content: Content, mesh: Mesh | None
) -> Callable:
    """The jitted function (params of the tower, inputs) -> [b,d]; float32 is not lowered."""
    alone = mesh is None or mesh.size == 1
    held = HELD.get(jax.default_backend()) if alone else None

    def outputs(params: Any, *inputs: jax.Array) -> dict[str, jax.Array]:
        return enc.apply[modality]({modality: params}, *inputs)

    shapes = jax.eval_shape(outputs, enc.params[modality], *content.take(np.arange(1))[0])
    known = [name for name, x in shapes.items() if x.ndim == 2]
    if "hidden_states" in shapes:
        known.append(LAYERS)
    if pooling not in known:
        raise unknown("the encoder has no pooling", pooling, known)

    def vectors(params: Any, *inputs: jax.Array) -> jax.Array:
        made = outputs(params, *inputs)
        return _by_layer(made["hidden_states"], inputs) if pooling == LAYERS else made[pooling]

    def pooled(params: Any, *inputs: jax.Array) -> jax.Array:
        tokens = inputs[1].shape[1] if len(inputs) > 1 else shapes["tokens"].shape[1]
        rows = len(inputs[0]) if held is None else held // tokens
        return in_blocks(partial(vectors, params), rows, *inputs)

    run = jax.jit(pooled)

    def highest(*arguments: Any) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return run(*arguments)

    return highest


def _by_layer(states: jax.Array, inputs: tuple) -> jax.Array:
    """[b,(k+1)*d]: the mean over the real tokens of what goes in and of every layer [k+1,b,l,d]."""
    mask = inputs[1] if len(inputs) > 1 else jnp.ones(states.shape[1:3], bool)
    each = jax.vmap(lambda x: mean_of_tokens(x, mask))(states)
    return jnp.moveaxis(each, 0, 1).reshape(len(each[0]), -1)


def tower_inputs(dataset: Dataset, folder: str | Path, modalities: Sequence[str]) -> dict:
    """{modality: (what its tower reads, n+1 rows by number of input; present; problems)}."""
    folder, made = encoder_folder(folder), {}
    enc = encoder(folder)
    for name in modalities:
        content = content_of(dataset, folder, enc, which(enc.modules, name, folder))
        inputs, there, problems = content.take(np.arange(len(content.rows)))
        rows = content.rows[there]
        tables = {str(i): _rows_of(x[there], rows, dataset.n_items) for i, x in enumerate(inputs)}
        made[name] = tables, np.isin(np.arange(dataset.n_items + 1), rows), problems
    return made


def _rows_of(x: np.ndarray, rows: np.ndarray, n_items: int) -> np.ndarray:
    table = np.zeros((n_items + 1, *x.shape[1:]), x.dtype)
    table[rows] = x
    return table


def _facts(dataset: Dataset, folder: Path, content: Content) -> dict[str, Any]:
    """What the vectors are of, as far as the data and the encoder's folder say it."""
    return {
        "data": dataset.name,
        "items": dataset.n_items,
        "items_sha256": json_sha256(ids_of(dataset)),
        "rows": len(content.rows),
        "content_sha256": content.sha256,
        "encoder_files": _files(folder),
        "preprocessing": content.how,
    }


def _files(folder: Path) -> dict[str, str]:
    """sha256 of everything in the folder that makes a vector: weights, config, tokenizer."""
    kinds = (".safetensors", ".json", ".txt", ".model")
    folder = folder / "bundle" if (folder / "bundle").is_dir() else folder
    paths = [*folder.iterdir(), folder / "1_Pooling" / "config.json"]
    paths = sorted(path for path in paths if path.suffix in kinds and path.is_file())
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in paths}
