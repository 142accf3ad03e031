"""MPI-INF-3DHP: training recordings (annot.mat, camera.calibration), test sequences (annot_data.mat), and P-STMO's npz of both.

The set has each pose twice: `annot3` in metric scale, `univ_annot3` on a skeleton of one height, on which PCK is usually
reported. `scale` chooses, always explicitly, and stands in each sample's id. Joints are in the camera's frame, in metres.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from body3d.camera import Camera
from body3d.datasets.reading import existing, finite, locate, read_object
from body3d.errors import InputError
from body3d.skeletons import MPI_INF_3DHP17, MPI_INF_3DHP28, JointSet
from body3d.types import Keypoints2D, Keypoints3D, Sample

__all__ = ["CHEST_CAMERAS", "MPIINF3DHP", "Recording", "camera_from_points", "read_calibration"]

Scale = Literal["annot3", "univ_annot3"]
CHEST_CAMERAS = (0, 1, 2, 4, 5, 6, 7, 8)  # of the 14: at chest height, which most work trains on
SUBJECTS = tuple(f"S{i}" for i in range(1, 9))
TEST_SUBJECTS = tuple(f"TS{i}" for i in range(1, 7))
ACTIVITIES = (
    "Standing/Walking",
    "Exercising",
    "Sitting",
    "Reaching/Crouching",
    "On The Floor",
    "Sports",
    "Miscellaneous",
)
_SOURCE = "vcai.mpi-inf.mpg.de/3dhp-dataset"
_PSTMO = "P-STMO's README (github.com/paTRICK-swk/P-STMO)"


@dataclass(frozen=True)
class Recording:
    """One sequence seen by one camera."""

    name: str  # "S1/Seq2/4" (camera 4), "TS3"
    xy: Float[Tensor, "T J 2"] = field(repr=False)  # pixels
    xyz: Float[Tensor, "T J 3"] = field(repr=False)  # metres, in the camera's frame
    camera: Camera | None  # None: the file does not say
    frames: tuple[int, ...] = field(repr=False)  # number of each in the video, from 0
    activity: tuple[str, ...] | None = field(default=None, repr=False)  # test set only
    valid: Bool[Tensor, " T"] | None = field(default=None, repr=False)  # None: all are annotated


@dataclass(frozen=True)
class MPIINF3DHP:
    """Recordings and what they are annotated with; a sample is one frame of one camera."""

    recordings: tuple[Recording, ...] = field(repr=False)
    joints: JointSet
    scale: Scale

    @staticmethod
    def train(
        folder: Path | str,
        scale: Scale,
        subjects: Collection[str] = SUBJECTS,
        cameras: Sequence[int] = CHEST_CAMERAS,
    ) -> "MPIINF3DHP":
        """S1/Seq1/annot.mat and camera.calibration of each subject and sequence; 28 joints."""
        folder = existing(folder, "folder with S1, S2, ...", _SOURCE)
        recordings = []
        for subject in subjects:
            for sequence in ("Seq1", "Seq2"):
                path = existing(folder / subject / sequence / "annot.mat", "annotation of a sequence", _SOURCE)
                lenses = read_calibration(path.with_name("camera.calibration"))
                cells = _matlab_cells(path, ("annot2", scale))
                for c in cameras:
                    if c not in lenses or any(c >= len(cell) for cell in cells.values()):
                        raise InputError(f"{path} or its camera.calibration has no camera {c}")
                    xy = finite(cells["annot2"][c], (None, 56), path, f"annot2[{c}]").unflatten(-1, (28, 2))
                    xyz = finite(cells[scale][c], (None, 84), path, f"{scale}[{c}]").unflatten(-1, (28, 3)) / 1000
                    name = f"{subject}/{sequence}/{c}"
                    recordings.append(_recording(path, name, xy, xyz, lenses[c], range(len(xy))))
        return MPIINF3DHP(tuple(recordings), MPI_INF_3DHP28, scale)

    @staticmethod
    def test(folder: Path | str, scale: Scale, subjects: Collection[str] = TEST_SUBJECTS) -> "MPIINF3DHP":
        """TS1/annot_data.mat ... (MATLAB v7.3), its valid frames only; 17 joints. The camera is fitted to annot2 and annot3."""
        import h5py

        folder = existing(folder, "folder with TS1 ... TS6", _SOURCE)
        recordings = []
        for subject in subjects:
            path = existing(folder / subject / "annot_data.mat", "annotation of a test sequence", _SOURCE)
            try:
                with h5py.File(path) as file:
                    keys = ("annot2", "annot3", "univ_annot3", "valid_frame", "activity_annotation")
                    if missing := [key for key in keys if key not in file]:
                        raise InputError(f"{path} has no {', '.join(missing)}; it comes from {_SOURCE}")
                    arrays = {key: np.asarray(file[key]) for key in keys}
            except OSError as error:
                raise InputError(
                    f"{path} is not a whole MATLAB v7.3 file ({error}); it comes from {_SOURCE}"
                ) from error
            valid = np.flatnonzero(arrays["valid_frame"].ravel())
            length = arrays["valid_frame"].size
            points = {  # h5py shows MATLAB's axes in reverse: (T, 1, 17, 2 or 3)
                key: finite(arrays[key][valid], (len(valid), 1, 17, d), path, key)[:, 0]
                for key, d in (("annot2", 2), ("annot3", 3), ("univ_annot3", 3))
                if len(arrays[key]) == length or _uneven(path, key, len(arrays[key]), length)
            }
            size = (2048, 2048) if subject in TEST_SUBJECTS[:4] else (1080, 1920)
            camera = camera_from_points(points["annot3"] / 1000, points["annot2"], size)
            codes = arrays["activity_annotation"].ravel()[valid].astype(int)
            if len(codes) and not 1 <= codes.min() <= codes.max() <= 7:
                raise InputError(
                    f"{path}: activity_annotation runs from {codes.min()} to {codes.max()}, not from 1 to 7"
                )
            xyz = points[scale] / 1000
            activity = tuple(ACTIVITIES[code - 1] for code in codes)
            frames = tuple(valid.tolist())
            recordings.append(_recording(path, subject, points["annot2"], xyz, camera, frames, activity))
        return MPIINF3DHP(tuple(recordings), MPI_INF_3DHP17, scale)

    @staticmethod
    def pstmo(path: Path | str, scale: Scale, all_frames: bool = False) -> "MPIINF3DHP":
        """data_train_3dhp.npz or data_test_3dhp.npz. 17 joints, no cameras.

        The files do not say which annotation they hold: P-STMO's preparation writes univ_annot3 into both. `scale` is what the
        caller knows, and is only written into the ids. Of the test file the valid frames alone are read; with `all_frames` the
        others are, too, as neighbours of valid ones (`Recording.valid` tells them apart; what is NaN in them becomes 0).
        """
        data = read_object(path, "data", "MPI-INF-3DHP as P-STMO prepares it", _PSTMO)
        recordings = []
        try:
            for name, entry in data.items():
                test = isinstance(entry, dict)
                for camera, arrays in ({"": entry} if test else entry[0]).items():
                    label = name.replace(" ", "/") + (f"/{camera}" if camera != "" else "")
                    length = len(arrays["data_2d"])
                    valid = np.ravel(arrays["valid"]) > 0 if test else np.ones(length, bool)
                    for key, got in (("data_3d", len(arrays["data_3d"])), ("valid", len(valid))):
                        if got != length:
                            _uneven(Path(path), f"{label} {key}", got, length)
                    keep = np.arange(length) if all_frames else np.flatnonzero(valid)
                    points = {}
                    for key, d in (("data_2d", 2), ("data_3d", 3)):
                        array = np.array(arrays[key])
                        array[~valid] = np.nan_to_num(array[~valid])
                        points[key] = finite(array[keep], (None, 17, d), path, f"{label} {key}")
                    recording = _recording(
                        path, label, points["data_2d"], points["data_3d"] / 1000, None, keep.tolist()
                    )
                    recordings.append(replace(recording, valid=torch.from_numpy(valid[keep])))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise InputError(f"{path} is not laid out as P-STMO's file ({error!r}); see {_PSTMO}") from error
        return MPIINF3DHP(tuple(recordings), MPI_INF_3DHP17, scale)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(recording.frames) for recording in self.recordings))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, i: int) -> Sample:
        k, t = locate(self._ends, i)
        recording, ones = self.recordings[k], torch.ones(len(self.joints))
        return Sample(
            f"{recording.name}/{recording.frames[t]}/{self.scale}",
            kp2d=Keypoints2D(recording.xy[t], ones, self.joints),
            kp3d=Keypoints3D(recording.xyz[t], ones, self.joints, "camera"),
            # A universal pose is not where the person stood: it has no image, so that a camera would mislead.
            camera=recording.camera if self.scale == "annot3" else None,
        )


def read_calibration(path: Path | str) -> dict[int, Camera]:
    """The cameras of a camera.calibration, at the origin of their own frames (all annotations are in those)."""
    path = existing(path, "calibration file", _SOURCE)
    cameras: dict[int, Camera] = {}
    for block in re.split(r"^name", path.read_text(errors="replace"), flags=re.M)[1:]:
        number, *lines = block.splitlines()
        fields = {words[0]: words[1:] for words in map(str.split, lines) if words}
        try:
            K = torch.tensor([float(x) for x in fields["intrinsic"]]).view(4, 4)[:3, :3]
            width, height = map(int, fields["size"])
            cameras[int(number)] = Camera(K, torch.eye(3), torch.zeros(3), (height, width))
        except (KeyError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{path}: camera {number.strip()} lacks a whole size or intrinsic line ({error})"
            ) from error
    if not cameras:
        raise InputError(f"{path} is not a calibration: no line starts with 'name'; it comes from {_SOURCE}")
    return cameras


def camera_from_points(xyz: Float[Tensor, "T J 3"], xy: Float[Tensor, "T J 2"], size: tuple[int, int]) -> Camera:
    """The pinhole without skew that images the points best, by least squares in x and in y."""
    K = torch.eye(3)
    flat, pixels = xyz.double().flatten(0, 1), xy.double().flatten(0, 1)
    for axis in (0, 1):
        A = torch.stack([flat[:, axis] / flat[:, 2], torch.ones(len(flat), dtype=torch.float64)], -1)
        solution = torch.linalg.lstsq(A, pixels[:, axis, None]).solution[:, 0]
        K[axis, axis], K[axis, 2] = solution.float()
    return Camera(K, torch.eye(3), torch.zeros(3), size)


def _recording(path, name, xy, xyz, camera, frames, activity=None) -> Recording:
    if len(xy) != len(xyz):
        _uneven(Path(path), f"3D of {name}", len(xyz), len(xy))
    return Recording(name, xy, xyz, camera, tuple(frames), activity)


def _uneven(path: Path, key: str, got: int, expected: int) -> bool:
    raise InputError(f"{path}: {key} has {got} frames, where {expected} were expected as in the 2D annotation")


def _matlab_cells(path: Path, keys: Sequence[str]) -> dict[str, list[np.ndarray]]:
    """Cell arrays of a MATLAB v5 file, one entry per camera."""
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=list(keys))
    except Exception as error:  # scipy raises many kinds for a broken file
        raise InputError(f"{path} is not a whole MATLAB file ({error}); it comes from {_SOURCE}") from error
    if missing := [key for key in keys if key not in content]:
        raise InputError(f"{path} has no {', '.join(missing)}; it comes from {_SOURCE}")
    return {key: list(content[key].ravel()) for key in keys}
