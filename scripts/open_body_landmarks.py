"""The 51 + 17 face landmarks of the open body, in iBUG's order of 68.

The inner 51 are vertices of MakeHuman's base mesh (or middles of its edges), named by that mesh's own numbers, which
do not change: lid landmarks are on the rims of the lids, lip landmarks on the borders of the lips, brow landmarks on
the ridge, half way between the edges of the eyebrow. Numbers are given for the right half and the middle line; the left
half is its mirror image.

The 17 of the contour depend on where the face is seen from. They are found on the outline of the face proper, the skin
in front of the ears and above the edge of the lower jaw, for every degree of yaw. Row k of the tables, 0..39, is for a
head that the camera sees turned k degrees to its own left, row 39 + k for one turned k degrees to its own right.
"""

from __future__ import annotations

import numpy as np

Point = tuple[int, int, float]  # vertices a and b, and the share of b: the point (1 - share) a + share b of an edge

# iBUG 17..67 -> MakeHuman's vertices: one number is that vertex, two are the middle of their edge.
RIGHT_AND_MIDDLE: dict[int, tuple[int, ...]] = {
    17: (212,), 18: (206, 207), 19: (204,), 20: (205,), 21: (209,),  # brow, from outside to inside
    27: (132,), 28: (131,), 29: (164,), 30: (294,),  # ridge of the nose: root to tip
    31: (286,), 32: (313,), 33: (317,),  # under the nose: wing, nostril, base
    36: (24,), 37: (0,), 38: (54,), 39: (67,), 40: (47, 50), 41: (41,),  # rim of the lids, from the outer corner
    48: (422,), 49: (410, 5351), 50: (457, 460), 51: (466,),  # border of the upper lip, from the corner
    57: (496,), 58: (490,), 59: (406, 484),  # border of the lower lip, from the middle
    60: (428,), 61: (471, 472), 62: (474,), 66: (523,), 67: (517,),  # where the lips meet: corner, upper, lower
}  # fmt: skip
# iBUG numbers of mirror images: left -> right.
LEFT = {
    26: 17, 25: 18, 24: 19, 23: 20, 22: 21, 35: 31, 34: 32, 45: 36, 44: 37, 43: 38, 42: 39, 47: 40, 46: 41,
    54: 48, 53: 49, 52: 50, 56: 58, 55: 59, 64: 60, 63: 61, 65: 67,
}  # fmt: skip

# The edge of the face as seen from its right side: down in front of the ear, round the angle of the jaw, along its
# lower edge to the chin. MakeHuman's vertices.
JAW_EDGE = (5769, 5754, 5763, 5750, 5097, 866, 911, 895, 894, 893, 892, 3697, 891, 916, 914, 5292, 5225)
MENTON = 5225
MAX_YAW = 39


def face_landmarks(
    verts: np.ndarray, faces: np.ndarray, base: dict[int, int], mirror: np.ndarray, eye_height: float
) -> dict:
    """The landmark arrays of the file.

    verts (V, 3) rest mesh; faces (F, 3); base: MakeHuman's vertex number -> ours; mirror (V,): the vertex across the
    middle; eye_height: y of the eyes' centres, where the contour begins and ends (m).
    """
    mesh = _Edges(faces, mirror)
    inner = _inner(base, mirror)
    faces51, bary51 = mesh.barycentric(inner)

    base_edge = [base[n] for n in JAW_EDGE]
    on_face = _face_proper(verts, verts[base_edge], eye_height)
    on_face[base_edge] = True
    edges = mesh.symmetric[on_face[mesh.symmetric].all(1)]
    rows: list[list[Point]] = [[]] * (2 * MAX_YAW + 1)
    for yaw in range(MAX_YAW + 1):
        points = _contour(verts, edges, yaw, verts[base[MENTON]], eye_height)
        flipped = [(int(mirror[a]), int(mirror[b]), t) for a, b, t in points[::-1]]
        if yaw == 0:  # the frontal view is its own mirror image
            rows[0] = points[:9] + flipped[9:]
        else:
            rows[yaw], rows[MAX_YAW + yaw] = points, flipped
    contour = [mesh.barycentric(r) for r in rows]
    return {
        "lmk_faces_idx": faces51,
        "lmk_bary_coords": bary51,
        "dynamic_lmk_faces_idx": np.stack([f for f, _ in contour]),
        "dynamic_lmk_bary_coords": np.stack([b for _, b in contour]),
    }


def _inner(base: dict[int, int], mirror: np.ndarray) -> list[Point]:
    points = []
    for k in range(17, 68):
        numbers = [base[n] for n in RIGHT_AND_MIDDLE[LEFT.get(k, k)]]
        if k in LEFT:
            numbers = [int(mirror[n]) for n in numbers]
        points.append((numbers[0], numbers[-1], 0.5 if len(numbers) == 2 else 0.0))
    return points


class _Edges:
    """The edges of a mesh: a face for each, and which edges have a mirror image that is an edge too."""

    def __init__(self, faces: np.ndarray, mirror: np.ndarray) -> None:
        self.faces = faces
        self.face_of: dict[tuple[int, int], int] = {}
        self.face_at: dict[int, int] = {}
        for i, (a, b, c) in enumerate(faces.tolist()):
            for p, q in ((a, b), (b, c), (c, a)):
                self.face_of[p, q] = self.face_of[q, p] = i
                self.face_at[p] = i
        pairs = np.array([e for e in self.face_of if e[0] < e[1]])
        flipped = mirror[pairs]
        self.symmetric = pairs[[(p, q) in self.face_of for p, q in flipped.tolist()]]

    def barycentric(self, points: list[Point]) -> tuple[np.ndarray, np.ndarray]:
        """Faces (N,) and barycentric coordinates (N, 3) of points on edges."""
        index, bary = [], []
        for a, b, t in points:
            face = self.face_of[a, b] if a != b else self.face_at[a]
            corners = self.faces[face]
            index.append(face)
            bary.append((1 - t) * (corners == a) + t * (corners == b) if a != b else 1.0 * (corners == a))
        return np.array(index), np.array(bary, np.float32)


def _face_proper(verts: np.ndarray, edge: np.ndarray, eye_height: float) -> np.ndarray:
    """Which vertices, seen from the side, lie in front of the line `edge` (N, 3) and not far above the eyes: (V,)."""
    front, above = 1.0, eye_height + 0.04
    line = np.concatenate([[[edge[0, 2], above]], edge[:, [2, 1]], [[front, edge[:, 1].min()], [front, above]]])
    z, y = verts[:, 2, None], verts[:, 1, None]
    (z0, y0), (z1, y1) = line.T, np.roll(line, -1, 0).T
    crosses = (y0 > y) != (y1 > y)  # even-odd rule along z
    with np.errstate(divide="ignore", invalid="ignore"):
        ahead = z < z0 + (y - y0) / (y1 - y0) * (z1 - z0)
    return (crosses & ahead).sum(1) % 2 == 1


def _contour(verts: np.ndarray, edges: np.ndarray, yaw: int, menton: np.ndarray, eye_height: float) -> list[Point]:
    """17 points along the outline of a face turned `yaw` degrees to its left: right ear, chin, left ear.

    From a point in the middle of the picture of the face rays go out in all directions; the farthest crossing of each
    ray with an edge of the face is on the outline. Points are spaced evenly along either half of the outline.
    """
    c, s = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    centre = np.array([0.0, (menton[1] + eye_height) / 2 + 0.01, menton[2] - 0.05])

    def seen(p: np.ndarray) -> np.ndarray:  # orthographic view along -z of the head turned to its left
        q = p - centre
        return np.stack([c * q[..., 0] + s * q[..., 2], q[..., 1]], -1)

    a, b = seen(verts[edges[:, 0]]), seen(verts[edges[:, 1]])
    chin = np.arctan2(*seen(menton)[::-1])
    below = chin % (2 * np.pi)  # angles run counter-clockwise: right (pi), chin (3/2 pi), left (2 pi)
    angles = np.concatenate([np.linspace(0.6 * np.pi, below, 400), np.linspace(below, 2.4 * np.pi, 400)[1:]])
    points, place = [], []
    for angle in angles:
        d, n = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
        side_a, side_b = a @ n, b @ n
        crossing = np.flatnonzero((side_a * side_b <= 0) & (side_a != side_b))
        t = side_a[crossing] / (side_a[crossing] - side_b[crossing])
        radius = ((1 - t)[:, None] * a[crossing] + t[:, None] * b[crossing]) @ d
        k = radius.argmax()
        points.append((int(edges[crossing[k], 0]), int(edges[crossing[k], 1]), float(t[k])))
        place.append(radius[k] * d)
    place = np.array(place)
    high = place[:, 1] > eye_height - centre[1]
    first = np.flatnonzero(high[:400])[-1] + 1  # the outline comes down to the eyes' height
    last = 399 + np.flatnonzero(high[399:])[0] - 1
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(place, axis=0), axis=1))])
    goals = np.concatenate([np.linspace(along[first], along[399], 9), np.linspace(along[399], along[last], 9)[1:]])
    return [points[int(np.abs(along - g).argmin())] for g in goals]
