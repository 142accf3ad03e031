"""AMASS: motion as parameters of SMPL+H (`*_poses.npz`) or SMPL-X (`*_stageii.npz`), from amass.is.tue.mpg.de.

The files are z up, at the rate of their capture (60 to 250 Hz); samples are y up and 30 Hz. Files without `poses` (shape.npz,
*_stagei.npz) are skipped.
"""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np
import roma
import torch
from jaxtyping import Float
from numpy.lib import format as npy
from torch import Tensor

from body3d.datasets.reading import existing, finite, locate, read_npz
from body3d.errors import InputError
from body3d.skeletons import SMPLH52, SMPLX55, JointSet
from body3d.types import BodyParams, Sample

__all__ = ["AMASS", "AMASSFile", "to_y_up"]

_WHAT, _SOURCE = "an AMASS motion", "amass.is.tue.mpg.de (registration)"
_RATES = ("mocap_framerate", "mocap_frame_rate")  # SMPL+H files, SMPL-X files
_JOINTS = {156: SMPLH52, 165: SMPLX55}
_TO_Y_UP = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # -90 degrees about x


@dataclass(frozen=True)
class AMASSFile:
    path: Path
    frames: int  # as recorded
    rate: float  # Hz
    gender: str  # male, female or neutral: whose shape space `betas` belongs to
    joints: JointSet  # SMPLH52 or SMPLX55

    def indices(self, fps: float) -> np.ndarray:
        """The recorded frames nearest to the times 0, 1/fps, 2/fps ... (a recording slower than that is kept as it is)."""
        if self.rate <= fps:
            return np.arange(self.frames)
        count = int((self.frames - 1) / self.rate * fps + 1e-6) + 1
        return np.rint(np.arange(count) * self.rate / fps).astype(int).clip(max=self.frames - 1)


@dataclass(frozen=True)
class AMASS:
    """All motions below a folder, in the order of their paths; a sample is one frame (params only)."""

    folder: Path
    files: tuple[AMASSFile, ...] = field(repr=False)
    fps: float = 30.0

    @staticmethod
    def open(folder: Path | str, fps: float = 30.0, select: Callable[[Path], bool] = lambda path: True) -> "AMASS":
        """`select` is asked about each path relative to the folder, such as CMU/02/02_01_poses.npz.

        Reads no motion. InputError if nothing is found, or a file is broken, of another layout, or has a rate of 0.
        """
        if not fps > 0:
            raise InputError(f"AMASS: the frame rate must be above 0, got {fps}")
        folder = existing(folder, "AMASS folder", _SOURCE)
        paths = [path for path in sorted(folder.rglob("*.npz")) if select(path.relative_to(folder))]
        files = tuple(file for path in paths if (file := _describe(path)) is not None)
        if not files:
            raise InputError(
                f"{folder} has no .npz with poses among {len(paths)} files asked for; AMASS is from {_SOURCE}"
            )
        return AMASS(folder, files, fps)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(file.indices(self.fps)) for file in self.files))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: int) -> Sample:
        k, frame = locate(self._ends, i)
        params = _read(self.files[k], self.fps)[frame].map(Tensor.clone)
        return Sample(f"{self.files[k].path.relative_to(self.folder)}/{frame}", params=params)

    def sequence(self, k: int) -> BodyParams:
        """All frames of file `k` at `fps`: pose (T, 52 or 55, 3), shape (T, S), transl (T, 3), y up."""
        return _read(self.files[k], self.fps).map(Tensor.clone)


def to_y_up(params: BodyParams, pelvis: Float[Tensor, "3"] | Float[Tensor, "*B 3"] | None = None) -> BodyParams:
    """Parameters of a z-up world in a y-up one: turned by -90 degrees about x.

    The model turns about its pelvis, not about the origin, so that the exact translation depends on where the shape's pelvis
    lies at rest (metres). Without it the body stands off by a constant vector of the subject, of the pelvis' rest offset's
    size (some 30 cm too low and as far towards -z).
    """
    turn = _TO_Y_UP.to(params.pose)
    root = roma.rotmat_to_rotvec(turn @ roma.rotvec_to_rotmat(params.pose[..., 0, :]))
    pose = torch.cat([root.unsqueeze(-2), params.pose[..., 1:, :]], -2)
    offset = params.transl.new_zeros(3) if pelvis is None else pelvis
    transl = (params.transl + offset) @ turn.mT - offset
    return BodyParams(pose, params.shape, transl, params.expression)


def _describe(path: Path) -> AMASSFile | None:
    """What a file is, from its header and its small arrays; None if it has no poses."""
    try:
        with zipfile.ZipFile(path) as archive:
            keys = [name.removesuffix(".npy") for name in archive.namelist()]
            if "poses" not in keys:
                return None
            with archive.open("poses.npy") as member:
                version = npy.read_magic(member)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape = read(member)[0]
    except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read as {_WHAT} ({error}); it comes from {_SOURCE}") from error
    rate_key = next((key for key in _RATES if key in keys), None)
    if rate_key is None:
        raise InputError(f"{path} has neither {' nor '.join(map(repr, _RATES))}; {_WHAT} was expected, from {_SOURCE}")
    if len(shape) != 2 or shape[1] not in _JOINTS or not shape[0]:
        raise InputError(f"{path}: poses has the shape {shape}, where (frames, 156) or (frames, 165) was expected")
    small = read_npz(path, (rate_key, "gender"), _WHAT, _SOURCE)
    rate, gender = float(small[rate_key]), small["gender"].item()
    if not (np.isfinite(rate) and rate > 0):
        raise InputError(f"{path}: {rate_key} is {rate}; a frame rate above 0 was expected")
    text = (gender.decode() if isinstance(gender, bytes) else str(gender)).removeprefix("b'").removesuffix("'")
    return AMASSFile(path, shape[0], rate, text, _JOINTS[shape[1]])


@lru_cache(maxsize=4)
def _read(file: AMASSFile, fps: float) -> BodyParams:
    """Kept for the next frame that is asked for: callers get copies."""
    arrays = read_npz(file.path, ("poses", "trans", "betas"), _WHAT, _SOURCE)
    frames = file.indices(fps)
    pose = finite(arrays["poses"], (file.frames, 3 * len(file.joints)), file.path, "poses")[frames]
    transl = finite(arrays["trans"], (file.frames, 3), file.path, "trans")[frames]
    shape = finite(arrays["betas"], (None,), file.path, "betas")
    return to_y_up(BodyParams(pose.unflatten(-1, (-1, 3)), shape.expand(len(frames), -1), transl))
