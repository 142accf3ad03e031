"""HRNet-W32 (Sun et al., CVPR 2019) on the extended Leeds Sports Pose, with the paper's numbers for COCO.

The paper has no LSP. Targets and reading are DARK's in the project's own convention of pixels. The published figures of other sets
begin from ImageNet's weights: give HRNet's classification checkpoint as --start.
"""

from body3d.codecs import Heatmap
from body3d.learn.crops import lspet
from body3d.learn.pose2d import PoseRun
from body3d.nets.hrnet import hrnet_w32
from body3d.train import Plan, Steps

run = PoseRun(
    data=lspet(),
    net=lambda joints: hrnet_w32(joints, Heatmap()),
    plan=Plan(epochs=210, lr=1e-3, schedule=Steps((170, 200))),
    batch=32,
)
