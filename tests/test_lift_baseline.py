import math

import numpy as np
import pytest
import torch
from torch import nn

from body3d.errors import InputError
from body3d.lift.baseline import SimpleBaseline3D, from_tensorflow, load_simple_baseline
from body3d.lift.dropout import ReLUDropout
from body3d.lift.gcn import SemGCN
from body3d.skeletons import H36M16


def fit(net, x, y, steps, lr=1e-3):
    optimizer = torch.optim.Adam(net.parameters(), lr)
    net.train()
    for _ in range(steps):
        rows = torch.randperm(len(x))[:256]
        optimizer.zero_grad()
        loss = (net(x[rows]) - y[rows]).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("joints", [16, 17])
def test_the_size_is_the_published_one(joints):
    net = SimpleBaseline3D(2 * joints, 3 * (joints if joints == 16 else 16))
    assert sum(p.numel() for p in net.parameters()) == {16: 4_291_632, 17: 4_293_680}[joints]


def test_it_learns_a_batch_and_nothing_from_shuffled_pairs():
    torch.manual_seed(0)
    # Poses that follow from eight hidden numbers, so that what is learnt holds for poses not seen.
    mixing, projection = torch.randn(8, 48) / 8**0.5, torch.randn(48, 32) / 48**0.5
    poses = torch.randn(2560, 8) @ mixing
    x = poses @ projection
    nets = {}
    for name, order in (("true", torch.arange(2048)), ("shuffled", torch.randperm(2048))):
        nets[name] = SimpleBaseline3D(32, 48, width=128, dropout=0.1)
        fit(nets[name], x[:2048], poses[order], 300)
        nets[name].eval()
    mean_pose = poses[2048:].square().mean().sqrt()
    error = {name: (net(x[2048:]) - poses[2048:]).square().mean().sqrt() / mean_pose for name, net in nets.items()}
    assert error["true"] < 0.25
    assert error["shuffled"] > 0.9
    memorising = SimpleBaseline3D(32, 48, width=128, dropout=0.0)
    assert fit(memorising, x[:64], poses[:64], 300) < 1e-3 * poses[:64].square().mean()


def test_max_norm_scales_whole_matrices():
    """The same as a plain network whose matrices were clipped once, and it bounds what comes out."""
    torch.manual_seed(0)
    clipped, plain = SimpleBaseline3D(32, 48, 64, max_norm=True).eval(), SimpleBaseline3D(32, 48, 64).eval()
    with torch.no_grad():
        clipped.w2.weight.mul_(0.01)  # smaller than 1: stays
        plain.load_state_dict(clipped.state_dict())
        for layer in plain.modules():
            if isinstance(layer, nn.Linear) and layer.weight.norm() > 1:
                layer.weight.div_(layer.weight.norm())
        x = torch.randn(5, 32)
        torch.testing.assert_close(clipped(x), plain(x))
    assert plain.w2.weight.norm() < 1


# ---- checkpoints ---------------------------------------------------------------------------------------------------
def test_a_checkpoint_as_the_port_writes_it(tmp_path):
    net = SimpleBaseline3D(34, 51, width=32, blocks=3).eval()
    content = {
        "epoch": 3, "lr": 1e-3, "step": 77, "err": np.float64(45.5),
        "state_dict": {f"module.{key}": value for key, value in net.state_dict().items()},
        "optimizer": {"state": {}, "random": np.random.RandomState(3)},
    }  # fmt: skip
    torch.save(content, tmp_path / "ckpt_best.pth.tar")
    read, x = load_simple_baseline(tmp_path / "ckpt_best.pth.tar"), torch.randn(2, 34)
    assert not read.training and len(read.linear_stages) == 3
    torch.testing.assert_close(read(x), net(x))


def test_tensorflow_names(tmp_path):
    net = SimpleBaseline3D(32, 48, width=16, eps=1e-3, max_norm=True).eval()
    published = {
        "w1.weight": "w1", "w1.bias": "b1", "w2.weight": "w4", "w2.bias": "b4",
        **{f"batch_norm1.{k}": f"batch_normalization.{k}" for k in ("weight", "bias", "running_mean", "running_var")},
    }  # fmt: skip
    for b in range(2):
        for n in (1, 2):
            for ours, kind in (("weight", "w"), ("bias", "b")):
                published[f"linear_stages.{b}.w{n}.{ours}"] = f"two_linear_{b}.{kind}{n + 1}_{b}"
            for k in ("weight", "bias", "running_mean", "running_var"):
                published[f"linear_stages.{b}.batch_norm{n}.{k}"] = f"two_linear_{b}.batch_normalization{n}{b}.{k}"
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    theirs = {f"linear_model.{published[key]}": value for key, value in state.items()}
    assert from_tensorflow(theirs).keys() == state.keys()
    torch.save(theirs, tmp_path / "tf.pt")
    x = torch.randn(2, 32)
    torch.testing.assert_close(load_simple_baseline(tmp_path / "tf.pt", max_norm=True)(x), net(x))
    assert not torch.allclose(load_simple_baseline(tmp_path / "tf.pt")(x), net(x))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"expand_conv.weight": torch.zeros(8, 34, 3)}, "holds VideoPose3D's temporal network, not SimpleBaseline-3D"),
        ({"model_pos": {"gconv_input.0.gconv.W": torch.zeros(2)}}, "holds SemGCN, not SimpleBaseline-3D"),
        ({"state_dict": {"BAprocess.w1.weight": torch.zeros(2)}}, "holds PoseAug's generators, not"),
        ({"backbone.layer1.0.conv1.weight": torch.zeros(2)}, r"holds a network on images \(ResNet\), not"),
        ({"a": torch.zeros(2), "b": torch.zeros(2)}, r"holds a network with 2 entries \(a, b …\), not"),
        ({"epoch": 3}, "holds no weights"),
        ([1, 2], "holds no weights"),
        (
            {"w1.weight": torch.zeros(8, 32), "w2.weight": torch.zeros(48, 8)},
            "holds another SimpleBaseline-3D: .*Missing key",
        ),
    ],
)
def test_wrong_checkpoints_are_called_by_their_name(content, message, tmp_path):
    torch.save(content, tmp_path / "wrong.pt")
    with pytest.raises(InputError, match=message):
        load_simple_baseline(tmp_path / "wrong.pt")


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(InputError, match="there is no such checkpoint"):
        load_simple_baseline(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(InputError, match=r"text.pt is not a checkpoint, or is damaged"):
        load_simple_baseline(tmp_path / "text.pt")
    torch.save({"state_dict": SimpleBaseline3D(4, 6, 8)}, tmp_path / "code.pt")
    with pytest.raises(InputError, match=r"code.pt is not a checkpoint"):
        load_simple_baseline(tmp_path / "code.pt")


# ---- parts ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("p", [0.1, 0.25, 0.5])
def test_dropout(p):
    torch.manual_seed(0)
    layer, n = ReLUDropout(p), 400_001
    x = torch.rand(n) + 0.5
    x[: n // 2] *= -1
    x.requires_grad_()
    y = layer(x + 0)
    y.sum().backward()
    kept = y[n // 2 :] > 0
    assert abs(kept.double().mean().item() - (1 - p)) < 4 * math.sqrt(p * (1 - p) / (n / 2))
    torch.testing.assert_close(y[n // 2 :][kept], x[n // 2 :][kept] / (1 - p))
    assert (y[: n // 2] == 0).all()
    torch.testing.assert_close(x.grad, torch.where(y > 0, 1 / (1 - p), 0.0))
    # Neighbours, which share a random number, are as independent as any.
    pairs = kept[: n // 2 // 4 * 4].view(-1, 4).float()
    assert torch.corrcoef(pairs.T).fill_diagonal_(0).abs().max() < 0.02
    assert torch.equal(layer.eval()(x.detach() + 0), x.detach().relu())


def test_most_of_a_training_step_is_matrix_products():
    torch.manual_seed(0)
    net, x, y = SimpleBaseline3D(34, 51), torch.randn(1024, 34), torch.randn(1024, 51)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)

    def step():
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.step()

    step()
    shares = []
    for _ in range(3):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            step()
        events = profile.key_averages()
        products = sum(e.self_cpu_time_total for e in events if e.key in ("aten::mm", "aten::addmm"))
        shares.append(products / sum(e.self_cpu_time_total for e in events))
    assert max(shares) > 0.7  # above 0.8 on a quiet machine


def test_semgcn_sees_only_neighbours():
    torch.manual_seed(0)
    net = SemGCN(H36M16, width=8, blocks=0).eval()
    x = torch.randn(1, 16, 2)
    moved = x.clone()
    moved[:, H36M16.index("left_wrist")] += 1
    changed = (net(moved) - net(x)).abs().sum(-1)[0] > 0
    # Two convolutions: two bones away.
    assert {name for name, c in zip(H36M16.names, changed, strict=True) if c} == {
        "left_wrist",
        "left_elbow",
        "left_shoulder",
    }
