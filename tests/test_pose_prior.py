"""The training of the mixture on known ones, and the prior that ships on poses that a body can and cannot take."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from body3d.body.priors import MaxMixturePrior
from body3d.datasets.mocap import HELD_OUT_SUBJECTS
from body3d.errors import InputError


def load_script(name: str):
    path = Path(__file__).parents[1] / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


train = load_script("train_pose_prior")
PRIOR = Path(__file__).parents[1] / "body3d/body/pose_prior.npz"


@pytest.fixture(scope="module")
def prior() -> MaxMixturePrior:
    return MaxMixturePrior.load(PRIOR)


def known_mixture(n: int) -> tuple[train.Mixture, torch.Tensor]:
    """Three overlapping Gaussians in the plane and n points of them."""
    random = torch.Generator().manual_seed(0)
    weights = torch.tensor([0.5, 0.3, 0.2]).double()
    means = torch.tensor([[0.0, 0.0], [3.0, 1.0], [-1.0, 4.0]]).double()
    factors = torch.tensor([[[1.0, 0.0], [0.5, 0.4]], [[0.3, 0.0], [-0.2, 0.8]], [[0.6, 0.0], [0.0, 0.6]]]).double()
    which = torch.multinomial(weights, n, replacement=True, generator=random)
    noise = torch.randn(n, 2, 1, generator=random).double()
    points = means[which] + (factors[which] @ noise)[..., 0]
    return train.Mixture(weights, means, factors @ factors.mT), points


# ---- training ------------------------------------------------------------------------------------------------------
def test_density_is_one_over_the_plane():
    mixture, _ = known_mixture(1)
    line = torch.linspace(-8, 10, 600).double()
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    mass = train.log_densities(mixture, grid).logsumexp(1).exp().sum() * (line[1] - line[0]).square()
    assert float(mass) == pytest.approx(1, abs=1e-4)


def test_em_recovers_a_known_mixture():
    truth, points = known_mixture(20000)
    found = train.fit_mixture(points, torch.ones(len(points)).double(), 3, torch.full((2,), 1e-4).double())
    match = torch.cdist(truth.means, found.means).argmin(1)
    assert sorted(match.tolist()) == [0, 1, 2]
    torch.testing.assert_close(found.means[match], truth.means, atol=0.05, rtol=0)
    torch.testing.assert_close(found.covars[match], truth.covars, atol=0.06, rtol=0)
    torch.testing.assert_close(found.weights[match], truth.weights, atol=0.02, rtol=0)


def test_a_frame_of_weight_two_is_two_frames():
    _, points = known_mixture(300)
    weight = torch.ones(300).double()
    weight[:100] = 2
    floor = torch.full((2,), 0.1).double()
    share = torch.rand(300, 2, generator=torch.Generator().manual_seed(1)).double().softmax(1)
    once = train.maximise(points, share * weight[:, None], floor)
    twice = train.maximise(torch.cat([points, points[:100]]), torch.cat([share, share[:100]]), floor)
    torch.testing.assert_close(once.means, twice.means)
    torch.testing.assert_close(once.covars, twice.covars)
    torch.testing.assert_close(once.weights, twice.weights)


def test_the_floor_keeps_identical_frames_from_a_needle():
    mixture = train.fit_mixture(torch.ones(50, 3).double(), torch.ones(50).double(), 1, torch.full((3,), 0.2).double())
    torch.testing.assert_close(mixture.covars[0], 0.04 * torch.eye(3).double())


def test_unwrap_joins_both_sides_of_half_a_turn():
    angle = torch.linspace(2.0, 4.0, 41).double()  # about x, through pi
    pose = torch.zeros(41, 21, 3).double()
    pose[:, 7, 0] = torch.where(angle > math.pi, angle - 2 * math.pi, angle)
    joined = train.unwrap(pose)[:, 7, 0]
    steps = joined[1:] - joined[:-1]
    torch.testing.assert_close(steps, torch.full_like(steps, 0.05), atol=1e-6, rtol=0)


def test_mirror_is_a_reflection():
    pose = torch.randn(5, 21, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(train.mirror(train.mirror(pose)), pose)
    left, right = train.JOINTS.index("left_elbow"), train.JOINTS.index("right_elbow")
    bent = torch.zeros(1, 21, 3)
    bent[0, left] = torch.tensor([0.2, -1.0, 0.1])
    torch.testing.assert_close(train.mirror(bent)[0, right], torch.tensor([0.2, 1.0, -0.1]))


def test_copies_of_a_trial_share_its_weight_and_held_out_subjects_stay_out(tmp_path):
    held = sorted(HELD_OUT_SUBJECTS)[0]
    clip = np.repeat([0, 1, 2, 3], [4, 4, 16, 5])
    np.savez(
        tmp_path / "r.npz",
        pose=np.zeros((29, 22, 3), np.float16),
        plausible=np.ones(29, bool),
        clip=clip,
        clip_id=np.array(["02_01", "02_01", "05_01", "x"]),
        subject=np.array(["cmu002", "cmu002", "cmu005", held]),
    )
    training, kept = train.read_frames(tmp_path / "r.npz")
    assert len(training.pose) == 2 * 24
    assert len(kept.pose) == 2 * 5
    per_clip = [float(training.weight[:24][clip[:24] == c].sum()) for c in range(3)]
    assert per_clip == pytest.approx([1, 1, 4])  # sqrt(4) shared by two exporters, sqrt(16)


def test_the_trainer_says_what_is_missing(tmp_path):
    with pytest.raises(InputError, match="retarget_mocap"):
        train.read_frames(tmp_path / "no.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(1))
    with pytest.raises(InputError, match="it has a"):
        train.read_frames(tmp_path / "other.npz")


def test_main_writes_a_prior_that_loads(tmp_path):
    random = np.random.default_rng(0)
    held = sorted(HELD_OUT_SUBJECTS)[0]
    np.savez(
        tmp_path / "r.npz",
        pose=(0.2 * random.standard_normal((400, 22, 3))).astype(np.float16),
        plausible=np.ones(400, bool),
        clip=np.repeat([0, 1], 200),
        clip_id=np.array(["a", "b"]),
        subject=np.array(["cmu002", held]),
    )
    train.main(tmp_path / "r.npz", tmp_path / "prior.npz", components=2)
    prior = MaxMixturePrior.load(tmp_path / "prior.npz")
    assert prior.means.shape == (2, 63)
    assert prior.joints == train.JOINTS
    assert not list(tmp_path.glob("*.part*"))


# ---- the prior that ships ------------------------------------------------------------------------------------------
def body_pose(**joints: tuple[float, float, float]) -> torch.Tensor:
    """Rotation vectors in degrees by joint name, the rest zero: the T-pose."""
    pose = torch.zeros(21, 3)
    for name, degrees in joints.items():
        pose[train.JOINTS.index(name)] = torch.deg2rad(torch.tensor(degrees))
    return pose


ARMS_DOWN = {"left_shoulder": (0.0, 0.0, -70.0), "right_shoulder": (0.0, 0.0, 70.0)}
ELBOWS = {"left_elbow": (0.0, -25.0, 0.0), "right_elbow": (0.0, 25.0, 0.0)}
STANDING = ARMS_DOWN | ELBOWS | {"left_knee": (8.0, 0.0, 0.0), "right_knee": (8.0, 0.0, 0.0)}
SITTING = STANDING | {
    "left_hip": (-85.0, 0.0, 0.0), "right_hip": (-85.0, 0.0, 0.0),
    "left_knee": (85.0, 0.0, 0.0), "right_knee": (85.0, 0.0, 0.0),
}  # fmt: skip


def test_the_file_is_what_it_says():
    with np.load(PRIOR) as file:
        assert file["means"].shape[1:] == (63,)
        assert file["covars"].shape == (len(file["means"]), 63, 63)
        assert file["means"].dtype == file["covars"].dtype == file["weights"].dtype == np.float32
        assert file["weights"].sum() == pytest.approx(1, abs=1e-5)
        assert tuple(file["joint_names"]) == train.JOINTS
        assert set(file["held_out"]) == HELD_OUT_SUBJECTS
        assert np.linalg.eigvalsh(file["covars"]).min() > 0.02**2
    assert PRIOR.stat().st_size < 2e6


@pytest.mark.parametrize(
    "joints",
    [
        {"left_knee": (-60.0, 0.0, 0.0)},
        {"right_knee": (-60.0, 0.0, 0.0)},
        {"left_elbow": (0.0, 60.0, 0.0), "right_elbow": (0.0, -60.0, 0.0)},
        {"left_knee": (8.0, 0.0, 50.0)},
        {"neck": (0.0, 90.0, 0.0), "head": (0.0, 90.0, 0.0)},
        {"left_ankle": (0.0, 120.0, 0.0)},
        {"left_hip": (0.0, 150.0, 0.0)},
    ],
    ids=[
        "left knee backward",
        "right knee backward",
        "elbows backward",
        "knee sideways",
        "head backward",
        "foot backward",
        "thigh turned",
    ],
)
def test_what_joints_cannot_do_is_less_likely_than_standing(prior, joints):
    assert float(prior(body_pose(**STANDING | joints))) > float(prior(body_pose(**STANDING))) + 8


def test_sitting_is_likelier_than_sitting_on_backward_knees(prior):
    backward = SITTING | {"left_knee": (-85.0, 0.0, 0.0), "right_knee": (-85.0, 0.0, 0.0)}
    assert float(prior(body_pose(**SITTING))) < float(prior(body_pose(**backward))) - 20


def test_sitting_is_not_much_worse_than_the_t_pose(prior):
    assert float(prior(body_pose(**SITTING))) < float(prior(body_pose())) + 20


def test_left_and_right_count_alike(prior):
    """EM on mirrored frames need not find a symmetric mixture, but on average a pose must cost what its mirror does."""
    random = torch.Generator().manual_seed(0)
    chol = torch.linalg.cholesky(prior.covariances)
    k = torch.multinomial(prior.weights, 500, replacement=True, generator=random)
    sample = prior.means[k] + (chol[k] @ torch.randn(500, 63, 1, generator=random))[..., 0]
    pose = sample.unflatten(1, (21, 3))
    here, there = prior(pose), prior(train.mirror(pose))
    assert float((here - there).mean().abs()) < 0.15 * float(here.std())


def test_samples_look_like_a_body(prior):
    """The mixture's own samples keep knees and elbows from bending backwards by more than a little."""
    random = torch.Generator().manual_seed(1)
    chol = torch.linalg.cholesky(prior.covariances)
    k = torch.multinomial(prior.weights, 2000, replacement=True, generator=random)
    pose = (prior.means[k] + (chol[k] @ torch.randn(2000, 63, 1, generator=random))[..., 0]).unflatten(1, (21, 3))
    for name, axis, sign in (("left_knee", 0, 1), ("right_knee", 0, 1), ("left_elbow", 1, -1), ("right_elbow", 1, 1)):
        bend = pose[:, train.JOINTS.index(name), axis] * sign
        assert float((bend < -0.35).float().mean()) < 0.05, name
