"""Networks from a crop to the 2D joints of one person, one file per paper. Builders give a `PoseNet`."""

from body3d.nets.chained import chained, chained_simplified
from body3d.nets.cpm import cpm, cpm_released
from body3d.nets.cpn import cpn_r50, cpn_r101
from body3d.nets.deeppose import deeppose
from body3d.nets.fpm import pyranet_2, pyranet_8, pyranet_8_released
from body3d.nets.hourglass import hourglass_1, hourglass_2, hourglass_4, hourglass_8
from body3d.nets.hrnas import hrnas_super, hrnas_super_released
from body3d.nets.hrnet import hrnet_w32, hrnet_w48
from body3d.nets.litehrnet import litehrnet_18, litehrnet_30, naive_litehrnet_18, naive_litehrnet_18_wide
from body3d.nets.mca import mca, mca_released
from body3d.nets.mspn import mspn_1, mspn_2, mspn_3, mspn_4
from body3d.nets.poseur import poseur_hrnet_w32, poseur_hrnet_w48, poseur_r50
from body3d.nets.resnet import (
    deeppose_r50,
    dsnt_r50,
    ipr_r50,
    pipnet_r18,
    rle_r50,
    rle_r50_mmpose,
    simcc_r50,
    simplebaseline_r50,
    simplebaseline_r101,
    simplebaseline_r152,
)
from body3d.nets.rmpe import fastpose_r50, rmpe_hourglass_4
from body3d.nets.tfpose import tfpose_r50
from body3d.nets.tokenpose import (
    tokenpose_b,
    tokenpose_l_d6,
    tokenpose_l_d24,
    tokenpose_s_v1,
    tokenpose_s_v2,
    tokenpose_t,
)
from body3d.nets.vitpose import (
    vitpose_b,
    vitpose_b_simple,
    vitpose_h,
    vitpose_h_simple,
    vitpose_l,
    vitpose_l_simple,
    vitpose_s,
)

__all__ = [
    "cpm", "cpm_released", "deeppose", "deeppose_r50", "dsnt_r50", "hourglass_1", "hourglass_2", "hourglass_4", "hourglass_8",
    "hrnet_w32", "hrnet_w48", "ipr_r50", "pipnet_r18", "rle_r50", "rle_r50_mmpose", "simcc_r50", "simplebaseline_r50",
    "simplebaseline_r101", "simplebaseline_r152", "poseur_hrnet_w32", "poseur_hrnet_w48", "poseur_r50", "tfpose_r50",
    "tokenpose_b", "tokenpose_l_d24", "tokenpose_l_d6", "tokenpose_s_v1", "tokenpose_s_v2", "tokenpose_t", "vitpose_b",
    "vitpose_b_simple", "vitpose_h", "vitpose_h_simple", "vitpose_l", "vitpose_l_simple", "vitpose_s", "chained",
    "chained_simplified", "mca", "mca_released", "pyranet_2", "pyranet_8", "pyranet_8_released",
    "cpn_r50", "cpn_r101", "mspn_1", "mspn_2", "mspn_3", "mspn_4", "fastpose_r50", "rmpe_hourglass_4",
    "litehrnet_18", "litehrnet_30", "naive_litehrnet_18", "naive_litehrnet_18_wide", "hrnas_super", "hrnas_super_released",
]  # fmt: skip
