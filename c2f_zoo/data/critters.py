"""Critters: a synthetic dataset in which each level needs its own resolution.

A critter is an invented creature of one of 4 families, 12 genera and 36 species. Nothing is downloaded: each image is
drawn from its seed and index. At 96 x 96 pixels its class shows in three ways, each up to its own resolution:

* the **family** is the silhouette (disc, bar, triangle, cross; equal areas), visible at 12 pixels;
* the **genus** is the pattern of the skin (even stripes, thin light ripples, dark tiles; about 6 pixels wide, without
  effect on the mean), clear at 32 pixels and nearly averaged out at 12;
* the **species** is the mark repeated on the skin (hatched, light-dotted, dark-chequered; about 9 pixels across with
  details of about 2 pixels, without effect on the mean), clear at 96 pixels, blurred at 32, invisible at 12.

Pose, size, position, colours, background, blotches and gaze are drawn from the same distributions for every species.

A species index encodes the three: `family = s // 9`, `patches = s // 3 % 3`, `mark = s % 3`.
"""

import math

import numpy as np
from PIL import Image

from c2f_zoo.data.registry import IndexedImages, check_split, register_dataset
from c2f_zoo.hierarchy import load_hierarchy

_SPECIES = 36
_UNIT = 96.0  # lengths below are in pixels of a 96-pixel image
_PATCH = 6.2  # width of a stripe: two of them must pass a 32-pixel grid and not a 12-pixel one
_DETAIL, _PITCH = 2.2, 11.0  # width of a bar or cell of a mark; from one mark to the next
_PATCH_CONTRAST, _MARK_CONTRAST = 0.42, 0.50
_BRIGHTEST_SKIN = 0.54  # low enough that few light patches and marks are clipped


def draw_critter(species: int, rng: np.random.Generator, size: int = 96) -> Image.Image:
    """Draw one image of a species.

    Random numbers are drawn in an order that does not depend on the species: with the same state of `rng`, another
    species has the same pose, colours and background.

    Args:
        species: the species, 0 to 35, in the order of the `critters` tree.
        rng: source of the pose, colours and background; it is advanced.
        size: side of the image in pixels.

    Returns:
        An RGB image of `size` x `size` pixels.

    Raises:
        ValueError: `species` is not within 0 to 35, or `size` is less than 1.

    Examples:
        >>> draw_critter(7, np.random.default_rng(0)).size
        (96, 96)
    """
    if not 0 <= species < _SPECIES:
        raise ValueError(f"species must be within 0 to {_SPECIES - 1}, not {species}")
    if size < 1:
        raise ValueError(f"size must be at least 1, not {size}")
    pose, looks, colours = rng.random(4).tolist(), rng.random(5).tolist(), rng.random((3, 3))
    is_night, blotches = rng.random() < 0.5, rng.random((3, 10, 10))
    freckles = rng.random((48, 48))

    u, v = _body_grid(pose, size)
    tone, cover, white = _paint(species, u, v, looks)
    tone *= 1 + 0.15 * _spread(blotches[0], size) + 0.10 * _spread(freckles, size)

    colours = colours[..., None, None]  # (parts, channels, 1, 1): numpy is fast if the last axis is long
    skin = 0.15 + 0.85 * colours[0]
    skin *= _BRIGHTEST_SKIN / skin.max()
    near, far = (0.02 + 0.14 * colours[1:]) if is_night else (0.68 + 0.21 * colours[1:])
    ramp = np.clip(np.linspace(0, 1, size)[:, None] + 0.6 * _spread(blotches[1], size), 0, 1)
    ground = (near + (far - near) * ramp) * (1 + 0.12 * _spread(blotches[2], size))
    image = ground * (1 - cover) + skin * tone + white
    levels = (255 * np.clip(image, 0, 1) + 0.5).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(levels.transpose(1, 2, 0)))


def _body_grid(pose: list[float], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the body coordinates of a grid twice as fine as the image."""
    angle, scale = 2 * math.pi * pose[0], 0.95 + 0.20 * pose[1]
    line = ((np.arange(2 * size) + 0.5) / (2 * size) - 0.5) * _UNIT
    x, y = (line - 8 * (pose[2] - 0.5)) / scale, (line - 8 * (pose[3] - 0.5)) / scale
    return _turn(x[None].astype(np.float32), y[:, None].astype(np.float32), angle)


def _turn(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates of points in axes turned by an angle."""
    c, s = math.cos(angle), math.sin(angle)
    return c * x + s * y, c * y - s * x


def _paint(species: int, u: np.ndarray, v: np.ndarray, looks: list[float]) -> tuple[np.ndarray, ...]:
    """Return the skin's tone (0 to 2), the body's and the eyes' coverage (0 to 1).

    Each has the shape (size, size).
    """
    radius = np.sqrt(u * u + v * v)
    depth = _silhouette(species // 9, u, v, radius)
    inside = depth < 0
    patches = _patches(species // 3 % 3, u, v, radius, looks)
    marks = _mark(species % 3, u, v, looks)
    tone = np.maximum(1 + _PATCH_CONTRAST * patches + _MARK_CONTRAST * marks, 0)
    tone[depth > -1.2] = 0.5  # the outline

    side = np.abs(u) - 6.5
    eye = side * side + (v + 1) ** 2 < 4.6**2
    look_u, look_v = 6.5 + 3.2 * (looks[3] - 0.5), 3.2 * (looks[4] - 0.5) - 1
    pupil = np.minimum(np.abs(u - look_u), np.abs(u - look_u + 13)) ** 2 + (v - look_v) ** 2 < 2.5**2
    tone *= inside & ~eye
    return _halve(tone), _halve(inside), _halve(eye & ~pupil)


def _silhouette(family: int, u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Return the approximate signed distance to the outline, negative inside.

    The areas of the four families are equal within 3 %.
    """
    if family == 0:  # disc
        return radius - 27.5
    if family == 1:  # bar with round ends
        end = np.maximum(np.abs(u) - 28, 0)
        return np.sqrt(end * end + v * v) - 15
    if family == 2:  # triangle with blunt corners
        return np.maximum(np.maximum(v, 0.866 * np.abs(u) - 0.5 * v) - 21.8, radius - 39)
    a, b = np.abs(u), np.abs(v)  # cross
    return np.maximum(np.minimum(a, b) - 10, np.maximum(a, b) - 35)


def _patches(kind: int, u: np.ndarray, v: np.ndarray, radius: np.ndarray, looks: list[float]) -> np.ndarray:
    """Return the pattern of a genus, of mean 0: stripes, light ripples, dark tiles."""
    if kind == 0:
        return _even(np.floor(v / _PATCH + 2 * looks[0])) * np.float32(2) - 1
    if kind == 1:
        return _accent(_saw(radius / (2 * _PATCH) + looks[0]) < 0.25)
    tiles = (_saw(u / (2 * _PATCH) + looks[0]) < 0.5) & (_saw(v / (2 * _PATCH) + looks[1]) < 0.5)
    return -_accent(tiles)


def _mark(kind: int, u: np.ndarray, v: np.ndarray, looks: list[float]) -> np.ndarray:
    """Return the marks of a species, on a lattice turned at random.

    They have mean 0 over a mark, and are 0 between marks.
    """
    p, q = _turn(u, v, 2 * math.pi * looks[2])
    p, q = (_saw(x / _PITCH + looks[i]) * _PITCH - _PITCH / 2 for i, x in enumerate((p, q)))
    if kind == 1:  # a light dot in a dark ring
        r2 = p * p + q * q
        return (r2 < 4.4**2) * _accent(r2 < 2.2**2)
    within = np.maximum(np.abs(p), np.abs(q)) < 2 * _DETAIL
    if kind == 0:  # hatched: five bars, the outer two of half a width
        return within * (_even(np.floor(p / _DETAIL + 0.5)) * np.float32(2) - 1)
    dark = (_saw(p / (2 * _DETAIL)) < 0.5) & (_saw(q / (2 * _DETAIL)) < 0.5)
    return within * -_accent(dark)  # chequered: four dark cells, light between them


def _accent(small: np.ndarray) -> np.ndarray:
    """Return 1.5 on a quarter of the area and -0.5 elsewhere, which has mean 0."""
    return small * np.float32(2) - np.float32(0.5)


def _even(cell: np.ndarray) -> np.ndarray:
    """Return whether integers are even."""
    return cell.astype(np.int32) & 1 == 0


def _saw(x: np.ndarray) -> np.ndarray:
    """Return the fractional part of numbers, in [0, 1)."""
    return x - np.floor(x)


def _spread(noise: np.ndarray, size: int) -> np.ndarray:
    """Return smooth noise (size, size) within -1 to 1 from coarse noise within 0 to 1."""
    coarse = Image.fromarray((2 * noise - 1).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BILINEAR))


def _halve(fine: np.ndarray) -> np.ndarray:
    """Return the mean of each 2 x 2 block."""
    rows = fine[0::2].astype(np.float32) + fine[1::2]
    return (rows[:, 0::2] + rows[:, 1::2]) / 4


@register_dataset("critters")
class Critters(IndexedImages):
    """The synthetic dataset: `per_class` images of each of the 36 species.

    An image is drawn when it is first used, and kept (28 kB). It depends only on the seed, the split and the index. The
    two splits have independent random numbers.

    Attributes:
        hierarchy: the tree of 4 families, 12 genera and 36 species.
        targets: the species of each image, 0 to 35.

    Args:
        split: `"train"` or `"test"`.
        per_class: number of images of each species.
        seed: seed of the images.

    Raises:
        ValueError: the split is unknown, or `per_class` is less than 1.

    Examples:
        >>> data = Critters("test", per_class=2)
        >>> image, species = data[71]
        >>> len(data), image.size, species
        (72, (96, 96), 35)
    """

    def __init__(self, split: str = "train", per_class: int = 100, seed: int = 0) -> None:
        check_split("critters", split)
        if per_class < 1:
            raise ValueError(f"per_class must be at least 1, not {per_class}")
        self.hierarchy = load_hierarchy("critters")
        self.targets = [index // per_class for index in range(_SPECIES * per_class)]
        self._stream = (seed, int(split == "test"))
        self._drawn: dict[int, Image.Image] = {}

    def read(self, index: int, shorter_side: int | None = None) -> Image.Image:
        """Return an image; `shorter_side` is ignored."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        if index not in self._drawn:
            self._drawn[index] = draw_critter(self.targets[index], np.random.default_rng((*self._stream, index)))
        return self._drawn[index].copy()
