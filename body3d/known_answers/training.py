"""What published training methods answer for: losses of OKDHP and PeCLR, and POMNet. Builders get the file's system name."""

from collections.abc import Callable

import torch
from torch import Tensor

from body3d.known_answers.question import Adapter, Network, Question
from body3d.learn.okdhp import pixel_kl
from body3d.learn.peclr import nt_xent, rotated, translated, undone
from body3d.nets.pomnet import POMNet, Support
from body3d.nets.resnet import resnet50
from body3d.posenet import PLAIN

__all__ = ["ADAPTERS", "NETWORKS"]


def _okdhp_kl(q: Question) -> dict[str, Tensor]:
    student = q["student"].requires_grad_()
    loss = pixel_kl(student, q["teacher"], q["weight"].squeeze(-1))
    return {"loss": loss, "grad_student": torch.autograd.grad(loss, student)[0]}


def _peclr(q: Question) -> dict[str, Tensor]:
    """The first half of the rows are the first views."""
    points, shift, angle = q["encodings"], torch.stack([q["jitter_x"], q["jitter_y"]], -1), q["angle"].deg2rad()
    first, second = points.chunk(2)
    one, other = undone(points, shift, angle).chunk(2)
    return {
        "translated": translated(points, -shift),
        "translated_plain": translated(points, -shift, scaled=False),
        "rotated": rotated(points, -angle),
        "both": rotated(translated(points, -shift), -angle),
        "loss": nt_xent(one, other),
        "loss_plain": nt_xent(first, second),
    }


ADAPTERS: dict[str, Adapter] = {"okdhp_kl": _okdhp_kl, "peclr": _peclr}


def _pomnet(system: str) -> Network:
    """Inputs are images as the trunk sees them, and a standard normal `target_s` and `weight_s`, from which marks are made."""
    net = POMNet(resnet50(), resnet50(), normalise=PLAIN)

    def run(image_q: Tensor, image_s: Tensor, target_s: Tensor, weight_s: Tensor) -> list[Tensor]:
        known = (weight_s.squeeze(-1) > -0.8).float()
        known[..., :2] = 1
        maps = torch.where(target_s > 1.5, target_s.abs(), 0.0)
        return [net(image_q, Support(image_s, maps, known))]

    return Network(net, run=run)


NETWORKS: dict[str, Callable[[str], Network]] = {"pomnet": _pomnet}
