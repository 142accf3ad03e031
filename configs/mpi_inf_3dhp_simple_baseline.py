"""SimpleBaseline-3D (Martinez et al., ICCV 2017) on MPI-INF-3DHP in P-STMO's files."""

from body3d.learn.lifting import LifterRun, MPIINF3DHPFiles
from body3d.lift.baseline import SimpleBaseline3D
from body3d.skeletons import MPI_INF_3DHP17
from body3d.train import Exponential, Plan

run = LifterRun(
    data=MPIINF3DHPFiles(),
    net=lambda joints: SimpleBaseline3D(2 * len(joints), 3 * len(joints)),
    plan=Plan(epochs=100, lr=1e-3, schedule=Exponential(0.96, every=4.0)),
    batch=64,
    joints=MPI_INF_3DHP17,
    loss="mse",
    standardise=True,
)
