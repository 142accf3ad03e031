"""How long the networks of `body3d.nets` take on the processor: as they are, as `body3d detect` runs them, and beside timm's.

    body3d bench nets [hrnet_w32]

Times are the processor's, medians of runs that take turns, on as many threads as torch is set to. The reference is the same
network with timm's trunk of the same size in the place of ours; networks without a counterpart have themselves alone. Nets of
more than `LARGE` billion multiplications run at batch 1 only.
"""

import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from body3d import nets
from body3d.attention import TransformerBlock
from body3d.codecs import PIPNet
from body3d.errors import InputError
from body3d.nets.hrnet import HRNet
from body3d.nets.resnet import PoseResNet, ResNet
from body3d.nets.vitpose import ViT, ViTPoseTrunk
from body3d.posenet import Headed, PoseNet, fused
from body3d.skeletons import COCO17

__all__ = ["bench_nets", "cost", "figures", "multiplications", "with_timm"]

LARGE = 12.0
REPEATS = 5

Row = dict[str, float | str]


def bench_nets(begins: str = "", repeats: int = REPEATS) -> dict[str, Row]:
    """Of the networks whose names begin so; of one that is named in full, torch.compile too."""
    chosen = [name for name in nets.__all__ if name.startswith(begins)]
    if not chosen:
        raise InputError(f"no network's name begins with {begins!r}; there are {', '.join(nets.__all__)}")
    timm = _timm()
    table: dict[str, Row] = {}
    for name in chosen:
        net = _built(name)
        reference = None if timm is None else with_timm(net, name, timm)
        multiplied = multiplications(net)
        weights = sum(p.numel() for p in net.parameters()) / 1e6
        table[name] = {"weights, million": weights, "multiplications, billion": multiplied}
        for batch in (1,) if multiplied > LARGE else (1, 16):
            image = torch.rand(batch, 3, *net.size)
            row = figures(net, image, reference, repeats, compiled=name == begins)
            table[name] |= {f"batch {batch}: {key}": value for key, value in row.items()}
    return table


def figures(
    net: PoseNet, image: Float[Tensor, "B 3 H W"], reference: nn.Module | None, repeats: int, compiled: bool = False
) -> Row:
    """Milliseconds, and ratios to the network as it is (or, of it, to the reference)."""
    together = deepcopy(net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    runs: dict[str, nn.Module] = {"ours": net, "channels-last": together, "as detect runs it": fused(net)}
    if reference is not None:
        runs["reference"] = reference
    if compiled and _compiler():
        runs["torch.compile"] = torch.compile(net)  # type: ignore[assignment]
    took = cost({name: lambda run=run: run(image) for name, run in runs.items()}, repeats)
    row: Row = {"ms": 1000 * took["ours"]}
    if "reference" in took:
        row |= {"ms of the reference": 1000 * took["reference"], "ratio": took["ours"] / took["reference"]}
    row |= {
        f"ratio, {name}": took[name] / took["ours"]
        for name in ("channels-last", "as detect runs it", "torch.compile")
        if name in took
    }
    return row | ({"ratio, torch.compile": "no compiler"} if compiled and not _compiler() else {})


@torch.no_grad()
def cost(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Seconds of the processor that each takes: the median of `repeats` runs, after one that does not count, in turns."""
    for run in runs.values():
        run()
    took: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.process_time()
            run()
            took[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in took.items()}


def multiplications(net: PoseNet) -> float:
    """Multiplications with additions of convolutions and matrix products for one crop, billions."""
    shadow = deepcopy(net, {id(t): t.detach().to("meta") for t in (*net.parameters(), *net.buffers())}).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow(torch.empty(1, 3, *net.size, device="meta"))
    return counter.get_total_flops() / 2e9


def _built(name: str) -> PoseNet:
    if name == "pipnet_r18":  # needs a mean shape; which one does not matter here
        return nets.pipnet_r18(COCO17, PIPNet(tuple((float(i % 4), float(i // 4)) for i in range(len(COCO17))))).eval()
    return getattr(nets, name)().eval()


def _compiler() -> bool:
    return any(shutil.which(name) for name in ("c++", "g++", "clang++"))


# ---- timm's trunks -------------------------------------------------------------------------------------------------
def _timm() -> Any:
    try:
        import timm  # type: ignore  # for this comparison alone
    except ImportError as error:
        print(f"timm cannot be imported ({error}): networks are measured without a reference", file=sys.stderr)
        return None
    return timm


def with_timm(net: PoseNet, name: str, timm: Any) -> PoseNet | None:
    """A network with timm's trunk in the place of ours, other weights in it; None without a counterpart."""
    other = deepcopy(net)
    trunk = other.net.trunk if isinstance(other.net, Headed) else None
    if isinstance(trunk, ViTPoseTrunk):
        trunk.backbone = _Replaced(_vit(trunk.backbone, net.size, timm), trunk.backbone.grid)  # type: ignore[assignment]
    elif isinstance(trunk, ResNet):
        depth = re.search(r"_r(\d+)", name)
        features = timm.create_model(f"resnet{depth[1] if depth else 50}", num_classes=0, global_pool="")
        deconv = [trunk.deconv_layers] if isinstance(trunk, PoseResNet) else []
        other.net.trunk = _Replaced(nn.Sequential(features, *deconv))  # type: ignore[union-attr]
    elif type(trunk) is HRNet:
        other.net.trunk = _Replaced(_HRNet(timm.create_model(f"hrnet_w{trunk.channels}")))  # type: ignore[union-attr]
    else:
        return None
    return other.eval()


class _Replaced(nn.Module):
    """A network of timm's as a trunk; of tokens (B, N, C), the map that they are `grid` of."""

    def __init__(self, net: nn.Module, grid: tuple[int, int] | None = None):
        super().__init__()
        self.net, self.grid = net, grid

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        x = self.net(image)
        return [x if self.grid is None else x.mT.unflatten(2, self.grid)]


class _HRNet(nn.Module):
    """timm's up to the last exchange, which in its classifier computes all branches."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.stem = nn.Sequential(net.conv1, net.bn1, net.act1, net.conv2, net.bn2, net.act2)  # type: ignore[arg-type]
        self.net = net

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        return self.net.stages(self.stem(image))[0]  # type: ignore[operator]


def _vit(ours: ViT, size: tuple[int, int], timm: Any) -> nn.Module:
    first = ours.blocks[0]
    assert isinstance(first, TransformerBlock)
    return timm.models.VisionTransformer(
        img_size=size, patch_size=16, embed_dim=ours.channels, depth=len(ours.blocks), num_heads=first.attn.heads,
        num_classes=0, class_token=False, global_pool="",
    )  # fmt: skip
