"""Free motion capture: a folder of `.npz` files, each holding the clips of one subject on one skeleton, and an
`index.csv`.

The clips are CMU recordings from several exporters (free to use, credit mocap.cs.cmu.edu, NSF EIA-0196217),
DeepMimic's clips (MIT) and Mesh2Motion's hand-keyed animation (CC0); the licence of each clip travels with it. World
axes: y up, right-handed, metres. A file's rest pose and joint frames are its exporter's own, so rotations compare
within a source and the seventeen Human3.6M points across all.
"""

import csv
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np
import roma
import torch
from jaxtyping import Float
from torch import Tensor

from body3d.datasets.reading import locate, read_npz
from body3d.errors import InputError
from body3d.skeletons import H36M17
from body3d.types import Keypoints3D, Sample

__all__ = [
    "HELD_OUT_SUBJECTS", "H36M17_NAMES", "Mocap", "Clip", "ClipInfo", "clip_index", "forward_kinematics",
    "is_held_out", "part_orientations", "read_clip", "shortest_rotation",
]  # fmt: skip

# Never trained on, by anything: pose prior, lifters, 3D networks. Basketball, running, everyday actions, acrobatics,
# salsa and getting up from the floor. A person counts in every exporter's copy (006 is in both cmu_daz and cmu_dm).
# 061 is the partner of 060, who stays in training: the same dances at the same moments, in another body.
HELD_OUT_SUBJECTS = frozenset({"cmu006", "cmu009", "cmu013", "cmu049", "cmu061", "cmu140"})

# The joint that carries each body part, on the left; `_mirrored` gives the right. Skeletons are told apart by these
# names.
_PARTS: tuple[dict[str, str], ...] = (
    {  # cgspeed's BVH: cmu_daz, cmu_papagina
        "pelvis": "hip", "spine3": "chest", "head": "head", "left_ankle": "lFoot", "left_wrist": "lHand",
        "left_hip": "lThigh", "left_shoulder": "lShldr",
    },
    {  # Acclaim: cmu_amc, cmu_gpmat
        "pelvis": "root", "spine3": "thorax", "head": "head", "left_ankle": "lfoot", "left_wrist": "lhand",
        "left_hip": "lfemur", "left_shoulder": "lhumerus",
    },
    {  # DeepMimic's humanoid, cmu_dm and deepmimic: the head is fixed on the neck, there are no hands
        "pelvis": "root", "spine3": "chest", "head": "neck", "left_ankle": "left_ankle",
        "left_hip": "left_hip", "left_shoulder": "left_shoulder",
    },
    # Mesh2Motion's two skeletons
    {"pelvis": "DEF-hips", "spine3": "DEF-spine.003", "head": "DEF-head", "left_ankle": "DEF-foot.L"},
    {"pelvis": "pelvis", "spine3": "spine_03", "head": "head", "left_ankle": "foot_l"},
)  # fmt: skip
# Which way a limb points in a T-pose.
_LIMBS = {
    "left_hip": (0.0, -1.0, 0.0),
    "right_hip": (0.0, -1.0, 0.0),
    "left_shoulder": (1.0, 0.0, 0.0),
    "right_shoulder": (-1.0, 0.0, 0.0),
}
# Both CMU conversions hinge the elbow about (0, -cos 30, sin 30) of the T-pose: the crook faces 30 degrees above
# forward.
_CMU_ARM_ROLL = -np.pi / 6

# H36M17's joints as the files name them.
H36M17_NAMES = (
    "Pelvis", "RHip", "RKnee", "RAnkle", "LHip", "LKnee", "LAnkle", "Spine", "Thorax", "Nose", "HeadTop",
    "LShoulder", "LElbow", "LWrist", "RShoulder", "RElbow", "RWrist",
)  # fmt: skip
_ARRAYS = (
    "joint_names", "parents", "offsets_m", "quat", "root_m", "h36m_names", "h36m17_pelvis_m", "h36m17_rel_m",
    "clip_ids", "clip_start", "clip_len", "fps",
)  # fmt: skip
_COLUMNS = {"subject", "clip", "description", "frames_30fps", "licence", "file"}


@dataclass(frozen=True)
class ClipInfo:
    """One line of the index: what a clip is and where it lies, before any frame is read."""

    id: str  # the trial, as its source names it: "13_29", "Idle_Loop"
    subject: str  # the person, the same in every source: "cmu006"; a source without persons counts as one
    source: str  # exporter and skeleton: cmu_daz, cmu_amc, cmu_dm, cmu_papagina, cmu_gpmat, cc0_mesh2motion, deepmimic
    description: str
    licence: str
    frames: int
    path: Path


@dataclass(frozen=True)
class Clip:
    """The motion of one clip. The root's parent is -1 and every parent stands before its children."""

    info: ClipInfo
    fps: float
    joint_names: tuple[str, ...]
    parents: tuple[int, ...]
    offsets: Float[Tensor, "J 3"]  # metres, from the parent, in the parent's frame
    quat: Float[Tensor, "T J 4"]  # local rotations, w x y z, unit
    root: Float[Tensor, "T 3"]  # metres, the root joint in the world
    h36m17: Float[Tensor, "T 17 3"]  # metres, in the world, in the order of `h36m_names`
    h36m_names: tuple[str, ...]  # as Human3.6M writes them: Pelvis, RHip, RKnee ...

    def __len__(self) -> int:
        return len(self.quat)


@dataclass(frozen=True)
class Mocap:
    """Clips as a data set: a sample is one frame, Human3.6M's seventeen joints in the world (y up)."""

    clips: tuple[ClipInfo, ...]

    @staticmethod
    def open(folder: Path | str, held_out: bool | None = None, subjects: Collection[str] | None = None) -> "Mocap":
        """The clips of the folder: those held out or all others (None: both), of some subjects (None: all). Reads no motion."""
        clips = clip_index(folder)
        known = {clip.subject for clip in clips}
        if unknown := sorted(set(subjects or ()) - known):
            raise InputError(f"{folder} has no subject {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        chosen = tuple(
            clip for clip in clips
            if held_out in (None, is_held_out(clip.subject)) and (subjects is None or clip.subject in subjects)
        )  # fmt: skip
        if not chosen:
            raise InputError(f"{folder} has no clip of the subjects asked for")
        return Mocap(chosen)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(clip.frames for clip in self.clips))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: int) -> Sample:
        k, frame = locate(self._ends, i)
        sample = self.sequence(k)[frame]
        return replace(sample, id=f"{sample.id}/{frame}")

    def sequence(self, k: int) -> Sample:
        """All frames of clip `k`: kp3d (T, 17, 3)."""
        clip = read_clip(self.clips[k])
        xyz = clip.h36m17[:, [clip.h36m_names.index(name) for name in H36M17_NAMES]]
        points = Keypoints3D(xyz, torch.ones(xyz.shape[:2]), H36M17, "world")
        return Sample(f"{clip.info.source}/{clip.info.subject}/{clip.info.id}", kp3d=points)


def is_held_out(subject: str) -> bool:
    """Whether this person (`ClipInfo.subject`) is kept for evaluation."""
    return subject in HELD_OUT_SUBJECTS


def clip_index(folder: Path | str) -> tuple[ClipInfo, ...]:
    """All clips of the folder, in the order of its `index.csv`; reads no motion.

    Raises InputError if the folder has no readable index or the index names a file that is not there.
    """
    folder = Path(folder)
    index = folder / "index.csv"
    if not index.is_file():
        raise InputError(f"{folder} is not a mocap folder: it has no index.csv listing the clips")
    try:
        with index.open(newline="", encoding="utf-8") as lines:
            table = csv.DictReader(lines)
            missing = _COLUMNS - set(table.fieldnames or ())
            if missing:
                raise InputError(f"{index} lacks the column(s) {', '.join(sorted(missing))}")
            clips = tuple(_clip_info(row, folder) for row in table)
    except InputError:
        raise
    except (ValueError, TypeError, csv.Error) as error:  # bytes that are no text, no number of frames, a short row
        raise InputError(f"{index} is not a whole list of clips ({error})") from error
    for path in sorted({clip.path for clip in clips}):
        if not path.is_file():
            raise InputError(f"{index} names {path.name}, which is not in {folder}")
    return clips


def read_clip(info: ClipInfo) -> Clip:
    """The motion of one clip, float32. Neighbouring clips of one file are cheap: the last file read is kept.

    Raises InputError for a file that is not such an npz or does not hold the clip.
    """
    arrays = _read_file(info.path)
    ids = [str(i) for i in arrays["clip_ids"]]
    if info.id not in ids:
        raise InputError(f"{info.path.name} has no clip {info.id!r}; it holds {', '.join(ids)}")
    k = ids.index(info.id)
    start, length = int(arrays["clip_start"][k]), int(arrays["clip_len"][k])
    frames = slice(start, start + length)
    if length < 1 or start < 0 or start + length > len(arrays["quat"]):
        stored = len(arrays["quat"])
        raise InputError(f"{info.path.name}: clip {info.id} claims frames {start} to {start + length} of {stored}")

    def tensor(key: str, cut: slice = frames) -> Tensor:
        return torch.from_numpy(arrays[key][cut].astype(np.float32))

    return Clip(
        info=info,
        fps=float(arrays["fps"]),
        joint_names=tuple(str(n) for n in arrays["joint_names"]),
        parents=tuple(int(p) for p in arrays["parents"]),
        offsets=tensor("offsets_m", slice(None)),
        quat=torch.nn.functional.normalize(tensor("quat"), dim=-1),  # stored as halves
        root=tensor("root_m"),
        h36m17=tensor("h36m17_pelvis_m")[:, None] + tensor("h36m17_rel_m"),
        h36m_names=tuple(str(n) for n in arrays["h36m_names"]),
    )


def forward_kinematics(clip: Clip) -> tuple[Float[Tensor, "T J 3 3"], Float[Tensor, "T J 3"]]:
    """World rotations and positions (metres) of all joints of the clip's own skeleton."""
    local = roma.unitquat_to_rotmat(clip.quat.roll(-1, dims=-1))  # roma: x y z w
    rotations: list[Tensor] = []
    positions: list[Tensor] = []
    for j, p in enumerate(clip.parents):
        rotations.append(local[:, j] if p < 0 else rotations[p] @ local[:, j])
        positions.append(clip.root if p < 0 else positions[p] + rotations[p] @ clip.offsets[j])
    return torch.stack(rotations, 1), torch.stack(positions, 1)


def part_orientations(clip: Clip) -> dict[str, Float[Tensor, "T 3 3"]]:
    """World orientation of the body's parts, the identity in a T-pose that faces +z with palms down.

    The keys are the SMPL-X joints that carry the parts (pelvis, spine3, head; and of each side ankle, and where the
    skeleton tells them wrist, hip, shoulder). A clip's own joint frames are brought to this convention by its
    skeleton's rest pose, or, where that is unknown (Mesh2Motion), by the mean of its standing clip. Between sources
    the zero of a part differs by some degrees.
    """
    parts = next((p for p in _PARTS if set(p.values()) <= set(clip.joint_names)), None)
    if parts is None:
        raise InputError(f"clip {clip.info.id} is on an unknown skeleton: {', '.join(clip.joint_names)}")
    parts = parts | {_mirrored(part): _mirrored(joint) for part, joint in parts.items() if part.startswith("left")}
    rotations, _ = forward_kinematics(clip)
    indices = {part: clip.joint_names.index(joint) for part, joint in parts.items()}
    if clip.info.source == "cc0_mesh2motion":
        zero = _zero_from_standing(clip, indices)
    else:
        zero = {part: _zero_from_rest(clip, part, j) for part, j in indices.items()}
    return {part: rotations[:, j] @ zero[part] for part, j in indices.items()}


def shortest_rotation(a: Float[Tensor, "*B 3"], b: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3 3"]:
    """The rotation of least angle that takes direction a to direction b; about no defined axis if they are opposite."""
    a, b = torch.nn.functional.normalize(a, dim=-1), torch.nn.functional.normalize(b, dim=-1)
    axis, cosine = torch.linalg.cross(a, b), (a * b).sum(-1, keepdim=True)
    sine = axis.norm(dim=-1, keepdim=True)
    return roma.rotvec_to_rotmat(axis / sine.clamp_min(1e-9) * torch.atan2(sine, cosine))


def _zero_from_rest(clip: Clip, part: str, joint: int) -> Float[Tensor, "3 3"]:
    """The part's orientation in the skeleton's rest pose, in which all joint frames are the world's."""
    faces_x = clip.joint_names[0] == "root" and "chest" in clip.joint_names  # DeepMimic's humanoid, arms hanging
    facing = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]]) if faces_x else torch.eye(3)
    if part in _LIMBS:
        bone = facing.T @ clip.offsets[clip.parents.index(joint)]  # to the joint's first child
        roll = 0.0 if faces_x or part.endswith("hip") else _CMU_ARM_ROLL
        swing = shortest_rotation(torch.tensor(_LIMBS[part]), bone)
        return facing @ swing @ roma.rotvec_to_rotmat(torch.tensor([roll, 0.0, 0.0]))
    if part.endswith("ankle") and "ltibia" in clip.joint_names:
        # Acclaim's legs stand 20 degrees out to each side, the feet at right angles to them.
        shin = clip.offsets[joint] * torch.tensor([1.0, 1.0, 0.0])
        return shortest_rotation(torch.tensor([0.0, -1.0, 0.0]), shin)
    return facing


def _zero_from_standing(clip: Clip, indices: dict[str, int]) -> dict[str, Float[Tensor, "3 3"]]:
    """Mesh2Motion's joint frames follow the bones: take chest and feet as upright and facing forward while standing.

    The pelvis may tilt sideways then, which the hips show; the head may turn, but on all other sources the line from
    the nose to the crown leans back by 33 degrees (31 to 34).
    """
    standing = read_clip(replace(clip.info, id="Idle_Loop" if "DEF-hips" in clip.joint_names else "Idle_Listening"))
    rotations, positions = forward_kinematics(standing)
    left_hip, right_hip, nose, crown = (
        standing.h36m17[:, standing.h36m_names.index(n)] for n in ("LHip", "RHip", "Nose", "HeadTop")
    )
    up = torch.tensor([0.0, 1.0, 0.0]).expand(len(standing), 3)
    skull = positions[:, indices["head"]]
    lean = roma.rotvec_to_rotmat(torch.tensor([np.radians(33.0), 0.0, 0.0]).float())
    frames = {
        "pelvis": _axes(left_hip - right_hip, up),
        "spine3": _axes((left_hip - right_hip) * torch.tensor([1.0, 0.0, 1.0]), up),
        "head": _axes(torch.linalg.cross(crown - skull, nose - skull), crown - nose) @ lean,
    }
    for side in ("left", "right"):
        toes = rotations[:, indices[f"{side}_ankle"], :, 1]  # a bone's own y runs along it: from the ankle to the ball
        frames[f"{side}_ankle"] = _axes(torch.linalg.cross(up, toes), up)
    return {part: roma.special_gramschmidt((rotations[:, j].mT @ frames[part]).mean(0)) for part, j in indices.items()}


def _axes(x: Float[Tensor, "*B 3"], y: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3 3"]:
    """Orthonormal axes as columns from the direction of x and the rough direction of y."""
    x = torch.nn.functional.normalize(x, dim=-1)
    z = torch.nn.functional.normalize(torch.linalg.cross(x, y), dim=-1)
    return torch.stack([x, torch.linalg.cross(z, x), z], -1)


def _mirrored(name: str) -> str:
    """left_hip, lFoot, DEF-foot.L, foot_l on the right."""
    if name.endswith((".L", "_l")):
        return name[:-1] + {"L": "R", "l": "r"}[name[-1]]
    return name.replace("left_", "right_") if name.startswith("left_") else "r" + name.removeprefix("l")


def _clip_info(row: dict[str, str], folder: Path) -> ClipInfo:
    return ClipInfo(
        id=row["clip"],
        subject=_person(row["subject"]),
        source=re.sub(r"_(s\d+|backflip|lambada|pirouette|base|addon)$", "", Path(row["file"]).stem),
        description=row["description"],
        licence=row["licence"],
        frames=int(row["frames_30fps"]),
        path=folder / row["file"],
    )


def _person(subject: str) -> str:
    """The index names a person once per exporter (cmu002, cmuamc_02, cmudm002); here they are one."""
    if subject == "cmuamc_pirouette":  # the index: "= CMU 05_11"
        return "cmu005"
    number = re.fullmatch(r"cmu(?:dm|amc_)?(\d+)", subject)
    return f"cmu{int(number[1]):03d}" if number else subject


@lru_cache(maxsize=1)
def _read_file(path: Path) -> dict[str, np.ndarray]:
    return read_npz(path, _ARRAYS, "file of clips", "the folder that its index.csv is of")
