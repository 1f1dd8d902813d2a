"""Pictures as published encoders read them: resize, crop and scale of preprocessor_config.json.

Pillow resizes as it did when the weights were trained: antialiased, bicubic or bilinear.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from pipelines.content import (
    BAD_IMAGE,
    MAX_PIXELS,
    Problem,
    Source,
    as_rgb,
    check_pixels,
    decode_each,
)
from pipelines.schema import DataError

# Where preprocessor_config.json leaves `resample` out (old files of ViT): the family's own.
RESAMPLE = {"vit": 2, "clip": 3, "siglip": 3, "dinov2": 3, "videomae": 2}


class Steps(NamedTuple):
    """What is done to a picture, in this order; JSON-able."""

    size: tuple[int, int] | int | None  # (h, w), or of the shortest edge, or as it is
    resample: int  # Pillow's number: 2 bilinear, 3 bicubic
    crop: tuple[int, int] | None  # (h, w) from the centre
    scale: float  # of the values 0..255
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) of what comes out."""
        return self.crop or self.size


def steps_of(config: Mapping[str, Any], model_type: str) -> Steps:
    """The steps in a parsed preprocessor_config.json.

    Raises DataError where pictures would come out in different sizes, or smaller than the crop.
    """
    crop = _pair(config.get("crop_size")) if config.get("do_center_crop") else None
    size = _size(config.get("size"), bool(crop)) if config.get("do_resize", True) else None
    scale = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if config.get("do_normalize", True):
        mean, std = (_channels(config, name) for name in ("image_mean", "image_std"))
    resample = int(config.get("resample", RESAMPLE.get(model_type, 3)))
    steps = Steps(size, resample, crop, float(scale), mean, std)
    if not isinstance(steps.shape, tuple):
        raise DataError(
            f"preprocessor_config.json: size {config.get('size')} and crop_size "
            f"{config.get('crop_size')} leave pictures in different sizes; expected a height and "
            "a width, or a shortest edge with a crop from the centre."
        )
    least = (size, size) if isinstance(size, int) else size
    if crop and (least is None or least[0] < crop[0] or least[1] < crop[1]):
        raise DataError(f"preprocessor_config.json: a crop of {crop} needs size {size} to hold it.")
    return steps


def _size(size: Any, cropped: bool) -> tuple[int, int] | int | None:
    """Old files give one number: the shortest edge where a crop follows, else both."""
    if isinstance(size, Mapping) and "shortest_edge" in size:
        return int(size["shortest_edge"])
    return int(size) if isinstance(size, int) and cropped else _pair(size)


def _pair(size: Any) -> tuple[int, int] | None:
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    return (size, size) if isinstance(size, int) else None


def _channels(config: Mapping[str, Any], name: str) -> tuple[float, ...]:
    values = config.get(name)
    if not isinstance(values, Sequence) or len(values) != 3:
        raise DataError(f"preprocessor_config.json: expected three numbers {name}, found {values}.")
    return tuple(float(x) for x in values)


def prepared(image: Image.Image, steps: Steps) -> np.ndarray:
    """float32 [h,w,3] of an RGB picture."""
    if steps.size is not None:
        h, w = _target(image, steps.size)
        image = image.resize((w, h), Image.Resampling(steps.resample))
    if steps.crop is not None:
        h, w = steps.crop
        top, left = (image.height - h) // 2, (image.width - w) // 2
        image = image.crop((left, top, left + w, top + h))
    x = np.asarray(image, np.float32) * np.float32(steps.scale)
    return (x - np.array(steps.mean, np.float32)) / np.array(steps.std, np.float32)


def _target(image: Image.Image, size: tuple[int, int] | int) -> tuple[int, int]:
    if isinstance(size, tuple):
        return size
    short, long = sorted((image.height, image.width))
    other = int(size * long / short)
    return (size, other) if image.height <= image.width else (other, size)


def decode_pixels(
    sources: Sequence[Source], steps: Steps, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, np.ndarray, list[Problem]]:
    """Files or bytes to (float32 [n,h,w,3], present bool [n], problems), as content.decode_images.

    EXIF rotation applied, alpha laid over white; what cannot be read is a problem, its row zero.
    """

    def one(data: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(data)) as image:
            check_pixels(image.width, image.height, max_pixels)
            return prepared(as_rgb(ImageOps.exif_transpose(image)), steps)

    out = np.zeros((len(sources), *steps.shape, 3), np.float32)
    return decode_each(sources, one, out, BAD_IMAGE)
