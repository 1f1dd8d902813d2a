"""Pixels, words and sound of the synthetic items: a style in, something real to encode out.

Every function takes style values [n] by factor name and draws its own small variations (place,
size, brightness, synonyms, tuning) from `rng`, so that no two items of a style are equal.
"""

import numpy as np

SHAPES = ("disc", "square", "triangle", "cross", "ring")
TEXTURES = ("plain", "striped", "dotted", "checked")
COLOURS = ("red", "green", "blue", "yellow", "purple", "grey")
PITCHES = ("low", "middle", "high", "shrill", "piercing")
TIMBRES = ("pure", "hollow", "bright")
NAMES = dict(shape=SHAPES, colour=COLOURS, texture=TEXTURES, pitch=PITCHES, timbre=TIMBRES)

RGB = np.array(
    [(214, 48, 42), (46, 160, 67), (48, 92, 214), (232, 196, 40), (146, 62, 178), (128, 128, 128)]
)
SYNONYMS = {
    "disc": ("disc", "circle", "roundel"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "wedge", "pyramid"),
    "cross": ("cross", "plus", "crosspiece"),
    "ring": ("ring", "hoop", "band"),
    "plain": ("plain", "solid", "smooth"),
    "striped": ("striped", "lined", "banded"),
    "dotted": ("dotted", "spotted", "speckled"),
    "checked": ("checked", "chequered", "tiled"),
    "red": ("red", "scarlet", "crimson"),
    "green": ("green", "emerald", "lime"),
    "blue": ("blue", "azure", "navy"),
    "yellow": ("yellow", "golden", "lemon"),
    "purple": ("purple", "violet", "plum"),
    "grey": ("grey", "silver", "ashen"),
    "low": ("low", "deep", "bass"),
    "middle": ("middle", "medium", "mid"),
    "high": ("high", "treble", "raised"),
    "shrill": ("shrill", "sharp", "thin"),
    "piercing": ("piercing", "keen", "whistling"),
    "pure": ("hum", "whistle", "tone"),
    "hollow": ("reed", "pipe", "clarinet"),
    "bright": ("buzz", "brass", "rasp"),
}
THINGS = ("piece", "object", "token", "item", "thing")
FILLERS = (
    *("a lovely", "the famous", "our new", "an everyday", "a small", "one more", "the original"),
    *("a classic", "a rare", "the only"),
)
TAILS = ("for the shelf", "as a gift", "made by hand", "second edition", "in a box", "for keeps")


def _distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance (negative inside, roughly Euclidean) to a figure of radius 1."""
    far, box = np.hypot(x, y), np.maximum(abs(x), abs(y))
    match shape:
        case "disc":
            return far - 1
        case "square":
            return box - 0.85
        case "triangle":
            return np.maximum(0.87 * abs(x) - 0.5 * y - 0.5, y - 0.6)
        case "cross":
            return np.maximum(box - 1, np.minimum(abs(x), abs(y)) - 0.33)
        case _:
            return abs(far - 0.75) - 0.25


def _pattern(texture: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Positive where the figure is dark: waves of about half its radius, laid on the figure."""
    across, along = np.sin(2 * np.pi * x / 0.62), np.sin(2 * np.pi * y / 0.62)
    waves = {"striped": along, "dotted": np.minimum(across, along), "checked": across * along}
    return waves.get(texture, np.full(x.shape, -1.0))


def images(
    style: dict[str, np.ndarray], size: int, noise: float, rng: np.random.Generator
) -> np.ndarray:
    """uint8 [n,size,size,3]: one textured, coloured figure on a pale ground.

    Place, size, tilt and brightness vary a little; `noise` is the standard deviation of the
    pixels as a share of full scale. Edges are antialiased by the distance in pixels.
    """
    n = len(style["shape"])
    place, scale = rng.uniform(-0.12, 0.12, (2, n)), rng.uniform(0.62, 0.8, n)
    tilt, light = rng.uniform(-0.2, 0.2, n), rng.uniform(0.85, 1.1, n)
    ground = rng.uniform(205, 250, (n, 1, 1, 3))
    grid = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = (g[None] for g in np.meshgrid(grid, grid))
    x, y = (
        (v - p[:, None, None]) / scale[:, None, None] for v, p in zip((x, y), place, strict=True)
    )
    c, s = np.cos(tilt)[:, None, None], np.sin(tilt)[:, None, None]
    x, y = c * x + s * y, c * y - s * x
    inside, dark = np.zeros(x.shape), np.zeros(x.shape)
    sharp = (scale * size / 2)[:, None, None]  # pixels to a unit of distance
    for value, name in enumerate(SHAPES):
        rows = style["shape"] == value
        inside[rows] = np.clip(0.5 - _distance(name, x[rows], y[rows]) * sharp[rows], 0, 1)
    for value, name in enumerate(TEXTURES):
        rows = style["texture"] == value
        dark[rows] = np.clip(0.5 + _pattern(name, x[rows], y[rows]) * 2, 0, 1)
    colour = (RGB[style["colour"]] * light[:, None])[:, None, None]
    ink = colour * (1 - 0.65 * dark[..., None])
    pixels = ground + inside[..., None] * (ink - ground)
    pixels += rng.normal(0, 255 * noise, pixels.shape) if noise else 0
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def captions(
    style: dict[str, np.ndarray],
    carried: tuple[str, ...],
    noise: float,
    rng: np.random.Generator,
    wordy: bool = False,
) -> list[str]:
    """A caption an item: a synonym of each carried factor, 'striped scarlet piece, deep hum'.

    `noise` is the chance that a carried factor goes unsaid; `wordy` adds words that say nothing.
    """

    def word(factor: str, row: int) -> str:
        if factor not in carried or rng.random() < noise:
            return ""
        return str(rng.choice(SYNONYMS[NAMES[factor][style[factor][row]]]))

    def caption(row: int) -> str:
        texture, colour, shape, pitch, timbre = (
            word(factor, row) for factor in ("texture", "colour", "shape", "pitch", "timbre")
        )
        thing = shape or str(rng.choice(THINGS))
        sound = f", {pitch} {timbre or 'sound'}".replace("  ", " ") if pitch or timbre else ""
        before, after = (str(rng.choice(w)) if wordy else "" for w in (FILLERS, TAILS))
        return " ".join(f"{before} {texture} {colour} {thing}{sound} {after}".split())

    return [caption(row) for row in range(len(style["shape"]))]


def sounds(
    style: dict[str, np.ndarray], rate: int, samples: int, noise: float, rng: np.random.Generator
) -> np.ndarray:
    """float32 [n,samples] in -1..1, on the grid of 16-bit samples: a decaying note with hiss.

    Pitches are fifths above 220 Hz, detuned by up to 3 %; the timbre is the first harmonic alone,
    the odd ones (hollow) or all (bright), below rate/2. `noise` is the hiss against the note.
    """
    n = len(style["pitch"])
    t = np.arange(samples) / rate
    f0 = 220 * 1.5 ** style["pitch"] * rng.uniform(0.97, 1.03, n)
    note = np.zeros((n, samples))
    for harmonic in range(1, 6):
        heard = (harmonic == 1) | (style["timbre"] == 2) | (style["timbre"] == 1) & (harmonic % 2)
        heard = heard * (f0 * harmonic < 0.45 * rate) * rng.uniform(0.8, 1.2, n) / harmonic
        note += heard[:, None] * np.sin(2 * np.pi * harmonic * f0[:, None] * t + rng.uniform(0, 6))
    envelope = np.minimum(1, t / 0.01) * np.exp(-t * rng.uniform(3, 9, (n, 1)))
    wave = 0.35 * envelope * note + rng.normal(0, 0.35 * noise + 1e-3, note.shape)
    return (np.rint(np.clip(wave, -0.99, 0.99) * 32768) / 32768).astype(np.float32)


def content(
    style: dict[str, np.ndarray],
    carries: dict[str, tuple[str, ...]],
    noise: float,
    shape: tuple[int, int, int],
    present: dict[str, np.ndarray],
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """{image uint8, audio float32, title and text object}, n rows each, zero or '' where absent.

    `shape` is (pixels a side, samples a second, samples). A factor that a modality does not carry
    is shuffled over the items there: it looks the same and says nothing.
    """

    def shown(modality: str) -> dict[str, np.ndarray]:
        kept = {f: v if f in carries[modality] else rng.permutation(v) for f, v in style.items()}
        return {f: v[present[modality]] for f, v in kept.items()}

    size, rate, samples = shape
    n = len(style["shape"])
    image, audio = np.zeros((n, size, size, 3), np.uint8), np.zeros((n, samples), np.float32)
    image[present["image"]] = images(shown("image"), size, noise, rng)
    audio[present["audio"]] = sounds(shown("audio"), rate, samples, noise, rng)
    texts, words = {}, shown("text")
    for column, wordy in (("title", False), ("text", True)):
        texts[column] = np.full(n, "", object)
        texts[column][present["text"]] = captions(words, carries["text"], noise, rng, wordy)
    return {"image": image, "audio": audio, **texts}
