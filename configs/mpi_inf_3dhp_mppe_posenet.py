"""3DMPPE's PoseNet on MPI-INF-3DHP and COCO, half and half, by the numbers for MuCo-3DHP, which is made of it.

It begins from ImageNet's weights: give torchvision's resnet50 as --start.
"""

from body3d.learn.crops import coco
from body3d.learn.pose3d import RegressRun
from body3d.learn.pose3d_data import Mixed, MPIINF3DHPPhotos
from body3d.nets3d.builders import posenet_256
from body3d.skeletons import MUPOTS21
from body3d.train import Plan, Steps

run = RegressRun(
    data=Mixed(MPIINF3DHPPhotos(), coco(), MUPOTS21),
    net=posenet_256,
    plan=Plan(epochs=25, lr=1e-3, schedule=Steps((17, 21))),
    batch=32,
    joints=MUPOTS21,
    true_depth=True,
    workers=None,
)
