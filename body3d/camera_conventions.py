"""Other projects' camera arithmetic, for data and numbers that were made with it."""

import torch
from jaxtyping import Float
from torch import Tensor


# ---- VideoPose3D (Pavllo et al., CVPR 2019): quaternions w x y z, screen coordinates ---------------------------------------
def rotate_wxyz(q: Float[Tensor, "*#B 4"], v: Float[Tensor, "*#B 3"]) -> Float[Tensor, "*B 3"]:
    """Vectors turned by unit quaternions (w, x, y, z)."""
    w, xyz = q[..., :1], q[..., 1:]
    xyz, v = torch.broadcast_tensors(xyz, v)
    cross = torch.linalg.cross(xyz, v)
    return v + 2 * (w * cross + torch.linalg.cross(xyz, cross))


def inverse_wxyz(q: Float[Tensor, "*B 4"]) -> Float[Tensor, "*B 4"]:
    """The conjugate: the inverse of a unit quaternion."""
    return torch.cat([q[..., :1], -q[..., 1:]], -1)


def world_to_camera(
    points: Float[Tensor, "*B 3"], orientation: Float[Tensor, "4"], position: Float[Tensor, "3"]
) -> Float[Tensor, "*B 3"]:
    """X_camera = q⁻¹ (X - t): the quaternion turns camera axes into world axes and t is the camera's place, unlike `Camera`."""
    return rotate_wxyz(inverse_wxyz(orientation), points - position)


def camera_to_world(
    points: Float[Tensor, "*B 3"], orientation: Float[Tensor, "4"], position: Float[Tensor, "3"]
) -> Float[Tensor, "*B 3"]:
    return rotate_wxyz(orientation, points) + position


def to_screen(xy: Float[Tensor, "*B 2"], width: int, height: int) -> Float[Tensor, "*B 2"]:
    """Pixels to x in -1..1 across the width, y by the same factor (so the aspect ratio is kept)."""
    return xy / width * 2 - xy.new_tensor([1.0, height / width])


def from_screen(xy: Float[Tensor, "*B 2"], width: int, height: int) -> Float[Tensor, "*B 2"]:
    return (xy + xy.new_tensor([1.0, height / width])) * width / 2


# ---- 3DMPPE (Moon et al., ICCV 2019): millimetres, pixel coordinates with depth, boxes x y w h -----------------------------
def camera_to_pixel(
    points: Float[Tensor, "*B 3"], f: Float[Tensor, "2"], c: Float[Tensor, "2"]
) -> Float[Tensor, "*B 3"]:
    """(u, v, Z); the released code adds 1e-8 to the depth it divides by."""
    return torch.cat([points[..., :2] / (points[..., 2:] + 1e-8) * f + c, points[..., 2:]], -1)


def pixel_to_camera(uvz: Float[Tensor, "*B 3"], f: Float[Tensor, "2"], c: Float[Tensor, "2"]) -> Float[Tensor, "*B 3"]:
    return torch.cat([(uvz[..., :2] - c) / f * uvz[..., 2:], uvz[..., 2:]], -1)


def square_box(box: Float[Tensor, "*B 4"], image_size: tuple[int, int], enlarge: float = 1.25) -> Float[Tensor, "*B 4"]:
    """A box (x, y, w, h) clipped to an image (width, height), made square about its centre, then enlarged."""
    width, height = image_size
    low = box[..., :2].clamp_min(0)
    limit = box.new_tensor([width - 1, height - 1])
    high = torch.minimum(limit, low + (box[..., 2:] - 1).clamp_min(0))
    size = high - low
    side = size.amax(-1, keepdim=True) * enlarge
    return torch.cat([low + size / 2 - side / 2, side.expand_as(size)], -1)


def depth_factor(
    box: Float[Tensor, "*B 4"], f: Float[Tensor, "2"], real_area: float = 2000.0**2
) -> Float[Tensor, "*B"]:
    """RootNet's k = sqrt(fx fy A_real / A_box): the depth (mm) at which a target of `real_area` (mm²) fills the box."""
    return (real_area * f.prod(-1) / box[..., 2:].prod(-1)).sqrt()


def joints_box(joints: Float[Tensor, "J 2"], enlarge: float = 1.2) -> Float[Tensor, "4"]:
    """The box (x, y, w, h) around joints, enlarged about its centre; the released code takes a pixel off each side first."""
    low, high = joints.amin(0), joints.amax(0)
    size = (high - low - 1) * enlarge
    return torch.cat([(low + high) / 2 - size / 2, size])
