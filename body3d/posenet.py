"""A network, the codec that reads it, and the joints that it speaks of: crop in, keypoints out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from body3d.checkpoints import filled, load_headed
from body3d.codecs import Codec, Mirrors, Size
from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.types import Keypoints2D

__all__ = [
    "IMAGENET", "PLAIN", "UNIT", "Headed", "Normalise", "PoseNet", "Trunk", "check_size", "evaluating", "fused", "loaded",
    "of_maps", "on_trunk",
]  # fmt: skip


@runtime_checkable
class Trunk(Protocol):
    """A network that a codec's head can be put on: called with images (B, 3, H, W), it gives one feature map per stage that is
    supervised, each with `channels` channels, in a list."""

    channels: int

    def __call__(self, image: Float[Tensor, "B 3 H W"], /) -> list[Tensor]: ...


class Headed(nn.Module):
    """A trunk whose stages all go through one head."""

    def __init__(self, trunk: nn.Module, head: nn.Module):
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Any]:
        return [self.head(features) for features in self.trunk(image)]


@dataclass(frozen=True)
class Normalise:
    """From RGB in 0..1 to what a network was trained on: (`scale` x - `mean`) / `std` per channel, in its order of channels."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool = False
    scale: float = 1.0

    def __call__(self, image: Float[Tensor, "*B 3 H W"]) -> Float[Tensor, "*B 3 H W"]:
        mean, std = (image.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (self.scale * (image.flip(-3) if self.bgr else image) - mean) / std


IMAGENET = Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
UNIT = Normalise((0.5, 0.5, 0.5), (1.0, 1.0, 1.0))  # -0.5..0.5
PLAIN = Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # 0..1


class PoseNet(nn.Module):
    """`net(image)` gives one raw output per supervised stage; the last one is the answer.

    Images are crops of `size` (height, width), RGB in 0..1; keypoints are in pixels of the crop, centres at the integers.
    """

    def __init__(self, net: nn.Module, codec: Codec, joints: JointSet, size: Size, normalise: Normalise = IMAGENET):
        super().__init__()
        self.net, self.codec, self.joints, self.size, self.normalise = net, codec, joints, size, normalise

    def forward(self, image: Float[Tensor, "B 3 H W"], teacher: Keypoints2D | None = None) -> list[Any]:
        """`teacher`: the truth, in training, for networks that look at it while they predict (`nets.chained`)."""
        return self.net(self._prepared(image))

    def _prepared(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        check_size(image, self.size)
        return self.normalise(image)

    def loss(self, image: Float[Tensor, "B 3 H W"], target: Keypoints2D) -> Float[Tensor, ""]:
        """What `loss_of` makes of the crops' outputs. InputError if the target's joints are not the network's."""
        self.check_joints(target)
        return self.loss_of(self(image, target), target)

    def loss_of(self, raws: list[Any], target: Keypoints2D) -> Float[Tensor, ""]:
        """Of what `forward` gave with the target as its teacher: the mean over the stages. A joint whose `conf` is 0 teaches
        nothing."""
        return torch.stack([self.codec.loss(raw, target.xy, target.conf, self.size) for raw in raws]).mean()

    def check_joints(self, target: Keypoints2D) -> None:
        """InputError unless the target's joints are the network's."""
        if target.joints != self.joints:
            raise InputError(
                f"this network speaks of {self.joints.name}, the targets are {target.joints.name}: convert them "
                "(Keypoints2D.convert)"
            )

    @torch.no_grad()
    def predict(self, image: Float[Tensor, "B 3 H W"], flip: bool = False) -> Keypoints2D:
        """The keypoints of each crop.

        With `flip`, the mean of what the crop and its mirror image say: of the maps where the codec can turn them back, else of the
        coordinates.
        """
        raw = self(image)[-1]
        if not flip:
            return Keypoints2D(*self.codec.decode(raw, self.size), self.joints)
        other = self(image.flip(-1))[-1]
        if isinstance(self.codec, Mirrors):
            merged = _mean(raw, self.codec.mirror(other, self.joints.flip))
            return Keypoints2D(*self.codec.decode(merged, self.size), self.joints)
        xy, conf = self.codec.decode(raw, self.size)
        turned_xy, turned_conf = self._turned_back(*self.codec.decode(other, self.size))
        return Keypoints2D((xy + turned_xy) / 2, (conf + turned_conf) / 2, self.joints)

    def _turned_back(self, xy: Float[Tensor, "B J 2"], conf: Float[Tensor, "B J"]) -> tuple[Tensor, Tensor]:
        """Keypoints of the mirrored crop as those of the crop."""
        order: Sequence[int] = self.joints.flip
        x, y = xy[:, order].unbind(-1)
        return torch.stack([self.size[1] - 1 - x, y], -1), conf[:, order]


def check_size(image: Float[Tensor, "*B 3 H W"], size: Size) -> None:
    """InputError unless images are of `size` (height, width)."""
    if tuple(image.shape[-2:]) != size:
        raise InputError(
            f"this network sees crops of {size[0]} x {size[1]} pixels (height x width), got {image.shape[-2]} x "
            f"{image.shape[-1]}: warp the image to that size"
        )


def _mean(a: Any, b: Any) -> Any:
    """Of two tensors, or of two (named) tuples of tensors, entry by entry."""
    if isinstance(a, Tensor):
        return (a + b) / 2
    entries = [(x + y) / 2 for x, y in zip(a, b, strict=True)]
    return type(a)(*entries) if hasattr(a, "_fields") else tuple(entries)


def on_trunk(trunk: nn.Module, codec: Codec, joints: JointSet, size: Size, normalise: Normalise = IMAGENET) -> PoseNet:
    """`PoseNet` of a `Trunk` and the codec's own head."""
    if not isinstance(trunk, Trunk):
        raise InputError(f"{type(trunk).__name__} is no trunk: it has no `channels`")
    return PoseNet(Headed(trunk, codec.head(trunk.channels, len(joints), size)), codec, joints, size, normalise)


def of_maps(net: nn.Module, codec: Codec, joints: JointSet, size: Size, normalise: Normalise = IMAGENET) -> PoseNet:
    """`PoseNet` of a network that gives one map per joint by itself. InputError for a codec that reads anything else."""
    with torch.device("meta"):
        head = codec.head(1, len(joints), size)
    if not (isinstance(head, nn.Conv2d) and head.out_channels == len(joints)):
        raise InputError(
            f"{type(net).__name__} gives one map per joint, {type(codec).__name__} reads something else: take a codec of "
            "maps such as Heatmap or DSNT, or put this one on a trunk (on_trunk)"
        )
    return PoseNet(net, codec, joints, size, normalise)


def loaded(
    net: PoseNet,
    weights: Path | str | None,
    rename: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] | None = None,
) -> PoseNet:
    """`net` with the weights of a checkpoint, in eval mode; as it is where `weights` is None.

    `rename` turns published names into those of `net.net`. Without it they are this project's or, of a trunk with a head, all that
    `load_headed` knows. InputError as of `load_into`.
    """
    if weights is None:
        return net
    if rename is None and isinstance(net.net, Headed):
        load_headed(net.net, weights)
    else:
        own = lambda state: {key.removeprefix("net."): value for key, value in state.items()}
        filled(net.net, weights, own if rename is None else lambda state: rename(own(state)))
    return net.eval()


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """In eval mode, and then as it was: what is found must not depend on a batch, nor move the means of batch norms."""
    training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(training)


# ---- prediction alone ----------------------------------------------------------------------------------------------
@torch.no_grad()
def fused(net: PoseNet) -> PoseNet:
    """A copy in eval mode that gives the same numbers, to rounding, in less time, and can neither be trained nor saved.

    Batch norms that read a convolution are folded into it, and convolutions keep their channels together in memory.
    """
    faster = deepcopy(net).eval()
    modules = dict(faster.named_modules())
    for conv_name, norm_name in _folds(net):
        conv, norm = modules[conv_name], modules[norm_name]
        whole = fuse_conv_bn_eval(conv, norm, isinstance(conv, nn.ConvTranspose2d))  # type: ignore[arg-type]
        faster.set_submodule(conv_name, whole)
        faster.set_submodule(norm_name, nn.Identity())
    return faster.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _folds(net: PoseNet) -> list[tuple[str, str]]:
    """Names of the convolutions and of the batch norms that read them, seen on an image without content.

    Only where both are used once. That nothing else reads the convolution is not seen: in no network here does anything.
    """
    empty = {id(t): t.detach().to("meta") for t in (*net.parameters(), *net.buffers())}
    shadow = deepcopy(net, empty).eval()
    made: list[tuple[str, Tensor]] = []
    read: list[tuple[str, Tensor]] = []
    for name, module in shadow.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(lambda *call, name=name: made.append((name, call[-1])))
        elif isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda *call, name=name: read.append((name, call[-1][0])))
    dtype = next(p.dtype for p in net.parameters())
    shadow(torch.empty(1, 3, *net.size, device="meta", dtype=dtype))
    conv_names, norm_names = ([name for name, _ in seen] for seen in (made, read))
    makers = {id(output): name for name, output in made}  # `made` keeps them alive: no id is given twice
    pairs = [(makers[id(x)], name) for name, x in read if id(x) in makers]
    return [(conv, norm) for conv, norm in pairs if conv_names.count(conv) == norm_names.count(norm) == 1]
