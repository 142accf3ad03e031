"""PoseAug (Gong et al., CVPR 2021) with SimpleBaseline-3D on Human3.6M with true 2D, by the paper's numbers.

The paper starts from a lifter that was trained without it: give the checkpoint of configs/h36m_simple_baseline_16.py
with --start.
"""

from body3d.learn.lifting import H36MFiles
from body3d.learn.poseaug_training import PoseAugRun
from body3d.lift.baseline import SimpleBaseline3D
from body3d.skeletons import H36M16
from body3d.train import Linear, Plan

run = PoseAugRun(
    data=H36MFiles("gt"),
    net=lambda joints: SimpleBaseline3D(2 * len(joints), 3 * len(joints)),
    plan=Plan(epochs=50, lr=1e-4, schedule=Linear(50), clip_norm=1.0),
    batch=1024,
    joints=H36M16,
)
