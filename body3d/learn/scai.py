"""SCAI: a trained network's maps of outer joints are corrected by what they would make of the inner ones, for each photo anew.

Kan, Chen, Zhang, Tang & He, "Self-correctable and adaptable inference for generalizable human pose estimation", CVPR 2023. Of each
limb, a prediction network says where its outer joint is from the maps of three inner ones; a fitness feedback network says from
the outer map what the inner ones would be; how far that is from what came in (the self-referential error) tells the correction
network how wrong the prediction is. As it needs no truth, it can be lowered on the very photo that is asked about (`adapt`).

There is no public code, and what is public of the paper leaves open: the networks (here small hourglasses over maps, one set per
limb; the correction is added), the "features" (here the map that the trained network itself has of the outer joint), what the
feedback network learns from (here from the true outer map to the inner maps that came in), the limbs (`limbs`, after the authors'
earlier "Self-constrained inference optimization on structural groups", ECCV 2022), and how the adaptation steps (here gradient
descent whose step is halved until the error falls).
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from body3d.checkpoints import load_into, read_published
from body3d.codecs import Heatmap
from body3d.errors import InputError
from body3d.joint_set import JointSet, mirrored
from body3d.layers import PreActBottleneck, conv_bn
from body3d.learn.pose2d import Batch, PoseRun, PoseTask
from body3d.losses import joint_mse
from body3d.nets.hourglass import Hourglass
from body3d.posenet import PoseNet, check_size
from body3d.train import Task
from body3d.types import Keypoints2D

__all__ = ["SCAI", "Adapted", "Limb", "MapNet", "SCAIRun", "SCAITask", "adapt", "adapt_maps", "correctable", "limbs"]

_OUTER = {
    "left_wrist": ("left_elbow", "left_shoulder", "right_shoulder"),
    "left_ankle": ("left_knee", "left_hip", "right_hip"),
    "left_ear": ("left_eye", "nose", "right_eye"),
    "head_top": ("upper_neck", "left_shoulder", "right_shoulder"),
}


def limbs(joints: JointSet) -> dict[str, tuple[str, ...]]:
    """Each outer joint of the set and the three inner ones that it hangs on: COCO's six, LSP's five.

    InputError if the set has none.
    """
    both = _OUTER | {mirrored(outer): tuple(map(mirrored, inner)) for outer, inner in _OUTER.items()}
    found = {outer: inner for outer, inner in both.items() if all(name in joints for name in (outer, *inner))}
    if not found:
        raise InputError(f"{joints.name} has no limbs of four joints, such as {_OUTER['left_wrist']} and left_wrist")
    return found


# ---- networks ------------------------------------------------------------------------------------------------------
class MapNet(nn.Module):
    """Maps to maps of the same size by one small hourglass, zeros at first.

    InputError for maps whose sides are no multiples of 2 ** `depth`.
    """

    def __init__(self, inputs: int, outputs: int, width: int = 32, depth: int = 3):
        super().__init__()
        self.depth = depth
        self.first = conv_bn(inputs, width)
        self.hourglass = Hourglass(lambda: PreActBottleneck(width, width), depth)
        self.last = nn.Conv2d(width, outputs, 1)
        # Maps are zeros nearly everywhere: from anywhere else it takes hundreds of steps to get there first.
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(cast(Tensor, self.last.bias))

    def forward(self, maps: Float[Tensor, "B I h w"]) -> Float[Tensor, "B O h w"]:
        if any(side % 2**self.depth for side in maps.shape[-2:]):
            raise InputError(
                f"maps of {maps.shape[-2]} x {maps.shape[-1]} cells cannot be halved {self.depth} times: take a smaller depth"
            )
        return self.last(self.hourglass(self.first(maps)))


class Limb(nn.Module):
    """The three networks of one limb. `inner` and `seen` are the trained network's maps of the inner joints and the outer one."""

    def __init__(self, inner: int, width: int = 32, depth: int = 3):
        super().__init__()
        self.predict = MapNet(inner + 1, 1, width, depth)
        self.feedback = MapNet(1, inner, width, depth)
        self.correct = MapNet(inner + 2, 1, width, depth)

    def predicted(self, inner: Float[Tensor, "B I h w"], seen: Float[Tensor, "B 1 h w"]) -> Float[Tensor, "B 1 h w"]:
        return self.predict(torch.cat([inner, seen], 1))

    def error(self, outer: Float[Tensor, "B 1 h w"], inner: Float[Tensor, "B I h w"]) -> Float[Tensor, "B I h w"]:
        """The self-referential error: the inner maps that an outer one would make, less those that are there."""
        return self.feedback(outer) - inner

    def corrected(
        self, predicted: Float[Tensor, "B 1 h w"], inner: Float[Tensor, "B I h w"], seen: Float[Tensor, "B 1 h w"]
    ) -> Float[Tensor, "B 1 h w"]:
        return predicted + self.correct(torch.cat([predicted, seen, self.error(predicted, inner)], 1))


class SCAI(nn.Module):
    """(B, 3, H, W) to the trained network's maps (B, J, h, w), and these with corrected maps of outer joints.

    `base` is not trained: it stays as it is in use whatever the mode.
    """

    def __init__(self, base: nn.Module, joints: JointSet, width: int = 32, depth: int = 3):
        super().__init__()
        self.base = base.requires_grad_(False).eval()
        self.places = {outer: (joints.index(outer), joints.indices(inner)) for outer, inner in limbs(joints).items()}
        self.limbs = nn.ModuleDict({o: Limb(len(inner), width, depth) for o, (_, inner) in self.places.items()})

    def train(self, mode: bool = True) -> "SCAI":
        super().train(mode)
        self.base.eval()
        return self

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        with torch.no_grad():
            maps = self.base(image)[-1]
        return [maps, self.corrected(maps)]

    def parts(self, maps: Float[Tensor, "B J h w"]) -> Iterator[tuple[str, Limb, Tensor, Tensor]]:
        """Of each limb: its outer joint, its networks, and the maps of its inner joints and of the outer one."""
        for name, (outer, inner) in self.places.items():
            yield name, cast(Limb, self.limbs[name]), maps[:, inner], maps[:, [outer]]

    def corrected(self, maps: Float[Tensor, "B J h w"]) -> Float[Tensor, "B J h w"]:
        better = {
            name: limb.corrected(limb.predicted(inner, seen), inner, seen)
            for name, limb, inner, seen in self.parts(maps)
        }
        return self.replaced(maps, better)

    def replaced(self, maps: Float[Tensor, "B J h w"], outer: dict[str, Tensor]) -> Float[Tensor, "B J h w"]:
        rows = torch.tensor([self.places[name][0] for name in outer], device=maps.device)
        return maps.index_copy(1, rows, torch.cat(list(outer.values()), 1))


def correctable(base: PoseNet, width: int = 32, depth: int = 3) -> PoseNet:
    """A trained network with correction networks, not trained yet. InputError unless it gives a heat map per joint."""
    if not isinstance(base.codec, Heatmap):
        raise InputError(
            f"SCAI corrects heat maps, which {type(base.codec).__name__} does not read: train with Heatmap"
        )
    return PoseNet(SCAI(base.net, base.joints, width, depth), base.codec, base.joints, base.size, base.normalise)


# ---- adaptation ----------------------------------------------------------------------------------------------------
class Adapted(NamedTuple):
    maps: Float[Tensor, "1 J h w"]
    error: Float[Tensor, " S"]  # self-referential, the mean square over all limbs: before each step, and at last


def adapt_maps(net: SCAI, maps: Float[Tensor, "1 J h w"], steps: int = 5, lr: float = 0.003) -> Adapted:
    """One photo's maps, corrected by correction networks that first learn from that photo alone; `net` stays as it is.

    `steps` steps down the gradient of the self-referential error of the corrected maps, each of which changes the weights by `lr`
    of their norm. A step that raises the error is not taken, and the next one is half as long. The network is to be in eval mode.
    """
    outer, errors = {}, torch.zeros(steps + 1, device=maps.device)
    for name, limb, inner, seen in net.parts(maps.detach()):
        own = deepcopy(limb)
        own.correct.requires_grad_()
        with torch.enable_grad():
            made, history = _descend(own, inner, seen, steps, lr)
        outer[name] = made
        errors += torch.stack(history) / len(net.places)
    return Adapted(net.replaced(maps, outer), errors)


def _descend(limb: Limb, inner: Tensor, seen: Tensor, steps: int, lr: float) -> tuple[Tensor, list[Tensor]]:
    """The corrected map at last, and the error before each step and at last. Changes the limb's correction."""
    predicted = limb.predicted(inner, seen).detach()
    weights = list(limb.correct.parameters())

    def measure() -> tuple[Tensor, Tensor]:
        made = limb.corrected(predicted, inner, seen)
        return made, limb.error(made, inner).square().mean()

    made, error = measure()
    history = [error.detach()]
    for _ in range(steps):
        slopes = torch.autograd.grad(error, weights)
        before = [w.detach().clone() for w in weights]
        length = lr * _norm(before) / _norm(slopes).clamp_min(1e-12)
        with torch.no_grad():
            for w, slope in zip(weights, slopes, strict=True):
                w -= length * slope
        tried, new = measure()
        if new < error:
            made, error = tried, new
        else:
            lr /= 2
            with torch.no_grad():
                for w, old in zip(weights, before, strict=True):
                    w.copy_(old)
            _, error = measure()
        history.append(error.detach())
    return made.detach(), history


def _norm(parts: Sequence[Tensor]) -> Float[Tensor, ""]:
    return torch.stack([part.norm() for part in parts]).norm()


def adapt(net: PoseNet, image: Float[Tensor, "B 3 H W"], steps: int = 5, lr: float = 0.003) -> Keypoints2D:
    """The keypoints of each crop after adaptation to that crop alone.

    InputError for a network without corrections, and for crops of another size.
    """
    if not isinstance(net.net, SCAI):
        raise InputError(f"{type(net.net).__name__} cannot be adapted: only what learn.scai.correctable gives can")
    check_size(image, net.size)
    with torch.no_grad():
        maps = net.net.base(net.normalise(image))[-1]
    better = torch.cat([adapt_maps(net.net, one, steps, lr).maps for one in maps.split(1)])
    return Keypoints2D(*net.codec.decode(better, net.size), net.joints)


# ---- training ------------------------------------------------------------------------------------------------------
class SCAITask(Task):
    """The crops of a 2D task, on one device: prediction and feedback networks learn for `first` epochs, corrections after that."""

    main = "net"

    def __init__(self, pose: PoseTask, first: int):
        net = cast(PoseNet, pose.modules["net"])
        if not isinstance(net.net, SCAI):
            raise InputError(f"{type(net.net).__name__} has no corrections: build it with learn.scai.correctable")
        self.modules, self.pose, self.first, self.codec = pose.modules, pose, first, cast(Heatmap, net.codec)
        self.correcting = first == 0

    def steps(self) -> int:
        return self.pose.steps()

    def groups(self, name: str) -> list[dict]:
        return self.pose.groups(name)

    def batches(self, epoch: int, random: torch.Generator) -> Iterator[Batch]:
        self.correcting = epoch >= self.first
        for limb in self.net.limbs.children():
            for name, part in limb.named_children():
                part.requires_grad_((name == "correct") == self.correcting)
                part.train((name == "correct") == self.correcting)
        return self.pose.batches(epoch, random)

    @property
    def net(self) -> SCAI:
        return cast(SCAI, cast(PoseNet, self.modules["net"]).net)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        posenet, net = cast(PoseNet, self.modules["net"]), self.net
        with torch.no_grad():
            maps = net.base(posenet.normalise(batch.image))[-1]
        target, shown = self.codec.target(batch.target.xy, posenet.size, (maps.shape[-2], maps.shape[-1]))
        weight = batch.target.conf * shown
        sums: dict[str, list[Tensor]] = {}
        for name, limb, inner, seen in net.parts(maps):
            outer = [net.places[name][0]]
            truth, known = target[:, outer], weight[:, outer]
            for part, loss in self._limb(limb, inner, seen, truth, known).items():
                sums.setdefault(part, []).append(loss)
        return {part: torch.stack(losses).mean() for part, losses in sums.items()}

    def _limb(self, limb: Limb, inner: Tensor, seen: Tensor, truth: Tensor, known: Tensor) -> dict[str, Tensor]:
        if self.correcting:
            return {"correction": joint_mse(limb.corrected(limb.predicted(inner, seen), inner, seen), truth, known)}
        return {
            "prediction": joint_mse(limb.predicted(inner, seen), truth, known),
            "feedback": joint_mse(limb.feedback(truth), inner, known.expand(-1, inner.shape[1])),
        }

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Figures of the corrected maps, and the first one of the maps as they were."""
        net = cast(PoseNet, model)
        figures = self.pose.validate(net)
        plain = PoseNet(cast(SCAI, net.net).base, net.codec, net.joints, net.size, net.normalise)
        name = next(iter(figures))
        return figures | {f"uncorrected: {name}": self.pose.validate(plain)[name]}

    def picture(self, model: nn.Module) -> UInt8[np.ndarray, "H W 3"]:
        return self.pose.picture(model)


@dataclass(frozen=True)
class SCAIRun(PoseRun):
    """A run whose `net` was trained before: `start` is that run's best.pt. The first `first` epochs are without correction."""

    first: int = 10
    width: int = 32
    depth: int = 3

    def task(self, path: Path | None, device: torch.device) -> SCAITask:  # type: ignore[override]
        """InputError, besides `PoseRun`'s, if there is no `start` or it is of another network."""
        if self.start is None:
            raise InputError("SCAI corrects a trained network: give best.pt of a run of the same network (--start)")
        start = self.start if isinstance(self.start, Path) else self.start()

        def net(joints: JointSet) -> PoseNet:
            base = self.net(joints)
            load_into(base, read_published(start), start)
            return correctable(base, self.width, self.depth)

        run = replace(self, net=net, start=None)
        return SCAITask(PoseRun.task(run, path, device), self.first)
