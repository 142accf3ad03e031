"""A window to walk around the bodies, their camera and the photo; where none can open, pictures from four sides."""

import ctypes
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from body3d.camera import Camera
from body3d.errors import InputError
from body3d.images import read_image, write_image
from body3d.types import Mesh
from body3d.view.render import PALETTE
from body3d.view.sides import contact_sheet, four_sides


def show(
    meshes: Sequence[Mesh],
    camera: Camera,
    image: UInt8[np.ndarray, "H W 3"] | None = None,
    folder: str | Path = ".",
    title: str = "body3d",
) -> None:
    """Open an Open3D window with `meshes` (`verts` (V, 3), world metres), the camera's pyramid and, behind the farthest
    body, the photo; returns when the user closes it.

    Without a display or without Open3D, one line says so and pictures from four sides go to `folder`.
    """
    problem = no_display() or _open_window(meshes, camera, image, title)
    if problem:
        names = write_four_sides(folder, meshes)
        print(f"{problem}: wrote {', '.join(names)} to {folder} instead", file=sys.stderr)


def no_display() -> str | None:
    """Why no window can open here, or None. Open3D itself does not tell: it would run unseen and never return."""
    if not sys.platform.startswith("linux") or os.environ.get("WAYLAND_DISPLAY"):
        return None
    if not os.environ.get("DISPLAY"):
        return "no display"
    try:
        x11 = ctypes.CDLL("libX11.so.6")
    except OSError:
        return None  # then Open3D says that it needs this library
    x11.XOpenDisplay.restype = ctypes.c_void_p
    connection = x11.XOpenDisplay(None)
    if not connection:
        return f"display {os.environ['DISPLAY']} does not answer"
    x11.XCloseDisplay(ctypes.c_void_p(connection))
    return None


def write_four_sides(folder: str | Path, meshes: Sequence[Mesh]) -> list[str]:
    """Write front.png, side.png, back.png, top.png and sides.png (all four); returns the names."""
    pictures = four_sides(meshes)
    pictures["sides"] = contact_sheet(pictures)
    for name, picture in pictures.items():
        write_image(Path(folder) / f"{name}.png", picture)
    return [f"{name}.png" for name in pictures]


def view_results(folder: str | Path, png: bool = False) -> None:
    """Show what a run wrote to `folder`; with `png` write the pictures from four sides there and open no window."""
    meshes, camera, image = load_results(folder)
    if png:
        print(f"wrote {', '.join(write_four_sides(folder, meshes))} to {folder}")
    else:
        show(meshes, camera, image, folder, title=f"body3d: {Path(folder).name}")


def load_results(folder: str | Path) -> tuple[list[Mesh], Camera, UInt8[np.ndarray, "H W 3"] | None]:
    """The bodies of a results folder in camera space, their camera, and the photo (if it has moved, the overlay)."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one that a fit wrote, such as results/photo")
    files = sorted(folder.glob("person_*.npz"), key=lambda path: (len(path.name), path.name))
    if not files:
        raise InputError(f"{folder} holds no person_0.npz: give a folder that a fit wrote, such as results/photo")
    meshes, K = [], None
    for path in files:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                verts, faces = arrays["vertices"].astype(np.float64), arrays["faces"].astype(np.int64)
                K = arrays["K"].astype(np.float64)
        except KeyError as error:
            raise InputError(f"{path} was not written by a fit: {error.args[0]}") from error
        except Exception as error:  # zipfile, zlib and numpy each have their own
            raise InputError(f"{path} is damaged: {error}") from error
        if verts.ndim != 2 or verts.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3 or K.shape != (3, 3):
            shapes = f"{verts.shape}, {faces.shape} and {K.shape}"
            raise InputError(f"{path}: vertices (V, 3), faces (F, 3) and K (3, 3) are needed, got {shapes}")
        if not (np.abs(K) < 1e30).all() or min(K[0, 0], K[1, 1]) <= 0:
            raise InputError(f"{path} is damaged: K has entries that are not finite, or no focal length")
        if not np.isfinite(verts).all() or faces.min(initial=0) < 0 or faces.max(initial=0) >= len(verts):
            raise InputError(f"{path} is damaged: vertices that are not finite or faces beyond the last vertex")
        meshes.append(Mesh(torch.tensor(verts).float(), torch.tensor(faces)))
    image = _photo(folder)
    intrinsics = torch.tensor(K).float()
    # Without a picture the principal point tells: it is the middle of a photo unless a camera file said otherwise.
    height, width = (max(round(2 * float(intrinsics[axis, 2])) + 1, 1) for axis in (1, 0))
    size = (height, width) if image is None else (image.shape[0], image.shape[1])
    return meshes, Camera(intrinsics, torch.eye(3), torch.zeros(3), size), image


def _photo(folder: Path) -> UInt8[np.ndarray, "H W 3"] | None:
    """The photo that the report names, else the overlay, else nothing."""
    names = [folder / "overlay.png"]
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        names.insert(0, Path(report["image"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # the report is not needed to see the bodies
    for name in names:
        try:
            return read_image(name)
        except InputError:
            continue
    return None


def _open_window(meshes: Sequence[Mesh], camera: Camera, image: np.ndarray | None, title: str) -> str | None:
    """Show the window until it is closed; or say why there is none."""
    try:
        import open3d
    except ModuleNotFoundError:
        return "Open3D is not installed (pip install 'body3d[view]')"
    except (ImportError, OSError) as error:  # a system library is missing
        return f"Open3D cannot be loaded ({error})"
    window = open3d.visualization.Visualizer()
    if not window.create_window(title, 1280, 800):
        return "Open3D could not open a window"
    _fill(open3d, window, meshes, camera, image)
    print("drag: turn · shift + drag: move · wheel: nearer · R: back to the start · Q: close")
    window.run()
    window.destroy_window()
    return None


def _fill(open3d, window, meshes: Sequence[Mesh], camera: Camera, image: np.ndarray | None) -> None:
    """Put everything into the window and set the first view: from beside the camera, so that depth shows."""
    geometry, tools = open3d.geometry, open3d.utility
    for number, mesh in enumerate(meshes):
        verts, faces = mesh.verts.double().numpy(force=True), mesh.faces.int().numpy(force=True)
        body = geometry.TriangleMesh(tools.Vector3dVector(verts), tools.Vector3iVector(faces))
        body.compute_vertex_normals()
        body.paint_uniform_color(0.8 * PALETTE[number % len(PALETTE)] / 255.0)  # Open3D's lights are strong
        window.add_geometry(body)

    depths = torch.cat([camera.to_camera(mesh.verts.cpu())[:, 2] for mesh in meshes])
    far = 1.1 * float(depths.max())
    height, width = camera.size
    edges = torch.tensor([[-0.5, -0.5], [width - 0.5, -0.5], [width - 0.5, height - 0.5], [-0.5, height - 0.5]])
    corners = camera.unproject(edges, torch.full((4,), far)).double().numpy()
    eye = camera.to_world(torch.zeros(1, 3)).double().numpy()
    lines = geometry.LineSet(
        tools.Vector3dVector(np.concatenate([eye, corners])),
        tools.Vector2iVector([[0, 1], [0, 2], [0, 3], [0, 4], [1, 2], [2, 3], [3, 4], [4, 1]]),
    )
    lines.paint_uniform_color([0.35, 0.38, 0.42])
    window.add_geometry(lines)
    if image is not None:
        plane = geometry.TriangleMesh(
            tools.Vector3dVector(corners), tools.Vector3iVector([[0, 2, 1], [0, 3, 2]])
        )  # facing the camera
        uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64)
        plane.triangle_uvs = tools.Vector2dVector(uv[[0, 2, 1, 0, 3, 2]])
        plane.triangle_material_ids = tools.IntVector([0, 0])
        plane.textures = [geometry.Image(np.ascontiguousarray(image))]
        window.add_geometry(plane)

    options = window.get_render_option()
    options.background_color = np.array([0.93, 0.94, 0.95])
    options.mesh_show_back_face = True  # of the photo
    options.mesh_shade_option = open3d.visualization.MeshShadeOption.Color  # smooth; the default shows every triangle
    R = camera.R.double().cpu().numpy()
    view = window.get_view_control()
    view.set_lookat(torch.cat([mesh.verts for mesh in meshes]).mean(0).double().cpu().numpy())
    view.set_front(R.T @ np.array([0.45, -0.25, -1.0]) / np.linalg.norm([0.45, -0.25, -1.0]))
    view.set_up(R.T @ np.array([0.0, -1, 0]))
    view.set_zoom(0.42)
