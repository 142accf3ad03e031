"""How the embedded lifter learns: open bodies of all shapes in mocap poses, seen from anywhere by a detector that errs.

Pairs are made as they are needed: every epoch draws shapes, cameras, sides, occlusions and the detector's errors anew.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from body3d.body.definitions import H36M17_ON_BODY, MEDIAPIPE_ON_BODY, Mixture, mixing_matrix, mixtures, parts_of
from body3d.body.model import BodyModel
from body3d.body.subset import SubsetModel
from body3d.datasets.mocap import is_held_out
from body3d.datasets.reading import read_npz
from body3d.lift.embedded import BODY34, RayLifter, ray_features
from body3d.lift.noise import DetectorNoise, person_size
from body3d.lift.takes import Wide
from body3d.metrics.mpjpe import mpjpe, pa_mpjpe
from body3d.skeletons import FEET23
from body3d.train import Plan, Task
from body3d.types import BodyParams

__all__ = ["EmbeddedLifterRun", "EmbeddedLifterTask", "People"]

CHUNK = 4096
EXACT = 0.35  # share of people whose keypoints are true and sure, as annotators' and simulations' are
# Human3.6M's points of that name; the others are the body's own.
_ON_BODY: dict[str, Mixture] = {
    "mid_hip": H36M17_ON_BODY["pelvis"],
    **{name: H36M17_ON_BODY[name] for name in ("spine", "thorax", "neck_nose", "head_top")},
}


@dataclass(frozen=True)
class People:
    """Poses of the open body, and what makes keypoints of them."""

    pose: Float[Tensor, "F 22 3"]  # rotation vectors, y up
    weight: Float[Tensor, " F"]  # how often each frame is drawn
    points: SubsetModel
    seen: Float[Tensor, "23 P"]  # the detector's points of the body's
    wanted: Float[Tensor, "34 P"]

    @staticmethod
    def open(path: Path, held_out: bool, device: torch.device) -> "People":
        """From `scripts/retarget_mocap.py`'s file. A clip counts by the square root of its length, or salsa would be all."""
        keys = ("subject", "clip", "plausible", "pose")
        file = read_npz(path, keys, "file of poses of the open body", "scripts/retarget_mocap.py")
        held = np.array([is_held_out(str(s)) == held_out for s in file["subject"]])
        chosen = held[file["clip"]] & file["plausible"]
        pose, clip = file["pose"][chosen].astype(np.float32), file["clip"][chosen]
        weight = np.bincount(clip)[clip] ** -0.5
        model = BodyModel.open().to(device)
        seen = mixtures(model.keypoints, FEET23, MEDIAPIPE_ON_BODY)
        wanted = mixtures(model.keypoints, BODY34, _ON_BODY)
        names = tuple(dict.fromkeys((*parts_of(seen), *parts_of(wanted))))
        matrix = lambda found, joints: mixing_matrix({n: found[n] for n in joints.names}, names).to(device)
        return People(
            torch.from_numpy(pose).to(device), torch.from_numpy(weight).float().to(device),
            model.subset(names), matrix(seen, FEET23), matrix(wanted, BODY34),
        )  # fmt: skip

    def draw(self, count: int, random: torch.Generator) -> tuple[Float[Tensor, "B 23 3"], Float[Tensor, "B 34 3"]]:
        """(the detector's points, the wanted ones) of `count` people with random shapes before random cameras, camera space."""
        device = random.device
        index = torch.multinomial(self.weight, count, replacement=True, generator=random)
        shape = torch.randn(count, 10, generator=random, device=device).clamp(-2.5, 2.5)
        cameras = VIEW.draw(count, random)
        mirror = torch.rand(count, generator=random, device=device) < 0.5
        out = []
        for rows in torch.arange(count, device=device).split(CHUNK):
            pose = torch.zeros(len(rows), len(self.points.joints), 3, device=device)
            pose[:, :22] = self.pose[index[rows]]
            zero = torch.zeros(len(rows), 3, device=device)
            body = self.points(BodyParams(pose, shape[rows], zero, torch.zeros(len(rows), 10, device=device)))
            sides = [self.seen @ body, self.wanted @ body]
            for k, joints in enumerate((FEET23, BODY34)):
                other = sides[k][:, list(joints.flip)] * body.new_tensor([-1.0, 1, 1])
                sides[k] = torch.where(mirror[rows, None, None], other, sides[k])
            middle = sides[1].mean(1, keepdim=True)
            up = body.new_tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # y up to the cameras' z up
            height = body.new_tensor([0.0, 0, 0.9])  # where the cameras look
            R, t = cameras.R[rows], cameras.t[rows, None]
            out.append([((points - middle) @ up.mT + height) @ R.mT + t for points in sides])
        return torch.cat([o[0] for o in out]), torch.cat([o[1] for o in out])


VIEW = Wide(elevation=(-20.0, 60.0), distance=(1.8, 9.0), roll=(-12.0, 12.0))


class EmbeddedLifterTask(Task):
    main = "lifter"

    def __init__(
        self, lifter: RayLifter, training: People, validation: People, batch: int, steps: int, noise: DetectorNoise
    ):
        self.modules = nn.ModuleDict({"lifter": lifter})
        self.training, self.batch, self._steps, self.noise = training, batch, steps, noise
        random = torch.Generator(training.pose.device).manual_seed(2026)
        _, wanted = training.draw(2 * CHUNK, random)
        lifter.get_buffer("mean").copy_((wanted - wanted[:, _root()]).mean(0))
        lifter.get_buffer("std").copy_((wanted - wanted[:, _root()]).std(0).clamp_min(0.05))
        self.held_out = self.pairs(*validation.draw(2 * CHUNK, random), random)

    def steps(self) -> int:
        return self._steps

    def batches(self, epoch: int, random: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        # Bodies are dear and cameras cheap, so a pool of bodies is made at a time.
        pool = 8
        for k in range(0, self._steps, pool):
            size = min(pool, self._steps - k) * self.batch
            features, target = self.pairs(*self.training.draw(size, random), random)
            yield from zip(features.split(self.batch), target.split(self.batch), strict=True)

    def pairs(self, seen: Tensor, wanted: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Features with a detector's errors and gaps, and the pose in the axes of the ray."""
        uv = seen[..., :2] / seen[..., 2:].clamp_min(0.1)  # who is nearer than 10 cm is not seen like that anyway
        visible = occlusion(uv, random)
        size = person_size(uv, torch.ones_like(visible, dtype=torch.bool), FEET23)
        seen_uv, conf = self.noise.sample(uv, size, random)
        exact = torch.rand(len(uv), generator=random, device=uv.device) < EXACT
        uv = torch.where(exact[:, None, None], uv, seen_uv)
        conf = torch.where(exact[:, None], torch.ones_like(conf), conf) * visible
        features, R = ray_features(uv, conf)
        return features, (wanted - wanted[:, _root()]) @ R.mT

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        features, target = batch
        xyz, log_scale = self.modules["lifter"](features)
        distance = (xyz - target).norm(dim=-1)
        # The negative logarithm of a spherical Laplace density, exp(-d/b) / b^3.
        return {"nll": (distance * (-log_scale).exp() + 3 * log_scale).mean()}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """As a detector sees people, gaps included, and exact; over all 34 joints."""
        features, target = self.held_out
        xyz, log_scale = model(features)
        inside = ((xyz - target).abs() < 2 * log_scale.exp()[..., None]).float().mean()
        return {
            "MPJPE mm": 1000 * mpjpe(xyz, target).mean().item(),
            "PA-MPJPE mm": 1000 * pa_mpjpe(xyz, target).mean().item(),
            "coordinates within sigma": inside.item(),
        }


def occlusion(uv: Float[Tensor, "B 23 2"], random: torch.Generator) -> Float[Tensor, "B 23"]:
    """1 for points left in the picture: of every four people one is cut by an edge of it, one of four by a box before them."""
    B = len(uv)
    rand = lambda *shape: torch.rand(*shape, generator=random, device=uv.device)
    low, high = uv.amin(1), uv.amax(1)
    extent = high - low
    # An edge that takes up to 60 % from below (two times of three) or up to 40 % from a side.
    which, depth = rand(B), rand(B)
    below = uv[..., 1] > (high[:, 1] - 0.6 * depth * extent[:, 1])[:, None]
    left = uv[..., 0] < (low[:, 0] + 0.4 * depth * extent[:, 0])[:, None]
    cut = torch.where((which < 2 / 3)[:, None], below, left) & (rand(B) < 0.25)[:, None]
    centre = low + extent * rand(B, 2)
    half = extent.amax(-1, keepdim=True) * (0.05 + 0.15 * rand(B, 2))
    hidden = ((uv - centre[:, None]).abs() < half[:, None]).all(-1) & (rand(B) < 0.25)[:, None]
    return (~(cut | hidden)).to(uv)


def _root() -> list[int]:
    return [BODY34.index("mid_hip")]


@dataclass(frozen=True)
class EmbeddedLifterRun:
    """What `configs/embedded_lifter.py` says."""

    plan: Plan
    batch: int = 512
    steps: int = 200
    width: int = 768
    blocks: int = 2
    dropout: float = 0.1
    home: str = "data/retargeted.npz"

    def task(self, path: Path | None, device: torch.device) -> EmbeddedLifterTask:
        """Read the poses and build the network."""
        path = path or Path(self.home)
        torch.manual_seed(self.plan.seed)
        lifter = RayLifter(self.width, self.blocks, self.dropout).to(device)
        training, validation = People.open(path, False, device), People.open(path, True, device)
        return EmbeddedLifterTask(lifter, training, validation, self.batch, self.steps, DetectorNoise(FEET23))
