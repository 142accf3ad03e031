"""How what a network puts out stands for coordinates: one file per idea, one frozen value per codec. See `Codec`."""

from body3d.codecs.base import Codec, Mirrors, Places, Size
from body3d.codecs.dsnt import DSNT
from body3d.codecs.flow import RLE, Likelihood, RealNVP
from body3d.codecs.heatmap import Heatmap, msra_heatmap, udp_heatmap
from body3d.codecs.integral import SIKR, DebiasedIntegral, Integral
from body3d.codecs.offset import CAL, OffsetMaps, UDPOffset
from body3d.codecs.pipnet import PIPMaps, PIPNet
from body3d.codecs.regression import Regression
from body3d.codecs.sampling import SamplingArgmax
from body3d.codecs.simcc import Bins, SimCC
from body3d.codecs.wasserstein import HDM

__all__ = [
    "Codec", "Mirrors", "Places", "Size", "Heatmap", "msra_heatmap", "udp_heatmap", "UDPOffset", "CAL", "OffsetMaps", "Integral",
    "DebiasedIntegral", "SIKR", "DSNT", "SamplingArgmax", "SimCC", "Bins", "PIPNet", "PIPMaps", "Regression", "RLE", "Likelihood",
    "RealNVP", "HDM",
]  # fmt: skip
