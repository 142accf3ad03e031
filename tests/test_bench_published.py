"""The benchmark of whole bodies: people, scores against closed forms, the whole mesh as a subset, files, and the table."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from body3d.benchmarks import published
from body3d.benchmarks.published import make_people, measure, run, score, summary, whole_mesh
from body3d.benchmarks.views import make_views
from body3d.body.model import BodyModel
from body3d.datasets.mocap import HELD_OUT_SUBJECTS
from body3d.fit.published import TORSO_EDGES, l2_pose
from body3d.fit.published_person import PublishedFit
from body3d.fit.smplifyx import SMPLIFYX_STAGES, Options, fit_keypoints
from body3d.fit.smplifyx_published import smplifyx_objective
from body3d.skeletons import FACE68, HAND_POINTS, JAW17, OPENPOSE137
from body3d.types import FitResult

HANDS = [n for names in HAND_POINTS.values() for n in names]


@pytest.fixture(scope="module")
def poses(tmp_path_factory):
    """A file as `scripts/retarget_mocap.py` writes it: frames of one held-out subject and of one that is not."""
    clip = np.repeat([0, 1], 40)
    pose = 0.15 * np.random.default_rng(0).standard_normal((80, 22, 3)).astype(np.float32)
    path = tmp_path_factory.mktemp("poses") / "poses.npz"
    np.savez(
        path,
        subject=np.array([sorted(HELD_OUT_SUBJECTS)[0], "nobody"]),
        clip=clip,
        plausible=np.ones(80, bool),
        pose=pose,
    )
    return path


@pytest.fixture(scope="module")
def people(poses):
    return make_people(poses, 30)


def truth(people, n, moved=0.0) -> FitResult:
    """A fit that found the person, but for a way to the right (m)."""
    body = BodyModel.open()(people.params[n])
    shifted = lambda t: t + torch.tensor([moved, 0.0, 0.0])
    body = replace(body, mesh=replace(body.mesh, verts=shifted(body.mesh.verts)),
                   joints=replace(body.joints, xyz=shifted(body.joints.xyz)))  # fmt: skip
    return FitResult(
        people.params[n], people.camera, people.keypoints[n], body, {"a": 2.0, "b": 3.0}, 0.0, 7, True, None, 0.0
    )


def test_people_are_those_of_the_views_with_hands_and_face(poses, people):
    views = make_views(poses, 30, noise=0.0)
    names = BodyModel.open().joints.names
    assert torch.equal(people.params.pose[:, :22], views.params.pose[:, :22])
    assert torch.equal(people.params.shape, views.params.shape)
    for name in ("left_index1", "right_thumb2", "jaw"):
        row = names.index(name)
        assert ((people.params.pose[:, row] - views.params.pose[:, row]).abs().amax(-1) > 1e-3).float().mean() > 0.9
    assert people.params.pose[:, names.index("jaw"), 0].min() >= 0
    assert people.params.expression.std() > 0.1


def test_a_tenth_of_the_keypoints_is_missing_and_the_others_are_two_pixels_off(people):
    model = BodyModel.open()
    conf, names = people.keypoints.conf, people.keypoints.joints.names
    counted = [n for n in names if n not in JAW17 and n in model.keypoints]
    assert (conf[:, OPENPOSE137.indices(JAW17)] == 0).all()
    assert conf[:, OPENPOSE137.indices(counted)].mean() == pytest.approx(0.9, abs=0.015)
    shared = [n for n in counted if n in (*FACE68.names, *HANDS, "left_elbow", "right_knee")]
    exact = people.camera.project(model(people.params).joints.xyz[:, model.keypoints.indices(shared)])
    off = people.keypoints.xy[:, OPENPOSE137.indices(shared)] - exact
    assert off.std() == pytest.approx(2.0, abs=0.1)
    sides = torch.stack([(conf[:, OPENPOSE137.indices(edge)] > 0).all(1) for edge in TORSO_EDGES])
    assert sides.any(0).all()
    smplifyx_objective(model, l2_pose(model), people.keypoints, people.camera)  # would refuse who cannot be placed


def test_the_truth_scores_nothing_but_the_noise(people):
    record = score(people, 3, truth(people, 3))
    mm = [v for name, v in record.items() if name.startswith(("PA", "MP", "hands", "face"))]
    assert len(mm) == 8
    assert max(mm) < 1e-2
    assert record["reprojection px"] == pytest.approx(2 * (np.pi / 2) ** 0.5, rel=0.2)  # Rayleigh's mean
    assert (record["iterations"], record["loss"]) == (7.0, 5.0)
    # A body that stands elsewhere has the same shape and pose.
    moved = score(people, 3, truth(people, 3, moved=0.2))
    assert moved["MPVPE"] == pytest.approx(record["MPVPE"], abs=1e-2)
    assert moved["hands, from the wrist"] == pytest.approx(record["hands, from the wrist"], abs=1e-2)
    assert moved["reprojection px"] > 20


def test_parts_are_scored_on_their_own(people):
    """A jaw and a hand that are wrong leave the body's figures alone."""
    names = BodyModel.open().joints.names
    pose = people.params.pose.clone()
    pose[:, [i for i, n in enumerate(names) if n.startswith("left_index")]] += 0.5
    wrong = truth(replace(people, params=replace(people.params, pose=pose)), 3)
    record = score(people, 3, wrong)
    assert record["PA-MPJPE"] < 0.01
    assert record["face, PA"] < 0.01
    assert record["hands, from the wrist"] > 2
    assert record["MPVPE"] > 0.05


def test_the_whole_mesh_gives_the_subsets_points(people):
    model, names = BodyModel.open(), ("left_wrist", "nose", *JAW17[:2], *FACE68.names[20:24], "left_index_tip")
    ours, joints = whole_mesh(model).subset(names).points_and_joints(people.params)
    points, tree = model.subset(names).points_and_joints(people.params)
    torch.testing.assert_close(ours, points, rtol=0, atol=2e-6)
    torch.testing.assert_close(joints, tree, rtol=0, atol=2e-6)


def test_a_fit_through_the_whole_mesh_is_the_same(people):
    model, one = BodyModel.open(), people.keypoints[2:3]
    options = Options(yaws=1, iterations=2, last_iterations=2, stages=SMPLIFYX_STAGES[3:], solver="lbfgs")
    ours, theirs = (fit_keypoints(body, one, people.camera, options=options)[0] for body in (whole_mesh(model), model))
    assert ours.terms.keys() == theirs.terms.keys()
    assert sum(ours.terms.values()) == pytest.approx(sum(theirs.terms.values()), rel=1e-3)


def test_what_is_there_is_not_done_again(people, tmp_path, monkeypatch):
    calls = []

    def case(people, n):
        calls.append(n)
        return PublishedFit(*vars(truth(people, n)).values(), camera_closures=4, stage_closures=(5, 6))

    monkeypatch.setitem(published.CASES, "published", case)
    first, again = (measure(people, 1, "published", tmp_path) for _ in range(2))
    assert calls == [1]
    assert first == again == json.loads((tmp_path / "published_001.json").read_text())
    assert [first[f"closures{stage}"] for stage in ("", ", stage 1", ", stage 2")] == [15, 5, 6]
    assert first["CPU seconds"] >= 0


def test_run_stops_slow_fits_when_the_time_is_up(poses, tmp_path, monkeypatch):
    for case in published.CASES:
        monkeypatch.setitem(published.CASES, case, truth)
    table = run(poses, tmp_path, 3, minutes=0.0)
    assert table["fast"]["people"] == 3
    assert "published" not in table
    assert "fast / published" not in table
    table = run(poses, tmp_path, 3, minutes=1.0)
    assert table["published"]["people"] == table["LM / whole mesh L-BFGS"]["people"] == 3
    assert table["LM / whole mesh L-BFGS"]["final loss, worst"] == 1


def test_summary_compares_the_people_that_both_have():
    record = lambda seconds, pa, loss: {"CPU seconds": seconds, "PA-MPJPE": pa, "loss": loss}
    table = summary({
        "fast": {0: record(1.0, 10.0, 1.0), 1: record(2.0, 20.0, 1.0), 2: record(1.0, 99.0, 1.0)},
        "published": {0: record(10.0, 15.0, 1.0), 1: record(60.0, 12.0, 1.0)},
        "fast + lifter": {},
        "LM": {0: record(1.0, 1.0, 11.0), 1: record(1.0, 1.0, 20.0), 3: record(1.0, 1.0, 18.0)},
        "whole mesh L-BFGS": {0: record(1.0, 1.0, 10.0), 1: record(1.0, 1.0, 20.0), 3: record(1.0, 1.0, 20.0)},
    })  # fmt: skip
    assert table["fast"]["PA-MPJPE, mean"] == pytest.approx(43)
    row = table["fast / published"]
    assert (row["people"], row["times faster, least"], row["times faster, median"]) == (2, 10, 10)
    assert row["PA-MPJPE less, mean"] == pytest.approx(-1.5)
    assert row["people with less PA-MPJPE"] == 0.5
    loss = table["LM / whole mesh L-BFGS"]
    assert [loss[f"final loss, {k}"] for k in ("best", "median", "worst")] == pytest.approx([0.9, 1.0, 1.1])
    assert "fast + lifter / published" not in table
