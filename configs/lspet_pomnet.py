"""POMNet (ECCV 2022) on episodes from the extended Leeds Sports Pose: six joints, as another person shows them.

Wrists and ankles are held out, to see whether what was never asked for is found (of both sides: mirrored photos show one as the
other). The paper has MP-100 and ResNets that begin from ImageNet, here they begin from nothing; Adam at 5e-4 for 210 epochs is its
plan.
"""

from body3d.learn.crops import lspet
from body3d.learn.pomnet_training import POMNetRun
from body3d.nets.pomnet import pomnet_r50
from body3d.train import Plan, Steps

run = POMNetRun(
    data=lspet(),
    net=pomnet_r50,
    plan=Plan(epochs=210, lr=5e-4, schedule=Steps((170, 200))),
    batch=16,
    held_out=("left_wrist", "right_wrist", "left_ankle", "right_ankle"),
)
