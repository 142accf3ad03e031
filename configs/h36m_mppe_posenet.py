"""3DMPPE's PoseNet (Moon et al., ICCV 2019) on Human3.6M and MPII, half and half, by the paper's numbers: 53.3 mm (protocol 2,
true boxes and roots).

It begins from ImageNet's weights: give torchvision's resnet50 as --start. Synthetic occlusion, which the paper adds, is not in it.
"""

from body3d.learn.crops import mpii
from body3d.learn.pose3d import RegressRun
from body3d.learn.pose3d_data import H36MPhotos, Mixed
from body3d.nets3d.builders import posenet_256
from body3d.skeletons import MPPE18
from body3d.train import Plan, Steps

run = RegressRun(
    data=Mixed(H36MPhotos(), mpii(), MPPE18),
    net=posenet_256,
    plan=Plan(epochs=25, lr=1e-3, schedule=Steps((17, 21))),
    batch=32,
    joints=MPPE18,
    true_depth=True,
    workers=None,
)
