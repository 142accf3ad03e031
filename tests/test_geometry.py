"""Alignment against transformations that are known, and the one pixel convention."""

import pytest
import roma
import torch

from body3d.geometry import align, rescale


def cloud(n=20, seed=0):
    return torch.randn(4, n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moved(x, scale=1.7):
    R = roma.rotvec_to_rotmat(torch.tensor([0.5, -1.2, 2.0], dtype=torch.float64))
    return scale * x @ R.T + torch.tensor([1.0, 2, -3], dtype=torch.float64)


def test_a_similarity_is_undone_exactly():
    x = cloud()
    torch.testing.assert_close(align(x, moved(x)), moved(x))


def test_rigid_keeps_the_size():
    x = cloud()
    spread = lambda p: (p - p.mean(-2, keepdim=True)).norm(dim=(-2, -1))
    torch.testing.assert_close(spread(align(x, moved(x), scale=False)), spread(x))
    torch.testing.assert_close(align(x, moved(x, 1.0), scale=False), moved(x, 1.0))


def test_a_mirror_image_is_not_reached():
    x = cloud()
    assert (align(x, x * torch.tensor([-1.0, 1, 1], dtype=torch.float64)) - x).norm() > 1


def test_joints_of_weight_zero_do_not_matter():
    x = cloud()
    target = moved(x)
    target[:, 0] += 100
    weight = torch.ones(4, 20, dtype=torch.float64)
    weight[:, 0] = 0
    torch.testing.assert_close(align(x, target, weight)[:, 1:], moved(x)[:, 1:])


def test_a_point_stays_a_point():
    x = torch.ones(1, 5, 3, dtype=torch.float64)
    target = cloud(5)[:1]
    torch.testing.assert_close(align(x, target), target.mean(1, keepdim=True).expand(1, 5, 3))


@pytest.mark.parametrize(("xy", "factor", "expected"), [(0.0, 2.0, 0.5), (-0.5, 4.0, -0.5), (0.5, 0.5, 0.0)])
def test_rescale_keeps_the_corner_of_the_first_pixel(xy, factor, expected):
    assert rescale(torch.tensor([xy, xy]), factor).tolist() == [expected, expected]
