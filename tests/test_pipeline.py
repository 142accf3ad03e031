"""Many photos in one fit, focal lengths, genders, runs that go on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from body3d.body.model import BodyModel
from body3d.camera import Camera
from body3d.commands import fit as command
from body3d.errors import InputError
from body3d.fit.photos import COMMON, focal_costs, to_common
from body3d.fit.smplifyx import SMPLIFYX_STAGES, Options
from body3d.pipeline import How, Seen, _model_files, fit_seen, load_bodies
from body3d.skeletons import COCO_WHOLEBODY133, JointSet
from body3d.types import BodyParams, Boxes, Detections, Keypoints2D

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
        "notes.txt",
    )
    for name in names:
        (tmp_path / name).write_bytes(b"")
    of = lambda kind, gender: [p.name for p in _model_files(tmp_path, kind, gender)]
    assert of("smplx", "male") == ["SMPLX_MALE.npz"]
    assert of("smplx", "female") == ["SMPLX_FEMALE.npz"]
    assert of("smpl", "female") == ["basicModel_f_lbs_10_207_0_v1.0.0.pkl"]
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
    ):
        with pytest.raises(InputError, match=message):
            command.fit(command.Fit((Path("x.jpg"),), out=tmp_path / "out", **wrong))
