"""Motion files: AMASS, BVH and ASF/AMC, written here by hand in the layouts that others distribute, and real ones."""

import math

import numpy as np
import pytest
import roma
import torch

from body3d.datasets.amass import AMASS, to_y_up
from body3d.datasets.asf import read_amc, read_asf
from body3d.datasets.bvh import read_bvh
from body3d.datasets.mocap import clip_index, read_clip
from body3d.datasets.reading import finite
from body3d.errors import InputError
from body3d.skeletons import SMPLH52, SMPLX55
from body3d.types import BodyParams


# ---- AMASS ---------------------------------------------------------------------------------------------------------
def smplh_file(path, frames=13, rate=120.0, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "poses": 0.3 * rng.standard_normal((frames, 156)), "trans": rng.standard_normal((frames, 3)),
        "betas": rng.standard_normal(16), "dmpls": np.zeros((frames, 8)), "gender": np.array(b"female"),
        "mocap_framerate": np.array(rate),
    } | changes  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return arrays


def smplx_file(path, frames=10, rate=60.0):
    rng = np.random.default_rng(1)
    arrays = {
        "poses": 0.3 * rng.standard_normal((frames, 165)), "trans": rng.standard_normal((frames, 3)),
        "betas": rng.standard_normal(16), "gender": np.array("neutral"), "mocap_frame_rate": np.array(rate),
        "surface_model_type": np.array("smplx"),
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return arrays


def test_amass_of_both_kinds(tmp_path):
    old = smplh_file(tmp_path / "CMU" / "02" / "02_01_poses.npz")
    new = smplx_file(tmp_path / "HDM05" / "bk" / "walk_stageii.npz")
    np.savez(tmp_path / "CMU" / "02" / "shape.npz", betas=np.zeros(16), gender="male")
    data = AMASS.open(tmp_path)
    assert [(f.gender, f.rate, f.frames, f.joints) for f in data.files] == [
        ("female", 120.0, 13, SMPLH52), ("neutral", 60.0, 10, SMPLX55),
    ]  # fmt: skip
    assert [f.indices(30.0).tolist() for f in data.files] == [[0, 4, 8, 12], [0, 2, 4, 6, 8]]
    assert len(data) == 9
    for i, arrays, frame in ((1, old, 4), (8, new, 8)):
        params = data[i].params
        # All rotations but the root's are what the file says; the root is turned by -90 degrees about x, like the path.
        np.testing.assert_allclose(params.pose[1:].flatten(), arrays["poses"][frame, 3:], rtol=1e-6, atol=1e-7)
        x, y, z = arrays["trans"][frame]
        np.testing.assert_allclose(params.transl, [x, z, -y], rtol=1e-6)
        np.testing.assert_allclose(params.shape, arrays["betas"], rtol=1e-6)
        up = roma.rotvec_to_rotmat(torch.tensor(arrays["poses"][frame, :3]))[2]  # the world's z in the root's axes
        torch.testing.assert_close(roma.rotvec_to_rotmat(params.pose[0])[1].double(), up, atol=1e-6, rtol=0)
    with pytest.raises(IndexError):
        data[9]
    assert len(AMASS.open(tmp_path, select=lambda p: p.parts[0] == "HDM05")) == 5


def test_a_rate_that_is_no_multiple_is_resampled_by_time(tmp_path):
    smplh_file(tmp_path / "a_poses.npz", frames=251, rate=250.0)
    smplh_file(tmp_path / "b_poses.npz", frames=20, rate=25.0)  # slower than 30 Hz: as it is
    fast, slow = AMASS.open(tmp_path).files
    times = fast.indices(30.0) / 250
    assert len(times) == 31
    assert np.abs(times - np.arange(31) / 30).max() <= 0.5 / 250 + 1e-9
    assert slow.indices(30.0).tolist() == list(range(20))


def test_z_up_to_y_up_moves_the_whole_body_with_its_pelvis():
    """A point p of the body is R (p - pelvis) + pelvis + t in the model: it must turn as the world does."""
    torch.manual_seed(0)
    pelvis, p = torch.tensor([0.01, -0.3, 0.02]), torch.randn(3)
    params = BodyParams(torch.randn(1, 52, 3), torch.zeros(1, 10), torch.randn(1, 3))
    place = lambda q: roma.rotvec_to_rotmat(q.pose[0, 0]) @ (p - pelvis) + pelvis + q.transl[0]
    x, y, z = place(params)
    torch.testing.assert_close(place(to_y_up(params, pelvis)), torch.stack([x, z, -y]))
    double = params.to(torch.float64)
    torch.testing.assert_close(to_y_up(double).transl, to_y_up(params).transl.double())
    assert to_y_up(double, pelvis.double()).pose.dtype == torch.float64


def test_what_callers_change_is_theirs(tmp_path):
    arrays = smplh_file(tmp_path / "a_poses.npz")
    data = AMASS.open(tmp_path)
    for read in (lambda: data.sequence(0), lambda: data[0].params):
        expected = read().pose.clone()
        read().pose.zero_()
        assert torch.equal(read().pose, expected) and expected.abs().max() > 0
    floats = arrays["poses"].astype(np.float32)
    finite(floats, (13, 156), "memory", "poses").zero_()
    assert np.abs(floats).max() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mocap_framerate": np.array(0.0)}, "mocap_framerate is 0.0; a frame rate above 0"),
        ({"mocap_framerate": None}, "neither 'mocap_framerate' nor 'mocap_frame_rate'"),
        ({"poses": np.zeros((13, 72))}, r"poses has the shape \(13, 72\)"),
        ({"trans": np.zeros((12, 3))}, "trans"),
        ({"poses": np.full((13, 156), np.nan)}, "poses"),
        ({"betas": None}, "betas"),
    ],
)
def test_bad_amass_files(tmp_path, changes, message):
    smplh_file(tmp_path / "x_poses.npz", **changes)
    with pytest.raises(InputError, match=message):
        AMASS.open(tmp_path)[0]


def test_bad_amass_folders(tmp_path):
    with pytest.raises(InputError, match=r"amass\.is\.tue\.mpg\.de"):
        AMASS.open(tmp_path / "none")
    np.savez(tmp_path / "shape.npz", betas=np.zeros(16))
    with pytest.raises(InputError, match="no .npz with poses among 1 files"):
        AMASS.open(tmp_path)
    (tmp_path / "cut_poses.npz").write_bytes((tmp_path / "shape.npz").read_bytes()[:80])
    with pytest.raises(InputError, match=r"cut_poses\.npz cannot be read"):
        AMASS.open(tmp_path)
    with pytest.raises(InputError, match="frame rate must be above 0"):
        AMASS.open(tmp_path, fps=0.0)


# ---- BVH -----------------------------------------------------------------------------------------------------------
BVH = """HIERARCHY
ROOT Hips
{{
  OFFSET {offset}
  CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
  JOINT Left Leg
  {{
    OFFSET 0 -10 0
    CHANNELS {channels}
    End Site
    {{
      OFFSET 0 -20 0
    }}
  }}
}}
MOTION
Frames: 2
Frame Time: 0.02
1 100 3 {angles} {leg0}
1 100 3 0 0 0 {leg1}
"""


def write_bvh(
    path, offset="0 0 0", channels="3 Zrotation Xrotation Yrotation", angles="0 0 0", leg0="0 0 0", leg1="0 0 0"
):
    path.write_text(BVH.format(offset=offset, channels=channels, angles=angles, leg0=leg0, leg1=leg1))
    return path


def test_bvh_by_hand(tmp_path):
    motion = read_bvh(write_bvh(tmp_path / "a.bvh", angles="90 0 0", leg0="0 90 0"))
    assert motion.joints.names == ("Hips", "Left Leg", "Left Leg_end") and motion.joints.parents == (-1, 0, 1)
    assert motion.fps == pytest.approx(50)
    _, xyz = motion.forward()
    # The hips turn by 90 degrees about z: down becomes +x. The leg then turns about its own x: from down to -z.
    torch.testing.assert_close(
        xyz[0], torch.tensor([[0.01, 1, 0.03], [0.11, 1, 0.03], [0.11, 1, -0.17]]), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        xyz[1], torch.tensor([[0.01, 1, 0.03], [0.01, 0.9, 0.03], [0.01, 0.7, 0.03]]), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(motion[1].kp3d.xyz, xyz[1])
    in_inches = read_bvh(tmp_path / "a.bvh", unit=0.0254).forward()[1]
    torch.testing.assert_close(in_inches, 2.54 * xyz)


def test_bvh_channels_in_any_order_and_number(tmp_path):
    """The order of the channels is the order of the rotations; a position channel takes the OFFSET's place."""
    a = read_bvh(write_bvh(tmp_path / "a.bvh", channels="2 Yrotation Xrotation", leg0="30 40", leg1="0 0"))
    y, x = math.radians(30), math.radians(40)
    tip = a.forward()[1][0, 2] - a.forward()[1][0, 1]
    # Ry(30) Rx(40) (0, -0.2, 0)
    expected = -0.2 * torch.tensor([math.sin(y) * math.sin(x), math.cos(x), math.cos(y) * math.sin(x)])
    torch.testing.assert_close(tip, expected, atol=1e-6, rtol=0)
    moved = read_bvh(write_bvh(tmp_path / "b.bvh", channels="2 Xposition Yposition", leg0="5 -10", leg1="0 -10"))
    torch.testing.assert_close(
        moved.forward()[1][0, 1] - moved.forward()[1][1, 1], torch.tensor([0.05, 0, 0]), atol=1e-6, rtol=0
    )
    rooted = read_bvh(write_bvh(tmp_path / "c.bvh", offset="7 8 9"))
    torch.testing.assert_close(rooted.forward()[1][0, 0], torch.tensor([0.01, 1.0, 0.03]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("HIERARCHY", "HIERARCHIE", "it has no HIERARCHY followed by MOTION"),
        ("Frames: 2", "Frames: 3", "3 frames of 9 channels are 27 numbers, but it has 18"),
        ("Frame Time: 0.02", "Frame Time: 0", "Frame Time: <seconds above 0>"),
        ("Zrotation", "Wrotation", "unknown channel 'Wrotation'"),
        ("1 100 3", "1 nan 3", "frame 0 is NaN"),
        ("1 100 3", "1 x 3", "not a number"),
        ("OFFSET 0 -20 0\n    }", "OFFSET 0 -20 0\n", "not closed"),
        ("JOINT", "LIMB", "'LIMB' stands in the HIERARCHY"),
    ],
)
def test_bad_bvh_files(tmp_path, old, new, message):
    path = write_bvh(tmp_path / "a.bvh")
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=message):
        read_bvh(path)


# ---- ASF / AMC -----------------------------------------------------------------------------------------------------
ASF = """# a comment
:version 1.10
:name test
:units
  mass 1.0
  length 0.5
  angle deg
:root
   order TX TY TZ RX RY RZ
   axis XYZ
   position 0 0 0
   orientation 0 0 0
:bonedata
  begin
     id 1
     name thigh
     direction 0 -1 0
     length 1
     axis 0 0 90 XYZ
     dof rx ry rz
  end
  begin
     id 2
     name shin
     direction 0 -1 0
     length 2
     axis 0 0 0 XYZ
     dof rx
  end
:hierarchy
  begin
    root thigh
    thigh shin
  end
"""
AMC = """:FULLY-SPECIFIED
:DEGREES
1
root 1 2 3 0 0 0
thigh 90 0 0
shin 0
2
root 1 2 3 0 0 90
thigh 0 0 0
shin 90
"""


def write_amc(folder, asf=ASF, amc=AMC):
    (folder / "t.asf").write_text(asf)
    (folder / "t.amc").write_text(amc)
    return folder


def test_amc_by_hand(tmp_path):
    write_amc(tmp_path)
    motion = read_amc(tmp_path / "t.amc", read_asf(tmp_path / "t.asf"))
    assert motion.joints.names == ("root", "thigh", "shin", "shin_end") and motion.fps == 120
    inch = 0.0254 / 0.5
    xyz = motion.forward()[1] / inch
    # The thigh's x axis is the world's y (turned 90 degrees about z): a turn about it leaves a downward bone where it is.
    torch.testing.assert_close(xyz[0], torch.tensor([[1.0, 2, 3], [1, 2, 3], [1, 1, 3], [1, -1, 3]]), atol=1e-5, rtol=0)
    # The root turns everything about z: down becomes +x; then the shin bends about its own x, from +x to -z.
    torch.testing.assert_close(xyz[1], torch.tensor([[1.0, 2, 3], [1, 2, 3], [2, 2, 3], [2, 2, 1]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("asf", "amc", "message"),
    [
        (ASF.replace(":hierarchy", ":tree"), AMC, "no :hierarchy"),
        (ASF.replace("length 2", "length two"), AMC, "broken ASF skeleton"),
        (ASF, AMC.replace("shin 90", "calf 90"), "'calf' with 1 values does not fit"),
        (ASF, AMC.replace("thigh 90 0 0", "thigh 90 0"), "'thigh' with 2 values does not fit .* expects 3"),
        (ASF, AMC.replace("shin 90\n", ""), "frame 2 has no shin"),
        (ASF, AMC.replace("shin 90", "shin nan"), "NaN or infinite"),
        (ASF, ":DEGREES\n", "it has no frame"),
    ],
)
def test_bad_amc_files(tmp_path, asf, amc, message):
    write_amc(tmp_path, asf, amc)
    with pytest.raises(InputError, match=message):
        read_amc(tmp_path / "t.amc", read_asf(tmp_path / "t.asf"))


def test_amc_needs_a_rate(tmp_path):
    write_amc(tmp_path)
    with pytest.raises(InputError, match="frame rate must be above 0, got 0"):
        read_amc(tmp_path / "t.amc", read_asf(tmp_path / "t.asf"), fps=0.0)


# ---- real files ----------------------------------------------------------------------------------------------------
def test_every_exporters_file_reads(shared):
    """Nothing is NaN, the rate is one that people record at, and bones keep their lengths."""
    files = sorted((shared / "data/mocap/raw").rglob("*.bvh"))
    assert len(files) >= 10
    for file in files:
        motion = read_bvh(file)
        _, xyz = motion.forward()
        assert xyz.isfinite().all() and 10 <= motion.fps <= 250, file
        moves = [
            j
            for j, p in enumerate(motion.joints.parents)
            if p >= 0 and np.ptp(motion.translations[:, j].numpy(), 0).max() > 1e-6
        ]
        bones = [(p, j) for j, p in enumerate(motion.joints.parents) if p >= 0 and j not in moves]
        parent, child = torch.tensor(bones).T
        length = (xyz[:, parent] - xyz[:, child]).norm(dim=-1)
        assert (length - length[:1]).abs().max() < 1e-3 * length.max(), file


def knee_angles(motion, names):
    """Radians between thigh and shin, from positions: the same whatever the world's axes, unit and skeleton."""
    hip, knee, ankle = (motion.forward()[1][:, motion.joints.index(n)] for n in names)
    unit = torch.nn.functional.normalize
    return (unit(knee - hip, dim=-1) * unit(ankle - knee, dim=-1)).sum(-1).clamp(-1, 1).acos()


@pytest.mark.parametrize("trial", ["02_01", "02_03"])
def test_one_trial_in_two_formats_bends_its_knees_alike(shared, trial):
    raw = shared / "data/mocap/raw"
    amc = read_amc(raw / f"cmu_asfamc/{trial}.amc", read_asf(raw / "cmu_asfamc/02.asf"))
    bvh = read_bvh(raw / f"cmu_daz_bvh/{trial}.bvh")
    a = knee_angles(amc, ("lfemur", "ltibia", "lfoot"))
    b = knee_angles(bvh, ("lThigh", "lShin", "lFoot"))[1:]  # the first frame is the exporter's rest pose
    n = min(len(a), len(b))
    assert abs(len(a) - len(b)) <= 2
    together = torch.corrcoef(torch.stack([a[:n], b[:n]]))[0, 1]
    assert together > 0.99 and (a[:n] - b[:n]).abs().median() < math.radians(8)


def test_the_prepared_clip_is_the_bvh(shared):
    """The clip of the prepared npz is the same motion as its BVH, at a quarter of the rate: heights of the hip agree."""
    info = next(i for i in clip_index(shared / "data/mocap") if i.id == "02_01" and i.source == "cmu_daz")
    clip = read_clip(info)
    motion = read_bvh(shared / "data/mocap/raw/cmu_daz_bvh/02_01.bvh")
    step = round(motion.fps / clip.fps)
    root = motion.translations[1::step, 0]
    n = min(len(root), len(clip.root))
    ours, theirs = root[:n] - root[:1], clip.root[:n] - clip.root[:1]
    ratio = (ours * theirs).sum() / (ours * ours).sum()  # the unit
    assert (ratio * ours - theirs).norm(dim=-1).max() < 0.03 * theirs.norm(dim=-1).max()
