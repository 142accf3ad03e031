"""Online distillation, on photos of coloured dots."""

import math
from itertools import pairwise

import pytest
import torch
from test_pose2d import SIZE, STILL, cpu, draw, packed
from torch import nn

from body3d.codecs import Heatmap, SimCC
from body3d.errors import InputError
from body3d.learn.configs import read_config
from body3d.learn.crops import PhotoSet
from body3d.learn.okdhp import (
    Branched,
    FeatureAggregation,
    OKDHPRun,
    deployed,
    okdhp_hourglass_4,
    okdhp_small,
    pixel_kl,
    ramp,
)
from body3d.learn.pose2d import Batch
from body3d.nets.hourglass import StackedHourglass
from body3d.nets.small import SmallTrunk, small
from body3d.posenet import Headed
from body3d.skeletons import LSP14
from body3d.train import Cosine, Plan
from body3d.train import train as train_task
from body3d.types import Keypoints2D

CODEC = Heatmap(sigma=1.5)


def tiny(joints=LSP14):
    return okdhp_small(joints, CODEC, SIZE, widths=(16,) * 4, depths=(1,) * 4, channels=16)


# ---- the loss ------------------------------------------------------------------------------------------------------
def test_equal_maps_teach_nothing():
    torch.manual_seed(0)
    maps, weight = torch.randn(2, 3, 4, 5), torch.ones(2, 3)
    assert pixel_kl(maps, maps, weight).item() == pytest.approx(0, abs=1e-7)
    assert pixel_kl(maps, maps + torch.randn(2, 3, 1, 1), weight).item() == pytest.approx(0, abs=1e-6)
    assert pixel_kl(maps, torch.randn(2, 3, 4, 5), weight) > 0.01
    assert pixel_kl(maps, torch.randn(2, 3, 4, 5), torch.zeros(2, 3)).item() == 0


def test_kl_and_its_gradient_are_the_closed_forms():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 4, 5)
    weight = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    loss = pixel_kl(student, teacher, weight)
    of = lambda maps: torch.distributions.Categorical(logits=maps.flatten(2))
    each = torch.distributions.kl_divergence(of(teacher), of(student))
    torch.testing.assert_close(loss, (each * weight).sum() / 2 / 20)
    loss.backward()
    slope = (of(student).probs - of(teacher).probs) * weight[..., None] / 2 / 20
    torch.testing.assert_close(student.grad.flatten(2), slope.detach())


def test_the_ramp():
    assert ramp(0, 60) == pytest.approx(math.exp(-5))
    assert ramp(30, 60) == pytest.approx(math.exp(-1.25))
    assert ramp(60, 60) == ramp(100, 60) == ramp(0, 0) == 1


# ---- the networks --------------------------------------------------------------------------------------------------
def test_shares_of_branches_sum_to_one_per_joint():
    torch.manual_seed(0)
    shares = FeatureAggregation(8, 5, 3)(torch.randn(4, 8, 6, 7))
    assert shares.shape == (4, 3, 5) and shares.std(1).min() > 0
    torch.testing.assert_close(shares.sum(1), torch.ones(4, 5))


def test_the_teacher_is_of_each_branchs_last_stack():
    torch.manual_seed(0)
    net = okdhp_hourglass_4(LSP14, CODEC, SIZE, branches=2, stacks=3, width=16).eval()
    many = net.net
    assert isinstance(many, Branched)
    image = torch.rand(2, 3, *SIZE)
    *stages, ensemble = net(image)
    assert len(stages) == 6
    shares = many.aggregation(many.stem(net.normalise(image)))[..., None, None]
    torch.testing.assert_close(ensemble, shares[:, 0] * stages[2] + shares[:, 1] * stages[5])
    assert (stages[2] - stages[1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["hourglass", "small"])
def test_a_branch_alone_is_the_plain_network(kind):
    torch.manual_seed(0)
    if kind == "hourglass":
        net = okdhp_hourglass_4(LSP14, CODEC, SIZE, branches=2, stacks=2, width=16)
        plain: nn.Module = StackedHourglass(2, len(LSP14), 16)
    else:
        net = tiny()
        plain = Headed(SmallTrunk((16,) * 4, (1,) * 4, 16), nn.Conv2d(16, len(LSP14), 1))
    assert isinstance(net.net, Branched)
    net.eval()
    image = torch.rand(2, 3, *SIZE)
    stages, count = net(image), len(net.net.branches)
    for branch in range(count):
        last = (branch + 1) * (len(stages) - 1) // count - 1
        alone = deployed(net, branch)
        assert torch.equal(alone(image)[-1], stages[last])
        plain.load_state_dict(net.net.state(branch))
        assert torch.equal(plain.eval()(net.normalise(image))[-1], stages[last])
    assert not any(part.training for part in alone.modules())
    assert all(part.training for part in deployed(net.train(), 0).modules())
    parameters = lambda module: sum(p.numel() for p in module.parameters())
    assert parameters(alone) == parameters(plain) < parameters(net) / (count - 0.8)


def test_what_has_no_branches_is_refused():
    with pytest.raises(InputError, match="Headed has no branches to distil"):
        deployed(small(size=SIZE), 0)
    with torch.device("meta"), pytest.raises(InputError, match="gives one map per joint, SimCC reads something else"):
        okdhp_small(codec=SimCC())


# ---- training ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def run(tmp_path_factory) -> OKDHPRun:
    """Forty people to learn from and eight others."""
    folder = tmp_path_factory.mktemp("okdhp")
    draw(folder / "train", 40, 80, 4)
    draw(folder / "test", 8, 80, 4, seed=1)
    return OKDHPRun(
        data=PhotoSet(str(folder), LSP14, lambda path: packed(path / "train"), lambda path: packed(path / "test")),
        net=tiny, plan=Plan(epochs=12, lr=8e-3, schedule=Cosine(12)), batch=10, augment=STILL, workers=0, flip_test=False,
        ramp=6,
    )  # fmt: skip


def test_the_ensemble_is_as_good_as_its_branches(run, tmp_path):
    task = cpu(run)
    log = train_task(task, run.plan, tmp_path, cpu=True)
    # By itself it falls in every epoch, as branches come to agree; its weight rises faster.
    alike = [row["distillation"] / ramp(epoch, 6) for epoch, row in enumerate(log)]
    assert all(later < 1.1 * earlier for earlier, later in pairwise(alike)) and alike[-1] < 0.5 * alike[0]
    assert log[0]["distillation"] < 0.5 * log[6]["distillation"]
    names = [f"branch {i}: 1 - PCK@0.2" for i in range(3)]
    assert all(name in log[-1] for name in names)
    batch = next(task.pose.batches(0, torch.Generator().manual_seed(0)))
    net = task.modules["net"].eval()
    with torch.no_grad():
        *branches, teacher = (CODEC.loss(m, batch.target.xy, batch.target.conf, SIZE).item() for m in net(batch.image))
    assert teacher <= min(branches) * 1.02
    assert log[-1]["ensemble"] < 0.7 * log[0]["ensemble"]
    assert log[-1]["1 - PCK@0.2"] <= min(log[-1][name] for name in names) + 0.02


def test_a_detached_teacher_learns_from_the_truth_alone(run):
    image = torch.rand(2, 3, *SIZE)
    target = Keypoints2D(torch.full((2, 14, 2), 20.0), torch.ones(2, 14), LSP14)
    for detached in (True, False):
        task = OKDHPRun.task(run, None, torch.device("cpu"))
        task.detached, task.epoch = detached, 10
        losses = task.losses(Batch(image, target))
        assert set(losses) == {"branches", "ensemble", "distillation"}
        losses["distillation"].backward()
        slope = task.modules["net"].net.aggregation.scores.weight.grad
        assert (slope is None) == detached


def test_the_config_builds_three_small_networks():
    from test_pose2d import CONFIGS

    run = read_config(CONFIGS / "lspet_okdhp.py")
    assert isinstance(run, OKDHPRun)
    net = run.net(LSP14).net
    assert isinstance(net, Branched)
    plain = small()
    plain.net.load_state_dict(net.state(2))
