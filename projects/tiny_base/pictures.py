"""Draws the pictures that the tiny base learns from: one to three coloured shapes on a textured background.

Everything is vectorised over a batch and drawn from signed distances, so edges are anti-aliased.

Shapes: B batch, S picture side in pixels, K objects per picture at most, P patches.
"""

from dataclasses import dataclass

import numpy as np

SIDE = 64
PATCH = 8
MAX_OBJECTS = 3
SHAPES = ("circle", "rectangle", "triangle", "oval", "cross", "ring", "star", "semicircle")
# Ranges of hue (degrees), saturation and value. Red and brown, black and gray, orange and yellow are kept apart by a
# gap, so that every name can be learnt.
COLORS = {
    "red": ((-10, 10), (0.72, 1.0), (0.74, 1.0)),
    "green": ((95, 150), (0.5, 1.0), (0.4, 1.0)),
    "blue": ((212, 248), (0.65, 1.0), (0.6, 1.0)),
    "yellow": ((49, 63), (0.65, 1.0), (0.82, 1.0)),
    "black": ((0, 360), (0.0, 0.4), (0.0, 0.15)),
    "gray": ((0, 360), (0.0, 0.07), (0.36, 0.66)),
    "white": ((0, 360), (0.0, 0.05), (0.93, 1.0)),
    "brown": ((0, 32), (0.45, 0.82), (0.3, 0.64)),
    "teal": ((172, 188), (0.6, 1.0), (0.36, 0.68)),
    "orange": ((20, 37), (0.82, 1.0), (0.86, 1.0)),
    "purple": ((268, 300), (0.5, 1.0), (0.4, 0.85)),
    "pink": ((312, 350), (0.22, 0.58), (0.87, 1.0)),
}
COLOR_NAMES = tuple(COLORS)
_RANGES = np.array([np.ravel(ranges) for ranges in COLORS.values()], np.float32)
# Smallest radius in pixels at which a shape can be told from the others.
_LEAST_RADIUS = np.array([3.5, 3.5, 4.0, 5.0, 5.0, 5.0, 6.0, 5.0], np.float32)
_LABEL_COVER = 0.12
_YS, _XS = np.meshgrid(np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5, indexing="ij")
_XS, _YS = _XS.astype(np.float32), _YS.astype(np.float32)


@dataclass
class Pictures:
    """A batch of pictures and what is in them.

    Args:
        pixels: (B, S, S, 3) uint8.
        count: (B,) objects per picture; the arrays below hold rubbish past it.
        color: (B, K) index into `COLOR_NAMES`.
        shape: (B, K) index into `SHAPES`.
        center: (B, K, 2) x, y in pixels.
        patch_color: (B, P) colour of the object in a patch, `len(COLOR_NAMES)` for background.
        patch_shape: (B, P) its shape, `len(SHAPES)` for background.
    """

    pixels: np.ndarray
    count: np.ndarray
    color: np.ndarray
    shape: np.ndarray
    center: np.ndarray
    patch_color: np.ndarray
    patch_shape: np.ndarray

    def __len__(self) -> int:
        return len(self.count)


def draw_pictures(rng: np.random.Generator, number: int) -> Pictures:
    """Draw `number` pictures.

    Args:
        rng: Decides everything; the same generator state gives the same pictures.
        number: How many.
    """
    count = rng.choice([1, 2, 3], number, p=[0.45, 0.35, 0.2])
    color = rng.integers(len(COLOR_NAMES), size=(number, MAX_OBJECTS))
    shape = rng.integers(len(SHAPES), size=(number, MAX_OBJECTS))
    radius = _radii(rng, count, shape)
    center = _centers(rng, count, radius)
    fill = _hsv_to_rgb(*_sample_hsv(rng, color))  # (B, K, 3)
    canvas = _background(rng, fill, count)  # (B, S, S, 3)
    cover = np.zeros((number, MAX_OBJECTS, SIDE, SIDE), np.float32)
    for k in range(MAX_OBJECTS):
        drawn = np.flatnonzero(count > k)
        alpha = _coverage(rng, shape[drawn, k], center[drawn, k], radius[drawn, k])
        cover[drawn, :k] *= 1 - alpha[:, None]
        cover[drawn, k] = alpha
        shade = 1 + _gradient(rng, len(drawn), 0.12)
        layer = np.clip(fill[drawn, k][:, None, None] * shade[..., None], 0, 1)
        canvas[drawn] += alpha[..., None] * (layer - canvas[drawn])
    noise = rng.standard_normal(canvas.shape, np.float32) * rng.uniform(0, 0.03, (number, 1, 1, 1)).astype(np.float32)
    pixels = np.clip((canvas + noise) * 255 + 0.5, 0, 255).astype(np.uint8)
    patch_color, patch_shape = _patch_labels(cover, color, shape)
    return Pictures(pixels, count, color, shape, center, patch_color, patch_shape)


def _radii(rng: np.random.Generator, count: np.ndarray, shape: np.ndarray) -> np.ndarray:
    least = _LEAST_RADIUS[shape]
    most = np.array([20.0, 15.0, 12.0], np.float32)[count - 1][:, None]
    # Squared, so that small objects, the harder ones, come more often.
    return least + (most - least) * rng.random(shape.shape, np.float32) ** 2


def _centers(rng: np.random.Generator, count: np.ndarray, radius: np.ndarray, tries: int = 12) -> np.ndarray:
    """Of some random layouts, the one in which objects keep the largest distance; (B, K, 2)."""
    margin = radius[:, None, :, None] * 0.8
    spots = margin + (SIDE - 2 * margin) * rng.random((len(count), tries, MAX_OBJECTS, 2), np.float32)
    gaps = np.linalg.norm(spots[:, :, :, None] - spots[:, :, None], axis=-1)
    gaps -= radius[:, None, :, None] + radius[:, None, None, :]
    absent = np.arange(MAX_OBJECTS) >= count[:, None]
    ignored = absent[:, None, :, None] | absent[:, None, None, :] | np.eye(MAX_OBJECTS, dtype=bool)
    gaps = np.minimum(np.where(ignored, 3.0, gaps).min(axis=(2, 3)), 3.0)
    return spots[np.arange(len(count)), gaps.argmax(axis=1)]


def _sample_hsv(rng: np.random.Generator, color: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    low, high = _RANGES[color][..., 0::2], _RANGES[color][..., 1::2]
    hsv = low + (high - low) * rng.random(low.shape, np.float32)
    return hsv[..., 0], hsv[..., 1], hsv[..., 2]


def _hsv_to_rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    steps = (np.array([5, 3, 1], np.float32) + hue[..., None] / 60) % 6
    ramp = np.clip(np.minimum(steps, 4 - steps), 0, 1)
    return (value[..., None] * (1 - saturation[..., None] * ramp)).astype(np.float32)


def _background(rng: np.random.Generator, fill: np.ndarray, count: np.ndarray, tries: int = 8) -> np.ndarray:
    """A tone that every object stands out from, with a gradient and sometimes faint stripes; (B, S, S, 3)."""
    number = len(count)
    size = (number, tries)
    value = np.where(rng.random(size) < 0.6, rng.uniform(0.8, 1, size), rng.random(size))
    tone = _hsv_to_rgb(rng.uniform(0, 360, size), rng.uniform(0, 0.35, size), value)
    distance = np.abs(tone[:, :, None] - fill[:, None]).max(axis=-1)  # (B, tries, K)
    distance[np.broadcast_to((np.arange(MAX_OBJECTS) >= count[:, None])[:, None], distance.shape)] = 1
    # The first tone that is far enough; if none is, the farthest.
    score = np.minimum(distance.min(axis=-1), 0.22)
    tone = tone[np.arange(number), score.argmax(axis=1)]
    shade = _gradient(rng, number, 0.08)
    angle, period = rng.uniform(0, np.pi, (number, 1, 1)), rng.uniform(4, 16, (number, 1, 1))
    wave = np.sin((_XS * np.cos(angle) + _YS * np.sin(angle)) * (2 * np.pi / period))
    depth = np.where(rng.random(number) < 0.3, rng.uniform(0, 0.06, number), 0)
    shade = shade + wave * depth[:, None, None]
    return np.clip(tone[:, None, None] + shade[..., None], 0, 1).astype(np.float32)


def _gradient(rng: np.random.Generator, number: int, most: float) -> np.ndarray:
    """A linear ramp in a random direction, 0 in the middle; (B, S, S)."""
    angle = rng.uniform(0, 2 * np.pi, (number, 1, 1)).astype(np.float32)
    depth = rng.uniform(0, most, (number, 1, 1)).astype(np.float32) * 2 / SIDE
    return depth * ((_XS - SIDE / 2) * np.cos(angle) + (_YS - SIDE / 2) * np.sin(angle))


def _coverage(rng: np.random.Generator, shape: np.ndarray, center: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """How much of each pixel its object covers, 0 to 1; (B, S, S)."""
    number = len(shape)
    turned = rng.random(number) < 0.5
    angle = np.where(turned, rng.uniform(0, 2 * np.pi, number), 0).astype(np.float32)[:, None, None]
    x, y = _XS - center[:, 0, None, None], _YS - center[:, 1, None, None]
    x, y = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    stretch = rng.random(number, np.float32)[:, None, None]
    distance = np.empty_like(x)
    for index, name in enumerate(SHAPES):
        mine = np.flatnonzero(shape == index)
        if len(mine):
            distance[mine] = _DISTANCES[name](x[mine], y[mine], radius[mine][:, None, None], stretch[mine])
    return np.clip(0.5 - distance, 0, 1)


def _circle(x: np.ndarray, y: np.ndarray, r: np.ndarray, _: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - r


def _rectangle(x: np.ndarray, y: np.ndarray, r: np.ndarray, stretch: np.ndarray) -> np.ndarray:
    # From three times as high as wide to three times as wide as high.
    wide = np.clip(3 ** np.minimum(2 * stretch - 1, 0), 1.8 / r, 1)
    high = np.clip(3 ** np.minimum(1 - 2 * stretch, 0), 1.8 / r, 1)
    return np.maximum(np.abs(x) - r * wide, np.abs(y) - r * high)


def _triangle(x: np.ndarray, y: np.ndarray, r: np.ndarray, stretch: np.ndarray) -> np.ndarray:
    half, high = r * (0.75 + 0.35 * stretch), r * (1.1 - 0.35 * stretch)
    side = (2 * high * np.abs(x) - half * (y + high)) / np.hypot(2 * high, half)
    return np.maximum(side, y - high)


def _oval(x: np.ndarray, y: np.ndarray, r: np.ndarray, stretch: np.ndarray) -> np.ndarray:
    a, b = r * 1.15, r * (0.45 + 0.15 * stretch)
    level = np.hypot(x / a, y / b)
    return level * (level - 1) / np.maximum(np.hypot(x / a**2, y / b**2), 1e-6)


def _cross(x: np.ndarray, y: np.ndarray, r: np.ndarray, stretch: np.ndarray) -> np.ndarray:
    arm = r * (0.22 + 0.14 * stretch)
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - r, y - arm), np.maximum(x - arm, y - r))


def _ring(x: np.ndarray, y: np.ndarray, r: np.ndarray, stretch: np.ndarray) -> np.ndarray:
    half = r * (0.14 + 0.08 * stretch)
    return np.abs(np.hypot(x, y) - (r - half)) - half


def _star(x: np.ndarray, y: np.ndarray, r: np.ndarray, stretch: np.ndarray) -> np.ndarray:
    sector = 2 * np.pi / 5
    turn = np.abs((np.arctan2(x, -y) + sector / 2) % sector - sector / 2)
    length, dent = np.hypot(x, y), r * (0.38 + 0.1 * stretch)
    # The edge from the tip (r, 0) to the dent, in coordinates folded into one tenth of the star.
    edge_x, edge_y = dent * np.cos(sector / 2) - r, dent * np.sin(sector / 2)
    return ((length * np.cos(turn) - r) * edge_y - length * np.sin(turn) * edge_x) / np.hypot(edge_x, edge_y)


def _semicircle(x: np.ndarray, y: np.ndarray, r: np.ndarray, _: np.ndarray) -> np.ndarray:
    y = y - 0.45 * r
    return np.maximum(np.hypot(x, y) - 1.1 * r, y)


_DISTANCES = dict(zip(SHAPES, (_circle, _rectangle, _triangle, _oval, _cross, _ring, _star, _semicircle), strict=True))


def _patch_labels(cover: np.ndarray, color: np.ndarray, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per patch, colour and shape of the object that covers most of it; (B, P) each."""
    number, side = len(cover), SIDE // PATCH
    patches = cover.reshape(number, MAX_OBJECTS, side, PATCH, side, PATCH).mean(axis=(3, 5))
    patches = patches.reshape(number, MAX_OBJECTS, side * side)
    owner = patches.argmax(axis=1)  # (B, P)
    # An object too small to fill a tenth of any patch still owns the patch it covers most.
    most = patches.max(axis=2, keepdims=True)
    owned = ((patches >= _LABEL_COVER) | ((patches == most) & (most > 0))).any(axis=1)
    rows = np.arange(number)[:, None]
    return (
        np.where(owned, color[rows, owner], len(COLOR_NAMES)),
        np.where(owned, shape[rows, owner], len(SHAPES)),
    )
