import math
import pickle
from itertools import combinations

import numpy as np
import pytest
import roma
import torch
import trimesh
from scipy.spatial import KDTree

from body3d.body import BodyModel
from body3d.body.collision import closest_on_triangles, penetrations, winding_numbers
from body3d.body.conic import circumcircle, conic_energy, conic_field, intrusion
from body3d.body.parts import IGNORED, PUBLISHED_IGNORED, Parts, body_parts, read_parts
from body3d.body.triangles import candidate_pairs, colliding_pairs, stack_pairs, triangles_cross
from body3d.errors import InputError
from body3d.fit.collision import resolve
from body3d.fit.solve import lbfgs
from body3d.skeletons import SMPLX55
from body3d.types import BodyParams


@pytest.fixture(scope="module")
def model() -> BodyModel:
    return BodyModel.open()


def solids(*meshes: trimesh.Trimesh) -> tuple[np.ndarray, Parts]:
    """Closed meshes as the parts of one surface, each of which may collide with every other."""
    both = trimesh.util.concatenate(meshes)
    names = tuple("abcdefg"[: len(meshes)])
    own = np.arange(len(meshes))
    face = own.repeat([len(m.faces) for m in meshes])
    vertex = own.repeat([len(m.vertices) for m in meshes])
    return np.array(both.vertices), Parts(names, names, own, np.array(both.faces), face, vertex, own[:, None] != own)


def sphere(x: float = 0.0, radius: float = 0.1, subdivisions: int = 3) -> trimesh.Trimesh:
    return trimesh.creation.icosphere(subdivisions, radius).apply_translation([x, 0, 0])


def box(x: float = 0.0, edge: float = 0.2, subdivisions: int = 2) -> trimesh.Trimesh:
    mesh = trimesh.creation.box((edge, edge, edge))
    for _ in range(subdivisions):
        mesh = mesh.subdivide()
    return mesh.apply_translation([x, 0, 0])


# ---- the conic field -----------------------------------------------------------------------------------------------
def field_by_hand(receiver: np.ndarray, intruder: np.ndarray, sigma: float, power: int) -> float:
    """One vertex after the other; the circumcentre from the three equations that define it."""
    a, b, c = receiver
    n = np.cross(b - a, c - a)
    n /= np.linalg.norm(n)
    equations = np.stack([b - a, c - a, n])
    centre = np.linalg.solve(equations, [(b - a) @ (b + a) / 2, (c - a) @ (c + a) / 2, n @ a])
    radius = np.linalg.norm(centre - a)
    total = 0.0
    for v in intruder:
        d = n @ (v - centre)
        h = np.linalg.norm(v - centre - d * n) / (radius * (1 - d / sigma) + 1e-6)
        if d >= sigma or h >= 1:
            continue
        psi = 1 - sigma - d
        if d > -sigma:
            psi = -(1 - 2 * sigma) / (4 * sigma**2) * d**2 - d / (2 * sigma) + (3 - 2 * sigma) / 4
        total += ((1 - h) * psi) ** power
    return total


@pytest.mark.parametrize(("released", "power"), [(False, 4), (True, 8)])
@pytest.mark.parametrize("sigma", [0.5, 0.1])
def test_field_is_the_papers_and_the_released_ones(released, power, sigma):
    triangles = np.random.default_rng(0).standard_normal((40, 3, 3))
    pairs = np.arange(40).reshape(1, 20, 2)
    ours = conic_field(torch.from_numpy(triangles)[None], torch.from_numpy(pairs), sigma, released=released)[0]
    expected = [
        field_by_hand(triangles[i], triangles[j], sigma, power)
        + field_by_hand(triangles[j], triangles[i], sigma, power)
        for i, j in pairs[0]
    ]
    assert sum(e > 1e-3 for e in expected) > 10
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)


def test_a_vertex_straight_below_a_triangle():
    """Depth 1 below the middle of a triangle that the intruder's other two vertices stay clear of: (1 - sigma + 1)^4."""
    around = torch.tensor([math.pi / 2, 7 * math.pi / 6, 11 * math.pi / 6], dtype=torch.float64)
    receiver = torch.stack([around.cos(), around.sin(), torch.zeros(3)], 1)
    intruder = torch.tensor([[0, 0, -1], [30, 0, 40], [-30, 0.0, 40]], dtype=torch.float64)
    centre, radius, normal = circumcircle(receiver)
    torch.testing.assert_close(centre, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert radius.item() == pytest.approx(1)
    assert normal.tolist() == pytest.approx([0, 0, 1])
    both = conic_field(torch.stack([receiver, intruder])[None], torch.tensor([[[0, 1], [-1, -1]]]), 0.5)
    other_way = field_by_hand(intruder.numpy(), receiver.numpy(), 0.5, 4)
    assert both[0, 0].item() - other_way == pytest.approx(1.5**4)
    assert both[0, 1] == 0


def test_intrusion_is_smooth_where_it_should_be():
    sigma = 0.3
    at = lambda d, **kind: intrusion(torch.tensor(d, dtype=torch.float64), sigma, **kind).item()
    for edge in (-sigma, sigma):
        assert at(edge - 1e-9) == pytest.approx(at(edge + 1e-9), abs=1e-7)
    slope = lambda d: (at(d + 1e-6) - at(d - 1e-6)) / 2e-6
    assert slope(-sigma - 1e-4) == pytest.approx(slope(-sigma + 1e-4), abs=1e-3)
    assert (at(-0.1), at(0.1)) != (0, 0)
    assert at(0.1, outside=False) == 0 and at(-0.1, outside=False) == at(-0.1)


@pytest.mark.parametrize("released", [False, True])
def test_gradient_by_finite_differences(released):
    g = torch.Generator().manual_seed(2)
    triangles = torch.randn(2, 8, 3, 3, generator=g, dtype=torch.float64, requires_grad=True)
    pairs = torch.tensor([[[0, 1], [2, 3], [4, 0], [-1, -1]], [[6, 7], [5, 1], [2, 0], [3, 4]]])
    assert (conic_field(triangles, pairs, 0.4).detach() > 1e-3).sum() >= 4
    assert torch.autograd.gradcheck(lambda t: conic_field(t, pairs, 0.4, released=released), triangles, atol=1e-5)


def test_bodies_do_not_depend_on_each_other():
    (one, parts), (two, _) = solids(sphere(), sphere(0.19)), solids(sphere(), sphere(0.17))
    both = torch.from_numpy(np.stack([one, two]))
    energy = conic_energy(both, parts, 0.01)
    alone = torch.cat([conic_energy(v[None], parts, 0.01) for v in both])
    torch.testing.assert_close(energy, alone)
    assert 0 < energy[0] != energy[1] > 0
    apart = conic_energy(torch.from_numpy(solids(sphere(), sphere(0.21))[0])[None], parts, 0.01)
    assert apart.item() == 0


@pytest.mark.parametrize(("make", "apart", "depth"), [(sphere, 0.19, 0.01), (sphere, 0.16, 0.04), (box, 0.193, 0.007)])
def test_two_solids_are_pushed_apart(make, apart, depth):
    """By the field alone, the second one moving as a whole along all three axes."""
    still, moving = (make(x, subdivisions=2) for x in (0.0, apart))
    moving.apply_transform(trimesh.transformations.rotation_matrix(0.3, [1, 0, 0]))
    verts, parts = solids(still, moving)
    assert penetrations(verts, parts)[0].depth == pytest.approx(depth, abs=0.002)
    first = torch.from_numpy(parts.vertex == 0)[:, None]
    still, moving = 1000 * torch.from_numpy(verts), first.logical_not().double()
    place = lambda t: still + moving * t[:, None]  # all in millimetres
    t = torch.zeros(1, 3, dtype=torch.float64)
    for _ in range(3):
        t = lbfgs(lambda x: conic_energy(place(x), parts, 0.5) + 0.1 * x.square().sum(-1), t, 8).x
    found = penetrations(place(t)[0].numpy() / 1000, parts)
    assert not found or found[0].depth < 0.001
    assert t.norm().item() < 1000 * depth + 8  # and no further than that


# ---- crossing triangles --------------------------------------------------------------------------------------------
FLAT = ((0, 0, 0), (4, 0, 0), (0, 4, 0))


@pytest.mark.parametrize(
    ("other", "cross"),
    [
        (((1, 1, -1), (1, 1, 1), (2, 2, 1)), True),  # through the middle
        (((1, 1, 1), (1, 2, 1), (2, 2, 3)), False),  # above
        (((5, 5, -1), (5, 5, 1), (6, 6, 0)), False),  # through the plane, beside
        (((2, 2, -1), (2, 2, 1), (3, 3, 0)), True),  # touches the long edge
        (((3, 2, -1), (3, 2, 1), (4, 4, 0)), False),  # just beyond the long edge
        (((0, 0, 0), (-1, -1, 1), (-1, -1, 2)), True),  # shares a corner
        (((1, 1, 0), (1, 2, 5), (2, 1, 5)), True),  # stands on it with a corner
        (((0, 0, 0), (4, 0, 0), (0, 0, 4)), True),  # shares an edge
        (((1, 1, 0), (2, 1, 0), (1, 2, 0)), True),  # in its plane, inside it
        (((-4, -4, 0), (9, -4, 0), (-4, 20, 0)), True),  # in its plane, around it
        (((3, 3, 0), (5, 3, 0), (3, 5, 0)), False),  # in its plane, beside it
        (((2, 2, 0), (5, 2, 0), (2, 5, 0)), True),  # in its plane, touches the long edge
        (((-1, 1, 0), (5, 1, 0), (2, -1, 0)), True),  # in its plane, overlaps
        (((1, 1, 1), (2, 1, 1), (1, 2, 1)), False),  # parallel
    ],
)
def test_triangles_typed_by_hand(other, cross):
    a, b = np.array([FLAT], float), np.array([other], float)
    for scale in (1.0, 1e-3):
        for _ in range(3):
            assert triangles_cross(scale * a, scale * b).tolist() == [cross]
            assert triangles_cross(scale * b, scale * a).tolist() == [cross]
            a, b = np.roll(a, 1, 1), np.roll(b[:, ::-1], 1, 1)


def cross_exactly(a: np.ndarray, b: np.ndarray) -> bool | None:
    """In whole numbers: whether an edge of one goes through the other; None if four corners lie in a plane."""
    side = lambda p, q, r, s: round(np.linalg.det(np.stack([q - p, r - p, s - p])))
    for t, u in ((a, b), (b, a)):
        for k in range(3):
            p, q = t[k], t[(k + 1) % 3]
            ends = side(*u, p), side(*u, q)
            turns = [side(p, q, u[i], u[(i + 1) % 3]) for i in range(3)]
            if 0 in ends or 0 in turns:
                return None
            if ends[0] * ends[1] < 0 and (max(turns) < 0 or min(turns) > 0):
                return True
    return False


def test_triangles_of_whole_numbers():
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-20, 21, (600, 3, 3)) for _ in range(2))
    expected = [cross_exactly(p, q) for p, q in zip(a, b, strict=True)]
    found = triangles_cross(a.astype(float), b.astype(float)).tolist()
    decided = [(e, f) for e, f in zip(expected, found, strict=True) if e is not None]
    assert len(decided) > 500
    assert 50 < sum(e for e, _ in decided) < 450
    assert all(e == f for e, f in decided)


def soup(seed: int, n: int = 300) -> tuple[np.ndarray, Parts]:
    """Triangles of very different sizes that share vertices here and there, in four parts."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(-1, 1, (n, 1, 3)) * [1, 1, 0.3]
    verts = (centre + rng.lognormal(-2.5, 0.8, (n, 1, 1)) * rng.standard_normal((n, 3, 3))).reshape(-1, 3)
    faces = np.arange(3 * n).reshape(n, 3)
    faces[::7, 0] = faces[rng.integers(0, n, len(faces[::7])), 1]
    collide = np.array([[0, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1]], bool)
    face = rng.integers(0, 4, n)
    return verts, Parts(tuple("abcd"), tuple("abcd"), np.arange(4), faces, face, face.repeat(3), collide)


@pytest.mark.parametrize("seed", range(4))
def test_pairs_are_those_of_all_pairs(seed):
    verts, parts = soup(seed)
    corners, part = verts[parts.faces], parts.face
    pairs = [(i, j) for i, j in combinations(range(len(corners)), 2) if parts.collide[part[i], part[j]]]
    i, j = np.array([p for p in pairs if not set(parts.faces[p[0]]) & set(parts.faces[p[1]])]).T
    meet = ((corners[i].min(1) <= corners[j].max(1)) & (corners[j].min(1) <= corners[i].max(1))).all(1)
    boxes = np.stack([i, j], 1)[meet].tolist()
    cross = triangles_cross(corners[i], corners[j])
    assert not (cross & ~meet).any()
    crossing = np.stack([i, j], 1)[cross].tolist()
    assert len(boxes) > 100 and len(crossing) > 10
    assert candidate_pairs(verts, parts).tolist() == boxes
    assert colliding_pairs(verts, parts).tolist() == crossing


def test_no_pairs_at_all():
    verts, parts = solids(sphere(), sphere(5.0))
    assert candidate_pairs(verts, parts).shape == (0, 2)
    assert stack_pairs([colliding_pairs(verts, parts)]).shape == (1, 0, 2)
    assert penetrations(verts, parts) == []


# ---- inside and how deep -------------------------------------------------------------------------------------------
def test_winding_numbers():
    points = np.random.default_rng(0).uniform(-0.15, 0.15, (2000, 3))
    ball, other = sphere(), sphere(0.05)
    inner = ball.triangles_center  # the polyhedron lies between the spheres through its corners and its faces
    low, high = np.linalg.norm(inner, axis=1).min(), 0.1
    clear = lambda p: (np.linalg.norm(p, axis=1) < low) | (np.linalg.norm(p, axis=1) > high)
    for mesh, centre, sign in ((ball, 0.0, 1), (other, 0.05, 1), (sphere(), 0.0, -1)):
        triangles = np.array(mesh.triangles)[:, ::sign]
        d = points - [centre, 0, 0]
        expected = sign * (np.linalg.norm(d, axis=1) < low)
        assert (winding_numbers(points, triangles) == expected)[clear(d)].all()
    twice = winding_numbers(points, np.concatenate([ball.triangles, other.triangles]))
    assert (twice == winding_numbers(points, ball.triangles) + winding_numbers(points, other.triangles)).all()
    assert {0, 1, 2} == set(twice)


def test_points_in_line_with_corners_and_edges():
    grid = np.stack(np.meshgrid(*[np.linspace(-0.2, 0.2, 9)] * 3), -1).reshape(-1, 3)
    inside = (np.abs(grid) < 0.1).all(1)
    clear = ~np.isclose(np.abs(grid).max(1), 0.1)
    assert (winding_numbers(grid, np.array(box().triangles)) == inside)[clear].all()


def test_nearest_points_are_trimeshs():
    rng = np.random.default_rng(0)
    triangles = rng.standard_normal((500, 3, 3))
    triangles[:20, 2] = triangles[:20, 1]  # no area
    points = 1.5 * rng.standard_normal((500, 3))
    with np.errstate(all="ignore"):
        expected = trimesh.triangles.closest_point(triangles[20:], points[20:])
    np.testing.assert_allclose(closest_on_triangles(points, triangles)[20:], expected, atol=1e-12)
    a, b = triangles[:20, 0], triangles[:20, 1]
    t = np.clip(((points[:20] - a) * (b - a)).sum(1) / ((b - a) ** 2).sum(1), 0, 1)[:, None]
    np.testing.assert_allclose(closest_on_triangles(points, triangles)[:20], a + t * (b - a), atol=1e-12)


def test_depth_of_two_spheres():
    verts, parts = solids(sphere(0, 0.1, 4), sphere(0.13, 0.05, 4))
    found = penetrations(verts, parts)
    assert [(p.inner, p.outer) for p in found] == [("b", "a"), ("a", "b")]
    for p in found:
        assert p.depth == pytest.approx(0.02, abs=0.001)
        assert str(p) == f"{p.inner} in {p.outer}: {1000 * p.depth:.1f} mm"
    inside = {"a": np.linalg.norm(verts - [0.13, 0, 0], axis=1) < 0.0499, "b": np.linalg.norm(verts, axis=1) < 0.0999}
    for p in found:
        count = (inside[p.inner] & (parts.vertex == "ab".index(p.inner))).sum()
        assert p.vertices == pytest.approx(count, abs=5)


def test_a_solid_in_a_solid_is_found_without_crossing_triangles():
    verts, parts = solids(sphere(0, 0.1, 4), sphere(0.02, 0.03, 3))
    assert len(colliding_pairs(verts, parts)) == 0
    (found,) = penetrations(verts, parts)
    assert (found.inner, found.outer) == ("b", "a")
    assert found.depth == pytest.approx(0.1, abs=0.012)  # the vertex nearest to the middle is 0.01 from it
    assert found.vertices == (parts.vertex == 1).sum()


# ---- parts of the body ---------------------------------------------------------------------------------------------
def test_what_may_collide(model):
    parts = body_parts(model)
    may = lambda a, b: parts.collide[parts.names.index(a), parts.names.index(b)]
    assert (parts.collide == parts.collide.T).all()
    assert not any(may(n, n) for n in parts.names)
    assert not any(may(n, parts.names[p]) for n, p in zip(SMPLX55.names, SMPLX55.parents, strict=True) if p >= 0)
    assert not any(may(a, b) for a, b in IGNORED)
    assert may("left_hip", "right_hip") and not may("pelvis", "spine2")
    assert not may("left_hip", "spine1") and may("left_hip", "spine3")
    assert may("left_elbow", "spine3") and may("left_wrist", "left_hip") and may("left_index3", "left_wrist")
    published = body_parts(model, PUBLISHED_IGNORED, creases=False)
    assert not published.collide[parts.names.index("left_hip"), parts.names.index("right_hip")]
    numbers = {frozenset(SMPLX55.index(n) for n in pair) for pair in PUBLISHED_IGNORED}
    assert numbers == {frozenset(p) for p in ((9, 16), (9, 17), (6, 16), (6, 17), (1, 2), (12, 22))}


def test_regions_are_where_their_names_say(model):
    parts, verts = body_parts(model), model.template.numpy()
    middle = {r: verts[parts.region[parts.vertex] == i].mean(0) for i, r in enumerate(parts.regions)}
    assert len(middle) == 25
    assert middle["head"][1] > middle["neck"][1] > middle["torso"][1] > middle["left_thigh"][1] > middle["left_shin"][1]
    arm = ["left_upper_arm", "left_forearm", "left_hand", "left_middle_finger"]
    assert np.all(np.diff([middle[r][0] for r in arm]) > 0.05)
    for name, at in middle.items():
        if name.startswith("left"):
            np.testing.assert_allclose(at * [-1, 1, 1], middle[name.replace("left", "right")], atol=1e-3)


def test_folds_are_near_the_joint_only(model):
    parts, verts = body_parts(model), model.template.numpy()
    of = parts.vertex == parts.names.index("left_hip")
    fold = parts.crease[of, parts.names.index("right_hip")]
    assert 0.01 < fold.mean() < 0.3
    height = verts[of, 1] - verts[of, 1].min()
    assert height[fold].min() > 0.6 * height.max()


def test_rest_pose_of_random_shapes_is_free(model):
    params = model.zero_params(20)
    shape = torch.randn(params.shape.shape, generator=torch.Generator().manual_seed(0))
    verts = model(BodyParams(params.pose, shape, params.transl, params.expression)).mesh.verts.double().numpy()
    parts = body_parts(model)
    for v in verts:
        assert [str(p) for p in penetrations(v, parts)] == []
        assert len(colliding_pairs(v, parts)) == 0


def test_published_segmentation(model, tmp_path):
    own = body_parts(model, PUBLISHED_IGNORED, creases=False)
    parents = np.array(SMPLX55.parents)[own.face]
    path = tmp_path / "smplx_parts_segm.pkl"
    path.write_bytes(pickle.dumps({"segm": own.face, "parents": parents}, protocol=2))
    read = read_parts(path, model)
    assert (read.face == own.face).all()
    assert (read.collide == own.collide).all()
    assert (read.vertex == own.vertex).mean() > 0.95
    path.write_bytes(pickle.dumps({"segm": own.face[:-1], "parents": parents}, protocol=2))
    with pytest.raises(
        InputError, match=r"one joint of 0…54 for each of the 27420 triangles of the open model; it has 27419"
    ):
        read_parts(path, model)
    path.write_bytes(pickle.dumps({"segm": own.face, "parents": parents[:9]}, protocol=2))
    with pytest.raises(InputError, match="'parents' has 9 entries"):
        read_parts(path, model)
    path.write_bytes(pickle.dumps({"segm": own.face}, protocol=2))
    with pytest.raises(InputError, match="is not a segmentation: it has no 'parents'"):
        read_parts(path, model)


# ---- poses ---------------------------------------------------------------------------------------------------------
def posed(model: BodyModel, **turns: tuple[tuple[str, float], ...]) -> BodyParams:
    """The mean body with joints turned about axes by degrees, one after the other."""
    params = model.zero_params()
    pose = params.pose.clone()
    for name, steps in turns.items():
        R = torch.eye(3)
        for axis, degrees in steps:
            R = R @ roma.rotvec_to_rotmat(math.radians(degrees) * torch.eye(3)["xyz".index(axis)])
        pose[model.joints.index(name)] = roma.rotmat_to_rotvec(R)
    return BodyParams(pose, params.shape, params.transl, params.expression)


def arm(side: str, down: float, inwards: float, elbow: float) -> dict:
    s = 1 if side == "left" else -1
    return {f"{side}_shoulder": (("z", -s * down), ("x", inwards)), f"{side}_elbow": (("y", -s * elbow),)}


CASES = {
    "legs crossed": {"left_hip": (("x", -10), ("z", -15)), "right_hip": (("x", -5), ("z", 15))},
    "arms crossed": {**arm("left", 65, 70, 95), **arm("right", 65, 70, 100)},
    "hand in the belly": arm("left", 70, 80, 110),
    "hand on the hip": {"left_shoulder": (("z", -50), ("y", 40)), "left_elbow": (("z", -80), ("y", -20))},
    "sitting, legs crossed": {
        "left_hip": (("x", -90), ("z", -20)), "right_hip": (("x", -85), ("z", 20)),
        "left_knee": (("x", 90),), "right_knee": (("x", 80),),
    },
}  # fmt: skip


def test_colliding_parts_are_named(model):
    names = {}
    for case, turns in CASES.items():
        verts = model(posed(model, **turns)).mesh.verts.double().numpy()
        found = penetrations(verts, body_parts(model))
        assert found[0].depth == max(p.depth for p in found) > 0.03
        names[case] = {(p.inner, p.outer) for p in found}
    assert ("left_shin", "right_shin") in names["legs crossed"]
    assert {("left_forearm", "torso"), ("right_forearm", "torso")} <= names["arms crossed"]
    assert ("left_hand", "torso") in names["hand in the belly"]
    assert not any(n.startswith("right") for pair in names["hand in the belly"] for n in pair)


def test_depth_on_the_body_by_other_means(model):
    """The left hand in the belly: inside the body without its left arm, as far from samples of the torso's skin."""
    verts = model(posed(model, **CASES["hand in the belly"])).mesh.verts.double().numpy()
    parts = body_parts(model)
    (found,) = [p for p in penetrations(verts, parts) if (p.inner, p.outer) == ("left_hand", "torso")]
    region = np.array(parts.regions)[parts.region[parts.face]]
    legs = ("left_thigh", "left_shin", "left_foot")
    arm_skin = np.array([r.startswith("left_") and r not in legs for r in region])
    hand = verts[parts.region[parts.vertex] == parts.regions.index("left_hand")]
    # Open where the arm was, at the shoulder: no ray from the belly to the side passes there.
    inside = hand[winding_numbers(hand, verts[parts.faces[~arm_skin]]) == 1]
    torso = trimesh.Trimesh(verts, parts.faces[region == "torso"], process=False)
    samples, _ = trimesh.sample.sample_surface(torso, 40_000, seed=0)
    assert found.vertices == pytest.approx(len(inside), abs=3)
    assert found.depth == pytest.approx(KDTree(samples).query(inside)[0].max(), abs=0.002)


@pytest.mark.parametrize(
    "case", [name if i == 0 else pytest.param(name, marks=pytest.mark.slow) for i, name in enumerate(CASES)]
)
def test_a_colliding_pose_becomes_free(model, case):
    params = posed(model, **CASES[case])
    result = resolve(model, params)
    assert result.before[0].depth > 0.03
    left = penetrations(model(result.params).mesh.verts.double().numpy(), body_parts(model))
    assert all(p.depth <= 0.002 for p in left)
    assert [str(p) for p in left] == [str(p) for p in result.after]
    assert math.degrees(result.turned) < 30
    assert result.moved < result.before[0].depth + 0.03
    kept = [i for i, n in enumerate(model.joints.names) if n == "pelvis" or (n[-1] in "123" and "spine" not in n)]
    torch.testing.assert_close(result.params.pose[kept], params.pose[kept], rtol=0, atol=0)
    assert str(result).endswith(f"moved by up to {1000 * result.moved:.0f} mm")


def test_a_free_pose_stays(model):
    params = posed(model, left_shoulder=(("z", -40),))
    result = resolve(model, params)
    assert (result.rounds, result.turned, result.moved, result.before) == (0, 0.0, 0.0, [])
    torch.testing.assert_close(result.params.pose, params.pose, rtol=0, atol=0)


def test_only_named_joints_turn(model):
    params = posed(model, **CASES["legs crossed"])
    result = resolve(model, params, free=["left_hip"], rounds=3)
    changed = (result.params.pose != params.pose).any(-1)
    assert [n for n, c in zip(model.joints.names, changed, strict=True) if c] == ["left_hip"]
    assert result.after[0].depth < result.before[0].depth if result.after else True
    with pytest.raises(InputError, match="'free' names left_index1; the joints that can turn are left_hip"):
        resolve(model, params, free=["left_index1"])
