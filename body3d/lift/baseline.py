"""SimpleBaseline-3D: a residual network of linear layers from 2D to 3D joints.

Martinez, Hossain, Romero & Little, "A simple yet effective baseline for 3d human pose estimation", ICCV 2017. The modules bear the
names of the PyTorch port by weigq, so that its checkpoints (and PoseAug's) load as they are; `from_tensorflow` renames those of the
authors' TensorFlow code.
"""

import re
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.checkpoints import read_published, what_network
from body3d.errors import InputError
from body3d.lift.dropout import ReLUDropout

__all__ = ["SimpleBaseline3D", "from_tensorflow", "load_simple_baseline"]

_KINDS = {"w": "weight", "b": "bias"}


class SimpleBaseline3D(nn.Module):
    """(B, inputs) to (B, outputs): 16 joints are 32 numbers in and 48 out, x and y (and z) of a joint side by side.

    Published: width 1024, two blocks, dropout 0.5. With `max_norm` every weight matrix is scaled to Frobenius norm 1 in the
    forward pass if it is larger, as the authors' code does (it is the whole matrix, not its rows, and not the gradient, which the
    port clips instead); later implementations leave it out and gain. `eps` of the batch norms is 1e-3 in TensorFlow.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int = 1024,
        blocks: int = 2,
        dropout: float = 0.5,
        max_norm: bool = False,
        eps: float = 1e-5,
    ):
        super().__init__()
        self.max_norm = max_norm
        self.w1 = nn.Linear(inputs, width)
        self.batch_norm1 = nn.BatchNorm1d(width, eps)
        self.linear_stages = nn.ModuleList(_Block(width, dropout, max_norm, eps) for _ in range(blocks))
        self.w2 = nn.Linear(width, outputs)
        self.active = ReLUDropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Float[Tensor, "B I"]) -> Float[Tensor, "B O"]:
        x = self.active(self.batch_norm1(_linear(self.w1, x, self.max_norm)))
        for block in self.linear_stages:
            x = block(x)
        return _linear(self.w2, x, self.max_norm)


class _Block(nn.Module):
    def __init__(self, width: int, dropout: float, max_norm: bool, eps: float):
        super().__init__()
        self.max_norm = max_norm
        self.w1, self.w2 = nn.Linear(width, width), nn.Linear(width, width)
        self.batch_norm1, self.batch_norm2 = nn.BatchNorm1d(width, eps), nn.BatchNorm1d(width, eps)
        self.active = ReLUDropout(dropout)

    def forward(self, x: Float[Tensor, "B W"]) -> Float[Tensor, "B W"]:
        y = self.active(self.batch_norm1(_linear(self.w1, x, self.max_norm)))
        return x + self.active(self.batch_norm2(_linear(self.w2, y, self.max_norm)))


def _linear(layer: nn.Linear, x: Tensor, max_norm: bool) -> Tensor:
    weight = layer.weight / layer.weight.norm().clamp_min(1) if max_norm else layer.weight
    return F.linear(x, weight, layer.bias)


# ---- published checkpoints -----------------------------------------------------------------------------------------
def load_simple_baseline(path: Path | str, max_norm: bool = False) -> SimpleBaseline3D:
    """The network of a published checkpoint, of the size that its weights say, in eval mode.

    `max_norm` says whether it was trained with it: the file does not. The statistics by which inputs and outputs are standardised
    are not in such a file either. InputError if it holds another network.
    """
    state = read_published(path)
    if tensorflow := any(key.startswith("linear_model.") for key in state):
        state = from_tensorflow(state)
    if "w1.weight" not in state or "w2.weight" not in state:
        raise InputError(f"{path} holds {what_network(state)}, not SimpleBaseline-3D")
    (width, inputs), outputs = state["w1.weight"].shape, len(state["w2.weight"])
    blocks = len({key.split(".")[1] for key in state if key.startswith("linear_stages.")})
    network = SimpleBaseline3D(inputs, outputs, width, blocks, max_norm=max_norm, eps=1e-3 if tensorflow else 1e-5)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path} holds another SimpleBaseline-3D: {' '.join(str(error).split())[:300]}") from error
    return network.eval()


def from_tensorflow(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of the authors' TensorFlow variables (scopes joined by dots, matrices as (out, in)) as ours.

    w1 b1, w2_i b2_i and w3_i b3_i of block i, w4 b4; batch norms are numbered 10, 20, 11, 21.
    """
    return {_ours(key.removeprefix("linear_model.")): value for key, value in state.items()}


def _ours(name: str) -> str:
    if found := re.fullmatch(r"two_linear_(\d+)\.([wb])([23])_\d+", name):
        block, kind, layer = found.groups()
        return f"linear_stages.{block}.w{int(layer) - 1}.{_KINDS[kind]}"
    if found := re.fullmatch(r"two_linear_(\d+)\.batch_normalization([12])\d+\.(\w+)", name):
        return "linear_stages.{}.batch_norm{}.{}".format(*found.groups())
    if found := re.fullmatch(r"([wb])([14])", name):
        return f"w{1 if found[2] == '1' else 2}.{_KINDS[found[1]]}"
    return name.replace("batch_normalization.", "batch_norm1.")
