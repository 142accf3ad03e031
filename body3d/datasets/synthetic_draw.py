"""Drawing of synthetic scenes: a z-buffer with two samples per pixel and axis that boxes and people share.

Small triangles are cut into the runs of samples that they cover in each row, all triangles at once; then everything is linear
along a run. `body3d.view.render` tests the samples of bounding boxes instead, which is exact for triangles of any size and depth
and several times slower for these. Faces that look away are left out: skins and boxes are closed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from body3d.datasets.synthetic_look import GAMMA, Light, Outfit
from body3d.view.render import vertex_normals

__all__ = ["IN_FRONT", "NOBODY", "SAMPLES", "Canvas", "Person"]

SAMPLES = 2  # per pixel and axis
NOBODY, IN_FRONT = -1, -2  # owners of samples that no person has
BATCH = 1 << 14  # samples shaded at a time: keeps the temporaries in the processor's cache
ROUNDING = 1e-4  # samples by which neighbouring triangles overlap rather than leave a crack
_LEVELS = 1024
_TO_BYTE = np.rint(255 * np.linspace(0, 1, _LEVELS) ** (1 / GAMMA)).astype(np.uint8)


@dataclass(frozen=True)
class Person:
    """One body to draw: its coarse skin in camera space."""

    verts: Float[np.ndarray, "V 3"]
    rest: Float[np.ndarray, "V 3"]  # the same vertices in the T-pose: what clothes are cut by
    faces: Int[np.ndarray, "F 3"]
    outfit: Outfit


class Canvas:
    """A picture in the making. Whose a sample is: a person's number, `NOBODY`'s or something's `IN_FRONT`."""

    def __init__(self, image: UInt8[np.ndarray, "H W 3"], K: Float[np.ndarray, "3 3"], light: Light):
        self.size = (SAMPLES * image.shape[0], SAMPLES * image.shape[1])
        self.colour = cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_LINEAR)
        self.inverse = np.zeros(self.size, np.float32)  # 1 / depth, 1/m
        self.owner = np.full(self.size, NOBODY, np.int16)
        self.K, self.light = K, light

    def project(self, points: Float[np.ndarray, "*M 3"]) -> Float[np.ndarray, "*M 2"]:
        """Camera space to samples: column, row."""
        xy = points[..., :2] / points[..., 2:] * (self.K[0, 0], self.K[1, 1]) + self.K[:2, 2]
        return (xy + 0.5) * SAMPLES - 0.5

    def image(self) -> UInt8[np.ndarray, "H W 3"]:
        return cv2.resize(self.colour, (self.size[1] // SAMPLES, self.size[0] // SAMPLES), interpolation=cv2.INTER_AREA)

    def polygon(self, corners: Float[np.ndarray, "C 3"], colour: Float[np.ndarray, "3"]) -> None:
        """A flat convex face (camera space, all of it in front of the camera, corners clockwise from its outer side)."""
        xy = self.project(corners)
        low = np.maximum(np.floor(xy.min(0)), 0).astype(int)
        high = np.minimum(np.ceil(xy.max(0)), (self.size[1] - 1, self.size[0] - 1)).astype(int)
        normal = np.cross(corners[2] - corners[0], corners[1] - corners[0])  # y is down
        normal /= np.linalg.norm(normal)
        if (high < low).any() or normal @ corners[0] >= 0:
            return
        mask = np.zeros(high[::-1] - low[::-1] + 1, np.uint8)
        shift = 4  # bits of cv2's fixed point
        cv2.fillConvexPoly(mask, np.rint((xy - low) * (1 << shift)).astype(np.int32), 1, shift=shift)
        # On the plane n.X = d: 1 / depth = n.(x, y, 1) / d, linear over the screen.
        n = normal / (normal @ corners[0])
        x, y = (((np.arange(low[k], high[k] + 1) + 0.5) / SAMPLES - 0.5 - self.K[k, 2]) / self.K[k, k] for k in (0, 1))
        inverse = ((n[2] + n[1] * y)[:, None] + n[0] * x).astype(np.float32)
        window = np.s_[low[1] : high[1] + 1, low[0] : high[0] + 1]
        nearer = (mask > 0) & (inverse > self.inverse[window])
        np.copyto(self.inverse[window], inverse, where=nearer)
        np.copyto(self.owner[window], NOBODY, where=nearer)
        lit = colour * self.light.tint * self.light(normal[None])[0]
        self.colour[window][nearer] = _to_byte(lit)

    def people(self, people: Sequence[Person]) -> Float[np.ndarray, "F 4"]:
        """Bodies, all of them in front of the camera; quickest with the nearest first.

        Returns the triangles that look towards the camera: column and row of the middle, area (samples), number of the person.
        """
        return np.concatenate([self._person(number, person) for number, person in enumerate(people)])

    def _person(self, number: int, person: Person) -> Float[np.ndarray, "F 4"]:
        corners = self.project(person.verts)[person.faces]
        area = -_cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) / 2
        front = area > 1e-6
        used, xy = person.faces[front], corners[front]
        place, face = _nearest(xy, (1 / person.verts[:, 2])[used], self.inverse)
        self.owner.reshape(-1)[place] = number

        # What is known of a triangle: where its corner 0 is, the values there, their slopes across and down. In the image all are
        # taken as linear: the triangles are small.
        bright = self.light(vertex_normals(person.verts, person.faces))
        values = np.column_stack([person.rest, bright])[used]
        known = np.concatenate([xy[:, 0], values[:, 0], *_slopes(xy, values)], -1, dtype=np.float32)
        flat = self.colour.reshape(-1, 3)
        tint = self.light.tint.astype(np.float32)
        for start in range(0, len(place), BATCH):
            some = place[start : start + BATCH]
            of_face = known.take(face[start : start + BATCH], 0)
            row, column = np.divmod(some, self.size[1])
            at = of_face[:, 6:10] * (column - of_face[:, 0]).astype(np.float32)[:, None]
            at += of_face[:, 10:] * (row - of_face[:, 1]).astype(np.float32)[:, None]
            at += of_face[:, 2:6]
            flat[some] = _to_byte(person.outfit(at[:, :3]) * (tint * at[:, 3:]))
        return np.column_stack([xy.mean(1), area[front], np.full(len(xy), number)])

    def cover(self, mask: UInt8[np.ndarray, "h w"], colour: UInt8[np.ndarray, "h w 3"]) -> None:
        """Something right before the lens where `mask` (samples) is not 0."""
        cv2.copyTo(colour, mask, self.colour)
        covered = mask > 0
        np.copyto(self.owner, IN_FRONT, where=covered)
        np.copyto(self.inverse, np.inf, where=covered)


def _nearest(
    xy: Float[np.ndarray, "F 3 2"], inverse: Float[np.ndarray, "F 3"], buffer: Float[np.ndarray, "h w"]
) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " M"]]:
    """The samples where triangles are in front of what `buffer` (1/depth) holds, and of which the nearest; updates `buffer`.
    Where two triangles share an edge a sample may come twice.

    `xy` are columns and rows of samples.
    """
    height, width = buffer.shape
    order = np.argsort(xy[..., 1], axis=1)
    (ax, ay), (bx, by), (cx, cy) = (np.take_along_axis(xy, order[:, k : k + 1, None], 1)[:, 0].T for k in range(3))
    low = np.clip(np.ceil(ay - ROUNDING), 0, height).astype(np.int64)
    rows = np.maximum(np.clip(np.floor(cy + ROUNDING), -1, height - 1).astype(np.int64) - low + 1, 0)
    face = np.repeat(np.arange(len(xy)), rows)
    row = _count_up(rows) + low.take(face)

    # A row meets the long side a-c, and a-b above b or b-c below it.
    per_row = lambda dx, dy: dx / np.maximum(dy, 1e-9)
    long, upper, lower = per_row(cx - ax, cy - ay), per_row(bx - ax, by - ay), per_row(cx - bx, cy - by)
    far_b = row - by.take(face)
    one = ax.take(face) + long.take(face) * np.clip(row - ay.take(face), 0, (cy - ay).take(face))
    below = np.minimum(far_b, (cy - by).take(face)) * lower.take(face)
    above = np.maximum(far_b, (ay - by).take(face)) * upper.take(face)
    two = bx.take(face) + np.where(far_b > 0, below, above)
    first = np.clip(np.ceil(np.minimum(one, two) - ROUNDING), 0, width).astype(np.int64)
    length = np.maximum(
        np.clip(np.floor(np.maximum(one, two) + ROUNDING), -1, width - 1).astype(np.int64) - first + 1, 0
    )

    # Inverse depth is linear along the run. A sliver's plane is steep: it is kept between those of the corners.
    across, down = (each[:, 0].take(face) for each in _slopes(xy, inverse[..., None]))
    value = inverse[:, 0].take(face) + across * (first - xy[:, 0, 0].take(face)) + down * (row - xy[:, 0, 1].take(face))
    least, most = inverse.min(1).take(face), inverse.max(1).take(face)
    end = np.clip(value + across * (length - 1), least, most)
    value = np.clip(value, least, most)
    slope = (end - value) / np.maximum(length - 1, 1)

    step = _count_up(length)
    depth = np.repeat(value.astype(np.float32), length)
    depth += step.astype(np.float32) * np.repeat(slope.astype(np.float32), length)
    place = np.repeat(row * width + first, length) + step
    flat = buffer.reshape(-1)
    np.maximum.at(flat, place, depth)
    won = np.flatnonzero(depth == flat.take(place))
    return place.take(won), np.repeat(face, length).take(won)


def _slopes(
    xy: Float[np.ndarray, "F 3 2"], values: Float[np.ndarray, "F 3 D"]
) -> tuple[Float[np.ndarray, "F D"], Float[np.ndarray, "F D"]]:
    """How fast what is linear over a triangle grows across and down the picture."""
    ab, ac = xy[:, 1] - xy[:, 0], xy[:, 2] - xy[:, 0]
    b, c = values[:, 1] - values[:, 0], values[:, 2] - values[:, 0]
    area = _cross(ab, ac)[:, None]
    return (b * ac[:, 1:] - c * ab[:, 1:]) / area, (c * ab[:, :1] - b * ac[:, :1]) / area


def _count_up(lengths: Int[np.ndarray, " K"]) -> Int[np.ndarray, " M"]:
    """0 1 … n-1 for each n, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def _cross(a: Float[np.ndarray, "F 2"], b: Float[np.ndarray, "F 2"]) -> Float[np.ndarray, " F"]:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def _to_byte(linear: Float[np.ndarray, "*M"]) -> UInt8[np.ndarray, "*M"]:
    return _TO_BYTE.take(np.minimum((_LEVELS - 1) * linear, _LEVELS - 1).astype(np.int16))
