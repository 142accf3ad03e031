"""Coarse-to-fine volumes of 1, 2, 4 and 64 slices (Pavlakos et al., CVPR 2017) on Human3.6M, by the released options: 71.9 mm."""

from body3d.learn.pose3d import RegressRun
from body3d.learn.pose3d_data import H36MPhotos
from body3d.nets3d.builders import volumetric_256
from body3d.skeletons import H36M17
from body3d.train import Plan

run = RegressRun(
    data=H36MPhotos(),
    net=volumetric_256,
    plan=Plan(epochs=60, lr=2.5e-4, optimizer="rmsprop"),
    batch=4,
    joints=H36M17,
    workers=None,
)
