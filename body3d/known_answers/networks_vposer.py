"""Both releases of VPoser. Builders get the file's system name."""

from collections.abc import Callable

from torch import Tensor

from body3d.body.vposer import VPoser, from_v1, vposer_v1, vposer_v2
from body3d.known_answers.question import Network

__all__ = ["NETWORKS"]


def _outputs(net: VPoser, pose: Tensor, z: Tensor) -> list[Tensor]:
    return [net.rotations(z).flatten(-2), net.decode(z), *net.encode(pose.reshape(len(pose), -1, 3))]


def _v1(system: str) -> Network:
    net = vposer_v1()

    def run(pose: Tensor, z: Tensor) -> list[Tensor]:
        rotations, rotvec, *code = _outputs(net, pose, z)
        return [rotations.unsqueeze(1), rotvec.unsqueeze(1), *code]  # v1 keeps an axis for frames

    return Network(net, from_v1, run)


def _v2(system: str) -> Network:
    net = vposer_v2()
    return Network(net, run=lambda pose, z: _outputs(net, pose, z))


NETWORKS: dict[str, Callable[[str], Network]] = {"vposer_v1": _v1, "vposer_v2": _v2}
