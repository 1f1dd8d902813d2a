"""Films as encoders read them: a few pictures at even distances, by PyAV (FFmpeg)."""

import io
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

from pipelines.content import BAD_IMAGE, BILINEAR, MAX_PIXELS, Problem, Source, decode_each
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
        made = {i: picture(image) for i, image in _pictures(data, set(shown))}
        if len(made) < len(set(shown)):
            raise ValueError(f"cut off: {len(set(shown)) - len(made)} of the pictures are missing")
        return np.stack([made[i] for i in shown])

    return decode_each(sources, one, out, (*BAD_IMAGE, av.FFmpegError))


def _length(data: bytes, max_pixels: int) -> int:
    """Pictures that are shown, counted: a header may be wrong, and a film trimmed."""
    import av

    with av.open(io.BytesIO(data)) as film:
        if not film.streams.video:
            raise ValueError("there are no pictures in it")
        stream = film.streams.video[0]
        if stream.width * stream.height > max_pixels:
            raise ValueError(
                f"{stream.width} x {stream.height} pixels is over the limit of {max_pixels}"
            )
        total = sum(1 for packet in film.demux(stream) if packet.size and not packet.is_discard)
    if not total:
        raise ValueError("there are no pictures in it")
    return total


def _middles(total: int, shots: int) -> list[int]:
    """Places of the pictures in the middle of `shots` equal parts."""
    return [(2 * i + 1) * total // (2 * shots) for i in range(shots)]


def _pictures(data: bytes, places: set[int]) -> Iterator[tuple[int, Image.Image]]:
    """(place, RGB picture), up to the last of `places`."""
    import av

    with av.open(io.BytesIO(data)) as film:
        for i, frame in enumerate(film.decode(film.streams.video[0])):
            if i in places:
                yield i, frame.to_image()
            if i >= max(places):
                return
