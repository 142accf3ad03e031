"""The transformer networks for one person's 2D pose that published ones answer for. Builders get the file's system name."""

from collections.abc import Callable

import torch
from torch import Tensor

from body3d.known_answers.question import Network, State
from body3d.nets import pct, poseur, tokenpose, vitpose

__all__ = ["NETWORKS"]


def _pct_tokenizer(system: str) -> Network:
    net = pct.PoseTokenizer()

    def run(joints: Tensor) -> list[Tensor]:
        tokenized = net(joints[..., :2].contiguous(), joints[..., 2] > -0.5)
        return [tokenized.xy, tokenized.codes.flatten()]

    def rename(state: State) -> State:
        return {key.removeprefix("tokenizer."): value for key, value in pct.from_published(state).items()}

    return Network(net, rename, run)


def _pct_classifier_head(system: str) -> Network:
    net = pct.PCTHead(pct.TokenClassifier(1024), pct.PoseTokenizer())
    net.tokenizer.requires_grad_(True)  # the published count is of the head as built

    def run(feature: Tensor) -> list[Tensor]:
        raw = net(feature)
        return [raw.xy, raw.logits.amax(-1, keepdim=True)]

    return Network(net, pct.from_published, run)


def _tokenpose(system: str) -> Network:
    build = {
        "tokenpose_t": tokenpose.tokenpose_t,
        "tokenpose_s": tokenpose.tokenpose_s_v1,
        "tokenpose_b": tokenpose.tokenpose_b,
        "tokenpose_l_d6": tokenpose.tokenpose_l_d6,
        "tokenpose_l_d24": tokenpose.tokenpose_l_d24,
    }[system]
    net = build().net
    return Network(net, tokenpose.from_published, net)


def _vitpose(system: str) -> Network:
    build = {
        "vitpose_s": vitpose.vitpose_s,
        "vitpose_b": vitpose.vitpose_b,
        "vitpose_b_simple": vitpose.vitpose_b_simple,
    }[system]
    net = build().net
    return Network(net, vitpose.from_published, net)


def _poseur(system: str) -> Network:
    net = poseur.poseur_r50().net

    def run(image: Tensor) -> list[Tensor]:
        coarse, *stages = net(image)
        xy, sigma = (torch.stack([getattr(stage, name) for stage in stages]) for name in ("xy", "sigma"))
        return [coarse.xy + 0.5, coarse.sigma, xy + 0.5, sigma, 1 - sigma[-1].mean(-1, keepdim=True)]

    return Network(net, poseur.from_published, run)


NETWORKS: dict[str, Callable[[str], Network]] = {
    "tokenpose_*": _tokenpose,
    "vitpose_*": _vitpose,
    "poseur_r50": _poseur,
    "pct_tokenizer": _pct_tokenizer,
    "pct_classifier_head": _pct_classifier_head,
}
