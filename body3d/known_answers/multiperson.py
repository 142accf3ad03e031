"""Multi-person systems, top-down and bottom-up by programs, that published ones answer for."""

from collections.abc import Callable

from torch import Tensor

from body3d.detect.pose_nms import pose_nms
from body3d.known_answers.question import Adapter, Network, Question
from body3d.nets.cpn import CPN
from body3d.nets.mspn import MSPN, from_megvii, from_mmpose
from body3d.nets.resnet import resnet50
from body3d.nets.rmpe import FastPose

__all__ = ["ADAPTERS", "NETWORKS"]


def _pose_nms(q: Question) -> dict[str, Tensor]:
    kept = pose_nms(q["poses"], q["pose_scores"].squeeze(-1), q["boxes"])
    return {"picked": kept.picked, "poses": kept.xy, "scores": kept.conf.unsqueeze(-1)}


ADAPTERS: dict[str, Adapter] = {"pose_nms": _pose_nms}
NETWORKS: dict[str, Callable[[str], Network]] = {
    "fastpose_r50": lambda system: Network(FastPose(resnet50(squeeze=True), 17)),
    "cpn50": lambda system: Network(CPN(resnet50(), 17)),
    "mspn_2": lambda system: Network(MSPN(2, 17, biases=True), from_megvii),
    "mspn_2_mmpose": lambda system: Network(MSPN(2, 17), from_mmpose),
}
