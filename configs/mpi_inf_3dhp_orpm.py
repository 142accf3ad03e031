"""ORPM (Mehta et al., 3DV 2018) on MPI-INF-3DHP and COCO: MPJPE 122.2 mm, 3DPCK 75.2 in the paper, which trains on composites of
several people (MuCo-3DHP).

Epochs, learning rate, batch and the size of the images are ours. Give torchvision's resnet50 as --start.
"""

from body3d.learn.crops import coco
from body3d.learn.pose3d_data import Mixed, MPIINF3DHPPhotos
from body3d.learn.pose3d_scenes import SceneRun
from body3d.nets3d.builders import orpm_320
from body3d.skeletons import MUPOTS17
from body3d.train import Plan, Steps

run = SceneRun(
    data=Mixed(MPIINF3DHPPhotos(), coco(), MUPOTS17),
    net=orpm_320,
    plan=Plan(epochs=20, lr=2.5e-4, schedule=Steps((15,))),
    batch=16,
    joints=MUPOTS17,
    workers=None,
)
