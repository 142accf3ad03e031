"""How synthetic scenes look: people's skin, hair and clothes, light, and what stands behind them.

Clothes are cut in the T-pose: a colour is a function of where a point lies on the body at rest (y up, +x to the body's left, +z to
its front, metres), so it needs no texture images and edges of sleeves and hems are sharp at any size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from body3d.datasets.synthetic_stage import Stage
from body3d.images import read_image

__all__ = ["Light", "Outfit", "backdrop", "photo", "tile"]

GAMMA = 2.2
_SKIN = np.array([(250, 218, 196), (228, 180, 146), (190, 132, 96), (126, 80, 52), (70, 44, 32)]) / 255
_HAIR = np.array([(28, 22, 20), (66, 44, 30), (120, 84, 50), (196, 160, 104), (150, 145, 140), (110, 50, 30)]) / 255
_TILE = 256  # pixels
_TILES_PER_METRE = 1 / 6


# ---- people --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Cloth:
    """Two colours and which of them a point has."""

    colours: Float[np.ndarray, "2 3"]
    kind: str  # plain, stripes, checks or blotches
    waves: Float[np.ndarray, "3 3"]  # radians per metre
    phases: Float[np.ndarray, "3"]
    threshold: float

    @staticmethod
    def draw(rng: np.random.Generator) -> "Cloth":
        colours = np.stack([_paint(rng), _paint(rng)])
        kind = ("plain", "plain", "stripes", "stripes", "checks", "blotches")[rng.integers(6)]
        period = np.exp(rng.uniform(np.log(0.03), np.log(0.25)))
        if kind == "blotches":
            waves = rng.normal(0, 1.5, (3, 3))
        else:
            waves = np.eye(3)[[rng.integers(2), 0, 1] if kind == "stripes" else [1, 0, 1]]
        return Cloth(colours, kind, 2 * np.pi / period * waves, rng.uniform(0, 2 * np.pi, 3), rng.uniform(-0.3, 0.6))

    def second(self, rest: Float[np.ndarray, "M 3"]) -> Bool[np.ndarray, " M"] | bool:
        """Where the second colour is."""
        waves, phases = self.waves.astype(np.float32), self.phases.astype(np.float32)
        if self.kind == "plain":
            return False
        if self.kind == "stripes":
            return np.sin(rest @ waves[0] + phases[0]) > self.threshold
        swing = np.sin(rest @ waves.T + phases)
        return swing.sum(-1) > 1.5 * self.threshold if self.kind == "blotches" else swing[:, 1] * swing[:, 2] > 0


# Rows of a person's palette; cloth has two.
_SKIN_ROW, _HAIR_ROW, _LIPS_ROW, _EYES_ROW, _SHOES_ROW, _SHIRT_ROW, _TROUSERS_ROW = 0, 1, 2, 3, 4, 5, 7


@dataclass(frozen=True)
class Outfit:
    """What one person wears; heights are the T-pose's y, lengths of sleeves its |x|."""

    palette: Float[np.ndarray, "9 3"]  # linear light, 0..1
    shirt: Cloth
    trousers: Cloth
    hairline: float  # hair is above the plane y = hairline + 0.85 z; 1: bald
    neckline: float
    sleeves: float
    waist: float
    legs: float  # the hem
    boots: float  # the top of the shoes

    @staticmethod
    def draw(rng: np.random.Generator) -> "Outfit":
        tone = rng.uniform(0, len(_SKIN) - 1)
        below, share = int(tone), tone % 1
        skin = ((1 - share) * _SKIN[below] + share * _SKIN[min(below + 1, len(_SKIN) - 1)]) * rng.normal(1, 0.06, 3)
        dyed = rng.random() < 0.15  # or a cap
        hair = _paint(rng) if dyed else _HAIR[rng.integers(len(_HAIR))] * rng.uniform(0.7, 1.2)
        shirt = Cloth.draw(rng)
        trousers = shirt if rng.random() < 0.12 else Cloth.draw(rng)  # the same: overalls
        colours = [
            skin,
            hair,
            skin * (0.85, 0.55, 0.55),
            (0.08, 0.06, 0.06),
            _paint(rng),
            *shirt.colours,
            *trousers.colours,
        ]
        return Outfit(
            palette=(np.clip(colours, 0, 1) ** GAMMA).astype(np.float32),
            shirt=shirt,
            trousers=trousers,
            hairline=1.0 if rng.random() < 0.1 else rng.uniform(0.52, 0.6),
            neckline=rng.uniform(0.42, 0.54),
            sleeves=rng.choice([rng.uniform(0.15, 0.2), rng.uniform(0.26, 0.42), rng.uniform(0.42, 0.69)], p=[0.15, 0.45, 0.4]),
            waist=rng.uniform(-0.08, 0.14),
            legs=rng.choice([rng.uniform(-0.42, -0.15), rng.uniform(-0.86, -0.42)], p=[0.35, 0.65]),
            boots=rng.choice([-1.0, rng.uniform(-0.87, -0.81), rng.uniform(-0.8, -0.5)], p=[0.1, 0.75, 0.15]),
        )  # fmt: skip

    def __call__(self, rest: Float[np.ndarray, "M 3"]) -> Float[np.ndarray, "M 3"]:
        """Colours (linear light, 0..1) of points of the body at rest."""
        x, y, z = np.abs(rest[:, 0]), rest[:, 1], rest[:, 2]
        row = np.where(y > self.hairline + 0.85 * np.minimum(z, 0.17), _HAIR_ROW, _SKIN_ROW).astype(np.int8)
        trousers = np.flatnonzero((y <= self.waist) & (y > self.legs))
        row[trousers] = _TROUSERS_ROW + self.trousers.second(rest.take(trousers, 0))
        shirt = (y > self.waist) & (y < 0.56) & (x < self.sleeves) & ((y < self.neckline) | (x > 0.075))
        shirt = np.flatnonzero(shirt)
        row[shirt] = _SHIRT_ROW + self.shirt.second(rest.take(shirt, 0))
        row[y < self.boots] = _SHOES_ROW
        face = np.flatnonzero((y > 0.56) & (y < 0.7) & (z > 0.13))
        if len(face):
            x, y = x[face], y[face]
            if self.hairline < 1:
                row[face[(np.abs(x - 0.031) < 0.018) & (np.abs(y - 0.686) < 0.005)]] = _HAIR_ROW  # the brows
            row[face[((x - 0.029) / 0.014) ** 2 + ((y - 0.666) / 0.009) ** 2 < 1]] = _EYES_ROW
            row[face[(x / 0.025) ** 2 + ((y - 0.593) / 0.009) ** 2 < 1]] = _LIPS_ROW
        return self.palette.take(row, 0)


def _paint(rng: np.random.Generator) -> Float[np.ndarray, "3"]:
    """A colour as of cloth or walls: greys, muted and some strong ones."""
    hsv = np.array([[[360 * rng.random(), rng.beta(1.2, 2.0), rng.uniform(0.08, 0.98)]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float64)


# ---- light ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Light:
    """A far lamp or the sun, and light from all around."""

    towards: Float[np.ndarray, "3"]  # unit vector to the lamp, camera axes
    up: Float[np.ndarray, "3"]
    ambient: float
    tint: Float[np.ndarray, "3"]

    @staticmethod
    def draw(rng: np.random.Generator, up: Float[np.ndarray, "3"]) -> "Light":
        flat = np.cross(up, rng.normal(size=3))
        flat /= np.linalg.norm(flat)
        flat[2] = -abs(flat[2]) if rng.random() < 0.6 else flat[2]  # more often from the camera's side
        flat -= (flat @ up) * up
        flat /= np.linalg.norm(flat)
        height = np.radians(rng.uniform(20, 85))
        tint = rng.uniform(0.85, 1.3) * (1 + rng.normal(0, 0.06) * np.array([1.0, 0, -1]))
        return Light(np.cos(height) * flat + np.sin(height) * up, up, rng.uniform(0.25, 0.65), tint)

    def __call__(self, normals: Float[np.ndarray, "M 3"]) -> Float[np.ndarray, " M"]:
        """How bright matt surfaces are, about 0..1."""
        lamp = np.maximum(normals @ self.towards + 0.15, 0) / 1.15
        return (self.ambient * (0.8 + 0.2 * normals @ self.up) + (1 - self.ambient) * lamp).astype(np.float32)


# ---- surroundings --------------------------------------------------------------------------------------------------
def tile(rng: np.random.Generator, shapes: int) -> UInt8[np.ndarray, "256 256 3"]:
    """A piece of wall or floor that can be repeated: a colour, a pattern, cloudy dirt, and some rectangles and discs."""
    out = np.empty((_TILE, _TILE, 3), np.uint8)
    out[:] = 255 * _paint(rng)
    kind = rng.integers(4)
    step = int(rng.choice([8, 16, 32, 64]))
    odd = (np.arange(_TILE) // step) % 2 == 1
    if kind == 1:
        out[odd] = 255 * _paint(rng)
    elif kind == 2:
        out[odd[:, None] ^ odd] = 255 * _paint(rng)
    elif kind == 3:  # planks or tiles with joints
        out[::step] = out[:, :: 2 * step] = out[0, 0] // 2
    for _ in range(shapes):
        colour = (255 * _paint(rng)).tolist()
        a, b = rng.integers(0, _TILE, 2), rng.integers(6, 90, 2)
        if rng.random() < 0.7:
            cv2.rectangle(
                out, a.tolist(), (a + b).tolist(), colour, -1 if rng.random() < 0.7 else int(rng.integers(1, 8))
            )
        else:
            cv2.ellipse(out, a.tolist(), (b // 2 + 1).tolist(), 180 * rng.random(), 0, 360, colour, -1)
    dirt = rng.uniform(0, 60) * rng.random((int(rng.choice([8, 32, 128])),) * 2, np.float32)
    return cv2.subtract(out, cv2.merge([cv2.resize(dirt, (_TILE, _TILE)).astype(np.uint8)] * 3))


def backdrop(
    rng: np.random.Generator, stage: Stage, x: Float[np.ndarray, " W"], y: Float[np.ndarray, " H"], beyond: float
) -> UInt8[np.ndarray, "H W 3"]:
    """A floor to its horizon under a sky, or with a wall `beyond` metres or more ahead; rays of pixels are (x, y, 1)."""

    def along(axis: np.ndarray) -> Float[np.ndarray, "H W"]:
        """The part of each ray in the direction of `axis`."""
        a = axis.astype(np.float32)
        return a[0] * x + (a[1] * y + a[2])[:, None]

    tiny = np.float32(1e-4)
    walled = rng.random() < 0.6
    turn = rng.uniform(-0.9, 0.9) if walled else 0.0
    into_wall = along(np.cos(turn) * stage.ahead + np.sin(turn) * stage.right)
    along_wall = along(np.cos(turn) * stage.right - np.sin(turn) * stage.ahead)
    rise = along(stage.up)
    distance = np.float32(stage.height) / np.maximum(-rise, tiny)  # along the ray, to the floor

    floor_tile = tile(rng, int(rng.integers(0, 5)))
    floor = _lookup(floor_tile, along_wall * distance, into_wall * distance, rng)
    near = np.exp(distance / np.float32(-rng.uniform(6, 25)))
    mean = np.full_like(floor, np.array(cv2.mean(floor_tile)[:3], np.uint8))
    floor = cv2.blendLinear(floor, mean, near, 1 - near)  # far away a pixel holds many repeats
    if walled:
        to_wall = np.float32(beyond + rng.exponential(2.0)) / np.maximum(into_wall, tiny)
        behind = _lookup(tile(rng, int(rng.integers(0, 14))), along_wall * to_wall, -rise * to_wall, rng)
        is_floor = (rise < 0) & (distance < to_wall)
    else:
        top, bottom = (np.array(255 * c, np.float32) for c in (_paint(rng), 0.5 + 0.5 * _paint(rng)))
        share = np.clip(rise / 0.8, 0, 1)[..., None]
        clouds = cv2.resize(rng.random((6, 10), np.float32), rise.shape[::-1], interpolation=cv2.INTER_CUBIC)[..., None]
        sky = bottom + (top - bottom) * share + np.float32(60 * rng.random()) * (clouds - 0.5)
        behind = np.clip(sky, 0, 255).astype(np.uint8)
        is_floor = rise < 0
    return cv2.copyTo(floor, is_floor.astype(np.uint8), behind)


def photo(rng: np.random.Generator, files: Sequence[Path], size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """A random part of a random picture, at `size` (height, width)."""
    image = read_image(files[int(rng.integers(len(files)))])
    scale = min(image.shape[0] / size[0], image.shape[1] / size[1]) * rng.uniform(0.6, 1)
    height, width = (max(int(scale * side), 1) for side in size)
    y, x = rng.integers(image.shape[0] - height + 1), rng.integers(image.shape[1] - width + 1)
    part = cv2.resize(image[y : y + height, x : x + width], size[::-1], interpolation=cv2.INTER_AREA)
    return part[:, ::-1].copy() if rng.random() < 0.5 else part


def _lookup(tile: np.ndarray, a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    scale = np.float32(_TILE * _TILES_PER_METRE * rng.uniform(0.6, 2.0))
    shift = rng.uniform(0, _TILE, 2).astype(np.float32)
    across, down = (np.clip(v * scale + s, -32000, 32000) for v, s in zip((a, b), shift, strict=True))  # cv2's range
    return cv2.remap(tile, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
