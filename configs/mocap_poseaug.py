"""PoseAug (Gong et al., CVPR 2021) with SimpleBaseline-3D on free motion capture seen by Human3.6M's four cameras.

The lifter is `configs/mocap_simple_baseline.py`'s, on the paper's 16 joints. It is meant to go on from a lifter
that was trained without (`start`); `body3d bench lift` gives it one.
"""

from body3d.learn.lifting import FreeMocap
from body3d.learn.poseaug_training import PoseAugRun
from body3d.lift.baseline import SimpleBaseline3D
from body3d.skeletons import H36M16
from body3d.train import Cosine, Plan

run = PoseAugRun(
    data=FreeMocap(),
    net=lambda joints: SimpleBaseline3D(2 * len(joints), 3 * len(joints), width=512, dropout=0.1),
    plan=Plan(epochs=10, lr=3e-4, schedule=Cosine(10), clip_norm=1.0),
    batch=512,
    joints=H36M16,
    steps=150,
    standardise=True,
    every=16,
    warmup=0,
)
