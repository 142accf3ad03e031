"""Both VPosers: files of all kinds, rotation vectors at every angle, derivatives; and the prior that ships.

The networks themselves are compared with the published ones in test_known_networks.py.
"""

import math
import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import roma
import torch

from body3d.body import lbs
from body3d.body.vposer import (
    BODY_JOINTS,
    VPoser,
    from_v1,
    load_vposer,
    rotvec_jacobian,
    save_vposer,
    shipped_vposer,
    vposer_v1,
    vposer_v2,
)
from body3d.datasets.mocap import HELD_OUT_SUBJECTS
from body3d.errors import InputError

ANGLES = (0.0, 1e-4, 0.03, 0.06, 1.0, 2.0, 3.0, math.pi - 1e-3, math.pi)


def small(make=vposer_v2, seed: int = 0) -> VPoser:
    """A network that is quick, in double precision, with statistics and weights of a trained one's size."""
    torch.manual_seed(seed)
    net = make(24, 6).double().eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        net.decoder_net[5].weight.mul_(3)
    return net


def that_gives(R: torch.Tensor) -> VPoser:
    """A network whose code 0 is the rotation `R` in every joint."""
    net = small()
    with torch.no_grad():
        for k in (0, 3):
            net.decoder_net[k].bias.zero_()
        net.decoder_net[5].bias.copy_((2.5 * R[:, :2]).flatten().repeat(21))
    return net


# ---- rotations -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("angle", ANGLES)
def test_rotation_vectors_are_right_at_every_angle(angle):
    axis = torch.nn.functional.normalize(torch.tensor([0.3, -0.8, 0.5]).double(), dim=0)
    R = roma.rotvec_to_rotmat(angle * axis)
    z = torch.zeros(2, 6).double()
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-6)):
        net = that_gives(R).to(dtype)
        rotvec = net.decode(z.to(dtype))
        torch.testing.assert_close(net.rotations(z.to(dtype))[1, 20].double(), R, atol=tolerance, rtol=0)
        torch.testing.assert_close(
            rotvec.double().norm(dim=-1),
            torch.full((2, 21), angle, dtype=torch.float64),
            atol=1e-3 * tolerance**0.5 + tolerance,
            rtol=0,
        )
        again = roma.rotvec_to_rotmat(rotvec.double())
        torch.testing.assert_close(again, R.expand_as(again), atol=10 * tolerance, rtol=0)


def test_rotations_are_rotations():
    R = small(vposer_v1).rotations(torch.randn(3, 5, 6).double())
    torch.testing.assert_close(R @ R.mT, torch.eye(3).double().expand_as(R))
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(3, 5, 21).double())


# ---- derivatives ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("angle", ANGLES[:-1])
def test_how_a_rotation_vector_moves(angle):
    """exp(r + J w) = exp(r) exp(w) for small w."""
    r = angle * torch.nn.functional.normalize(torch.tensor([0.6, 0.2, -0.7]).double(), dim=0)
    h = 1e-6
    turned = lambda w: roma.rotmat_to_rotvec(roma.rotvec_to_rotmat(r) @ roma.rotvec_to_rotmat(w))
    steps = [(turned(h * e) - turned(-h * e)) / (2 * h) for e in torch.eye(3).double()]
    torch.testing.assert_close(rotvec_jacobian(r), torch.stack(steps, -1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("make", [vposer_v1, vposer_v2])
def test_jacobian_by_finite_differences(make):
    net, h = small(make), 1e-6
    z = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        pose, J = net.decode(z), net.jacobian(z)
    assert J.shape == (2, 3, 63, 6)
    assert float(pose.norm(dim=-1).max()) > 2.5  # large angles are among them
    for k in range(6):
        step = torch.zeros(6).double()
        step[k] = h
        # A rotation vector may jump from one side of a half turn to the other within the step: differences of rotations.
        turn = net.rotations(z - step).mT @ net.rotations(z + step)
        moved = torch.linalg.solve(rotvec_jacobian(pose), J[..., k].unflatten(-1, (21, 3)).unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(moved, roma.rotmat_to_rotvec(turn) / (2 * h), atol=1e-6, rtol=1e-6)
        smooth = pose.norm(dim=-1, keepdim=True) < 3.1
        difference = (net.decode(z + step) - net.decode(z - step)) / (2 * h)
        torch.testing.assert_close(J[..., k].unflatten(-1, (21, 3)) * smooth, difference * smooth, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("angle", ANGLES)
def test_jacobian_and_gradient_agree_at_every_angle(angle):
    net = that_gives(roma.rotvec_to_rotmat(angle * torch.tensor([0.0, 0.6, 0.8]).double()))
    z = torch.zeros(1, 6).double()
    J = net.jacobian(z)[0]
    assert J.isfinite().all()
    if 0 < angle < math.pi:
        gradient = torch.autograd.functional.jacobian(lambda z: net.decode(z)[0].flatten(), z)[:, 0]
        torch.testing.assert_close(J, gradient, atol=1e-7, rtol=1e-5)


def test_jacobian_of_the_published_size_in_single_precision():
    net = shipped_vposer()
    z = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    J = net.jacobian(z)
    exact = vposer_v2().double().eval()
    exact.load_state_dict(net.state_dict())
    torch.testing.assert_close(J.double(), exact.jacobian(z.double()), atol=2e-5, rtol=1e-3)


# ---- coding --------------------------------------------------------------------------------------------------------
def test_in_training_codes_are_drawn_and_otherwise_not():
    net = small()
    pose = torch.randn(1, 21, 3).double().expand(4000, 21, 3)
    again, mean, _ = net(pose)
    torch.testing.assert_close(again, net.rotations(mean))
    net.train()
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.BatchNorm1d):
            module.eval()
    drawn = []
    net.decoder_net.register_forward_hook(lambda module, inputs, output: drawn.append(inputs[0]))
    _, mean, std = net(pose)
    torch.testing.assert_close(drawn[0].mean(0), mean[0], atol=0.1, rtol=0)
    torch.testing.assert_close(drawn[0].std(0), std[0], atol=0, rtol=0.06)


# ---- files ---------------------------------------------------------------------------------------------------------
def published_v1(net: VPoser) -> dict[str, torch.Tensor]:
    """The state_dict under v1's names."""
    names = {
        "encoder_net.1": "enc_bn1", "encoder_net.2": "enc_fc1", "encoder_net.4": "enc_bn2", "encoder_net.6": "enc_fc2",
        "encoder_net.8.mu": "enc_mu", "encoder_net.8.logvar": "enc_logvar",
        "decoder_net.0": "dec_fc1", "decoder_net.3": "dec_fc2", "decoder_net.5": "dec_out",
    }  # fmt: skip
    out = {}
    for key, value in net.state_dict().items():
        layer, _, kind = key.rpartition(".")
        out[f"bodyprior_{names[layer]}.{kind}"] = value
    return out


def test_v1_loads_from_its_folder(tmp_path):
    net = small(vposer_v1).float()
    state = published_v1(net)
    assert from_v1(state).keys() == net.state_dict().keys()
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "TR00_004_00_WO_accad.ini").write_text("[All]\nlatentd = 32\n")
    torch.save(published_v1(small(vposer_v1, 1).float()), tmp_path / "snapshots/TR00_E001.pt")
    torch.save(state, tmp_path / "snapshots/TR00_E096.pt", _use_new_zipfile_serialization=False)  # as in 2019
    z, pose = torch.randn(3, 6), torch.randn(3, 21, 3)
    for path in (tmp_path, tmp_path / "snapshots/TR00_E096.pt"):
        loaded = load_vposer(path)
        torch.testing.assert_close(loaded.decode(z), net.decode(z))
        torch.testing.assert_close(loaded.encode(pose), net.encode(pose))
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


class Program:
    """A pickle of it runs a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_v2_loads_from_a_lightning_checkpoint_and_runs_nothing_of_it(tmp_path, monkeypatch):
    net = small(vposer_v2).float()
    foreign = types.ModuleType("pytorch_lightning_as_it_was")
    callback = type("ModelCheckpoint", (), {"__module__": foreign.__name__})
    touch = types.FunctionType((lambda path: path.touch()).__code__, {}, "touch")
    touch.__module__, touch.__qualname__ = foreign.__name__, "touch"
    foreign.ModelCheckpoint, foreign.touch = callback, touch
    monkeypatch.setitem(sys.modules, foreign.__name__, foreign)
    kept = callback()
    kept.best = 0.03
    made = tmp_path / "made_by_a_program"
    state = {f"vp_model.{key}": value for key, value in net.state_dict().items()}
    content = {
        "epoch": 13, "callbacks": {callback: {"best": np.float64(0.03)}}, "kept": kept,
        "program": Program(touch, made), "state_dict": state | {"bm_train.v_template": torch.zeros(2, 3)},
    }  # fmt: skip
    folder = tmp_path / "V02_05/snapshots"
    folder.mkdir(parents=True)
    file = folder / "V02_05_epoch=13_val_loss=0.03.ckpt"
    torch.save(content, file)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)
    loaded = load_vposer(tmp_path / "V02_05")
    z = torch.randn(3, 6)
    torch.testing.assert_close(loaded.decode(z), net.decode(z))

    torch.save(content | {"program": Program(os.mkdir, str(made))}, file)  # not only not run but refused
    with pytest.raises(InputError, match="is not a checkpoint"):
        load_vposer(file)
    assert not made.exists()


def test_files_that_are_not_vposer(tmp_path):
    with pytest.raises(InputError, match="has no snapshots"):
        load_vposer(tmp_path)
    with pytest.raises(InputError, match="there is no such checkpoint"):
        load_vposer(tmp_path / "none.pt")
    torch.save({"w1.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="not VPoser"):
        load_vposer(tmp_path / "other.pt")
    state = small().state_dict()
    state.pop("encoder_net.7.bias")
    torch.save({"state_dict": state}, tmp_path / "part.pt")
    with pytest.raises(InputError, match=r"holds another VPoser: .*encoder_net.7.bias"):
        load_vposer(tmp_path / "part.pt")


def test_saved_in_half_precision(tmp_path):
    net = small().float()
    save_vposer(tmp_path / "v.npz", net, source=np.array("here"))
    with np.load(tmp_path / "v.npz") as file:
        assert str(file["source"]) == "here"
        assert tuple(file["joint_names"]) == BODY_JOINTS
        for key, value in net.state_dict().items():
            np.testing.assert_allclose(file[key], value.numpy(), rtol=1e-3 if value.ndim > 1 else 0, atol=1e-6)


# ---- the prior that ships ------------------------------------------------------------------------------------------
SHIPPED = Path(__file__).parents[1] / "body3d/body/pose_vae.npz"


def body_pose(**joints: tuple[float, float, float]) -> torch.Tensor:
    """Rotation vectors in degrees by joint name, the rest zero: the T-pose."""
    pose = torch.zeros(21, 3)
    for name, vector in joints.items():
        pose[BODY_JOINTS.index(name)] = torch.deg2rad(torch.tensor(vector))
    return pose


STANDING = {
    "left_shoulder": (0.0, 0.0, -70.0), "right_shoulder": (0.0, 0.0, 70.0),
    "left_elbow": (0.0, -25.0, 0.0), "right_elbow": (0.0, 25.0, 0.0),
    "left_knee": (8.0, 0.0, 0.0), "right_knee": (8.0, 0.0, 0.0),
}  # fmt: skip
SITTING = STANDING | {
    "left_hip": (-85.0, 0.0, 0.0), "right_hip": (-85.0, 0.0, 0.0),
    "left_knee": (85.0, 0.0, 0.0), "right_knee": (85.0, 0.0, 0.0),
}  # fmt: skip


def test_the_file_is_what_it_says():
    with np.load(SHIPPED) as file:
        assert tuple(file["joint_names"]) == BODY_JOINTS
        assert set(file["held_out"]) == HELD_OUT_SUBJECTS
        assert sum(a.size for key, a in file.items() if key.endswith(("weight", "bias"))) == 936_252
    assert SHIPPED.stat().st_size < 4e6


def degrees_between(pose: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    A, B = lbs.rotation_matrices(pose), lbs.rotation_matrices(other)
    return torch.rad2deg(roma.rotmat_geodesic_distance(A, B))


@pytest.mark.parametrize("joints", [STANDING, SITTING], ids=["standing", "sitting"])
def test_plain_poses_come_back(joints):
    prior, pose = shipped_vposer(), body_pose(**joints)[None]
    again = prior.decode(prior.encode(pose)[0])
    assert float(degrees_between(again, pose).mean()) < 8


def test_the_middle_of_the_codes_stands():
    """Upright, arms below the shoulders, no joint far from rest; and drawn poses do not bend knees and elbows backwards."""
    prior = shipped_vposer()
    pose = prior.decode(torch.zeros(1, 32))[0]
    assert float(pose[BODY_JOINTS.index("left_shoulder"), 2]) < -0.4
    assert float(pose[BODY_JOINTS.index("right_shoulder"), 2]) > 0.4
    assert float(pose.norm(dim=-1).max()) < 1.6
    drawn = prior.decode(torch.randn(2000, 32, generator=torch.Generator().manual_seed(0)))
    for name, axis, sign in (("left_knee", 0, 1), ("right_knee", 0, 1), ("left_elbow", 1, -1), ("right_elbow", 1, 1)):
        bend = drawn[:, BODY_JOINTS.index(name), axis] * sign
        assert float((bend < -0.35).float().mean()) < 0.05, name


@pytest.mark.parametrize("joints", [STANDING, SITTING], ids=["standing", "sitting"])
def test_knees_bent_backwards_have_longer_codes(joints):
    prior = shipped_vposer()
    bent = joints | {"left_knee": (-60.0, 0.0, 0.0), "right_knee": (-60.0, 0.0, 0.0)}
    length = lambda pose: float(prior.encode(pose[None])[0].norm())
    assert length(body_pose(**bent)) > 1.3 * length(body_pose(**joints))
