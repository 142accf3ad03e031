"""The training of the pose prior, on made-up motion, and the measures that compare priors, on known ones."""

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import roma
import torch

from body3d.benchmarks import prior as benchmark
from body3d.body import lbs
from body3d.body.model import BodyModel
from body3d.body.priors import MaxMixturePrior
from body3d.body.vposer import load_vposer, vposer_v2
from body3d.datasets.mocap import HELD_OUT_SUBJECTS
from body3d.errors import InputError
from body3d.learn.pose_vae import BodySurface, Poses, PoseVAERun, angle_between, kl_divergence, mirror
from body3d.skeletons import BODY_JOINTS
from body3d.train import Plan, train

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def surface() -> BodySurface:
    return BodySurface.of(BodyModel.open())


def write_mocap(path: Path, frames: int = 600) -> Path:
    """A file as of scripts/retarget_mocap.py, its poses of three numbers each; clips of two people, one of them held out."""
    random = np.random.default_rng(0)
    directions = 0.25 * np.random.default_rng(1).standard_normal((3, 22 * 3))
    pose = (random.standard_normal((frames, 3)) @ directions).reshape(frames, 22, 3)
    clip = np.repeat([0, 1, 2], [frames // 6, frames // 2, frames - frames // 6 - frames // 2])
    plausible = np.ones(frames, bool)
    plausible[:7] = False
    np.savez(
        path, pose=pose.astype(np.float16), plausible=plausible, clip=clip,
        clip_id=np.array(["a", "b", "c"]), subject=np.array(["cmu002", "cmu005", min(HELD_OUT_SUBJECTS)]),
    )  # fmt: skip
    return path


# ---- data ----------------------------------------------------------------------------------------------------------
def test_a_mirrored_pose_is_a_mirrored_body(surface):
    pose = 0.5 * torch.randn(4, 21, 3, generator=torch.Generator().manual_seed(0))
    here, there = (surface(lbs.rotation_matrices(p))[1] for p in (pose, mirror(pose)))
    names = ("pelvis", *BODY_JOINTS)
    other = [names.index(n.replace("left", "*").replace("right", "left").replace("*", "right")) for n in names]
    torch.testing.assert_close(there, here[:, other] * torch.tensor([-1.0, 1, 1]), atol=2e-3, rtol=0)
    torch.testing.assert_close(mirror(mirror(pose)), pose)


def test_points_are_the_bodys_own(surface):
    """Joints and skinned points equal the whole model's."""
    model = BodyModel.open()
    params = model.zero_params(3)
    pose = 0.7 * torch.randn(3, 21, 3, generator=torch.Generator().manual_seed(1))
    params.pose[:, model.joints.indices(BODY_JOINTS)] = pose
    body = model(params)
    points, joints = surface(lbs.rotation_matrices(pose))
    torch.testing.assert_close(joints, body.joints.xyz[:, model.joints.indices(("pelvis", *BODY_JOINTS))])
    rest, _ = surface(torch.eye(3).expand(1, 21, 3, 3))
    distance = (rest[0][::9, None] - model.template).norm(dim=-1)
    assert float(distance.amin(1).max()) < 1e-6
    # Vertices may lie on each other, with other weights: some vertex there moves as the point does.
    for n in range(len(distance)):
        there = (distance[n] < 1e-6).nonzero()[:, 0]
        moved = (body.mesh.verts[:, there] - points[:, 9 * n, None]).norm(dim=-1).amax(0)
        assert float(moved.min()) < 1e-5


def test_points_are_spread_by_area(surface):
    model = BodyModel.open()
    corners = model.template[model.faces]
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=-1)
    rest = surface(torch.eye(3).expand(1, 21, 3, 3))[0][0]
    for low, high in ((-2, -0.9), (-0.9, -0.3), (-0.3, 0.2), (0.2, 2)):
        heights = corners[..., 1].mean(1)
        share = area[(heights > low) & (heights <= high)].sum() / area.sum()
        points = ((rest[:, 1] > low) & (rest[:, 1] <= high)).float().mean()
        assert abs(float(share - points)) < 0.04


def test_retargeted_poses_are_split_and_weighted(tmp_path):
    path = write_mocap(tmp_path / "r.npz")
    training, held = (Poses.retargeted(path, held_out, CPU) for held_out in (False, True))
    assert (len(training.pose), len(held.pose)) == (393, 200)
    assert float(training.weight[:93].sum()) == pytest.approx(math.sqrt(93), rel=1e-5)
    assert float(training.weight[93:].sum()) == pytest.approx(math.sqrt(300), rel=1e-5)
    with np.load(path) as file:
        np.testing.assert_allclose(training.pose[0], file["pose"][7, 1:])
    with pytest.raises(InputError, match="retarget_mocap"):
        Poses.retargeted(tmp_path / "no.npz", False, CPU)


def test_half_of_the_drawn_are_mirror_images():
    pose = torch.zeros(2, 21, 3)
    pose[:, BODY_JOINTS.index("left_knee"), 0] = torch.tensor([1.0, 2.0])
    drawn = Poses(pose, torch.tensor([1.0, 3.0])).draw(4000, torch.Generator().manual_seed(0))
    left, right = (drawn[:, BODY_JOINTS.index(f"{side}_knee"), 0] for side in ("left", "right"))
    torch.testing.assert_close(left + right, torch.where(left + right > 1.5, 2.0, 1.0))
    assert float((left > 0).float().mean()) == pytest.approx(0.5, abs=0.03)
    assert float((left + right > 1.5).float().mean()) == pytest.approx(0.75, abs=0.03)


def write_amass(path: Path, frames: int, angle: float, joints: int = 52) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    poses = np.zeros((frames, joints, 3))
    poses[:, 1 + BODY_JOINTS.index("left_knee"), 0] = angle
    np.savez(
        path, poses=poses.reshape(frames, -1), trans=np.zeros((frames, 3)), betas=np.zeros(16),
        mocap_framerate=60.0, gender="neutral",
    )  # fmt: skip


def test_amass_is_split_as_its_authors_split_it(tmp_path):
    write_amass(tmp_path / "CMU/02/02_01_poses.npz", 61, 1.0)
    write_amass(tmp_path / "ACCAD/a/x_poses.npz", 241, 4.0, joints=55)  # longer than half a turn
    write_amass(tmp_path / "HumanEva/S1/y_poses.npz", 121, 0.5)
    write_amass(tmp_path / "SSM_synced/z/z_poses.npz", 121, 0.7)
    knee = BODY_JOINTS.index("left_knee")
    training, held = (Poses.amass(tmp_path, held_out, CPU) for held_out in (False, True))
    assert (len(training.pose), len(held.pose)) == (41 + 11, 21)  # 10 Hz
    torch.testing.assert_close(training.pose[:, knee, 0], torch.tensor([4.0 - 2 * math.pi] * 41 + [1.0] * 11))
    torch.testing.assert_close(held.pose[:, knee, 0], torch.full((21,), 0.5))
    assert float(training.weight[41:].sum()) == pytest.approx(math.sqrt(11), rel=1e-5)


def test_amass_without_its_validation_sets(tmp_path):
    write_amass(tmp_path / "CMU/02/02_01_poses.npz", 61, 1.0)
    with pytest.raises(InputError, match="data sets among HDM05, HumanEva"):
        Poses.amass(tmp_path, True, CPU)


# ---- losses --------------------------------------------------------------------------------------------------------
def test_divergence_from_the_standard_normal():
    mean, std = torch.randn(5, 7), torch.rand(5, 7) + 0.1
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, std), normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(kl_divergence(mean, std), expected)


def test_angles_between_rotations():
    a = torch.tensor([[0.3, -0.2, 0.1]]).double()
    for angle in (0.0, 0.01, 1.0, 3.0, math.pi):
        turn = roma.rotvec_to_rotmat(angle * torch.tensor([[0.6, 0.0, 0.8]]).double())
        A = roma.rotvec_to_rotmat(a).requires_grad_()
        found = angle_between(A, roma.rotvec_to_rotmat(a) @ turn)
        found.sum().backward()
        assert found.item() == pytest.approx(angle, abs=2e-3)
        assert A.grad.isfinite().all()


def quick_run(epochs: int = 6) -> PoseVAERun:
    return PoseVAERun(
        Plan(epochs=epochs, lr=5e-3), batch=64, steps=10, extra_epochs=2, validation=200, width=64, latent=6
    )


def test_losses_are_what_the_release_says(tmp_path):
    """Against the formulas on their own: 4 L1 of the surface, 0.005 KL, and at first 2 angles and 2 L1 of the joints."""
    task = quick_run().task(write_mocap(tmp_path / "r.npz"), CPU)
    task.modules.eval()  # codes are their means
    random = torch.Generator().manual_seed(0)
    (first, _), *_ = batches = list(task.batches(0, random))
    assert len(batches) == task.steps() == 10
    assert [extra for _, extra in batches] == [True] * 10
    assert not any(extra for _, extra in task.batches(2, random))
    losses = task.losses((first, True))
    later = task.losses((first, False))
    assert later["rotations"] == later["joints"] == 0
    assert later["surface"] == losses["surface"]
    vae = task.modules["vae"]
    mean, std = vae.encode(first)
    again = vae.decode(mean)
    model = BodyModel.open()
    params = model.zero_params(64)
    joints = []
    for pose in (again, first):
        params.pose[:, model.joints.indices(BODY_JOINTS)] = pose.detach()
        joints.append(model(params).joints.xyz[:, :22])
    turn = roma.rotmat_to_rotvec(lbs.rotation_matrices(first).mT @ lbs.rotation_matrices(again))
    assert losses["joints"].item() == pytest.approx(2 * float((joints[0] - joints[1]).abs().mean()), rel=1e-3)
    assert losses["rotations"].item() == pytest.approx(2 * float(turn.detach().norm(dim=-1).mean()), rel=1e-3)
    expected = (mean.square() + std.square() - 1 - std.square().log()).sum() / 2 / 64
    assert losses["kl"].item() == pytest.approx(0.005 * float(expected.detach()), rel=1e-4)
    points, true = (task.surface(lbs.rotation_matrices(p))[0] for p in (again, first))
    assert losses["surface"].item() == pytest.approx(4 * float((points - true).detach().abs().mean()), rel=1e-3)


def test_it_learns_poses_of_three_numbers(tmp_path):
    run = replace(quick_run(3), steps=30, kl_weight=1e-3, extra_epochs=3)
    task = run.task(write_mocap(tmp_path / "r.npz"), CPU)
    log = train(task, run.plan, tmp_path / "run", cpu=True)
    spread = Poses.retargeted(tmp_path / "r.npz", True, CPU).pose
    apart = torch.rad2deg(roma.rotmat_geodesic_distance(*(lbs.rotation_matrices(p) for p in (spread, spread * 0))))
    assert log[-1]["degrees"] < 0.5 * float(apart.mean())
    assert log[-1]["surface mm"] < 0.65 * log[0]["surface mm"]


def test_training_and_shipping_from_the_command_line(tmp_path):
    config = tmp_path / "tiny.py"
    config.write_text(
        "from body3d.learn.pose_vae import PoseVAERun\nfrom body3d.train import Plan\n"
        "run = PoseVAERun(Plan(epochs=2, lr=1e-3), batch=16, steps=2, validation=50)\n"
    )
    trainer, shipper = load_script("train_pose_vae"), load_script("ship_pose_vae")
    data = write_mocap(tmp_path / "r.npz")
    assert trainer.train_pose_vae(trainer.TrainPoseVAE(config, data, tmp_path / "run")) == 0
    assert shipper.ship(shipper.Ship(tmp_path / "run", tmp_path / "vae.npz")) == 0
    with np.load(tmp_path / "vae.npz") as file:
        assert set(file["held_out"]) == HELD_OUT_SUBJECTS
        shipped = {key: torch.from_numpy(a).float() for key, a in file.items() if a.dtype.kind == "f"}
    best = load_vposer(tmp_path / "run/best.pt")
    net = vposer_v2().eval()
    net.load_state_dict(shipped, strict=False)
    z = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net.rotations(z), best.rotations(z), atol=5e-3, rtol=0)
    with pytest.raises(InputError, match="no such config"):
        trainer.train_pose_vae(trainer.TrainPoseVAE(tmp_path / "none.py"))
    with pytest.raises(InputError, match="defines no"):
        trainer.train_pose_vae(trainer.TrainPoseVAE(ROOT / "configs/h36m_simple_baseline.py"))


# ---- comparing priors ----------------------------------------------------------------------------------------------
def test_area_under_the_curve():
    assert benchmark.auc(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])) == 1
    assert benchmark.auc(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 3.0])) == pytest.approx((1 + 0 + 1 + 0.5) / 4)


def test_damage_is_what_it_is_called():
    random = torch.Generator().manual_seed(0)
    pose = 0.4 * torch.randn(50, 21, 3, generator=random)
    damaged = benchmark.damaged(pose, random)
    changed = {name: (other != pose).any(-1) for name, other in damaged.items()}
    knees = benchmark.rows(("left_knee", "right_knee"))
    assert bool((damaged["both knees backwards"][:, knees, 0] <= -0.5).all())
    assert changed["both knees backwards"].nonzero()[:, 1].unique().tolist() == knees
    assert int(changed["one knee or elbow backwards"].sum(1).max()) == 1
    assert set(changed["one limb of another pose"].sum(1).tolist()) <= {0, 4}
    arms = benchmark.rows(benchmark.LIMBS["left arm"])
    rest = [j for j in range(21) if not any(BODY_JOINTS[j] in limb for limb in benchmark.LIMBS.values())]
    assert not changed["four limbs of four poses"][:, rest].any()
    matches = (damaged["four limbs of four poses"][:, None, arms] == pose[None, :, arms]).all(-1).all(-1)
    assert bool(matches.any(1).all())  # a limb comes whole, from one pose
    noise = damaged["noise 0.3 rad"] - pose
    assert float(noise.std()) == pytest.approx(0.3, rel=0.05)


def test_filling_in_by_the_mixture_is_its_minimum():
    mixture = MaxMixturePrior.shipped().over(BODY_JOINTS)
    pose = mixture.means[:5].unflatten(-1, (21, 3)) + 0.1 * torch.randn(
        5, 21, 3, generator=torch.Generator().manual_seed(0)
    )
    hidden = benchmark.rows(benchmark.HIDDEN["right side"])
    filled = benchmark.fill_by_mixture(mixture, pose, hidden)
    known = [j for j in range(21) if j not in hidden]
    torch.testing.assert_close(filled[:, known], pose[:, known])
    random = torch.Generator().manual_seed(1)
    for size in (0.01, 0.1, 1.0):
        moved = filled.clone()
        moved[:, hidden] += size * torch.randn(5, len(hidden), 3, generator=random)
        assert bool((mixture(moved) > mixture(filled)).all())
    for mean in mixture.means.unflatten(-1, (21, 3)):
        other = pose.clone()
        other[:, hidden] = mean[hidden]
        assert bool((mixture(other) >= mixture(filled)).all())


def test_lifting_finds_a_pose_that_the_prior_likes(surface):
    """A frontal view of the mixture's mean, nearly without noise: found again, from whichever facing."""
    priors = benchmark.Priors.of()
    random = torch.Generator().manual_seed(0)
    table = benchmark.lifting(priors, priors.mean_pose[None].repeat(1, 1, 1), 0.001, (1.0,), random)
    assert set(table) == {"mixture, weight 1", "VAE, weight 1"}
    assert table["mixture, weight 1"]["PA mean"] < 15
    assert table["VAE, weight 1"]["px"] < 3
