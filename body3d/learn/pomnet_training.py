"""How POMNet learns: in episodes, each of which asks for some joints that are marked on other people.

The paper's kinds of things (MP-100) must be put together from sets with licences of their own. Any annotated set gives episodes: a
kind is a random choice of its joints, in a random order; `held_out` joints are asked for in validation alone (hold out both sides:
mirrored photos show one as the other). That is less than the paper's split, in which whole kinds of things are new.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from body3d.augment import Augmentation
from body3d.crop import apply, invert
from body3d.errors import InputError
from body3d.learn.crops import Crops, PhotoSet, processes
from body3d.learn.pose2d import PoseTask
from body3d.losses import joint_mse
from body3d.metrics.pck import pck, torso_size
from body3d.nets.pomnet import POMNet
from body3d.posenet import PoseNet
from body3d.train import Plan, Task

__all__ = ["Episode", "POMNetRun", "POMNetTask", "POMNET_TRAINING"]

POMNET_TRAINING = Augmentation(scale=0.15, rotation=0.26, half_body=None)  # the release's: 15 degrees, 15 %


class Episode(NamedTuple):
    """K joints of B people, marked on S others each; the same K of all that belong together."""

    image: Float[Tensor, "B 3 H W"]
    xy: Float[Tensor, "B K 2"]  # pixels
    known: Float[Tensor, "B K"]
    shots: Float[Tensor, "B S 3 H W"]
    shots_xy: Float[Tensor, "B S K 2"]
    shots_known: Float[Tensor, "B S K"]


class POMNetTask(Task):
    """Episodes of `choose` joints and `shots` marked people per person in question, `batch` such per step."""

    main = "net"

    def __init__(
        self,
        net: POMNet,
        training: Crops,
        validation: Crops,
        batch: int,
        shots: int = 1,
        choose: int = 6,
        held_out: Sequence[str] = (),
        augment: Augmentation = POMNET_TRAINING,
        steps: int | None = None,
        workers: int = 0,
    ):
        joints = training.joints
        self.learnt = [i for i, name in enumerate(joints.names) if name not in held_out]
        if unknown := [name for name in held_out if name not in joints]:
            raise InputError(f"{joints.name} has no joint {unknown[0]!r} to hold out")
        if choose > len(self.learnt):
            raise InputError(f"episodes of {choose} joints, but {joints.name} has {len(self.learnt)} to learn from")
        if len(training) < batch * (1 + shots):
            raise InputError(f"a step needs {batch * (1 + shots)} people, there are {len(training)}")
        self.modules = nn.ModuleDict({"net": net})
        self.batch, self.shots, self.choose, self.held_out = batch, shots, choose, tuple(held_out)
        self.training, self.validation, self.workers = training, validation, workers
        # Only what it says of crops is used.
        crops = PoseNet(nn.Identity(), net.codec, joints, net.size, net.normalise)
        self.pose = PoseTask(crops, training, validation, batch * (1 + shots), augment, steps, workers=workers)

    def steps(self) -> int:
        return self.pose.steps()

    def batches(self, epoch: int, random: torch.Generator) -> Iterator[Episode]:
        """Of each step's people, the first `batch` are asked about, the others show them how."""
        split = lambda x: (x[: self.batch], x[self.batch :].unflatten(0, (self.batch, self.shots)))
        for people in self.pose.batches(epoch, random):
            image, xy, known = map(split, (people.image, people.target.xy, people.target.conf))
            chance = torch.rand(self.batch, len(self.learnt), generator=random, device=random.device)
            chosen = torch.tensor(self.learnt, device=random.device)[chance.argsort(1)[:, : self.choose]]
            places = (chosen[..., None], chosen[:, None, :, None])
            yield Episode(
                image[0],
                xy[0].take_along_dim(places[0], 1),
                known[0].take_along_dim(chosen, 1),
                image[1],
                xy[1].take_along_dim(places[1], 2),
                known[1].take_along_dim(chosen[:, None], 2),
            )

    def losses(self, batch: Episode) -> dict[str, Tensor]:
        """HRNet's mean squared error, of joints that are known on the photo and on all that show them."""
        net = self.net
        support = net.support(batch.shots, batch.shots_xy, batch.shots_known)
        maps = self.modules["net"](batch.image, support)
        target, shown = net.codec.target(batch.xy, net.size, (maps.shape[-2], maps.shape[-1]))
        return {"loss": joint_mse(maps, target, batch.known * shown * support.known.prod(1))}

    @property
    def net(self) -> POMNet:
        module = self.modules["net"]
        return cast(POMNet, getattr(module, "module", module))  # as the loop may have wrapped it

    def validate(self, model: nn.Module) -> dict[str, float]:
        """PCK of the torso at 0.2 on people not learnt from, each shown all joints on the next `shots` of them.

        First 1 less that of the joints held out (of all joints if there are none), then that of the joints learnt, then of the held
        out.
        """
        net, crops = cast(POMNet, model), self.validation
        count, device = len(crops), next(model.parameters()).device
        index = (torch.arange(count)[:, None] + torch.arange(1 + self.shots)) % count
        flat = index.flatten()
        images = crops.loader(flat, crops.base[flat], self.batch * (1 + self.shots), self.workers)
        places = apply(crops.base, crops.xy)
        seen, marked = [], []
        for image, others in zip(images, index[:, 1:].split(self.batch), strict=True):
            asked, *shots = (image.to(device).float() / 255).unflatten(0, (-1, 1 + self.shots)).unbind(1)
            support = net.support(torch.stack(shots, 1), places[others].to(device), crops.conf[others].to(device))
            seen.append(net.predict(asked, support)[0].cpu())
            marked.append(support.known.prod(1).cpu() > 0)
        predicted = apply(invert(crops.base), torch.cat(seen).to(crops.base.dtype))
        return self._figures(predicted.float(), torch.cat(marked))

    def _figures(self, predicted: Float[Tensor, "N J 2"], marked: Tensor) -> dict[str, float]:
        crops, joints = self.validation, self.validation.joints
        truth, counted = crops.xy, (crops.conf > 0) & marked
        size = torso_size(truth, joints)
        ends = joints.indices(("left_shoulder", "right_hip"))
        counted = counted & ((crops.conf[:, ends] > 0).all(-1) & (size > 0))[:, None]
        new = torch.tensor([name in self.held_out for name in joints.names])
        names = {"PCK@0.2, learnt": ~new} | ({"PCK@0.2, new": new} if self.held_out else {})
        figures = {}
        for name, which in names.items():
            mask = counted & which
            if not mask.any():
                raise InputError(f"no joint of the {len(crops)} people to score counts in {name}")
            figures[name] = pck(predicted, truth, mask, size.clamp_min(1e-6), 0.2)[1].item()
        first = "PCK@0.2, new" if self.held_out else "PCK@0.2, learnt"
        return {f"1 - {first}": 1 - figures[first]} | figures


@dataclass(frozen=True)
class POMNetRun:
    """Everything that one training of POMNet depends on; a file in `configs/` gives one as `run`."""

    data: PhotoSet
    net: Callable[[], POMNet]
    plan: Plan
    batch: int
    shots: int = 1
    choose: int = 6
    held_out: tuple[str, ...] = ()
    augment: Augmentation = POMNET_TRAINING
    steps: int | None = None
    workers: int | None = None  # None: as many as there are cores to spare, at most 8
    memory: float = 4.0  # GB that photos may take

    def task(self, path: Path | None, device: torch.device) -> POMNetTask:
        """Read the annotations, and the photos if they fit, and build the network. InputError if something is missing."""
        (training, learnt), (validation, held_out) = self.data.open(path)
        torch.manual_seed(self.plan.seed)
        net = self.net().to(device)
        reach = self.data.reach(self.augment)
        places = net.codec.places
        cut = lambda people, rows, reach: Crops(people, rows, self.data, net.size, places, reach, self.memory)
        return POMNetTask(
            net,
            cut(training, learnt, reach),
            cut(validation, held_out, 1.0),
            self.batch,
            self.shots,
            self.choose,
            self.held_out,
            self.augment,
            self.steps,
            processes(self.workers),
        )
