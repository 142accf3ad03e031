"""The transformer networks for one person's 2D pose that published ones answer for. Builders get the file's system name."""

from collections.abc import Callable

from torch import Tensor

from body3d.known_answers.question import Network, State
from body3d.nets import pct

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


NETWORKS: dict[str, Callable[[str], Network]] = {
    "pct_tokenizer": _pct_tokenizer,
    "pct_classifier_head": _pct_classifier_head,
}
