"""How the pose prior learns: a variational autoencoder of body poses, with the losses of VPoser's second release.

The surface of the reconstructed body is compared with the true one's (L1), and codes are kept near a standard normal (KL); in the
first epochs the joints' rotations and positions are compared too. Every pose comes with its mirror image.

Differences from the published training: points spread evenly over the open body's surface stand for all vertices of SMPL-X's, and
the learning rate falls by a cosine and not on a plateau.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import roma
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from body3d.body import lbs
from body3d.body.model import BodyModel, Constants
from body3d.body.vposer import VPoser, vposer_v2
from body3d.datasets.amass import AMASS
from body3d.errors import InputError
from body3d.joint_set import mirrored
from body3d.learn.embedded_lifter import People
from body3d.skeletons import BODY_JOINTS
from body3d.train import Plan, Task

__all__ = ["AMASS_VALIDATION", "BodySurface", "PoseVAERun", "PoseVAETask", "Poses", "mirror"]

# The data sets of AMASS that its authors keep for validation and for testing, under their older and newer names.
AMASS_VALIDATION = frozenset({"HumanEva", "MPI_HDM05", "HDM05", "SFU", "MPI_mosh", "MoSh"})
AMASS_TEST = frozenset({"Transitions_mocap", "Transitions", "SSM_synced", "SSM"})

# Mirrored in the plane between left and right joints swap sides, and a rotation vector keeps x and turns y and z round.
_OTHER_SIDE = [BODY_JOINTS.index(mirrored(name)) for name in BODY_JOINTS]


def mirror(pose: Float[Tensor, "B 21 3"]) -> Float[Tensor, "B 21 3"]:
    """The pose of the person in the mirror."""
    return pose[:, _OTHER_SIDE] * pose.new_tensor([1.0, -1, -1])


# ---- data ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Poses:
    """Frames of motion capture. A clip counts by the square root of its length."""

    pose: Float[Tensor, "F 21 3"] = field(repr=False)  # rotation vectors
    weight: Float[Tensor, " F"] = field(repr=False)  # how often each frame is drawn

    @staticmethod
    def retargeted(path: Path, held_out: bool, device: torch.device) -> "Poses":
        """From `scripts/retarget_mocap.py`'s file: the subjects on whom nothing is trained, or all others."""
        people = People.open(path, held_out, device)
        return Poses(people.pose[:, 1:], people.weight)

    @staticmethod
    def amass(folder: Path, held_out: bool, device: torch.device, fps: float = 10.0) -> "Poses":
        """From a folder in AMASS' layout, DATASET/.../*.npz: its validation sets, or all others but the test sets.

        InputError if the folder has none of them.
        """
        asked: Collection[str] = AMASS_VALIDATION
        names = lambda path: set(path.parts[:-1])
        wanted = lambda path: not names(path) & AMASS_TEST and bool(names(path) & asked) == held_out
        try:
            motions = AMASS.open(folder, fps, wanted)
        except InputError as error:
            which = f"among {', '.join(sorted(asked))}" if held_out else "outside the validation and test sets"
            raise InputError(f"{error}; data sets {which} were asked for") from error
        pose, weight = [], []
        for k, file in enumerate(motions.files):
            body = motions.sequence(k).pose[:, file.joints.indices(BODY_JOINTS)]
            # Logarithms end at half a turn; fits to markers do not.
            pose.append(roma.rotmat_to_rotvec(lbs.rotation_matrices(body)))
            weight.append(torch.full((len(body),), len(body) ** -0.5))
        return Poses(torch.cat(pose).to(device), torch.cat(weight).to(device))

    def draw(self, count: int, random: torch.Generator) -> Float[Tensor, "B 21 3"]:
        """Poses and mirror images."""
        pose = self.pose[torch.multinomial(self.weight, count, replacement=True, generator=random)]
        mirrored = torch.rand(count, generator=random, device=pose.device) < 0.5
        return torch.where(mirrored[:, None, None], mirror(pose), pose)


@dataclass(frozen=True, eq=False)
class BodySurface(Constants):
    """Points spread evenly over the surface of the mean body, and its joints; the pelvis is at rest and hands are straight.

    A skinned point is linear in the joints' maps, so all points together are one matrix product.
    """

    joints: Float[Tensor, "22 3"] = field(repr=False)  # at rest, metres
    jumps: Int[Tensor, "D K"] = field(repr=False)  # see lbs.chain_jumps
    mixing: Float[Tensor, "P 88"] = field(repr=False)  # weight · (x, y, z, 1) of the point at rest, joint by joint

    @staticmethod
    def of(model: BodyModel, count: int = 200) -> "BodySurface":
        """Hands and face move with the body joint that carries them; pose blend shapes are left out."""
        carriers = []
        for j, parent in enumerate(model.parents):
            carriers.append(j if model.joints.names[j] in ("pelvis", *BODY_JOINTS) else carriers[parent])
        order = [model.joints.index(name) for name in ("pelvis", *BODY_JOINTS)]
        corners = model.template[model.faces]
        area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=-1).cumsum(0)
        faces = torch.searchsorted(area, (torch.arange(count).to(area) + 0.5) / count * area[-1])
        vertices = model.faces[faces, 0]
        weights = model.weights.new_zeros(count, len(order))
        weights.index_add_(1, torch.tensor([order.index(j) for j in carriers]).to(faces), model.weights[vertices])
        points = torch.cat([model.template[vertices], torch.ones_like(weights[:, :1])], -1)
        parents = [order.index(carriers[p]) if p >= 0 else -1 for p in (model.parents[j] for j in order)]
        return BodySurface(
            model.joint_template[order],
            lbs.chain_jumps(parents).to(faces),
            (weights.unsqueeze(-1) * points.unsqueeze(1)).flatten(1),
        )

    def transforms(self, rotations: Float[Tensor, "B 21 3 3"]) -> Float[Tensor, "B 22 4 4"]:
        """The joints' maps from their own frame to the pelvis'."""
        root = torch.eye(3).to(rotations).expand(len(rotations), 1, 3, 3)
        return lbs.world_transforms(
            torch.cat([root, rotations], 1), self.joints.expand(len(rotations), 22, 3), self.jumps
        )

    def __call__(self, rotations: Float[Tensor, "B 21 3 3"]) -> tuple[Float[Tensor, "B P 3"], Float[Tensor, "B 22 3"]]:
        """Points and joints of posed bodies, metres."""
        T = self.transforms(rotations)
        maps = lbs.rest_to_posed(T, self.joints.expand(len(T), 22, 3)).transpose(1, 2).flatten(2)  # (B, 3, 88)
        return (maps @ self.mixing.mT).mT, T[..., :3, 3]


# ---- the task ------------------------------------------------------------------------------------------------------
class PoseVAETask(Task):
    main = "vae"

    def __init__(self, vae: VPoser, training: Poses, validation: Poses, surface: BodySurface, run: "PoseVAERun"):
        self.modules = nn.ModuleDict({"vae": vae})
        self.training, self.surface, self.run = training, surface, run
        self.held_out = validation.draw(run.validation, torch.Generator(validation.pose.device).manual_seed(2026))

    def steps(self) -> int:
        return self.run.steps

    def batches(self, epoch: int, random: torch.Generator) -> Iterator[tuple[Tensor, bool]]:
        for _ in range(self.run.steps):
            yield self.training.draw(self.run.batch, random), epoch < self.run.extra_epochs

    def losses(self, batch: tuple[Tensor, bool]) -> dict[str, Tensor]:
        pose, extra = batch
        true = lbs.rotation_matrices(pose)
        rotations, mean, std = self.modules["vae"](pose)
        points, joints = self.surface(rotations)
        true_points, true_joints = self.surface(true)
        run = self.run
        return {
            "surface": run.surface_weight * (points - true_points).abs().mean(),
            "kl": run.kl_weight * kl_divergence(mean, std).mean(),
            "rotations": run.rotation_weight * extra * angle_between(rotations, true).mean(),
            "joints": run.joint_weight * extra * (joints - true_joints).abs().mean(),
        }

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Errors of held-out poses that were coded by their means, the codes' length and their divergence."""
        true = lbs.rotation_matrices(self.held_out)
        rotations, mean, std = model(self.held_out)
        (points, joints), (true_points, true_joints) = self.surface(rotations), self.surface(true)
        return {
            "surface mm": 1000 * (points - true_points).norm(dim=-1).mean().item(),
            "joints mm": 1000 * (joints - true_joints).norm(dim=-1).mean().item(),
            "degrees": torch.rad2deg(roma.rotmat_geodesic_distance(rotations, true)).mean().item(),
            "|z|": mean.norm(dim=-1).mean().item(),
            "nats": kl_divergence(mean, std).mean().item(),
        }


def angle_between(A: Float[Tensor, "*B 3 3"], B: Float[Tensor, "*B 3 3"]) -> Float[Tensor, "*B"]:
    """Radians, with a gradient that is finite for equal and opposite rotations too (zero within a thousandth of them)."""
    cosine = ((A * B).sum((-2, -1)) - 1) / 2
    return cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos()


def kl_divergence(mean: Float[Tensor, "B Z"], std: Float[Tensor, "B Z"]) -> Float[Tensor, " B"]:
    """From the standard normal, nats."""
    return 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).sum(-1)


@dataclass(frozen=True)
class PoseVAERun:
    """What `configs/pose_vae.py` says. The losses' weights are those of VPoser's second release."""

    plan: Plan
    batch: int = 512
    steps: int = 100
    surface_weight: float = 4.0  # per metre
    kl_weight: float = 0.005  # per nat
    rotation_weight: float = 2.0  # per radian
    joint_weight: float = 2.0  # per metre
    extra_epochs: int = 15  # with the latter two
    validation: int = 4096  # poses
    width: int = 512
    latent: int = 32
    home: str = "data/retargeted.npz"

    def task(self, path: Path | None, device: torch.device) -> PoseVAETask:
        """Read the poses (a folder: AMASS; a file: retargeted free motion capture) and build the network."""
        path = path or Path(self.home)
        read = Poses.amass if path.is_dir() else Poses.retargeted
        torch.manual_seed(self.plan.seed)
        vae = vposer_v2(self.width, self.latent).to(device)
        training, validation = (read(path, held_out, device) for held_out in (False, True))
        return PoseVAETask(vae, training, validation, BodySurface.of(BodyModel.open().to(device)), self)
