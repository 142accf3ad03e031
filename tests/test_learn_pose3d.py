"""Training of direct regressors: data, movements of crops and poses, what each small network can learn, runs that go on."""

import math
import shutil
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from body3d.augment import Augmentation, Colours
from body3d.cli import main
from body3d.crop import apply, invert
from body3d.datasets.mocap import HELD_OUT_SUBJECTS
from body3d.datasets.people import People
from body3d.datasets.synthetic import Synthetic
from body3d.errors import InputError
from body3d.learn import pose3d_data
from body3d.learn.configs import read_config
from body3d.learn.crops import PhotoSet, compose
from body3d.learn.loading import load_crops
from body3d.learn.pose3d import (
    CROP_TRAINING,
    RENDERED_TRAINING,
    ROOT_TRAINING,
    RegressRun,
    RegressTask,
    begin,
    crop_views_of,
    moved,
    mpjpe_figures,
)
from body3d.learn.pose3d_data import Mixed, MPIINF3DHPPhotos, People3D, RenderedScenes
from body3d.learn.pose3d_scenes import SceneRun, SceneTask, _there, matched
from body3d.nets.efficientnet_lite import EfficientNetLite, LitePyramid
from body3d.nets.small import SmallTrunk
from body3d.nets3d import builders, methods, mppe, views
from body3d.nets3d.builders import posenet_lite
from body3d.nets3d.orpm import ORPMMaps
from body3d.nets3d.regressors import Regressor, RootFinder
from body3d.nets3d.views import Regressed, crop_views, placed
from body3d.skeletons import COCO17, H36M17, MPI_INF_3DHP28, MPPE18, MUPOTS17, MUPOTS21
from body3d.train import Plan, read_checkpoint, train, weights_in

CONFIGS = Path(__file__).parents[1] / "configs"
STILL = Augmentation(flip=0.0, scale=0.0, rotation=0.0, half_body=None)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def people() -> People3D:
    """Eight people in six rendered images."""
    scenes = Synthetic(None, people=(1, 2), size=(192, 192), joints=H36M17, seed=3)
    made = [scenes.scene(i) for i in range(8)]
    of = torch.cat([torch.full((len(s.seen),), i) for i, s in enumerate(made)])
    cat = lambda get: torch.cat([get(s) for s in made])
    n = len(of)
    everybody = People3D(
        np.stack([s.image.numpy() for s in made]), H36M17, of, cat(lambda s: s.kp2d.xy), cat(lambda s: s.kp2d.conf),
        cat(lambda s: s.visible), cat(lambda s: s.kp3d.xyz), torch.ones(n, 17), cat(lambda s: s.boxes.xyxy),
        cat(lambda s: s.camera.K.expand(len(s.seen), 3, 3)), torch.full((n, 2), 192.0), torch.ones(n, dtype=torch.bool),
    )  # fmt: skip
    return everybody[cat(lambda s: s.seen) > 0.6][:8]


def pixels(xyz: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
    uvw = xyz @ K.mT
    return uvw[..., :2] / uvw[..., 2:]


# ---- movements -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_what_a_crop_shows_after_a_movement_is_the_moved_pose(people, flip):
    """The moved pose, put where the moved photo has its root and projected, lies on the moved keypoints."""
    augment = Augmentation(flip=flip, scale=0.3, rotation=math.radians(60), rotated=1.0, half_body=None)
    rows, size = torch.arange(len(people)), (128, 128)
    view = crop_views_of(people, rows, size)
    random = torch.Generator().manual_seed(0)
    matrix, target = moved(people, rows, view, size, augment, random)
    by = compose(matrix, torch.cat([invert(view.to_crop)], 0))
    turn = by[:, :, :2] / torch.linalg.det(by[:, :, :2]).abs().sqrt()[:, None, None]
    assert (torch.linalg.det(turn) < 0).all() == (flip == 1.0) and (turn - torch.eye(2)).abs().amax() > 0.3
    # The whole photo turned about its middle, where the optical axis is: the root goes along, and so does the crop.
    root = people.xyz[:, [0]].clone()
    root[..., :2] = root[..., :2] @ turn.mT
    middle = people.K[:, :2, 2]
    back = torch.cat([turn.mT, (middle - (turn.mT @ middle[..., None])[..., 0])[..., None]], -1)
    xy = apply(compose(matrix, back), pixels(target.xyz + root, people.K))
    torch.testing.assert_close(xy, target.xy, atol=0.02, rtol=0)
    torch.testing.assert_close(target.depth, people.xyz[:, 0, 2])


def test_a_mirrored_crop_swaps_sides(people):
    rows, size = torch.arange(len(people)), (128, 128)
    view = crop_views_of(people, rows, size)
    _, plain = moved(people, rows, view, size, STILL)
    _, target = moved(people, rows, view, size, replace(STILL, flip=1.0))
    wrists = [H36M17.index(f"{s}_wrist") for s in ("left", "right")]
    torch.testing.assert_close(target.xy[:, wrists[0], 0], 127 - plain.xy[:, wrists[1], 0])
    torch.testing.assert_close(target.xyz[:, wrists[0]] * torch.tensor([-1.0, 1, 1]), plain.xyz[:, wrists[1]])


def test_joints_outside_the_crop_teach_nothing(people):
    rows = torch.arange(len(people))
    view = crop_views_of(people, rows, (128, 128))
    closer = view.to_crop * 3.0 - torch.tensor([[0, 0, 128.0], [0, 0, 128.0]])
    _, target = moved(people, rows, replace(view, to_crop=closer), (128, 128), None)
    outside = ((target.xy < -0.5) | (target.xy > 127.5)).any(-1)
    assert outside.any() and not target.weight[outside].any() and target.weight[~outside].any()


def test_what_is_known_in_space_teaches_beyond_the_photo_too(people):
    """A crop reaches beyond its photo; where a joint is there is known for those whose 3D is, and not of photos marked in 2D."""
    conf = people.conf.clone()
    conf[:, :9] = 0  # as if outside the photo
    cut_off = replace(people, conf=conf)
    flat = replace(cut_off, has_depth=torch.zeros(len(people), dtype=torch.bool))
    rows = torch.arange(len(people))
    view = crop_views_of(people, rows, (128, 128))
    inside = ((apply(view.to_crop, people.xy) - 63.5).abs() <= 64).all(-1)
    assert inside[:, :9].any()
    for those, taught in ((cut_off, inside), (flat, inside & (conf > 0))):
        _, target = moved(those, rows, view, (128, 128), STILL)
        assert torch.equal(target.weight > 0, taught)


def test_scenes_move_as_a_whole(people):
    """In an image of several people roots move too, and their order in depth stays."""
    by = torch.tensor([[0.8, -0.6, 90.0], [0.6, 0.8, -20.0]])
    some = people[people.of == people.of[0]]
    xy, _, xyz = _there(some, by, by, False, (192, 192))
    middle = some.K[0, :2, 2]
    turn = by[:, :2]
    image = pixels(xyz, some.K)  # of the photo turned about its middle
    torch.testing.assert_close((image - middle), (some.xy - middle) @ turn.T, atol=0.02, rtol=0)
    torch.testing.assert_close(xy, some.xy @ turn.T + by[:, 2])


# ---- views and places ----------------------------------------------------------------------------------------------
def test_k_of_a_view_is_the_depth_of_two_metres():
    K = torch.tensor([[[600.0, 0, 300], [0, 600, 200], [0, 0, 1]]])
    side = 600 * 2 / 5  # pixels of 2 m at 5 m
    half = side / views.MARGIN / 2
    box = torch.tensor([[300 - half, 200 - half, 300 + half, 200 + half]])
    assert crop_views(box, K, torch.tensor([[400.0, 600.0]]), (128, 128)).k.item() == pytest.approx(5.0, rel=1e-6)


@pytest.mark.parametrize("box", [[10, 10, 10, 60], [700, 10, 800, 60], [10, 10, float("nan"), 60], [50, 10, 20, 60]])
def test_boxes_of_nothing_are_refused(box):
    with pytest.raises(InputError, match="box 0 is .* 600 x 400 was expected"):
        crop_views(torch.tensor([box]).float(), torch.eye(3)[None], torch.tensor([[400.0, 600.0]]), (128, 128))


def test_a_pose_is_placed_where_it_is_seen(people):
    root = people.xyz[:, [0]]
    xy = pixels(people.xyz, people.K)
    found = placed(people.xyz - root, xy, torch.ones(len(people), 17), people.K)
    torch.testing.assert_close(found, root[:, 0], atol=2e-3, rtol=1e-3)


def test_found_people_are_told_apart_in_the_image(people):
    those = people[people.of == people.of.mode().values]
    order = torch.arange(len(those)).flip(0)
    found = Regressed(those.xyz[order], those.xyz[order, 0], those.xy[order], torch.ones(len(those), 17))
    photo = int(those.of[0])
    same = matched({photo: found}, those)
    assert same.known.all()
    torch.testing.assert_close(same.xyz, those.xyz)
    assert not matched({photo: replace(found, xy=found.xy + 500)}, those).known.any()


def test_figures_by_hand(people):
    off = people.xyz + torch.tensor([0.3, 0.0, 0.0])
    off[:, 1:, 1] += 0.017  # all but the root
    figures = mpjpe_figures(off, people, people.xyz[0] - people.xyz[0, :1])
    assert figures["MPJPE mm"] == pytest.approx(17 * 16 / 17, rel=1e-3)
    assert figures["PA-MPJPE mm"] < 17 and figures["MPJPE of the mean pose mm"] > 50


# ---- learning ------------------------------------------------------------------------------------------------------
def total(task, batch) -> torch.Tensor:
    return torch.stack(list(task.losses(batch).values())).sum()


def crop_net(name: str) -> Regressor | RootFinder:
    net = builders.build(name, H36M17, (128, 128))
    assert isinstance(net, Regressor | RootFinder)
    return net


def narrow(name: str) -> Regressor | RootFinder:
    """What the light networks do, on a trunk that learns fast from nothing."""
    trunk = SmallTrunk((16, 48, 96, 192), (1, 1, 2, 2), 48)
    if name == "posenet":
        return Regressor(name, mppe.PoseNet(17, 16, trunk, ()), methods.ByIntegral(), H36M17, (128, 128))
    net = mppe.RootNet(trunk, ())
    torch.nn.init.ones_(net.root["depth_layer"].bias)
    return RootFinder(name, net, H36M17, (128, 128), unit=0.1)


def learn(task, steps: int, lr: float) -> dict[str, float]:
    """Steps of AdamW at a falling rate; the figures afterwards."""
    optimizer = torch.optim.AdamW(task.net.parameters(), lr)
    random = torch.Generator().manual_seed(0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, 2 * (1 - step / steps))
        task.net.train()
        for batch in task.batches(step, random):
            optimizer.zero_grad()
            total(task, batch).backward()
            optimizer.step()
    task.net.eval()
    with torch.no_grad():
        return task.validate(task.net)


@pytest.mark.parametrize(
    ("name", "steps", "lr", "share"),
    [  # the share of the mean pose's error (of k's, for RootNet) that is left
        ("posenet", 40, 3e-3, 0.8),
        ("rootnet", 40, 3e-3, 0.5),
        ("dconvmp_112", 40, 5e-4, 0.8),
        pytest.param("vnect_lite", 240, 2e-3, 0.4, marks=pytest.mark.slow),
        pytest.param("volumetric_lite", 120, 5e-3, 0.6, marks=pytest.mark.slow),
        pytest.param("dconvmp_lite", 120, 1e-3, 0.6, marks=pytest.mark.slow),
    ],
)
def test_each_small_network_can_learn_eight_people_by_heart(people, name, steps, lr, share):
    torch.manual_seed(0)
    net = narrow(name) if name in ("posenet", "rootnet") else crop_net(name)
    task = RegressTask(net, [people], people, len(people), STILL, true_depth=name.startswith("posenet"))
    first, *rest = learn(task, steps, lr).values()
    assert first < share * rest[-1]


def test_orpm_learns_location_maps(people):
    torch.manual_seed(0)
    net = builders.orpm_lite(H36M17)
    photos = people.of.unique()
    task = SceneTask(net, [people], people, len(photos) // 2, STILL, steps=1)
    random = torch.Generator().manual_seed(0)
    (batch,) = task.batches(0, random)
    # Read with the true heat maps and fields, the true location maps give everybody back.
    with torch.no_grad():
        before = total(task, batch).item()
    learn(task, 15, 3e-3)
    net.train()
    with torch.no_grad():
        assert total(task, batch).item() < 0.6 * before


def test_joints_that_a_set_does_not_have_are_not_taught_to_be_absent(people):
    crown = H36M17.index("head_top")
    conf, visible = people.conf.clone(), people.visible.clone()
    conf[:, crown], visible[:, crown] = 0, False
    flat = replace(people, conf=conf, visible=visible, has_depth=torch.zeros(len(people), dtype=torch.bool))
    net = builders.orpm_lite(H36M17)
    task = SceneTask(net, [people, flat], people, 2, replace(STILL, flip=1.0), steps=1)
    (batch,) = task.batches(0, torch.Generator().manual_seed(0))
    raw = ORPMMaps(*(torch.rand_like(m).requires_grad_() for m in batch.maps))
    task.net.loss(raw, *batch[1:])["heat"].backward()
    task.net.loss(raw, *batch[1:])["fields"].backward()
    assert raw.heat.grad is not None and raw.fields.grad is not None
    unknown = [b for b, bone in enumerate(H36M17.bones) if crown in bone]
    assert raw.heat.grad[0].flatten(1).any(1).all() and raw.fields.grad[0].flatten(1).any(1).all()
    assert raw.heat.grad[1].flatten(1).any(1).logical_not().nonzero().tolist() == [[crown]]
    assert raw.fields.grad[1].flatten(1).any(1).logical_not().nonzero()[:, 0].tolist() == unknown


def test_2d_photos_teach_no_depth(people):
    """Half of a batch is of the second set; its 3D may be anything."""
    photos = replace(people, xyz=people.xyz + 7.0, has_depth=torch.zeros(len(people), dtype=torch.bool))
    other = replace(photos, xyz=photos.xyz.flip(0) * 2)
    losses = []
    for flat in (photos, other):
        for name in ("posenet_lite", "vnect_lite", "rootnet_lite", "dconvmp_112"):
            torch.manual_seed(0)
            net = crop_net(name).eval()
            task = RegressTask(net, [people, flat], people, 4, STILL, steps=1)
            (batch,) = task.batches(0, torch.Generator().manual_seed(0))
            assert batch.target.has_depth.tolist() == [True] * 2 + [False] * 2
            losses.append(task.losses(batch)["loss"].item())
    assert losses[:4] == pytest.approx(losses[4:])


# ---- sources -------------------------------------------------------------------------------------------------------
@pytest.fixture
def poses(tmp_path, monkeypatch) -> Path:
    """As much of scripts/retarget_mocap.py's file as scenes need; few scenes in a file of the cache."""
    monkeypatch.setattr(pose3d_data, "CHUNK", 3)
    rng = np.random.default_rng(0)
    pose = rng.normal(0, 0.15, (40, 22, 3)).astype(np.float32)
    subjects = np.array(["somebody", next(iter(HELD_OUT_SUBJECTS))])
    clip = np.repeat([0, 1], 20)
    np.savez(tmp_path / "retargeted.npz", pose=pose, subject=subjects, clip=clip, plausible=np.ones(40, bool))
    return tmp_path / "retargeted.npz"


TINY = RenderedScenes(count=5, held_out=2, people=(1, 1), size=(128, 128))


def test_scenes_are_rendered_once_and_a_killed_rendering_goes_on(poses, monkeypatch):
    first = TINY.training(poses)[0]
    files = sorted(poses.parent.glob("synthetic/h36m17*/*.npz"))
    assert len(files) == 2 and len(first.photos) == 5
    files[1].unlink()  # as if it had been killed before
    before = files[0].stat().st_mtime_ns
    again = TINY.training(poses)[0]
    assert files[0].stat().st_mtime_ns == before
    assert (np.asarray(again.photos) == np.asarray(first.photos)).all()
    torch.testing.assert_close(again.xyz, first.xyz)
    monkeypatch.setattr(Synthetic, "scene", lambda *_: pytest.fail("rendered again"))
    few = replace(TINY, count=2).training(poses)[0]
    assert len(few.photos) == 2 and few.of.max() < 2
    files[0].write_bytes(files[0].read_bytes()[: files[0].stat().st_size // 2])
    with pytest.raises(InputError, match=r"0000000.npz cannot be read as a file of rendered scenes .* delete it"):
        TINY.training(poses)
    with pytest.raises(InputError, match=r"scripts/retarget_mocap.py"):
        TINY.training(poses.parent / "none.npz")


def test_opening_scenes_takes_little_more_memory_than_their_images(poses, monkeypatch):
    monkeypatch.setattr(pose3d_data, "CHUNK", 1)
    made = replace(TINY, count=1).training(poses)[0]
    first = next(poses.parent.glob("synthetic/h36m17*/*.npz"))
    for i in range(1, 20):
        shutil.copy(first, first.with_name(f"{i:07d}.npz"))
    tracemalloc.start()
    many = replace(TINY, count=20).training(poses)[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    images = np.asarray(many.photos)
    assert (images == np.asarray(made.photos)).all() and peak < 1.4 * images.nbytes


def test_a_run_resumes_to_the_same_weights_and_says_what_it_is(poses, tmp_path):
    run = RegressRun(TINY, posenet_lite, Plan(2, lr=1e-3, ema=0.9), batch=2, true_depth=True)
    full = train(run.task(poses, CPU), run.plan, tmp_path / "full", cpu=True)

    class Killed(Exception):
        pass

    class Stops(RegressTask):
        def batches(self, epoch, random):
            if epoch == 1:
                raise Killed
            yield from super().batches(epoch, random)

    task = run.task(poses, CPU)
    task.__class__ = Stops
    with pytest.raises(Killed):
        train(task, run.plan, tmp_path / "part", cpu=True)
    rest = train(run.task(poses, CPU), run.plan, tmp_path / "part", resume=True, cpu=True)
    assert rest[-1]["MPJPE mm"] == pytest.approx(full[-1]["MPJPE mm"], rel=1e-5)
    about = read_checkpoint(tmp_path / "full" / "best.pt")["model"]["_extra_state"]
    assert about == {"name": "posenet_lite", "joints": "h36m17", "size": [160, 160]}
    with pytest.raises(InputError, match="is an archive, as checkpoints are, and no config"):
        read_config(tmp_path / "full" / "best.pt")
    for kept in ("best.pt", "last.pt"):
        again = posenet_lite()
        begin(again, tmp_path / "full" / kept)
        assert not any(
            p.requires_grad for name, p in again.named_parameters() if "_conv_stem" in name
        )  # begun, so frozen
        found = weights_in(read_checkpoint(tmp_path / "full" / kept))
        assert all(torch.equal(v, found[k]) for k, v in again.state_dict().items() if isinstance(v, torch.Tensor))
    with pytest.raises(InputError, match="DconvMP has no trunk"):
        begin(crop_net("dconvmp_112"), tmp_path / "full" / "best.pt")
    smaller = builders.posenet_lite(side=128)
    begin(smaller, tmp_path / "full" / "best.pt", frozen=3)
    assert smaller.size == (128, 128) and smaller.get_extra_state()["size"] == [128, 128]
    kept = read_checkpoint(tmp_path / "full" / "best.pt")["model"]
    assert all(torch.equal(v, kept[k]) for k, v in smaller.state_dict().items() if isinstance(v, torch.Tensor))
    narrower = replace(run, net=partial(posenet_lite, side=128), start=tmp_path / "full" / "best.pt", frozen=3)
    task = narrower.task(poses, CPU)
    assert next(m for m in task.net.modules() if isinstance(m, EfficientNetLite)).frozen == 3
    held = {name.split(".")[4] for name, p in smaller.named_parameters() if "_blocks" in name and not p.requires_grad}
    assert held == {"0", "1", "2"}
    for kept in ("best.pt", "last.pt"):
        other = builders.vnect_lite()
        begin(other, tmp_path / "full" / kept)
        assert isinstance(other.net.backbone, LitePyramid)
        learnt = weights_in(read_checkpoint(tmp_path / "full" / kept))
        for name, value in other.net.backbone.trunk.state_dict().items():
            assert torch.equal(value, learnt[f"net.backbone.trunk.{name}"])
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(InputError, match="a network on images \\(ResNet\\), not what was asked for"):
        begin(posenet_lite(), tmp_path / "resnet.pth")
    with pytest.raises(InputError, match="DconvMP has no trunk"):
        begin(crop_net("dconvmp_112"), tmp_path / "resnet.pth")


@pytest.mark.parametrize(
    "run", [RegressRun(TINY, posenet_lite, Plan(1, 1e-3), 2), SceneRun(TINY, builders.orpm_lite, Plan(1, 1e-3), 2)]
)
def test_nothing_is_rendered_for_a_start_that_is_not_there(poses, tmp_path, monkeypatch, run):
    monkeypatch.setattr(Synthetic, "scene", lambda *_: pytest.fail("rendered"))
    with pytest.raises(InputError, match=r"none.pt: there is no such checkpoint"):
        replace(run, start=tmp_path / "none.pt").task(poses, CPU)


def test_joints_and_shares_must_fit(people):
    with pytest.raises(InputError, match="speaks of mupots17, the data's joints are h36m17"):
        RegressTask(posenet_lite(MUPOTS17), [people], people, 4)
    with pytest.raises(InputError, match="a batch of 5 cannot be shared by 2 sets"):
        RegressTask(posenet_lite(), [people, people], people, 5)


def flat_people(folder: Path) -> People:
    from body3d.images import write_image

    for name in ("a.png", "b.png"):
        write_image(folder / name, np.full((60, 80, 3), 90, np.uint8))
    xy = torch.rand(3, 17, 2) * 40 + 10
    known = torch.ones(3, 17, dtype=torch.bool)
    boxes = torch.tensor([[5.0, 5, 55, 55], [5.0, 5, 55, 55], [5.0, 5, 5, 55]])
    return People(
        joints=COCO17, ids=("a/0", "b/0", "b/1"), files=("a.png", "b.png", "b.png"), xy=xy, labelled=known, visible=known,
        boxes=boxes, images=folder, source="here",
    )  # fmt: skip


def test_2d_sets_come_in_the_networks_joints(poses, tmp_path):
    flat = flat_people(tmp_path)
    source = Mixed(TINY, PhotoSet(str(tmp_path), flat.joints, lambda path: flat, lambda path: flat), MPPE18)
    rendered, photos = source.training(poses)
    assert rendered.joints == photos.joints == MPPE18 and len(photos) == 2  # the empty box is left out
    assert not photos.has_depth.any()
    torch.testing.assert_close(
        photos.xy[0, MPPE18.index("mid_shoulder")],
        flat.xy[0, COCO17.indices(("left_shoulder", "right_shoulder"))].mean(0),
    )
    assert photos.conf[0, MPPE18.index("head_top")] == 0
    assert photos.photos[int(photos.of[1])].shape == (60, 80, 3)
    assert photos.size.tolist() == 2 * [[60, 80]]
    # The whole photo is in the middle of an image of 160 x 160: 120 of its rows, all of its columns.
    source = replace(source, joints=MUPOTS17)
    rendered, photos = source.training(poses)
    task = SceneTask(builders.orpm_lite(MUPOTS17), [rendered, photos], rendered, 2, STILL, steps=1)
    (batch,) = task.batches(0, torch.Generator().manual_seed(0))
    shown = batch.image[1, 0] > 0.2
    assert shown.any(1).nonzero()[[0, -1], 0].tolist() == [20, 139] and shown.any(0).all()


class Missing(Dataset):
    def __getitem__(self, asked):
        raise InputError("photo.jpg: there is no such photo")


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_wrong_in_another_process_is_one_line(workers):
    crops = load_crops(Missing(), torch.zeros(1).long(), torch.zeros(1, 2, 3), 1, workers)
    with pytest.raises(InputError, match="^photo.jpg: there is no such photo$"):
        next(crops)


def test_colours_of_the_trainings():
    """3DMPPE's: each channel by its own factor of 0.8 to 1.2 and nothing else."""
    image = torch.rand(50, 3, 4, 4) * 0.8
    assert CROP_TRAINING.colours is not None and CROP_TRAINING.colours == ROOT_TRAINING.colours
    factor = CROP_TRAINING.colours(image, torch.Generator().manual_seed(0)) / image
    assert ((factor - factor[..., :1, :1]).abs() < 1e-4).all()
    factor = factor[..., 0, 0]
    assert 0.8 <= factor.min() < 0.82 and 1.18 < factor.max() <= 1.2 and (factor[:, 0] - factor[:, 1]).abs().max() > 0.2
    assert RENDERED_TRAINING.colours == Colours()


def test_human36m_as_3dmppe_lays_it_out(tmp_path):
    from test_datasets_h36m import moon_files

    for name in ("annotations", "images"):
        (tmp_path / name).mkdir()
    moon_files(tmp_path / "annotations")
    data = pose3d_data.H36MPhotos(("S9",), ("S9",), every=1, every_test=1)
    people = data.training(tmp_path)[0]
    torch.testing.assert_close(pixels(people.xyz, people.K), people.xy, atol=1e-2, rtol=1e-4)


def test_mpi_inf_3dhp_frames_belong_to_their_cameras(tmp_path, monkeypatch):
    from test_datasets_3dhp import train_files

    from body3d.images import write_image

    made = train_files(tmp_path)
    shades = {}
    for sequence in made:
        for camera in range(3):
            for t in range(3):
                shade = 20 + 10 * t + 60 * camera
                shades[sequence, camera, t] = shade
                path = tmp_path / "S1" / sequence / "imageFrames" / f"video_{camera}" / f"frame_{t + 1:06d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_image(path, np.full((64, 64, 3), shade, np.uint8))
                path.rename(path.with_suffix(".jpg"))
    read = pose3d_data.MPIINF3DHP.train
    monkeypatch.setattr(pose3d_data.MPIINF3DHP, "train", lambda *args: read(*args, cameras=(0, 1, 2)))
    people = MPIINF3DHPPhotos(("S1",), (), every=2).training(tmp_path)[0]
    assert isinstance(people.photos, pose3d_data.PhotoFiles)
    assert people.joints == MPI_INF_3DHP28 and len(people.photos) == 2 * 3 * 2
    for row in range(len(people)):
        photo = people.photos.paths[int(people.of[row])]
        sequence, camera, t = photo.parts[-4], int(photo.parts[-2][-1]), int(photo.stem[-6:]) - 1
        assert people.photos[int(people.of[row])][0, 0, 0] == shades[sequence, camera, t]
        np.testing.assert_allclose(people.xyz[row], made[sequence][camera, t] / 1000, rtol=1e-5)
    hand = people.convert(MUPOTS21)
    torch.testing.assert_close(hand.xyz[:, MUPOTS21.index("left_toe")], people.xyz[:, MPI_INF_3DHP28.index("left_toe")])


# ---- configs -------------------------------------------------------------------------------------------------------
TINY_CONFIG = """
from pathlib import Path
from body3d.learn.pose3d import RegressRun
from body3d.learn.pose3d_data import RenderedScenes
from body3d.nets3d.builders import posenet_lite
from body3d.train import Plan
scenes = RenderedScenes(count=5, held_out=2, people=(1, 1), size=(128, 128))
run = RegressRun(scenes, posenet_lite, Plan({epochs}, lr=1e-3), batch=2, steps=1, true_depth=True, start={start})
"""


def test_a_training_runs_those_first_that_it_begins_from(poses, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("first.py").write_text(TINY_CONFIG.format(epochs=2, start=None))
    Path("second.py").write_text(TINY_CONFIG.format(epochs=1, start='Path("runs/first/best.pt")'))

    def trained(*more: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            main(["train", "second.py", "--data", str(poses), *more])
        return int(stop.value.code or 0), capsys.readouterr().err

    code, said = trained()
    assert code == 0 and "second.py begins from runs/first/best.pt: first.py is trained first" in said
    stem = "net.backbone.trunk._conv_stem.weight"  # frozen in what goes on from another
    first, second = (read_checkpoint(f"runs/{name}/best.pt")["model"] for name in ("first", "second"))
    assert torch.equal(first[stem], second[stem])
    shutil.rmtree("runs/first")
    code, said = trained()  # the second is there: refused before the first is trained again
    assert code == 2 and "holds a run already" in said and not Path("runs/first").exists()
    shutil.rmtree("runs/second")
    code, said = trained("--epochs", "0")
    assert code == 2 and not Path("runs/first").exists()
    code, said = trained("--epochs", "1")  # a trial does not wait for others
    assert code == 2 and "there is no such checkpoint to begin from" in said and not Path("runs/first").exists()
    assert trained()[0] == 0
    code, said = trained()  # the second is not overwritten
    assert code == 2 and "trained first" not in said
    shutil.copytree("runs/first", "kept")
    shutil.rmtree("runs/first")
    code, said = trained("--resume")  # what goes on has begun already
    assert "trained first" not in said and not Path("runs/first").exists()
    shutil.copytree("kept", "runs/first")
    # Killed in the first: it goes on.
    last = read_checkpoint("runs/first/last.pt")
    torch.save(last | {"log": last["log"][:1]}, "runs/first/last.pt")
    shutil.rmtree("runs/second")
    code, said = trained()
    assert code == 0 and "trained first" in said and len(read_checkpoint("runs/first/last.pt")["log"]) == 2
    # Somebody's weights alone are taken as they are.
    Path("runs/first/last.pt").unlink()
    shutil.rmtree("runs/second")
    code, said = trained()
    assert code == 0 and "trained first" not in said


@pytest.mark.parametrize(
    ("name", "net", "joints"),
    [
        ("synthetic_vnect_128", "vnect_lite", H36M17),
        ("synthetic_vnect", "vnect_lite", H36M17),
        ("synthetic_orpm", "orpm_lite", H36M17),
        ("synthetic_volumetric", "volumetric_lite", H36M17),
        ("synthetic_mppe_posenet_128", "posenet_lite", H36M17),
        ("synthetic_mppe_posenet", "posenet_lite", H36M17),
        ("synthetic_mppe_rootnet", "rootnet_lite", H36M17),
        ("synthetic_lspet_mppe_posenet", "posenet_lite", H36M17),
        ("synthetic_dconvmp", "dconvmp_lite", H36M17),
        ("synthetic_dconvmp_detection", "dconvmp_lite", H36M17),
        ("synthetic_dconvmp_regression", "dconvmp_lite", H36M17),
        ("h36m_vnect", "vnect_368", H36M17),
        ("h36m_volumetric", "volumetric_256", H36M17),
        ("h36m_mppe_posenet", "posenet_256", MPPE18),
        ("h36m_mppe_rootnet", "rootnet_256", MPPE18),
        ("h36m_dconvmp", "dconvmp_112", H36M17),
        ("mpi_inf_3dhp_vnect", "vnect_368", MUPOTS21),
        ("mpi_inf_3dhp_orpm", "orpm_320", MUPOTS17),
        ("mpi_inf_3dhp_mppe_posenet", "posenet_256", MUPOTS21),
    ],
)
def test_configs_build_their_networks(name, net, joints):
    run = read_config(CONFIGS / f"{name}.py")
    assert isinstance(run, RegressRun | SceneRun) and run.plan.epochs > 0
    with torch.device("meta"):
        built = run.net(run.joints)
    assert built.name == net and built.joints == run.joints == joints
    assert (built.size == (128, 128)) == (
        name.endswith("_128") or "lspet" in name or net in ("volumetric_lite", "rootnet_lite")
    )
    if isinstance(run.start, Path):  # where the training of another config puts it
        assert (
            run.start.parts[0] == "runs"
            and (CONFIGS / f"{run.start.parts[1]}.py").is_file()
            and len(run.start.parts) == 3
        )
    if isinstance(run.data, Mixed):
        assert run.data.joints == joints and run.batch % 2 == 0
    assert (run.augment.scale > 0) != name.endswith("rootnet")
