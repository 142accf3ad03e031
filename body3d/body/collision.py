"""What of a posed body is inside itself, where and how deep.

Each region of the surface (`Parts.regions`) becomes a solid: its open ends, where it meets its neighbours, are closed with fans of
triangles. A vertex of another region is inside a solid if its winding number there is not 0, and as deep as the nearest point of
the solid's skin is far.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist

from body3d.body.parts import Parts

__all__ = ["Penetration", "closest_on_triangles", "penetrations", "winding_numbers"]

ROWS = 512  # points that are compared with a solid at once


@dataclass(frozen=True)
class Penetration:
    """`inner` is inside `outer`: `left_forearm` in `torso`."""

    inner: str
    outer: str
    depth: float  # metres, of the deepest vertex
    vertices: int  # how many are inside

    def __str__(self) -> str:
        return f"{self.inner} in {self.outer}: {1000 * self.depth:.1f} mm"


def penetrations(verts: Float[np.ndarray, "V 3"], parts: Parts) -> list[Penetration]:
    """Every pair of regions of which one is inside the other, the deepest first.

    Regions that are in each other come twice. What `parts` says cannot collide, or is the inside of a fold, is not looked at.
    """
    solids = _solids(parts)
    boxes = np.array([(v.min(0), v.max(0)) for v in (verts[s.vertices] for s in solids)])  # of each solid
    boxed = np.stack([s.others for s in solids])
    for axis in range(3):
        at = verts[:, axis]
        boxed &= (at > boxes[:, :1, axis]) & (at < boxes[:, 1:, axis])
    out = []
    for solid, near in zip(solids, boxed, strict=True):
        points, depth = _inside(verts, parts, solid, np.nonzero(near)[0])
        region = parts.region[parts.vertex[points]]
        for r in np.unique(region):
            deep = depth[region == r]
            out.append(Penetration(parts.regions[r], parts.regions[solid.region], float(deep.max()), len(deep)))
    return sorted(out, key=lambda p: -p.depth)


def _inside(
    verts: Float[np.ndarray, "V 3"], parts: Parts, solid: "_Solid", near: Int[np.ndarray, " M"]
) -> tuple[Int[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Which of the vertices `near` a solid are inside it, and how deep."""
    if len(near) == 0:
        return near, np.zeros(0)
    inside = near[winding_numbers(verts[near], solid.triangles(verts, parts)) != 0]
    if len(inside) == 0:
        return inside, np.zeros(0)
    depth, nearest = _nearest(verts[inside], verts[parts.faces[solid.faces]])
    counts = parts.count(parts.crease, parts.vertex[inside], inside, solid.faces[nearest])
    return inside[counts], depth[counts]


# ---- solids --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class _Solid:
    """A region's triangles, the edges along which it is open, and which opening each belongs to."""

    region: int
    faces: Int[np.ndarray, " N"]
    vertices: Int[np.ndarray, " U"]
    others: Bool[np.ndarray, " V"]  # the vertices that it has not, of parts that may collide with some of its own
    rim: Int[np.ndarray, "E 2"]
    opening: Int[np.ndarray, " E"]

    def triangles(self, verts: Float[np.ndarray, "V 3"], parts: Parts) -> Float[np.ndarray, "M 3 3"]:
        """Skin and fans, the fans around the middle of each opening's rim."""
        skin = verts[parts.faces[self.faces]]
        if len(self.rim) == 0:
            return skin
        start, end = verts[self.rim[:, 0]], verts[self.rim[:, 1]]
        many = np.bincount(self.opening)[:, None]
        middle = np.stack([np.bincount(self.opening, start[:, k]) for k in range(3)], 1) / many
        return np.concatenate([skin, np.stack([end, start, middle[self.opening]], 1)])


@lru_cache(maxsize=8)
def _solids(parts: Parts) -> tuple[_Solid, ...]:
    out = []
    V = len(parts.vertex)
    for region in range(len(parts.regions)):
        (faces,) = np.nonzero(parts.region[parts.face] == region)
        if len(faces) == 0:
            continue
        corners = parts.faces[faces].astype(np.int64)
        edges = np.stack([corners, np.roll(corners, -1, 1)], -1).reshape(-1, 2)
        rim = edges[np.isin(edges @ [V, 1], edges @ [1, V], invert=True)]
        ids, place = np.unique(rim, return_inverse=True)
        place = place.reshape(-1, 2)
        graph = coo_matrix((np.ones(len(rim)), (place[:, 0], place[:, 1])), (len(ids),) * 2)
        opening = connected_components(graph, directed=False)[1] if len(rim) else np.zeros(0, np.int32)
        vertices = np.unique(corners)
        others = parts.collide[:, np.unique(parts.face[faces])].max(1)[parts.vertex]
        others[vertices] = False
        out.append(_Solid(region, faces, vertices, others, rim, opening[place[:, 0]]))
    return tuple(out)


# ---- points and triangles ------------------------------------------------------------------------------------------
# Rays leave along an axis that no edge of a mesh made by hand is parallel to: x, sheared.
SHEAR = np.array([0.3141592, 0.1732051])


def winding_numbers(points: Float[np.ndarray, "N 3"], triangles: Float[np.ndarray, "M 3 3"]) -> Int[np.ndarray, " N"]:
    """How often a closed surface, or several, goes around each point: 1 inside of one that looks outwards, 0 outside.

    Counts the triangles that a ray crosses, +1 on the way out and -1 on the way in.
    """
    flat = lambda x: x[..., 1:] - x[..., :1] * SHEAR
    corners = flat(triangles)
    low, high = np.ascontiguousarray(corners.min(1).T), np.ascontiguousarray(corners.max(1).T)
    ahead = triangles[..., 0].max(1)
    out = np.zeros(len(points), np.int64)
    for start in range(0, len(points), ROWS):
        rows = points[start : start + ROWS]
        p = flat(rows)
        met = rows[:, :1] < ahead
        for axis in range(2):
            at = p[:, axis, None]
            met &= (at >= low[axis]) & (at <= high[axis])
        i, f = np.nonzero(met)
        a, b, c = (corners[f, k] - p[i] for k in range(3))
        cross = lambda u, v: u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
        sides = np.stack([cross(b, c), cross(c, a), cross(a, b)], 1)
        area = sides.sum(1)
        through = (sides >= 0).all(1) | (sides <= 0).all(1)
        x = (sides * triangles[f, :, 0]).sum(1) / np.where(area == 0, 1.0, area)
        counted = through & (area != 0) & (x > rows[i, 0])
        out[start : start + ROWS] = np.round(
            np.bincount(i[counted], np.sign(area[counted]), minlength=len(rows))
        ).astype(np.int64)
    return out


def _nearest(
    points: Float[np.ndarray, "N 3"], triangles: Float[np.ndarray, "M 3 3"]
) -> tuple[Float[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Distance to the nearest triangle, and which it is."""
    middle = triangles.mean(1)
    reach = np.linalg.norm(triangles - middle[:, None], axis=2).max(1)
    distance, nearest = np.empty(len(points)), np.empty(len(points), np.int64)
    for start in range(0, len(points), ROWS):
        rows = points[start : start + ROWS]
        far = cdist(rows, middle)
        i, f = np.nonzero(far - reach <= far.min(1, keepdims=True))  # no other triangle can be the nearest
        d = np.linalg.norm(closest_on_triangles(rows[i], triangles[f]) - rows[i], axis=1)
        order = np.lexsort((d, i))
        first = order[np.unique(i[order], return_index=True)[1]]
        distance[start : start + ROWS], nearest[start : start + ROWS] = d[first], f[first]
    return distance, nearest


def closest_on_triangles(
    points: Float[np.ndarray, "N 3"], triangles: Float[np.ndarray, "N 3 3"]
) -> Float[np.ndarray, "N 3"]:
    """The point of each triangle that is nearest to its point: of the plane's foot point and those of the three edges."""
    a = triangles
    edge = np.roll(a, -1, 1) - a
    arm = points[:, None] - a
    t = (arm * edge).sum(2) / np.maximum((edge * edge).sum(2), 1e-300)
    on_edges = a + np.clip(t, 0, 1)[..., None] * edge
    best = ((on_edges - points[:, None]) ** 2).sum(2).argmin(1)
    out = on_edges[np.arange(len(a)), best]

    normal = np.cross(edge[:, 0], edge[:, 1])
    over = (np.cross(normal[:, None], edge) * arm).sum(2).min(1) >= 0  # within all three edges
    over &= (normal * normal).sum(1) > 0
    n = normal[over]
    out[over] = points[over] - ((n * arm[over, 0]).sum(1) / (n * n).sum(1))[:, None] * n
    return out
