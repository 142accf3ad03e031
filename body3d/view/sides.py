"""Bodies without their photo, from four sides: what an overlay cannot show is whether the depth is right."""

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8

from body3d.camera import Camera
from body3d.types import Mesh
from body3d.view.draw import draw_label
from body3d.view.render import render

SIDES = {"front": (0, 8), "side": (90, 8), "back": (180, 8), "top": (0, 90)}  # the camera's azimuth, elevation, degrees
TILE = 0.5  # metres between the lines on the floor
FOCAL = 3.0  # times the picture's height: a long lens, so that little is foreshortened
MARGIN = 0.88  # of the picture is filled
CAMERA_UP = (0.0, -1.0, 0.0)  # of meshes in camera space

_WALL, _FLOOR, _LINE = (np.array(rgb, np.float32) for rgb in ((238, 239, 241), (222, 224, 228), (178, 182, 190)))


def four_sides(
    meshes: Sequence[Mesh],
    size: tuple[int, int] = (640, 560),
    up: tuple[float, float, float] = CAMERA_UP,
    colours: Sequence[UInt8[np.ndarray, "3"]] | None = None,
) -> dict[str, UInt8[np.ndarray, "H W 3"]]:
    """Pictures of `size` (H, W) by the names in `SIDES`, on a floor with a line every half metre.

    "front" looks along z as the photo's camera did, "side" from its right-hand side, "top" from above with the photo's
    camera at the lower edge. `up` points away from the floor; the lowest vertex stands on it. Each picture is as near
    as shows all bodies whole.
    """
    if not meshes:
        raise ValueError("four_sides has no meshes to draw")
    points = np.concatenate([mesh.verts.numpy(force=True).astype(np.float64) for mesh in meshes])
    upward = np.array(up, np.float64) / np.linalg.norm(up)
    pictures = {}
    for name, (azimuth, elevation) in SIDES.items():
        camera = _camera_around(points, upward, math.radians(azimuth), math.radians(elevation), size)
        pictures[name] = render(meshes, camera, colours).over(_floor(meshes, points, upward, camera))
    return pictures


def contact_sheet(pictures: Mapping[str, UInt8[np.ndarray, "H W 3"]], columns: int = 4) -> UInt8[np.ndarray, "H2 W2 3"]:
    """Equally large pictures side by side, each with its name."""
    named = [draw_label(picture, name, (8.0, 8.0)) for name, picture in pictures.items()]
    named += [np.full_like(named[0], 255)] * (-len(named) % columns)
    return np.concatenate([np.concatenate(named[i : i + columns], axis=1) for i in range(0, len(named), columns)])


def _camera_around(
    points: Float[np.ndarray, "V 3"],
    up: Float[np.ndarray, "3"],
    azimuth: float,
    elevation: float,
    size: tuple[int, int],
) -> Camera:
    """A camera that looks at the middle of the points and is as near as lets it see them all."""
    ahead, across = _level_axes(up)
    level = math.cos(azimuth) * ahead - math.sin(azimuth) * across
    forward = math.cos(elevation) * level - math.sin(elevation) * up
    right = np.cross(level, up)
    R = np.stack([right, np.cross(forward, right), forward])

    middle = (points.min(0) + points.max(0)) / 2
    x, y, z = (points - middle) @ R.T[:, :1], (points - middle) @ R.T[:, 1:2], (points - middle) @ R.T[:, 2:]
    height, width = size
    focal = FOCAL * height
    # |x| focal / (z + distance) must stay within the half width, and so for y.
    distance = max((np.abs(a) * focal / (0.5 * MARGIN * side) - z).max() for a, side in ((x, width), (y, height)))
    camera = Camera.pinhole(focal, size)
    t = np.array([0, 0, max(distance, 0.5)]) - R @ middle
    return Camera(camera.K, torch.tensor(R).float(), torch.tensor(t).float(), size)


def _level_axes(up: Float[np.ndarray, "3"]) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """The directions in the floor that the photo's camera sees as ahead and to the right."""
    ahead = np.array([0.0, 0, 1]) - up[2] * up
    if np.linalg.norm(ahead) < 1e-6:  # it looks straight up or down
        ahead = np.array([0.0, 1, 0]) - up[1] * up
    ahead /= np.linalg.norm(ahead)
    return ahead, np.cross(ahead, up)


def _floor(
    meshes: Sequence[Mesh], points: Float[np.ndarray, "V 3"], up: Float[np.ndarray, "3"], camera: Camera
) -> UInt8[np.ndarray, "H W 3"]:
    """The empty room: wall, floor with lines that fades into it, and the bodies' soft shadows from a light above."""
    height, width = camera.size
    K, R, t = (each.numpy(force=True).astype(np.float64) for each in (camera.K, camera.R, camera.t))
    ahead, across = _level_axes(up)
    middle = (points.min(0) + points.max(0)) / 2
    origin = middle + ((points @ up).min() - middle @ up) * up  # below the middle
    # Floor coordinates (u, v, 1) in metres to pixels times depth; the inverse gives (u, v, 1) / depth of each pixel.
    from_pixel = np.linalg.inv(K @ np.column_stack([R @ across, R @ ahead, R @ origin + t]))
    y, x = np.ogrid[:height, :width]
    u, v, inverse_depth = (row[0] * x + row[1] * y + row[2] for row in from_pixel)
    below_horizon = inverse_depth > 1e-4
    depth = 1 / np.where(below_horizon, inverse_depth, 1e-4)
    u, v = u * depth, v * depth

    on_line = np.zeros((height, width))
    for along in (u / TILE, v / TILE):
        footprint = np.hypot(*np.gradient(along)) + 1e-9  # tiles per pixel
        distance = np.abs(along - np.rint(along)) / footprint  # pixels to the nearest line
        crowded = np.clip(1.5 - 4 * footprint, 0, 1)  # where lines run together they would flicker
        on_line = np.maximum(on_line, np.clip(1.1 - distance, 0, 1) * crowded)

    flattened = [Mesh(mesh.verts - _rise(mesh, up, origin), mesh.faces) for mesh in meshes]
    shadow = cv2.GaussianBlur(render(flattened, camera).alpha, (0, 0), 0.012 * height)
    radius = 0.5 * np.linalg.norm(np.ptp(points, axis=0)) + 1e-9
    present = np.clip(2.4 - np.hypot(u, v) / radius, 0, 1) * below_horizon
    floor = (_FLOOR + on_line[..., None] * (_LINE - _FLOOR)) * (1 - 0.35 * shadow[..., None])
    return np.rint(_WALL + present[..., None] * (floor - _WALL)).astype(np.uint8)


def _rise(mesh: Mesh, up: np.ndarray, origin: np.ndarray) -> torch.Tensor:
    """How far each vertex is above the floor, as a vector."""
    direction = torch.tensor(up).to(mesh.verts)
    return ((mesh.verts - torch.tensor(origin).to(mesh.verts)) @ direction)[:, None] * direction
