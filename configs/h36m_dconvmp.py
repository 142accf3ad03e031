"""DconvMP (Li & Chan, ACCV 2014), both tasks at once, on Human3.6M; the paper's numbers of training are not known."""

from body3d.learn.pose3d import RegressRun
from body3d.learn.pose3d_data import H36MPhotos
from body3d.nets3d.builders import dconvmp_112
from body3d.skeletons import H36M17
from body3d.train import Plan

run = RegressRun(
    data=H36MPhotos(),
    net=dconvmp_112,
    plan=Plan(epochs=30, lr=1e-4),
    batch=128,
    joints=H36M17,
    workers=None,
)
