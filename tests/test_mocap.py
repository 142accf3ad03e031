"""The mocap loader on a folder made here, and inverse kinematics against poses that are known."""

import importlib.util
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import roma
import torch

from body3d.body.model import BodyModel
from body3d.datasets.mocap import (
    HELD_OUT_SUBJECTS,
    ClipInfo,
    clip_index,
    forward_kinematics,
    is_held_out,
    part_orientations,
    read_clip,
    shortest_rotation,
)
from body3d.errors import InputError


def load_script(name: str):
    path = Path(__file__).parents[1] / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


retarget = load_script("retarget_mocap")


@pytest.fixture(scope="module")
def rest() -> torch.Tensor:
    return BodyModel.open().joint_template[:22]


# ---- the loader ----------------------------------------------------------------------------------------------------
def write_folder(folder: Path, **changes) -> Path:
    """Two clips of a two-joint skeleton that turns about z; `changes` replaces arrays (None: leaves one out)."""
    angle = np.linspace(0, 1, 10)
    quat = np.zeros((10, 2, 4))
    quat[:, :, 0], quat[:, :, 3] = np.cos(angle / 2)[:, None], np.sin(angle / 2)[:, None]
    arrays = {
        "joint_names": np.array(["hip", "chest"]),
        "parents": np.array([-1, 0], np.int16),
        "offsets_m": np.array([[0, 0, 0], [0, 2.0, 0]]),
        "quat": quat.astype(np.float16),
        "root_m": np.tile([1.0, 0, 0], (10, 1)),
        "h36m_names": np.array([f"p{i}" for i in range(17)]),
        "h36m17_pelvis_m": np.tile([1.0, 0, 0], (10, 1)),
        "h36m17_rel_m": np.ones((10, 17, 3), np.float16),
        "clip_ids": np.array(["02_01", "02_02"]),
        "clip_start": np.array([0, 4]),
        "clip_len": np.array([4, 6]),
        "fps": np.float32(30),
    }
    arrays |= changes
    np.savez(folder / "cmu_dm_s002.npz", **{k: v for k, v in arrays.items() if v is not None})
    (folder / "index.csv").write_text(
        "subject,clip,description,frames_30fps,seconds,source_fps,source,licence,file\n"
        'cmudm002,02_01,"walk, slowly",4,0.1,120,somewhere,MIT,cmu_dm_s002.npz\n'
        "cmudm002,02_02,run,6,0.2,120,somewhere,MIT,cmu_dm_s002.npz\n"
    )
    return folder


def test_index_and_clip(tmp_path):
    first, second = clip_index(write_folder(tmp_path))
    assert (first.id, first.subject, first.source, first.licence) == ("02_01", "cmu002", "cmu_dm", "MIT")
    assert first.description == "walk, slowly"
    clip = read_clip(second)
    assert len(clip) == second.frames == 6
    assert clip.parents == (-1, 0)
    torch.testing.assert_close(clip.quat.norm(dim=-1), torch.ones(6, 2))
    torch.testing.assert_close(clip.h36m17, torch.tensor([2.0, 1, 1]).expand(6, 17, 3))


def test_forward_kinematics_of_a_turning_rod(tmp_path):
    clip = read_clip(clip_index(write_folder(tmp_path))[1])
    rotations, positions = forward_kinematics(clip)
    angle = torch.linspace(0, 1, 10)[4:]  # the root's; the child's in the world is twice that
    tip = torch.stack([1 - 2 * angle.sin(), 2 * angle.cos(), 0 * angle], -1)
    torch.testing.assert_close(positions[:, 1], tip, atol=2e-3, rtol=0)
    torch.testing.assert_close(rotations[:, 1, 0, 0], (2 * angle).cos(), atol=2e-3, rtol=0)


def test_a_person_has_one_name_in_every_source(shared):
    clips = clip_index(shared / "data/mocap")
    sources = {}
    for clip in clips:
        sources.setdefault(clip.subject, set()).add(clip.source)
    assert sources["cmu002"] == {"cmu_daz", "cmu_amc", "cmu_dm"}
    assert sources["cmu049"] == {"cmu_dm", "cmu_gpmat"}
    assert "cmu_amc" in sources["cmu005"]  # the pirouette is 05_11
    assert not HELD_OUT_SUBJECTS - sources.keys()
    assert len(HELD_OUT_SUBJECTS) >= 4
    held = sum(clip.frames for clip in clips if is_held_out(clip.subject))
    assert 0.2 < held / sum(clip.frames for clip in clips) < 0.4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quat": None}, "has no 'quat'"),
        ({"clip_len": np.array([4, 60])}, "claims frames 4 to 64 of 10"),
        ({"clip_ids": np.array(["02_01", "x"])}, "no clip '02_02'"),
        ({"quat": np.array([object()])}, "cannot be read"),
    ],
)
def test_broken_files_say_what_is_wrong(tmp_path, changes, message):
    info = clip_index(write_folder(tmp_path, **changes))[1]
    with pytest.raises(InputError, match=message):
        read_clip(info)


def test_wrong_folders_say_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match="no index"):
        clip_index(tmp_path)
    write_folder(tmp_path)
    (tmp_path / "cmu_dm_s002.npz").unlink()
    with pytest.raises(InputError, match="which is not in"):
        clip_index(tmp_path)
    (tmp_path / "index.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="lacks the column"):
        clip_index(tmp_path)
    whole = write_folder(tmp_path) / "cmu_dm_s002.npz"
    (tmp_path / "array.npz").mkdir()
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name, content in (
        ("text", b"not a zip"),
        ("empty", b""),
        ("cut", whole.read_bytes()[:900]),
        ("npy", (tmp_path / "array.npy").read_bytes()),
    ):
        (tmp_path / f"{name}.npz").write_bytes(content)
    for name in ("text", "empty", "cut", "npy", "array"):
        with pytest.raises(InputError, match=rf"{name}\.npz cannot be read"):
            read_clip(ClipInfo("a", "b", "c", "d", "e", 1, tmp_path / f"{name}.npz"))
    lines = (tmp_path / "index.csv").read_text().splitlines()
    for rows in (lines[1].replace(",4,", ",,"), "cmudm002,02_01", "\xff\xfe"):
        (tmp_path / "index.csv").write_bytes(f"{lines[0]}\n{rows}\n".encode("latin1"))
        with pytest.raises(InputError, match=r"index\.csv is not a whole list of clips"):
            clip_index(tmp_path)


def test_shortest_rotation_turns_one_direction_into_the_other_and_no_more():
    a, b = torch.nn.functional.normalize(torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    R = shortest_rotation(a, 3 * b)
    torch.testing.assert_close((R @ a[..., None])[..., 0], b, atol=1e-5, rtol=0)
    angle = roma.rotmat_to_rotvec(R).norm(dim=-1)
    torch.testing.assert_close(angle, (a * b).sum(-1).clamp(-1, 1).acos(), atol=1e-3, rtol=0)


def test_parts_of_all_sources_agree_with_their_points(shared):
    """Facing, uprightness and the two sides, which a wrong zero would break, for every skeleton of the folder."""
    seen = set()
    for info in clip_index(shared / "data/mocap"):
        if info.path.stem in seen:
            continue
        seen.add(info.path.stem)
        clip = read_clip(info)
        parts = part_orientations(clip)
        at = {name: clip.h36m17[:, i] for i, name in enumerate(clip.h36m_names)}
        unit = torch.nn.functional.normalize
        left = unit(at["LHip"] - at["RHip"], dim=-1)
        up = unit(at["HeadTop"] - at["Nose"], dim=-1)
        assert ((parts["pelvis"][:, :, 0] * left).sum(-1)).median() > 0.98, info
        assert ((parts["head"][:, :, 1] * up).sum(-1)).median() > math.cos(math.radians(40)), info
        for side in ("left", "right"):  # seen along the shin, the toes point to where the knee bulges
            hip, knee, ankle = (at[f"{side[0].upper()}{n}"] for n in ("Hip", "Knee", "Ankle"))
            shin = unit(ankle - knee, dim=-1)
            bulge = (knee - hip) - shin * ((knee - hip) * shin).sum(-1, keepdim=True)
            bent = bulge.norm(dim=-1) > 0.1
            ahead = (bulge * parts[f"{side}_ankle"][:, :, 2]).sum(-1)[bent] > 0
            assert bent.sum() < 5 or ahead.float().mean() > 0.9, (info, side)


# ---- inverse kinematics --------------------------------------------------------------------------------------------
def plausible_pose(n: int) -> torch.Tensor:
    """(n, 22, 3) rotation vectors within the anatomy that the solver assumes."""
    random = torch.Generator().manual_seed(1)
    pose = 0.2 * torch.randn(n, 22, 3, generator=random)
    names = retarget.NAMES
    pose[:, 0] = torch.randn(n, 3, generator=random)
    for side, sign in (("left", -1.0), ("right", 1.0)):
        pose[:, names.index(f"{side}_foot")] = 0
        pose[:, names.index(f"{side}_knee")] = torch.tensor([1.0, 0, 0]) * (
            0.2 + 1.5 * torch.rand(n, 1, generator=random)
        )
        elbow = torch.tensor([0.0, sign, 0]) * (0.2 + 1.5 * torch.rand(n, 1, generator=random))
        pose[:, names.index(f"{side}_elbow")] = elbow
        pose[:, names.index(f"{side}_shoulder"), 2] += sign * torch.rand(n, generator=random)
        pose[:, names.index(f"{side}_hip"), 0] -= torch.rand(n, generator=random)
    return pose


def observe(pose: torch.Tensor, skeleton) -> tuple:
    """What a perfect source would see of the posed body."""
    transl = torch.randn(len(pose), 3, generator=torch.Generator().manual_seed(2))
    known = retarget.Pose(roma.rotvec_to_rotmat(pose), transl.to(pose))
    G, joints, points = retarget.pose_skeleton(known, skeleton)
    return retarget.Observed(points, G[:, retarget.PART_JOINT], torch.ones(len(retarget.PARTS))), G, joints


def test_inverse_kinematics_finds_the_pose_that_made_the_points(rest):
    offsets = torch.zeros(len(retarget.POINTS), 3)
    offsets[2:4] = torch.tensor([[0, 0.05, 0.12], [0, 0.18, 0.0]])  # nose and crown
    skeleton = retarget.Skeleton(rest, offsets)
    observed, G, _ = observe(plausible_pose(64), skeleton)
    found = retarget.solve(retarget.first_guess(observed, skeleton), observed, skeleton, iterations=30)
    G_found, _, points = retarget.pose_skeleton(found, skeleton)
    distance = (points - observed.points).norm(dim=-1)
    limbs = [i for i, (_, _, spread, _) in enumerate(retarget.POINTS.values()) if spread < 0.02]
    assert distance[:, limbs].median() < 1e-3
    assert distance[:, limbs].quantile(0.95) < 6e-3  # the regularisers' pull in far poses
    # No limb is twisted: thighs, shins and arms as a whole lie as they did.
    names = retarget.NAMES
    for name in ("left_hip", "right_knee", "left_shoulder", "right_elbow", "left_ankle"):
        j = names.index(name)
        twist = roma.rotmat_to_rotvec(G[:, j].mT @ G_found[:, j]).norm(dim=-1)
        assert math.degrees(twist.median()) < 6, name


def test_inverse_kinematics_without_regularisers_is_exact(rest, monkeypatch):
    monkeypatch.setattr(retarget, "LOCAL_SPREAD", torch.full_like(retarget.LOCAL_SPREAD, 1e3))
    offsets = torch.zeros(len(retarget.POINTS), 3)
    offsets[2:4] = torch.tensor([[0, 0.05, 0.12], [0, 0.18, 0.0]])
    skeleton = retarget.Skeleton(rest, offsets)
    observed, _, _ = observe(plausible_pose(32), skeleton)
    found = retarget.solve(retarget.first_guess(observed, skeleton), observed, skeleton, iterations=40)
    G, _, points = retarget.pose_skeleton(found, skeleton)
    assert (points - observed.points).norm(dim=-1).max() < 1e-3
    turn = roma.rotmat_to_rotvec(observed.parts.mT @ G[:, retarget.PART_JOINT]).norm(dim=-1)
    assert math.degrees(turn.max()) < 1


def test_gradient_against_finite_differences(rest):
    torch.manual_seed(3)
    skeleton = retarget.Skeleton(rest.double(), 0.05 * torch.randn(len(retarget.POINTS), 3).double())
    observed, _, _ = observe(plausible_pose(1).double(), skeleton)
    pose = retarget.Pose(roma.rotvec_to_rotmat(plausible_pose(2)[1:].double()), torch.zeros(1, 3).double())
    near = roma.rotvec_to_rotmat(roma.rotmat_to_rotvec(pose.rotations) + 0.01 * torch.randn(1, 22, 3).double())

    def cost(x: torch.Tensor) -> float:
        moved = retarget.Pose(pose.rotations @ roma.rotvec_to_rotmat(x[:-3].reshape(1, 22, 3)), pose.transl + x[-3:])
        return float(retarget.normal_equations(moved, observed, skeleton, near)[0])

    gradient = retarget.normal_equations(pose, observed, skeleton, near)[2][0]
    for i in [*range(0, 66, 7), 66, 67, 68]:
        x = torch.zeros(69).double()
        x[i] = 1e-5
        # Logarithms are differentiated as if small: exact for points and diagonal terms along their own axis only.
        numeric = (cost(x) - cost(-x)) / 2e-5
        assert numeric == pytest.approx(float(gradient[i]), rel=0.3, abs=0.05 * float(gradient.abs().max())), i


def test_longer_limbs_do_not_bend_the_pose(rest):
    """A source 20 % larger with narrow shoulders, seen through its points alone: the same rotations come back."""
    bones = rest - rest[[max(p, 0) for p in retarget.PARENTS]]
    bones = bones * 1.2
    bones[[16, 17]] *= torch.tensor([0.7, 1.0, 1.0])
    offsets = torch.zeros(len(retarget.POINTS), 3)
    offsets[:4] = torch.tensor([[0, 0.02, -0.03], [0, -0.04, 0.01], [0, 0.05, 0.12], [0, 0.18, 0.0]])
    source = retarget.Skeleton(retarget._chain(bones, rest[0]), offsets)
    observed, G, _ = observe(plausible_pose(80), source)
    skeleton = retarget.fit_skeleton(observed, rest)
    for name in ("left_knee", "left_ankle", "left_elbow", "left_wrist"):
        j, p = retarget.NAMES.index(name), retarget.PARENTS[retarget.NAMES.index(name)]
        length = (skeleton.rest[j] - skeleton.rest[p]).norm()
        assert length == pytest.approx(float((source.rest[j] - source.rest[p]).norm()), abs=2e-3), name
    found = retarget.solve(retarget.first_guess(observed, skeleton), observed, skeleton)
    G_found = retarget.pose_skeleton(found, skeleton)[0]
    for name in ("left_hip", "right_knee", "left_shoulder", "right_elbow", "spine3", "pelvis"):
        j = retarget.NAMES.index(name)
        turn = roma.rotmat_to_rotvec(G[:, j].mT @ G_found[:, j]).norm(dim=-1)
        assert math.degrees(turn.median()) < 6, name


def test_neighbours_stay_within_their_clip():
    angle = torch.tensor([0.0, 1.0, 2.0, 0.5, 0.7])
    rotations = roma.rotvec_to_rotmat(angle[:, None, None] * torch.tensor([0.0, 0, 1]).expand(5, 22, 3))
    near = roma.rotmat_to_rotvec(retarget.neighbours(rotations, [0, 0, 0, 1, 1]))[:, 3, 2]
    torch.testing.assert_close(near, torch.tensor([1.0, 1.0, 1.0, 0.7, 0.5]), atol=1e-4, rtol=0)


def test_retarget_main_writes_what_the_trainer_reads(shared, tmp_path):
    """Two short clips through the whole script."""
    folder = tmp_path / "mocap"
    folder.mkdir()
    lines = (shared / "data/mocap/index.csv").read_text().splitlines()
    chosen = [line for line in lines if ",07_01," in line or ",07_03,walk" in line]
    (folder / "index.csv").write_text("\n".join([lines[0], *chosen]) + "\n")
    for name in ("cmu_daz_s007.npz", "cmu_dm_s007.npz"):
        shutil.copyfile(shared / "data/mocap" / name, folder / name)
    retarget.main(folder, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as file:
        assert file["pose"].shape[1:] == (22, 3)
        assert sorted(set(file["source"])) == ["cmu_daz", "cmu_dm"]
        assert set(file["subject"]) == {"cmu007"}
        assert file["plausible"].all()
        knees = file["pose"][:, [4, 5], 0]
        assert knees.min() > -0.3  # walking knees bend one way
        assert knees.max() > 0.5
    assert not list(tmp_path.glob("*.part*"))
