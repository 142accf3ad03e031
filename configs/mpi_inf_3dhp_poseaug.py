"""PoseAug (Gong et al., CVPR 2021) with SimpleBaseline-3D on MPI-INF-3DHP in P-STMO's files.

The paper tests on this set what it trained on Human3.6M; the numbers are those of that training.

The paper starts from a lifter that was trained without it: give the checkpoint of configs/mpi_inf_3dhp_simple_baseline_16.py
with --start.
"""

from body3d.learn.lifting import MPIINF3DHPFiles
from body3d.learn.poseaug_training import PoseAugRun
from body3d.lift.baseline import SimpleBaseline3D
from body3d.skeletons import H36M16
from body3d.train import Linear, Plan

run = PoseAugRun(
    data=MPIINF3DHPFiles(),
    net=lambda joints: SimpleBaseline3D(2 * len(joints), 3 * len(joints)),
    plan=Plan(epochs=50, lr=1e-4, schedule=Linear(50), clip_norm=1.0),
    batch=1024,
    joints=H36M16,
)
