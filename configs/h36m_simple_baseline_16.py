"""SimpleBaseline-3D on Human3.6M with true 2D as configs/h36m_poseaug.py goes on with it: 16 joints, not standardised."""

from body3d.learn.lifting import H36MFiles, LifterRun
from body3d.lift.baseline import SimpleBaseline3D
from body3d.skeletons import H36M16
from body3d.train import Linear, Plan

run = LifterRun(
    data=H36MFiles("gt"),
    net=lambda joints: SimpleBaseline3D(2 * len(joints), 3 * len(joints)),
    plan=Plan(epochs=50, lr=1e-3, schedule=Linear(50), clip_norm=1.0),
    batch=1024,
    joints=H36M16,
)
