"""SimpleBaseline-3D on MPI-INF-3DHP as configs/mpi_inf_3dhp_poseaug.py goes on with it: 16 joints, not standardised."""

from body3d.learn.lifting import LifterRun, MPIINF3DHPFiles
from body3d.lift.baseline import SimpleBaseline3D
from body3d.skeletons import H36M16
from body3d.train import Linear, Plan

run = LifterRun(
    data=MPIINF3DHPFiles(),
    net=lambda joints: SimpleBaseline3D(2 * len(joints), 3 * len(joints)),
    plan=Plan(epochs=50, lr=1e-3, schedule=Linear(50), clip_norm=1.0),
    batch=1024,
    joints=H36M16,
)
