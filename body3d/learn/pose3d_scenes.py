"""How ORPM, which sees whole images with several people, is trained and scored, and what a config says."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from body3d.augment import Augmentation
from body3d.codecs.base import Size
from body3d.crop import apply
from body3d.errors import InputError
from body3d.learn.begin import Start
from body3d.learn.crops import compose, processes
from body3d.learn.pose3d import CROP_TRAINING, MM, begin, cut, parameter_groups, turned
from body3d.learn.pose3d_data import Mixed, People3D, RenderedScenes, Source3D
from body3d.metrics.mpjpe import mpjpe, pa_mpjpe
from body3d.nets3d.orpm import ORPMMaps
from body3d.nets3d.regressors import SceneRegressor
from body3d.nets3d.views import Regressed, scene_views
from body3d.skeletons import MUPOTS17, JointSet
from body3d.train import Plan, Task

__all__ = ["Found", "SceneRun", "SceneTask", "find_in_images", "matched"]

SCENE_TRAINING = replace(CROP_TRAINING, rotation=CROP_TRAINING.rotation / 2)
NEAR = 0.5  # two people are the same if their joints in the image lie, on average, within this share of the true box's longer side


class SceneBatch(NamedTuple):
    image: Float[Tensor, "B 3 h w"]
    maps: ORPMMaps
    written: Bool[Tensor, "B J h w"]
    has_depth: Bool[Tensor, " B"]
    known: Bool[Tensor, "B J"]  # joints that the set of the image has


class SceneTask(Task):
    """A `SceneRegressor` on whole images; several sets as in `RegressTask`."""

    main = "net"

    def __init__(
        self,
        net: SceneRegressor,
        training: Sequence[People3D],
        validation: People3D,
        batch: int,
        augment: Augmentation = CROP_TRAINING,
        steps: int | None = None,
        workers: int = 0,
    ):
        for people in (*training, validation):
            if people.joints != net.joints:
                raise InputError(
                    f"this network speaks of {net.joints.name}, the data's joints are {people.joints.name}"
                )
        if batch % len(training):
            raise InputError(f"a batch of {batch} cannot be shared by {len(training)} sets")
        self.modules = nn.ModuleDict({"net": net})
        self.net, self.training, self.validation = net, training, validation
        self.batch, self.augment, self.workers = batch, augment, workers
        self._share = batch // len(training)
        self._steps = max(1, min(steps or len(training[0].photos), len(training[0].photos) // self._share))
        known = training[0].xyz[training[0].has_depth]
        self.mean_pose = (known - known[:, [net.root]]).mean(0)

    def steps(self) -> int:
        return self._steps

    def batches(self, epoch: int, random: torch.Generator) -> Iterator[SceneBatch]:
        for parts in zip(*(self._part(people, random) for people in self.training), strict=True):
            image, maps, written, has_depth, known = zip(*parts, strict=True)
            yield SceneBatch(
                torch.cat(image),
                ORPMMaps(*(torch.cat(same) for same in zip(*maps, strict=True))),
                torch.cat(written),
                torch.cat(has_depth),
                torch.cat(known),
            )

    def _part(self, people: People3D, random: torch.Generator) -> Iterator[SceneBatch]:
        device, wanted = random.device, self._steps * self._share
        photos, first = _photos(people)
        rounds = -(-wanted // len(photos))
        order = torch.cat([torch.randperm(len(photos), generator=random, device=device) for _ in range(rounds)])[
            :wanted
        ].cpu()
        one = first[order]
        views = scene_views(people.K[one], people.size[one], self.net.size)
        nothing = torch.zeros(wanted, len(people.joints), 2, device=device)
        by, flipped = self.augment.matrix(nothing, nothing[..., 0], people.joints, self.net.size, random)
        matrix = compose(by.cpu(), views.to_crop)
        known = (people.conf > 0).any(0).to(device)
        known = torch.where(flipped[:, None], known[list(people.joints.flip)], known)
        images = cut(people.photos, photos[order], matrix, self.net.size, self._share, self.workers)
        for k, image in enumerate(images):
            chosen = range(k * self._share, (k + 1) * self._share)
            image = image.to(device).float() / 255
            for change in (self.augment.colours, self.augment.drop):
                if change is not None:
                    image = change(image, random)
            said = [
                self.net.maps(*_there(people[(people.of == photos[order[n]]).nonzero()[:, 0]].map(lambda t: t.to(device)),
                                      matrix[n].to(device), by[n], bool(flipped[n]), self.net.size))
                for n in chosen
            ]  # fmt: skip
            maps = ORPMMaps(*(torch.stack(same) for same in zip(*(m for m, _ in said), strict=True)))
            part = slice(chosen.start, chosen.stop)
            depth = people.has_depth[one[part]].to(device)
            yield SceneBatch(image, maps, torch.stack([written for _, written in said]), depth, known[part])

    def losses(self, batch: SceneBatch) -> dict[str, Tensor]:
        raw = self.modules["net"](batch.image)
        return self.net.loss(raw, batch.maps, batch.written, batch.has_depth, batch.known)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Of the people of whom half shows in the image: with the mean pose in the place of those who were missed, and of those
        who were found."""
        assert isinstance(model, SceneRegressor)
        people = self.validation
        counted = people[(people.visible.float().mean(1) >= 0.5).nonzero()[:, 0]]
        found = matched(find_in_images(model, people, self.batch, self.workers), counted)
        truth = counted.xyz - counted.xyz[:, [model.root]]
        filled = torch.where(found.known[:, None, None], found.xyz, self.mean_pose)
        error = MM * mpjpe(filled - filled[:, [model.root]], truth, counted.conf3d)
        mean = mpjpe(self.mean_pose.expand_as(truth), truth, counted.conf3d)
        known = found.known
        of_found = error[known].mean().item() if known.any() else MM * mean.mean().item()
        aligned = pa_mpjpe(filled[known], truth[known], counted.conf3d[known]) if known.any() else mean
        return {
            "MPJPE, mean pose if missed, mm": error.mean().item(),
            "MPJPE of found mm": of_found,
            "PA-MPJPE of found mm": MM * aligned.mean().item(),
            "found %": 100 * known.float().mean().item(),
            "MPJPE of the mean pose mm": MM * mean.mean().item(),
        }

    def groups(self, name: str) -> list[dict[str, Any]]:
        return parameter_groups(self.modules[name])


def _photos(people: People3D) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """The photos that show somebody, and the first row of each."""
    photos, counts = people.of.unique_consecutive(return_counts=True)
    return photos, counts.cumsum(0) - counts


def _there(
    people: People3D, matrix: Float[Tensor, "2 3"], by: Float[Tensor, "2 3"], flipped: bool, size: Size
) -> tuple[Float[Tensor, "N J 2"], Bool[Tensor, "N J"], Float[Tensor, "N J 3"]]:
    """Where the people of an image are in the moved one, which joints show, and their poses (camera's frame)."""
    xy = apply(matrix.expand(len(people), 2, 3), people.xy)
    xyz = turned(people.xyz, by.expand(len(people), 2, 3))
    visible = people.visible & ((xy >= -0.5) & (xy < xy.new_tensor(size[::-1]) - 0.5)).all(-1)
    if flipped:
        other = list(people.joints.flip)
        xy, xyz, visible = xy[:, other], xyz[:, other], visible[:, other]
    return xy, visible, xyz


# ---- use on images -------------------------------------------------------------------------------------------------
def find_in_images(model: SceneRegressor, people: People3D, batch: int = 8, workers: int = 0) -> dict[int, Regressed]:
    """Whom the network finds in each photo that shows any of `people`."""
    device = next(model.parameters()).device
    photos, first = _photos(people)
    views = scene_views(people.K[first], people.size[first], model.size)
    found: dict[int, Regressed] = {}
    for k, image in enumerate(cut(people.photos, photos, views.to_crop, model.size, batch, workers)):
        part = slice(k * batch, (k + 1) * batch)
        for photo, those in zip(
            photos[part].tolist(), model.regress(image.to(device).float() / 255, views[part].to(device)), strict=True
        ):
            found[photo] = those.to("cpu")
    return found


@dataclass(frozen=True)
class Found:
    """What was found of each true person."""

    xyz: Float[Tensor, "P J 3"]  # 0 where nobody was
    known: Bool[Tensor, " P"]


def matched(found: dict[int, Regressed], people: People3D) -> Found:
    """The nearest found person, in the image, of each true one: nearest pairs first, everybody once, none further than `NEAR`."""
    xyz, known = torch.zeros_like(people.xyz), torch.zeros(len(people), dtype=torch.bool)
    for photo in people.of.unique().tolist():
        rows = (people.of == photo).nonzero()[:, 0]
        those = found.get(photo)
        if those is None or not len(those.root):
            continue
        both = (people.conf[rows][:, None] > 0) & (those.conf[None] > 0)
        apart = (people.xy[rows][:, None] - those.xy[None]).norm(dim=-1)
        extent = (people.boxes[rows, 2:] - people.boxes[rows, :2]).amax(1)
        distance = (apart * both).sum(-1) / both.sum(-1).clamp_min(1) / extent[:, None]
        distance = torch.where(both.sum(-1) > 0, distance, torch.inf)
        while distance.numel() and distance.min() < NEAR:
            i, j = divmod(int(distance.argmin()), distance.shape[1])
            xyz[rows[i]], known[rows[i]] = those.xyz[j], True
            distance[i], distance[:, j] = torch.inf, torch.inf
    return Found(xyz, known)


# ---- what a config says --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class SceneRun:
    """Everything that one training run of a network on whole images depends on."""

    data: Source3D
    net: Callable[[JointSet], SceneRegressor]
    plan: Plan
    batch: int
    joints: JointSet = MUPOTS17
    augment: Augmentation = SCENE_TRAINING
    steps: int | None = None  # batches per epoch; None: all photos once
    workers: int | None = 0
    start: Start | None = None

    def task(self, path: Path | None, device: torch.device) -> SceneTask:
        """Build the network and open the data. InputError if something is missing."""
        torch.manual_seed(self.plan.seed)
        net = self.net(self.joints)
        if self.start is not None:
            begin(net, self.start)
        path = path or Path(self.data.home)
        source = self.data
        if isinstance(source, RenderedScenes):
            source = replace(source, least_seen=0.0)  # everybody in an image, hidden or not
        elif isinstance(source, Mixed) and isinstance(source.source, RenderedScenes):
            source = replace(source, source=replace(source.source, least_seen=0.0))
        training = [part.convert(self.joints) for part in source.training(path)]
        validation = source.validation(path).convert(self.joints)
        workers = processes(self.workers)
        return SceneTask(net.to(device), training, validation, self.batch, self.augment, self.steps, workers)
