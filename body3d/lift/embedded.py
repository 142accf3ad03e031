"""The lifter that comes with the package: from a detector's 23 body and foot points to 3D, with how sure it is of each joint.

It knows nothing of a studio: the input is turned to the ray through the person's middle and scaled to the same size, so only the
pose, the perspective and the size in the picture count, and any camera will do. Points that were not seen are given as not seen.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import roma
import torch
from jaxtyping import Float
from torch import Tensor, nn

from body3d.atomic import atomic
from body3d.camera import Camera, undistort
from body3d.errors import InputError
from body3d.lift.baseline import SimpleBaseline3D
from body3d.skeletons import FEET23, H36M17, SMPL22, JointSet
from body3d.types import Keypoints2D, Keypoints3D

__all__ = ["BODY34", "Lifted", "RayLifter", "embedded_lifter"]

# The body's own joints, then what Human3.6M names besides, then what the fit's bones end at.
_BODY = SMPL22.names
_EXTRA = {
    "mid_hip": "pelvis", "spine": "spine2", "thorax": "spine3", "neck_nose": "neck", "head_top": "neck_nose",
    "nose": "head", "left_ear": "head", "right_ear": "head",
    "left_heel": "left_ankle", "right_heel": "right_ankle", "left_big_toe": "left_foot", "right_big_toe": "right_foot",
}  # fmt: skip
BODY34 = JointSet(
    "body34", (*_BODY, *_EXTRA),
    (*SMPL22.parents, *((*_BODY, *_EXTRA).index(p) for p in _EXTRA.values())),
)  # fmt: skip
_H36M17 = tuple("mid_hip" if name == "pelvis" else name for name in H36M17.names)
MIN_POINTS = 5  # fewer say nothing about a pose


@dataclass(frozen=True)
class Lifted:
    """What a lifter makes of N people. Frame "root": from the middle of the hips, camera axes, metres."""

    body: Keypoints3D  # BODY34
    h36m17: Keypoints3D
    sigma: Float[Tensor, "N 34"]  # metres, of `body`: the standard deviation along each axis
    known: Float[Tensor, " N"]  # 0 where too little was seen to say anything (conf is 0 then)


class RayLifter(nn.Module):
    """`net` maps (B, 23 · 3 + 1) features to (B, 34 · 4): positions and the logarithm of a scale for each joint."""

    def __init__(self, width: int = 768, blocks: int = 2, dropout: float = 0.1):
        super().__init__()
        self.net = SimpleBaseline3D(len(FEET23) * 3 + 1, len(BODY34) * 4, width, blocks, dropout)
        self.register_buffer("mean", torch.zeros(len(BODY34), 3))
        self.register_buffer("std", torch.ones(len(BODY34), 3))

    def forward(self, features: Float[Tensor, "B F"]) -> tuple[Float[Tensor, "B 34 3"], Float[Tensor, "B 34"]]:
        """Positions (metres, in the axes of the ray) and the logarithm of their scale."""
        raw = self.net(features).view(-1, len(BODY34), 4)
        xyz = raw[..., :3] * self.std + self.mean
        log_scale = (raw[..., 3] - 3.0).clamp(-6.0, 1.0)  # around 5 cm, from 2 mm to 3 m
        return xyz - xyz[:, _ROOT : _ROOT + 1], log_scale


_ROOT = BODY34.index("mid_hip")


def ray_features(
    uv: Float[Tensor, "B 23 2"], conf: Float[Tensor, "B 23"]
) -> tuple[Float[Tensor, "B F"], Float[Tensor, "B 3 3"]]:
    """The network's input, and the rotation from camera axes to those of the ray through the middle of the points.

    `uv` are x/z and y/z. Seen along that ray, positions are divided by their spread, whose logarithm is a feature of its own:
    it tells a near person from a far one.
    """
    seen = (conf > 0).to(uv)
    d = torch.nn.functional.normalize(torch.cat([uv, torch.ones_like(uv[..., :1])], -1).nan_to_num(), dim=-1)
    middle = torch.nn.functional.normalize((seen[..., None] * d).sum(1), dim=-1)
    # About ray × z, by the angle between the two.
    axis = torch.stack([middle[:, 1], -middle[:, 0], torch.zeros_like(middle[:, 0])], -1)
    sine = axis.norm(dim=-1, keepdim=True)
    R = roma.rotvec_to_rotmat(axis / sine.clamp_min(1e-9) * torch.atan2(sine, middle[:, 2:]))
    p = d @ R.mT
    q = p[..., :2] / p[..., 2:].clamp_min(1e-3)
    spread = ((seen * q.square().sum(-1)).sum(1) / seen.sum(1).clamp_min(1)).sqrt().clamp_min(1e-4)
    q = q / spread[:, None, None] * seen[..., None]
    return torch.cat([q.flatten(1), conf.nan_to_num() * seen, spread.log()[:, None]], -1), R


@torch.no_grad()
def lift(lifter: RayLifter, keypoints: Keypoints2D, camera: Camera) -> Lifted:
    """3D joints of N people from their 2D keypoints (any joint set; what it lacks counts as not seen) and the photo's camera.

    A point that is not finite is not known. People of whom fewer than five points are known come out with confidence 0.
    """
    conf = torch.where(keypoints.xy.isfinite().all(-1), keypoints.conf, torch.zeros_like(keypoints.conf))
    points = Keypoints2D(keypoints.xy, conf, keypoints.joints).convert(FEET23)
    uv = torch.linalg.solve(camera.K[:2, :2], (points.xy - camera.K[:2, 2]).mT).mT
    if camera.distortion is not None:
        uv = undistort(uv, camera.distortion)
    features, R = ray_features(uv, points.conf)
    xyz, log_scale = lifter(features)
    xyz = xyz @ R
    known = ((points.conf > 0).sum(-1) >= MIN_POINTS).to(xyz)
    keypoints3d = lambda rows, joints: Keypoints3D(
        xyz[:, rows], known[:, None].expand(-1, len(rows)).clone(), joints, "root"
    )
    return Lifted(
        keypoints3d(range(len(BODY34)), BODY34),
        keypoints3d(BODY34.indices(_H36M17), H36M17),
        2 * log_scale.exp(),
        known,
    )


@lru_cache(maxsize=1)
def embedded_lifter() -> RayLifter:
    """The shipped weights (`configs/embedded_lifter.py` made them), on the CPU, ready to be called."""
    return load_lifter(Path(__file__).with_name("embedded_lifter.npz"))


def load_lifter(path: Path | str) -> RayLifter:
    """A lifter from the file that `save_lifter` wrote. InputError if it is not such a file."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such lifter")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            state = {key: torch.from_numpy(file[key].astype(np.float32)) for key in file.files}
        width, blocks = (int(state.pop(key)) for key in ("width", "blocks"))
        lifter = RayLifter(width, blocks)
        lifter.load_state_dict({k: v.to(lifter.state_dict()[k].dtype) for k, v in state.items()})
    except Exception as error:  # zipfile, zlib, numpy and torch each have their own
        raise InputError(
            f"{path} holds no lifter, or is damaged: expected is what scripts/ship_lifter.py makes of a training of "
            f"configs/embedded_lifter.py ({str(error).split(chr(10))[0]})"
        ) from error
    return lifter.eval()


def save_lifter(path: Path | str, lifter: RayLifter, width: int, blocks: int) -> None:
    """In half precision, without pickles."""
    arrays = {key: value.cpu().numpy().astype(np.float16) for key, value in lifter.state_dict().items()}
    with atomic(path) as part, part.open("wb") as file:
        np.savez_compressed(file, width=width, blocks=blocks, **arrays)
