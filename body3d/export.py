"""Results as files: meshes (GLB, OBJ, PLY), arrays (NPZ) and reports (JSON). Every file is whole or not there.

Inside the project bodies stand in camera space (OpenCV: y down, z forward). Mesh files are for viewers, where y is up
and the camera looks along -z, so they hold (x, -y, -z): a half turn about x, and the person stands upright, facing the
viewer. NPZ files stay in camera space.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import trimesh
from torch import Tensor
from trimesh.exchange.gltf import export_glb
from trimesh.exchange.obj import export_obj
from trimesh.exchange.ply import export_ply
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from body3d.atomic import atomic
from body3d.types import Mesh

SKIN = (196, 178, 165)  # RGB


def save_glb(
    path: str | Path, mesh: Mesh, colour: tuple[int, int, int] = SKIN, frame: Literal["camera", "y-up"] = "camera"
) -> None:
    """A binary glTF of one mesh (`verts` (V, 3), metres, in `frame`), smooth and matt, its colour (sRGB) a material."""
    shape = to_trimesh(mesh, frame)
    paint = [*(round(255 * _linear(channel)) for channel in colour), 255]
    material = PBRMaterial(baseColorFactor=paint, metallicFactor=0.0, roughnessFactor=0.8)
    shape.visual = TextureVisuals(material=material)
    with atomic(path) as part:
        part.write_bytes(export_glb(trimesh.Scene(shape), include_normals=True))


def save_obj(path: str | Path, mesh: Mesh, frame: Literal["camera", "y-up"] = "camera") -> None:
    """A Wavefront OBJ of one mesh with vertex normals."""
    text = export_obj(to_trimesh(mesh, frame), include_normals=True, header="metres, y up", digits=6)
    with atomic(path) as part:
        part.write_text(text if isinstance(text, str) else text[0])


def save_ply(path: str | Path, mesh: Mesh, frame: Literal["camera", "y-up"] = "camera") -> None:
    """A binary PLY of one mesh with vertex normals."""
    with atomic(path) as part:
        part.write_bytes(export_ply(to_trimesh(mesh, frame), vertex_normal=True))


def to_trimesh(mesh: Mesh, frame: Literal["camera", "y-up"] = "camera") -> trimesh.Trimesh:
    """The mesh with y up; the vertices keep their number and order."""
    if mesh.verts.ndim != 2:
        raise ValueError(
            f"one mesh is exported at a time: verts are (V, 3), got {tuple(mesh.verts.shape)}; index the batch"
        )
    verts = mesh.verts.numpy(force=True).astype(np.float64)
    if not np.isfinite(verts).all():
        raise ValueError("the mesh has vertices that are not finite")
    if frame == "camera":
        verts = verts * (1, -1, -1)
    return trimesh.Trimesh(verts, mesh.faces.numpy(force=True), process=False)


def save_npz(path: str | Path, arrays: Mapping[str, Any]) -> None:
    """Arrays, tensors, numbers, strings and lists of them by name, compressed; readable without pickle."""
    plain = {
        name: value.numpy(force=True) if isinstance(value, Tensor) else np.asarray(value)
        for name, value in arrays.items()
    }
    objects = [name for name, value in plain.items() if value.dtype.hasobject]
    if objects:
        raise ValueError(f"an npz holds numbers and strings; {', '.join(objects)} cannot be stored")
    with atomic(path) as part, part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **plain)


def save_json(path: str | Path, value: Any) -> None:
    """Dicts, lists, dataclasses, arrays, tensors and paths as JSON, indented; what is not finite becomes null."""
    text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """`value` in the types that JSON has."""
    if isinstance(value, Tensor):
        value = value.numpy(force=True)
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def _linear(channel: int) -> float:
    """An sRGB channel, 0..255, as glTF wants it: linear, 0..1."""
    c = channel / 255
    return c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
