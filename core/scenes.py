"""Pictures of one object each, made by number: a striped shape somewhere on a photograph, and the box that it fills.

For localisation as in the contest that SkyNet was made for (DAC-SDC: one object a picture, mean IoU). A scene is a
function of its photograph, its number and the size, so that it is the same for everybody, and nothing is stored. Scenes
of a photograph stay together: parts of a set that share no photograph share nothing. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Shape = tuple[int, int, int]
Picture = Callable[[int, Shape], np.ndarray]  # number, [C, H, W] -> uint8

SEED = 20111
EACH = 4  # scenes of a photograph
CELL = 8  # pixels of a place of SkyNet's grid, in which the sizes of objects are told
LEAST, MOST = 1.5, 7.0  # cells that an object is wide and high, at most half of the picture
CONTRAST = 96  # least distance of a shape's two colours, in one channel
COARSE = (4, 8)  # colours of a drawn background, before they are blended
NOISE = 12  # deviation of its pixels


def ellipse(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Within the unit circle."""
    return u * u + v * v <= 1


def diamond(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Within the square on its corner."""
    return np.abs(u) + np.abs(v) <= 1


def rectangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Everywhere."""
    return np.broadcast_to(True, np.broadcast_shapes(u.shape, v.shape))


SHAPES = (ellipse, diamond, rectangle)  # of u, v within [-1, 1], each as wide and as high as its box


@dataclass(frozen=True, slots=True)
class Scenes:
    """uint8 [n, C, H, W], drawn when asked for: `EACH` of every photograph in `numbers`, which `picture` shows."""

    numbers: tuple[int, ...]
    size: Shape
    picture: Picture

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, C, H, W]."""
        return (EACH * len(self.numbers), *self.size)

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8."""
        return np.dtype(np.uint8)

    def __len__(self) -> int:
        return EACH * len(self.numbers)

    def __getitem__(self, index: Any, /) -> np.ndarray:
        chosen = np.arange(len(self))[index]
        if chosen.ndim == 0:
            return self._drawn(int(chosen))
        return np.stack([self._drawn(int(i)) for i in chosen]) if len(chosen) else np.empty((0, *self.size), np.uint8)

    def boxes(self) -> np.ndarray:
        """Centre x, centre y, width, height in shares of the picture, float32 [n, 4]; no photograph is read."""
        _, height, width = self.size
        rows = np.array([self._place(i)[1] for i in range(len(self))], np.float64).reshape(-1, 4)
        top, left, high, wide = rows.T
        return np.stack(
            [(left + wide / 2) / width, (top + high / 2) / height, wide / width, high / height], 1
        ).astype(np.float32)  # fmt: skip

    def _place(self, i: int) -> tuple[np.random.RandomState, tuple[int, int, int, int]]:
        """The generator of a scene, and top, left, height, width of its object in pixels."""
        # a generator that numpy has promised never to change
        drawn = np.random.RandomState([SEED, self.numbers[i // EACH], i % EACH])
        sides = self.size[1:]
        high, wide = (_side(side, drawn.uniform()) for side in sides)
        return drawn, (_within(sides[0] - high, drawn), _within(sides[1] - wide, drawn), high, wide)

    def _drawn(self, i: int) -> np.ndarray:
        drawn, (top, left, high, wide) = self._place(i)
        out = self.picture(self.numbers[i // EACH], self.size)
        out = np.array(out[..., ::-1] if drawn.uniform() < 0.5 else out)
        u, v = _middle(wide)[None, :], _middle(high)[:, None]
        mask = SHAPES[drawn.randint(len(SHAPES))](u, v)
        window = out[:, top : top + high, left : left + wide]
        window[:, mask] = _stripes(drawn, self.size[0], u, v)[:, mask]
        return out


def _side(whole: int, share: float) -> int:
    """Pixels of an object on a side of the picture, evenly in the logarithm; odd, so that tips reach the box."""
    most = max(2.0, min(MOST * CELL, whole / 2))
    least = min(LEAST * CELL, most)
    return 2 * int((least * (most / least) ** share - 1) / 2) + 1


def _within(free: int, drawn: np.random.RandomState) -> int:
    return int(drawn.randint(free + 1))


def _middle(count: int) -> np.ndarray:
    """The middles of so many pixels over [-1, 1]; the outermost lie on the ends."""
    return np.linspace(-1, 1, count)


def _stripes(drawn: np.random.RandomState, channels: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Two colours that differ well, in two to four stripes of any direction, uint8 [C, H, W]."""
    first = drawn.randint(0, 256, channels)
    second = drawn.randint(0, 256, channels)
    at = drawn.randint(channels)
    if abs(int(first[at]) - int(second[at])) < CONTRAST:
        second[at] = (int(first[at]) + 128) % 256
    angle, count = drawn.uniform(0, np.pi), drawn.randint(2, 5)
    stripe = np.floor((u * np.cos(angle) + v * np.sin(angle) + 2) * count).astype(int) % 2
    return np.where(stripe[None] == 0, first[:, None, None], second[:, None, None]).astype(np.uint8)


def background(number: int, size: Shape) -> np.ndarray:
    """A picture that stands in for a photograph where there is none: blended colours and noise, uint8 [C, H, W]."""
    channels, height, width = size
    drawn = np.random.RandomState([SEED, number])
    coarse = drawn.uniform(0, 256, (channels, *COARSE))
    blended = np.einsum("hi,cij,wj->chw", _blend(height, COARSE[0]), coarse, _blend(width, COARSE[1]))
    return np.clip(blended + drawn.normal(0, NOISE, size), 0, 255).astype(np.uint8)


def _blend(count: int, coarse: int) -> np.ndarray:
    """Shares of each coarse value at so many pixels, linearly between neighbours, [count, coarse]."""
    at = np.linspace(0, coarse - 1, count)
    return np.clip(1 - np.abs(at[:, None] - np.arange(coarse)), 0, None)


def scenes(numbers: Sequence[int], size: Shape, picture: Picture) -> tuple[Scenes, np.ndarray]:
    """The scenes of photographs, and their boxes."""
    made = Scenes(tuple(numbers), size, picture)
    return made, made.boxes()
