"""3DMPPE's RootNet (Moon et al., ICCV 2019) on Human3.6M and MPII, half and half, by the paper's numbers: MRPE 120.0 mm.

It begins from ImageNet's weights: give torchvision's resnet50 as --start.
"""

from body3d.learn.crops import mpii
from body3d.learn.pose3d import ROOT_TRAINING, RegressRun
from body3d.learn.pose3d_data import H36MPhotos, Mixed
from body3d.nets3d.builders import rootnet_256
from body3d.skeletons import MPPE18
from body3d.train import Plan, Steps

run = RegressRun(
    data=Mixed(H36MPhotos(), mpii(), MPPE18),
    net=rootnet_256,
    plan=Plan(epochs=20, lr=1e-3, schedule=Steps((17,))),
    batch=32,
    joints=MPPE18,
    augment=ROOT_TRAINING,
    workers=None,
)
