"""The light networks that published ones answer for, and how MoveNet is read."""

from collections.abc import Callable

import torch
from torch import Tensor

from body3d.bottomup.litepose import TaggedMaps, litepose_s, litepose_xs
from body3d.bottomup.movenet import CentreOffsets, MoveNet, MoveNetMaps
from body3d.checkpoints import to_headed
from body3d.codecs import Heatmap
from body3d.known_answers.question import Adapter, Network, Question
from body3d.nets.hrnas import HRNAS, from_published
from body3d.nets.litehrnet import litehrnet_18, litehrnet_30
from body3d.posenet import Headed

__all__ = ["ADAPTERS", "NETWORKS"]


def _litehrnet(system: str) -> Network:
    net = {"18": litehrnet_18, "30": litehrnet_30}[system[-2:]]().net
    head = net.get_submodule("head")
    return Network(net, lambda state: to_headed(state, head), lambda image: list(net(image)))


def _hrnas(system: str) -> Network:
    trunk = HRNAS(spare_norms=True)
    net = Headed(trunk, Heatmap().head(trunk.channels, 17, (256, 192)))
    return Network(net, from_published, lambda image: list(net(image)))


def _litepose(system: str) -> Network:
    net = {"xs": litepose_xs, "s": litepose_s}[system.removeprefix("litepose_")]()

    def run(image: Tensor) -> list[Tensor]:
        maps: TaggedMaps = net(image)
        return [torch.cat([maps.heat, maps.tags], 1), maps.fine]

    return Network(net, run=run)


def _movenet(system: str) -> Network:
    """The port's network takes 0..255 and makes -1..1 of it; the file's input is what comes of that."""
    net = MoveNet()

    def run(image: Tensor) -> list[Tensor]:
        maps: MoveNetMaps = net(image)[0]
        return [maps.heat, maps.centre, maps.regression.flatten(1, 2), maps.offset.flatten(1, 2)]

    return Network(net, run=run)


def _movenet_decode(q: Question) -> dict[str, Tensor]:
    """Fractions of the map, -1 where the heat is too low."""
    pairs = (q[name].unflatten(1, (-1, 2)) for name in ("regression", "offset"))
    codec = CentreOffsets(released=True)
    xy, heat = codec.cells(MoveNetMaps(q["heatmaps"], q["centre"], *pairs), q["centre_weight"][None, None])
    grid = xy.new_tensor(q["heatmaps"].shape[:-3:-1])
    return {"keypoints": torch.where((heat < codec.least).unsqueeze(-1), -1.0, xy / grid).flatten(1).double()}


ADAPTERS: dict[str, Adapter] = {"movenet_decode": _movenet_decode}
NETWORKS: dict[str, Callable[[str], Network]] = {
    "litehrnet_*": _litehrnet,
    "hrnas_super": _hrnas,
    "litepose_*": _litepose,
    "movenet_port": _movenet,
}
