"""VideoPose3D (Pavllo et al., CVPR 2019) with 27 frames on MPI-INF-3DHP, by the paper's numbers."""

from body3d.learn.lifting import LifterRun, MPIINF3DHPFiles
from body3d.lift.temporal import VideoPose3D
from body3d.skeletons import MPI_INF_3DHP17
from body3d.train import Exponential, Plan

run = LifterRun(
    data=MPIINF3DHPFiles(),
    net=lambda joints: VideoPose3D(len(joints), widths=(3, 3, 3)),
    plan=Plan(epochs=80, lr=1e-3, schedule=Exponential(0.95)),
    batch=1024,
    joints=MPI_INF_3DHP17,
    frames=27,
    flip=True,
    momentum=(0.1, 0.001),
)
