"""Predictions and ground truth as files, brought into the same order and the same joints.

A .npz file of poses holds one of
    xyz (N, J, 3)       metres, camera axes, with `joints` (the name of a joint set) or `joint_names` (J,)
    xy (N, J, 2)        pixels, with the same
    vertices (N, V, 3)  metres, of meshes of one topology, with `root` (N, 3) for the error from the root
and may hold
    conf (N, J)         0: not annotated (ground truth), not to be counted
    ids (N,)            which pose; with ids in both files the order does not matter
    actions (N,)        of the ground truth: a number per action, too
    takes (N,)          which recording; velocities need it if there is more than one
    images (N,)         which image, where several people stand in one
    scores (N,)         of predictions of several people
    head_boxes (N, 4)   of the ground truth: x0 y0 x1 y1, for PCKh
    fps                 frames per second of the recordings
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from body3d import skeletons
from body3d.datasets.reading import read_npz
from body3d.errors import InputError
from body3d.skeletons import JointSet, convert_points

__all__ = ["Poses", "read_poses", "same_people"]

SETS = {s.name: s for s in vars(skeletons).values() if isinstance(s, JointSet)}
FIELDS = ("ids", "actions", "takes", "images")


@dataclass(frozen=True)
class Poses:
    points: Tensor  # (N, J, 3) or (N, J, 2), or vertices (N, V, 3)
    conf: Tensor  # (N, J)
    joints: JointSet | None  # None: vertices
    text: dict[str, tuple[str, ...]] = field(default_factory=dict)  # ids, actions, takes, images: one per pose
    extra: dict[str, Tensor] = field(default_factory=dict)  # scores, head_boxes, root, fps
    source: str = "memory"

    def __len__(self) -> int:
        return len(self.points)

    def pick(self, rows: list[int]) -> "Poses":
        chosen = lambda t: t[rows] if t.dim() else t
        return replace(
            self, points=self.points[rows], conf=self.conf[rows],
            text={k: tuple(v[i] for i in rows) for k, v in self.text.items()},
            extra={k: chosen(v) for k, v in self.extra.items()},
        )  # fmt: skip

    def convert(self, joints: JointSet) -> "Poses":
        """In another joint set, by name. InputError if none of its joints can be made."""
        if self.joints is None:
            raise InputError(f"{self.source} holds meshes, where poses of {joints.name} were expected")
        if self.joints == joints:
            return self
        points, conf = convert_points(self.points, self.conf, self.joints, joints)
        if not conf.any():
            raise InputError(f"{self.source}: {self.joints.name} has no joint of {joints.name}")
        return replace(self, points=points, conf=conf, joints=joints)


def read_poses(path: Path | str, key: str) -> Poses:
    """Poses of the kind `key` ("xyz", "xy", "vertices"). InputError names the file, the key and what is wrong with it."""
    path = Path(path)
    source = "a prediction or a conversion of the ground truth; see body3d.evaluate.poses"
    arrays = read_npz(path, None, "file of poses", source)
    if key not in arrays:
        raise InputError(f"{path} has no {key!r}, only {', '.join(arrays)}")
    d = 2 if key == "xy" else 3
    points = arrays[key]
    if points.ndim != 3 or points.shape[2] != d or points.dtype.kind not in "fiu":
        raise InputError(f"{path}: {key} is {points.shape} of {points.dtype}, where (poses, points, {d}) was expected")
    count, width = points.shape[:2]
    if not count:
        raise InputError(f"{path}: {key} holds no pose")
    conf = arrays.get("conf", np.ones((count, width)))
    if conf.shape != (count, width):
        raise InputError(f"{path}: conf is {conf.shape}, where {(count, width)} was expected, as {key} has")
    if conf.dtype.kind not in "fiub" or not (np.isfinite(conf) & (conf >= 0)).all():
        raise InputError(f"{path}: conf must be finite numbers from 0")
    bad = ~np.isfinite(points).all(-1) & (conf > 0)
    if bad.any():
        i, j = (int(v) for v in np.argwhere(bad)[0])
        raise InputError(
            f"{path}: {key} is NaN or infinite in {int(bad.any(1).sum())} poses, the first at pose {i}, point {j}"
        )
    joints = None if key == "vertices" else _joints(path, arrays, width)
    if (
        key != "xy"
        and (size := float(np.nanmedian(np.ptp(np.where(conf[..., None] > 0, points, np.nan), axis=1)))) > 10
    ):
        raise InputError(
            f"{path}: people are {size:.0f} units large; {key} must be in metres (divide millimetres by 1000)"
        )
    text = {}
    for name in FIELDS:
        if name in arrays:
            if arrays[name].shape != (count,):
                raise InputError(f"{path}: {name} has the shape {arrays[name].shape}, where ({count},) was expected")
            text[name] = tuple(str(v) for v in arrays[name].tolist())
    extra = {}
    for name, shape in (("scores", (count,)), ("head_boxes", (count, 4)), ("root", (count, 3)), ("fps", ())):
        if name in arrays:
            if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
                raise InputError(
                    f"{path}: {name} must be finite numbers of the shape {shape}, got {arrays[name].shape}"
                )
            extra[name] = torch.from_numpy(np.asarray(arrays[name], np.float64))
    known = np.nan_to_num(points).astype(np.float64)
    return Poses(torch.from_numpy(known), torch.from_numpy(conf.astype(np.float64)), joints, text, extra, str(path))


def same_people(predicted: Poses, truth: Poses) -> Poses:
    """The predictions in the order of the truth. InputError if some are missing or the numbers differ."""
    if "ids" in predicted.text and "ids" in truth.text:
        at = {name: i for i, name in enumerate(predicted.text["ids"])}
        if len(at) != len(predicted):
            raise InputError(f"{predicted.source}: ids must be unique, but {len(predicted) - len(at)} occur again")
        if missing := [name for name in truth.text["ids"] if name not in at]:
            raise InputError(
                f"{predicted.source} lacks {len(missing)} of the {len(truth)} poses of {truth.source}, the first is {missing[0]!r}"
            )
        return predicted.pick([at[name] for name in truth.text["ids"]])
    if len(predicted) != len(truth):
        raise InputError(
            f"{predicted.source} holds {len(predicted)} poses, {truth.source} {len(truth)}; give both `ids` if they differ"
        )
    return predicted


def _joints(path: Path, arrays: dict[str, np.ndarray], width: int) -> JointSet:
    if "joint_names" in arrays:
        names = tuple(str(n) for n in arrays["joint_names"].tolist())
        joints = next((s for s in SETS.values() if s.names == names), None) or JointSet(
            "own", names, (-1,) * len(names)
        )
    elif "joints" in arrays:
        name = str(arrays["joints"])
        if name not in SETS:
            raise InputError(f"{path}: there is no joint set {name!r}; there are {', '.join(SETS)}")
        joints = SETS[name]
    else:
        raise InputError(f"{path} says neither `joints` (the name of a joint set) nor `joint_names`")
    if len(joints) != width:
        raise InputError(f"{path}: {joints.name} has {len(joints)} joints, the poses have {width}")
    return joints
