"""Films as encoders read them: a few pictures at even distances, by PyAV (FFmpeg)."""

import io
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
from PIL import Image

from pipelines.content import (
    BAD_IMAGE,
    BILINEAR,
    MAX_PIXELS,
    Problem,
    Source,
    check_pixels,
    decode_each,
)
from pipelines.pixels import Steps, prepared


def decode_films(
    sources: Sequence[Source], shots: int, size: tuple[int, int], max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, np.ndarray, list[Problem]]:
    """Files or bytes (MP4, WebM, GIF, what FFmpeg reads) to (uint8 [n,shots,h,w,3], present bool
    [n], problems), each picture resized to `size` = (h, w), antialiased.

    The film is cut into `shots` equal parts, and the picture in the middle of each is taken; a film
    of fewer pictures repeats them. Rotation written beside the pictures is not applied. Files that
    are missing, empty, cut off, no film, or larger than `max_pixels` become problems.
    """
    shrink = lambda image: np.asarray(image.resize(size[::-1], BILINEAR))  # noqa: E731
    out = np.zeros((len(sources), shots, *size, 3), np.uint8)
    return _decode(sources, shrink, out, max_pixels)


def decode_clips(
    sources: Sequence[Source], shots: int, steps: Steps, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, np.ndarray, list[Problem]]:
    """The same, float32 [n,shots,h,w,3], by the steps of a preprocessor_config.json."""
    out = np.zeros((len(sources), shots, *steps.shape, 3), np.float32)
    return _decode(sources, lambda image: prepared(image, steps), out, max_pixels)


def _decode(sources, picture: Callable[[Image.Image], np.ndarray], out, max_pixels: int):
    try:
        import av
    except ImportError as error:
        raise RuntimeError(
            "films need the package av for their codecs: pip install 'mmrec-zoo[video]'"
        ) from error

    def one(data: bytes) -> np.ndarray:
        shown = _middles(_length(data, max_pixels), out.shape[1])
        made = {i: picture(image) for i, image in _pictures(data, shown)}
        if missing := set(shown) - set(made):
            raise ValueError(f"cut off: {len(missing)} of the pictures are missing")
        return np.stack([made[i] for i in shown])

    return decode_each(sources, one, out, (*BAD_IMAGE, av.FFmpegError))


def _length(data: bytes, max_pixels: int) -> int:
    """Pictures that are shown, counted: a header may be wrong, and a film trimmed."""
    import av

    with av.open(io.BytesIO(data)) as film:
        if not film.streams.video:
            raise ValueError("there are no pictures in it")
        stream = film.streams.video[0]
        check_pixels(stream.width, stream.height, max_pixels)
        total = sum(1 for packet in film.demux(stream) if packet.size and not packet.is_discard)
    if not total:
        raise ValueError("there are no pictures in it")
    return total


def _middles(total: int, shots: int) -> list[int]:
    """Places of the pictures in the middle of `shots` equal parts, ascending."""
    return [(2 * i + 1) * total // (2 * shots) for i in range(shots)]


def _pictures(data: bytes, places: list[int]) -> Iterator[tuple[int, Image.Image]]:
    """(place, RGB picture) of each of `places`, ascending; nothing behind the last is decoded."""
    import av

    with av.open(io.BytesIO(data)) as film:
        shown = enumerate(islice(film.decode(film.streams.video[0]), places[-1] + 1))
        yield from ((i, frame.to_image()) for i, frame in shown if i in places)
