"""A coarse skin of the open body for small pictures: a tenth of its triangles over a subset of its vertices.

Edges are collapsed by the quadric error of Garland and Heckbert ("Surface simplification using quadric error metrics",
SIGGRAPH 1997), each onto one of its ends, so that shape and skinning need no new numbers. The error is added up over a
straight and a bent pose, which keeps triangles where elbows and knees bend. Many edges that do not touch each other are
collapsed at once: the order is nearly that of one at a time.
"""

from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from body3d.body.model import BodyModel

__all__ = ["coarse_faces", "decimate"]

FACES = 2600
_ROW, _COLUMN = np.triu_indices(4)
# Bent far enough to show what a limb needs (joint, rotation vector in degrees); the right side mirrors the left.
_BENT = {
    "left_shoulder": (0, 0, -60), "left_elbow": (0, -100, 0), "left_hip": (-80, 0, 0), "left_knee": (100, 0, 0),
    "left_wrist": (0, 0, 20),
}  # fmt: skip


@cache
def coarse_faces(count: int = FACES) -> Int[np.ndarray, "F 3"]:
    """Triangles of the open body's outer skin, about `count`, in the body's own numbers of vertices."""
    model = BodyModel.open()
    params = model.zero_params(2)
    for name, turn in _BENT.items():
        left = torch.deg2rad(torch.tensor(turn, dtype=torch.float32))
        params.pose[1, model.joints.index(name)] = left
        params.pose[1, model.joints.index(name.replace("left", "right"))] = left * torch.tensor([1.0, -1, -1])
    points = model(params).mesh.verts.double().numpy()
    faces = model.faces.numpy()
    edges = coo_matrix(
        (np.ones(3 * len(faces)), (faces.ravel(), faces[:, [1, 2, 0]].ravel())), shape=(len(points[0]),) * 2
    )
    part = connected_components(edges, directed=False)[1]
    skin = part[faces[:, 0]] == np.bincount(part).argmax()  # not the eyes and teeth inside
    return decimate(points, faces[skin], count)


def decimate(points: Float[np.ndarray, "K V 3"], faces: Int[np.ndarray, "F 3"], count: int) -> Int[np.ndarray, "G 3"]:
    """At most `count` of a closed surface's triangles where that can be had without folds; `points` in K poses (m)."""
    vertices = points.shape[1]
    homogeneous = np.concatenate([points, np.ones((*points.shape[:2], 1))], -1)
    squares = homogeneous[..., _ROW] * homogeneous[..., _COLUMN]  # (K, V, 10): a quadric is linear in these
    quadrics = _quadrics(points, faces)
    banned = np.zeros(0, np.int64)
    while len(faces) > count:
        ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).T
        ends = ends[:, ends[0] < ends[1]]  # a closed surface has every edge in both directions
        codes = ends[0] * vertices + ends[1]
        free = ~np.isin(codes, banned)
        codes, ends = codes[free], ends[:, free]
        total = quadrics[:, ends[0]] + quadrics[:, ends[1]]
        cost = np.stack([np.einsum("keq,keq->e", total, squares[:, end]) for end in ends])
        cost += 1e-9 * ((points[:, ends[0]] - points[:, ends[1]]) ** 2).sum(
            (0, -1)
        )  # where all is flat: short ones first
        keep = cost.argmin(0)
        order = np.argsort(cost.min(0), kind="stable")
        order = order[: max(len(order) // 3, 8)]
        chosen = order[_apart(ends[:, order], vertices)][: max((len(faces) - count + 1) // 2, 1)]
        if not len(chosen):
            return faces
        kept, gone = ends[keep[chosen], chosen], ends[1 - keep[chosen], chosen]
        good = _may_collapse(points, faces, kept, gone)
        banned = np.concatenate([banned, codes[chosen[~good]]])
        kept, gone = kept[good], gone[good]
        becomes = np.arange(vertices)
        becomes[gone] = kept
        faces = becomes[faces]
        faces = faces[(faces != np.roll(faces, 1, -1)).all(-1)]
        quadrics[:, kept] += quadrics[:, gone]
    return faces


def _quadrics(points: Float[np.ndarray, "K V 3"], faces: Int[np.ndarray, "F 3"]) -> Float[np.ndarray, "K V 10"]:
    """Squared distances to the planes of the triangles around each vertex, by area: the symmetric matrix's ten numbers, those off
    the diagonal doubled."""
    a, b, c = np.moveaxis(points[:, faces], 2, 0)
    normal = np.cross(b - a, c - a)
    area = np.linalg.norm(normal, axis=-1, keepdims=True)
    normal = normal / np.maximum(area, 1e-20)
    plane = np.concatenate([normal, -(normal * a).sum(-1, keepdims=True)], -1)
    of_face = area * plane[..., _ROW] * plane[..., _COLUMN] * np.where(_ROW == _COLUMN, 1, 2)
    around = coo_matrix(
        (np.ones(faces.size), (faces.T.ravel(), np.tile(np.arange(len(faces)), 3))), (points.shape[1], len(faces))
    )
    around = around.tocsr()
    return np.stack([around @ pose for pose in of_face])


def _apart(ends: Int[np.ndarray, "2 E"], vertices: int) -> np.ndarray:
    """Of edges in the order of their cost: those cheaper than every other edge at their ends' neighbours."""
    rank = np.arange(ends.shape[1])
    at = np.full(vertices, len(rank))
    for end in ends:
        np.minimum.at(at, end, rank)
    around = at.copy()
    for end, other in (ends, ends[::-1]):
        np.minimum.at(around, end, at[other])
    return np.flatnonzero((around[ends[0]] == rank) & (around[ends[1]] == rank))


def _may_collapse(points: np.ndarray, faces: np.ndarray, kept: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """Whether the surface stays a surface (two common neighbours) and no triangle turns by more than a right angle."""
    vertices = points.shape[1]
    rows, columns = faces[:, [0, 1, 2, 1, 2, 0]].ravel(), faces[:, [1, 2, 0, 0, 1, 2]].ravel()
    near = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(vertices, vertices)).tocsr()
    near.data[:] = 1
    good = np.asarray(near[kept].multiply(near[gone]).sum(-1)).ravel() == 2

    number = np.full(vertices, -1)
    number[gone] = np.arange(len(gone))
    becomes = np.arange(vertices)
    becomes[gone] = kept
    moved = faces[(number[faces] >= 0).any(-1)]
    after = becomes[moved]
    stays = (after != np.roll(after, 1, -1)).all(-1)
    moved, after = moved[stays], after[stays]
    old, new = _normals(points, moved), _normals(points, after)
    flips = ((old * new).sum(-1) < 0.2).any(0)
    good[number[moved[flips]].max(-1)] = False
    return good


def _normals(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = np.moveaxis(points[:, faces], 2, 0)
    normal = np.cross(b - a, c - a)
    return normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-20)
