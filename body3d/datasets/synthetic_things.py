"""What else is in synthetic scenes: boxes on the floor, things before the lens, shadows, and what lens and sensor add."""

from collections.abc import Iterator
from functools import cache

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from body3d.datasets.synthetic_draw import Canvas
from body3d.datasets.synthetic_look import GAMMA, Light, tile
from body3d.datasets.synthetic_stage import DIRECTIONS, GAP, NEAREST, Stage, reach_on_floor

__all__ = ["boxes_around", "finish", "put_in_front", "shadow"]


def boxes_around(
    rng: np.random.Generator, stage: Stage, skins: Float[np.ndarray, "N S 3"], target: Float[np.ndarray, "2"]
) -> Iterator[tuple[list[Float[np.ndarray, "4 3"]], Float[np.ndarray, "3"]]]:
    """Boxes that stand on the floor clear of the people: sides (corners clockwise from outside) and colour (linear light)."""
    reach = reach_on_floor(skins, stage)
    for _ in range(int(rng.integers(0, 4))):
        angle, half = rng.uniform(0, np.pi / 2), rng.uniform(0.1, 0.6, 2)
        tall = rng.uniform(0.2, 1.1) if rng.random() < 0.8 else rng.uniform(1.1, 2.8)
        place = target + rng.normal(0, 1.6, 2)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        ground = place + (np.array([[-1, -1], [1, -1], [1, 1], [-1, 1.0]]) * half) @ turn.T
        colour = (rng.uniform(0.05, 0.95, 3) * rng.uniform(0.4, 1)) ** GAMMA
        own = (-ground @ DIRECTIONS.T).max(0)  # in the opposite directions
        bottom = stage.floor(ground)
        top = bottom + tall * stage.up
        clear = all((-own - r).max() > GAP for r in reach)
        if not clear or min(bottom[:, 2].min(), top[:, 2].min()) < NEAREST:
            continue
        sides = [np.stack([bottom[i], top[i], top[(i + 1) % 4], bottom[(i + 1) % 4]]) for i in range(4)]
        yield [*sides, top[::-1]], colour


def put_in_front(rng: np.random.Generator, canvas: Canvas) -> None:
    """Sometimes something close to the lens: a post, a table's edge, a round or angular thing."""
    height, width = canvas.size
    for _ in range(int(rng.choice([0, 1, 2], p=[0.65, 0.25, 0.1]))):
        mask = np.zeros(canvas.size, np.uint8)
        x, y = int(rng.uniform(0, width)), int(rng.uniform(0.1, 1) * height)
        a, b = (rng.uniform(0.04, 0.16, 2) * max(canvas.size)).astype(int).tolist()
        kind = rng.integers(4)
        if kind == 0:
            cv2.line(mask, (x, -9), (int(x + rng.normal(0, 0.05) * width), height + 9), 1, max(a // 2, 1))
        elif kind == 1:
            edge = int(rng.uniform(0.72, 0.97) * height)
            cv2.fillConvexPoly(
                mask,
                np.array([(0, edge), (width, edge + int(rng.normal(0, 0.05) * height)), (width, height), (0, height)]),
                1,
            )
        elif kind == 2:
            cv2.ellipse(mask, (x, y), (a, b), 180 * rng.random(), 0, 360, 1, -1)
        else:
            corners = np.sort(rng.uniform(0, 2 * np.pi, 5))
            outline = (x, y) + np.stack([np.cos(corners), np.sin(corners)], -1) * (a, b)
            cv2.fillConvexPoly(mask, np.rint(cv2.convexHull(outline.astype(np.float32))).astype(np.int32), 1)
        surface = tile(rng, int(rng.integers(0, 3)))
        canvas.cover(mask, cv2.resize(surface, (width, height), interpolation=cv2.INTER_LINEAR))


def shadow(
    image: np.ndarray, skins: np.ndarray, stage: Stage, light: Light, K: np.ndarray
) -> UInt8[np.ndarray, "H W 3"]:
    """Soft shadows on the floor: where each vertex's light would have fallen, on a coarse grid, blurred."""
    coarse = 4
    height, width = image.shape[:2]
    mask = np.zeros((height // coarse + 1, width // coarse + 1), np.float32)
    points = skins.reshape(-1, 3)
    high = points @ stage.up + stage.height
    steep = max(float(light.towards @ stage.up), 0.5)
    fallen = points - (high / steep)[:, None] * (light.towards - (light.towards @ stage.up - steep) * stage.up)
    fallen = fallen[fallen[:, 2] > 0.2]
    xy = (fallen[:, :2] / fallen[:, 2:] * K[0, 0] + K[:2, 2]) / coarse
    inside = ((xy >= 0) & (xy < (mask.shape[1], mask.shape[0]))).all(-1)
    column, row = xy[inside].astype(int).T
    mask[row, column] = 1
    mask = cv2.GaussianBlur(cv2.dilate(mask, np.ones((2, 2))), (3, 3), 0)
    shade = 1 - 0.6 * (1 - light.ambient) * cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR)
    return (image * shade[..., None]).astype(np.uint8)


def finish(rng: np.random.Generator, image: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
    """The lens and the sensor: some blur, some noise."""
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 0.9))
    if rng.random() < 0.6:
        grain = _grain(image.shape)
        shift, strength = int(rng.integers(grain.size - image.size)), np.float32(rng.uniform(1, 6))
        noise = grain[shift : shift + image.size].reshape(image.shape)
        image = np.clip(image + strength * noise, 0, 255).astype(np.uint8)
    return image


@cache
def _grain(shape: tuple[int, ...]) -> Float[np.ndarray, " M"]:
    """More normal noise than a picture needs: pieces of it are random enough and cost nothing."""
    return np.random.default_rng(0).standard_normal(int(np.prod(shape)) + 99_991, np.float32)
