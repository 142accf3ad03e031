"""The pinhole camera with OpenCV's distortion: projection, its inverse, crops, and a stated guess where nothing is known.

Axes are OpenCV's: x right, y down, z forward; X_camera = R X_world + t. Pixel centres are at the integers.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from body3d.tensors import Tensors

# What a photo's focal length is most often near, in units of the longer side: 1.2 is a field of view of 45 degrees
# (a 43 mm lens on 36 mm film).
GUESSED_FOCAL = 1.2


@dataclass(frozen=True)
class Camera(Tensors):
    K: Float[Tensor, "*B 3 3"]  # pixels
    R: Float[Tensor, "*B 3 3"]
    t: Float[Tensor, "*B 3"]  # metres
    size: tuple[int, int]  # height, width in pixels
    distortion: Float[Tensor, "*B 5"] | None = None  # k1 k2 p1 p2 k3, as OpenCV orders them

    @staticmethod
    def pinhole(focal: float, size: tuple[int, int], centre: tuple[float, float] | None = None) -> "Camera":
        """A camera at the origin; the principal point (x, y) is the middle of the image unless given."""
        if not (math.isfinite(focal) and focal > 0):
            raise ValueError(f"a focal length is a positive number of pixels, got {focal}")
        x, y = centre or ((size[1] - 1) / 2, (size[0] - 1) / 2)
        K = torch.tensor([[focal, 0, x], [0, focal, y], [0, 0, 1.0]])
        return Camera(K, torch.eye(3), torch.zeros(3), (int(size[0]), int(size[1])))

    @staticmethod
    def guess(size: tuple[int, int], focal: float | None = None, fov: float | None = None) -> "Camera":
        """A pinhole camera from a focal length (px), a field of view (degrees, across the longer side), or neither.

        Without either the focal length is 1.2 times the longer side.
        """
        longer = max(size)
        if focal is None:
            if fov is not None and not 0 < fov < 180:
                raise ValueError(f"a field of view lies between 0 and 180 degrees, got {fov}")
            focal = GUESSED_FOCAL * longer if fov is None else longer / 2 / math.tan(math.radians(fov) / 2)
        return Camera.pinhole(focal, size)

    def to_camera(self, points: Float[Tensor, "*B N 3"]) -> Float[Tensor, "*B N 3"]:
        return points @ self.R.mT + self.t.unsqueeze(-2)

    def to_world(self, points: Float[Tensor, "*B N 3"]) -> Float[Tensor, "*B N 3"]:
        return (points - self.t.unsqueeze(-2)) @ self.R

    def project(self, points: Float[Tensor, "*B N 3"]) -> Float[Tensor, "*B N 2"]:
        """World points (m) to pixels. Points behind the camera have no image; what comes out for them is meaningless."""
        xyz = self.to_camera(points)
        xy = xyz[..., :2] / _away_from_zero(xyz[..., 2:])
        if self.distortion is not None:
            xy = distort(xy, self.distortion.unsqueeze(-2))
        return xy @ self.K[..., :2, :2].mT + self.K[..., :2, 2].unsqueeze(-2)

    def unproject(self, xy: Float[Tensor, "*B N 2"], depth: Float[Tensor, "*B N"]) -> Float[Tensor, "*B N 3"]:
        """Pixels and their depths along z (m) to world points."""
        rays = torch.linalg.solve(self.K[..., :2, :2], (xy - self.K[..., :2, 2].unsqueeze(-2)).mT).mT
        if self.distortion is not None:
            rays = undistort(rays, self.distortion.unsqueeze(-2))
        return self.to_world(torch.cat([rays * depth.unsqueeze(-1), depth.unsqueeze(-1)], -1))

    def crop(self, matrix: Float[Tensor, "*B 2 3"], size: tuple[int, int]) -> "Camera":
        """The camera of an image warped by a pixel-to-pixel affine map (scale and shift; a rotation would need skew)."""
        bottom = torch.tensor([0.0, 0, 1]).to(matrix).expand(*matrix.shape[:-2], 1, 3)
        return Camera(torch.cat([matrix, bottom], -2) @ self.K, self.R, self.t, size, self.distortion)


def _away_from_zero(z: Tensor) -> Tensor:
    return torch.where(z.abs() < 1e-6, torch.full_like(z, 1e-6), z)


def distort(xy: Float[Tensor, "*B 2"], d: Float[Tensor, "*#B 5"]) -> Float[Tensor, "*B 2"]:
    """Normalised image coordinates through OpenCV's lens model (radial k1 k2 k3, tangential p1 p2)."""
    k1, k2, p1, p2, k3 = d.unbind(-1)
    x, y = xy.unbind(-1)
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    return torch.stack(
        [x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y], -1
    )


def undistort(xy: Float[Tensor, "*B 2"], d: Float[Tensor, "*#B 5"], steps: int = 20) -> Float[Tensor, "*B 2"]:
    """The inverse of `distort`, by fixed-point iteration (converges for the distortions that real lenses have)."""
    ideal = xy.clone()
    for _ in range(steps):
        ideal = ideal + xy - distort(ideal, d)
    return ideal


def project_h36m(points: Float[Tensor, "*B N 3"], intrinsics: Float[Tensor, "*B 9"]) -> Float[Tensor, "*B N 2"]:
    """Camera-space points through Human3.6M's camera, as VideoPose3D publishes it.

    `intrinsics` is fx fy cx cy k1 k2 k3 p1 p2. Two things differ from OpenCV's model: x/z and y/z are clamped to ±1 first, and
    the tangential part is x (p.x) + p r² (OpenCV: 2 x (p'.x) + p' r² with p' = (p2, p1)).
    """
    f, c, k, p = (part.unsqueeze(-2) for part in intrinsics.split([2, 2, 3, 2], -1))
    xy = (points[..., :2] / points[..., 2:]).clamp(-1, 1)
    r2 = xy.square().sum(-1, keepdim=True)
    radial = 1 + (k * torch.cat([r2, r2**2, r2**3], -1)).sum(-1, keepdim=True)
    tangential = (p * xy).sum(-1, keepdim=True)
    return f * (xy * (radial + tangential) + p * r2) + c
