"""Learn the body-pose prior: a mixture of Gaussians over the rotation vectors of the 21 body joints.

    python scripts/retarget_mocap.py MOCAP --out data/retargeted.npz
    python scripts/train_pose_prior.py data/retargeted.npz

Expectation-maximisation on the retargeted motion capture, every frame with its mirror image, the held-out subjects
left out. A frame counts by its clip: all frames of a clip together weigh the square root of their number, shared
between the exporters' copies of one trial, so that minutes of salsa do not drown seconds on the floor.

Prints the mean log-likelihood per frame (nats) of training and held-out subjects, by the same weights.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from jaxtyping import Float, Int
from torch import Tensor

from body3d.atomic import atomic
from body3d.datasets.mocap import HELD_OUT_SUBJECTS, is_held_out
from body3d.errors import InputError
from body3d.skeletons import SMPLX55

JOINTS = SMPLX55.names[1:22]
# Mirrored in the plane between left and right: joints swap sides, and a rotation vector keeps x and turns y and z
# round.
MIRROR_JOINTS = [j - 1 for j in SMPLX55.flip[1:22]]
MIRROR_SIGNS = torch.tensor([1.0, -1.0, -1.0])
# Added to every component's variances (radians): what retargeting cannot see, and what half a million similar frames
# hide. The capture has no toes and poor hands; a prior must not be sure about them.
FLOOR = dict.fromkeys(JOINTS, 0.03) | {"left_wrist": 0.2, "right_wrist": 0.2, "left_foot": 0.1, "right_foot": 0.1}


@dataclass(frozen=True)
class Mixture:
    weights: Float[Tensor, " K"]
    means: Float[Tensor, "K D"]
    covars: Float[Tensor, "K D D"]


def log_densities(mixture: Mixture, x: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
    """log(weight) + log N(x) of every component."""
    chol = torch.linalg.cholesky(mixture.covars)
    whitened = torch.linalg.solve_triangular(chol, (x[None] - mixture.means[:, None]).mT, upper=False)  # K D N
    log_det = 2 * chol.diagonal(dim1=1, dim2=2).log().sum(1)
    normal = -0.5 * (whitened.square().sum(1) + log_det[:, None] + x.shape[1] * np.log(2 * np.pi))
    return (normal + mixture.weights.log()[:, None]).T


def log_likelihood(mixture: Mixture, x: Float[Tensor, "N D"], weight: Float[Tensor, " N"]) -> float:
    """Weighted mean of log p(x), nats."""
    return float((log_densities(mixture, x).logsumexp(1) * weight).sum() / weight.sum())


def k_means(
    x: Float[Tensor, "N D"], weight: Float[Tensor, " N"], k: int, seed: int, rounds: int = 30
) -> Int[Tensor, " N"]:
    """Weighted Lloyd iterations from k-means++ seeds; the cluster of every row."""
    random = torch.Generator().manual_seed(seed)
    centres = x[torch.multinomial(weight, 1, generator=random)]
    for _ in range(1, k):
        far = torch.cdist(x, centres).amin(1).square() * weight
        centres = torch.cat([centres, x[torch.multinomial(far, 1, generator=random)]])
    for _ in range(rounds):
        label = torch.cdist(x, centres).argmin(1)
        share = torch.nn.functional.one_hot(label, k).to(x) * weight[:, None]
        total = share.sum(0)
        centres = torch.where(total[:, None] > 0, share.T @ x / total[:, None].clamp_min(1e-12), centres)
    return label


def maximise(x: Float[Tensor, "N D"], share: Float[Tensor, "N K"], floor: Float[Tensor, " D"]) -> Mixture:
    """The mixture of rows shared out between components, `floor` (standard deviations) added to each covariance."""
    total = share.sum(0)
    means = share.T @ x / total[:, None]
    covars = torch.stack([((x - m).T * s) @ (x - m) / s.sum() for m, s in zip(means, share.T, strict=True)])
    return Mixture(total / total.sum(), means, covars + torch.diag(floor.square()))


def fit_mixture(
    x: Float[Tensor, "N D"],
    weight: Float[Tensor, " N"],
    k: int,
    floor: Float[Tensor, " D"],
    seed: int = 0,
    rounds: int = 200,
    tolerance: float = 1e-3,
) -> Mixture:
    """EM from a k-means start until the mean log-likelihood gains less than `tolerance` nats."""
    label = k_means(x, weight, k, seed)
    mixture = maximise(x, torch.nn.functional.one_hot(label, k).to(x) * weight[:, None], floor)
    before = -float("inf")
    for _ in range(rounds):
        joint = log_densities(mixture, x)
        now = float((joint.logsumexp(1) * weight).sum() / weight.sum())
        if now - before < tolerance:
            break
        before = now
        mixture = maximise(x, joint.softmax(1) * weight[:, None], floor)
    return mixture


def unwrap(pose: Float[Tensor, "N J 3"], rounds: int = 3) -> Float[Tensor, "N J 3"]:
    """Of the two shortest vectors of one rotation, r and r - 2 pi r/|r|, the one nearer to the joint's mean.

    Logarithms end at pi, where a rotation's vector jumps to the other side; a Gaussian must see both sides as
    neighbours.
    """
    for _ in range(rounds):
        angle = pose.norm(dim=-1, keepdim=True)
        other = pose * (1 - 2 * torch.pi / angle.clamp_min(1e-6))
        mean = pose.mean(0)
        nearer = ((other - mean).norm(dim=-1) < (pose - mean).norm(dim=-1))[..., None] & (angle > torch.pi / 2)
        pose = torch.where(nearer, other, pose)
    return pose


def mirror(pose: Float[Tensor, "N 21 3"]) -> Float[Tensor, "N 21 3"]:
    return pose[:, MIRROR_JOINTS] * MIRROR_SIGNS.to(pose)


@dataclass(frozen=True)
class Frames:
    pose: Float[Tensor, "N 21 3"]  # rotation vectors, mirror images included
    weight: Float[Tensor, " N"]


def read_frames(path: Path) -> tuple[Frames, Frames]:
    """Training and held-out frames of `retarget_mocap.py`'s file, weighted by clip."""
    if not path.is_file():
        raise InputError(f"{path} is not there: make it with scripts/retarget_mocap.py")
    with np.load(path, allow_pickle=False) as file:
        if not {"pose", "plausible", "clip", "clip_id", "subject"} <= set(file.files):
            raise InputError(f"{path} is not a file of scripts/retarget_mocap.py: it has {', '.join(file.files)}")
        pose = torch.from_numpy(file["pose"].astype(np.float64))[:, 1:]
        good, clip = file["plausible"], file["clip"].astype(int)
        ids, subjects = file["clip_id"], file["subject"]

    frames_of = np.bincount(clip[good], minlength=len(ids)).clip(1)
    # One trial from several exporters: the same person and the same id.
    trials = [f"{subject}/{i}" for subject, i in zip(subjects, ids, strict=True)]
    copies = np.array([trials.count(t) for t in trials])
    weight = torch.from_numpy((1 / np.sqrt(frames_of) / copies)[clip])
    held = np.array([is_held_out(str(s)) for s in subjects])[clip]

    both = unwrap(torch.cat([pose, mirror(pose)]))

    def pick(which: np.ndarray) -> Frames:
        rows = torch.from_numpy(np.tile(which & good, 2))
        return Frames(both[rows], weight.repeat(2)[rows])

    return pick(~held), pick(held)


def main(
    retargeted: Annotated[Path, tyro.conf.Positional],
    out: Path = Path(__file__).parents[1] / "body3d/body/pose_prior.npz",
    components: int = 8,
    compare: tuple[int, ...] = (),
    seed: int = 0,
) -> None:
    """Learn the mixture and write it.

    Args:
        retargeted: the npz of scripts/retarget_mocap.py.
        out: the npz to write: `means` (K, 63), `covars` (K, 63, 63), `weights` (K,), `joint_names` (21,), `source`,
            `held_out`.
        components: number of Gaussians.
        compare: other numbers of Gaussians whose likelihoods are printed too.
        seed: of the k-means start.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
    train, held = read_frames(retargeted)
    floor = torch.tensor([FLOOR[name] for name in JOINTS], dtype=torch.float64).repeat_interleave(3)
    print(f"{len(train.pose)} training and {len(held.pose)} held-out frames, mirror images included; nats per frame:")
    for k in (*compare, components):
        mixture = fit_mixture(train.pose.flatten(1), train.weight, k, floor, seed)
        a, b = (log_likelihood(mixture, f.pose.flatten(1), f.weight) for f in (train, held))
        print(f"  {k:3d} components: train {a:7.2f}, held out {b:7.2f}", flush=True)
    order = mixture.weights.argsort(descending=True)

    with atomic(out) as part, part.open("wb") as file:
        np.savez_compressed(
            file,
            means=mixture.means[order].numpy().astype(np.float32),
            covars=mixture.covars[order].numpy().astype(np.float32),
            weights=mixture.weights[order].numpy().astype(np.float32),
            joint_names=np.array(JOINTS),
            source=np.array(
                "Free motion capture retargeted to the open body: CMU Graphics Lab (mocap.cs.cmu.edu, NSF EIA-0196217), "
                "DeepMimic (MIT), Mesh2Motion (CC0)"
            ),
            held_out=np.array(sorted(HELD_OUT_SUBJECTS)),
        )
    print(f"{out}: weights {[round(w, 3) for w in mixture.weights[order].tolist()]}, {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except InputError as error:
        sys.exit(f"error: {error}")
