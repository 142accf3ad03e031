"""How regressors of one person's 3D joints from a crop are trained and scored, and what a config says.

Crops are cut from the photos anew for each epoch, moved and coloured by `augment.Augmentation`. What a movement does to the
image's plane it does to the pose too: turning a photo about the camera's axis turns the pose about it, and a mirrored photo shows
the mirrored pose. For a crop away from the middle that is exact as well, because a crop does not say where in the photo it was cut.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.utils.data import Dataset

from body3d.augment import Augmentation, Colours
from body3d.codecs.base import Size
from body3d.crop import apply
from body3d.errors import InputError
from body3d.images import warp_crop
from body3d.learn.begin import Start, begin_from
from body3d.learn.crops import compose, processes
from body3d.learn.loading import load_crops
from body3d.learn.pose3d_data import People3D, Photos, Source3D
from body3d.metrics.mpjpe import mpjpe, pa_mpjpe
from body3d.nets.efficientnet_lite import EfficientNetLite
from body3d.nets3d.regressors import Regressor, RootFinder, SceneRegressor
from body3d.nets3d.views import Regressed, Target, View, crop_views
from body3d.nets3d.volumetric import limb_lengths
from body3d.skeletons import H36M17, JointSet
from body3d.train import Plan, Task, read_checkpoint, weights_in
from body3d.types import Keypoints2D
from body3d.view.draw import draw_keypoints
from body3d.view.plot import skeleton_views
from body3d.view.sides import contact_sheet

__all__ = [
    "CROP_TRAINING", "RENDERED_TRAINING", "ROOT_TRAINING", "RegressRun", "RegressTask", "begin", "crop_views_of", "moved",
    "mpjpe_figures", "parameter_groups", "regress_people", "turned",
]  # fmt: skip

# 3DMPPE's: scale 0.25, rotation 30 degrees in 60 % of cases, each channel by its own factor of 0.8 to 1.2. RootNet's crops are not
# scaled: it would make k wrong.
CROP_TRAINING = Augmentation(
    scale=0.25,
    rotation=np.radians(30),
    half_body=None,
    colours=Colours(brightness=0.0, contrast=0.0, saturation=0.0, channel=0.2),
)
ROOT_TRAINING = replace(CROP_TRAINING, scale=0.0)
# Rendered people come from cameras of all kinds already: a little movement keeps crops from being learnt by heart.
RENDERED_TRAINING = replace(CROP_TRAINING, scale=0.1, rotation=0.0, colours=Colours())
MM = 1000.0
SHOWN, TILE, TITLE = 8, 256, 72


class Batch(NamedTuple):
    image: Float[Tensor, "B 3 h w"]
    k: Float[Tensor, " B"]
    target: Target


# ---- crops ---------------------------------------------------------------------------------------------------------
class _Cut(Dataset):
    def __init__(self, photos: Photos, size: Size):
        self.photos, self.size = photos, size

    def __getitem__(self, asked: tuple[int, Float[Tensor, "2 3"]]) -> UInt8[Tensor, "3 h w"]:
        i, matrix = asked
        return torch.from_numpy(warp_crop(self.photos[i], matrix.numpy(), self.size)).permute(2, 0, 1)


def cut(
    photos: Photos, of: Int[Tensor, " N"], matrix: Float[Tensor, "N 2 3"], size: Size, batch: int, workers: int = 0
) -> Iterator[UInt8[Tensor, "B 3 h w"]]:
    """Batches of crops of `size`, cut from photos `of` by `matrix` (from pixels of the photo), by so many processes."""
    return load_crops(_Cut(photos, size), of, matrix, batch, workers)


def crop_views_of(people: People3D, rows: Int[Tensor, " N"], size: Size) -> View:
    return crop_views(people.boxes[rows], people.K[rows], people.size[rows], size)


def turned(xyz: Float[Tensor, "B J 3"], matrix: Float[Tensor, "B 2 3"]) -> Float[Tensor, "B J 3"]:
    """Poses (from anywhere on the camera's axis) as they are in an image that was turned, mirrored or scaled by `matrix`."""
    linear = matrix[..., :2]
    turn = linear / torch.linalg.det(linear).abs().sqrt()[:, None, None]
    return torch.cat([xyz[..., :2] @ turn.mT, xyz[..., 2:]], -1)


def moved(
    people: People3D, rows: Int[Tensor, " N"], view: View, size: Size, augment: Augmentation | None,
    random: torch.Generator | None = None,
) -> tuple[Float[Tensor, "N 2 3"], Target]:  # fmt: skip
    """The maps from photos to crops of those people, augmented if asked for, and what is true in them."""
    joints = people.joints
    root = joints.parents.index(-1)
    xyz, conf3d = people.xyz[rows] - people.xyz[rows][:, [root]], people.conf3d[rows]
    # What is known in space is known in the crop, also where the crop reaches beyond the photo.
    known = people.has_depth[rows][:, None] & (conf3d > 0)
    xy, conf = apply(view.to_crop, people.xy[rows]), torch.where(known, 1.0, people.conf[rows])
    matrix = view.to_crop
    if augment is not None:
        by, flipped = augment.matrix(xy, conf, joints, size, random)
        matrix, xy, xyz = compose(by, matrix), apply(by, xy), turned(xyz, by)
        other = list(joints.flip)
        swap = lambda x: torch.where(flipped.view(-1, *(1 for _ in x.shape[1:])), x[:, other], x)
        xy, conf, xyz, conf3d = swap(xy), swap(conf), swap(xyz), swap(conf3d)
    inside = ((xy >= -0.5) & (xy < xy.new_tensor(size[::-1]) - 0.5)).all(-1)
    return matrix, Target(xy, conf * inside, xyz, conf3d, people.has_depth[rows], people.xyz[rows, root, 2])


# ---- the task ------------------------------------------------------------------------------------------------------
class RegressTask(Task):
    """A `Regressor` or a `RootFinder` on crops. Of several training sets each gives an equal share of every batch; an epoch goes
    through the first once (or is `steps` batches). `true_depth`: validation tells the network how far away roots are."""

    main = "net"

    def __init__(
        self,
        net: Regressor | RootFinder,
        training: Sequence[People3D],
        validation: People3D,
        batch: int,
        augment: Augmentation = CROP_TRAINING,
        steps: int | None = None,
        workers: int = 0,
        true_depth: bool = False,
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
        self.batch, self.augment, self.workers, self.true_depth = batch, augment, workers, true_depth
        self._share = batch // len(training)
        self._steps = max(1, min(steps or len(training[0]), len(training[0]) // self._share))
        known = training[0].xyz[training[0].has_depth]
        relative = known - known[:, [net.root]]
        self.mean_pose = relative.mean(0)
        if isinstance(net, Regressor):
            net.lengths.copy_(limb_lengths(relative, net.joints).mean(0))

    def steps(self) -> int:
        return self._steps

    def batches(self, epoch: int, random: torch.Generator) -> Iterator[Batch]:
        sets = [self._part(people, random) for people in self.training]
        for parts in zip(*sets, strict=True):
            yield _joined(parts)

    def _part(self, people: People3D, random: torch.Generator) -> Iterator[Batch]:
        """This set's share of each batch of an epoch; a set that is too small is gone through several times."""
        device, wanted = random.device, self._steps * self._share
        rounds = -(-wanted // len(people))
        order = torch.cat([torch.randperm(len(people), generator=random, device=device) for _ in range(rounds)])
        rows = order[:wanted].cpu()
        size = self.net.size
        here = people.map(lambda t: t[rows].to(device))
        every = torch.arange(wanted, device=device)
        view = crop_views_of(here, every, size)
        matrix, target = moved(here, every, view, size, self.augment, random)
        images = cut(people.photos, people.of[rows], matrix, size, self._share, self.workers)
        for k, image in enumerate(images):
            part = slice(k * self._share, (k + 1) * self._share)
            image = image.to(device).float() / 255
            for change in (self.augment.colours, self.augment.drop):
                if change is not None:
                    image = change(image, random)
            yield Batch(image, view.k[part], target[part])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.net.loss(self.modules["net"](batch.image, batch.k), batch.target)}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Root-relative errors, on plain crops around true boxes. RootNet: errors of the root."""
        people = self.validation
        if isinstance(model, RootFinder):
            roots, k = root_people(model, people, self.batch, self.workers)
            truth = people.xyz[:, model.root]
            depth = lambda z: MM * (z - truth[:, 2]).abs().mean().item()
            return {
                "root depth error mm": depth(roots[:, 2]),
                "root error mm": MM * (roots - truth).norm(dim=-1).mean().item(),
                "depth error of k alone mm": depth(k),
            }
        assert isinstance(model, Regressor)
        depth = people.xyz[:, model.root, 2] if self.true_depth else None
        found = regress_people(model, people, self.batch, self.workers, depth)
        return mpjpe_figures(found.xyz, people, self.mean_pose)

    def picture(self, model: nn.Module) -> UInt8[np.ndarray, "H W 3"] | None:
        """Some people of the validation set: joints in the crop, and from two sides what is said beside what is true."""
        if not isinstance(model, Regressor):
            return None
        people = self.validation
        rows = torch.linspace(0, len(people) - 1, min(SHOWN, len(people))).long()
        some = people[rows]
        every = torch.arange(len(rows))
        view = crop_views_of(some, every, model.size)
        found = regress_people(model, some, self.batch)
        images = torch.cat(list(cut(some.photos, some.of, view.to_crop, model.size, len(rows))))
        xy = apply(view.to_crop, found.xy)
        larger, tiles = TILE / model.size[0], {}
        for n, image in enumerate(images):
            large = warp_crop(image.permute(1, 2, 0).numpy(), np.array([[larger, 0, 0], [0, larger, 0]]), (TILE, TILE))
            drawn = draw_keypoints(large, Keypoints2D(larger * xy[n], torch.ones(xy.shape[1]), model.joints))
            truth = some.xyz[n] - some.xyz[n, model.root]
            sides = [skeleton_views(pose, model.joints, TILE) for pose in (found.xyz[n], truth)]
            high = max(side.shape[0] for side in sides)
            padded = np.full((high, TILE, 3), 255, np.uint8)
            padded[:TILE] = drawn
            row = np.concatenate([padded, *sides], 1)
            title = np.full((TITLE, row.shape[1], 3), 255, np.uint8)
            tiles[f"person {int(rows[n])}: found, true"] = np.concatenate([title, row])
        return contact_sheet(tiles, columns=2)

    def groups(self, name: str) -> list[dict[str, Any]]:
        return parameter_groups(self.modules[name])


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Biases and norms do not decay."""
    parameters = list(module.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _joined(parts: Sequence[Batch]) -> Batch:
    target = Target(*(torch.cat(same) for same in zip(*(vars(p.target).values() for p in parts), strict=True)))
    return Batch(torch.cat([p.image for p in parts]), torch.cat([p.k for p in parts]), target)


# ---- use on people with true boxes ---------------------------------------------------------------------------------
def _crops(
    model: Regressor | RootFinder, people: People3D, batch: int, workers: int
) -> Iterator[tuple[Float[Tensor, "B 3 h w"], View, slice]]:
    device = next(model.parameters()).device
    view = crop_views_of(people, torch.arange(len(people)), model.size)
    for k, image in enumerate(cut(people.photos, people.of, view.to_crop, model.size, batch, workers)):
        part = slice(k * batch, (k + 1) * batch)
        yield image.to(device).float() / 255, view[part].to(device), part


def regress_people(
    model: Regressor, people: People3D, batch: int = 32, workers: int = 0, depth: Float[Tensor, " P"] | None = None,
    flip: bool = False,
) -> Regressed:  # fmt: skip
    """Everybody, on the CPU. `depth`: the roots', if the network is to be told."""
    parts = []
    for image, view, part in _crops(model, people, batch, workers):
        told = None if depth is None else depth[part].to(image)
        parts.append(model.regress(image, view, told, flip).to("cpu"))
    return Regressed(*(torch.cat(same) for same in zip(*(vars(p).values() for p in parts), strict=True)))


def root_people(
    model: RootFinder, people: People3D, batch: int = 32, workers: int = 0
) -> tuple[Float[Tensor, "P 3"], Float[Tensor, " P"]]:
    """Everybody's root (m, camera's frame) and k (m), on the CPU."""
    roots, k = [], []
    for image, view, _ in _crops(model, people, batch, workers):
        roots.append(model.find(image, view).cpu())
        k.append(view.k.cpu())
    return torch.cat(roots), torch.cat(k)


def mpjpe_figures(xyz: Float[Tensor, "P J 3"], people: People3D, mean_pose: Float[Tensor, "J 3"]) -> dict[str, float]:
    """Millimetres over the joints that are known: root-relative, after a similarity, and of the mean training pose."""
    root = people.joints.parents.index(-1)
    truth = people.xyz - people.xyz[:, [root]]
    mean = lambda error: MM * error.nanmean().item()
    return {
        "MPJPE mm": mean(mpjpe(xyz - xyz[:, [root]], truth, people.conf3d)),
        "PA-MPJPE mm": mean(pa_mpjpe(xyz, truth, people.conf3d)),
        "MPJPE of the mean pose mm": mean(mpjpe(mean_pose.expand_as(truth), truth, people.conf3d)),
    }


# ---- what a config says --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class RegressRun:
    """Everything that one training run of a regressor on crops depends on; a file in `configs/` gives one as `run`."""

    data: Source3D
    net: Callable[[JointSet], Regressor | RootFinder]
    plan: Plan
    batch: int
    joints: JointSet = H36M17
    augment: Augmentation = CROP_TRAINING
    steps: int | None = None  # batches per epoch; None: everybody once
    workers: int | None = 0  # processes that cut crops; None: as many as there are cores to spare, at most 8
    start: Start | None = None  # weights to begin from (`begin`)
    true_depth: bool = False  # validation tells how far away roots are, as PoseNet's own does
    frozen: int = 5  # blocks of an EfficientNet-Lite0 that stay as they began

    def task(self, path: Path | None, device: torch.device) -> RegressTask:
        """Build the network and open the data (rendering what is not rendered yet). InputError if something is missing."""
        torch.manual_seed(self.plan.seed)
        net = self.net(self.joints)
        if self.start is not None:
            begin(net, self.start, self.frozen)
        path = path or Path(self.data.home)
        training = [part.convert(self.joints) for part in self.data.training(path)]
        validation = self.data.validation(path).convert(self.joints)
        workers = processes(self.workers)
        return RegressTask(
            net.to(device), training, validation, self.batch, self.augment, self.steps, workers, self.true_depth
        )


def begin(net: Regressor | RootFinder | SceneRegressor, start: Start, frozen: int = 5) -> None:
    """Weights of a training of the same network (`best.pt` or `last.pt`; a convolutional one may have seen crops of another size),
    or of a trunk (`begin_from`); either way the first `frozen` blocks of an EfficientNet-Lite0 are frozen. InputError if they are
    of another."""
    path = start if isinstance(start, Path) else start()
    if not path.is_file():
        raise InputError(
            f"{path}: there is no such checkpoint to begin from; run the training that writes it, or give another as --start"
        )
    model = weights_in(read_checkpoint(path))
    ours = net.get_extra_state()
    if _without_size(model.get("_extra_state")) == _without_size(ours):
        try:
            net.load_state_dict({**model, "_extra_state": ours})
        except RuntimeError as error:
            raise InputError(f"{path} holds another network: {_first_reason(error)}") from error
    else:
        begin_from(net, path)
    for part in net.modules():
        if isinstance(part, EfficientNetLite):
            part.freeze(frozen)


def _without_size(state: Any) -> Any:
    return {name: value for name, value in state.items() if name != "size"} if isinstance(state, dict) else state


def _first_reason(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()[:200]
