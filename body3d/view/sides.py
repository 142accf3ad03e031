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

SIDES = {"front": (0, 8), "side": (90, 8), "back": (180, 8), "top": (0, 90)}  # azimuth, elevation of the camera, degrees
TILE = 0.5  # metres between the lines on the floor
FOCAL = 2.0  # times the picture's height: a long lens, so that little is foreshortened
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

    "front" looks along z as the photo's camera did, "side" from its right-hand side, "top" from above, the photo's camera
    at the lower edge. `up` is the direction away from the floor; the lowest vertex stands on it. Each picture is as near
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
    points: Float[np.ndarray, "V 3"], up: Float[np.ndarray, "3"], azimuth: float, elevation: float, size: tuple[int, int]
) -> Camera:
    """A camera that looks at the middle of the points and is as near as lets it see them all."""
    ahead = np.array([0.0, 0, 1]) - up[2] * up  # the photo's viewing direction, level
    if np.linalg.norm(ahead) < 1e-6:  # z itself is up
        ahead = np.array([0.0, 1, 0]) - up[1] * up
    ahead /= np.linalg.norm(ahead)
    across = np.cross(ahead, up)
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


def _floor(
    meshes: Sequence[Mesh], points: Float[np.ndarray, "V 3"], up: Float[np.ndarray, "3"], camera: Camera
) -> UInt8[np.ndarray, "H W 3"]:
    """The empty room: wall, floor with lines that fades into it, and the bodies' soft shadows from a light above."""
    height, width = camera.size
    K, R, t = (each.numpy(force=True).astype(np.float64) for each in (camera.K, camera.R, camera.t))
    y, x = np.mgrid[:height, :width]
    rays = (np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(K).T) @ R  # world directions, (H, W, 3)
    eye = -R.T @ t
    ground = (points @ up).min() * up
    slope = rays @ up
    reach = (ground - eye) @ up / np.where(slope < -1e-6, slope, -1e-6)
    hit = eye + np.minimum(reach, 1e4)[..., None] * rays

    axes = np.linalg.svd(up[None])[2][1:] if abs(up[1]) < 0.99 else np.array([[1.0, 0, 0], [0, 0, 1.0]])
    on_line = np.zeros((height, width))
    for axis in axes:
        along = hit @ axis / TILE
        gradient = np.gradient(along)
        footprint = np.hypot(*gradient) + 1e-9  # tiles per pixel
        distance = np.abs(along - np.rint(along)) / footprint  # pixels to the nearest line
        crowded = np.clip(1.5 - 4 * footprint, 0, 1)  # where lines run together they would flicker
        on_line = np.maximum(on_line, np.clip(1.1 - distance, 0, 1) * crowded)

    flattened = [Mesh(mesh.verts - _rise(mesh, up, ground), mesh.faces) for mesh in meshes]
    shadow = cv2.GaussianBlur(render(flattened, camera).alpha, (0, 0), 0.012 * height)

    centre = (points.min(0) + points.max(0)) / 2
    radius = 0.5 * np.linalg.norm(np.ptp(points, axis=0)) + 1e-9
    away = np.linalg.norm(hit - centre - ((ground - centre) @ up) * up, axis=-1) / radius
    present = np.clip(2.4 - away, 0, 1)[..., None] * (slope < -1e-6)[..., None]
    floor = _FLOOR + on_line[..., None].astype(np.float32) * (_LINE - _FLOOR)
    floor = floor * (1 - 0.35 * shadow[..., None])
    return np.rint(_WALL + present * (floor - _WALL)).astype(np.uint8)


def _rise(mesh: Mesh, up: np.ndarray, ground: np.ndarray) -> torch.Tensor:
    """How far each vertex is above the floor, as a vector."""
    direction = torch.tensor(up).to(mesh.verts)
    return ((mesh.verts - torch.tensor(ground).to(mesh.verts)) @ direction)[:, None] * direction
