"""VNect (Mehta et al., SIGGRAPH 2017) on MPI-INF-3DHP and MPII, 21 joints: MPJPE 124.7 mm, 3DPCK 76.6 in the paper.

Epochs, learning rate and batch are ours.
"""

from body3d.learn.crops import mpii
from body3d.learn.pose3d import RegressRun
from body3d.learn.pose3d_data import Mixed, MPIINF3DHPPhotos
from body3d.nets3d.builders import vnect_368
from body3d.skeletons import MUPOTS21
from body3d.train import Plan, Steps

run = RegressRun(
    data=Mixed(MPIINF3DHPPhotos(), mpii(), MUPOTS21),
    net=vnect_368,
    plan=Plan(epochs=20, lr=2.5e-4, schedule=Steps((15,))),
    batch=16,
    joints=MUPOTS21,
    workers=None,
)
