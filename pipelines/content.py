"""Item text, images, audio: decode, resize, resample, masks for what is missing.

Nothing is silently filled: a decoder returns the rows, which of them are real (`present`) and
what was wrong with the others (`problems`). An empty source ('' or None) is absent, no problem.
"""

import hashlib
import html
import io
import re
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import gcd
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from scipy.signal import resample_poly

from pipelines.features import (
    BLOCK,
    describe_images,
    describe_sounds,
    hashed_text,
    standardise,
    text_features,
)
from pipelines.schema import DataError, Dataset
from pipelines.words import KEYWORDS

Source = str | Path | bytes | None
TEXT_COLUMNS = ("title", "text", "genres", "overview", "description", "brand", "categories")
MAX_PIXELS = 50_000_000
BILINEAR = Image.Resampling.BILINEAR  # Pillow widens it when shrinking: antialiased
SIZE, RATE, SECONDS = (64, 64), 16000, 5.0
BAD_IMAGE = (  # what Pillow raises for bad files, by format
    *(OSError, ValueError, SyntaxError, EOFError, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)


class Problem(NamedTuple):
    """A row that could not be decoded: it is masked and zero."""

    row: int
    where: str
    why: str


def _is_empty(source: Source) -> bool:
    return source is None or (isinstance(source, str) and not source.strip())


def _read(source: Source) -> bytes:
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not data:
        raise ValueError("the file has zero bytes")
    return data


def decode_each(
    sources: Sequence[Source], one: Callable[[bytes], np.ndarray], out: np.ndarray, bad: tuple
) -> tuple[np.ndarray, np.ndarray, list[Problem]]:
    """Fill `out` row by row with `one(bytes)`, in a few threads (the codecs release the lock)."""

    def row(source: Source) -> np.ndarray | str | None:
        if _is_empty(source):
            return None
        try:
            return one(_read(source))
        except bad as error:
            told = re.sub(r" ?<_io.BytesIO[^>]*>", "", str(error))  # no memory addresses
            return f"{type(error).__name__}: {told}"

    present, problems = np.zeros(len(out), bool), []
    with ThreadPoolExecutor(4) as pool:
        for r, result in enumerate(pool.map(row, sources)):
            if isinstance(result, str):
                named = "<bytes>" if isinstance(sources[r], bytes) else str(sources[r])
                problems.append(Problem(r, named, result))
            elif result is not None:
                out[r], present[r] = result, True
    return out, present, problems


def decode_images(
    sources: Sequence[Source], size: tuple[int, int] = SIZE, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, np.ndarray, list[Problem]]:
    """Files or bytes (whatever Pillow reads) to (uint8 [n,h,w,3], present bool [n], problems).

    Antialiased resize to `size` = (h, w); EXIF rotation applied; alpha laid over white. Files
    that are missing, empty, cut off, no image, or larger than `max_pixels` become problems.
    """

    def one(data: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(data)) as image:
            check_pixels(image.width, image.height, max_pixels)
            return np.asarray(as_rgb(ImageOps.exif_transpose(image)).resize(size[::-1], BILINEAR))

    out = np.zeros((len(sources), *size, 3), np.uint8)
    return decode_each(sources, one, out, BAD_IMAGE)


def check_pixels(width: int, height: int, most: int) -> None:
    """Raise ValueError for a picture that would fill the memory."""
    if width * height > most:
        raise ValueError(f"{width} x {height} pixels is over the limit of {most}")


def as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip to white
        image = Image.fromarray(np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def decode_sounds(
    sources: Sequence[Source], rate: int = RATE, seconds: float = SECONDS
) -> tuple[np.ndarray, np.ndarray, list[Problem]]:
    """Files or bytes (WAV, Ogg, FLAC, MP3) to (float32 [n, rate*seconds], present, problems).

    Mono mean of the channels, polyphase resampling, cropped to the first `seconds`, zeros behind
    the end of a shorter clip. Cut-off, empty, non-finite and unreadable files become problems.
    """
    import soundfile

    samples = round(rate * seconds)

    def one(data: bytes) -> np.ndarray:
        _check_whole(data)
        with soundfile.SoundFile(io.BytesIO(data)) as clip:
            own = clip.samplerate
            wave = clip.read(int(own * (seconds + 0.1)) + 1, dtype="float32", always_2d=True)
        if not len(wave) or not np.isfinite(wave).all():
            raise ValueError("no samples" if not len(wave) else "samples that are not finite")
        common = gcd(own, rate)
        wave = resample_poly(wave.mean(1), rate // common, own // common)[:samples]
        return np.pad(wave, (0, samples - len(wave)))

    out = np.zeros((len(sources), samples), np.float32)
    return decode_each(sources, one, out, (OSError, ValueError, soundfile.LibsndfileError))


def _check_whole(data: bytes) -> None:
    """The codec plays what is left of a cut-off file without a word; the containers tell."""
    if data[:4] == b"RIFF":
        told = int.from_bytes(data[4:8], "little")
        if told != 0xFFFFFFFF and told + 8 > len(data) + 1:  # streams say 0xFFFFFFFF
            raise ValueError(f"cut off: the header says {told + 8} bytes, found {len(data)}")
    if data[:4] == b"OggS":
        last = data.rfind(b"OggS")
        if last + 5 >= len(data) or not data[last + 5] & 4:  # RFC 3533: flag 4 ends a stream
            raise ValueError("cut off: the last Ogg page is not an end of stream")


def clean_text(value: Any) -> str:
    """HTML entities undone, white space single; '' for None, NaN and blanks, which is missing."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return " ".join(html.unescape(str(value)).split())


def with_features(
    dataset: Dataset,
    modalities: Sequence[str] = ("text", "image", "audio"),
    seed: int = 0,
    text: str = "lsa",
) -> tuple[Dataset, list[Problem]]:
    """The data set with `features` and `present` of the modalities it has content for.

    Text is read from the columns named in TEXT_COLUMNS, or, without any of these, from the
    machine-written keywords that the floors read (words.KEYWORDS); images and audio from the
    files that the columns `image` and `audio` name; where the source has published semantic ids
    of images instead (`sid_image`), their codes are hashed. Modalities that have features already
    are left as they are; what was made is named in `source["computed"]`.
    `text` is `lsa` (features.text_features; `seed` starts its SVD) or `hashed`, the same space
    for every data set (features.hashed_text); `lsa:200` has 200 columns.
    DataError for a modality that is none of the three, or another `text`.
    """
    text_kind(text)
    unknown = set(modalities) - set(MAKERS)
    if unknown:
        raise DataError(f"modalities {sorted(unknown)}: expected some of {sorted(MAKERS)}.")
    features, present, problems = dict(dataset.features), dict(dataset.present), []
    computed = list(dataset.source.get("computed", ()))
    for modality in modalities:
        made = None if modality in features else MAKERS[modality](dataset, seed, text)
        if made is not None:
            features[modality], present[modality], found = made
            problems, computed = problems + found, [*computed, modality]
    source = dataset.source | ({"computed": computed} if computed else {})
    return replace(dataset, features=features, present=present, source=source), problems


def content_sha256(dataset: Dataset, modalities: Sequence[str]) -> str:
    """Hex sha256 of what `with_features` reads of these modalities: the words, and files' bytes."""
    found = hashlib.sha256()
    for modality in sorted(modalities):
        for name in READ.get(modality, ()):
            for cell in dataset.columns.get(name, ()):
                one = _bytes(cell) if name in FILED else str(cell).encode()
                found.update(len(one).to_bytes(8) + one)
    return found.hexdigest()


def _bytes(source: Source) -> bytes:
    """Of a file, or as they are given; none where there is no file."""
    if isinstance(source, bytes):
        return source
    return Path(source).read_bytes() if source and Path(source).is_file() else b""


def _text(dataset: Dataset, seed: int, kind: str) -> tuple | None:
    columns = [dataset.columns[name] for name in TEXT_COLUMNS if name in dataset.columns]
    if not columns:  # machine-written keywords stand in: `|` and `▁` part their pieces
        keywords = [dataset.columns[name] for name in KEYWORDS if name in dataset.columns]
        columns = [[x.replace("|", " ").replace("▁", " ") for x in column] for column in keywords]
    if not columns:
        return None
    texts = [clean_text(" ".join(map(clean_text, row))) for row in zip(*columns, strict=True)]
    texts[0] = ""
    name, width = text_kind(kind)
    made = hashed_text(texts, width) if name == "hashed" else text_features(texts, width, seed)
    return made, np.array([bool(text) for text in texts]), []


def text_kind(text: str) -> tuple[str, int]:
    """(`lsa` or `hashed`, columns) of `lsa`, `lsa:200` and the like; DataError for another."""
    name, colon, width = text.partition(":")
    if name not in TEXTS or colon and not (width.isdecimal() and int(width)):
        usual = ", ".join(f"{name} ({width} columns)" for name, width in TEXTS.items())
        raise DataError(f"text is '{text}'; expected one of {usual}, or NAME:COLUMNS.")
    return name, int(width) if colon else TEXTS[name]


def _images(dataset: Dataset, seed: int, text: str) -> tuple | None:
    made = _from_files(dataset, "image", decode_images, describe_images)
    return made or _from_codes(dataset, "sid_image")


def _sounds(dataset: Dataset, seed: int, text: str) -> tuple | None:
    return _from_files(dataset, "audio", decode_sounds, lambda x: describe_sounds(x, RATE))


def _from_codes(dataset: Dataset, column: str) -> tuple | None:
    """Published semantic ids, `<A_1> <B_7> ...`: each code and each prefix is a hashed word."""
    if column not in dataset.columns:
        return None
    rows = [re.findall(r"\w+", value) for value in dataset.columns[column]]
    rows[0] = []
    texts = [" ".join([*row, *("".join(row[:n]) for n in range(2, len(row) + 1))]) for row in rows]
    return hashed_text(texts), np.array([bool(row) for row in rows]), []


def _from_files(
    dataset: Dataset, column: str, decode: Callable, describe: Callable
) -> tuple | None:
    """(features, present, problems); the pixels or samples of one block at a time in memory."""
    if column not in dataset.columns:
        return None
    paths, rows, present, problems = list(dataset.columns[column]), [], [], []
    for start in range(0, len(paths), BLOCK):
        content, there, found = decode(paths[start : start + BLOCK])
        rows.append(describe(content))
        present.append(there)
        problems += [problem._replace(row=start + problem.row) for problem in found]
    present = np.concatenate(present)
    return standardise(np.concatenate(rows), present), present, problems


TEXTS = {"lsa": 64, "hashed": 1024}  # and how many columns
FILED = ("image", "audio")  # columns that name files
READ = {"text": TEXT_COLUMNS + KEYWORDS, "image": ("image", "sid_image"), "audio": ("audio",)}
MAKERS = {"text": _text, "image": _images, "audio": _sounds}
