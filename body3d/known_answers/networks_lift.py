"""The lifting networks that published ones answer for. Builders get the file's system name."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from body3d.known_answers.question import Network
from body3d.learn.poseaug import Augmentor, Discriminator2D, Discriminator3D, from_published
from body3d.lift.baseline import SimpleBaseline3D, from_tensorflow
from body3d.lift.gcn import SemGCN
from body3d.lift.stgcn import STGCN
from body3d.lift.temporal import VideoPose3D
from body3d.skeletons import H36M16

__all__ = ["NETWORKS"]


def _simple_baseline(system: str) -> Network:
    if system == "simplebaseline3d":
        return Network(SimpleBaseline3D(32, 48))
    return Network(SimpleBaseline3D(32, 48, max_norm=system.endswith("maxnorm"), eps=1e-3), from_tensorflow)


def _videopose3d(system: str) -> Network:
    widths = {"27": [3] * 3, "81": [3] * 4, "243": [3] * 5}[system.split("_")[1]]
    net = VideoPose3D(17, widths=widths, causal=system.endswith("_causal"))
    return Network(net, run=lambda x, x_long: (net.dense(x), net.dense(x_long), net.strided(x)))


def _poseaug_mlp(system: str) -> Network:
    net = SimpleBaseline3D(32, 45)  # the root is not asked for
    return Network(net, run=lambda pose2d: [F.pad(net(pose2d.flatten(1)).unflatten(-1, (15, 3)), (0, 0, 1, 0))])


def _poseaug_videopose(system: str) -> Network:
    net = VideoPose3D(16, 15, widths=[1] * 5)
    return Network(net, run=lambda pose2d: [F.pad(net(pose2d[:, None])[:, 0], (0, 0, 1, 0))])


def _poseaug_semgcn(system: str) -> Network:
    return Network(SemGCN(H36M16))


def _poseaug_stgcn(system: str) -> Network:
    return Network(STGCN(), lambda state: {key.removeprefix("stgcn."): value for key, value in state.items()})


def _poseaug_generator(system: str) -> Network:
    net = Augmentor()

    def run(pose: Tensor, **noise: Tensor) -> list[Tensor]:
        a = net(pose, list(noise.values()))
        return [a.bent, a.angles, a.stretched, a.ratios, a.placed, a.rotation, a.translation]

    return Network(net, from_published, run)


def _poseaug_discriminator(system: str) -> Network:
    return Network(Discriminator3D() if system.endswith("3d") else Discriminator2D(), from_published)


NETWORKS: dict[str, Callable[[str], Network]] = {
    "simplebaseline3d": _simple_baseline,
    "simplebaseline3d_tf*": _simple_baseline,
    "videopose3d_*": _videopose3d,
    "poseaug_generator": _poseaug_generator,
    "poseaug_disc?d": _poseaug_discriminator,
    "poseaug_semgcn": _poseaug_semgcn,
    "poseaug_stgcn": _poseaug_stgcn,
    "poseaug_mlp": _poseaug_mlp,
    "poseaug_videopose": _poseaug_videopose,
}
