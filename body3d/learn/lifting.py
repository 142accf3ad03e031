"""How lifters are trained and scored: the task behind `scripts/train_lifter.py`, and what a config says."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from body3d.datasets.h36m_cameras import CAMERAS
from body3d.errors import InputError
from body3d.lift.lifter import Lifter, mirrored
from body3d.lift.noise import DetectorNoise, person_size
from body3d.lift.takes import MocapScene, Takes, Wide, h36m_takes, mpi_inf_3dhp_takes, studio_cameras
from body3d.metrics.mpjpe import mpjpe, pa_mpjpe
from body3d.skeletons import H36M17, JointSet
from body3d.train import Plan, Task

__all__ = ["FreeMocap", "H36MFiles", "LiftTask", "LifterRun", "MPIINF3DHPFiles", "detector_noise", "score"]

CHUNK = 8192
Noise = Callable[[Tensor, torch.Generator], Tensor]  # what a detector makes of true keypoints (B, T, J, 2)


def detector_noise(joints: JointSet) -> Noise:
    """The embedded detector's errors, drawn anew in every frame; a joint that it misses lies in the middle of the image, 0, 0."""
    noise = DetectorNoise(joints)

    def detected(xy: Tensor, random: torch.Generator) -> Tensor:
        size = person_size(xy, torch.ones_like(xy[..., 0], dtype=torch.bool), joints)
        return noise.sample(xy, size, random)[0]

    return detected


# ---- data ----------------------------------------------------------------------------------------------------------
@runtime_checkable
class Data(Protocol):
    """Where pairs come from. `training` gives a function that makes an epoch's takes from a random generator."""

    @property
    def home(self) -> str:
        """Where the data lies if nobody says otherwise."""
        ...

    def training(self, path: Path, device: torch.device) -> Callable[[torch.Generator], Takes]: ...

    def validation(self, path: Path, device: torch.device) -> Takes: ...


@dataclass(frozen=True)
class H36MFiles:
    """Human3.6M in VideoPose3D's files, subjects 1, 5, 6, 7, 8 against 9 and 11."""

    keypoints: str = "gt"
    home: str = "data/h36m"

    def training(self, path: Path, device: torch.device) -> Callable[[torch.Generator], Takes]:
        takes = h36m_takes(path, self.keypoints, test=False).to(device)
        return lambda random: takes

    def validation(self, path: Path, device: torch.device) -> Takes:
        return h36m_takes(path, self.keypoints, test=True).to(device)


@dataclass(frozen=True)
class MPIINF3DHPFiles:
    """MPI-INF-3DHP in P-STMO's two files: universal poses, so that errors are not in the people's own size."""

    home: str = "data/mpi_inf_3dhp"

    def training(self, path: Path, device: torch.device) -> Callable[[torch.Generator], Takes]:
        takes = mpi_inf_3dhp_takes(path / "data_train_3dhp.npz").to(device)
        return lambda random: takes

    def validation(self, path: Path, device: torch.device) -> Takes:
        return mpi_inf_3dhp_takes(path / "data_test_3dhp.npz").to(device)


@dataclass(frozen=True)
class FreeMocap:
    """Free motion capture seen by Human3.6M's four cameras; every epoch its clips are turned, placed and mirrored anew.

    Validation: the held-out subjects, turned and placed once and for all, by the same cameras or by eight that training never
    saw (`unseen`).
    """

    unseen: bool = False
    home: str = "data/mocap"

    def training(self, path: Path, device: torch.device) -> Callable[[torch.Generator], Takes]:
        scene = MocapScene.open(path, held_out=False).to(device)
        cameras = [studio_cameras(name, len(scene.start)).to(device) for name in CAMERAS]
        return lambda random: scene.takes(cameras, random, mirror=True)

    def validation(self, path: Path, device: torch.device) -> Takes:
        scene = MocapScene.open(path, held_out=True)
        random = torch.Generator().manual_seed(2026)
        clips = len(scene.start)
        if self.unseen:
            cameras = [Wide().draw(clips, random) for _ in range(8)]
        else:
            cameras = [studio_cameras(name, clips) for name in CAMERAS]
        return scene.takes(cameras, random).to(device)


# ---- the task ------------------------------------------------------------------------------------------------------
class LiftTask(Task):
    """A lifter on pairs, batches gathered where the data lies.

    An epoch is `steps` batches of frames drawn without replacement (all frames, if None). `every`: one frame of so many is
    validated on.
    """

    main = "lifter"

    def __init__(
        self,
        lifter: Lifter,
        training: Callable[[torch.Generator], Takes],
        validation: Takes,
        batch: int,
        steps: int | None = None,
        loss: Literal["mse", "mpjpe"] = "mpjpe",
        flip: bool = False,
        noise: Noise | None = None,
        every: int = 1,
        before_epoch: Callable[[int, nn.Module], None] = lambda epoch, net: None,
    ):
        self.modules = nn.ModuleDict({"lifter": lifter})
        self.frames, self.causal, self.joints = lifter.frames, lifter.causal, lifter.joints
        self.std3d = lifter.std3d
        self.training, self.validation, self.every = training, validation, every
        self.batch, self.loss, self.flip, self.noise, self.before_epoch = batch, loss, flip, noise, before_epoch
        frames = len(training(torch.Generator(validation.xy.device).manual_seed(0)).index)
        if frames < 2:
            raise InputError(f"there are {frames} frames to train on, where a batch needs two")
        possible = math.ceil(frames / batch) - (frames % batch == 1)
        self._steps = min(steps or possible, possible)

    def steps(self) -> int:
        return self._steps

    def drawn(self, epoch: int, random: torch.Generator) -> Iterator[tuple[Takes, Int[Tensor, " B"]]]:
        """An epoch's takes, with the frames of one batch after the other. A last batch of one frame is left out: it has no
        deviation, which batch norm divides by."""
        self.before_epoch(epoch, self.modules["lifter"])
        takes = self.training(random)
        order = takes.index[torch.randperm(len(takes.index), generator=random, device=random.device)]
        for index in order[: self._steps * self.batch].split(self.batch):
            if len(index) >= min(2, self.batch):
                yield takes, index

    def batches(self, epoch: int, random: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for takes, index in self.drawn(epoch, random):
            xy, xyz = takes.windows(index, self.frames, self.causal), takes.relative(index)
            if self.noise is not None:
                xy = self.noise(xy, random)
            if self.flip and torch.rand((), generator=random, device=random.device) < 0.5:
                xy, xyz = mirrored(xy, self.joints), mirrored(xyz, self.joints)
            yield xy, xyz

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        xy, xyz = batch
        predicted = self.modules["lifter"](xy)
        if self.loss == "mse":
            return {"loss": ((predicted - xyz) / self.std3d).square().mean()}
        return {"loss": (predicted - xyz).norm(dim=-1).mean()}

    def validate(self, model: nn.Module) -> dict[str, float]:
        return score(model, self.validation, self.flip, self.noise, self.every).means()


@dataclass(frozen=True)
class Score:
    """Errors of every frame scored, millimetres, root-relative, over all joints of the lifter's set."""

    mpjpe: Float[Tensor, " N"]  # protocol 1 of Human3.6M
    pa_mpjpe: Float[Tensor, " N"]  # protocol 2: after a similarity
    action: Int[Tensor, " N"]
    actions: tuple[str, ...]

    def means(self) -> dict[str, float]:
        """Over all frames, and (as the tables of papers have it) over the means of the actions."""
        per_action = self.per_action()
        return {
            "MPJPE mm": self.mpjpe.mean().item(), "PA-MPJPE mm": self.pa_mpjpe.mean().item(),
            "MPJPE mm by action": sum(e for e, _ in per_action.values()) / len(per_action),
            "PA-MPJPE mm by action": sum(e for _, e in per_action.values()) / len(per_action),
        }  # fmt: skip

    def per_action(self) -> dict[str, tuple[float, float]]:
        """MPJPE and PA-MPJPE of each action."""
        of = lambda a: self.action == a
        return {
            name: (self.mpjpe[of(a)].mean().item(), self.pa_mpjpe[of(a)].mean().item())
            for a, name in enumerate(self.actions) if of(a).any()
        }  # fmt: skip


@torch.no_grad()
def score(
    lifter: Callable[[Tensor], Tensor], takes: Takes, flip: bool = False, noise: Noise | None = None, every: int = 1,
    frames: int | None = None, causal: bool | None = None,
) -> Score:  # fmt: skip
    """Errors of a lifter (or of any function from windows to root-relative poses, if `frames` says which) on one frame of `every`.

    `flip` averages with the mirrored prediction. The noise of the input, if any, is the same in every call.
    """
    if isinstance(lifter, Lifter):
        frames, causal = lifter.frames, lifter.causal
        predict = lifter.flipped_mean if flip else lifter
    else:
        predict = lifter
    random = torch.Generator(takes.xy.device).manual_seed(0)
    errors, aligned = [], []
    index = takes.index[::every]
    for part in index.split(CHUNK):
        xy, xyz = takes.windows(part, frames or 1, causal or False), takes.relative(part)
        predicted = predict(xy if noise is None else noise(xy, random))
        errors.append(1000 * mpjpe(predicted, xyz))
        aligned.append(1000 * pa_mpjpe(predicted, xyz))
    return Score(torch.cat(errors), torch.cat(aligned), takes.action[takes.take[index]], takes.actions)


# ---- what a config says --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class LifterRun:
    """Everything that one training run of a lifter depends on; a file in `configs/` gives one as `run`."""

    data: Data
    net: Callable[[JointSet], nn.Module]
    plan: Plan
    batch: int
    joints: JointSet = H36M17
    frames: int = 1
    causal: bool = False
    standardise: bool = False
    loss: Literal["mse", "mpjpe"] = "mpjpe"
    flip: bool = False
    noisy: bool = False  # train and validate on keypoints as the embedded detector would see them
    steps: int | None = None  # batches per epoch; None: all frames once
    every: int = 1  # validation looks at one frame of so many
    momentum: tuple[float, float] | None = None  # of VideoPose3D's batch norms, in the first epoch and after the last

    def task(self, path: Path | None, device: torch.device) -> LiftTask:
        """Read the data and build the network. InputError if something of the data is missing."""
        path = path or Path(self.data.home)
        training, validation = self.data.training(path, device), self.data.validation(path, device)
        if validation.joints is not self.joints:
            source, validation = training, validation.convert(self.joints)
            training = lambda random: source(random).convert(self.joints)
        torch.manual_seed(self.plan.seed)
        lifter = Lifter(self.net(self.joints), self.joints, self.frames, self.causal).to(device)
        if self.standardise:
            lifter.standardise(training(torch.Generator(device).manual_seed(self.plan.seed)))
        noise = detector_noise(self.joints) if self.noisy else None
        return LiftTask(
            lifter,
            training,
            validation,
            self.batch,
            self.steps,
            self.loss,
            self.flip,
            noise,
            self.every,
            self._momentum,
        )

    def _momentum(self, epoch: int, net: nn.Module) -> None:
        """From the first to the last by the same factor every epoch (Pavllo et al.)."""
        if self.momentum is not None:
            first, last = self.momentum
            for module in net.modules():
                if isinstance(module, nn.BatchNorm1d):
                    module.momentum = first * (last / first) ** (epoch / self.plan.epochs)
