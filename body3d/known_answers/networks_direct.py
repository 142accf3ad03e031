"""The networks from crops to 3D joints that published ones answer for. Builders get the file's system name."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from body3d.codecs.volume import soft_argmax_3d
from body3d.known_answers.question import Network
from body3d.nets3d.mppe import PoseNet, RootNet
from body3d.nets3d.vnect import VNect, from_tensorflow
from body3d.nets3d.volumetric import from_torch7, volumetric_2, volumetric_4

__all__ = ["NETWORKS"]


def _posenet(system: str) -> Network:
    net = PoseNet(int(system.rpartition("_")[2]))

    def run(image: Tensor) -> list[Tensor]:
        logits = net(image)
        return [soft_argmax_3d(logits), logits.flatten(1, 2), net.backbone(image)[-1]]

    return Network(net, run=run)


def _integral3d(system: str) -> Network:
    net = PoseNet(int(system.rpartition("_")[2]))

    def run(image: Tensor) -> list[Tensor]:
        logits = net(image)
        return [soft_argmax_3d(logits), logits.flatten(1, 2)]

    return Network(net, run=run)


def _rootnet(system: str) -> Network:
    net = RootNet()
    return Network(net, run=lambda image, k_value: [net(image, k_value.flatten()), net.backbone(image)[-1]])


def _volumetric(system: str) -> Network:
    net = {"2": volumetric_2, "4": volumetric_4}[system.rpartition("_")[2]]()
    return Network(net, partial(from_torch7, network=net))


def _vnect(system: str) -> Network:
    net = VNect(21, folded=True)

    def run(image: Tensor) -> list[Tensor]:
        features = net.trunk(image)
        maps = net.maps(features)
        delta = maps.delta.transpose(1, 2).flatten(1, 2)
        return [maps.heat, *maps.location.unbind(2), delta, maps.delta.norm(dim=2), features]

    return Network(net, from_tensorflow, run)


NETWORKS: dict[str, Callable[[str], Network]] = {
    "posenet3dmppe_*": _posenet,
    "integral3d_*": _integral3d,
    "rootnet3dmppe": _rootnet,
    "c2f_volumetric_?": _volumetric,
    "vnect": _vnect,
}
