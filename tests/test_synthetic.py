"""Rendered scenes: what they say must be true of the body, the camera and the pixels, by other ways of finding out."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import roma
import torch
import trimesh

from body3d.body.model import BodyModel
from body3d.commands.data import Check, Data, Synth, data
from body3d.datasets.coco import COCO
from body3d.datasets.mocap import HELD_OUT_SUBJECTS
from body3d.datasets.synthetic import Synthetic, _girth, _points_of, _skin, _visibility, read_poses
from body3d.datasets.synthetic_draw import SAMPLES, Canvas, Person
from body3d.datasets.synthetic_look import Light, Outfit
from body3d.datasets.synthetic_mesh import coarse_faces
from body3d.datasets.synthetic_stage import viewpoint
from body3d.errors import InputError
from body3d.images import read_image, write_image
from body3d.skeletons import COCO17, H36M17, MPI_INF_3DHP28, MPPE18, MUPOTS17, MUPOTS21
from body3d.view.render import render


@pytest.fixture(scope="module")
def drawn():
    return [Synthetic(people=(1, 4), seed=3)._drawn(i) for i in range(6)]


@pytest.fixture(scope="module")
def scenes(drawn):
    return [scene for scene, _ in drawn]


def posed(scene):
    return BodyModel.open()(scene.params)


def same(a, b) -> bool:
    pairs = [(a.image, b.image), (a.kp2d.xy, b.kp2d.xy), (a.kp3d.xyz, b.kp3d.xyz), (a.params.pose, b.params.pose),
             (a.visible, b.visible), (a.boxes.xyxy, b.boxes.xyxy), (a.seen, b.seen), (a.camera.K, b.camera.K)]  # fmt: skip
    return all(torch.equal(x, y) for x, y in pairs)


def test_a_scene_depends_on_seed_and_index_alone(scenes):
    copy = pickle.loads(pickle.dumps(Synthetic(people=(1, 4), seed=3)))
    assert same(copy.scene(4), scenes[4])  # asked for first, and in a copy
    assert same(copy.scene(1), scenes[1])
    others = [Synthetic(seed=4).scene(1), Synthetic(seed=3, held_out=True).scene(1), copy.scene(2)]
    assert not any(torch.equal(other.image, scenes[1].image) for other in others)
    sample = copy[4]
    assert torch.equal(sample.image, scenes[4].image)
    assert torch.equal(sample.kp2d.xy, scenes[4].kp2d.xy)
    with pytest.raises(IndexError):
        Synthetic(count=3).scene(3)


def test_joints_project_to_their_pixels(scenes):
    for scene in scenes:
        x, y, z = scene.kp3d.xyz.unbind(-1)
        K = scene.camera.K
        xy = torch.stack([K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]], -1)
        assert (xy - scene.kp2d.xy).abs().max() < 1e-3
        inside = ((xy > -0.5) & (xy < 255.5)).all(-1)
        assert torch.equal(scene.kp2d.conf > 0, inside)
        assert not scene.visible[~inside].any()


def test_parameters_give_the_joints(scenes):
    for scene in scenes:
        found = posed(scene).joints
        for name in ("left_wrist", "right_ankle", "left_shoulder"):
            there = scene.kp3d.xyz[:, scene.kp3d.joints.index(name)]
            assert (found.xyz[:, found.joints.index(name)] - there).abs().max() < 1e-4, name


def test_boxes_hold_the_whole_surface_and_no_more(scenes):
    for scene in scenes:
        xy = scene.camera.project(posed(scene).mesh.verts)
        assert (scene.boxes.xyxy - torch.cat([xy.amin(1), xy.amax(1)], -1)).abs().max() < 0.02


def test_people_are_in_the_order_of_depth(scenes):
    several = [scene for scene in scenes if len(scene.seen) > 1]
    assert several
    for scene in several:
        depth = posed(scene).joints.xyz[:, 0, 2]
        assert (depth.diff() >= 0).all()
        assert (posed(scene).mesh.verts[..., 2] > 0.35).all()


def test_everybody_stands_on_one_floor():
    """With three people or more one plane touches all of them from below: no vertex is under it."""
    scenes = Synthetic(people=(4, 4), seed=5)
    for index in range(3):
        scene, _ = scenes._drawn(index)
        verts = posed(scene).mesh.verts.double()
        _, stage, _ = viewpoint(np.random.default_rng([5, 0, index]), (256, 256))
        height = verts @ torch.from_numpy(stage.up) + stage.height
        assert (height.amin(1).abs() < 2e-4).all()
        assert (height.amax(1) < 2.4).all()


def test_nobody_is_inside_somebody_else():
    """Seen from above, a straight line parts any two people: the hulls of their outlines do not meet."""
    from scipy.optimize import linprog

    scenes = Synthetic(people=(4, 4), seed=6)
    for index in range(3):
        scene, _ = scenes._drawn(index)
        verts = posed(scene).mesh.verts.double().numpy()[:, ::5]
        for i in range(4):
            for j in range(i):
                # Is there n, d with n.x >= d + 1 for one and n.x <= d - 1 for the other?
                A = np.concatenate([np.c_[-verts[i], np.ones(len(verts[i]))], np.c_[verts[j], -np.ones(len(verts[j]))]])
                found = linprog(np.zeros(4), A, -np.ones(len(A)), bounds=[(None, None)] * 4)
                assert found.status == 0, (index, i, j)


def test_visible_joints_are_those_that_a_ray_reaches(drawn):
    """Rays from the camera at the whole body, in place of the coarse skin's z-buffer; occluders are left out."""
    agree = total = hidden = 0
    model = BodyModel.open()
    for scene, canvas in drawn[:3]:
        verts = posed(scene).mesh.verts.double().numpy()
        points = scene.kp3d.xyz.double().numpy()
        rows, columns = np.nonzero(scene.kp2d.conf.numpy() > 0)
        at = np.rint((scene.kp2d.xy.numpy()[rows, columns] + 0.5) * SAMPLES - 0.5).astype(int)
        owner = canvas.owner[at[:, 1].clip(0, 511), at[:, 0].clip(0, 511)]
        free = owner >= 0  # a box or something in front of the lens, or nothing at all, is another matter
        rows, columns = rows[free], columns[free]
        goal = points[rows, columns]
        first, whose = first_hits(goal, verts[:, model.faces.numpy()])
        flesh = np.where(whose == rows, _girth(scene.params.shape)[rows] * _points_of(MUPOTS17).reach[columns], 0)
        expected = first > goal[:, 2] - flesh
        actual = scene.visible.numpy()[rows, columns]
        agree += (expected == actual).sum()
        total += len(goal)
        hidden += (~expected).sum()
    assert total > 60
    assert hidden > 5
    assert agree / total > 0.95


def first_hits(goals: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth of the nearest triangle (N, F, 3, 3) on the way from the camera through each goal, and whose it is."""
    corners = triangles.reshape(-1, 3, 3)
    inverse = np.linalg.inv(np.moveaxis(corners, 1, 2))  # columns are the corners: a ray's mixture of them
    depths, owners = [], []
    for goal in goals:
        mixture = inverse @ goal  # goal = sum of mixture times corners, all positive if the ray goes through
        hit = (mixture > -1e-9).all(-1)
        depth = np.where(hit, goal[2] / np.maximum(mixture.sum(-1), 1e-12), np.inf)
        depths.append(depth.min())
        owners.append(depth.argmin() // triangles.shape[1] if hit.any() else -1)
    return np.array(depths), np.array(owners)


def test_joints_show_through_their_own_flesh_only():
    """The T-pose from the front, from behind and from its left: what a person would call seen."""
    model = BodyModel.open()
    K = np.array([[300.0, 0, 127.5], [0, 300, 127.5], [0, 0, 1]])
    skin, how = _skin(), _points_of(COCO17)
    upright = torch.diag(torch.tensor([1.0, -1, -1]))  # y down, facing the camera
    seen = {}
    for view, turn in (("front", 0.0), ("behind", np.pi), ("left", -np.pi / 2)):
        R = upright @ roma.rotvec_to_rotmat(torch.tensor([0.0, turn, 0.0]))
        params = model.zero_params(1)
        params.pose[0, 0] = roma.rotmat_to_rotvec(R)
        params.transl[0, 2] = 3.0
        body = model(params)
        canvas = Canvas(
            np.zeros((256, 256, 3), np.uint8),
            K,
            Light(np.array([0, -0.6, -0.8]), np.array([0, -1.0, 0]), 0.5, np.ones(3)),
        )
        outfit = Outfit.draw(np.random.default_rng(0))
        canvas.people([Person(body.mesh.verts[0].numpy()[skin.vertices], skin.rest, skin.faces, outfit)])
        xyz = how.matrix @ body.joints.xyz.double().numpy()
        visible = _visibility(canvas, xyz, how.reach[None])[0][0]
        seen[view] = {name for name, v in zip(COCO17.names, visible, strict=True) if v}
    face = {"nose", "left_eye", "right_eye"}
    limbs = {f"{s}_{j}" for s in ("left", "right") for j in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")}
    assert limbs | face <= seen["front"]
    assert limbs <= seen["behind"]
    assert not face & seen["behind"]
    assert {"left_hip", "left_knee", "left_ear", "left_eye"} <= seen["left"]
    assert not {"right_hip", "right_shoulder", "right_wrist", "right_ear", "right_eye"} & seen["left"]


def test_silhouettes_are_those_of_the_accurate_renderer(drawn):
    for scene, canvas in drawn[:3]:
        body = posed(scene)
        exact = render([body.mesh[i] for i in range(len(scene.seen))], scene.camera)
        quick = (canvas.owner >= 0).reshape(256, SAMPLES, 256, SAMPLES).mean((1, 3)) > 0.5
        inside = (exact.alpha > 0.5) & ~covered(canvas)
        assert (quick & inside).sum() / (quick | inside).sum() > 0.95
        both = quick & inside & np.isfinite(exact.depth)
        error = np.abs(canvas_depth(canvas)[both] - exact.depth[both])
        assert np.median(error) < 0.01
        own = canvas.owner[::SAMPLES, ::SAMPLES]
        assert (own[both] == exact.person[both]).mean() > 0.97


def canvas_depth(canvas) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return 1 / canvas.inverse[::SAMPLES, ::SAMPLES]


def covered(canvas) -> np.ndarray:
    """Pixels where a box or something in front of the lens hides who may be there."""
    thing = (canvas.owner < 0) & (canvas.inverse > 0)
    return thing.reshape(256, SAMPLES, 256, SAMPLES).any((1, 3))


def test_seen_is_the_share_of_the_lone_silhouette():
    scenes = Synthetic(people=(3, 3), seed=8)
    shares, expected = [], []
    for index in range(4):
        scene, canvas = scenes._drawn(index)
        wide = 1024  # room for what lies outside of the image
        K = scene.camera.K.clone()
        K[:2, 2] += (wide - 256) / 2
        camera = type(scene.camera)(K, scene.camera.R, scene.camera.t, (wide, wide))
        for i in range(3):
            alone = render([posed(scene).mesh[i]], camera).alpha.sum()
            expected.append((canvas.owner == i).sum() / SAMPLES**2 / alone)
        shares += scene.seen.tolist()
    error = np.abs(np.array(shares) - expected)
    assert min(expected) < 0.8  # somebody is hidden or cut
    assert error.mean() < 0.05
    assert error.max() < 0.2


def test_the_coarse_skin_is_closed_and_near_the_whole_one():
    model = BodyModel.open()
    coarse = trimesh.Trimesh(model.template.numpy(), coarse_faces(), process=True)
    whole = trimesh.Trimesh(model.template.numpy(), model.faces.numpy(), process=False)
    assert len(coarse.faces) <= 2600
    assert coarse.is_watertight
    assert abs(coarse.volume / whole.volume - 1) < 0.02


def mocap_file(path: Path, value: float = 0.1) -> Path:
    """Four frames: two of a training subject (one implausible), two of a held-out one."""
    pose = np.zeros((4, 22, 3), np.float16)
    pose[:, 1, 0] = value * np.arange(1, 5)
    np.savez(path, pose=pose, plausible=np.array([True, False, True, True]), clip=np.array([0, 0, 1, 1], np.int16),
             subject=np.array(["cmu002", sorted(HELD_OUT_SUBJECTS)[0]]))  # fmt: skip
    return path


def test_held_out_poses_are_those_of_held_out_subjects(tmp_path):
    path = mocap_file(tmp_path / "poses.npz")
    first = lambda held: read_poses(path, held)[:, 1, 0].round(1).tolist()
    assert first(False) == pytest.approx([0.1], abs=1e-3)
    assert first(True) == pytest.approx([0.3, 0.4], abs=1e-3)
    hips = Synthetic(path, held_out=True, people=(2, 2)).scene(0).params.pose[:, 1:3, 0]
    assert {round(float(x), 1) for x in hips.abs().amax(1)} <= {0.3, 0.4}


@pytest.mark.parametrize("joints", [MUPOTS21, MPPE18, H36M17, COCO17], ids=lambda j: j.name)
def test_every_joint_of_the_usual_sets_is_there(joints):
    scene = Synthetic(joints=joints, size=(96, 128)).scene(0)
    assert scene.image.shape == (96, 128, 3)
    assert (scene.kp3d.conf == 1).all()
    bones = torch.stack([(scene.kp3d.xyz[:, a] - scene.kp3d.xyz[:, b]).norm(dim=-1) for a, b in joints.bones])
    assert bones.max() < 0.8


def test_joints_that_the_body_cannot_give_are_not_known():
    scene = Synthetic(joints=MPI_INF_3DHP28, size=(96, 128)).scene(0)
    unknown = scene.kp3d.conf[0] == 0
    assert {MPI_INF_3DHP28.names[i] for i in unknown.nonzero()[:, 0].tolist()} >= {"upper_spine", "top_spine"}
    assert not scene.kp2d.conf[:, unknown].any() and not scene.visible[:, unknown].any()
    usual = Synthetic(size=(96, 128)).scene(0)
    assert torch.equal(scene.image, usual.image)
    ankles = [joints.index("left_ankle") for joints in (MPI_INF_3DHP28, MUPOTS17)]
    torch.testing.assert_close(scene.kp3d.xyz[:, ankles[0]], usual.kp3d.xyz[:, ankles[1]])


def test_backgrounds_come_from_the_folder(tmp_path):
    write_image(tmp_path / "red.png", np.full((300, 200, 3), (200, 10, 10), np.uint8))
    image = Synthetic(backgrounds=tmp_path, people=(1, 1)).scene(1).image.numpy()
    corner = np.median(image[:20].reshape(-1, 3), 0)
    assert np.abs(corner - (200, 10, 10)).max() < 12


def test_bad_arguments_are_said(tmp_path):
    arguments: Any
    broken, half = tmp_path / "broken.npz", tmp_path / "half.npz"
    broken.write_text("no")
    np.savez(half, pose=np.zeros((40, 22, 3)))
    half.write_bytes(half.read_bytes()[:2000])
    for arguments, word in (
        ({"people": (3, 2)}, "3 to 2"), ({"people": (0, 2)}, "0 to 2"), ({"size": (16, 256)}, "256x16"), ({"count": 0}, "count"),
        ({"seed": -1}, "seed"), ({"poses": tmp_path / "none.npz"}, "none.npz"), ({"poses": broken}, "broken.npz"),
        ({"poses": half}, "half.npz"),
        ({"backgrounds": tmp_path / "nowhere"}, "nowhere"), ({"backgrounds": tmp_path}, "no picture"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=word):
            Synthetic(**arguments)


# ---- the command ---------------------------------------------------------------------------------------------------
def test_a_written_set_is_read_as_coco(tmp_path, capsys):
    out = tmp_path / "set"
    assert data(Data(Synth(out, count=3, people=(2, 3), seed=1))) == 0
    assert "3 images" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == ["annotations.json", "images"]
    scenes = Synthetic(people=(2, 3), seed=1, joints=COCO17)
    read = COCO.keypoints(out / "annotations.json", out / "images")
    content = json.loads((out / "annotations.json").read_text())
    K = [np.array(image["camera"]["K"]) for image in content["images"]]
    number = 0
    for index in range(3):
        scene = scenes.scene(index)
        for i in range(len(scene.seen)):
            sample, entry = read[number], content["annotations"][number]
            inside = scene.kp2d.conf[i] > 0
            assert sample.kp2d is not None and sample.box is not None
            assert torch.equal(sample.kp2d.conf > 0, inside)
            assert torch.equal(read.visible[number], scene.visible[i])
            assert (sample.kp2d.xy - scene.kp2d.xy[i])[inside].abs().max() < 0.01
            low, high = sample.box.xyxy[:2], sample.box.xyxy[2:]
            whole = scene.boxes.xyxy[i].clamp(-0.5, 255.5)
            assert (torch.cat([low, high]) - whole).abs().max() < 0.02
            seen = np.array(entry["joints3d"]) @ K[index].T
            assert np.abs(seen[:, :2] / seen[:, 2:] - scene.kp2d.xy[i].numpy()).max() < 0.1
            assert entry["depth_order"] == i
            number += 1
        saved = read_image(out / "images" / f"{index:06d}.jpg").astype(int)
        assert np.abs(saved - scene.image.numpy()).mean() < 6
    assert number == len(read) == len(content["annotations"])


def test_the_command_refuses_what_it_cannot_do(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep me")
    with pytest.raises(InputError, match="not empty"):
        data(Data(Synth(tmp_path / "full", count=1)))
    arguments: Any
    for arguments, word in (
        ({"count": 0}, "count"),
        ({"count": 1, "size": 8}, "small"),
        ({"count": 1, "people": (2, 1)}, "2 to 1"),
    ):
        with pytest.raises(InputError, match=word):
            data(Data(Synth(tmp_path / "new", **arguments)))
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="no data set 'nope'"):
        data(Data(Check("nope", tmp_path)))


def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    def fail(self, index):
        raise InputError("no more")

    monkeypatch.setattr(Synthetic, "scene", fail)
    with pytest.raises(InputError, match="no more"):
        data(Data(Synth(tmp_path / "set", count=2)))
    assert not list((tmp_path / "set").iterdir())
