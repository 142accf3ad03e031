"""The solver against functions whose minima are known, and against SciPy's own L-BFGS."""

import itertools

import numpy as np
import torch
from scipy.optimize import minimize, rosen, rosen_der

from body3d.fit.solve import lbfgs


def rosenbrock(x):
    return (100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(-1)


def test_quadratics_of_very_different_scale_in_one_batch():
    torch.manual_seed(0)
    A = torch.linalg.qr(torch.randn(5, 8, 8, dtype=torch.float64))[0]
    scales = torch.tensor([1e-3, 1e-1, 1, 1e2, 1e4], dtype=torch.float64)
    H = A @ torch.diag(torch.logspace(0, 2, 8, dtype=torch.float64)) @ A.mT * scales[:, None, None]
    centre = torch.randn(5, 8, dtype=torch.float64)
    cost = lambda x: 0.5 * torch.einsum("bi,bij,bj->b", x - centre, H, x - centre)
    out = lbfgs(cost, torch.zeros(5, 8, dtype=torch.float64), tolerance=1e-12)
    # Rows of small scale stop by their gradient (1e-7); the error of x is gradient over curvature.
    assert ((out.x - centre).abs().amax(-1) < 2e-7 / scales + 1e-6).all()
    assert out.converged.all()


def test_rosenbrock_needs_about_as_many_evaluations_as_scipy():
    start = torch.tensor([[-1.2, 1.0], [2.0, -1.0]], dtype=torch.float64)
    out = lbfgs(rosenbrock, start, max_iterations=200, tolerance=1e-14)
    torch.testing.assert_close(out.x, torch.ones_like(start), atol=1e-5, rtol=0)
    theirs = max(minimize(rosen, s, jac=rosen_der, method="L-BFGS-B").nfev for s in start.numpy())
    assert out.evaluations < 3 * theirs


def test_a_row_does_not_depend_on_its_neighbours():
    torch.manual_seed(1)
    x = torch.randn(6, 5, dtype=torch.float64)
    together = lbfgs(rosenbrock, x, max_iterations=25)
    for b in range(6):
        alone = lbfgs(rosenbrock, x[b : b + 1], max_iterations=25)
        torch.testing.assert_close(alone.x[0], together.x[b], atol=1e-9, rtol=1e-9)


def test_a_row_that_is_not_finite_stays_and_the_others_go_on():
    def cost(x):
        return (x**2).sum(-1) + torch.log(100 - x[:, 0])

    out = lbfgs(cost, torch.tensor([[200.0, 0.0], [3.0, 4.0]]))
    assert out.x[0].tolist() == [200.0, 0.0]
    assert not out.converged[0]
    assert out.cost[1] < 5.0  # from 29.6; the minimum is 4.605


def test_cost_never_rises():
    torch.manual_seed(2)
    x = torch.randn(4, 10, dtype=torch.float64) * 3
    costs = [lbfgs(rosenbrock, x, max_iterations=n).cost for n in (1, 3, 10, 40)]
    assert all((b <= a).all() for a, b in itertools.pairwise(costs))
    assert np.isfinite(costs[-1].numpy()).all()
