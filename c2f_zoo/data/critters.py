"""Critters: the drawn data set, in which each level of the tree is decided at its own scale.

A critter is an invented creature of one of 4 families, 12 genera and 36 species. Nothing is downloaded:
each image is drawn from its seed and index. At 96 x 96 pixels three things about it carry its class,
and each of them dies at its own distance:

* the **family** is its silhouette (disc, bar, triangle, cross; equal areas): it survives at 12 pixels;
* the **genus** is how its skin is patched (even stripes, thin light ripples, dark tiles; some 6 pixels wide, of no
  effect on the mean): plain at 32 pixels, nearly averaged away at 12;
* the **species** is the mark stamped all over it (hatched, light-dotted, dark-chequered; some 9 pixels across, of no
  effect on the mean, in details of some 2 pixels): plain at 96 pixels, blurred at 32, gone at 12.

All else (pose, size, place, colours, background, blotches, gaze) is drawn from the same distributions for
every species, and so says nothing about it.

The species index spells the critter out: ``family = s // 9``, ``patches = s // 3 % 3``, ``mark = s % 3``.
"""

import math

import numpy as np
from PIL import Image

from c2f_zoo.data.registry import register_dataset
from c2f_zoo.hierarchy import load_hierarchy

_SPLITS = ("train", "test")
_SPECIES = 36
_UNIT = 96.0  # lengths below are in pixels of a 96-pixel image, whatever size is drawn
_PATCH = 6.2  # width of a stripe: two of them must pass a 32-pixel grid and not a 12-pixel one
_DETAIL, _PITCH = 2.2, 11.0  # width of a bar or cell of a mark; from one mark to the next
_PATCH_CONTRAST, _MARK_CONTRAST = 0.42, 0.50
_BRIGHTEST_SKIN = 0.54  # low enough that few light patches and marks are clipped


def draw_critter(species: int, rng: np.random.Generator, size: int = 96) -> Image.Image:
    """Draw one image of a species.

    What ``rng`` gives is drawn in an order that does not depend on the species: from the same state of
    ``rng``, another species is drawn in the same pose and colours, on the same background.

    Args:
        species: the species, 0 to 35, in the order of the ``critters`` tree.
        rng: where pose, colours, background and the rest come from; it is advanced.
        size: side of the image in pixels.

    Returns:
        An RGB image of ``size`` x ``size`` pixels.

    Raises:
        ValueError: if ``species`` is not within 0 to 35, or ``size`` is less than 1.

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

    skin = 0.15 + 0.85 * colours[0]
    skin *= _BRIGHTEST_SKIN / skin.max()
    near, far = (0.02 + 0.14 * colours[1:]) if is_night else (0.68 + 0.21 * colours[1:])
    ramp = np.clip(np.linspace(0, 1, size)[:, None] + 0.6 * _spread(blotches[1], size), 0, 1)[..., None]
    ground = (near + (far - near) * ramp) * (1 + 0.12 * _spread(blotches[2], size))[..., None]
    image = ground * (1 - cover)[..., None] + skin * tone[..., None] + white[..., None]
    return Image.fromarray((255 * np.clip(image, 0, 1) + 0.5).astype(np.uint8))


def _body_grid(pose: list[float], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Body coordinates of each point of a grid twice as fine as the image: rotated, scaled and shifted."""
    angle, scale = 2 * math.pi * pose[0], 0.95 + 0.20 * pose[1]
    line = ((np.arange(2 * size) + 0.5) / (2 * size) - 0.5) * _UNIT
    x, y = (line - 8 * (pose[2] - 0.5)) / scale, (line - 8 * (pose[3] - 0.5)) / scale
    return _turn(x[None].astype(np.float32), y[:, None].astype(np.float32), angle)


def _turn(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """The same points seen from axes turned by an angle."""
    c, s = math.cos(angle), math.sin(angle)
    return c * x + s * y, c * y - s * x


def _paint(species: int, u: np.ndarray, v: np.ndarray, looks: list[float]) -> tuple[np.ndarray, ...]:
    """Tone of the skin (0 to 2), cover of the body and white of the eyes (0 to 1), each (size, size)."""
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
    """Signed distance (roughly) to the rim, negative inside. The four areas are equal to some 3 %."""
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
    """The skin of the genus, of mean 0: even stripes along the body, thin light ripples, or dark tiles."""
    if kind == 0:
        return _even(np.floor(v / _PATCH + 2 * looks[0])) * np.float32(2) - 1
    if kind == 1:
        return _accent(_saw(radius / (2 * _PATCH) + looks[0]) < 0.25)
    tiles = (_saw(u / (2 * _PATCH) + looks[0]) < 0.5) & (_saw(v / (2 * _PATCH) + looks[1]) < 0.5)
    return -_accent(tiles)


def _mark(kind: int, u: np.ndarray, v: np.ndarray, looks: list[float]) -> np.ndarray:
    """The marks of the species, on a lattice turned at random: of mean 0 over a mark, 0 between marks."""
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
    """1.5 on the quarter that is named, -0.5 on the rest: of mean 0, but not the same as its opposite."""
    return np.where(small, np.float32(1.5), np.float32(-0.5))


def _even(cell: np.ndarray) -> np.ndarray:
    """Whether a whole number is even."""
    return cell.astype(np.int32) & 1 == 0


def _saw(x: np.ndarray) -> np.ndarray:
    """The part of a number behind its point, in [0, 1)."""
    return x - np.floor(x)


def _spread(noise: np.ndarray, size: int) -> np.ndarray:
    """Noise on a coarse grid, 0 to 1, as smooth noise of (size, size) within -1 to 1."""
    coarse = Image.fromarray((2 * noise - 1).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BILINEAR))


def _halve(fine: np.ndarray) -> np.ndarray:
    """Mean of each 2 x 2 block."""
    rows = fine[0::2].astype(np.float32) + fine[1::2]
    return (rows[:, 0::2] + rows[:, 1::2]) / 4


@register_dataset("critters")
class Critters:
    """The drawn data set: ``per_class`` images of each of the 36 species.

    An image is drawn when it is first asked for, and kept (28 kB each): it depends on the seed, the split and
    the index only. The two splits share no random stream.

    Attributes:
        hierarchy: the tree of 4 families, 12 genera and 36 species.
        targets: the species of each index, 0 to 35; as long as the data set.

    Args:
        split: ``"train"`` or ``"test"``.
        per_class: how many images of each species.
        seed: another seed is another data set.

    Raises:
        ValueError: if ``split`` is neither of the two, or ``per_class`` is less than 1.

    Examples:
        >>> data = Critters("test", per_class=2)
        >>> image, species = data[71]
        >>> len(data), image.size, species
        (72, (96, 96), 35)
    """

    def __init__(self, split: str = "train", per_class: int = 100, seed: int = 0) -> None:
        if split not in _SPLITS:
            raise ValueError(f"unknown split {split!r}; choose from {', '.join(map(repr, _SPLITS))}")
        if per_class < 1:
            raise ValueError(f"per_class must be at least 1, not {per_class}")
        self.hierarchy = load_hierarchy("critters")
        self.targets = [index // per_class for index in range(_SPECIES * per_class)]
        self._stream = (seed, _SPLITS.index(split))
        self._drawn: dict[int, Image.Image] = {}

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """The image of an index from 0 to ``len(self) - 1``, and its species; else an IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        species = self.targets[index]
        if index not in self._drawn:
            self._drawn[index] = draw_critter(species, np.random.default_rng((*self._stream, index)))
        return self._drawn[index].copy(), species
