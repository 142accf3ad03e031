"""PeCLR: a trunk learns from photos without labels, by telling two views of one from the views of all others.

Spurr, Dahiya, Wang, Zhang & Hilliges, "Self-supervised 3D hand pose estimation from monocular RGB via contrastive learning", ICCV
2021. What changes the look of a view must not change what the network says of it; what moves it must move that along. So a
projection is a set of points in the plane, and before two are compared each is moved back by its own view's shift and turn
(the survey writes one t_i for both). Scale is not undone: normalising takes it away.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.augment import Colours, Drop, Random
from body3d.codecs import Size
from body3d.crop import crop_matrix
from body3d.errors import InputError
from body3d.learn.crops import Crops, PhotoSet, compose, processes
from body3d.posenet import IMAGENET, Normalise, Trunk
from body3d.train import Plan, Task

__all__ = [
    "PeCLRRun", "PeCLRTask", "ProjectionHead", "ViewBatch", "Views", "nt_xent", "rotated", "similarity", "translated", "undone",
]  # fmt: skip

Points = Float[Tensor, "B M 2"]  # a projection: points in the plane, x right and y down as in the image


# ---- projections as points -----------------------------------------------------------------------------------------
def translated(points: Points, shift: Float[Tensor, "B 2"], scaled: bool = True) -> Points:
    """Moved by `shift` times what the points span in x and in y: a share of an image becomes one of the projection (section 3.3).

    Without `scaled`, by `shift` itself. No gradient passes through the span.
    """
    if scaled:
        shift = shift * (points.amax(1) - points.amin(1)).detach()
    return points + shift[:, None]


def rotated(points: Points, angle: Float[Tensor, " B"]) -> Points:
    """Turned about their mean by `angle` radians, counter-clockwise as seen (as `crop.crop_matrix` and OpenCV count).

    No gradient passes through the mean.
    """
    middle = points.mean(1, keepdim=True).detach()
    c, s = angle.cos(), angle.sin()
    turn = torch.stack([c, s, -s, c], -1).unflatten(-1, (2, 2))
    return (points - middle) @ turn.mT + middle


def undone(points: Points, shift: Float[Tensor, "B 2"], angle: Float[Tensor, " B"]) -> Points:
    """The projections of views that were turned by `angle` and then shifted by `shift` (share of the view), as before both.

    Normalised first, as released. Exact where a projection's points move with the image and have their mean where it is turned
    about, and the shift is a share of what they span; else near.
    """
    normal = F.normalize(points.flatten(1)).unflatten(1, (-1, 2))
    return rotated(translated(normal, -shift), -angle)


def similarity(first: Points, second: Float[Tensor, "N M 2"]) -> Float[Tensor, "B N"]:
    """The cosine of each with each."""
    return F.normalize(first.flatten(1)) @ F.normalize(second.flatten(1)).mT


def nt_xent(first: Points, second: Points, temperature: float = 0.5) -> Float[Tensor, ""]:
    """Normalised, temperature-scaled cross entropy: each of 2B views is to find its pair among the 2B - 1 others.

    Row i of `first` and of `second` are a pair. Chen et al., "SimCLR", ICML 2020.
    """
    both = torch.cat([first, second])
    alike = similarity(both, both) / temperature
    itself = torch.eye(len(both), dtype=torch.bool, device=both.device)
    pair = torch.arange(len(both), device=both.device).roll(len(first))
    return F.cross_entropy(alike.masked_fill(itself, -torch.inf), pair)


class ProjectionHead(nn.Module):
    """The mean of a feature map over the image, to `points` points: two linear layers; the release's 64 points from 512 numbers.

    The release has one more linear layer, to 512 numbers, in place of its ResNet's classifier.
    """

    def __init__(self, channels: int, points: int = 64, hidden: int = 512):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(channels, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 2 * points, bias=False)
        )

    def forward(self, features: Float[Tensor, "B C h w"]) -> Points:
        return self.layers(features.mean((-1, -2))).unflatten(1, (-1, 2))


# ---- views ---------------------------------------------------------------------------------------------------------
_COLOURS = Colours(0.4, 0.4, 0.4, 0.2)


@dataclass(frozen=True)
class Views:
    """How a view differs from the plain crop; all uniform. The release's ranges.

    Turned about the middle by up to +-`rotation` radians, showing `shown` times the crop's width, then shifted by up to +-`shift`
    of the view. `colours` and `drop` change its look; the release multiplies hue, saturation and value, which is not the same.
    """

    rotation: float = math.radians(45)
    shift: float = 15 / 128
    shown: tuple[float, float] = (0.72, 1.2)
    colours: Colours | None = _COLOURS
    drop: Drop | None = None

    def matrix(
        self, count: int, size: Size, random: torch.Generator
    ) -> tuple[Float[Tensor, "B 2 3"], Float[Tensor, "B 2"], Float[Tensor, " B"]]:
        """From pixels of the plain crop to those of a view, the shift (share of the view) and the angle (radians)."""
        height, width = size
        u = torch.rand(count, 4, generator=random, device=random.device)
        angle, shift = self.rotation * (2 * u[:, 0] - 1), self.shift * (2 * u[:, 2:] - 1)
        across = width * (self.shown[0] + (self.shown[1] - self.shown[0]) * u[:, 1])
        middle = u.new_tensor([(width - 1) / 2, (height - 1) / 2]).expand(count, 2)
        matrix = crop_matrix(middle, across, angle, size)
        moved = (shift * shift.new_tensor([width, height])).unsqueeze(-1)
        return torch.cat([matrix[..., :2], matrix[..., 2:] + moved], -1), shift, angle

    def look(self, image: Float[Tensor, "B 3 H W"], random: Random) -> Float[Tensor, "B 3 H W"]:
        for change in (self.colours, self.drop):
            if change is not None:
                image = change(image, random)
        return image


class ViewBatch(NamedTuple):
    """First views of B people, then second ones."""

    image: Float[Tensor, "2B 3 H W"]
    shift: Float[Tensor, "2B 2"]
    angle: Float[Tensor, " 2B"]


# ---- training ------------------------------------------------------------------------------------------------------
class PeCLRTask(Task):
    """A trunk with a projection head on crops whose joints are not looked at. An epoch is `steps` full batches (all, if None).

    What is kept is the trunk alone, in its own names: `PoseRun.start` takes best.pt of it where it takes a classifier's weights.
    """

    main = "trunk"

    def __init__(
        self,
        trunk: nn.Module,
        training: Crops,
        validation: Crops,
        batch: int,
        views: Views = Views(),
        points: int = 64,
        hidden: int = 512,
        temperature: float = 0.5,
        normalise: Normalise = IMAGENET,
        steps: int | None = None,
        workers: int = 0,
    ):
        if not isinstance(trunk, Trunk):
            raise InputError(f"{type(trunk).__name__} is no trunk: it has no `channels`")
        self.modules = nn.ModuleDict({"trunk": trunk, "projection": ProjectionHead(trunk.channels, points, hidden)})
        self.training, self.validation, self.batch, self.views = training, validation, batch, views
        self.temperature, self.normalise, self.workers = temperature, normalise, workers
        self._steps = max(1, min(steps or len(training), len(training) // batch))

    def steps(self) -> int:
        return self._steps

    def batches(self, epoch: int, random: torch.Generator) -> Iterator[ViewBatch]:
        order = torch.randperm(len(self.training), generator=random, device=random.device)
        return self._pairs(self.training, order[: self._steps * self.batch].cpu(), random)

    def _pairs(self, crops: Crops, order: Tensor, random: torch.Generator) -> Iterator[ViewBatch]:
        matrix, shift, angle = self.views.matrix(2 * len(order), crops.size, random)
        base = crops.base[order].to(random.device)
        first, second = (compose(part.to(base.dtype), base).cpu() for part in matrix.chunk(2))
        images = zip(
            crops.loader(order, first, self.batch, self.workers),
            crops.loader(order, second, self.batch, self.workers),
            strict=True,
        )
        paired = lambda x: [torch.cat(p) for p in zip(*(part.split(self.batch) for part in x.chunk(2)), strict=True)]
        for pair, moved, turned in zip(images, paired(shift), paired(angle), strict=True):
            image = torch.cat(pair).to(random.device).float() / 255
            yield ViewBatch(self.views.look(image, random), moved, turned)

    def losses(self, batch: ViewBatch) -> dict[str, Tensor]:
        first, second = self._projections(self.modules["trunk"], batch).chunk(2)
        return {"contrast": nt_xent(first, second, self.temperature)}

    def _projections(self, trunk: nn.Module, batch: ViewBatch) -> Points:
        points = self.modules["projection"](trunk(self.normalise(batch.image))[-1])
        return undone(points, batch.shift, batch.angle)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """On the same views of the held-out people each time: the loss by the batch, and how many first views have their own second
        one as the most similar among those of the batch."""
        device = next(model.parameters()).device
        random = torch.Generator(device).manual_seed(0)
        loss, found, count = 0.0, 0, 0
        for batch in self._pairs(self.validation, torch.arange(len(self.validation)), random):
            first, second = self._projections(model, batch).chunk(2)
            loss += len(first) * nt_xent(first, second, self.temperature).item()
            nearest = similarity(first, second).argmax(1)
            found += int((nearest == torch.arange(len(first), device=device)).sum())
            count += len(first)
        return {"contrast, held out": loss / count, "pairs found": found / count}


@dataclass(frozen=True)
class PeCLRRun:
    """Everything that one pretraining depends on; a file in `configs/` gives one as `run`."""

    data: PhotoSet
    trunk: Callable[[], nn.Module]
    plan: Plan
    batch: int
    size: Size = (128, 128)
    views: Views = Views()
    points: int = 64
    hidden: int = 512
    temperature: float = 0.5
    normalise: Normalise = IMAGENET
    steps: int | None = None
    workers: int | None = None  # None: as many as there are cores to spare, at most 8
    memory: float = 4.0  # GB that photos may take

    def task(self, path: Path | None, device: torch.device) -> PeCLRTask:
        """Read the boxes, and the photos if they fit, and build the networks. InputError if something is missing."""
        (training, learnt), (validation, held_out) = self.data.open(path)
        torch.manual_seed(self.plan.seed)
        trunk = self.trunk().to(device)
        reach = self.views.shown[1] + 2 * self.views.shift
        cut = lambda people, rows: Crops(people, rows, self.data, self.size, "pixel", reach, self.memory)
        return PeCLRTask(
            trunk,
            cut(training, learnt),
            cut(validation, held_out),
            self.batch,
            self.views,
            self.points,
            self.hidden,
            self.temperature,
            self.normalise,
            self.steps,
            processes(self.workers),
        )
