"""How networks from a crop to the 2D joints of one person are trained and scored, and what a config says."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from body3d.augment import COCO_TRAINING, Augmentation
from body3d.codecs import Places, SamplingArgmax
from body3d.crop import apply, invert
from body3d.datasets.mpii import MPII
from body3d.datasets.people import People, ScoredPeople
from body3d.errors import InputError
from body3d.geometry import rescale
from body3d.joint_set import JointSet
from body3d.learn.begin import Start, begin_from
from body3d.learn.crops import Crops, PhotoSet, compose, processes
from body3d.metrics.oks import Found, coco_ap
from body3d.metrics.pck import pck, torso_size
from body3d.posenet import PoseNet
from body3d.train import Plan, Task
from body3d.types import Keypoints2D
from body3d.view.draw import draw_keypoints
from body3d.view.sides import contact_sheet

__all__ = ["PoseRun", "PoseTask", "figures"]

NOT_COUNTED = ("pelvis", "thorax")  # of MPII's joints, in PCKh
SURE = 0.2  # joints whose confidence makes a person's score in COCO's AP (HRNet's)
SHOWN, TILE = 8, 256  # people in the picture, and how high their crops are, pixels


class Batch(NamedTuple):
    image: Float[Tensor, "B 3 H W"]
    target: Keypoints2D  # pixels of the crop


class PoseTask(Task):
    """A network on crops. An epoch is `steps` full batches of people drawn without replacement (all, if None).

    The samples of `SamplingArgmax` are drawn ever more sharply, epoch by epoch (`SamplingArgmax.at`).

    `clean`: for so many epochs the augmentation drops no information (AID's first stage). `layer_decay`: the learning rate of each
    block of a vision transformer is that of the next one times this.
    """

    main = "net"

    def __init__(
        self,
        net: PoseNet,
        training: Crops,
        validation: Crops,
        batch: int,
        augment: Augmentation = COCO_TRAINING,
        steps: int | None = None,
        flip_test: bool = True,
        clean: int = 0,
        layer_decay: float | None = None,
        workers: int = 0,
    ):
        for crops in (training, validation):
            if crops.joints != net.joints:
                raise InputError(
                    f"this network speaks of {net.joints.name}, the photos' joints are {crops.joints.name}"
                )
        self.modules = nn.ModuleDict({"net": net})
        self.size, self.joints = net.size, net.joints
        self.training, self.validation, self.batch, self.augment = training, validation, batch, augment
        self.flip_test, self.clean, self.layer_decay, self.workers = flip_test, clean, layer_decay, workers
        self._steps = max(1, min(steps or len(training), len(training) // batch))

    def steps(self) -> int:
        return self._steps

    @property
    def net(self) -> PoseNet:
        module = self.modules["net"]
        return cast(PoseNet, getattr(module, "module", module))  # as the loop may have wrapped it

    def batches(self, epoch: int, random: torch.Generator) -> Iterator[Batch]:
        if isinstance(self.net.codec, SamplingArgmax):
            self.net.codec = self.net.codec.at(epoch)
        crops, device = self.training, random.device
        order = torch.randperm(len(crops), generator=random, device=device)[: self._steps * self.batch].cpu()
        base, conf = crops.base[order].to(device), crops.conf[order].to(device)
        xy = apply(base, crops.xy[order].to(device))
        moved, flipped = self.augment.matrix(xy, conf, self.joints, self.size, random)
        xy = apply(moved, xy)
        other = list(self.joints.flip)
        xy = torch.where(flipped[:, None, None], xy[:, other], xy)
        conf = torch.where(flipped[:, None], conf[:, other], conf) * self._inside(xy)
        images = crops.loader(order, compose(moved, base).cpu(), self.batch, self.workers)
        for image, places, known in zip(images, xy.split(self.batch), conf.split(self.batch), strict=True):
            image = image.to(device).float() / 255
            if self.augment.colours is not None:
                image = self.augment.colours(image, random)
            if self.augment.drop is not None and epoch >= self.clean:
                image = self.augment.drop(image, random)
            yield Batch(image, Keypoints2D(places, known, self.joints))

    def _inside(self, xy: Float[Tensor, "N J 2"]) -> Tensor:
        """Joints that the crop does not show teach nothing, whatever the codec."""
        return ((xy >= -0.5) & (xy < xy.new_tensor(self.size[::-1]) - 0.5)).all(-1)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`PoseNet.loss`, but the network is called as the loop has wrapped it: so several processes share their gradients."""
        raws = self.modules["net"](batch.image, batch.target)
        return {"loss": self.net.loss_of(raws, batch.target)}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """On plain crops, in pixels of the photos, with the flip test if the run has it; see `figures`."""
        assert isinstance(model, PoseNet)
        crops = self.validation
        seen = self._predict(model, torch.arange(len(crops)))
        return figures(crops.people, crops.rows, replace(seen, xy=apply(invert(crops.base), seen.xy)))

    def _predict(self, model: PoseNet, index: Tensor) -> Keypoints2D:
        """In pixels of plain crops, on the CPU."""
        device = next(model.parameters()).device
        images = self.validation.loader(index, self.validation.base[index], self.batch, self.workers)
        parts = [
            model.predict(image.to(device).float() / 255, self.flip_test).to("cpu").to(torch.float) for image in images
        ]
        return Keypoints2D(torch.cat([p.xy for p in parts]), torch.cat([p.conf for p in parts]), self.joints)

    def picture(self, model: nn.Module) -> UInt8[np.ndarray, "H W 3"]:
        """People of the validation set: what the network says beside what is annotated."""
        assert isinstance(model, PoseNet)
        crops = self.validation
        index = torch.linspace(0, len(crops) - 1, min(SHOWN, len(crops))).long()
        seen = self._predict(model, index)
        true = Keypoints2D(apply(crops.base[index], crops.xy[index]), crops.conf[index], self.joints)
        images = torch.cat(list(crops.loader(index, crops.base[index], len(index), 0)))
        factor = max(1, round(TILE / self.size[0]))
        large = images.repeat_interleave(factor, -1).repeat_interleave(factor, -2).permute(0, 2, 3, 1).numpy()
        # Raw confidences of some codecs are far below 1: they are not shown.
        seen = replace(seen, conf=torch.ones_like(seen.conf))
        tiles = {}
        for k, i in enumerate(index.tolist()):
            pair = [
                draw_keypoints(large[k], replace(p[k], xy=rescale(p[k].xy, float(factor))), thickness=3.0)
                for p in (seen, true)
            ]
            tiles[crops.people.ids[crops.rows[i]][-24:]] = np.concatenate(pair, 1)
        return contact_sheet(tiles, columns=4)

    def groups(self, name: str) -> list[dict[str, Any]]:
        """Biases, norms, tables of positions and tokens do not decay; with `layer_decay`, a group for each depth and kind."""
        scales = layer_scales(self.modules[name], self.layer_decay)
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for key, parameter in self.modules[name].named_parameters():
            decays = parameter.ndim > 1 and not re.search(r"pos_embed$|_token$", key)
            groups.setdefault((scales[key], decays), []).append(parameter)
        return [
            {"params": parameters, "scale": scale} | ({} if decays else {"weight_decay": 0.0})
            for (scale, decays), parameters in groups.items()
        ]


def layer_scales(net: nn.Module, decay: float | None) -> dict[str, float]:
    """The factor of each parameter's learning rate: `decay` to the power of how many layers follow it.

    As ViTPose and MAE count: the patches and positions are layer 0, block i is layer i + 1, and all that follows is one more.
    """
    names = [name for name, _ in net.named_parameters()]
    if decay is None:
        return dict.fromkeys(names, 1.0)
    blocks = {name: int(found[1]) for name in names if (found := re.search(r"\bblocks\.(\d+)\.", name))}
    if not blocks:
        raise InputError(f"layer_decay is for vision transformers; {type(net).__name__} has no `blocks`")
    last = max(blocks.values()) + 2
    layer = {name: 0 if re.search("patch_embed|pos_embed", name) else blocks.get(name, last - 1) + 1 for name in names}
    return {name: decay ** (last - layer[name]) for name in names}


# ---- figures of merit ----------------------------------------------------------------------------------------------
def figures(people: People, rows: list[int], predicted: Keypoints2D) -> dict[str, float]:
    """What is usual on the set, for predictions (pixels of the photos) of the people `rows`; the first is 1 less the second.

    Sets scored by OKS: COCO's AP of annotated boxes. MPII with head sizes: PCKh without pelvis and thorax. Else PCK of the torso,
    of those whose left shoulder and right hip are annotated. InputError if nobody counts.
    """
    if isinstance(people, ScoredPeople) and people.joints.sigmas is not None:
        return _average_precision(people, rows, predicted)
    joints, truth, counted = people.joints, people.xy[rows].float(), people.labelled[rows].clone()
    if isinstance(people, MPII) and people.head_sizes is not None:
        counted[:, joints.indices(NOT_COUNTED)] = False
        name, reference, thresholds = "PCKh", people.head_sizes[rows].float(), (0.5, 0.1)
    else:
        ends = joints.indices(("left_shoulder", "right_hip"))
        known = people.labelled[rows][:, ends].all(-1)
        name, thresholds = "PCK", (0.2, 0.1)
        reference = torch.where(known, torso_size(truth, joints), torch.nan)
    counted &= (reference > 0)[:, None]
    if not counted.any():
        raise InputError(f"nobody of the {len(rows)} people to score has a reference for {name}; get {people.source}")
    values = {
        f"{name}@{t}": pck(predicted.xy, truth, counted, reference.nan_to_num(1.0), t)[1].item() for t in thresholds
    }
    return {f"1 - {name}@{thresholds[0]}": 1 - values[f"{name}@{thresholds[0]}"]} | values


def _average_precision(people: ScoredPeople, rows: list[int], predicted: Keypoints2D) -> dict[str, float]:
    """A person's score is the mean confidence of the joints that are sure, as HRNet's on annotated boxes."""
    photos = list(dict.fromkeys(people.photo_ids[row] for row in rows))
    found: dict[Any, list[Found]] = {photo: [] for photo in photos}
    sure = predicted.conf > SURE
    scores = (predicted.conf * sure).sum(-1) / sure.sum(-1).clamp_min(1)
    for row, xy, score in zip(rows, predicted.xy.double().numpy(), scores.tolist(), strict=True):
        found[people.photo_ids[row]].append(Found(xy, score))
    numbers = coco_ap([people.truth[photo] for photo in photos], [found[photo] for photo in photos], people.joints)
    return {"1 - AP": 1 - numbers["AP"]} | {name: numbers[name] for name in ("AP", "AP50", "AP75", "AR")}


# ---- what a config says --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class PoseRun:
    """Everything that one training run of a 2D network depends on; a file in `configs/` gives one as `run`."""

    data: PhotoSet
    net: Callable[[JointSet], PoseNet]
    plan: Plan
    batch: int
    augment: Augmentation = COCO_TRAINING
    clean: int = 0  # epochs before the augmentation's `drop` begins
    flip_test: bool = True
    layer_decay: float | None = None
    start: Start | None = None  # weights that the trunk begins from (`begin_from`)
    steps: int | None = None  # batches per epoch; None: all people once
    workers: int | None = None  # processes that make crops; None: as many as there are cores to spare, at most 8
    memory: float = 4.0  # GB that photos may take; sets that need more are read anew in every epoch

    def task(self, path: Path | None, device: torch.device) -> PoseTask:
        """Read the annotations, and the photos if they fit, and build the network. InputError if something is missing."""
        (training, learnt), (validation, held_out) = self.data.open(path)
        torch.manual_seed(self.plan.seed)
        net = self.net(training.joints).to(device)
        if self.start is not None:
            begin_from(net, self.start)
        places: Places = getattr(net.codec, "places", "pixel")
        reach = self.data.reach(self.augment)
        cut = lambda people, rows, reach: Crops(people, rows, self.data, net.size, places, reach, self.memory)
        return PoseTask(
            net,
            cut(training, learnt, reach),
            cut(validation, held_out, 1.0),
            self.batch,
            self.augment,
            self.steps,
            self.flip_test,
            self.clean,
            self.layer_decay,
            processes(self.workers),
        )
