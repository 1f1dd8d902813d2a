"""Encoders that learn with the model: small ones from nothing, published ones, side networks."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from zoo.encoders.audio import SpectrogramTransformer
from zoo.encoders.blocks import DTYPES, EncoderStack, Named
from zoo.encoders.image import VisionTransformer
from zoo.encoders.load import encoder, which
from zoo.encoders.mel import samples_of, spectrogram
from zoo.encoders.side import side_encoder
from zoo.encoders.text import Bert
from zoo.encoders.video import FilmTransformer
from zoo.end_to_end import ContentEncoder
from zoo.names import unknown

Array = jax.Array


@dataclass(frozen=True)
class Encoding:
    """Which content a run encodes itself, and by what encoder (none: `modalities` ())."""

    modalities: tuple[str, ...] = ()
    """image, text, audio, video"""
    kind: str = "small"
    """small: from nothing, of the sizes below; side: a network beside the layers of an encoder that
    stays as it was (zoo embed --pooling layers, --features); or the folder of a published encoder,
    whose inputs of all items are held in memory."""
    width: int = 64
    """Of the vectors."""
    layers: int = 2
    """Of a small encoder, as all that follows down to its frames, bands and shots."""
    heads: int = 4
    patch: int = 16
    """Of pictures and of spectrograms: so many pixels, or frames and bands, a side."""
    pixels: int = 64
    """Pictures are made this high and wide."""
    tokens: int = 24
    """Words of a text that are read."""
    frames: int = 96
    """Of sound that are heard, 10 ms each."""
    bands: int = 32
    """Of a spectrogram."""
    shots: int = 4
    """Pictures of a film that are seen."""
    dropout: float = 0.1
    dtype: str = "float32"
    """In which the layers compute: float32, or bfloat16 where the hardware has it. Parameters,
    norms and the vectors stay float32."""
    bound: int = 1024
    """Distinct items of a batch that are encoded (zoo/end_to_end.py)."""
    scan: bool = False
    """One compiled layer, run for each; adapters and prompts need it off."""
    remat: bool = False
    """A layer's activations are computed again for the gradient. On CPU that saves memory only
    together with scan: without it the compiler joins both computations."""
    centre: bool = False
    """Vectors have mean 0 and deviation 1 over the items, as features do: most of what a young
    encoder of words says is the same for all of them."""
    remove_drift: bool = False
    """What the items of a batch have moved alike since the last encoding of all is taken out: of a
    loss over all items it would part them from the others at no merit."""
    refresh: int = 16
    """Steps between two encodings of all items, for negatives that no batch names; 0: never, for
    losses that ask of the batch alone."""


def encoders(encoding: Encoding, raw: dict[str, Any]) -> dict[str, ContentEncoder]:
    """An encoder for each modality; raw: the catalogue's, as Data.with_raw has it."""
    if encoding.kind == "side":
        return {m: side_encoder(raw[m].shape[1:], encoding.width) for m in encoding.modalities}
    if encoding.kind != "small":
        return _published(encoding)
    for name in encoding.modalities:
        if name not in KINDS:
            raise unknown("no small encoder of the modality", name, KINDS)
    made = {name: small(encoding, name, raw[name]) for name in encoding.modalities}
    return {name: _encoder(name, *one, encoding.width) for name, one in made.items()}


# What of the sizes an encoder of a modality depends on.
SIZES = {
    "image": ("patch", "pixels"),
    "text": ("tokens",),
    "audio": ("patch", "frames", "bands"),
    "video": ("patch", "pixels", "shots"),
}


def how_raw(encoding: Encoding) -> dict[str, Any]:
    """What pipelines.raw.raw_content is told of the sizes."""
    size = (encoding.pixels, encoding.pixels)
    samples = samples_of(encoding.frames)
    return {"size": size, "tokens": encoding.tokens, "samples": samples, "shots": encoding.shots}


def small(encoding: Encoding, modality: str, raw: Any) -> tuple[Any, Callable[[Any], tuple]]:
    """(the module of a modality's small encoder, raw content -> what the module is called with)."""
    return KINDS[modality](encoding, raw)


def standard(x: Array, epsilon: float = 1e-6) -> Array:
    """float32 [...,d] of mean 0 and mean square 1 a row: a LayerNorm without parameters."""
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)


def _published(e: Encoding) -> dict[str, ContentEncoder]:
    """The towers in the folder `kind`, with their weights as a start."""
    found = encoder(e.kind, dropout=e.dropout, **_how(e))
    made = {}
    for name in e.modalities:
        module = found.modules[which(found.modules, name, Path(e.kind))]
        width = jax.eval_shape(module.init_with_output, jax.random.key(0), *module.example())
        width = width[0]["pooled"].shape[-1]
        made[name] = _encoder(name, module, _in_order, width)._replace(params=found.params[name])
    return made


def _in_order(raw: dict[str, Array]) -> tuple[Array, ...]:
    """A tower's inputs, kept under their numbers."""
    return tuple(raw[number] for number in sorted(raw))


def _stack(e: Encoding) -> EncoderStack:
    sizes = e.layers, "pre", e.heads, 4 * e.width
    return EncoderStack(*sizes, dropout=e.dropout, **_how(e))


def _how(e: Encoding) -> dict[str, Any]:
    """The dtype, and which of scan and remat are on: not every published encoder has them."""
    if e.dtype not in DTYPES:
        raise unknown("unknown dtype of an encoder", e.dtype, DTYPES)
    return {n: True for n in ("scan", "remat") if getattr(e, n)} | {"dtype": DTYPES[e.dtype]}


def _image(e: Encoding, raw: Any) -> tuple[Any, Callable[[Any], tuple]]:
    del raw  # pictures of any size will do
    module = VisionTransformer(
        e.pixels, e.patch, e.width, _stack(e), class_token=False, pooling="mean"
    )
    return module, lambda x: (x.astype(jnp.float32) / 127.5 - 1.0,)


def _text(e: Encoding, raw: Any) -> tuple[Any, Callable[[Any], tuple]]:
    vocabulary = int(raw["ids"].max()) + 1
    module = Bert(vocabulary, e.tokens, 1, e.width, _stack(e), pooler=False)
    return module, lambda x: (x["ids"], x["mask"])


def _audio(e: Encoding, raw: Any) -> tuple[Any, Callable[[Any], tuple]]:
    del raw  # clips of the length that `how_raw` asks for
    sizes = e.frames, e.bands, e.patch, (e.patch, e.patch), e.width
    return SpectrogramTransformer(*sizes, _stack(e)), lambda x: (spectrogram(x, e.bands),)


def _video(e: Encoding, raw: Any) -> tuple[Any, Callable[[Any], tuple]]:
    pictures, read = _image(e, raw)
    return FilmTransformer(pictures, _stack(e)), read


def _encoder(name: str, module: Any, inputs: Callable[[Any], tuple], width: int) -> ContentEncoder:
    """The pooled vector of a module, of a standard size."""
    named, place = Named({name: module}), f"encoders_{name}"

    def init(key: Array, raw: Any) -> Any:
        return named.init(key, *inputs(raw))["params"][place]

    def outputs(params: Any, raw: Any, key: Array | None) -> dict[str, Array]:
        rngs = None if key is None else {"dropout": key}
        options = {"train": key is not None, "rngs": rngs}
        return named.apply({"params": {place: params}}, *inputs(raw), **options)

    def apply(params: Any, raw: Any, key: Array | None) -> Array:
        return standard(outputs(params, raw, key)["pooled"])

    def states(params: Any, raw: Any, key: Array | None) -> Array:
        return outputs(params, raw, key)["tokens"].astype(jnp.float32)

    return ContentEncoder(init, apply, width, states)


KINDS = {"image": _image, "text": _text, "audio": _audio, "video": _video}
