"""Acclaim motion: a skeleton (.asf) and its motion (.amc), as the CMU library distributes both.

A bone's `direction` and `length` are given in the world's axes of the rest pose, its degrees of freedom in the bone's own axes C
(`axis`). With M the product of its angles, the rotation relative to the parent, in rest-pose axes, is C M C^-1. "XYZ" means about
x first: M = Rz Ry Rx. A joint bears the name of the bone that starts there. Lengths are inches divided by the skeleton's
`length` scale. The .amc has no frame rate: CMU's is 120 Hz for almost all trials.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from body3d.datasets.motion import Motion, axis_rotations
from body3d.datasets.reading import existing
from body3d.errors import InputError
from body3d.skeletons import JointSet

__all__ = ["Bone", "Skeleton", "read_amc", "read_asf"]

INCH = 0.0254
_CMU = "mocap.cs.cmu.edu"


@dataclass(frozen=True)
class Bone:
    name: str
    reach: tuple[float, float, float]  # metres, from its joint to its end in the rest pose; zero for the root
    axis: tuple[float, float, float]  # degrees about x, y, z: the axes in which the angles are given
    axis_order: str  # "xyz": about x first
    channels: tuple[str, ...]  # as the .amc lists them: "tx", "rx", ...


@dataclass(frozen=True)
class Skeleton:
    name: str
    bones: tuple[Bone, ...]  # the root first
    parents: tuple[int, ...]
    unit: float  # metres in one unit of length
    angle: float  # degrees in one unit of angle


def read_asf(path: Path | str) -> Skeleton:
    """The skeleton of an .asf file. Raises InputError for what is not one."""
    path = existing(path, "ASF skeleton", _CMU)
    lines = (line.split("#")[0].strip() for line in path.read_text(errors="replace").splitlines())
    sections = {m[1]: m[2] for m in re.finditer(r"^:(\S+)(.*?)(?=^:|\Z)", "\n".join(lines), re.M | re.S)}
    missing = [key for key in ("units", "root", "bonedata", "hierarchy") if key not in sections]
    if missing:
        raise InputError(f"{path} is not an ASF skeleton: it has no {', '.join(f':{key}' for key in missing)}")
    try:
        units = dict(line.split()[:2] for line in sections["units"].strip().splitlines())
        unit = INCH / float(units.get("length", 1))
        angle = 1.0 if units.get("angle", "deg").startswith("deg") else math.degrees(1)
        bones = {"root": _root(_fields(sections["root"]), angle)}
        for block in re.findall(r"begin(.*?)^\s*end\b", sections["bonedata"], re.M | re.S):
            bone = _bone(_fields(block), unit, angle)
            bones[bone.name] = bone
        parent = {}
        for line in sections["hierarchy"].strip().splitlines():
            head, *children = line.split()
            parent |= dict.fromkeys(children, head)
        order = ["root"]
        for name in order:  # grows while it is walked: every parent before its children
            order += [child for child, p in parent.items() if p == name]
        parents = tuple(-1 if n == "root" else order.index(parent[n]) for n in order)
        return Skeleton(path.stem, tuple(bones[n] for n in order), parents, unit, angle)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise InputError(f"{path} is a broken ASF skeleton: {type(error).__name__} {error}") from error


def read_amc(path: Path | str, skeleton: Skeleton, fps: float = 120.0) -> Motion:
    """The motion of an .amc file on its skeleton; the end of a chain is a joint `<bone>_end`.

    Raises InputError for a frame that lacks a bone, a bone that the skeleton lacks, or a wrong number of values.
    """
    path = existing(path, "AMC motion", _CMU)
    if not (math.isfinite(fps) and fps > 0):
        raise InputError(f"{path}: the frame rate must be above 0, got {fps}; CMU's is 120")
    values = _frames(path, skeleton)
    frames = len(next(iter(values.values())))
    leaves = [j for j in range(len(skeleton.bones)) if j not in skeleton.parents]
    names = [bone.name for bone in skeleton.bones] + [f"{skeleton.bones[j].name}_end" for j in leaves]
    parents = [*skeleton.parents, *leaves]
    rotations = torch.eye(3, dtype=torch.float64).repeat(frames, len(names), 1, 1)
    translations = torch.zeros(frames, len(names), 3, dtype=torch.float64)
    for j, p in enumerate(parents[1:], 1):
        translations[:, j] = torch.tensor(skeleton.bones[p].reach, dtype=torch.float64)
    for j, bone in enumerate(skeleton.bones):
        own = _product([torch.tensor(a, dtype=torch.float64) for a in bone.axis], bone.axis_order)
        turned = torch.eye(3, dtype=torch.float64).expand(frames, 3, 3)
        for channel, column in zip(
            bone.channels, values.get(bone.name, torch.zeros(frames, 0)).unbind(-1), strict=True
        ):
            kind, axis = channel
            if kind == "t" and j == 0:
                translations[:, 0, "xyz".index(axis)] = column * skeleton.unit
            elif kind == "r":
                turned = axis_rotations(column * skeleton.angle, axis) @ turned
        rotations[:, j] = own @ turned @ own.mT
    joints = JointSet(path.stem, tuple(names), tuple(parents))
    return Motion(joints, rotations.float(), translations.float(), float(fps))


def _frames(path: Path, skeleton: Skeleton) -> dict[str, Float[Tensor, "T C"]]:
    """The values of each bone that has any degree of freedom, over all frames."""
    wanted = {bone.name: len(bone.channels) for bone in skeleton.bones if bone.channels}
    columns: dict[str, list[list[float]]] = {name: [] for name in wanted}
    frame = 0
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        words = line.split()
        if not words or words[0][0] in "#:":
            continue
        if len(words) == 1 and words[0].isdigit():
            _whole(path, columns, frame)
            frame += 1
            continue
        name, *texts = words
        if name not in wanted or len(texts) != wanted[name] or len(columns[name]) != frame - 1:
            raise InputError(
                f"{path}, line {number}: {name!r} with {len(texts)} values does not fit the skeleton {skeleton.name}, "
                f"which expects {wanted.get(name, 'no such bone')}"
            )
        try:
            row = [float(text) for text in texts]
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
        if not all(map(math.isfinite, row)):
            raise InputError(f"{path}, line {number}: {name!r} has a value that is NaN or infinite")
        columns[name].append(row)
    _whole(path, columns, frame)
    if not frame:
        raise InputError(f"{path} is not an AMC motion: it has no frame")
    return {name: torch.tensor(rows, dtype=torch.float64) for name, rows in columns.items()}


def _whole(path: Path, columns: dict[str, list[list[float]]], frames: int) -> None:
    short = [name for name, rows in columns.items() if len(rows) != frames]
    if short:
        raise InputError(
            f"{path}: frame {frames} has no {', '.join(short)}; the file is cut short or of another skeleton"
        )


def _fields(block: str) -> dict[str, list[str]]:
    return {words[0]: words[1:] for words in map(str.split, block.strip().splitlines()) if words}


def _root(fields: dict[str, list[str]], angle: float) -> Bone:
    axis = _triple(fields.get("orientation", ["0", "0", "0"]), angle)
    order = fields.get("axis", ["XYZ"])[0].lower()
    return Bone("root", (0.0, 0.0, 0.0), axis, order, tuple(c.lower() for c in fields["order"]))


def _bone(fields: dict[str, list[str]], unit: float, angle: float) -> Bone:
    name = fields["name"][0]
    x, y, z = _triple(fields["direction"], float(fields["length"][0]) * unit)
    order = fields["axis"][3].lower() if len(fields["axis"]) > 3 else "xyz"
    channels = tuple(c.lower() for c in fields.get("dof", []))
    return Bone(name, (x, y, z), _triple(fields["axis"], angle), order, channels)


def _triple(words: list[str], scale: float) -> tuple[float, float, float]:
    x, y, z = (float(word) * scale for word in words[:3])
    return x, y, z


def _product(degrees: list[Tensor], order: str) -> Float[Tensor, "3 3"]:
    """Rotations about the axes in that order, the first one applied first; angles are listed for x, y, z."""
    total = torch.eye(3, dtype=torch.float64)
    for axis in order:
        total = axis_rotations(degrees["xyz".index(axis)], axis) @ total
    return total
