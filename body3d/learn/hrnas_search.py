"""The search of HR-NAS: channels and tokens that matter little for what they cost are made to fade, and removed as they do.

Ding et al., "HR-NAS", CVPR 2021, section 3.3. Every channel of every kernel and every token of a `nets.hrnas.SearchBlock` has a
scale, that of the batch norm behind it. The network is trained with an L1 penalty on all scales, each weighed by the
multiplications that would be saved without it; what has faded below a threshold is removed while the training goes on, and
statistics are measured again. What is left at the end is the network that was searched for.

Removing is exact where a scale is 0: what such a channel still gives (the ReLU of its shift) is constant and goes into the mean of
the batch norm that follows, where the authors' code drops it.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.errors import InputError
from body3d.nets.hrnas import KERNELS, SIDE, Paths, SearchBlock, search_blocks
from body3d.posenet import PoseNet
from body3d.train import Steps
from body3d.types import Keypoints2D

__all__ = [
    "BlockCost",
    "Penalty",
    "SearchPlan",
    "SearchRow",
    "block_costs",
    "multiplications",
    "recalibrate",
    "saved",
    "search",
    "shrink",
    "silence",
]

Kept = dict[str, tuple[int, Tensor]]  # by the name of a parameter or buffer: along which axis which entries stay


# ---- what things cost ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class BlockCost:
    """Multiply-accumulates in a block, of one image."""

    channel: tuple[float, float, float]  # one channel of each kernel
    token: float  # one token by itself
    pair: float  # one token looking at one token

    def tokens(self, count: int) -> float:
        return count * self.token + count**2 * self.pair

    def of(self, paths: Paths) -> float:
        return sum(c * n for c, n in zip(self.channel, paths.channels, strict=True)) + self.tokens(paths.tokens)

    def last_token(self, count: int) -> float:
        """What the last of `count` tokens costs: the more there are, the more."""
        return self.tokens(count) - self.tokens(count - 1)


def block_costs(net: PoseNet) -> dict[str, BlockCost]:
    """Of every searched block at the size of the crop, by name; worked out without numbers."""
    shapes: dict[str, tuple[torch.Size, torch.Size]] = {}
    empty = {id(t): t.detach().to("meta") for t in (*net.parameters(), *net.buffers())}
    shadow = deepcopy(net, empty).eval()
    for name, block in search_blocks(shadow):
        block.register_forward_hook(lambda *call, name=name: shapes.update({name: (call[1][0].shape, call[2].shape)}))
    shadow(torch.empty(1, 3, *net.size, device="meta", dtype=next(net.parameters()).dtype))
    if not shapes:
        raise InputError(f"{type(net.net).__name__} has no searched blocks: a network of nets.hrnas was expected")
    return {name: _cost(*pair) for name, pair in shapes.items()}


def _cost(before: torch.Size, after: torch.Size) -> BlockCost:
    width = SIDE * SIDE
    inside, outside = before[2] * before[3], after[2] * after[3]
    channel = tuple(float(before[1] * inside + (k**2 + after[1]) * outside) for k in KERNELS)
    # In encoder and decoder each: four projections of attention and two of the MLP; scores and what is read by them.
    token = width * (before[1] + 2 + after[1]) + 2 * 6 * width**2
    return BlockCost(channel, float(token), float(2 * 2 * width))  # type: ignore[arg-type]


def multiplications(net: nn.Module, costs: Mapping[str, BlockCost]) -> float:
    """Multiply-accumulates of all paths and transformers; not of the stem, the skips and the head, which stay."""
    return sum(costs[name].of(block.paths) for name, block in search_blocks(net))


def saved(net: nn.Module, costs: Mapping[str, BlockCost], threshold: float) -> float:
    """How many of them would go with all whose scale is below the threshold."""
    total = 0.0
    for name, block in search_blocks(net):
        left = [0, 0, 0]
        for i, scale in _channel_scales(block):
            left[i] = int((scale.abs() >= threshold).sum())
        tokens = 0 if block.transformer is None else int((_token_scale(block).abs() >= threshold).sum())
        total += costs[name].of(block.paths) - costs[name].of(Paths((left[0], left[1], left[2]), tokens))
    return total


def _channel_scales(block: SearchBlock) -> list[tuple[int, Tensor]]:
    return [(int(i), block.get_parameter(f"ops.{i}.1.1.weight")) for i in block.ops]


def _token_scale(block: SearchBlock) -> Tensor:
    return block.get_parameter("transformer.input_norm.weight")


@dataclass(frozen=True)
class Penalty:
    """The sum of all |scales|, each times what would be saved without it, in units of what that is on average (`mean`).

    For a token that is what the last of those that are left costs.
    """

    costs: Mapping[str, BlockCost]
    mean: float

    @classmethod
    def of(cls, net: PoseNet) -> "Penalty":
        """With the mean over the network as it is before the search."""
        whole = cls(block_costs(net), 1.0)
        parts = [(scale.numel(), cost) for scale, cost in whole._units(net)]
        return cls(whole.costs, sum(n * cost for n, cost in parts) / sum(n for n, _ in parts))

    def _units(self, net: nn.Module) -> Iterable[tuple[Tensor, float]]:
        for name, block in search_blocks(net):
            cost = self.costs[name]
            yield from ((scale, cost.channel[i]) for i, scale in _channel_scales(block))
            if block.transformer is not None:
                yield _token_scale(block), cost.last_token(block.paths.tokens)

    def __call__(self, net: nn.Module) -> Float[Tensor, ""]:
        parts = [scale.abs().sum() * (cost / self.mean) for scale, cost in self._units(net)]
        return torch.stack(parts).sum() if parts else next(net.parameters()).new_zeros(())


# ---- removing ------------------------------------------------------------------------------------------------------
@torch.no_grad()
def silence(net: nn.Module, threshold: float) -> None:
    """Put to 0 every scale below the threshold."""
    for _, block in search_blocks(net):
        scales = [scale for _, scale in _channel_scales(block)]
        for scale in scales if block.transformer is None else [*scales, _token_scale(block)]:
            scale[scale.abs() < threshold] = 0.0


@torch.no_grad()
def shrink(net: nn.Module) -> Kept:
    """Remove, in place, every channel and token whose scale is exactly 0; the network gives the same to rounding.

    In training mode too, but where all paths or all tokens of a block go: what stays for them is what they give in use. Returns
    what stayed, for what else is kept per parameter (an optimiser's averages).
    """
    kept: Kept = {}
    for name, block in list(search_blocks(net)):
        smaller, chosen = _shrunk(block)
        net.set_submodule(name, smaller)
        kept |= {f"{name}.{key}": choice for key, choice in chosen.items()}
    return kept


def _shrunk(block: SearchBlock) -> tuple[SearchBlock, Kept]:
    alive = {i: scale.nonzero().flatten() for i, scale in _channel_scales(block)}
    tokens = None if block.transformer is None else _token_scale(block).nonzero().flatten()
    left = [len(alive[i]) if i in alive else 0 for i in range(len(KERNELS))]
    paths = Paths((left[0], left[1], left[2]), 0 if tokens is None else len(tokens))
    no_paths = block.pw_bn is not None and not any(left)
    no_tokens = tokens is not None and not len(tokens)
    constant = block.constant is not None or no_paths or no_tokens
    smaller = SearchBlock(block.inputs, block.outputs, block.stride, paths, constant)
    reference = next(block.parameters())
    smaller.to(reference).train(block.training)

    kept = _choices(alive, tokens)
    state = block.state_dict()
    left_over = torch.zeros(block.outputs).to(reference)
    if block.pw_bn is not None:
        mean = block.pw_bn.running_mean
        assert mean is not None
        state["pw_bn.running_mean"] = mean - _constants(block)
        if no_paths:
            left_over += _of_nothing(block.pw_bn, state["pw_bn.running_mean"])
    if no_tokens:
        norm = block.get_submodule("transformer.reverse_norm")
        left_over += _of_nothing(norm, norm.get_buffer("running_mean"))
    if constant:
        state["constant"] = left_over if block.constant is None else left_over + block.constant
    own = smaller.state_dict()
    smaller.load_state_dict({key: _take(state[key], kept.get(key)) for key in own})
    return smaller, {key: kept[key] for key in own if key in kept}


def _choices(alive: Mapping[int, Tensor], tokens: Tensor | None) -> Kept:
    kept: Kept = {}
    for i, index in alive.items():
        norms = [f"ops.{i}.{j}.1.{key}" for j in (0, 1) for key in ("weight", "bias", "running_mean", "running_var")]
        kept |= dict.fromkeys((f"ops.{i}.0.0.weight", f"ops.{i}.1.0.weight", *norms), (0, index))
        kept[f"ops.{i}.2.weight"] = (1, index)
    if tokens is not None:
        norms = [f"transformer.input_norm.{key}" for key in ("weight", "bias", "running_mean", "running_var")]
        rows = ("transformer.input_proj.weight", "transformer.query_embed.weight", *norms)
        kept |= dict.fromkeys(rows, (0, tokens)) | {"transformer.reverse_proj.weight": (1, tokens)}
    return kept


def _take(value: Tensor, choice: tuple[int, Tensor] | None) -> Tensor:
    return value if choice is None else value.index_select(*choice)


def _constants(block: SearchBlock) -> Float[Tensor, " O"]:
    """What the channels without scale give to the sum of the paths, everywhere."""
    parts = []
    for i, scale in _channel_scales(block):
        shift = F.relu(block.get_parameter(f"ops.{i}.1.1.bias")) * (scale == 0)
        parts.append(block.get_parameter(f"ops.{i}.2.weight")[:, :, 0, 0] @ shift)
    return torch.stack(parts).sum(0)


def _of_nothing(norm: nn.Module, mean: Tensor) -> Float[Tensor, " O"]:
    """What a batch norm in use makes of zeros."""
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None
    return norm.bias - mean * norm.weight / (norm.running_var + norm.eps).sqrt()


@torch.no_grad()
def recalibrate(net: nn.Module, images: Iterable[Float[Tensor, "B 3 H W"]]) -> None:
    """Measure the statistics of all batch norms again: the mean over the batches of `images`. Nothing changes without any."""
    batches = list(images)
    if not batches:
        return
    modes = {module: module.training for module in net.modules()}
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    net.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean
        norm.train()
    for image in batches:
        net(image)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, mode in modes.items():
        module.training = mode


# ---- the search ----------------------------------------------------------------------------------------------------
LATE_STEPS = Steps((170, 200))


@dataclass(frozen=True)
class SearchPlan:
    """The numbers of the authors' key-point configuration (batches of 384).

    The penalty's weight rises from 0 to `rho` over `warmup` epochs. After an epoch, what is below `threshold` is removed if `worth`
    multiplications or more are saved by it, and the statistics are measured again on `calibration` batches. With `target`, nothing
    fades any more once the searched blocks have so few multiplications.
    """

    epochs: int = 210
    lr: float = 1e-3
    schedule: Callable[[float], float] = LATE_STEPS
    rho: float = 1e-6
    warmup: float = 25.0
    threshold: float = 1e-3
    worth: float = 1e6
    calibration: int = 10
    target: float = 0.0


@dataclass(frozen=True)
class SearchRow:
    """An epoch: the mean loss and penalty (without rho), and the multiplications of the searched blocks after it."""

    epoch: int
    loss: float
    penalty: float
    multiplications: float


def search(
    net: PoseNet, batches: Callable[[int], Iterable[tuple[Tensor, Keypoints2D]]], plan: SearchPlan = SearchPlan()
) -> list[SearchRow]:
    """Train a network of `nets.hrnas` and shrink it, in place; what is left is in its blocks' `paths`, and in a saved state_dict.

    `batches(epoch)` gives images and targets as `PoseNet.loss` takes them, such as `learn.pose2d.PoseTask.batches`. After a
    shrinking, Adam goes on with the averages of what is left. InputError if `net` has no searched blocks, or if the training
    diverges.
    """
    penalty = Penalty.of(net)
    optimizer = torch.optim.Adam(net.parameters(), plan.lr)
    rows: list[SearchRow] = []
    for epoch in range(plan.epochs):
        net.train()
        seen, sums, count = [], torch.zeros(2), 0
        for group in optimizer.param_groups:
            group["lr"] = plan.lr * plan.schedule(float(epoch))
        enough = multiplications(net, penalty.costs) <= plan.target
        rho = 0.0 if enough else plan.rho * min(1.0, epoch / max(plan.warmup, 1e-9) if plan.warmup else 1.0)
        for image, target in batches(epoch):
            loss, price = net.loss(image, target), penalty(net)
            optimizer.zero_grad(set_to_none=True)
            (loss + rho * price).backward()
            optimizer.step()
            sums += torch.stack([loss.detach(), price.detach()]).cpu()
            count += 1
            if len(seen) < plan.calibration:
                seen.append(image)
        if not count or not sums.isfinite().all():
            what = "has no batches" if not count else "diverged: lower the learning rate"
            raise InputError(f"epoch {epoch + 1} of the search {what}")
        last = epoch == plan.epochs - 1
        if not enough and saved(net, penalty.costs, plan.threshold) >= (1.0 if last else plan.worth):
            optimizer = _shrink_with(net, optimizer, plan.threshold)
            recalibrate(net, seen)
        loss, price = (sums / count).tolist()
        rows.append(SearchRow(epoch + 1, loss, price, multiplications(net, penalty.costs)))
    return rows


def _shrink_with(net: PoseNet, optimizer: torch.optim.Adam, threshold: float) -> torch.optim.Adam:
    before = dict(net.named_parameters())
    silence(net, threshold)
    kept = shrink(net)
    after = torch.optim.Adam(net.parameters(), optimizer.param_groups[0]["lr"])
    for name, parameter in net.named_parameters():
        old = before.get(name)  # none: a constant, which is new
        if old is not None and old in optimizer.state:
            state = optimizer.state[old]
            after.state[parameter] = {
                key: _take(value, kept.get(name)) if value.shape == old.shape else value for key, value in state.items()
            }
    return after
