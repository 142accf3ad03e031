"""PoseAug: a lifter trained on poses that are made harder as it learns, beside those of the data.

Numbers are those of the released code. What differs from it, and why:

* The released code trains the generators for an epoch, keeps what they made, and then trains the lifter for an epoch on that and
  for another on the data. Here all take a step per batch, and the lifter sees real and made poses in one batch, so that its batch
  norms know one mixture, in training as in use.
* The lifter gives its feedback as it would be used (no dropout, fixed statistics), there in training mode.
* The feedback of the paper is |1 - exp(loss_made - beta loss_real)|; the released code, and this, keeps the ratio of the two
  losses in a range.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from body3d.errors import InputError
from body3d.learn.lifting import LifterRun, LiftTask
from body3d.learn.poseaug import (
    Adversary,
    Augmentor,
    Discriminator2D,
    Discriminator3D,
    difficulty,
    in_view,
    outside,
    swap_lengths,
)
from body3d.skeletons import H36M16
from body3d.tensors import Tensors
from body3d.train import Task, Update, read_checkpoint

__all__ = ["PoseAugBatch", "PoseAugRun", "PoseAugTask"]

# Of the generators' loss: adversaries, ranges.
WEIGHT_3D, WEIGHT_2D, WEIGHT_RANGE = 6.0, 1.0, 3.0
# Of 1 - cos of the mean bone's angle (37 degrees, free from 16 to 51), and of how much a bone grows.
ANGLE, ANGLE_REACH, STRETCH_REACH = 0.205, 0.165, 0.1
EVERY = 2  # the adversaries learn in one step of so many


@dataclass(frozen=True)
class Feedback:
    """How many times harder than a real pose a made one should be: from `first` to `last` over the training, give or take."""

    weight: float
    first: float
    last: float
    reach: float

    def __call__(self, harder: Float[Tensor, "B 3"], real: Float[Tensor, "B 3"], progress: float) -> Float[Tensor, ""]:
        return self.weight * outside(harder / real, self.first + (self.last - self.first) * progress, self.reach)


BENT, PLACED = Feedback(0.1, 3.0, 5.0, 2.0), Feedback(0.01, 17.0, 17.0, 15.0)


@dataclass(frozen=True)
class PoseAugBatch(Tensors):
    """Real poses and the cameras that see them."""

    xy: Float[Tensor, "B 1 16 2"]  # what the lifter is shown
    xyz: Float[Tensor, "B 16 3"]  # camera frame, metres
    focal: Float[Tensor, "B 2"]
    centre: Float[Tensor, "B 2"]

    def project(self, xyz: Float[Tensor, "B 16 3"]) -> Float[Tensor, "B 16 2"]:
        """Screen coordinates of other poses. Directions more than 45 degrees off the axis are put there, as VideoPose3D does."""
        return (xyz[..., :2] / xyz[..., 2:]).clamp(-1, 1) * self.focal[:, None] + self.centre[:, None]


class PoseAugTask(Task):
    """A lifting task with an augmentor and its two adversaries, on one device.

    The lifter learns from the data alone for `warmup` epochs, and gives no feedback yet.
    """

    main = "lifter"

    def __init__(self, lifting: LiftTask, epochs: int, warmup: int = 2):
        lifter = lifting.modules["lifter"]
        adversaries = {
            "adversary3d": Adversary(Discriminator3D(), 16, 3),
            "adversary2d": Adversary(Discriminator2D(), 16, 2),
        }
        self.modules = nn.ModuleDict({"lifter": lifter, "augmentor": Augmentor(), **adversaries})
        self.lifting, self.epochs, self.warmup = lifting, epochs, warmup

    def steps(self) -> int:
        return self.lifting.steps()

    def validate(self, model: nn.Module) -> dict[str, float]:
        return self.lifting.validate(model)

    def losses(self, batch: PoseAugBatch) -> dict[str, Tensor]:
        """The lifter's, on real poses."""
        return self.lifting.losses((batch.xy, _relative(batch.xyz)))

    def batches(self, epoch: int, random: torch.Generator) -> Iterator[PoseAugBatch]:
        self.epoch, self.count, self.random = epoch, 0, random
        for takes, index in self.lifting.drawn(epoch, random):
            xy = self._seen(takes.xy[index])
            yield PoseAugBatch(xy, takes.xyz[index], takes.focal[index], takes.centre[index])

    def _seen(self, xy: Float[Tensor, "B 16 2"]) -> Float[Tensor, "B 1 16 2"]:
        """As the detector sees it."""
        return xy[:, None] if self.lifting.noise is None else self.lifting.noise(xy[:, None], self.random)

    def step(self, batch: PoseAugBatch, update: Update) -> dict[str, Tensor]:
        """One turn of the generators, every second time one of the adversaries, one of the lifter."""
        lifter, augmentor = self.modules["lifter"], self.modules["augmentor"]
        adversary3d, adversary2d = (cast(Adversary, self.modules[name]) for name in ("adversary3d", "adversary2d"))
        warm = self.epoch >= self.warmup
        real = swap_lengths(batch.xyz)
        real_xy = batch.project(real)

        made = augmentor(real)
        bent_xy, placed_xy = batch.project(made.bent), batch.project(made.placed)
        with _fixed(lifter, adversary3d, adversary2d):
            losses = {
                "adversary 3D": WEIGHT_3D * adversary3d.deceived(made.bent),
                "adversary 2D": WEIGHT_2D * adversary2d.deceived(placed_xy),
                "range": WEIGHT_RANGE
                * (outside(made.angles.mean(-1), ANGLE, ANGLE_REACH) + outside(made.ratios, 0.0, STRETCH_REACH)),
            }
            losses |= {"feedback bent": real.new_zeros(()), "feedback placed": real.new_zeros(())}
            if warm:
                hard = lambda xy, xyz: difficulty(lifter(xy[:, None]), xyz)
                easy, progress = hard(real_xy, real), self.epoch / self.epochs
                losses["feedback bent"] = BENT(hard(bent_xy, made.bent), easy, progress)
                losses["feedback placed"] = PLACED(hard(placed_xy, made.placed), easy, progress)
        update(torch.stack(list(losses.values())).sum(), "augmentor")

        if self.count % EVERY == 0:
            update(adversary3d(real, made.bent), "adversary3d")
            update(adversary2d(real_xy, placed_xy), "adversary2d")
        self.count += 1

        xy, xyz = batch.xy, _relative(batch.xyz)
        kept = in_view(made.placed, placed_xy)
        if warm:
            xy = torch.cat([xy, self._seen(placed_xy.detach()[kept])])
            xyz = torch.cat([xyz, _relative(made.placed.detach()[kept])])
        lifted = self.lifting.losses((xy, xyz))
        update(torch.stack(list(lifted.values())).sum(), "lifter")
        return lifted | losses | {"in view": kept.float().mean()}


def _relative(xyz: Float[Tensor, "B 16 3"]) -> Float[Tensor, "B 16 3"]:
    return xyz - xyz[:, :1]


@contextmanager
def _fixed(*modules: nn.Module) -> Iterator[None]:
    """The modules as they are in use, with gradients to their inputs only."""
    for module in modules:
        module.eval().requires_grad_(False)
    yield
    for module in modules:
        module.train().requires_grad_(True)


@dataclass(frozen=True)
class PoseAugRun(LifterRun):
    """A lifter's run with PoseAug. `start`: a lifter's checkpoint to go on from (best.pt, or last.pt of a run without PoseAug); the
    paper does, and all learn at 1e-4 then. From scratch it takes many times as long to be as good."""

    warmup: int = 2
    start: Path | None = None

    def task(self, path: Path | None, device: torch.device) -> PoseAugTask:
        if self.joints is not H36M16 or self.frames != 1:
            raise InputError(
                f"PoseAug makes single poses of {H36M16.name}; the run asks for {self.frames} frames of {self.joints.name}"
            )
        if self.flip:
            raise InputError("PoseAug does not mirror the poses that it makes others of: leave out `flip`")
        lifting = super().task(path, device)
        if self.start is not None:
            content = read_checkpoint(self.start)
            state = content.get("model") or content.get("modules", {}).get("lifter", {})
            try:
                lifting.modules["lifter"].load_state_dict(state)
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:300]
                raise InputError(f"{self.start} holds another lifter than the run's: {reason}") from error
        return PoseAugTask(lifting, self.plan.epochs, self.warmup)
