from dataclasses import replace
from types import SimpleNamespace

import pytest
import roma
import torch
from torch import nn

from body3d.errors import InputError
from body3d.learn.lifting import FreeMocap, LiftTask
from body3d.learn.poseaug import (
    BONES,
    PARTS,
    Adversary,
    Augmentor,
    Discriminator3D,
    ReplayPool,
    bones_of,
    difficulty,
    in_view,
    joints_of,
    outside,
    swap_lengths,
)
from body3d.learn.poseaug_training import BENT, PoseAugBatch, PoseAugRun, PoseAugTask
from body3d.lift.baseline import SimpleBaseline3D
from body3d.lift.lifter import Lifter
from body3d.lift.takes import Takes
from body3d.skeletons import H36M16
from body3d.train import Plan, Update


def people(count: int, seed: int = 0) -> torch.Tensor:
    """Skeletons with limbs in all directions, four metres before the camera."""
    torch.manual_seed(seed)
    lengths = torch.rand(count, 15, 1) * 0.3 + 0.1
    return joints_of(nn.functional.normalize(torch.randn(count, 15, 3), dim=-1) * lengths) + torch.tensor(
        [0.1, 0.2, 4.0]
    )


def lengths(xyz: torch.Tensor) -> torch.Tensor:
    return bones_of(xyz).norm(dim=-1)


# ---- generators ----------------------------------------------------------------------------------------------------
def test_bones_and_joints_are_inverse():
    xyz = people(5)
    torch.testing.assert_close(joints_of(bones_of(xyz)) + xyz[:, :1], xyz)
    assert bones_of(xyz).shape == (5, 15, 3) and len(BONES) == 15


def test_bending_keeps_bone_lengths_and_the_trunk():
    xyz = people(64)
    made = Augmentor()(xyz)
    torch.testing.assert_close(lengths(made.bent), lengths(xyz), rtol=0, atol=1e-6)
    trunk = H36M16.indices(("pelvis", "spine", "thorax"))
    torch.testing.assert_close(made.bent[:, trunk], xyz[:, trunk], rtol=0, atol=1e-6)
    # angles is 1 - cos, measured anew
    unit = nn.functional.normalize
    cosine = (unit(bones_of(made.bent), dim=-1) * unit(bones_of(xyz), dim=-1)).sum(-1)
    torch.testing.assert_close(made.angles, 1 - cosine, rtol=0, atol=1e-5)
    moved = [i for i, name in enumerate(BONES) if name not in ("spine", "thorax")]
    assert made.angles[:, moved].mean() > 0.05


def test_stretching_is_symmetric_bounded_and_keeps_directions():
    xyz = people(64)
    made = Augmentor()(xyz)
    growth = lengths(made.stretched) / lengths(xyz)
    of = lambda name: growth[:, BONES.index(name)]
    for joint in ("hip", "knee", "ankle", "shoulder", "elbow", "wrist"):
        torch.testing.assert_close(of(f"left_{joint}"), of(f"right_{joint}"), rtol=0, atol=1e-5)
    torch.testing.assert_close(of("thorax"), torch.ones(64))
    assert growth.min() > 0.8 - 1e-4 and growth.max() < 1.2 + 1e-4 and growth.std() > 0.02
    unit = lambda xyz: nn.functional.normalize(bones_of(xyz), dim=-1)
    torch.testing.assert_close(unit(made.stretched), unit(made.bent), rtol=0, atol=1e-5)


def test_placing_is_rigid_and_before_the_camera():
    made = Augmentor()(people(64))
    R, t = roma.rotvec_to_rotmat(made.rotation), made.translation
    turned = (made.stretched - made.stretched[:, :1]) @ R.mT + t
    torch.testing.assert_close(made.placed, turned, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        torch.cdist(made.placed, made.placed), torch.cdist(made.stretched, made.stretched), rtol=0, atol=1e-3
    )
    assert (t[..., 2] >= 0).all() and made.rotation.abs().max() <= 3.1415


def test_noise_decides():
    net, xyz = Augmentor().eval(), people(4)
    noise = [torch.randn(4, 48) for _ in range(4)]
    assert torch.equal(net(xyz, noise).placed, net(xyz, noise).placed)
    assert not torch.allclose(net(xyz).placed, net(xyz).placed)
    other = [noise[0], *(torch.randn(4, 48) for _ in range(3))]
    torch.testing.assert_close(net(xyz, noise).bent, net(xyz, other).bent)


def test_swapped_lengths_are_other_peoples():
    xyz = people(8)
    swapped = swap_lengths(xyz)
    unit = lambda xyz: nn.functional.normalize(bones_of(xyz), dim=-1)
    torch.testing.assert_close(unit(swapped), unit(xyz), rtol=0, atol=1e-5)
    distance = torch.cdist(lengths(swapped), lengths(xyz))
    assert sorted(distance.argmin(1).tolist()) == list(range(8)) and distance.amin(1).max() < 1e-5
    torch.testing.assert_close(swapped[:, 0], xyz[:, 0])


# ---- adversaries ---------------------------------------------------------------------------------------------------
def test_the_3d_discriminator_ignores_bone_lengths_place_and_turn():
    net, xyz = Discriminator3D(), people(6)
    score = net(xyz)
    longer = joints_of(bones_of(xyz) * (0.5 + torch.rand(6, 15, 1)))
    torch.testing.assert_close(net(longer), score, rtol=0, atol=1e-5)
    torch.testing.assert_close(net(xyz @ roma.random_rotmat(6).mT), score, rtol=0, atol=1e-4)


def test_a_part_sees_its_own_bones_alone():
    net, xyz = Discriminator3D(), people(1)
    for bone, name in enumerate(BONES):
        bones = bones_of(xyz)
        bones[:, bone] = torch.randn(3)
        changed = (net(joints_of(bones)) - net(xyz)).abs()[0] > 1e-6
        assert changed.tolist() == [bone in part for part in PARTS], name


def test_the_pool_gives_half_old_half_new():
    torch.manual_seed(0)
    pool = ReplayPool(1, size=1000)
    number = lambda first, count: torch.arange(first, first + count).float()[:, None]
    assert torch.equal(pool(number(0, 900)), number(0, 900))
    assert torch.equal(pool(number(900, 100)), number(900, 100))  # not full before
    out = pool(number(1000, 600))
    old = (out < 1000).sum().item()
    assert abs(old - 300) < 4 * 150**0.5
    # Nothing is lost and nothing doubled: what came out and what is in the pool are what came in.
    both = torch.cat([out, pool.items])[:, 0].sort().values
    assert torch.equal(both, number(0, 1600)[:, 0])
    again = ReplayPool(1, size=1000)
    again.load_state_dict(pool.state_dict())
    assert torch.equal(again.items, pool.items) and again.count == 1000


def test_the_least_squares_game():
    score = nn.Linear(1, 1)
    with torch.no_grad():
        score.weight.fill_(1.0)
        score.bias.zero_()
    adversary = Adversary(score, 1)
    real, fake = torch.tensor([[0.5], [1.0]]), torch.tensor([[0.5], [0.5]], requires_grad=True)
    assert adversary(real, fake).item() == pytest.approx((0.125 + 0.25) / 2)
    assert adversary.deceived(fake).item() == pytest.approx(0.125)
    adversary(real, fake).backward()
    assert fake.grad is None


# ---- losses --------------------------------------------------------------------------------------------------------
def test_the_range_is_free_inside():
    values = torch.tensor([0.0, 1.0, 2.0, 3.5])
    assert outside(values, 1.0, 1.0).item() == pytest.approx(2.5**2 / 4)


def test_difficulty_weighs_groups_of_joints():
    xyz = people(1)
    predicted = xyz - xyz[:, :1]

    def error(joint):
        wrong = predicted.clone()
        wrong[:, H36M16.index(joint), 0] += 0.4
        return [pytest.approx(v, abs=1e-5) for v in difficulty(wrong, xyz)[0].tolist()]

    assert error("left_hip") == [0.5, 0, 0]
    assert error("right_elbow") == [0, 0.16, 0] and error("head_top") == [0, 0.08, 0]
    assert error("left_wrist") == [0, 0, 0.1] and error("spine") == [0, 0, 0]


def test_feedback_grows_with_the_training():
    real, six = torch.ones(2, 3), torch.full((2, 3), 6.0)
    assert BENT(six, real, 0.0).item() == pytest.approx(0.1 * 3**2)
    assert BENT(six, real, 0.5).item() == 0  # 4 give or take 2
    assert BENT(real, real, 1.0).item() == pytest.approx(0.1 * 4**2)


def test_in_view():
    xyz, xy = torch.ones(4, 16, 3), torch.zeros(4, 16, 2)
    xyz[1, 3, 2], xy[2, 5, 0], xy[3, 0, 1] = -0.1, 1.01, -1.01
    assert in_view(xyz, xy).tolist() == [True, False, False, False]


# ---- the task ------------------------------------------------------------------------------------------------------
def takes(count: int) -> Takes:
    xyz = people(count)
    focal, centre = torch.full((count, 2), 2.2), torch.zeros(count, 2)
    xy = xyz[..., :2] / xyz[..., 2:] * focal[:, None]
    one = lambda value: torch.tensor([value])
    return Takes(
        H36M16, xy, torch.ones(count, 16), xyz, focal, centre, torch.ones(count, dtype=torch.bool),
        torch.zeros(count, dtype=torch.int64),
        one(0), one(count), one(0), ("anything",),
    )  # fmt: skip


def make_task(count=96, batch=48, warmup=1, **options):
    torch.manual_seed(0)
    data = takes(count)
    lifter = Lifter(SimpleBaseline3D(32, 48, width=64, dropout=0.0), H36M16)
    return PoseAugTask(LiftTask(lifter, lambda random: data, data, batch, **options), epochs=4, warmup=warmup)


def updater(task, lr=1e-3):
    optimizers = {name: torch.optim.Adam(module.parameters(), lr) for name, module in task.modules.items()}
    return Update(
        SimpleNamespace(backward=lambda loss: loss.backward(), clip_grad_norm_=nn.utils.clip_grad_norm_),
        task.modules,
        optimizers,
        1.0,
    )


def weights(task):
    return {
        name: torch.cat([p.detach().flatten() for p in module.parameters()]) for name, module in task.modules.items()
    }


def run(task, epochs, lr=1e-3):
    update, rows = updater(task, lr), []
    for epoch in range(epochs):
        random = torch.Generator().manual_seed(epoch)
        task.modules.train()
        rows += [task.step(batch, update) for batch in task.batches(epoch, random)]
    return rows


def test_a_step_moves_each_network_in_its_turn():
    task = make_task()
    update, before = updater(task), weights(task)
    batches = list(task.batches(0, torch.Generator().manual_seed(0)))
    task.step(batches[0], update)
    after = weights(task)
    assert all(not torch.equal(after[name], before[name]) for name in before)
    task.step(batches[1], update)
    then = weights(task)
    moved = {name for name in then if not torch.equal(then[name], after[name])}
    assert moved == {"lifter", "augmentor"}
    assert all(module.training and p.requires_grad for module in task.modules.values() for p in module.parameters())


def test_an_epoch_is_the_lifting_tasks_own():
    """Its batches, of which none is a single pose, and what it does before an epoch."""
    epochs = []
    task = make_task(count=97, before_epoch=lambda epoch, net: epochs.append((epoch, net)))
    batches = list(task.batches(3, torch.Generator().manual_seed(5)))
    assert epochs == [(3, task.modules["lifter"])]
    expected = list(task.lifting.batches(3, torch.Generator().manual_seed(5)))
    assert [len(batch.xy) for batch in batches] == [48, 48] and task.steps() == 2
    for batch, (xy, _) in zip(batches, expected, strict=True):
        assert torch.equal(batch.xy, xy)


def test_feedback_and_made_poses_come_after_the_warm_up():
    rows = run(make_task(), 2)
    assert len(rows) == 4
    assert all(row.keys() == rows[0].keys() for row in rows)  # one log for all
    assert [row["feedback bent"] > 0 for row in rows] == [False, False, True, True]
    assert all(torch.isfinite(value) for row in rows for value in row.values())


def test_feedback_leaves_the_lifter_as_it_is():
    """No statistics of made poses and no gradient but what its own loss brings."""
    task = make_task(warmup=0)
    batch = next(task.batches(0, torch.Generator().manual_seed(0)))
    state = {k: v.clone() for k, v in task.modules["lifter"].state_dict().items()}
    calls = []

    class Recorder(Update):
        def __call__(self, loss, *names):
            calls.append(names)
            if names == ("augmentor",):
                loss.backward()
                assert all(p.grad is None for p in task.modules["lifter"].parameters())
                assert all(torch.equal(v, state[k]) for k, v in task.modules["lifter"].state_dict().items())
                gradient = [p.grad for p in task.modules["augmentor"].parameters()]
                assert all(g is not None and torch.isfinite(g).all() for g in gradient)

    task.step(batch, Recorder(None, task.modules, {}, None))
    assert calls == [("augmentor",), ("adversary3d",), ("adversary2d",), ("lifter",)]


def test_the_lifter_learns_real_poses_beside_made_ones():
    task = make_task(count=32, batch=32, warmup=2)
    before = task.losses(next(task.batches(0, torch.Generator())))["loss"].item()
    run(task, 60, lr=3e-3)
    task.modules.eval()
    after = task.losses(next(task.batches(0, torch.Generator())))["loss"].item()
    assert after < 0.6 * before


def test_projection_is_the_cameras():
    data = takes(8)
    batch = PoseAugBatch(data.xy[:, None], data.xyz, data.focal, data.centre)
    torch.testing.assert_close(batch.project(data.xyz), data.xy)


def test_another_joint_set_is_refused():
    run = PoseAugRun(
        data=FreeMocap(), net=lambda joints: SimpleBaseline3D(34, 51), plan=Plan(epochs=1, lr=1e-4), batch=8
    )
    with pytest.raises(InputError, match="PoseAug makes single poses of h36m16; the run asks for 1 frames of h36m17"):
        run.task(None, torch.device("cpu"))
    with pytest.raises(InputError, match="leave out `flip`"):
        replace(run, joints=H36M16, flip=True).task(None, torch.device("cpu"))
