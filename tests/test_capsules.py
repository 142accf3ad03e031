from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.func import jacrev

from body3d.body import BodyModel
from body3d.body.capsules import MERGED, body_capsules, closest_on_segments
from body3d.body.layouts import PICKED
from body3d.body.parts import body_parts
from body3d.fit.collision import CapsuleTerm
from body3d.fit.unknowns import Unknowns

ANSWERS = Path(__file__).parent / "known_answers"
IDS = {name: 3 + 7 * i for i, name in enumerate(PICKED)}


@pytest.fixture(scope="module")
def model() -> BodyModel:
    return BodyModel.open()


@pytest.fixture(scope="module")
def exact(model) -> BodyModel:
    return model.to(dtype=torch.float64)


def random(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- two segments --------------------------------------------------------------------------------------------------
def test_distance_is_the_least_of_dense_samples():
    a, b, c, d = random(4, 200, 3)
    b[:20] = a[:20] + 0.3 * (d[:20] - c[:20])  # parallel
    b[20:30] = a[20:30]  # a point
    d[25:35] = c[25:35]
    s, t, distance, normal = closest_on_segments(a, b, c, d)
    steps = torch.linspace(0, 1, 401, dtype=torch.float64)
    on = lambda p, q: p[:, None] + steps[:, None] * (q - p)[:, None]
    sampled = torch.cdist(on(a, b), on(c, d)).amin((1, 2))
    spacing = ((b - a).norm(dim=-1) + (d - c).norm(dim=-1)) / 400
    assert (distance <= sampled + 1e-7).all()
    assert (distance >= sampled - spacing - 1e-7).all()
    between = a + s[:, None] * (b - a) - c - t[:, None] * (d - c)
    torch.testing.assert_close(between, distance[:, None] * normal)
    torch.testing.assert_close(normal.norm(dim=-1), torch.ones_like(distance))


def test_crossing_segments_have_a_normal():
    a, b = torch.tensor([[-1.0, 0, 0], [1, 0, 0]], dtype=torch.float64)
    c, d = torch.tensor([[0.0, -1, 0], [0, 2, 0]], dtype=torch.float64)
    s, t, distance, normal = closest_on_segments(a, b, c, d)
    assert (s, t, distance) == (0.5, pytest.approx(1 / 3), pytest.approx(0, abs=1e-15))
    torch.testing.assert_close(normal.abs(), torch.tensor([0.0, 0, 1], dtype=torch.float64))


@pytest.mark.parametrize(
    ("ends", "depth"),
    [
        ([[0, 0, 0], [1, 0, 0], [0.5, 0.2, -1], [0.5, 0.2, 1]], 0.05),  # the middle of both
        ([[0, 0, 0], [1, 0, 0], [1.2, 0, 0], [2, 0, 0]], 0.05),  # end to end
        ([[0, 0, 0], [1, 0, 0], [0, 0.3, 0], [1, 0.3, 0]], -0.05),  # parallel, apart
    ],
)
def test_depth_of_capsules_made_by_hand(model, ends, depth):
    capsules = body_capsules(model)
    radius, pairs = torch.tensor([0.1, 0.15]), torch.tensor([[0, 1]])
    capsules = replace(capsules, radius=radius, radius_dirs=capsules.radius_dirs[:, :2], pairs=pairs)
    start_1, end_1, start_2, end_2 = torch.tensor(ends, dtype=torch.float32)
    found = capsules.overlap(torch.stack([start_1, start_2, end_1, end_2]), capsules.radius)
    assert found.depth.item() == pytest.approx(depth, abs=1e-6)


# ---- the body's capsules -------------------------------------------------------------------------------------------
def skin(capsules, model) -> list[torch.Tensor]:
    """Per capsule the vertices that it stands for."""
    owner = torch.tensor([model.joints.index(MERGED.get(n, n)) for n in model.joints.names])
    owner = owner[torch.from_numpy(body_parts(model).vertex)]
    return [(owner == j).nonzero()[:, 0] for j in model.joints.indices(capsules.joints)]


def distances(capsules, ends, verts, model) -> list[torch.Tensor]:
    """Per capsule: how far the skin that it stands for is from its axis, by sampling the axis."""
    steps, C = torch.linspace(0, 1, 101, dtype=verts.dtype)[:, None], len(capsules.joints)
    axes = [ends[i] + steps * (ends[C + i] - ends[i]) for i in range(C)]
    return [torch.cdist(verts[v], axis).amin(1) for v, axis in zip(skin(capsules, model), axes, strict=True)]


def test_skin_lies_about_a_radius_from_its_axis(model):
    capsules = body_capsules(model)
    rest = model.zero_params()
    found = distances(capsules, capsules.ends(rest), model.rest_vertices(rest), model)
    rows = zip(capsules.joints, found, capsules.radius, strict=True)
    beyond = {name: (d > r + 0.03).float().mean().item() for name, d, r in rows}
    assert max(beyond.values()) < 0.25, beyond
    assert sum(beyond.values()) / len(beyond) < 0.04
    limbs = [n for n in beyond if n.endswith(("shoulder", "elbow", "wrist", "hip", "knee")) or n[-1] in "123"]
    assert max(beyond[n] for n in limbs if not n.startswith("spine")) < 0.1


def test_radii_and_ends_follow_the_shape(exact):
    """The area-weighted mean distance of the skin, formed anew for another shape."""
    capsules = body_capsules(exact)
    a, b, c = exact.template[exact.faces].unbind(1)
    area = torch.linalg.cross(b - a, c - a).norm(dim=-1).repeat_interleave(3)
    weight = torch.zeros(len(exact.template), dtype=area.dtype).index_add(0, exact.faces.flatten(), area)
    for seed in range(3):
        params = exact.zero_params()
        params = replace(params, shape=0.5 * random(*params.shape.shape, seed=seed))
        ends, radii = capsules.ends(params), capsules.radii(params.shape)
        found = distances(capsules, ends, exact.rest_vertices(params), exact)
        for i, (vertices, d) in enumerate(zip(skin(capsules, exact), found, strict=True)):
            w = weight[vertices]
            actual, change = (w * d).sum() / w.sum(), radii[i] - capsules.radius[i]
            assert (actual - radii[i]).abs() < 0.1 * change.abs() + 0.0005, capsules.joints[i]


def test_ends_are_rigid_on_their_joints(exact):
    capsules = body_capsules(exact)
    params = exact.zero_params()
    rest, joints = capsules.ends(params), exact.rest_joints(params)
    params = replace(params, pose=0.5 * random(*params.pose.shape), transl=random(3))
    T = exact(params).T_world_joint[exact.joints.indices(capsules.joints * 2)]
    expected = (T[:, :3, :3] @ (rest - joints[exact.joints.indices(capsules.joints * 2)]).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(capsules.ends(params), expected + T[:, :3, 3])


def test_which_pairs_there_are(model):
    capsules = body_capsules(model)
    pairs = {frozenset(capsules.joints[i] for i in pair) for pair in capsules.pairs.tolist()}
    for a, b in (("left_elbow", "spine1"), ("left_wrist", "head"), ("left_hip", "right_hip"), ("left_wrist", "right_knee"),
                 ("left_index3", "right_index3"), ("left_elbow", "right_elbow")):  # fmt: skip
        assert frozenset((a, b)) in pairs
    for a, b in (("left_elbow", "left_wrist"), ("left_hip", "pelvis"), ("left_index3", "left_middle3"),
                 ("left_index3", "left_wrist"), ("left_shoulder", "spine3"), ("head", "neck")):  # fmt: skip
        assert frozenset((a, b)) not in pairs
    assert not any(n[-1] in "123" and "spine" not in n for n in body_capsules(model, False).joints)


def test_no_overlap_in_the_rest_pose_of_random_shapes(model):
    capsules = body_capsules(model)
    rest = model.zero_params(20)
    rest = replace(rest, shape=random(*rest.shape.shape).float())
    assert capsules.overlap(capsules.ends(rest), capsules.radii(rest.shape)).depth.max() < 0.01


@pytest.mark.parametrize("kind", ["smpl", "smplx"])
def test_other_bodies_have_capsules_too(kind):
    model = BodyModel.load(ANSWERS / f"model_{kind}_random.npz", kind, vertex_ids=IDS)
    capsules = body_capsules(model)
    assert 10 < len(capsules.joints) <= len(model.joints)
    assert (capsules.radius > 0).all()
    ends = capsules.ends(model.zero_params(2))
    assert ends.shape == (2, 2 * len(capsules.joints), 3)
    assert ends.isfinite().all()


# ---- the term ------------------------------------------------------------------------------------------------------
def test_residuals_and_their_derivatives(exact):
    unknowns = Unknowns(exact)
    term = CapsuleTerm(exact, unknowns)
    x = 0.9 * random(2, len(unknowns), seed=3)
    parts = [n for n in unknowns.slices if n != "lean"]

    def residual(y: torch.Tensor) -> torch.Tensor:
        params = unknowns.params(y[None])
        return (
            term.capsules.overlap(term.capsules.ends(params), term.capsules.radii(params.shape)).depth[0].clamp_min(0)
        )

    value, J = term(unknowns.params(x), parts)
    assert (value > 0).sum() > 8
    columns = unknowns.columns(parts)
    for row in range(2):
        torch.testing.assert_close(value[row], residual(x[row]))
        torch.testing.assert_close(J[row], jacrev(residual)(x[row])[:, columns], rtol=1e-8, atol=1e-10)
        # And both are the slope of the value: the nearest points move, but that does not count.
        step = 1e-6 * random(len(unknowns), seed=row)
        step[unknowns.slices["lean"]] = 0
        slope = (residual(x[row] + step) - residual(x[row] - step)) / 2
        torch.testing.assert_close(slope, J[row] @ step[columns], rtol=1e-4, atol=1e-10)
    some = term(unknowns.params(x), ["body", "shape"])[1]
    torch.testing.assert_close(some, J[:, :, _columns(unknowns, parts)])


def _columns(unknowns: Unknowns, parts: list[str]) -> list[int]:
    """Where body and shape stand among the columns of `parts`."""
    at, out = 0, {}
    for name in parts:
        out[name] = list(range(at, at + unknowns.size(name)))
        at += unknowns.size(name)
    return out["body"] + out["shape"]
