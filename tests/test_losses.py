import math

import pytest
import torch

from body3d.losses import bone_loss, joint_mse, ohkm_mse, weighted_mean
from body3d.skeletons import COCO17


def test_weighted_mean():
    loss = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    assert weighted_mean(loss, torch.tensor([1.0, 3.0, 0.0])).item() == 1.75
    nothing = weighted_mean(loss, torch.zeros(3))
    nothing.backward()
    assert nothing == 0 and (loss.grad == 0).all()


def test_maps_by_hand():
    """Two joints on 1x2 maps: errors (1, 3) and (2, 0), the second joint with weight 0.5."""
    pred, target = torch.tensor([[[[1.0, 3.0]], [[2.0, 1.0]]]]), torch.tensor([[[[0.0, 0.0]], [[0.0, 1.0]]]])
    weight = torch.tensor([[1.0, 0.5]])
    assert joint_mse(pred, target, weight).item() == pytest.approx(0.5 * (5 + 0.25 * 2) / 2)
    assert ohkm_mse(pred, target, weight, 1).item() == 0.5 * 5
    assert ohkm_mse(pred, target, weight, 2).item() == joint_mse(pred, target, weight).item()
    assert ohkm_mse(pred, target, weight, 8).item() == joint_mse(pred, target, weight).item()  # there are no more


def test_only_the_hardest_joints_teach():
    torch.manual_seed(0)
    pred = torch.randn(3, 6, 4, 4, requires_grad=True)
    ohkm_mse(pred, torch.zeros(3, 6, 4, 4), torch.ones(3, 6), 2).backward()
    taught = pred.grad.flatten(2).abs().sum(-1) > 0
    hardest = pred.detach().square().flatten(2).mean(-1).topk(2, -1).indices
    assert torch.equal(taught, torch.zeros(3, 6).scatter(1, hardest, 1.0) > 0)


# ---- bones ---------------------------------------------------------------------------------------------------------
def test_bones_by_hand():
    """Two bones of lengths 5 and 2 that should be 4 and 3."""
    pred = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [3.0, 6.0]]])
    target = torch.tensor([[[0.0, 0.0], [0.0, 4.0], [3.0, 4.0]]])
    bones = [(0, 1), (1, 2)]
    assert bone_loss(pred, target, bones, over="sum").item() == 2
    assert bone_loss(pred, target, bones).item() == 1
    assert bone_loss(pred, target, bones, torch.tensor([[0.0, 3.0]]), "sum").item() == 3


@pytest.mark.parametrize("dimensions", [2, 3])
def test_bones_see_shape_not_place(dimensions):
    torch.manual_seed(0)
    target = torch.randn(4, 17, dimensions, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(dimensions, dimensions, dtype=torch.float64)).Q
    assert bone_loss(target @ turn + 3, target, COCO17.bones) < 1e-12
    lengths = torch.stack([(target[:, i] - target[:, p]).norm(dim=-1) for p, i in COCO17.bones], -1)
    larger = bone_loss(1.1 * target, target, COCO17.bones, over="sum")
    torch.testing.assert_close(larger, 0.1 * lengths.sum(-1).mean())


def test_mmposes_mean_over_the_batch_first_lets_errors_cancel():
    target = torch.tensor([[[0.0, 0.0], [2.0, 0.0]]] * 2)
    pred = torch.tensor([[[0.0, 0.0], [3.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]])
    assert bone_loss(pred, target, [(0, 1)]).item() == 1
    assert bone_loss(pred, target, [(0, 1)], over="batch").item() == 0


def test_bone_gradient():
    torch.manual_seed(0)
    pred = torch.randn(2, 17, 2, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 17, 2, dtype=torch.float64)
    for over in ("sum", "mean", "batch"):
        assert torch.autograd.gradcheck(lambda x, over=over: bone_loss(x, target, COCO17.bones, over=over), pred)
    assert math.isfinite(bone_loss(pred, target, COCO17.bones).item())
