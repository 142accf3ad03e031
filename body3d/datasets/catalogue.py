"""Every data set by name: the forms in which people have it, what lies where, how many samples there must be, how to get it.

`data/README.md` shows the same as trees. Paths are below the folder that the user names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from body3d.datasets import aic, amass, coco, crowdpose, flic, h36m, lsp, mocap, mpi_inf_3dhp, mpii, panoptic

__all__ = ["SETS", "DataSet", "Form"]


@dataclass(frozen=True)
class Form:
    """One form of a set, or one split of it."""

    name: str
    needs: str  # a file or folder (or a pattern of them) that shows this form is there
    open: Callable[[Path], Any]  # from the set's folder: something with a length whose items are samples
    expected: int | None = None  # samples of the complete set; None: not fixed


@dataclass(frozen=True)
class DataSet:
    title: str
    source: str
    licence: str
    forms: tuple[Form, ...]


def _annotated(name: str, read: Callable, file: str, photos: str = "images", expected: int | None = None) -> Form:
    """One file of annotations, with its folder of photos if that is there: annotations alone can be used too."""

    def open_form(folder: Path):
        return read(folder / file, folder / photos if (folder / photos).is_dir() else None)

    return Form(name, file, open_form, expected)


def _packed(folder: Path) -> lsp.LSP:
    images = folder / "images"
    return lsp.LSP.packed(sorted(folder.glob("lspet*.npz")), images if images.is_dir() else None)


_LSP, _FLIC, _MPII, _COCO, _AIC = lsp.LSP, flic.FLIC, mpii.MPII, coco.COCO, aic.AIC
_H36M, _MPI, _OPEN_CROWD = h36m.H36M, mpi_inf_3dhp.MPIINF3DHP, crowdpose.CrowdPose.open

SETS: dict[str, DataSet] = {
    "lsp": DataSet(
        "Leeds Sports Pose", "sam.johnson.io/research/lsp.html", "research only",
        (
            _annotated("train", _LSP.original, "joints.mat", expected=1000),
            _annotated("test", partial(_LSP.original, split="test"), "joints.mat", expected=1000),
        ),
    ),
    "lspet": DataSet(
        "Leeds Sports Pose, extended", "sam.johnson.io/research/lspet.html", "research only",
        (
            _annotated("as distributed", _LSP.extended, "joints.mat", expected=10_000),
            Form("as arrays", "lspet*.npz", _packed),
        ),
    ),
    "flic": DataSet(
        "Frames Labeled in Cinema", "bensapp.github.io/flic-dataset.html", "research only",
        (
            _annotated("train", _FLIC.open, "examples.mat", expected=3987),
            _annotated("test", partial(_FLIC.open, split="test"), "examples.mat", expected=1016),
            _annotated("train, h5", _FLIC.h5, "train.h5", expected=3987),
            _annotated("test, h5", _FLIC.h5, "test.h5", expected=1016),
        ),
    ),
    "mpii": DataSet(
        "MPII Human Pose", "human-pose.mpi-inf.mpg.de", "simplified BSD (annotations)",
        (
            _annotated("release", _MPII.release, "mpii_human_pose_v1_u12_1.mat"),
            _annotated("train, list", _MPII.lists, "train.json", expected=22_246),
            _annotated("valid, list", _MPII.lists, "valid.json", expected=2958),
            _annotated("train, h5", _MPII.h5, "train.h5", expected=22_246),
            _annotated("valid, h5", _MPII.h5, "valid.h5", expected=2958),
        ),
    ),
    "coco": DataSet(
        "COCO keypoints and COCO-WholeBody", "cocodataset.org/#download", "annotations CC BY 4.0, photos by their owners",
        (
            _annotated("train", _COCO.keypoints, "annotations/person_keypoints_train2017.json", "train2017", 149_813),
            _annotated("val", _COCO.keypoints, "annotations/person_keypoints_val2017.json", "val2017", 6352),
            _annotated("whole body, train", _COCO.wholebody, "annotations/coco_wholebody_train_v1.0.json", "train2017"),
            _annotated("whole body, val", _COCO.wholebody, "annotations/coco_wholebody_val_v1.0.json", "val2017"),
        ),
    ),
    "aic": DataSet(
        "AI Challenger", "github.com/AIChallenger/AI_Challenger_2017", "research only",
        (
            _annotated("train", _AIC.original, "keypoint_train_annotations_20170909.json", "keypoint_train_images_20170902"),
            _annotated("train, as COCO", _AIC.coco_style, "annotations/aic_train.json"),
        ),
    ),
    "crowdpose": DataSet(
        "CrowdPose", "github.com/jeffffffli/CrowdPose", "research only",
        (
            _annotated("trainval", _OPEN_CROWD, "crowdpose_trainval.json"),
            _annotated("test", _OPEN_CROWD, "crowdpose_test.json"),
        ),
    ),
    "h36m": DataSet(
        "Human3.6M", "vision.imar.ro/human3.6m (registration)", "research only, registration",
        (
            Form("train, VideoPose3D's", "data_3d_h36m.npz", lambda f: _H36M.videopose(f, None, h36m.TRAIN_SUBJECTS), 1_559_752),
            Form("test, VideoPose3D's", "data_3d_h36m.npz", lambda f: _H36M.videopose(f, None, h36m.TEST_SUBJECTS), 543_344),
            Form("train", "S1/MyPoseFeatures/D3_Positions/*.cdf", lambda f: _H36M.original(f, h36m.TRAIN_SUBJECTS), 1_559_752),
            Form("test", "S9/MyPoseFeatures/D3_Positions/*.cdf", lambda f: _H36M.original(f, h36m.TEST_SUBJECTS), 543_344),
            Form("3DMPPE's", "annotations/Human36M_subject1_data.json", lambda f: h36m.H36MImages.moon(f / "annotations")),
        ),
    ),
    "mpi_inf_3dhp": DataSet(
        "MPI-INF-3DHP", "vcai.mpi-inf.mpg.de/3dhp-dataset", "research only",
        (
            Form("train", "S1/Seq1/annot.mat", lambda f: _MPI.train(f, "annot3")),
            Form("test", "TS1/annot_data.mat", lambda f: _MPI.test(f, "annot3"), 2929),
            Form("train, P-STMO's", "data_train_3dhp.npz", lambda f: _MPI.pstmo(f / "data_train_3dhp.npz", "univ_annot3")),
            Form("test, P-STMO's", "data_test_3dhp.npz", lambda f: _MPI.pstmo(f / "data_test_3dhp.npz", "univ_annot3"), 2929),
        ),
    ),
    "panoptic": DataSet(
        "CMU Panoptic Studio", "domedb.perception.cs.cmu.edu", "non-commercial",
        (Form("sequences", "*/calibration_*.json", panoptic.Panoptic.open),),
    ),
    "amass": DataSet(
        "AMASS", "amass.is.tue.mpg.de (registration)", "non-commercial, registration",
        (Form("motions at 30 Hz", "**/*.npz", amass.AMASS.open),),
    ),
    "mocap": DataSet(
        "free motion capture", "CMU (mocap.cs.cmu.edu), DeepMimic and Mesh2Motion", "free: CMU, MIT, CC0",
        (
            Form("training subjects", "index.csv", lambda f: mocap.Mocap.open(f, held_out=False)),
            Form("held-out subjects", "index.csv", lambda f: mocap.Mocap.open(f, held_out=True)),
        ),
    ),
}  # fmt: skip
