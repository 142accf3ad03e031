"""The parts of a body's surface, and which of them may collide.

Parts are the joints of the tree: each triangle belongs to the joint that moves it most, as in the segmentation that SMPLify-X
(Pavlakos et al., CVPR 2019, section 3.5) filters its collisions with. Regions are what people call them: the torso, a forearm.

SMPLify-X never lets a part collide with itself, with its parent, or with the pairs of `PUBLISHED_IGNORED`: flesh that meets in
ordinary poses. Here the two thighs do collide, but for the crotch: skin that lies closer to the other part along the surface
than the thinner of the two is thick is the inside of a fold (`crease`), between any two parts.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra

from body3d.body.files import read_arrays
from body3d.body.model import BodyModel
from body3d.errors import InputError
from body3d.skeletons import JointSet

__all__ = ["IGNORED", "PUBLISHED_IGNORED", "Parts", "body_parts", "read_parts"]

Pairs = tuple[tuple[str, str], ...]

# 9-16, 9-17, 6-16, 6-17, 12-22 and 1-2 of SMPLify-X's settings, by the names of the joints.
_FLESH: Pairs = (
    *((spine, f"{side}_shoulder") for spine in ("spine3", "spine2") for side in ("left", "right")),
    ("neck", "jaw"),
)
PUBLISHED_IGNORED: Pairs = (*_FLESH, ("left_hip", "right_hip"))
# Where others are next to each other without being parent and child: the belly lies on the thighs of who sits, the collars move
# skin at the neck's root, the eyes belong to the head.
IGNORED: Pairs = (
    *_FLESH,
    *((a, f"{side}_{b}") for side in ("left", "right")
      for a, b in (("spine1", "hip"), ("neck", "collar"), ("neck", "eye_smplhf"))),
)  # fmt: skip

_TORSO = ("pelvis", "spine1", "spine2", "spine3", "left_collar", "right_collar")
_HEAD = ("head", "jaw", "left_eye_smplhf", "right_eye_smplhf")
_LIMBS = {
    "shoulder": "upper_arm", "elbow": "forearm", "wrist": "hand", "hand": "hand",
    "hip": "thigh", "knee": "shin", "ankle": "foot", "foot": "foot",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Parts:
    """A closed surface cut into P parts, which form R regions. Without `crease` every touch of two parts counts."""

    names: tuple[str, ...]
    regions: tuple[str, ...]
    region: Int[np.ndarray, " P"]  # of each part
    faces: Int[np.ndarray, "F 3"] = field(repr=False)
    face: Int[np.ndarray, " F"] = field(repr=False)  # the part of each triangle
    vertex: Int[np.ndarray, " V"] = field(repr=False)
    collide: Bool[np.ndarray, "P P"] = field(repr=False)  # symmetric
    crease: Bool[np.ndarray, "V P"] | None = field(repr=False, default=None)  # skin of a vertex that folds with a part
    face_crease: Bool[np.ndarray, "F P"] | None = field(repr=False, default=None)

    def count(
        self,
        kind: Bool[np.ndarray, "N P"] | None,
        part: Int[np.ndarray, " K"],
        item: Int[np.ndarray, " K"],
        face: Int[np.ndarray, " K"],
    ) -> Bool[np.ndarray, " K"]:
        """Whether something of `part` that is in a triangle of another part is a collision.

        `kind` is `crease` with vertices as items, or `face_crease` with triangles as items.
        """
        other = self.face[face]
        counts = self.collide[part, other]
        if kind is not None and self.face_crease is not None:
            counts &= ~(kind[item, other] & self.face_crease[face, part])
        return counts


def region_of(joint: str) -> str:
    """The region that a joint's part is of: `left_elbow` moves the `left_forearm`."""
    if joint in _TORSO or joint in _HEAD:
        return "torso" if joint in _TORSO else "head"
    side, _, rest = joint.partition("_")
    if rest in _LIMBS:
        return f"{side}_{_LIMBS[rest]}"
    finger = rest.rstrip("0123456789")
    return f"{side}_{finger}_finger" if finger not in ("", "thumb") else joint.rstrip("0123456789")


def may_collide(joints: JointSet, ignored: Pairs) -> Bool[np.ndarray, "P P"]:
    """Parts of different regions that are neither parent and child nor ignored; a name that the tree lacks is skipped."""
    regions = [region_of(name) for name in joints.names]
    collide = np.array([[a != b for b in regions] for a in regions])
    pairs = [(joint, parent) for joint, parent in enumerate(joints.parents) if parent >= 0]
    pairs += [(joints.index(a), joints.index(b)) for a, b in ignored if a in joints and b in joints]
    for a, b in pairs:
        collide[a, b] = collide[b, a] = False
    return collide


@lru_cache(maxsize=8)
def body_parts(model: BodyModel, ignored: Pairs = IGNORED, creases: bool = True) -> Parts:
    """The parts of a model, from its skinning weights."""
    weights = model.weights.cpu().numpy()
    face = weights[model.faces.cpu().numpy()].sum(1).argmax(1)
    return _parts(model, face, weights.argmax(1), may_collide(model.joints, ignored), creases)


def read_parts(path: str | Path, model: BodyModel, ignored: Pairs = PUBLISHED_IGNORED, creases: bool = False) -> Parts:
    """The segmentation that is published with SMPL-X (`smplx_parts_segm.pkl`): `segm`, the part of each triangle, and
    `parents`, the parent of that part. The defaults are what SMPLify-X does with it.

    Raises InputError for a file without them, or of another mesh.
    """
    arrays = read_arrays(path, ("segm", "parents"), ("segm", "parents"), what="segmentation")
    segm, parents = (np.asarray(arrays[key]).reshape(-1) for key in ("segm", "parents"))
    faces, J = model.faces.cpu().numpy(), len(model.joints)
    if len(segm) != len(faces) or segm.dtype.kind not in "iu" or segm.min() < 0 or segm.max() >= J:
        raise InputError(
            f"{path}: 'segm' should hold one joint of 0…{J - 1} for each of the {len(faces)} triangles of the "
            f"{model.kind} model; it has {len(segm)} entries up to {segm.max(initial=0)}"
        )
    if len(parents) not in (len(segm), J):
        raise InputError(f"{path}: 'parents' has {len(parents)} entries; one per triangle ({len(segm)}) was expected")
    collide = may_collide(model.joints, ignored)
    part, above = (segm, parents) if len(parents) == len(segm) else (np.arange(J), parents)
    known = (above >= 0) & (above < J)
    collide[part[known], above[known]] = collide[above[known], part[known]] = False
    vertex = np.zeros((len(model.template), J), np.int64)
    np.add.at(vertex, (faces, segm[:, None]), 1)
    return _parts(model, segm.astype(np.int64), vertex.argmax(1), collide, creases)


def _parts(model: BodyModel, face: np.ndarray, vertex: np.ndarray, collide: np.ndarray, creases: bool) -> Parts:
    names = model.joints.names
    regions = tuple(dict.fromkeys(region_of(name) for name in names))
    region = np.array([regions.index(region_of(name)) for name in names])
    faces = model.faces.cpu().numpy()
    if not creases:
        return Parts(names, regions, region, faces, face, vertex, collide)
    crease = _creases(model.template.double().cpu().numpy(), faces, vertex, len(names))
    return Parts(names, regions, region, faces, face, vertex, collide, crease, crease[faces].max(1))


def _creases(
    verts: Float[np.ndarray, "V 3"],
    faces: Int[np.ndarray, "F 3"],
    part: Int[np.ndarray, " V"],
    P: int,
) -> Bool[np.ndarray, "V P"]:
    """Which vertices lie closer to a part, along the mesh, than the thinner of that part and their own is thick."""
    a, b = faces.ravel(), np.roll(faces, 1, 1).ravel()
    V = len(verts)
    graph = coo_matrix((np.linalg.norm(verts[a] - verts[b], axis=1), (a, b)), (V, V)).tocsr()
    graph = graph.maximum(graph.T)
    radius = np.array([_radius(verts[part == p]) for p in range(P)])
    crease = np.zeros((V, P), bool)
    for p in range(P):
        (of_part,) = np.nonzero(part == p)
        if len(of_part):
            reach = dijkstra(graph, indices=of_part, min_only=True, limit=radius[p])
            crease[:, p] = reach < radius[part]
    return crease


def _radius(points: Float[np.ndarray, "N 3"]) -> float:
    """Of a tube of skin, from its second-longest axis."""
    if len(points) < 3:
        return 0.0
    return float(np.linalg.svd(points - points.mean(0), compute_uv=False)[1] * np.sqrt(2 / len(points)))
