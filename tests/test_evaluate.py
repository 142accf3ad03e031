import json
import math
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from body3d.errors import InputError
from body3d.evaluate import PROTOCOLS, evaluate
from body3d.evaluate.coco import evaluate_coco
from body3d.evaluate.poses import Poses, read_poses
from body3d.skeletons import COCO17, H36M17, LSP14, MPI_INF_3DHP17, MPII16, MUPOTS17, JointSet

N = 12
SETS = {
    "3dhp-14": MPI_INF_3DHP17, "3dhp-17": MPI_INF_3DHP17, "mupots": MUPOTS17, "lsp-pck": LSP14, "lsp-pcp": LSP14,
    "flic-pck": LSP14, "mpii-pckh": MPII16,
}  # fmt: skip


def truth_of(name: str, **text) -> Poses:
    """Random people, sized so that a threshold means something: 0.5 m across in 3D, 200 px in 2D."""
    rng = torch.Generator().manual_seed(0)
    joints = SETS.get(name, H36M17)
    key = PROTOCOLS[name].key
    if key == "vertices":
        points = 0.3 * torch.randn(N, 40, 3, generator=rng, dtype=torch.float64)
        return Poses(points, torch.ones(N, 40).double(), None, text, {"root": points.mean(1)})
    if key == "xy":
        points = 200 * torch.rand(N, len(joints), 2, generator=rng, dtype=torch.float64)
        return Poses(
            points,
            torch.ones(N, len(joints)).double(),
            joints,
            text,
            {"head_boxes": torch.tensor([[0.0, 0, 30, 40]] * N)},
        )
    points = 0.3 * torch.randn(N, len(joints), 3, generator=rng, dtype=torch.float64) + torch.tensor([0.0, 0, 4])
    text = {"images": tuple(f"{i // 3}" for i in range(N))} | text
    return Poses(points, torch.ones(N, len(joints)).double(), joints, text)


def moved(poses: Poses, by: torch.Tensor) -> Poses:
    extra = {k: v + by.mean((0, 1)) if k == "root" else v for k, v in poses.extra.items()}
    return replace(poses, points=poses.points + by, extra=extra)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_perfect_predictions(name):
    truth = truth_of(name)
    for figure in evaluate(name, truth, truth).figures:
        if figure.unit.startswith("mm"):
            assert figure.total == pytest.approx(0, abs=1e-4)
        elif not figure.name.startswith("AUC"):
            assert figure.total == pytest.approx(100, abs=1e-9)
    # Official AUC: a distance of 0 is not below the first of the 31 thresholds, which is 0.
    if name.startswith("3dhp"):
        assert evaluate(name, truth, truth)["AUC 0-150mm"].total == pytest.approx(100 * 30 / 31)


# What a shift of everything by 10 mm (or 10 px) along x does: by hand.
SHIFTED = {
    "h36m-1": {"MPJPE": 0}, "h36m-2": {"PA-MPJPE": 0}, "3dmppe-1": {"PA-MPJPE without scale": 0}, "3dmppe-2": {"MPJPE": 0},
    "3dhp-14": {"3DPCK@150mm": 100, "MPJPE": 0}, "3dhp-17": {"3DPCK@150mm": 100, "MPJPE": 0},
    "mupots": {"3DPCK_abs@150mm": 100, "3DPCK_rel@150mm": 100, "root AP@25cm": 100},
    "mrpe": {"MRPE": 10, "MRPE x": 10, "MRPE y": 0, "MRPE z": 0},
    "motion": {"MPJVE": 0, "acceleration error": 0},
    "mesh": {"PVE, camera space": 10, "PVE": 0, "PA-PVE": 0},
    "mpii-pckh": {"PCKh@0.5": 100},  # 10 px is within half of 0.6 * 50 px = 15 px
}  # fmt: skip


@pytest.mark.parametrize("name", SHIFTED)
def test_everything_shifted_by_ten(name):
    truth = truth_of(name)
    d = truth.points.shape[-1]
    step = torch.zeros(d, dtype=torch.float64)
    step[0] = 10.0 if PROTOCOLS[name].key == "xy" else 0.010
    result = evaluate(name, moved(truth, step.expand_as(truth.points)), truth)
    for figure, value in SHIFTED[name].items():
        assert result[figure].total == pytest.approx(value, abs=1e-3), figure


def test_all_joints_but_the_root_off_by_ten_millimetres():
    truth = truth_of("h36m-1")
    off = torch.full_like(truth.points, 0.0)
    off[:, 1:, 1] = 0.010
    assert evaluate("h36m-1", moved(truth, off), truth)["MPJPE"].total == pytest.approx(10 * 16 / 17)
    by_joint = evaluate("h36m-1", moved(truth, off), truth)["MPJPE"].by_joint
    assert by_joint["pelvis"] == pytest.approx(0, abs=1e-9)
    assert by_joint["left_wrist"] == pytest.approx(10)
    # A pelvis that alone is off moves all others from it.
    off = torch.zeros_like(truth.points)
    off[:, 0, 1] = 0.010
    assert evaluate("h36m-1", moved(truth, off), truth)["MPJPE"].total == pytest.approx(10 * 16 / 17)


def test_alignment_with_and_without_scale():
    truth = truth_of("h36m-1")
    a = math.radians(20)
    turn = torch.tensor([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]], dtype=torch.float64)
    turned = Poses(truth.points @ turn.T + 0.3, truth.conf, H36M17)
    grown = Poses(1.1 * turned.points, truth.conf, H36M17)
    assert evaluate("h36m-1", turned, truth)["MPJPE"].total > 50
    for name in ("h36m-2", "3dmppe-1"):
        assert evaluate(name, turned, truth).figures[0].total == pytest.approx(0, abs=1e-3)
    assert evaluate("h36m-2", grown, truth)["PA-MPJPE"].total == pytest.approx(0, abs=1e-3)
    # Without scale a tenth of each joint's distance from the centroid is left.
    spread = (truth.points - truth.points.mean(1, keepdim=True)).norm(dim=-1).mean().item()
    assert evaluate("3dmppe-1", grown, truth).figures[0].total == pytest.approx(100 * spread, rel=1e-3)


def test_pck_thresholds_of_3dhp():
    truth = truth_of("3dhp-14")
    off = torch.zeros_like(truth.points)
    off[:, MPI_INF_3DHP17.index("left_wrist"), 0] = 0.200
    off[:, MPI_INF_3DHP17.index("spine"), 0] = 0.200  # not among the 14
    off[:, MPI_INF_3DHP17.index("left_knee"), 0] = 0.102
    result = evaluate("3dhp-14", moved(truth, off), truth)
    assert result["3DPCK@150mm"].total == pytest.approx(100 * 13 / 14)
    assert result["MPJPE"].total == pytest.approx((200 + 200 + 102) / 17)
    # 12 joints are right at 30 thresholds, the knee at the ten above 102 mm (105 ... 150).
    assert result["AUC 0-150mm"].total == pytest.approx(100 * (12 * 30 + 10) / 31 / 14)
    assert evaluate("3dhp-17", moved(truth, off), truth)["3DPCK@150mm"].total == pytest.approx(100 * 15 / 17)


def test_over_frames_is_not_over_actions():
    truth = truth_of("h36m-1", actions=("Walking",) * 9 + ("Sitting",) * 3)
    off = torch.zeros_like(truth.points)
    off[9:, 1:, 0] = 0.017
    figure = evaluate("h36m-1", moved(truth, off), truth)["MPJPE"]
    assert figure.by_action == pytest.approx({"Walking": 0, "Sitting": 16})
    assert figure.total == pytest.approx(4)
    assert figure.over_actions == pytest.approx(8)
    for part in ("MPJPE 4.00 mm", "12 poses", "2 actions 8.00 mm", "h36m17 (17)", "root: pelvis", "alignment: none"):
        assert part in figure.describe()


def test_what_is_not_annotated_does_not_count():
    truth = truth_of("h36m-1")
    truth.conf[0, 5] = 0
    off = torch.zeros_like(truth.points)
    off[0, 5] = 9.0
    assert evaluate("h36m-1", moved(truth, off), truth)["MPJPE"].total == pytest.approx(0, abs=1e-9)


def test_mupots_by_hand():
    truth = truth_of("mupots")
    # The third person of each image is not found; another is predicted 2 m away, with the highest score.
    rows = [i for i in range(N) if i % 3 != 2]
    ghost = truth.pick([0])
    points = torch.cat([truth.points[rows], ghost.points + torch.tensor([2.0, 0, 0])])
    images = (*(truth.text["images"][i] for i in rows), "0")
    scores = torch.tensor([0.5] * len(rows) + [0.9], dtype=torch.float64)
    predicted = Poses(points, torch.ones(points.shape[:2]).double(), MUPOTS17, {"images": images}, {"scores": scores})
    result = evaluate("mupots", predicted, truth)
    # Image 0 has as many predictions as people: its third person is matched to the ghost, wrong as a whole but not relatively.
    assert result["3DPCK_abs@150mm"].total == pytest.approx(100 * 2 / 3)
    # Average precision: ranks 2 to 9 are right, 8 of 12 people are found.
    assert result["root AP@25cm"].total == pytest.approx(100 * sum((r - 1) / r for r in range(2, 10)) / 12)


def test_mupots_counts_people_and_fourteen_joints():
    """Four people in one image, one in the other; what the images' means or all 17 joints would give is another number."""
    truth = truth_of("mupots", images=("b", "a", "a", "a", "a"), actions=("two", *["one"] * 4)).pick(list(range(5)))
    at = MUPOTS17.index
    truth.conf[1, at("left_wrist")] = 0
    truth.points[1, at("left_wrist")] = 0
    off = torch.zeros_like(truth.points)
    off[:, [at("spine"), at("head")], 0] = 5.0  # not among the 14
    off[0, at("left_knee"), 0] = 0.160
    off[2, at("left_knee"), 0] = off[2, at("right_knee"), 1] = 0.160
    found = moved(truth, off).pick([0, 1, 2, 3])  # the last of "a" is not found
    found = replace(found, conf=torch.ones_like(found.conf))
    result = evaluate("mupots", found, truth)
    joints = 5 * 14 - 1
    for name in ("3DPCK_abs@150mm", "3DPCK_rel@150mm"):
        assert result[name].total == pytest.approx(100 * (joints - 14 - 3) / joints), name
        assert result[name].by_action == pytest.approx({"two": 100 * 13 / 14, "one": 100 * (55 - 14 - 2) / 55}), name
    assert result["3DPCK_rel@150mm of matched people"].total == pytest.approx(100 * (55 - 3) / 55)
    assert result["root AP@25cm"].total == pytest.approx(80)
    assert result["3DPCK_abs@150mm"].joints == "mupots17 (14 of 17)"


def unknown(poses: Poses, pose: int, joint: str) -> Poses:
    """With a joint that nobody knows: conf 0, and, as files are read, at the origin."""
    poses = replace(poses, points=poses.points.clone(), conf=poses.conf.clone())
    poses.points[pose, poses.joints.index(joint)] = 0
    poses.conf[pose, poses.joints.index(joint)] = 0
    return poses


@pytest.mark.parametrize("name", ["h36m-1", "h36m-2", "3dmppe-1", "motion", "3dhp-14", "mupots"])
def test_errors_from_an_unknown_root_are_refused(name):
    truth = truth_of(name)
    with pytest.raises(InputError, match=r"has no pelvis in 1 poses \(conf is 0\), the first is number 3"):
        evaluate(name, truth, unknown(truth, 3, "pelvis"))
    nothing = replace(truth, conf=truth.conf.clone())  # a pose of which nothing is known does not count
    nothing.conf[3] = 0
    assert evaluate(name, truth, nothing).figures[0].total == pytest.approx(
        evaluate(name, truth, truth).figures[0].total
    )
    nothing.conf[:] = 0
    with pytest.raises(InputError, match="there is nothing to compare with"):
        evaluate(name, truth, nothing)


def test_a_root_that_the_set_lacks_is_named():
    truth = truth_of("motion")
    coco = Poses(truth.points, truth.conf, COCO17)
    with pytest.raises(InputError, match="coco17 has no pelvis, from which the errors are measured"):
        evaluate("motion", coco, coco)
    own = Poses(200 * torch.rand(N, 2, 2).double(), torch.ones(N, 2).double(), JointSet("own", ("a", "b"), (-1, -1)))
    with pytest.raises(InputError, match="needs left_shoulder and right_hip of everybody"):
        evaluate("flic-pck", own, own)


def test_predictions_must_have_what_is_counted():
    truth = truth_of("h36m-1")
    with pytest.raises(
        InputError, match=r"has no left_knee, which h36m-1 counts in 1 poses \(conf is 0\), the first is number 2"
    ):
        evaluate("h36m-1", unknown(truth, 2, "left_knee"), truth)
    both = unknown(truth, 2, "left_knee")
    assert evaluate("h36m-1", both, both)["MPJPE"].total == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "joint", "share"),
    [
        ("lsp-pck", "left_wrist", 1 / 14), ("flic-pck", "left_elbow", 1 / 14), ("lsp-pcp", "left_wrist", 1 / 10),
        ("mpii-pckh", "left_wrist", 1 / 14), ("mpii-pckh", "thorax", 0), ("mupots", "left_wrist", 1 / 14), ("mupots", "spine", 0),
    ],
)  # fmt: skip
def test_a_joint_that_was_not_found_in_a_pose_is_wrong_there(name, joint, share):
    truth = truth_of(name)
    figure = evaluate(name, unknown(truth, 2, joint), truth).figures[0]
    assert figure.total == pytest.approx(100 * (1 - share / N))
    nowhere = truth
    for n in range(N):
        nowhere = unknown(nowhere, n, joint)
    if share:  # as if the prediction's set lacked it
        with pytest.raises(InputError, match=f"has no {joint}, which {name} counts"):
            evaluate(name, nowhere, truth)
    else:
        assert evaluate(name, nowhere, truth).figures[0].total == pytest.approx(100)


def test_the_roots_position_needs_the_root_alone():
    truth = truth_of("mrpe")
    assert evaluate("mrpe", unknown(truth, 0, "left_wrist"), truth)["MRPE"].total == 0
    with pytest.raises(InputError, match="has no pelvis, which mrpe counts in 1 poses"):
        evaluate("mrpe", unknown(truth, 0, "pelvis"), truth)


def test_unknown_roots_and_vertices_do_not_count():
    truth = truth_of("mrpe")
    result = evaluate("mrpe", truth, unknown(truth, 0, "pelvis"))
    assert (result["MRPE"].total, result["MRPE"].counted) == (0, N - 1)
    mesh = truth_of("mesh")
    mesh.conf[0, 3:] = mesh.conf[1] = 0
    off = torch.zeros_like(mesh.points)
    off[0, 3:] = off[1] = 9.0
    off[2] = torch.tensor([0.011, 0, 0])
    result = evaluate("mesh", replace(mesh, points=mesh.points + off), mesh)
    assert result["PVE, camera space"].total == pytest.approx(1)  # 11 mm of one of eleven
    assert result["PA-PVE"].total == pytest.approx(0, abs=1e-3)


def test_motion_by_hand():
    truth = truth_of("motion", takes=("a",) * 6 + ("b",) * 6)
    off = torch.zeros_like(truth.points)
    off[:, 1:, 0] = 0.001 * torch.arange(N)[:, None] ** 2  # accelerates by 2 mm per frame²; 1, 3, 5 ... mm per frame
    result = evaluate("motion", moved(truth, off), truth)
    assert result["acceleration error"].total == pytest.approx(2 * 16 / 17)
    assert result["MPJVE"].total == pytest.approx((1 + 3 + 5 + 7 + 9 + 13 + 15 + 17 + 19 + 21) / 10 * 16 / 17)
    truth.extra["fps"] = torch.tensor(50.0)
    assert evaluate("motion", moved(truth, off), truth)["acceleration error"].total == pytest.approx(2500 * 2 * 16 / 17)
    assert evaluate("motion", truth, truth)["MPJVE"].unit == "mm/s"
    truth.extra["fps"] = torch.tensor(0.0)
    with pytest.raises(InputError, match="fps must be above 0"):
        evaluate("motion", truth, truth)


def test_pck_and_pcp_by_hand():
    truth = truth_of("lsp-pck")
    torso = (truth.points[:, LSP14.index("left_shoulder")] - truth.points[:, LSP14.index("right_hip")]).norm(dim=-1)
    off = torch.zeros_like(truth.points)
    off[:, LSP14.index("left_wrist"), 0] = 0.21 * torso
    off[:, LSP14.index("left_knee"), 0] = 0.19 * torso
    result = evaluate("lsp-pck", moved(truth, off), truth)["PCK@0.2"]
    assert result.total == pytest.approx(100 * 13 / 14)
    assert result.by_joint["left_wrist"] == 0
    assert result.by_joint["left_knee"] == 100
    # A wrist off by 0.6 of its forearm's length: wrong strictly, right by the mean of both ends.
    forearm = (truth.points[:, LSP14.index("left_wrist")] - truth.points[:, LSP14.index("left_elbow")]).norm(dim=-1)
    off = torch.zeros_like(truth.points)
    off[:, LSP14.index("left_wrist"), 0] = 0.6 * forearm
    strict, loose = evaluate("lsp-pcp", moved(truth, off), truth).figures
    assert strict.by_joint["left forearm"] == 0
    assert loose.by_joint["left forearm"] == 100
    assert set(strict.by_joint) >= {"torso", "head", "right shin"}
    assert strict.total == pytest.approx(90)


def test_joint_sets_are_converted_by_name():
    truth = truth_of("3dhp-14")
    other = truth.convert(H36M17)
    lacking = Poses(other.points, other.conf, H36M17)
    with pytest.raises(InputError, match="has no head, which 3dhp-14 counts"):
        evaluate("3dhp-14", lacking, truth)
    order = list(range(16, -1, -1))
    names = tuple(MPI_INF_3DHP17.names[i] for i in order)
    mixed = Poses(truth.points[:, order], truth.conf[:, order], type(MPI_INF_3DHP17)("mixed", names, (-1,) * 17))
    assert evaluate("3dhp-14", mixed, truth)["MPJPE"].total == pytest.approx(0, abs=1e-4)


# ---- files ---------------------------------------------------------------------------------------------------------
def save(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.fixture
def truth_file(tmp_path):
    truth = truth_of("h36m-1")
    ids = np.array([f"frame {i}" for i in range(N)])
    return save(tmp_path / "truth.npz", xyz=truth.points.numpy(), joints="h36m17", ids=ids, actions=ids)


def test_the_script_writes_a_table_a_json_and_a_picture(tmp_path, truth_file, capsys, monkeypatch):
    with np.load(truth_file) as file:
        order = np.random.default_rng(0).permutation(N)
        xyz = file["xyz"][order]
        xyz[:, 1:, 2] += 0.010
        predictions = save(tmp_path / "p.npz", xyz=xyz, joints="h36m17", ids=file["ids"][order])
    script = Path(__file__).parents[1] / "scripts" / "evaluate.py"
    arguments = [str(predictions), str(truth_file), "--protocol", "h36m-1", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "MPJPE 9.41 mm over 12 poses; over the 12 actions 9.41 mm" in printed
    written = json.loads((tmp_path / "out" / "result.json").read_text())
    assert written["figures"][0]["over_poses"] == pytest.approx(10 * 16 / 17)
    assert written["figures"][0]["by_joint"]["head_top"] == pytest.approx(10)
    assert (tmp_path / "out" / "plot.png").read_bytes().startswith(b"\x89PNG")


BAD = [
    ({"xyz": np.zeros((N, 17, 2)), "joints": "h36m17"}, r"xyz is \(12, 17, 2\)"),
    ({"xyz": np.zeros((N, 17, 3))}, "neither `joints`"),
    ({"xyz": np.zeros((N, 17, 3)), "joints": "h36m71"}, "no joint set 'h36m71'"),
    ({"xyz": np.zeros((N, 16, 3)), "joints": "h36m17"}, "17 joints, the poses have 16"),
    (
        {"xyz": np.full((N, 17, 3), np.nan), "joints": "h36m17"},
        "NaN or infinite in 12 poses, the first at pose 0, point 0",
    ),
    ({"xyz": 400 * np.random.default_rng(0).random((N, 17, 3)), "joints": "h36m17"}, "must be in metres"),
    ({"pose": np.zeros(3)}, "has no 'xyz', only pose"),
    ({"xyz": np.zeros((0, 17, 3)), "joints": "h36m17"}, "holds no pose"),
    ({"xyz": np.zeros((N, 17, 3)), "joints": "h36m17", "conf": np.zeros((N, 3))}, "conf is"),
    *(
        (
            {"xyz": np.zeros((N, 17, 3)), "joints": "h36m17", "conf": np.full((N, 17), bad)},
            "conf must be finite numbers from 0",
        )
        for bad in (np.nan, np.inf, -1.0, "a")
    ),
    ({"xyz": np.zeros((N, 17, 3)), "joints": "h36m17", "ids": np.zeros(3)}, "ids has the shape"),
]


@pytest.mark.parametrize(("arrays", "message"), BAD)
def test_bad_files_are_one_line(tmp_path, arrays, message):
    path = save(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=message) as error:
        read_poses(path, "xyz")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_poses_that_do_not_belong_together(tmp_path, truth_file):
    truth = read_poses(truth_file, "xyz")
    with pytest.raises(InputError, match="lacks 2 of the 12 poses of .*, the first is 'frame 0'"):
        evaluate("h36m-1", truth.pick(list(range(2, N))), truth)
    short = truth_of("h36m-1").pick([0, 1])
    with pytest.raises(InputError, match="holds 2 poses, .* 12"):
        evaluate("h36m-1", short, truth_of("h36m-1"))
    with pytest.raises(InputError, match="no protocol 'mpjpe'; there are h36m-1"):
        evaluate("mpjpe", truth, truth)
    with pytest.raises(InputError, match="occur again"):
        evaluate("h36m-1", truth.pick([0] * N), truth)
    (tmp_path / "cut.npz").write_bytes(truth_file.read_bytes()[:500])
    with pytest.raises(InputError, match="cannot be read as file of poses"):
        read_poses(tmp_path / "cut.npz", "xyz")
    with pytest.raises(InputError, match="there is no such file of poses"):
        read_poses(tmp_path / "none.npz", "xyz")


# ---- COCO ----------------------------------------------------------------------------------------------------------
def coco_files(folder: Path, seed: int) -> tuple[Path, Path]:
    """Random people and detections near them, in COCO's layout."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image in range(6):
        for k in range(rng.integers(0, 4)):
            low, size = rng.uniform(0, 300, 2), rng.uniform(40, 250, 2)
            points = np.column_stack([low + rng.random((17, 2)) * size, rng.integers(0, 3, 17)])
            if k == 0:
                points[:, 2] = 2
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": 1, "keypoints": points.ravel().tolist(),
                "num_keypoints": int((points[:, 2] > 0).sum()), "bbox": [*low, *size],
                "area": float(size.prod()) * 0.6, "iscrowd": 0,
            })  # fmt: skip
            for _ in range(rng.integers(0, 3)):
                guess = points.copy()
                guess[:, :2] += rng.normal(0, rng.uniform(1, 25), (17, 2))
                guess[:, 2] = 1
                results.append({
                    "image_id": image, "category_id": 1, "keypoints": guess.ravel().tolist(), "score": float(rng.random()),
                })  # fmt: skip
    truth = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 640} for i in range(6)],
        "annotations": annotations, "categories": [{"id": 1, "name": "person", "keypoints": list(COCO17.names)}],
    }  # fmt: skip
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps(results))
    return folder / "found.json", folder / "truth.json"


@pytest.mark.parametrize("seed", range(5))
def test_coco_equals_pycocotools(tmp_path, seed, capsys):
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found, truth = coco_files(tmp_path, seed)
    official = COCO(str(truth))
    run = COCOeval(official, official.loadRes(str(found)), "keypoints")
    run.evaluate()
    run.accumulate()
    run.summarize()
    ours = [figure.total for figure in evaluate_coco(found, truth).figures]
    np.testing.assert_allclose(ours, run.stats, atol=1e-9)


def test_bad_coco_results(tmp_path):
    found, truth = coco_files(tmp_path, 0)
    for content, message in (
        ("[", "cannot be read"),
        ("{}", "not a list"),
        ('[{"image_id": 1, "score": 1}]', "entry 0 is not a result"),
        (json.dumps([{"image_id": 99, "score": 1, "keypoints": [0] * 51}]), "of image 99, which"),
    ):
        found.write_text(content)
        with pytest.raises(InputError, match=message):
            evaluate_coco(found, truth)
