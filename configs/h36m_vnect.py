"""VNect (Mehta et al., SIGGRAPH 2017) on Human3.6M and MPII: 80.5 mm in the paper, which trains on MPI-INF-3DHP too.

Epochs, learning rate and batch are ours; the paper's trunk begins from ImageNet's weights.
"""

from body3d.learn.crops import mpii
from body3d.learn.pose3d import RegressRun
from body3d.learn.pose3d_data import H36MPhotos, Mixed
from body3d.nets3d.builders import vnect_368
from body3d.skeletons import H36M17
from body3d.train import Plan, Steps

run = RegressRun(
    data=Mixed(H36MPhotos(), mpii(), H36M17),
    net=vnect_368,
    plan=Plan(epochs=20, lr=2.5e-4, schedule=Steps((15,))),
    batch=16,
    joints=H36M17,
    workers=None,
)
