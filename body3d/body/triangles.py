"""Which triangles of a posed mesh cross: candidates from a uniform grid, then an exact test of every pair.

No tree is built: in a grid whose cells are as large as the triangles each triangle meets its neighbours only, and most cells are
dropped before any pair is formed, because nothing that may collide meets in them. All of it in double precision on the CPU.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from body3d.body.parts import Parts

__all__ = ["candidate_pairs", "colliding_pairs", "stack_pairs", "triangles_cross"]


def colliding_pairs(verts: Float[np.ndarray, "V 3"], parts: Parts) -> Int[np.ndarray, "N 2"]:
    """All pairs of triangles that cross and whose parts may collide, the smaller number first, sorted."""
    pairs = candidate_pairs(verts, parts)
    triangles = verts[parts.faces[pairs]]
    return pairs[triangles_cross(triangles[:, 0], triangles[:, 1])]


def stack_pairs(pairs: list[np.ndarray], device: torch.device | str | None = None) -> Int[Tensor, "B K 2"]:
    """The pairs of several bodies in one tensor, filled up with -1."""
    out = np.full((len(pairs), max(map(len, pairs)), 2), -1, np.int64)
    for row, found in zip(out, pairs, strict=True):
        row[: len(found)] = found
    return torch.from_numpy(out).to(device)


# ---- candidates ----------------------------------------------------------------------------------------------------
def candidate_pairs(verts: Float[np.ndarray, "V 3"], parts: Parts) -> Int[np.ndarray, "N 2"]:
    """Exactly the pairs of triangles whose bounding boxes meet, whose parts may collide and that share no vertex."""
    faces = parts.faces
    a, b, c = (verts[faces[:, k]] for k in range(3))
    low, high = np.minimum(np.minimum(a, b), c), np.maximum(np.maximum(a, b), c)
    extent = (high - low).max(1)
    kept = np.arange(len(faces))
    for cell in (8 * np.median(extent), 2 * np.median(extent)):  # coarse cells cull cheaply, fine ones closely
        item, key = _cells(low[kept], high[kept], max(cell, extent[kept].max(initial=0) / 16, 1e-12))
        cells, place = np.unique(key, return_inverse=True)
        occupied = np.zeros((len(cells), len(parts.names)), np.float32)
        occupied[place, parts.face[kept[item]]] = 1
        meets = occupied @ parts.collide.astype(np.float32) > 0
        alive = meets[place, parts.face[kept[item]]]
        item, place = item[alive], place[alive]
        survivors, item = np.unique(item, return_inverse=True)
        kept = kept[survivors]
        if len(kept) == 0:
            return np.zeros((0, 2), np.int64)

    order = np.argsort(place, kind="stable")
    a, b = _pairs_within(place[order])
    a, b = kept[item[order[a]]], kept[item[order[b]]]
    a, b = np.minimum(a, b), np.maximum(a, b)
    counted = parts.collide[parts.face[a], parts.face[b]]
    a, b = a[counted], b[counted]
    counted = ((low[a] <= high[b]) & (low[b] <= high[a])).all(1)
    a, b = np.divmod(np.unique(a[counted] * len(faces) + b[counted]), len(faces))
    counted = parts.count(parts.face_crease, parts.face[a], a, b)
    counted &= ~(faces[a][:, :, None] == faces[b][:, None]).any((1, 2))
    return np.stack([a[counted], b[counted]], 1)


def _cells(
    low: Float[np.ndarray, "F 3"], high: Float[np.ndarray, "F 3"], size: float
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """The grid cells that each box reaches into: the box and the cell's number, once per cell."""
    origin = low.min(0)
    first, last = (((edge - origin) / size).astype(np.int64) for edge in (low, high))
    many = last - first + 1
    total = many.prod(1)
    box = np.repeat(np.arange(len(low)), total)
    rest = np.arange(len(box)) - np.repeat(np.cumsum(total) - total, total)
    key = np.zeros(len(box), np.int64)
    for axis in range(3):
        rest, offset = np.divmod(rest, many[box, axis])
        key = key * (last[:, axis].max() + 1) + first[box, axis] + offset
    return box, key


def _pairs_within(group: Int[np.ndarray, " N"]) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " M"]]:
    """All pairs of positions i < j of equal entries of a sorted array."""
    end = np.searchsorted(group, group, side="right")
    partners = end - np.arange(len(group)) - 1
    i = np.repeat(np.arange(len(group)), partners)
    j = np.arange(len(i)) - np.repeat(np.cumsum(partners) - partners, partners) + i + 1
    return i, j


# ---- the exact test ------------------------------------------------------------------------------------------------
def triangles_cross(a: Float[np.ndarray, "N 3 3"], b: Float[np.ndarray, "N 3 3"]) -> Bool[np.ndarray, " N"]:
    """Whether triangles share a point, by the theorem of separating axes; those that touch do.

    Two triangles are apart if one of 17 axes separates them: the normals, the 9 products of two edges and, for triangles in one
    plane, the 6 directions that stand on an edge in its triangle.
    """
    out = np.ones(len(a), bool)
    origin = a[:, :1]
    a, b = a - origin, b - origin  # coordinates as small as the triangles: less rounding
    edges_a, edges_b = (np.roll(t, -1, 1) - t for t in (a, b))
    normal_a, normal_b = (np.cross(e[:, 0], e[:, 1])[:, None] for e in (edges_a, edges_b))
    going = np.arange(len(a))
    makers = (
        lambda i: np.concatenate([normal_a[i], normal_b[i]], 1),
        lambda i: np.cross(edges_a[i, :, None], edges_b[i, None]).reshape(-1, 9, 3),
        lambda i: np.concatenate([np.cross(normal_a[i], edges_a[i]), np.cross(normal_b[i], edges_b[i])], 1),
    )
    for axes in makers:  # most pairs end at the normals
        along = axes(going).swapaxes(1, 2)
        on_a, on_b = a[going] @ along, b[going] @ along
        apart = ((on_a.max(1) < on_b.min(1)) | (on_b.max(1) < on_a.min(1))).any(1)
        out[going[apart]] = False
        going = going[~apart]
    return out
