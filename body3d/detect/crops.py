"""Square, turned crops of an image: what every network of the embedded front end sees, and the way back to pixels.

Plain numpy, because a crop is an image on its way to a network on the processor. Image coordinates are pixels with pixel
centres at the integers; crop coordinates `u` are continuous, 0..1 from edge to edge, so a point that a network places at
`x` of its `n` input pixels is at `u = x / n`.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

__all__ = ["Roi"]


@dataclass(frozen=True)
class Roi:
    """A square of `size` pixels around (`x`, `y`), turned clockwise (as seen) by `angle` radians."""

    x: float
    y: float
    size: float
    angle: float = 0.0

    @classmethod
    def upright(cls, start: Float[np.ndarray, "2"], end: Float[np.ndarray, "2"], center, size: float) -> "Roi":
        """The square in which the direction from `start` to `end` points straight up."""
        dx, dy = end - start
        return cls(float(center[0]), float(center[1]), float(size), float(np.arctan2(dx, -dy)))

    @property
    def axes(self) -> Float[np.ndarray, "2 2"]:
        """Columns: the crop's x and y direction in the image."""
        c, s = np.cos(self.angle), np.sin(self.angle)
        return np.array([[c, -s], [s, c]])

    def to_image(self, u: Float[np.ndarray, "*B 2"]) -> Float[np.ndarray, "*B 2"]:
        return (u - 0.5) * self.size @ self.axes.T + (self.x, self.y)

    def from_image(self, xy: Float[np.ndarray, "*B 2"]) -> Float[np.ndarray, "*B 2"]:
        return (xy - (self.x, self.y)) @ self.axes / self.size + 0.5

    def moved(self, dx: float, dy: float, scale: float) -> "Roi":
        """Moved by fractions of its size along its own axes, then scaled."""
        x, y = self.to_image(np.array([0.5 + dx, 0.5 + dy]))
        return Roi(float(x), float(y), self.size * scale, self.angle)

    def mirrored(self, width: int) -> "Roi":
        """The same square in the image flipped left to right."""
        return Roi(width - 1 - self.x, self.y, self.size, -self.angle)

    def cut(self, image: UInt8[np.ndarray, "H W 3"], n: int) -> UInt8[np.ndarray, "n n 3"]:
        """The crop at n x n pixels, bilinear; black outside the image. Strong reductions are blurred first, so nothing aliases."""
        factor = n / self.size
        if factor < 0.5:
            sigma = 0.35 / factor
            x0, y0, x1, y1 = self.bounds(image.shape[0], image.shape[1])
            if x1 <= x0 or y1 <= y0:
                return np.zeros((n, n, 3), np.uint8)
            part = cv2.resize(
                image[y0:y1, x0:x1],
                (max(1, round((x1 - x0) * factor * 1.5)), max(1, round((y1 - y0) * factor * 1.5))),
                interpolation=cv2.INTER_AREA,
            )
            sx, sy = part.shape[1] / (x1 - x0), part.shape[0] / (y1 - y0)
            shrink = np.array([[sx, 0, (0.5 - x0) * sx - 0.5], [0, sy, (0.5 - y0) * sy - 0.5], [0, 0, 1]])
            del sigma
        else:
            part, shrink = image, np.eye(3)
        # crop pixel i has u = (i + 0.5) / n
        corner = self.to_image(np.array([0.5 / n, 0.5 / n]))
        forward = np.eye(3)
        forward[:2, :2] = self.axes * (self.size / n)
        forward[:2, 2] = corner
        return cv2.warpAffine(
            part, (shrink @ forward)[:2], (n, n), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_CONSTANT
        )

    def bounds(self, height: int, width: int) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1: the pixels of the image that the square touches."""
        corners = self.to_image(np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]]))
        x0, y0 = np.maximum(np.floor(corners.min(0)).astype(int) - 1, 0)
        x1, y1 = np.minimum(np.ceil(corners.max(0)).astype(int) + 2, (width, height))
        return int(x0), int(y0), int(x1), int(y1)
