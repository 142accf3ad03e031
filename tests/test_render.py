"""The rasteriser against geometry that is known in closed form."""

import math

import cv2
import numpy as np
import pytest
import torch

from body3d.camera import Camera
from body3d.skeletons import COCO17
from body3d.types import Boxes, Keypoints2D, Mesh
from body3d.view.draw import LEFT, RIGHT, draw_boxes, draw_keypoints, draw_label
from body3d.view.render import NEAR, overlay, render, vertex_normals
from body3d.view.sides import SIDES, contact_sheet, four_sides

RED, BLUE = np.array([220, 30, 30], np.uint8), np.array([30, 30, 220], np.uint8)


def mesh(verts, faces) -> Mesh:
    return Mesh(torch.as_tensor(np.asarray(verts, np.float32)), torch.as_tensor(np.asarray(faces, np.int64)))


def quad(*corners) -> Mesh:
    return mesh(corners, [[0, 1, 2], [0, 2, 3]])


def facing_quad(x0, y0, x1, y1, z) -> Mesh:
    return quad((x0, y0, z), (x0, y1, z), (x1, y1, z), (x1, y0, z))


def sphere(centre, radius: float, parts: int = 96) -> Mesh:
    """Outward faces are counter-clockwise seen from outside."""
    polar, around = np.meshgrid(
        np.linspace(0, np.pi, parts + 1), np.linspace(0, 2 * np.pi, 2 * parts + 1), indexing="ij"
    )
    unit = np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)], -1).reshape(-1, 3)
    i, j = np.mgrid[:parts, : 2 * parts].reshape(2, -1)
    a, right, below = i * (2 * parts + 1) + j, 1, 2 * parts + 1
    faces = np.concatenate(
        [np.stack([a, a + below, a + below + right], -1), np.stack([a, a + below + right, a + right], -1)]
    )
    return mesh(np.asarray(centre) + radius * unit, faces)


def rays(camera: Camera) -> np.ndarray:
    """Directions with z = 1 through all pixel centres, (H, W, 3)."""
    height, width = camera.size
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(camera.K.double().numpy()).T


CAMERA = Camera.pinhole(150.0, (96, 128))


def test_depth_of_a_tilted_plane():
    normal, offset = np.array([0.3, -0.5, 1.0]), 2.0  # normal . X = offset
    corner = lambda x, y: (x, y, (offset - normal[0] * x - normal[1] * y) / normal[2])
    out = render([quad(corner(-4, -2), corner(4, -2), corner(4, 3), corner(-4, 3))], CAMERA)
    expected = offset / (rays(CAMERA) @ normal)
    assert np.isfinite(out.depth).all()
    np.testing.assert_allclose(out.depth, expected, rtol=2e-5)
    assert (out.alpha == 1).all()
    assert (out.person == 0).all()


def test_depth_of_a_sphere():
    centre, radius = np.array([0.2, -0.1, 3.0]), 0.7
    out = render([sphere(centre, radius)], CAMERA)
    d = rays(CAMERA)
    # |s d - c|^2 = r^2
    a, b, c = (d * d).sum(-1), d @ centre, centre @ centre - radius**2
    inside = b**2 - a * c
    depth = (b - np.sqrt(np.maximum(inside, 0))) / a
    well_inside = cv2.erode((inside > 0).astype(np.uint8), np.ones((5, 5))).astype(bool)
    assert well_inside.sum() > 2000
    assert np.abs(out.depth - depth)[well_inside].max() < 0.015  # at the steep rim of 192 flat sides
    assert np.median(np.abs(out.depth - depth)[well_inside]) < 5e-4
    outside = cv2.dilate((inside > 0).astype(np.uint8), np.ones((3, 3))) == 0
    assert np.isinf(out.depth[outside]).all()
    assert (out.alpha[outside] == 0).all()


def test_a_camera_that_was_moved_sees_what_it_should():
    """R and t: the same sphere seen from elsewhere is the sphere moved into camera space."""
    angle = 0.4
    R = torch.tensor([[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]])
    t = torch.tensor([0.1, 0.2, 0.3])
    moved = Camera(CAMERA.K, R, t, CAMERA.size)
    body = sphere((0.5, 0.1, 3.0), 0.5)
    there = render([body], moved)
    here = render([Mesh(body.verts @ R.T + t, body.faces)], CAMERA)
    np.testing.assert_allclose(there.depth, here.depth, rtol=1e-5)
    assert np.abs(there.colour.astype(int) - here.colour).max() <= 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_nearer_hides_farther_whatever_the_order(order):
    near, far = facing_quad(-0.3, -0.3, 0.3, 0.3, 1.5), facing_quad(-0.6, -0.2, 0.6, 0.2, 2.0)
    meshes = [near, far] if order == (0, 1) else [far, near]
    out = render(meshes, CAMERA, [RED, BLUE])
    middle = 47, 63
    assert out.person[middle] == order.index(0)
    assert out.depth[middle] == pytest.approx(1.5, rel=1e-5)
    beside = 47, 63 + 38  # 38 px * 2 m / 150 px = 0.51 m: on the far quad only (the near one ends at 30 px)
    assert out.person[beside] == order.index(1)
    assert out.depth[beside] == pytest.approx(2.0, rel=1e-5)
    assert out.person[5, 5] == -1


def test_two_quads_that_pass_through_each_other_part_at_the_line_where_they_meet():
    left_near = quad((-0.5, -0.3, 1.5), (0.5, -0.3, 2.5), (0.5, 0.3, 2.5), (-0.5, 0.3, 1.5))
    right_near = quad((-0.5, -0.3, 2.5), (0.5, -0.3, 1.5), (0.5, 0.3, 1.5), (-0.5, 0.3, 2.5))
    out = render([left_near, right_near], CAMERA)
    assert (out.person[40:56, 40:63] == 0).all()
    assert (out.person[40:56, 65:88] == 1).all()


@pytest.mark.parametrize("seed", range(8))
def test_coverage_is_the_area_and_the_centroid_is_projected(seed):
    """A triangle's coverage sums to its area in pixels and is centred on its centroid."""
    rng = np.random.default_rng(seed)
    corners = np.stack([rng.uniform(-0.6, 0.6, 3), rng.uniform(-0.4, 0.4, 3), np.full(3, 2.0)], -1)
    out = render([mesh(corners, [[0, 1, 2]])], CAMERA)
    xy = CAMERA.project(torch.as_tensor(corners).float()).double().numpy()
    (ax, ay), (bx, by) = xy[1] - xy[0], xy[2] - xy[0]
    area = abs(ax * by - ay * bx) / 2
    perimeter = sum(np.linalg.norm(xy[i] - xy[i - 1]) for i in range(3))
    assert out.alpha.sum() == pytest.approx(area, abs=0.02 * area + 0.04 * perimeter)
    y, x = np.mgrid[: CAMERA.size[0], : CAMERA.size[1]]
    centroid = np.array([(out.alpha * x).sum(), (out.alpha * y).sum()]) / out.alpha.sum()
    if area > 50:
        np.testing.assert_allclose(centroid, xy.mean(0), atol=0.3)


def test_pixel_centres_are_at_integers():
    """A quad over exactly the pixels 10..19 x 30..49 covers them wholly and no others."""
    z = 2.0
    point = lambda x, y: CAMERA.unproject(torch.tensor([[x, y]]), torch.tensor([z]))[0].tolist()
    out = render([quad(point(29.5, 9.5), point(49.5, 9.5), point(49.5, 19.5), point(29.5, 19.5))], CAMERA)
    expected = np.zeros(CAMERA.size, np.float32)
    expected[10:20, 30:50] = 1
    np.testing.assert_array_equal(out.alpha, expected)
    # Half a pixel farther right: half of the pixels at both ends.
    out = render([quad(point(30.0, 9.5), point(50.0, 9.5), point(50.0, 19.5), point(30.0, 19.5))], CAMERA)
    expected[10:20, 30], expected[10:20, 50] = 0.5, 0.5
    np.testing.assert_array_equal(out.alpha, expected)


def test_a_closed_mesh_has_no_cracks():
    """Of many small triangles and of few large ones, and where their shared edges pass through samples."""
    ball = sphere((0, 0, 2.0), 0.5, 200)
    filled = cv2.erode((render([ball], CAMERA).alpha > 0).astype(np.uint8), np.ones((5, 5))).astype(bool)
    assert (render([ball], CAMERA).alpha[filled] == 1).all()
    K = torch.tensor([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]])
    camera = Camera(K, torch.eye(3), torch.zeros(3), (101, 101))
    grid = np.arange(-4, 5) / 10.0  # edges and diagonals fall on whole pixels
    verts = np.array([(x, y, 1.0) for y in grid for x in grid])
    cell = np.array([j * 9 + i for j in range(8) for i in range(8)])[:, None]
    faces = np.concatenate([cell + np.array([0, 1, 10]), cell + np.array([0, 10, 9])])
    assert (render([mesh(verts, faces)], camera).alpha[11:90, 11:90] == 1).all()


def test_what_is_behind_the_camera_is_not_drawn():
    out = render([facing_quad(-1, -1, 1, 1, -2.0), sphere((0, 0, -3), 1, 12)], CAMERA)
    assert (out.alpha == 0).all()
    assert np.isinf(out.depth).all()


@pytest.mark.parametrize("behind", [1, 2])
def test_a_triangle_through_the_camera_plane_is_cut(behind):
    """A floor 1 m below the camera from 3 m behind it to 5 m ahead: its depth is known where it is seen."""
    front, back = 5.0, -3.0
    far, close = [(-9, 1, front), (9, 1, front)], [(-9, 1, back), (9, 1, back)]
    corners = [far[0], far[1], (0, 1, back)] if behind == 1 else [close[0], close[1], (0, 1, front)]
    whole = render([mesh([*far, *close], [[0, 1, 2], [1, 3, 2]])], CAMERA)
    d = rays(CAMERA)
    with np.errstate(divide="ignore"):
        depth = np.where(d[..., 1] > 0, 1 / d[..., 1], np.inf)
    seen = (depth > NEAR) & (depth < front * 0.98)
    np.testing.assert_allclose(whole.depth[seen], depth[seen], rtol=1e-4)
    part = render([mesh(corners, [[0, 1, 2]])], CAMERA)
    drawn = part.alpha == 1
    assert drawn.sum() > 1000
    np.testing.assert_allclose(part.depth[drawn], depth[drawn], rtol=1e-4)


def test_large_pictures_are_drawn_in_strips_without_a_seam(monkeypatch):
    from body3d.view import render as module

    ball, ground = sphere((0, 0, 2.0), 0.5, 30), quad((-3, 0.6, 0.5), (3, 0.6, 0.5), (3, 0.6, 6), (-3, 0.6, 6))
    once = render([ball, ground], CAMERA)
    monkeypatch.setattr(module, "STRIP", 4 * 128 * 7)
    strips = render([ball, ground], CAMERA)
    np.testing.assert_array_equal(once.colour, strips.colour)
    np.testing.assert_array_equal(once.alpha, strips.alpha)
    np.testing.assert_allclose(once.depth, strips.depth, rtol=1e-5)
    np.testing.assert_array_equal(once.person, strips.person)


def test_lens_distortion_moves_the_picture_as_the_camera_says():
    distortion = torch.tensor([-0.25, 0.05, 0.002, -0.001, 0.0])
    bent = Camera(CAMERA.K, CAMERA.R, CAMERA.t, CAMERA.size, distortion)
    dot = sphere((0.6, 0.4, 2.0), 0.03, 12)
    alpha = render([dot], bent).alpha
    y, x = np.mgrid[: CAMERA.size[0], : CAMERA.size[1]]
    centroid = np.array([(alpha * x).sum(), (alpha * y).sum()]) / alpha.sum()
    expected = bent.project(torch.tensor([[0.6, 0.4, 2.0]]))[0].numpy()
    assert (
        np.linalg.norm(expected - CAMERA.project(torch.tensor([[0.6, 0.4, 2.0]]))[0].numpy()) > 1.5
    )  # it matters here
    np.testing.assert_allclose(centroid, expected, atol=0.15)
    # Far outside of the picture the polynomial would fold points back into view.
    assert (render([sphere((8.0, 0, 2.0), 0.3, 12)], bent).alpha == 0).all()


def test_normals_point_outwards_and_faces_to_the_light_are_brighter():
    ball = sphere((0, 0, 0), 1.0)
    normals = vertex_normals(ball.verts.double().numpy(), ball.faces.numpy())
    unit = ball.verts.double().numpy()
    assert (normals * unit).sum(-1)[97 * 2 :: 7].min() > 0.99
    out = render([sphere((0, 0, 2.0), 0.5)], CAMERA, [np.array([180, 180, 180], np.uint8)])
    grey = out.colour.mean(-1)
    assert grey[30, 50] > grey[64, 78] + 20  # light comes from above left


def test_colours_per_mesh_and_per_vertex():
    one = facing_quad(-0.3, -0.3, 0.3, 0.3, 1.5)
    red, blue = (render([one], CAMERA, [c]).colour[47, 63].astype(int) for c in (RED, BLUE))
    assert red[0] > red[2] + 80
    assert blue[2] > blue[0] + 80
    each = np.array([[255, 0, 0], [0, 0, 255], [0, 0, 255], [255, 0, 0]], np.uint8)
    column = render([one], CAMERA, [each]).colour[:, 63].astype(int)
    assert column[20, 0] > column[20, 2] + 80  # the two upper corners are red
    assert column[75, 2] > column[75, 0] + 80


def test_overlay_leaves_the_rest_of_the_photo_alone():
    photo = np.random.default_rng(0).integers(0, 256, (*CAMERA.size, 3), dtype=np.uint8)
    before = photo.copy()
    body = sphere((0, 0, 2.0), 0.4)
    drawn, alpha = overlay(photo, [body], CAMERA), render([body], CAMERA).alpha
    np.testing.assert_array_equal(photo, before)
    np.testing.assert_array_equal(drawn[alpha == 0], photo[alpha == 0])
    assert np.abs(drawn.astype(int) - photo)[alpha == 1].mean() > 30
    np.testing.assert_array_equal(overlay(photo, [], CAMERA), photo)
    with pytest.raises(ValueError, match="size"):
        overlay(photo[:50], [body], CAMERA)


def test_vertices_that_are_not_finite_are_named():
    with pytest.raises(ValueError, match="mesh 1"):
        render([sphere((0, 0, 2), 0.3, 8), facing_quad(0, 0, 1, float("nan"), 2.0)], CAMERA)


def test_four_sides_show_each_side_whole():
    """A block whose faces have their own colours: each view shows the one it should, and all of the block."""
    sides = {"front": (0, 0, -1), "side": (1, 0, 0), "back": (0, 0, 1), "top": (0, -1, 0)}
    paint = {"front": (220, 40, 40), "side": (40, 200, 40), "back": (40, 40, 220), "top": (220, 200, 40)}
    half = np.array([0.3, 0.8, 0.15])
    blocks, colours = [], []
    for name, direction in sides.items():
        n = np.array(direction, float)
        u, v = [np.eye(3)[k] for k in range(3) if n[k] == 0]
        middle = np.array([0.4, 0.2, 3.0]) + n * half
        blocks.append(quad(*(middle + s * u * half + r * v * half for s, r in ((-1, -1), (1, -1), (1, 1), (-1, 1)))))
        colours.append(np.array(paint[name], np.uint8))
    pictures = four_sides(blocks, (200, 160), colours=colours)
    assert list(pictures) == list(SIDES)
    for name, picture in pictures.items():
        assert picture.shape == (200, 160, 3)
        middle = picture[100, 80].astype(float)
        assert np.corrcoef(middle, paint[name])[0, 1] > 0.95, name
        rim = np.concatenate([picture[0], picture[:, 0], picture[:, -1]]).astype(int)
        assert np.ptp(rim, axis=-1).max() < 20, name  # the block ends before the edge: only grey room there
    assert contact_sheet(pictures, 2).shape == (400, 320, 3)


# ---- drawing on images ----------------------------------------------------------------------------------------------


def keypoints(conf: float) -> Keypoints2D:
    xy, sure = torch.zeros(1, 17, 2), torch.zeros(1, 17)
    for name, at in {"left_shoulder": (80.0, 20.0), "left_elbow": (80.0, 60.0), "right_shoulder": (40.0, 20.0)}.items():
        xy[0, COCO17.index(name)], sure[0, COCO17.index(name)] = torch.tensor(at), conf
    return Keypoints2D(xy, sure, COCO17)


def test_keypoints_have_their_side_and_their_confidence():
    black = np.zeros((100, 120, 3), np.uint8)
    full = draw_keypoints(black, keypoints(1.0), thickness=4.0)
    assert (black == 0).all()
    assert tuple(full[40, 80]) == LEFT  # on the bone from shoulder to elbow
    assert tuple(full[20, 40]) == RIGHT
    assert (full[20, 55:65] == 0).all()  # no bone joins the shoulders in this set
    half = draw_keypoints(black, keypoints(0.5), thickness=4.0)
    np.testing.assert_allclose(half[40, 80], np.array(LEFT) / 2, atol=1)
    assert (draw_keypoints(black, keypoints(0.01)) == 0).all()


def test_keypoints_off_the_image_or_not_finite_do_no_harm():
    wild = keypoints(1.0)
    wild.xy[0, COCO17.index("left_elbow")] = torch.tensor([1e9, -1e9])
    wild.xy[0, COCO17.index("right_shoulder")] = float("nan")
    out = draw_keypoints(np.zeros((100, 120, 3), np.uint8), wild, thickness=4.0)
    assert tuple(out[20, 80]) == LEFT
    assert (out[:, :60] == 0).all()


def test_boxes_and_labels():
    black = np.zeros((100, 120, 3), np.uint8)
    out = draw_boxes(black, Boxes(torch.tensor([[20.0, 30, 90, 80]]), torch.tensor([0.9])))
    assert (out[55, 20] > 100).any()
    assert (out[80, 55] > 100).any()
    assert (out[60:75, 40:80] == 0).all()
    corner = draw_label(black, "front", (500.0, 500.0))  # moved inside
    assert corner.max() > 200
