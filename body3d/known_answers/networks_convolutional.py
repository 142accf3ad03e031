"""The convolutional networks for the 2D pose of one person that published ones answer for."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from body3d.checkpoints import to_headed
from body3d.codecs import Integral
from body3d.codecs.integral import flat_softmax
from body3d.codecs.pipnet import PIPHead
from body3d.known_answers.question import Network
from body3d.nets import resnet
from body3d.nets.cpm import CPM
from body3d.nets.hourglass import StackedHourglass, from_princeton
from body3d.nets.hrnet import hrnet_w32, hrnet_w48
from body3d.posenet import Headed

__all__ = ["NETWORKS"]


def _headed(net: nn.Module, run: Callable[[Tensor], list[Tensor]] | None = None) -> Network:
    """A trunk with a head; the file's names are those of its authors or mmpose's."""
    head = net.get_submodule("head")
    return Network(net, lambda state: to_headed(state, head), run or (lambda image: list(net(image))))


def _hrnet(system: str) -> Network:
    return _headed({"32": hrnet_w32, "48": hrnet_w48}[system[-2:]]().net)


def _simplebaseline(system: str) -> Network:
    return _headed(resnet.simplebaseline_r50().net)


def _simcc(system: str) -> Network:
    net = resnet.simcc_r50().net
    return _headed(net, lambda image: list(net(image)[-1]))


def _integral(system: str) -> Network:
    """mmpose's heads give the place in fractions of the map's width and height, and the map after the softmax."""
    net = resnet.ipr_r50().net

    def run(image: Tensor) -> list[Tensor]:
        maps = net(image)[-1]
        size = maps.new_tensor(maps.shape[:-3:-1])
        return [Integral().cells(maps) / size, flat_softmax(maps)]

    return _headed(net, run)


def _deeppose(system: str) -> Network:
    return _headed(resnet.deeppose_r50().net)


def _rle(system: str) -> Network:
    net = resnet.rle_r50().net

    def run(image: Tensor) -> list[Tensor]:
        raw = net(image)[-1]
        return [raw.xy, raw.sigma, 1 - raw.sigma.mean(-1, keepdim=True)]

    return _headed(net, run)


def _rle_mmpose(system: str) -> Network:
    trunk = resnet.resnet50()
    net = Headed(trunk, head := resnet.PlainRLEHead(trunk.channels, 17))
    return _headed(net, lambda image: [head.numbers(trunk(image)[-1])])


def _pipnet(system: str) -> Network:
    trunk = resnet.resnet18()
    net = Headed(trunk, PIPHead(trunk.channels, 98, 10))
    return _headed(net, lambda image: list(net(image)[-1]))


def _hourglass(system: str) -> Network:
    stacks = int(system.rpartition("_")[2])
    if system.startswith("hg_bearpaw"):
        return Network(StackedHourglass(stacks, 16))
    net = StackedHourglass(stacks, 16, princeton=True)
    return Network(net, from_princeton, lambda image: [torch.stack(net(image.permute(0, 3, 1, 2)), 1)])


def _cpm(system: str) -> Network:
    net = CPM(17 if system.endswith("coco") else 16)
    return Network(net, lambda state: {key.removeprefix("backbone."): value for key, value in state.items()})


NETWORKS: dict[str, Callable[[str], Network]] = {
    "hrnet_w32": _hrnet,
    "hrnet_w48": _hrnet,
    "simplebaseline_r50": _simplebaseline,
    "simcc_r50": _simcc,
    "ipr_r50_mmpose": _integral,
    "dsnt_r50_mmpose": _integral,
    "deeppose_r50_mmpose": _deeppose,
    "rle_r50": _rle,
    "rle_r50_mmpose": _rle_mmpose,
    "pipnet_r18": _pipnet,
    "hg_princeton_*": _hourglass,
    "hg_bearpaw_*": _hourglass,
    "cpm_mmpose_*": _cpm,
}
