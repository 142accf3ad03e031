"""CMU Panoptic: one folder per sequence, with hdPose3d_stage1_coco19/body3DScene_%08d.json and calibration_<sequence>.json.

The files are in centimetres, world y down; samples are in metres in the frame of one camera. A sample is what one camera sees at
one time, all people in it, and there may be none.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch

from body3d.camera import Camera
from body3d.datasets.reading import existing, finite, locate
from body3d.errors import InputError
from body3d.skeletons import PANOPTIC19
from body3d.types import Keypoints2D, Keypoints3D, Sample

__all__ = ["HD_CAMERAS", "Panoptic", "Sequence", "read_calibration"]

# The five HD cameras that most work since Zanfir et al. (CVPR 2018) and VoxelPose uses.
HD_CAMERAS = ("00_03", "00_06", "00_12", "00_13", "00_23")
_SOURCE = "domedb.perception.cs.cmu.edu (panoptic-toolbox/scripts/getData.sh)"


@dataclass(frozen=True)
class Sequence:
    name: str
    files: tuple[Path, ...] = field(repr=False)  # one per HD frame
    cameras: dict[str, Camera] = field(repr=False)  # of the world in metres


@dataclass(frozen=True)
class Panoptic:
    sequences: tuple[Sequence, ...]
    cameras: tuple[str, ...]

    @staticmethod
    def open(
        folder: Path | str, sequences: Collection[str] | None = None, cameras: Collection[str] = HD_CAMERAS
    ) -> "Panoptic":
        """The sequences (None: all) below a folder, as seen by the cameras named panel_node. Reads no pose."""
        folder = existing(folder, "folder of Panoptic sequences", _SOURCE)
        names = sorted(p.parent.name for p in folder.glob("*/calibration_*.json")) if sequences is None else sequences
        opened = tuple(_sequence(folder / name, tuple(cameras)) for name in names)
        if not opened:
            raise InputError(f"{folder} holds no <sequence>/calibration_<sequence>.json; they come from {_SOURCE}")
        return Panoptic(opened, tuple(cameras))

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(sequence.files) * len(self.cameras) for sequence in self.sequences))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, i: int) -> Sample:
        """kp3d and kp2d of P people, (P, 19, 3) and (P, 19, 2); a missing joint has confidence 0."""
        k, rest = locate(self._ends, i)
        sequence = self.sequences[k]
        path, name = sequence.files[rest // len(self.cameras)], self.cameras[rest % len(self.cameras)]
        camera, joints = sequence.cameras[name], _read_bodies(path)
        conf = joints[..., 3].clamp(0, 1)
        seen = camera.to_camera(joints[..., :3] / 100)
        pose3d = Keypoints3D(seen * (conf > 0).unsqueeze(-1), conf, PANOPTIC19, "camera")
        alone = Camera(camera.K, torch.eye(3), torch.zeros(3), camera.size, camera.distortion)
        in_front = conf * (seen[..., 2] > 0)
        pose2d = Keypoints2D(alone.project(seen) * (in_front > 0).unsqueeze(-1), in_front, PANOPTIC19)
        frame = path.stem.rsplit("_", 1)[-1]
        return Sample(f"{sequence.name}/{name}/{frame}", kp2d=pose2d, kp3d=pose3d, camera=alone)


def read_calibration(path: Path | str) -> dict[str, Camera]:
    """All cameras of a calibration_<sequence>.json by name; translations in metres."""
    path = existing(path, "calibration", _SOURCE)
    cameras = {}
    for lens in _list(path, "cameras"):
        try:
            name, (width, height) = lens["name"], lens["resolution"]
            K, R = (finite(np.asarray(lens[key]), (3, 3), path, f"{key} of camera {name}") for key in ("K", "R"))
            t = finite(np.asarray(lens["t"]).ravel(), (3,), path, f"t of camera {name}") / 100
            d = finite(np.asarray(lens["distCoef"]), (5,), path, f"distCoef of camera {name}")
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: an entry of 'cameras' lacks {error}; it comes from {_SOURCE}") from error
        cameras[name] = Camera(K, R, t, (int(height), int(width)), d)
    return cameras


def _sequence(folder: Path, wanted: tuple[str, ...]) -> Sequence:
    cameras = read_calibration(folder / f"calibration_{folder.name}.json")
    if missing := [name for name in wanted if name not in cameras]:
        raise InputError(f"calibration_{folder.name}.json has no camera {', '.join(missing)}")
    poses = existing(
        folder / "hdPose3d_stage1_coco19", "folder of body3DScene_*.json (unpacked from its .tar)", _SOURCE
    )
    files = tuple(sorted(poses.rglob("body3DScene_*.json")))  # some archives have a folder hd/ in between
    if not files:
        raise InputError(f"{poses} has no body3DScene_*.json; they come from {_SOURCE}")
    return Sequence(folder.name, files, {name: cameras[name] for name in wanted})


def _read_bodies(path: Path) -> torch.Tensor:
    """(P, 19, 4): x y z in centimetres in the world, and confidence (-1: missing)."""
    try:
        rows = [body["joints19"] for body in _list(path, "bodies")]
        people = [finite(np.asarray(row), (76,), path, "joints19").view(19, 4) for row in rows]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: an entry of 'bodies' has no {error}; it comes from {_SOURCE}") from error
    return torch.stack(people) if people else torch.zeros(0, 19, 4)


def _list(path: Path, key: str) -> list:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is not JSON, or only the beginning of it ({error}); it comes from {_SOURCE}"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise InputError(f"{path} has no list {key!r}; it comes from {_SOURCE}")
    return content[key]
