"""The embedded front end: its parts by themselves, the whole on real photos, where networks and photos are at hand."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from body3d.detect.body import COMPARED_INDEX, Pose, refine, similarity
from body3d.detect.crops import Roi
from body3d.detect.details import FACE68_FROM_MESH, hand_roi
from body3d.detect.people import ghost, redundant, share_on, tiles
from body3d.detect.tflite import anchor_grid
from body3d.errors import InputError
from body3d.images import read_image
from body3d.skeletons import COCO17, COCO_WHOLEBODY133, FACE68, MEDIAPIPE33
from body3d.types import Boxes


# ---- crops ---------------------------------------------------------------------------------------------------------
def test_roi_there_and_back():
    rng = np.random.default_rng(0)
    points = rng.uniform(-50, 50, (20, 2))
    roi = Roi(12.0, -7.0, 33.0, 0.7)
    assert np.allclose(roi.to_image(roi.from_image(points)), points)
    assert np.allclose(roi.to_image(np.array([0.5, 0.5])), (12, -7))


def test_roi_upright_puts_the_direction_up():
    start, end = np.array([10.0, 20.0]), np.array([40.0, 25.0])
    u = Roi.upright(start, end, start, 100.0).from_image(np.stack([start, end]))
    assert np.allclose(u[0], 0.5) and u[1, 0] == pytest.approx(0.5) and u[1, 1] < 0.5


def test_a_crop_samples_pixel_centres():
    """A crop as fine as the image, on whole pixels, is a piece of it; finer crops find a ramp's values in between."""
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    assert (Roi(19.5, 15.5, 16.0).cut(image, 16) == image[8:24, 12:28]).all()
    assert (Roi(19.5, 15.5, 16.0, math.pi / 2).cut(image, 16) == np.rot90(image[8:24, 12:28])).all()
    ramp = np.repeat(np.arange(0, 200, 4, dtype=np.uint8)[None, :, None], 40, 0).repeat(3, 2)
    for n, side in ((32, 16.0), (8, 32.0)):
        roi = Roi(24.5, 19.5, side)
        u = (np.arange(n) + 0.5) / n
        expected = 4 * roi.to_image(np.stack([u, u], -1))[:, 0]
        assert np.abs(roi.cut(ramp, n)[n // 2, :, 0] - expected).max() < 1.5
    assert Roi(-100.0, -100.0, 20.0).cut(image, 8).max() == 0


def test_strong_reduction_does_not_alias():
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(Roi(199.5, 199.5, 360.0).cut(stripes, 36).astype(int) - 127).max() < 12


# ---- networks' plumbing --------------------------------------------------------------------------------------------
def test_anchor_grids_have_the_networks_sizes():
    assert len(anchor_grid(224, (8, 16, 32, 32, 32), 2)) == 2254  # pose
    assert len(anchor_grid(192, (4,), 1)) == 2304  # face
    palm = anchor_grid(192, (8, 16, 16, 16), 2)
    assert len(palm) == 2016
    assert palm[0].tolist() == [[4 / 192, 4 / 192]] and palm[1].tolist() == palm[0].tolist()  # two per cell
    assert palm[2].tolist() == [[12 / 192, 4 / 192]]  # x runs first
    assert (
        palm[24 * 24 * 2].tolist() == [[8 / 192, 8 / 192]]
        and (palm[24 * 24 * 2 : 24 * 24 * 2 + 6] == palm[24 * 24 * 2]).all()
    )


def test_refine_goes_to_a_sure_peak_and_ignores_a_weak_one():
    heat = np.full((64, 64, 3), -20.0)
    heat[22, 31, 0] = heat[22, 32, 0] = 8.0  # peak at x 31.5, y 22
    heat[22, 31, 1] = -1.0  # unsure
    heat[60, 60, 2] = 8.0  # too far away
    u = np.full((3, 2), 30.5 / 64), np.full((3, 2), 24.5 / 64)
    start = np.stack([u[0][:, 0], u[1][:, 0]], -1)
    out = refine(start, heat)
    assert np.allclose(out[0] * 64, (31.5, 22), atol=0.01)
    assert (out[1:] == start[1:]).all()


def test_hand_crop_is_upright_and_holds_the_hand():
    hand = np.zeros((21, 2))
    for finger in range(5):
        for k in range(4):
            hand[1 + 4 * finger + k] = (20.0 * (k + 1) + 30, 8.0 * (finger - 2))  # fingers to the right
    u = hand_roi(hand).from_image(hand)
    assert (u > 0).all() and (u < 1).all()
    assert u[12, 1] < u[0, 1] and abs(u[12, 0] - u[0, 0]) < 0.1  # the middle finger above the wrist


def test_the_face_map_names_each_vertex_once():
    assert len(set(FACE68_FROM_MESH.tolist())) == len(FACE68) == 68 and FACE68_FROM_MESH.max() < 468


# ---- finding people ------------------------------------------------------------------------------------------------
STANDING = {
    "nose": (0, -70), "left_shoulder": (15, -50), "right_shoulder": (-15, -50),
    "left_elbow": (20, -25), "right_elbow": (-20, -25),
    "left_wrist": (22, 0), "right_wrist": (-22, 0), "left_hip": (10, 0), "right_hip": (-10, 0), "left_knee": (10, 40),
    "right_knee": (-10, 40), "left_ankle": (10, 80), "right_ankle": (-10, 80),
}  # fmt: skip


def person(x=0.0, y=0.0, scale=1.0, score=1.0, turned=False) -> Pose:
    """A standing stick figure; the joints not named above lie on the nearest named one."""
    near = {"heel": "ankle", "toe": "ankle", "index1": "wrist", "pinky1": "wrist", "thumb2": "wrist"}
    xy = np.zeros((33, 2))
    for i, name in enumerate(MEDIAPIPE33.names):
        key = next((name.split("_")[0] + "_" + to for part, to in near.items() if part in name), name)
        xy[i] = STANDING.get(key, STANDING["nose"])
    xy = xy * scale * ((-1, 1) if turned else (1, 1)) + (x, y)
    roi = Roi(float(x), float(y), 200.0 * scale)
    return Pose(xy, np.ones(33), np.zeros((33, 3)), 1.0, roi, roi, score)


def test_similarity_is_one_on_itself_and_falls_with_distance():
    a = person()
    values = [similarity(a, person(d), a.area) for d in (0, 2, 5, 20)]
    assert values[0] == pytest.approx(1) and values == sorted(values, reverse=True) and values[-1] < 0.35
    assert len(COMPARED_INDEX) == 13


def test_one_person_seen_twice_is_redundant_and_neighbours_are_not():
    a = person()
    assert redundant(person(2, 1, 1.05), a)
    assert redundant(person(0, 0, turned=True), a)  # left and right exchanged: the nose gives it away
    assert not redundant(person(30), a)  # half a shoulder's width behind the other
    assert not redundant(person(0, 100, 0.5), a)  # a child in front of the legs


def test_a_small_pose_on_a_limb_is_a_ghost_unless_sure():
    a = person()
    arm = person(20, -25, 0.2, score=0.8)
    assert share_on(arm.xy, a) > 0.6
    assert ghost(arm, a) and not ghost(a, arm)
    assert not ghost(person(20, -25, 0.2, score=0.95), a)
    assert not ghost(person(150, 0, 0.3, score=0.8), a)


def test_tiles_cover_the_image():
    for fraction in (1.3, 0.66, 0.3):
        squares = list(tiles(640, 427, (fraction,)))
        covered = np.zeros((427, 640), bool)
        for t in squares:
            x0, y0 = round(t.x - t.size / 2 + 0.5), round(t.y - t.size / 2 + 0.5)
            covered[max(y0, 0) : y0 + round(t.size), max(x0, 0) : x0 + round(t.size)] = True
        assert covered.all()


def test_boxes_that_can_hold_nobody_are_refused():
    from body3d.detect import detect_embedded

    nan, far = float("nan"), float("inf")
    for bad in ([nan, 0, 5, 5], [50, 40, 10, 10], [5000, 0, 5100, 40], [0, 0, far, 40]):
        boxes = Boxes(torch.tensor([[0.0, 0, 20, 40], bad]), torch.ones(2))
        with pytest.raises(InputError, match="box 1 is .* inside the image of 64 x 48"):
            detect_embedded(np.zeros((48, 64, 3), np.uint8), boxes=boxes)


# ---- the whole -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def detect(embedded_models):
    pytest.importorskip("ai_edge_litert")
    from body3d.detect import detect_embedded

    return detect_embedded


@pytest.fixture(scope="module")
def yoga(shared):
    """One man, near, facing us, his right arm and right knee at the left of the picture."""
    return read_image(shared / "data/photos/tfjs_pose.jpg")


@pytest.fixture(scope="module")
def found(detect, yoga):
    return detect(yoga)


def test_one_near_person(found):
    assert len(found) == 1 and found.boxes.score[0] > 0.9
    k = found.keypoints
    assert k.joints is COCO_WHOLEBODY133 and k.xy.shape == (1, 133, 2) and k.xy.dtype == torch.float32
    assert (k.conf >= 0).all() and (k.conf <= 1).all()
    xy = lambda name: k.xy[0, k.joints.index(name)]
    # Read off the photo (1000 x 667) by eye.
    for name, at in {
        "left_wrist": (698, 315), "right_wrist": (298, 305), "right_knee": (355, 492), "left_ankle": (702, 613),
        "left_shoulder": (545, 320),
    }.items():  # fmt: skip
        assert (xy(name) - torch.tensor(at)).norm() < 15, name
    assert k.conf[0, : len(COCO17)][5:].min() > 0.7
    assert k.conf[0, k.joints.indices(("left_small_toe", "right_small_toe"))].tolist() == [0, 0]
    face = k.joints.indices(FACE68.names)
    assert (
        k.conf[0, face].min() > 0.9
        and xy("chin")[1] > xy("mouth_lower")[1] > xy("nose_base")[1] > xy("nose_bridge_0")[1]
    )
    assert (k.xy[0, face] - xy("nose")).norm(dim=-1).max() < 80
    for side, way in (("left", 1), ("right", -1)):  # the hands reach on from the wrists
        if k.conf[0, k.joints.index(f"{side}_hand_root")] > 0:
            assert way * (xy(f"{side}_middle_tip") - xy(f"{side}_wrist"))[0] > 20


def test_world_landmarks_are_in_camera_axes(found):
    w = found.world
    assert w is not None and w.joints is MEDIAPIPE33 and w.frame == "root"
    xyz = lambda name: w.xyz[0, w.joints.index(name)]
    assert xyz("left_wrist")[0] > 0.4 and xyz("right_wrist")[0] < -0.4  # metres, to our right and left
    assert xyz("nose")[1] < -0.4 and xyz("left_ankle")[1] > 0.3  # y down
    assert xyz("nose")[2] < xyz("left_ear")[2]  # z away from the camera: the nose is nearer than the ear behind it
    assert (xyz("left_hip") + xyz("right_hip")).norm() < 0.1


def test_boxes_given_one_person_each_in_order(detect, yoga, found):
    boxes = Boxes(torch.cat([torch.tensor([[0.0, 0, 120, 120]]), found.boxes.xyxy]), torch.ones(2))
    d = detect(torch.from_numpy(yoga), boxes=boxes)
    assert len(d) == 2 and (d.boxes.xyxy == boxes.xyxy).all()
    assert d.boxes.score[0] < 0.5 < d.boxes.score[1]
    body = slice(5, 17)
    assert (d.keypoints.xy[1, body] - found.keypoints.xy[0, body]).norm(dim=-1).median() < 6


def test_the_mirror_image_exchanges_the_sides(detect, yoga, found):
    d = detect(np.ascontiguousarray(yoga[:, ::-1]))
    assert len(d) == 1
    mirrored = d.keypoints.xy[0, list(COCO17.flip)]
    mirrored[:, 0] = yoga.shape[1] - 1 - mirrored[:, 0]
    assert (mirrored - found.keypoints.xy[0, :17]).norm(dim=-1).max() < 10


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 700, 3), (64, 64, 3)])
def test_nobody_in_an_empty_image(detect, shape):
    d = detect(np.full(shape, 127, np.uint8))
    assert len(d) == 0 and d.keypoints.xy.shape == (0, 133, 2) and d.world.xyz.shape == (0, 33, 3)


def test_max_people_keeps_the_one_who_stands_out(detect, shared):
    image = read_image(shared / "data/samples/coco/000000196141.jpg")
    everybody, one = detect(image), detect(image, max_people=1)
    area = lambda d: (d.boxes.xyxy[:, 2:] - d.boxes.xyxy[:, :2]).prod(-1)
    assert len(everybody) >= 3 and len(one) == 1 and area(one)[0] > 0.8 * area(everybody).max()


def test_figures_on_the_coco_samples(detect, shared):
    from body3d.benchmarks.detector import FOUND, coco_figures

    folder = shared / "data/samples/coco"
    figures = coco_figures(folder, folder / "test_coco_wholebody.json")
    assert len(figures.best) == 12
    assert sum(b > FOUND for b in figures.best) >= 9
    assert np.mean(figures.boxed) >= 0.74
    assert figures.ghosts <= 1


def test_what_is_no_image_is_refused(detect):
    with pytest.raises(InputError, match="expected uint8 RGB"):
        detect(np.zeros((10, 10), np.uint8))
    with pytest.raises(InputError, match="expected uint8 RGB"):
        detect(np.zeros((10, 10, 3), np.float32))


def test_importing_the_front_end_does_not_load_the_interpreter():
    code = "import sys, body3d.detect, body3d.detect.embedded; print('ai_edge_litert' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )
