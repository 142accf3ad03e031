"""Which pose prior helps a fit more: the mixture of Gaussians or the autoencoder, on people neither was trained on.

`python -m body3d.benchmarks.prior data/retargeted.npz` prints four tables: how well the autoencoder reproduces poses, how well each
prior tells a pose from a damaged one, how it fills in limbs that are not known, and how it lifts 2D joints.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import roma
import torch
from jaxtyping import Float
from torch import Tensor

from body3d.body import lbs
from body3d.body.model import BodyModel
from body3d.body.priors import BENDING, MaxMixturePrior
from body3d.body.vposer import VPoser, load_vposer, shipped_vposer
from body3d.fit.solve import lbfgs
from body3d.learn.pose_vae import BodySurface, Poses, PoseVAERun, angle_between
from body3d.metrics.mpjpe import joint_errors, pa_mpjpe
from body3d.skeletons import BODY_JOINTS
from body3d.train import Plan

Table = dict[str, dict[str, float]]

LIMBS = {
    f"{side} {limb}": tuple(f"{side}_{joint}" for joint in joints)
    for side in ("left", "right")
    for limb, joints in (("arm", ("collar", "shoulder", "elbow", "wrist")), ("leg", ("hip", "knee", "ankle", "foot")))
}
HIDDEN = {
    "left arm": LIMBS["left arm"],
    "both arms": LIMBS["left arm"] + LIMBS["right arm"],
    "both legs": LIMBS["left leg"] + LIMBS["right leg"],
    "right side": LIMBS["right arm"] + LIMBS["right leg"],
}
# What a detector of bodies sees, and what Human3.6M's tables count.
_BOTH_SIDES = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle", "foot")
SEEN = (*(f"{side}_{joint}" for side in ("left", "right") for joint in _BOTH_SIDES), "head")
COUNTED = (*(name for name in SEEN if not name.endswith("foot")), "neck")


def rows(names: tuple[str, ...]) -> list[int]:
    return [BODY_JOINTS.index(name) for name in names]


@dataclass(frozen=True)
class Priors:
    mixture: MaxMixturePrior
    vae: VPoser
    surface: BodySurface

    @staticmethod
    def of(vae: VPoser | None = None) -> "Priors":
        """Those that come with the package, or another autoencoder."""
        mixture = MaxMixturePrior.shipped().over(BODY_JOINTS)
        return Priors(mixture, vae or shipped_vposer(), BodySurface.of(BodyModel.open()))

    @property
    def mean_pose(self) -> Float[Tensor, "21 3"]:
        return self.mixture.mean_pose(BODY_JOINTS)


def degrees(a: Float[Tensor, "*B 3 3"], b: Float[Tensor, "*B 3 3"]) -> Float[Tensor, "*B"]:
    return torch.rad2deg(roma.rotmat_geodesic_distance(a, b))


# ---- (a) reproducing a pose ----------------------------------------------------------------------------------------
def reconstruction(priors: Priors, pose: Float[Tensor, "N 21 3"]) -> Table:
    """Errors of the encoder's code, and of the best code there is: what of a pose the 32 numbers can say at all."""
    true = lbs.rotation_matrices(pose)
    points, joints = priors.surface(true)
    code = priors.vae.encode(pose)[0]
    distance = lambda z: roma.rotmat_geodesic_distance(priors.vae.rotations(z), true).square().sum(-1)
    best = lbfgs(lambda z: _smooth_distance(priors.vae.rotations(z), true).sum(-1) + 1e-4 * z.square().sum(-1), code)
    nearer = torch.where((distance(best.x) < distance(code))[:, None], best.x, code)
    table = {}
    for name, rotations in (
        ("mean pose", lbs.rotation_matrices(priors.mean_pose).expand_as(true)),
        ("encoder", priors.vae.rotations(code)),
        ("best code", priors.vae.rotations(nearer)),
    ):
        p, j = priors.surface(rotations)
        table[name] = {
            "degrees": degrees(rotations, true).mean().item(),
            "joints mm": 1000 * joint_errors(j, joints).mean().item(),
            "surface mm": 1000 * joint_errors(p, points).mean().item(),
        }
    return table


def _smooth_distance(a: Float[Tensor, "*B 3 3"], b: Float[Tensor, "*B 3 3"]) -> Float[Tensor, "*B"]:
    """About the squared angle between two rotations, smooth everywhere: 4 sin²(angle / 2)."""
    return (a - b).square().sum((-2, -1)) / 2


# ---- (b) telling poses from damaged ones ---------------------------------------------------------------------------
def damaged(pose: Float[Tensor, "N 21 3"], random: torch.Generator) -> dict[str, Float[Tensor, "N 21 3"]]:
    """The poses with something wrong, by what it is."""
    N = len(pose)

    def backwards(hinges: list[tuple[str, int, float]], which: Tensor) -> Tensor:
        """Row n of `which` says which hinges bend the wrong way, by their own angle but at least half a radian."""
        out = pose.clone()
        for (joint, axis, sign), chosen in zip(hinges, which.T, strict=True):
            wrong = sign * pose[:, BODY_JOINTS.index(joint), axis].abs().clamp_min(0.5)
            out[:, BODY_JOINTS.index(joint), axis] = torch.where(chosen, wrong, out[:, BODY_JOINTS.index(joint), axis])
        return out

    def swapped(which: Tensor) -> Tensor:
        """Row n of `which` says which limbs are another pose's."""
        out = pose.clone()
        for joints, chosen in zip(LIMBS.values(), which.T, strict=True):
            other = pose[torch.randperm(N, generator=random)]
            limb = rows(joints)
            out[:, limb] = torch.where(chosen[:, None, None], other[:, limb], out[:, limb])
        return out

    one_of = lambda k: torch.arange(k) == torch.randint(k, (N, 1), generator=random)
    every = lambda k: torch.ones(N, k, dtype=torch.bool)
    knees = [hinge for hinge in BENDING if hinge[0].endswith("knee")]
    noise = lambda size: pose + size * torch.randn(pose.shape, generator=random)
    return {
        "both knees backwards": backwards(knees, every(2)),
        "one knee or elbow backwards": backwards(list(BENDING), one_of(4)),
        "one limb of another pose": swapped(one_of(4)),
        "four limbs of four poses": swapped(every(4)),
        "noise 0.1 rad": noise(0.1),
        "noise 0.3 rad": noise(0.3),
    }


def energies(priors: Priors, pose: Float[Tensor, "N 21 3"]) -> dict[str, Float[Tensor, " N"]]:
    """What each prior finds wrong with a pose, nats. The reconstruction counts as much as it did in training."""
    run = PoseVAERun(Plan(0, 0.0))
    true, code = lbs.rotation_matrices(pose), priors.vae.encode(pose)[0]
    again = priors.vae.rotations(code)
    (points, joints), (points_again, joints_again) = priors.surface(true), priors.surface(again)
    error = (
        run.surface_weight * (points - points_again).abs().mean((1, 2))
        + run.joint_weight * (joints - joints_again).abs().mean((1, 2))
        + run.rotation_weight * angle_between(true, again).mean(1)
    )
    prior = code.square().sum(-1) / 2
    return {"mixture": priors.mixture(pose), "|z|²": prior, "|z|² + reconstruction": prior + error / run.kl_weight}


def auc(real: Float[Tensor, " N"], wrong: Float[Tensor, " M"]) -> float:
    """How often a wrong one has more energy than a real one, over all pairs."""
    return ((wrong[:, None] > real).double() + 0.5 * (wrong[:, None] == real)).mean().item()


def telling(priors: Priors, pose: Float[Tensor, "N 21 3"], random: torch.Generator) -> Table:
    """Areas under the curve over all pairs, and ("own") how often a damaged pose costs more than the pose it was made of."""
    real = energies(priors, pose)
    table = {}
    for name, other in damaged(pose, random).items():
        wrong = energies(priors, other)
        table[name] = {e: auc(real[e], wrong[e]) for e in real}
        table[name] |= {f"{e}, own": (wrong[e] > real[e]).double().mean().item() for e in real}
    return table


# ---- (c) limbs that are not known ----------------------------------------------------------------------------------
def fill_by_mixture(
    mixture: MaxMixturePrior, pose: Float[Tensor, "N 21 3"], hidden: list[int]
) -> Float[Tensor, "N 21 3"]:
    """The pose of least energy among those with the given joints: the best of the components' conditional means."""
    h = [3 * j + a for j in hidden for a in range(3)]
    o = [i for i in range(pose.shape[1] * 3) if i not in h]
    x = pose.flatten(1)
    precision = mixture.whitening.mT @ mixture.whitening
    pull = torch.einsum("kho,kno->knh", precision[:, h][:, :, o], x[:, o] - mixture.means[:, None, o])
    filled = x.expand(len(mixture.means), *x.shape).clone()
    filled[..., h] = mixture.means[:, None, h] - torch.linalg.solve(precision[:, h][:, :, h], pull.mT).mT
    best = mixture(filled.unflatten(-1, (-1, 3))).argmin(0)
    return filled[best, torch.arange(len(x))].unflatten(-1, (-1, 3))


def fill_by_vae(
    priors: Priors, pose: Float[Tensor, "N 21 3"], hidden: list[int], sigma: float = 0.1
) -> Float[Tensor, "N 21 3 3"]:
    """Rotations of the code that is likeliest when known joints are the code's up to `sigma` radians."""
    known = [j for j in range(pose.shape[1]) if j not in hidden]
    true = lbs.rotation_matrices(pose[:, known])

    def cost(z: Tensor) -> Tensor:
        error = _smooth_distance(priors.vae.rotations(z)[:, known], true).sum(-1)
        return (z.square().sum(-1) + error / sigma**2) / 2

    guess = pose.clone()
    guess[:, hidden] = priors.mean_pose[hidden]
    return priors.vae.rotations(lbfgs(cost, priors.vae.encode(guess)[0]).x)


def filling(priors: Priors, pose: Float[Tensor, "N 21 3"]) -> Table:
    """Errors of the hidden joints, the others being as they were."""
    true = lbs.rotation_matrices(pose)
    joints = priors.surface(true)[1][:, 1:]
    table = {}
    for name, names in HIDDEN.items():
        hidden = rows(names)
        mean = priors.mean_pose.expand_as(pose)
        table[name] = {}
        for prior, rotations in (
            ("mean pose", lbs.rotation_matrices(mean)),
            ("mixture", lbs.rotation_matrices(fill_by_mixture(priors.mixture, pose, hidden))),
            ("VAE", fill_by_vae(priors, pose, hidden)),
        ):
            filled = true.clone()
            filled[:, hidden] = rotations[:, hidden]
            table[name][f"{prior} °"] = degrees(filled, true)[:, hidden].mean().item()
            error = joint_errors(priors.surface(filled)[1][:, 1:], joints)[:, hidden]
            table[name][f"{prior} mm"] = 1000 * error.mean().item()
    return table


# ---- (d) lifting ---------------------------------------------------------------------------------------------------
FOCAL, DISTANCE, HEIGHT = 1000.0, 4.0, 1.7  # pixels, metres, metres
FACINGS = 4


@dataclass(frozen=True)
class Photos:
    """People before a camera at the origin that looks along z, y down; x, y in pixels from the principal point."""

    pose: Float[Tensor, "N 21 3"]
    joints: Float[Tensor, "N 22 3"]  # from the pelvis, camera axes, metres
    xy: Float[Tensor, "N K 2"]
    sigma: float  # pixels

    @staticmethod
    def take(priors: Priors, pose: Float[Tensor, "M 21 3"], noise: float, random: torch.Generator) -> "Photos":
        """Every pose from four sides, up to 30 degrees off and pitched from -10 to 30; `noise` is relative to a standing height."""
        pose = pose.repeat_interleave(FACINGS, 0)
        uniform = lambda a, b: torch.deg2rad(a + (b - a) * torch.rand(len(pose), generator=random))
        side = (torch.arange(len(pose)) % FACINGS) * (2 * torch.pi / FACINGS)
        root = _about(0, uniform(-10.0, 30.0)) @ _about(1, side + uniform(-30.0, 30.0))
        joints = _joints(priors, _upright() @ root, lbs.rotation_matrices(pose))
        sigma = noise * HEIGHT * FOCAL / DISTANCE
        xy = _project(joints, torch.tensor([0.0, 0, DISTANCE]))
        return Photos(pose, joints, xy + sigma * torch.randn(xy.shape, generator=random), sigma)


def _about(axis: int, angle: Float[Tensor, " N"]) -> Float[Tensor, "N 3 3"]:
    return roma.rotvec_to_rotmat(angle[:, None] * torch.eye(3)[axis])


def _upright() -> Float[Tensor, "3 3"]:
    """From y up to y down, facing the camera."""
    return torch.diag(torch.tensor([1.0, -1, -1]))


def _joints(
    priors: Priors, root: Float[Tensor, "N 3 3"], rotations: Float[Tensor, "N 21 3 3"]
) -> Float[Tensor, "N 22 3"]:
    """From the pelvis."""
    joints = priors.surface.transforms(rotations)[..., :3, 3]
    return (joints - joints[:, :1]) @ root.mT


def _project(joints: Float[Tensor, "N 22 3"], transl: Float[Tensor, "*#N 3"]) -> Float[Tensor, "N K 2"]:
    """The joints that a detector sees."""
    xyz = joints[:, [1 + j for j in rows(SEEN)]] + transl.unsqueeze(-2)
    return FOCAL * xyz[..., :2] / xyz[..., 2:].clamp_min(0.1)


def lift(
    priors: Priors,
    photos: Photos,
    rotations_of: Callable[[Tensor], Tensor],
    energy_of: Callable[[Tensor], Tensor],
    start: Float[Tensor, " P"],
    weight: float,
) -> dict[str, float]:
    """Root, place and pose that agree with the 2D joints and the prior: from four facings, the best of which goes on to the end.

    `rotations_of` and `energy_of` (nats, times `weight`) take the pose's numbers, which begin at `start`.
    """
    N = len(photos.pose)
    facings = _upright() @ _about(1, (torch.arange(N * FACINGS) % FACINGS) * (2 * torch.pi / FACINGS))

    def pose_of(x: Tensor, facing: Tensor) -> tuple[Tensor, Tensor]:
        rotations = rotations_of(x[:, 6:])
        return rotations, _joints(priors, lbs.rotation_matrices(x[:, :3]) @ facing, rotations)

    def cost(xy: Tensor, facing: Tensor) -> Callable[[Tensor], Tensor]:
        def of(x: Tensor) -> Tensor:
            error = (_project(pose_of(x, facing)[1], x[:, 3:6]) - xy) / photos.sigma
            return error.square().sum((-2, -1)) / 2 + weight * energy_of(x[:, 6:])

        return of

    centre = photos.xy.mean(1) / FOCAL * DISTANCE
    x = torch.cat([torch.zeros(N, 3), centre, torch.full((N, 1), DISTANCE), start.expand(N, -1)], -1).repeat_interleave(
        FACINGS, 0
    )
    first = lbfgs(cost(photos.xy.repeat_interleave(FACINGS, 0), facings), x, 30)
    best = first.cost.view(N, FACINGS).argmin(1) + FACINGS * torch.arange(N)
    found = lbfgs(cost(photos.xy, facings[best]), first.x[best], 200)
    rotations, joints = pose_of(found.x, facings[best])
    counted = [1 + j for j in rows(COUNTED)]
    pa = 1000 * pa_mpjpe(joints[:, counted], photos.joints[:, counted])
    return {
        "PA mean": pa.mean().item(),
        "PA median": pa.median().item(),
        "MPJPE": 1000 * joint_errors(joints, photos.joints)[:, counted].mean().item(),
        "degrees": degrees(rotations, lbs.rotation_matrices(photos.pose)).mean().item(),
        "px": (_project(joints, found.x[:, 3:6]) - photos.xy).norm(dim=-1).mean().item(),
        "converged": found.converged.double().mean().item(),
    }


def lifting(
    priors: Priors, pose: Float[Tensor, "N 21 3"], noise: float, weights: tuple[float, ...], random: torch.Generator
) -> Table:
    """The mixture over rotation vectors and the autoencoder over codes, each at several weights of its energy (nats)."""
    photos = Photos.take(priors, pose, noise, random)
    table = {}
    for weight in weights:
        table[f"mixture, weight {weight:g}"] = lift(
            priors, photos, lambda x: lbs.rotation_matrices(x.unflatten(-1, (-1, 3))),
            lambda x: priors.mixture(x.unflatten(-1, (-1, 3))), priors.mean_pose.flatten(), weight,
        )  # fmt: skip
    for weight in weights:
        table[f"VAE, weight {weight:g}"] = lift(
            priors, photos, priors.vae.rotations, lambda z: z.square().sum(-1) / 2, torch.zeros(priors.vae.latent), weight,
        )  # fmt: skip
    return table


# ---- all of it -----------------------------------------------------------------------------------------------------
def run(
    poses: Path, vae: VPoser | None = None, count: int = 1000, optimised: int = 200, lifted: int = 40, noise: float = 0.01,
    weights: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0), seed: int = 0,
) -> dict[str, Table]:  # fmt: skip
    """Tables by name, from frames of `scripts/retarget_mocap.py`'s held-out subjects (clips count by their lengths' root)."""
    priors = Priors.of(vae)
    held_out = Poses.retargeted(poses, True, torch.device("cpu"))
    random = torch.Generator().manual_seed(seed)
    pose = held_out.pose[torch.multinomial(held_out.weight, count, generator=random)]
    return {
        "reconstruction": reconstruction(priors, pose[:optimised]),
        "telling": telling(priors, pose, random),
        "filling": filling(priors, pose[:optimised]),
        "lifting": lifting(priors, pose[:lifted], noise, weights, random),
    }


def text(tables: dict[str, Table]) -> str:
    """The tables as lines of text."""
    lines = []
    for title, table in tables.items():
        columns = list(next(iter(table.values())))
        lines += ["", f"{title:<30}" + "".join(f"{c:>{max(len(c), 8) + 2}}" for c in columns)]
        for row, figures in table.items():
            lines.append(f"{row:<30}" + "".join(f"{figures[c]:>{max(len(c), 8) + 2}.3g}" for c in columns))
    return "\n".join(lines[1:])


if __name__ == "__main__":
    print(text(run(Path(sys.argv[1]), load_vposer(sys.argv[2]) if sys.argv[2:] else None)))
