"""Square, turned crops of an image: what every network of the embedded front end sees, and the way back to pixels.

Plain numpy, because a crop is an image on its way to a network on the processor. Image coordinates are pixels with
pixel centres at the integers; crop coordinates `u` are continuous, 0..1 from edge to edge, so a point that a network
places at `x` of its `n` input pixels is at `u = x / n`.
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
    def upright(
        cls, start: Float[np.ndarray, " 2"], end: Float[np.ndarray, " 2"], center: Float[np.ndarray, " 2"], size: float
    ) -> "Roi":
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

    def raised(self, shift: float, scale: float) -> "Roi":
        """Moved up (its own up) by a fraction of its size, then scaled."""
        x, y = self.to_image(np.array([0.5, 0.5 - shift]))
        return Roi(float(x), float(y), self.size * scale, self.angle)

    def cut(self, image: UInt8[np.ndarray, "H W 3"], n: int) -> UInt8[np.ndarray, "n n 3"]:
        """The crop at n x n pixels, bilinear, black outside the image.

        Where it shrinks the image to less than half, its part of the image is averaged down first, so that nothing
        aliases.
        """
        x0, y0, x1, y1 = self.bounds(image.shape[0], image.shape[1])
        if x1 <= x0 or y1 <= y0:
            return np.zeros((n, n, 3), np.uint8)
        part = image[y0:y1, x0:x1]
        if (shrink := n / self.size) < 0.5:
            size = [max(1, round(1.5 * shrink * length)) for length in (x1 - x0, y1 - y0)]
            part = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
        # From crop pixel i, at u = (i + 0.5) / n, to the image, then to the part's own pixels.
        forward = np.eye(3)
        forward[:2, :2] = self.axes * (self.size / n)
        forward[:2, 2] = self.to_image(np.array([0.5 / n, 0.5 / n]))
        sx, sy = part.shape[1] / (x1 - x0), part.shape[0] / (y1 - y0)
        to_part = np.array([[sx, 0, (0.5 - x0) * sx - 0.5], [0, sy, (0.5 - y0) * sy - 0.5], [0, 0, 1]])
        return cv2.warpAffine(
            part,
            (to_part @ forward)[:2],
            (n, n),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
        )

    def bounds(self, height: int, width: int) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1: the pixels of the image that the square touches."""
        corners = self.to_image(np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]]))
        x0, y0 = np.maximum(np.floor(corners.min(0)).astype(int) - 1, 0)
        x1, y1 = np.minimum(np.ceil(corners.max(0)).astype(int) + 2, (width, height))
        return int(x0), int(y0), int(x1), int(y1)
