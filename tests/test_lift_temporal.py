import pytest
import torch

from body3d.errors import InputError
from body3d.lift.baseline import SimpleBaseline3D
from body3d.lift.temporal import VideoPose3D, load_videopose3d, pad_ends


def small(widths=(3, 3, 3), causal=False, joints=17):
    """A net whose batch norms are not the identity."""
    torch.manual_seed(0)
    net = VideoPose3D(joints, widths=widths, causal=causal, channels=24)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("widths", [(3,), (3, 3, 3), (3, 3, 3, 3), (3, 5, 3), (1, 1, 1)])
def test_strided_and_dense_are_the_same_function(widths, causal):
    net = small(widths, causal)
    xy = torch.randn(2, 2 * net.frames, 17, 2)
    dense, strided = net.dense(xy), net.strided(xy)
    assert dense.shape == (2, net.frames + 1, 17, 3) and strided.shape == (2, 2, 17, 3)
    torch.testing.assert_close(strided, dense[:, [0, -1]], rtol=0, atol=1e-5)
    torch.testing.assert_close(net(xy[:, : net.frames]), dense[:, :1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("layers", "frames"), [(3, 27), (4, 81), (5, 243)])
def test_it_sees_so_many_frames_and_no_more(layers, frames):
    net = small((3,) * layers)
    xy = torch.randn(1, frames + 2, 17, 2, requires_grad=True)
    net.dense(xy)[0, 1].sum().backward()
    seen = xy.grad.abs().sum((0, 2, 3)) > 0
    assert net.frames == frames
    assert seen.tolist() == [False] + [True] * frames + [False]


@pytest.mark.parametrize("causal", [False, True])
def test_every_frame_of_a_padded_video_has_its_pose(causal):
    """The pose of a frame is that of the window around it (or up to it)."""
    net = small(causal=causal)
    video = torch.randn(1, 40, 17, 2)
    padded = pad_ends(video, net.frames, causal)
    assert net(padded).shape[1] == 40
    before = 26 if causal else 13
    torch.testing.assert_close(padded[:, before : before + 40], video)
    assert torch.equal(padded[:, :before], video[:, :1].expand(-1, before, -1, -1))
    if causal:  # what comes later changes nothing
        changed = video.clone()
        changed[:, 20:] += 1
        torch.testing.assert_close(net(pad_ends(changed, 27, causal))[:, :20], net(padded)[:, :20])


def test_the_skip_carries_the_frame_itself():
    """With blocks that add nothing, the pose is a function of the three frames in the middle (or at the end) alone."""
    for causal, seen in ((False, {12, 13, 14}), (True, {24, 25, 26})):
        net = small(causal=causal)
        with torch.no_grad():
            for norm in net.layers_bn[1::2]:
                norm.weight.zero_()
                norm.bias.zero_()
        xy = torch.randn(1, 27, 17, 2, requires_grad=True)
        net.dense(xy).sum().backward()
        assert set((xy.grad.abs().sum((0, 2, 3)) > 0).nonzero()[:, 0].tolist()) == seen


def test_it_learns_a_batch_by_the_strided_form():
    torch.manual_seed(0)
    net = VideoPose3D(4, widths=(3, 3), channels=64, dropout=0.0)
    xy, xyz = torch.randn(32, 9, 4, 2), torch.randn(32, 1, 4, 3)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = (net(xy) - xyz).norm(dim=-1).mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.05 * xyz.norm(dim=-1).mean()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.momentum = 1.0
    net(xy)
    assert (net.eval()(xy) - xyz).norm(dim=-1).mean() < 0.1 * xyz.norm(dim=-1).mean()


def test_wrong_windows():
    net = small()
    with pytest.raises(ValueError, match="26 frames are fewer than the 27"):
        net(torch.zeros(1, 26, 17, 2))
    with pytest.raises(ValueError, match="28 frames are no multiple of the 27"):
        net.strided(torch.zeros(1, 28, 17, 2))
    with pytest.raises(ValueError, match=r"must be odd, got \(3, 2\)"):
        VideoPose3D(widths=(3, 2))


def test_checkpoints(tmp_path):
    net = small((3, 5, 3), joints=16)
    torch.save({"epoch": 80, "model_pos": net.state_dict()}, tmp_path / "pretrained.bin")
    read, xy = load_videopose3d(tmp_path / "pretrained.bin"), torch.randn(1, 45, 16, 2)
    assert read.widths == (3, 5, 3) and not read.causal
    torch.testing.assert_close(read(xy), net(xy))
    torch.save(SimpleBaseline3D(32, 48, 8).state_dict(), tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other.pt holds SimpleBaseline-3D, not VideoPose3D"):
        load_videopose3d(tmp_path / "other.pt")
