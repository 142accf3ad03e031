"""Chained predictions: one joint after another, each from the image and the maps of all joints before it.

Gkioxari, Toshev & Jaitly, "Chained predictions using convolutional neural networks", ECCV 2016. With an order of the joints,

    h_0 = CNN_x(image),   h_t = s(W_t * h_{t-1} + sum over i < t of W_it * e(y_i)),   P(y_t | image, y_<t) = softmax m_t(h_t)

over the cells of a map. In training y_i are the true maps, at test time the predicted ones. `Chain` is that; `SimplifiedChain`
is the one public PyTorch code of it (Naman-ntc/Pytorch-Human-Pose-Estimation), which differs in more than sizes. The authors
published no code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.codecs import Codec, Heatmap, Size
from body3d.codecs.base import Places, from_grid, swap_joints, to_grid
from body3d.codecs.heatmap import gaussian_maps
from body3d.codecs.integral import flat_softmax
from body3d.codecs.peaks import Decoder, argmax, peaks
from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.layers import conv_bn
from body3d.losses import weighted_mean
from body3d.nets.resnet import ResNet, resnet34, resnet50
from body3d.posenet import IMAGENET, Normalise, PoseNet, loaded, of_maps
from body3d.skeletons import MPII16
from body3d.types import Keypoints2D

__all__ = [
    "CellSoftmax", "Chain", "ChainedPoseNet", "Deception", "SimplifiedChain", "chain_order", "chained", "chained_simplified",
]  # fmt: skip


class Chain(nn.Module):
    """(B, 3, H, W) to the logits of all joints' maps, [(B, J, h, w)], in the order of the joint set; h = H / 32 * 2**`doublings`.

    `order` is the order of prediction, as indices of the joint set: the first follows from the image alone. Weights are not
    shared between steps (the paper's form for single images), but for e: `doublings` strided convolutions, from a map to
    `embedding` channels at the resolution of the `hidden` ones. W_t and all W_it are one convolution over the hidden state and
    the embedded maps.

    Widths, kernels, the layers of e and batch norm are chosen here.
    """

    def __init__(
        self,
        order: Sequence[int],
        trunk: ResNet,
        hidden: int = 128,
        embedding: int = 32,
        width: int = 32,
        doublings: int = 3,
    ):
        super().__init__()
        self.order, self.doublings = tuple(order), doublings
        self.trunk = trunk
        self.first = conv_bn(trunk.channels, hidden, 1)
        self.embed = nn.Sequential(
            *(conv_bn(1 if i == 0 else embedding, embedding, 3, stride=2) for i in range(doublings))
        )
        steps = range(1, len(self.order))
        self.steps = nn.ModuleList(conv_bn(hidden + t * embedding, hidden) for t in steps)
        self.read = nn.ModuleList(Deception(hidden, width, doublings) for _ in self.order)

    def grid(self, size: Size) -> Size:
        """Of the maps, for images of `size`."""
        return size[0] // 32 * 2**self.doublings, size[1] // 32 * 2**self.doublings

    def forward(
        self,
        image: Float[Tensor, "B 3 H W"],
        teacher: Float[Tensor, "B J h w"] | None = None,
        known: Bool[Tensor, "B J"] | None = None,
    ) -> list[Tensor]:
        """`teacher`: the true maps, each with a sum of 1; where a joint is not `known`, its own prediction stands for it.

        Scheduled sampling is a `known` that is drawn at random. No gradient goes through a predicted map into the step that
        made it.
        """
        state = self.first(self.trunk(image)[-1])
        logits, seen = {}, []
        for t, joint in enumerate(self.order):
            if t > 0:
                state = self.steps[t - 1](torch.cat([state, *seen], 1))
            logits[joint] = self.read[t](state)
            if t + 1 < len(self.order):
                y = flat_softmax(logits[joint]).detach().to(state.dtype)
                if teacher is not None:
                    true = teacher[:, joint, None]
                    y = true if known is None else torch.where(known[:, joint, None, None, None], true, y)
                seen.append(self.embed(y))
        return [torch.cat([logits[joint] for joint in range(len(self.order))], 1)]


class Deception(nn.Module):
    """The decoder m: (B, `inputs`, h, w) to one map `doublings` times twice as large.

    Each doubling is the sum of transposed convolutions of 2x2, 4x4 and 6x6, so that near and far cells have weights of their
    own; then come batch norm and ReLU. With `bare` they do not come, though the weights of the batch norm are there: as in the
    public code.
    """

    def __init__(self, inputs: int, width: int = 32, doublings: int = 2, bare: bool = False):
        super().__init__()
        self.bare = bare
        self.start = nn.Conv2d(inputs, width, 1)
        self.stacks = [f"stack{i + 1}" for i in range(doublings)]
        for name in self.stacks:
            deconvs = (nn.ConvTranspose2d(width, width, kernel, 2, kernel // 2 - 1) for kernel in (2, 4, 6))
            self.add_module(name, nn.ModuleList([*deconvs, nn.BatchNorm2d(width)]))
        self.end = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 1 H W"]:
        x = self.start(x)
        for name in self.stacks:
            two, four, six, norm = self.get_submodule(name).children()
            x = two(x) + four(x) + six(x)
            if not self.bare:
                x = F.relu(norm(x), inplace=True)
        return self.end(x)


def chain_order(joints: JointSet) -> tuple[int, ...]:
    """Along the tree from the head outwards, nearer joints first; joints at the same distance in the order of the set.

    The paper goes along the tree too, from the head, and sorts by how well a network without a chain finds each joint.
    """
    neighbours: dict[int, set[int]] = {i: set() for i in range(len(joints))}
    for parent, child in joints.bones:
        neighbours[parent].add(child)
        neighbours[child].add(parent)
    head = next((joints.index(name) for name in ("head_top", "head", "nose") if name in joints), 0)
    order: list[int] = []
    for start in (head, *neighbours):  # a set need not hang together
        ring = [] if start in order else [start]
        while ring:
            order += ring
            ring = sorted({other for joint in ring for other in neighbours[joint]} - set(order))
    return tuple(order)


# ---- which cell ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class CellSoftmax:
    """(B, J, h, w) logits of the cell that a joint is in, by cross-entropy. The confidence is the highest probability of a cell.

    The target is the nearest cell, as in the paper, or with `sigma` a Gaussian of that many cells around the exact place, to be
    read by a `decoder` such as `peaks.dark`, which looks at the probabilities. A joint outside of the map has no weight.
    """

    sigma: float = 0.0
    decoder: Decoder = argmax
    places: Places = "pixel"

    def head(self, channels: int, joints: int, size: Size) -> nn.Module:
        return nn.Conv2d(channels, joints, 1)

    def target(
        self, xy: Float[Tensor, "B J 2"], size: Size, grid: Size
    ) -> tuple[Float[Tensor, "B J h w"], Bool[Tensor, "B J"]]:
        """Maps that sum to 1 where the joint is on the map, and where it is."""
        cells = to_grid(xy, size, grid, self.places)
        nearest = cells.round()
        there = ((nearest >= 0) & (nearest < nearest.new_tensor(grid[::-1]))).all(-1)
        if self.sigma > 0:
            maps = gaussian_maps(cells, grid, self.sigma)
            return maps / maps.sum((-1, -2), keepdim=True).clamp_min(1e-9), there
        x, y = (
            (torch.arange(n, device=xy.device) == v).to(xy.dtype)
            for n, v in zip(grid[::-1], nearest.split(1, -1), strict=True)
        )
        return y[..., :, None] * x[..., None, :], there

    def loss(
        self, raw: Float[Tensor, "B J h w"], xy: Float[Tensor, "B J 2"], weight: Float[Tensor, "B J"], size: Size
    ) -> Float[Tensor, ""]:
        target, there = self.target(xy, size, (raw.shape[-2], raw.shape[-1]))
        surprise = -(target.flatten(2) * raw.flatten(2).log_softmax(-1)).sum(-1)
        return weighted_mean(surprise, weight * there)

    def decode(self, raw: Float[Tensor, "B J h w"], size: Size) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        p = flat_softmax(raw)
        cell, top = peaks(p)
        xy = cell + (self.decoder(p) - cell).clamp(-1, 1)
        return from_grid(xy, (raw.shape[-2], raw.shape[-1]), size, self.places), top

    def mirror(self, raw: Float[Tensor, "B J h w"], flip: Sequence[int]) -> Float[Tensor, "B J h w"]:
        return swap_joints(raw.flip(-1), flip)


class ChainedPoseNet(PoseNet):
    """A `PoseNet` whose chain sees the true maps of earlier joints while it is trained, and its own when it predicts."""

    net: Chain
    codec: CellSoftmax

    def __init__(self, net: Chain, codec: Codec, joints: JointSet, size: Size, normalise: Normalise = IMAGENET):
        super().__init__(net, codec, joints, size, normalise)
        if not isinstance(codec, CellSoftmax):
            raise InputError(
                f"a chain says which cell a joint is in, which {type(codec).__name__} does not read: CellSoftmax does"
            )
        if sorted(net.order) != list(range(len(joints))):
            raise InputError(
                f"the chain predicts {len(net.order)} joints in the order {net.order}, {joints.name} has {len(joints)}: each must "
                "occur once (chain_order)"
            )

    def forward(self, image: Float[Tensor, "B 3 H W"], teacher: Keypoints2D | None = None) -> list[Tensor]:
        """Joints of the `teacher` whose `conf` is 0 teach nothing: later ones see what is predicted of them."""
        if teacher is None:
            return self.net(self._prepared(image))
        maps, there = self.codec.target(teacher.xy, self.size, self.net.grid(self.size))
        return self.net(self._prepared(image), maps, there & (teacher.conf > 0))


# ---- the public code -----------------------------------------------------------------------------------------------
class SimplifiedChain(nn.Module):
    """(B, 3, 256, 256) to [(B, J, 32, 32)] by the public code's layers and names.

    It is trained on its own predictions, which are maps without a softmax, and each later step has a network e of its own for
    each earlier joint (`o2h`), without activations. Weights for one step more than there are joints are there and not used, as
    are the batch norms of the decoders.
    """

    def __init__(self, joints: int, hidden: int = 64):
        super().__init__()
        self.resnet = resnet34()
        self.init_hidden = nn.Conv2d(self.resnet.channels, hidden, 1)
        self.deception = nn.ModuleList(Deception(hidden, bare=True) for _ in range(joints))
        self.h2h = nn.ModuleList(conv_bn(hidden, hidden, 1, bias=True, active=False) for _ in range(joints))
        self.o2h = nn.ModuleList(nn.ModuleList(_embedding(hidden) for _ in range(t + 1)) for t in range(joints))

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        state = self.init_hidden(self.resnet(image)[-1])
        maps = [self.deception[0](state)]
        for step, embeddings, decoder in zip(self.h2h, self.o2h, list(self.deception)[1:], strict=False):
            state = step(state)
            for embed, y in zip(embeddings.children(), maps, strict=True):
                state = state + embed(y)
            state = F.relu(state)
            maps.append(decoder(state))
        return [torch.cat(maps, 1)]


def _embedding(hidden: int) -> nn.Sequential:
    halve = lambda: conv_bn(hidden, hidden, 1, stride=2, bias=True, active=False)
    return nn.Sequential(nn.Conv2d(1, hidden, 1), *halve(), *halve())


# ---- sizes ---------------------------------------------------------------------------------------------------------
def chained(
    joints: JointSet = MPII16,
    codec: Codec = CellSoftmax(),
    size: Size = (256, 256),
    weights: Path | str | None = None,
) -> PoseNet:
    """The paper's chain on a ResNet-50, maps at stride 4: 33.3 million weights for MPII, by our choice of widths.

    Both sides of the crop are multiples of 32. `weights`: of this project.
    """
    return loaded(ChainedPoseNet(Chain(chain_order(joints), resnet50()), codec, joints, size), weights)


def chained_simplified(
    joints: JointSet = MPII16,
    codec: Codec = Heatmap(sigma=1.0),
    size: Size = (256, 256),
    weights: Path | str | None = None,
) -> PoseNet:
    """The public code's variant on a ResNet-34, maps at stride 8: 24.4 million weights for MPII, in the order of the joint set.

    `weights`: of that code or of this project. `codec` is one that reads a map per joint.
    """
    return loaded(of_maps(SimplifiedChain(len(joints)), codec, joints, size), weights)
