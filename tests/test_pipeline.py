"""Many photos in one fit, focal lengths, genders, runs that go on."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_collision import CASES, posed

from body3d.body.definitions import MEDIAPIPE_ON_BODY
from body3d.body.model import BodyModel
from body3d.body.priors import MaxMixturePrior
from body3d.camera import Camera
from body3d.commands import fit as command
from body3d.errors import InputError
from body3d.fit.checks import cleaned
from body3d.fit.findings import _said, measured
from body3d.fit.inside import inspected
from body3d.fit.photos import COMMON, FOCALS, focal_costs, in_photo, to_common
from body3d.fit.smplifyx import SMPLIFYX_STAGES, Options
from body3d.pipeline import How, Seen, _cleaned, _model_files, _said_in, _searched, fit_seen, load_bodies
from body3d.skeletons import COCO17, COCO_WHOLEBODY133, JointSet
from body3d.types import BodyParams, Boxes, Detections, FitResult, Keypoints2D

FEET23 = JointSet("feet23", COCO_WHOLEBODY133.names[:23], COCO_WHOLEBODY133.parents[:23])
QUICK = How(options=Options(stages=SMPLIFYX_STAGES[2:4], yaws=2), lifter=False, collisions=False)


@pytest.fixture(scope="module")
def model() -> BodyModel:
    return BodyModel.open()


def standing(model: BodyModel, count: int, seed: int = 0) -> BodyParams:
    """People with a bent arm and a step, four metres away, turned to the camera."""
    rng = torch.Generator().manual_seed(seed)
    params = model.zero_params(count)
    pose = params.pose + 0.15 * torch.randn(params.pose.shape, generator=rng)
    pose[:, 0] = torch.tensor([torch.pi, 0.0, 0.0])
    pose[:, model.joints.index("left_elbow")] = torch.tensor([0.0, -1.0, 0.0])
    pose[:, 22:] = 0
    transl = torch.stack([torch.linspace(-0.8, 0.8, count), torch.zeros(count), torch.full((count,), 4.0)], -1)
    return replace(
        params, pose=pose, transl=transl, shape=0.5 * torch.randn(count, 20, generator=rng)[:, : params.shape.shape[1]]
    )


def photo(
    model: BodyModel, params: BodyParams, camera: Camera, source: str = "given: 1 px", noise: float = 0.0
) -> Seen:
    names = [n for n in FEET23.names if n in model.keypoints]
    points = model.subset(tuple(names))(params)
    xy = torch.zeros(len(points), 23, 2)
    at = FEET23.indices(names)
    xy[:, at] = camera.project(points) + noise * torch.randn(len(points), len(at), 2)
    conf = torch.zeros(len(points), 23)
    conf[:, at] = 1.0
    box = torch.cat([xy[:, at].amin(1), xy[:, at].amax(1)], -1)
    found = Detections(Keypoints2D(xy, conf, FEET23), Boxes(box, torch.ones(len(points))))
    return Seen(np.zeros((*camera.size, 3), np.uint8), None, camera, source, found, {}, 0.0)


def test_the_common_camera_sees_the_same_rays(model):
    camera = replace(Camera.pinhole(700.0, (480, 640)), distortion=torch.tensor([-0.2, 0.05, 0.001, -0.002, 0.0]))
    xyz = model.subset(("nose", "left_wrist", "right_ankle"))(standing(model, 2))
    names = JointSet("three", ("nose", "left_wrist", "right_ankle"), (-1, 0, 0))
    seen = Keypoints2D(camera.project(xyz), torch.ones(2, 3), names)
    torch.testing.assert_close(to_common(seen, camera).xy, COMMON.project(xyz), atol=0.02, rtol=0)


def test_people_of_different_photos_come_out_as_if_each_were_alone(model):
    """Same bodies, same costs; errors are in each photo's own pixels."""
    torch.manual_seed(0)
    one = photo(model, standing(model, 1, 1), Camera.pinhole(600.0, (480, 640)), noise=2.0)
    two = photo(model, standing(model, 2, 2), Camera.pinhole(2400.0, (1500, 2000)), noise=6.0)
    nobody = replace(one, detections=one.detections[:0])
    together = fit_seen([one, nobody, two], {"neutral": model}, QUICK)
    assert [len(done.people) for done in together] == [1, 0, 2]
    for done, alone in (
        (together[0], fit_seen([one], {"neutral": model}, QUICK)[0]),
        (together[2], fit_seen([two], {"neutral": model}, QUICK)[0]),
    ):
        for a, b in zip(done.people, alone.people, strict=True):
            torch.testing.assert_close(a.body.mesh.verts, b.body.mesh.verts, atol=2e-3, rtol=0)
            assert a.reprojection_px == pytest.approx(b.reprojection_px, rel=0.02)
            assert a.camera is b.camera
    person = together[2].people[1]
    points = model.subset(("nose",))(person.params)
    index = FEET23.index("nose")
    assert (two.camera.project(points)[0] - two.detections.keypoints.xy[1, index]).norm() < 40
    assert 1.0 < person.reprojection_px < 15.0


def result_of(model: BodyModel, params: BodyParams, camera: Camera, joints: JointSet = COCO17) -> FitResult:
    """A fit to the very points of a body."""
    body = model(params)
    keypoints = Keypoints2D(camera.project(body.joints.xyz[model.keypoints.indices(joints.names)]),
                            torch.ones(len(joints)), joints)  # fmt: skip
    return FitResult(
        params, camera, keypoints, body, {}, 0.0, 1, True, None, 0.0, pulled=joints.names, person_px=300.0,
        unexplained=("nose",), warnings=("a note", "keypoints that the body cannot reach: nose"),
    )  # fmt: skip


def test_what_is_said_of_a_body_that_was_moved_apart_is_of_where_it_is_then(model):
    params = posed(model, **CASES["hand in the belly"])
    params = replace(params, transl=torch.tensor([0.0, 0.0, 4.0]))
    before = result_of(model, params, Camera.pinhole(700.0, (480, 640)))
    after = inspected(before, model, apart=True)
    points = after.body.joints.xyz[model.keypoints.indices(COCO17.names)]
    off = dict(
        zip(COCO17.names, (after.camera.project(points) - before.keypoints.xy).norm(dim=-1).tolist(), strict=True)
    )
    assert after.limb_px["left arm"] == pytest.approx(
        sorted(off[f"left_{n}"] for n in ("shoulder", "elbow", "wrist"))[1]
    )
    assert max(off.values()) > 5
    hips = ("left_hip", "right_hip")  # which do not pull
    assert after.reprojection_px == pytest.approx(
        float(np.median([v for n, v in off.items() if n not in hips])), abs=1e-4
    )
    assert after.unexplained == tuple(n for n, v in off.items() if v > 3 * 0.02 * 300)
    assert after.warnings[0] == "a note" and not any("reach: nose" in w for w in after.warnings)
    untouched = inspected(before, model, apart=False)
    assert untouched.unexplained == ("nose",) and untouched.warnings[:2] == before.warnings
    # Arms whose left and right were taken for each other are compared so.
    small = measured(replace(before, person_px=0.01, exchanged="arms"), {n: {n: 1.0} for n in COCO17.names}, model)
    assert {"left_wrist", "right_elbow"} <= set(small.unexplained) and "left_knee" not in small.unexplained
    assert any("cannot reach: " in w for w in small.warnings)
    many = replace(before, unexplained=tuple("abcdefg"))
    assert _said(many)[0] == "keypoints that the body cannot reach: a, b, c, d, e and 2 more"
    assert _said(replace(many, unexplained=tuple("abcde")))[0].endswith("reach: a, b, c, d, e")


def test_a_fit_in_the_common_camera_is_said_in_the_photos_pixels(model):
    params = replace(model.zero_params(), transl=torch.tensor([0.0, 0.0, 4.0]))
    common = replace(result_of(model, params, COMMON), reprojection_px=30.0, limb_px={"left arm": 20.0})
    camera = Camera.pinhole(500.0, (480, 640))
    said = in_photo(common, camera, common.keypoints, ("of the photo", "a note"))
    assert (said.reprojection_px, said.limb_px, said.person_px) == (15.0, {"left arm": 10.0}, 150.0)
    assert said.warnings == ("of the photo", "a note", "keypoints that the body cannot reach: nose")


def test_far_outside_is_told_by_the_photo(model):
    """Of a photo 135 degrees wide the left edge is as good as the right one; what no photo shows is left out by each."""
    camera = Camera.guess((480, 640), fov=135.0)
    seen = photo(model, standing(model, 1), camera)
    xy = seen.detections.keypoints.xy.clone()
    nose, wrist = FEET23.index("nose"), FEET23.index("left_wrist")
    xy[0, nose], xy[0, wrist] = torch.tensor([5.0, 240.0]), torch.tensor([2500.0, 240.0])
    keypoints = replace(seen.detections.keypoints, xy=xy)
    seen = _cleaned(replace(seen, detections=replace(seen.detections, keypoints=keypoints)), model)
    conf = seen.detections.keypoints.conf[0]
    assert conf[nose] == 1 and conf[wrist] == 0
    again, notes = cleaned(to_common(seen.detections.keypoints, camera), COMMON, model)
    assert notes == [[]] and torch.equal(again.conf[0], conf)
    note = "keypoints far outside the image were left out: left_wrist"
    assert seen.notes == ((note,),)
    assert note in _said_in(seen, 0, result_of(model, standing(model, 1)[0], COMMON)).warnings


def test_the_search_for_a_focal_length_knows_what_the_fit_knows(model, monkeypatch):
    asked = []

    def costs(*given):
        asked.append(given)
        return torch.tensor([2.0, 1.0, *[3.0] * (len(FOCALS) - 2)])

    monkeypatch.setattr("body3d.pipeline.focal_costs", costs)
    seen = photo(model, standing(model, 2), Camera.pinhole(700.0, (480, 640)), "guess: 1.2 × the longer side")
    seen, prior = replace(seen, on_body=MEDIAPIPE_ON_BODY), MaxMixturePrior.shipped()
    found = _searched(seen, {"neutral": model}, replace(QUICK, prior=prior, height=1.8))
    assert asked[0][4:] == (QUICK.options, prior, MEDIAPIPE_ON_BODY, 1.8)
    assert found.camera.K[0, 0] == pytest.approx(FOCALS[1] * 640)


def test_a_wrong_focal_length_costs_more(model):
    """Of near people, in whom perspective shows, the true one costs least; the search takes the cheapest."""
    truth = 1.2 * 640
    params = standing(model, 3, 3)
    near = replace(params, transl=params.transl * torch.tensor([0.5, 0.5, 0.45]))
    seen = photo(model, near, Camera.pinhole(truth, (480, 640)), "guess: 1.2 × the longer side")
    focals = [f * 640 for f in (0.4, 1.2, 4.0)]
    costs = focal_costs(model, seen.detections.keypoints, seen.camera, focals)
    assert costs.argmin() == 1
    done = fit_seen([seen], {"neutral": model}, replace(QUICK, search_focal=True))[0]
    assert done.focal_source.startswith("search: ")
    assert 0.5 * truth <= done.people[0].camera.K[0, 0] <= 2 * truth
    alone = replace(seen, detections=seen.detections[:1])
    assert (
        "needs several people"
        in fit_seen([alone], {"neutral": model}, replace(QUICK, search_focal=True))[0].focal_source
    )


def test_the_better_fitting_body_of_several_is_kept(model):
    """A body that is too wide does not fit as well as the one that made the keypoints."""
    seen = photo(model, standing(model, 1, 4), Camera.pinhole(700.0, (480, 640)))
    across = torch.tensor([1.6, 1.0, 1.0])
    wide = replace(model, template=model.template * across, joint_template=model.joint_template * across)
    done = fit_seen([seen], {"male": wide, "female": model}, QUICK)[0]
    assert done.models[0] is model
    assert done.genders[0]["female"] < done.genders[0]["male"]


def test_which_files_are_of_which_gender(tmp_path):
    names = (
        "SMPLX_NEUTRAL.npz",
        "SMPLX_MALE.npz",
        "SMPLX_FEMALE.npz",
        "basicModel_f_lbs_10_207_0_v1.0.0.pkl",
        "basicModel_neutral_lbs_10_207_0_v1.0.0.pkl",
        "basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl",
        "notes.txt",
    )
    for name in names:
        (tmp_path / name).write_bytes(b"")
    of = lambda kind, gender: [p.name for p in _model_files(tmp_path, kind, gender)]
    assert of("smplx", "male") == ["SMPLX_MALE.npz"]
    assert of("smplx", "female") == ["SMPLX_FEMALE.npz"]
    assert of("smpl", "female") == ["basicModel_f_lbs_10_207_0_v1.0.0.pkl"]
    assert of("smpl", "neutral") == [
        "basicModel_neutral_lbs_10_207_0_v1.0.0.pkl",
        "basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl",
    ]
    assert of("smpl", "male") == []
    with pytest.raises(InputError, match="the open body has one shape space for everybody"):
        load_bodies("open", None, "male")
    with pytest.raises(InputError, match="--gender auto needs a folder"):
        load_bodies("smplx", tmp_path / "SMPLX_MALE.npz", "auto")
    with pytest.raises(InputError, match="holds no SMPLH file of gender neutral .* it holds SMPLX_FEMALE"):
        load_bodies("smplh", tmp_path)


def test_a_run_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    """Images whose report is there are left out; a folder stands for its photos; one bad photo does not stop the others."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("b.jpg", "a.png", "c.txt"):
        (photos / name).write_bytes(b"")
    done: list[str] = []

    def some(args, models, how, net, todo, first, of):
        for image, folder in todo:
            done.append(image.name)
            folder.mkdir(parents=True)
            (folder / "report.json").write_text(json.dumps({"image": str(image.resolve())}))
        return [0] * len(todo)

    monkeypatch.setattr(command, "_fit_some", some)
    args = command.Fit((photos,), out=tmp_path / "out", resume=True, at_once=1)
    assert command.fit(args) == 0
    assert done == ["a.png", "b.jpg"]
    (tmp_path / "out" / "a" / "report.json").write_text("{")
    shutil.rmtree(tmp_path / "out" / "a")
    assert command.fit(args) == 0
    assert done == ["a.png", "b.jpg", "a.png"]
    assert "1 of 2 images are done already" in capsys.readouterr().out
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="is a folder without photos"):
        command.fit(command.Fit((empty,), out=tmp_path / "out"))
    for wrong, message in (
        ({"at_once": 0}, "--at-once"),
        ({"height": 175.0}, "centimetres"),
        ({"max_people": 0}, "--max-people"),
        ({"method": "smplify", "height": 1.7}, "--height is for --method body3d; smplify is as published"),
        ({"method": "smplifyx", "solver": "lbfgs"}, "--solver is for --method body3d"),
    ):
        with pytest.raises(InputError, match=message):
            command.fit(command.Fit((Path("x.jpg"),), out=tmp_path / "out", **wrong))


def test_an_openpose_file_is_of_one_photo(tmp_path):
    """It does not say of which; a COCO file does."""
    openpose, coco = tmp_path / "a.json", tmp_path / "coco.json"
    openpose.write_text(json.dumps({"people": [{"pose_keypoints_2d": [10.0, 20.0, 1.0] * 25}]}))
    coco.write_text(json.dumps([{"image_id": 1, "keypoints": [10.0, 20.0, 1.0] * 17}]))
    photos = (Path("a.jpg"), Path("b.jpg"))
    with pytest.raises(InputError, match="one OpenPose file belongs to one image"):
        command.fit(command.Fit(photos, out=tmp_path / "out", keypoints=openpose))
    for images, keypoints in ((photos[:1], openpose), (photos, coco), (photos, tmp_path / "nowhere.json")):
        command._check(command.Fit(images, out=tmp_path / "out", keypoints=keypoints), images)


def test_the_report_holds_the_command_as_it_was_typed(tmp_path, monkeypatch):
    said = []

    def write(done, folder, command):
        said.append(command)
        return {"seconds": {"detect": 0.0, "fit": 0.0, "write": 0.0}, "focal_source": "given"}

    monkeypatch.setattr("body3d.results.write_results", write)
    for program in ("body3d fit", "fit_smplx.py"):
        name, *rest = program.split()
        monkeypatch.setattr(sys, "argv", [f"/somewhere/{name}", *rest, "a.jpg"])
        command._write(command.Fit(()), SimpleNamespace(people=[]), Path("a.jpg"), tmp_path)
    assert said == ["body3d fit a.jpg", "fit_smplx.py a.jpg"]
