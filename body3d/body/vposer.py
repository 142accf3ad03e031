"""VPoser: body poses as 32 numbers that are standard normal for what people do, from a variational autoencoder.

Pavlakos et al., "Expressive Body Capture", CVPR 2019. Two releases with different networks are in use and their weights are not
interchangeable: `vposer_v1` (SMPLify-X's) and `vposer_v2` (V02_05). The modules bear the names of v2, so that its checkpoints load
as they are; `from_v1` renames those of v1.

The decoder gives each joint six numbers, a matrix of two columns that Gram and Schmidt make a rotation. A pose here is the rotation
vectors of SMPL-X's 21 body joints after the root.
"""

from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import roma
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad, softplus

from body3d.atomic import atomic
from body3d.body.files import read_arrays
from body3d.checkpoints import read_published, what_network
from body3d.errors import InputError
from body3d.rot6d import rot6d_to_matrix
from body3d.skeletons import BODY_JOINTS

__all__ = [
    "VPoser", "from_v1", "load_vposer", "rotvec_jacobian", "save_vposer", "shipped_vposer", "vposer_v1", "vposer_v2",
]  # fmt: skip

WIDTH, LATENT = 512, 32
J = len(BODY_JOINTS)


class VPoser(nn.Module):
    """`slope` is the leaky ReLUs'; `middle` stands between the encoder's second layer and its heads (v2: one more layer)."""

    def __init__(self, width: int, latent: int, slope: float, middle: nn.Module):
        super().__init__()
        self.latent, self.slope = latent, slope
        self.encoder_net = nn.Sequential(
            nn.Flatten(), nn.BatchNorm1d(3 * J), nn.Linear(3 * J, width), nn.LeakyReLU(slope), nn.BatchNorm1d(width),
            nn.Dropout(0.1), nn.Linear(width, width), middle,
            nn.ModuleDict({"mu": nn.Linear(width, latent), "logvar": nn.Linear(width, latent)}),
        )  # fmt: skip
        self.decoder_net = nn.Sequential(
            nn.Linear(latent, width), nn.LeakyReLU(slope), nn.Dropout(0.1), nn.Linear(width, width), nn.LeakyReLU(slope),
            nn.Linear(width, 6 * J),
        )  # fmt: skip

    def encode(self, pose: Float[Tensor, "B 21 3"]) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """Mean and standard deviation of the code.

        The network was trained on the shorter of a rotation's two vectors (at most pi long) and takes the longer one for
        another pose. What the publications call "logvar" is the standard deviation before a softplus.
        """
        h = self.encoder_net[:-1](pose)
        mean, raw = (head(h) for head in self.encoder_net[-1].children())
        return mean, softplus(raw)

    def forward(
        self, pose: Float[Tensor, "B 21 3"]
    ) -> tuple[Float[Tensor, "B 21 3 3"], Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """The poses again as rotation matrices, from codes drawn at random in training and from their means otherwise, and
        the codes' means and standard deviations."""
        mean, std = self.encode(pose)
        z = mean + std * torch.randn_like(std) if self.training else mean
        return self.rotations(z), mean, std

    def rotations(self, z: Float[Tensor, "*B Z"]) -> Float[Tensor, "*B 21 3 3"]:
        """The rotation matrix of each joint, in its parent's frame."""
        return rot6d_to_matrix(self.decoder_net(z).unflatten(-1, (J, 6)), "interleaved")

    def decode(self, z: Float[Tensor, "*B Z"]) -> Float[Tensor, "*B 21 3"]:
        """The rotation vector of each joint, at most pi long: at a half turn it jumps to the other side, the rotation does not."""
        return roma.rotmat_to_rotvec(self.rotations(z))

    def jacobian(self, z: Float[Tensor, "*B Z"]) -> Float[Tensor, "*B 63 Z"]:
        """The derivative of `decode(z)`, joint by joint, by z in closed form; without dropout. At half turns it is the limit's."""
        first, second, last = (layer for layer in self.decoder_net if isinstance(layer, nn.Linear))
        h = first(z)
        gain = self._gain(h)
        by_z = gain.unsqueeze(-1) * first.weight
        h = second(h * gain)
        gain = self._gain(h)
        by_z = last.weight @ (gain.unsqueeze(-1) * (second.weight @ by_z))
        six = last(h * gain).unflatten(-1, (J, 6))
        R = rot6d_to_matrix(six, "interleaved")
        by_six = rotvec_jacobian(roma.rotmat_to_rotvec(R)) @ _turn_by_six(six, R)
        return (by_six @ by_z.unflatten(-2, (J, 6))).flatten(-3, -2)

    def _gain(self, h: Float[Tensor, "*B W"]) -> Float[Tensor, "*B W"]:
        """What a leaky ReLU multiplies by: 1 or its slope."""
        return self.slope + (1 - self.slope) * (h > 0).to(h)


def vposer_v1(width: int = WIDTH, latent: int = LATENT) -> VPoser:
    """The network of SMPLify-X (branch cvpr19): 673,596 numbers."""
    return VPoser(width, latent, 0.2, nn.LeakyReLU(0.2))


def vposer_v2(width: int = WIDTH, latent: int = LATENT) -> VPoser:
    """The network of V02_05: 936,252 numbers. No activation between the encoder's last two layers, as published."""
    return VPoser(width, latent, 0.01, nn.Linear(width, width))


# ---- derivatives ---------------------------------------------------------------------------------------------------
def rotvec_jacobian(rotvec: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3 3"]:
    """How a rotation vector moves per radian that its rotation turns about the axes of the turned frame, R → R exp([w]x).

    The inverse of the right Jacobian of SO(3), finite for angles below 2 pi.
    """
    angle = rotvec.norm(dim=-1)[..., None, None]
    small = angle < 0.05
    half = torch.where(small, 1.0, angle) / 2
    factor = torch.where(small, 1 / 12 + angle.square() / 720, (1 - half / half.tan()) / (4 * half.square()))
    cross = _cross(rotvec)
    return torch.eye(3).to(rotvec) + cross / 2 + factor * (cross @ cross)


def _cross(v: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3 3"]:
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def _turn_by_six(six: Float[Tensor, "*B 6"], R: Float[Tensor, "*B 3 3"]) -> Float[Tensor, "*B 3 6"]:
    """How the frame R of six interleaved numbers turns about its own axes, per unit of each number.

    With a and c the two columns, a moving across itself turns the frame about its second and third axis; c across the plane
    of both turns it about the first.
    """
    a, c = six.unflatten(-1, (3, 2)).unbind(-1)
    first, second, third = R.unbind(-1)
    length = a.norm(dim=-1, keepdim=True)
    along, across = (c * first).sum(-1, keepdim=True), (c * second).sum(-1, keepdim=True)
    by_a = torch.stack([-third * along / (length * across), -third / length, second / length], -2)
    by_c = pad((third / across).unsqueeze(-2), (0, 0, 0, 2))
    return torch.stack([by_a, by_c], -1).flatten(-2)


# ---- files ---------------------------------------------------------------------------------------------------------
_V1 = {
    "bodyprior_enc_bn1": "encoder_net.1", "bodyprior_enc_fc1": "encoder_net.2", "bodyprior_enc_bn2": "encoder_net.4",
    "bodyprior_enc_fc2": "encoder_net.6", "bodyprior_enc_mu": "encoder_net.8.mu", "bodyprior_enc_logvar": "encoder_net.8.logvar",
    "bodyprior_dec_fc1": "decoder_net.0", "bodyprior_dec_fc2": "decoder_net.3", "bodyprior_dec_out": "decoder_net.5",
}  # fmt: skip


def from_v1(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """v1's state_dict under the names used here."""
    out = {}
    for key, tensor in state.items():
        layer, _, name = key.rpartition(".")
        out[f"{_V1.get(layer, layer)}.{name}"] = tensor
    return out


class _Inert:
    """Stands for every object of another package in a checkpoint: it can be built and filled, and does nothing."""

    def __init__(self, *args: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def load_vposer(path: Path | str) -> VPoser:
    """A released VPoser of either version in eval mode: its folder (the last of `snapshots`) or the .pt or .ckpt file itself.

    Only tensors are read: what else PyTorch Lightning keeps in v2's file (its callbacks' and settings' classes) is not run.
    InputError for anything else.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(f for f in path.glob("snapshots/*") if f.suffix in (".pt", ".ckpt"))
        if not found:
            raise InputError(f"{path} is not a folder of VPoser: it has no snapshots/*.pt or snapshots/*.ckpt")
        path = found[-1]
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not in torch's newer format, or no checkpoint at all, which the reader says
        foreign = []
    with torch.serialization.safe_globals([(_Inert, name) for name in foreign]):
        state = read_published(path)
    inner = {key.removeprefix("vp_model."): t for key, t in state.items() if key.startswith("vp_model.")}
    return _build(inner or state, path)


def _build(state: dict[str, Tensor], path: Path) -> VPoser:
    make = vposer_v2
    if any(key.startswith("bodyprior_") for key in state):
        make, state = vposer_v1, from_v1(state)
    first = state.get("decoder_net.0.weight")
    if first is None or first.ndim != 2:
        raise InputError(f"{path} holds {what_network(state)}, not VPoser")
    model = make(*first.shape)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path} holds another VPoser: {' '.join(str(error).split())[:300]}") from error
    return model.eval().requires_grad_(False)


@cache
def shipped_vposer() -> VPoser:
    """The prior that comes with the package: v2's network, learnt from free motion capture on the open body. On the CPU."""
    with resources.as_file(resources.files("body3d.body") / "pose_vae.npz") as path:
        arrays = read_arrays(path, None, required=("joint_names",), what="pose prior")
        tensors = {key: torch.from_numpy(a) for key, a in arrays.items() if a.dtype.kind in "fi"}
        return _build({key: t.float() if t.is_floating_point() else t for key, t in tensors.items()}, path)


def save_vposer(path: Path | str, model: VPoser, **notes: np.ndarray) -> None:
    """In half precision (vectors in single: variances may be tiny), without pickles, `notes` beside the weights."""
    arrays = {"joint_names": np.array(BODY_JOINTS), **notes}
    for key, tensor in model.state_dict().items():
        arrays[key] = tensor.cpu().numpy().astype(np.float16) if tensor.ndim > 1 else tensor.cpu().numpy()
    with atomic(path) as part, part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
