"""Rotations as six numbers, two vectors made orthonormal (Zhou et al., CVPR 2019), in the three orders in use.

columns: the matrix's first two columns, one after the other (Zhou's own code, manopth);
rows: its first two rows, one after the other (PyTorch3D);
interleaved: its first two columns read row by row (SPIN, HMR, VPoser).
"""

from typing import Literal

import roma
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["matrix_to_rot6d", "rot6d_to_matrix", "rot6d_to_matrix_symmetric"]

Layout = Literal["columns", "rows", "interleaved"]


def rot6d_to_matrix(r6: Float[Tensor, "*B 6"], layout: Layout) -> Float[Tensor, "*B 3 3"]:
    """Gram-Schmidt: the first vector keeps its direction."""
    R = roma.special_gramschmidt(_two_columns(r6, layout))
    return R.mT if layout == "rows" else R


def rot6d_to_matrix_symmetric(r6: Float[Tensor, "*B 6"], layout: Layout) -> Float[Tensor, "*B 3 3"]:
    """Both vectors turn by the same angle: their bisectors are kept ("robust" in manopth)."""
    a, b = torch.nn.functional.normalize(_two_columns(r6, layout), dim=-2).unbind(-1)
    middle, across = (torch.nn.functional.normalize(v, dim=-1) for v in (a + b, a - b))
    x, y = (middle + across) * 0.5**0.5, (middle - across) * 0.5**0.5
    R = torch.stack([x, y, torch.linalg.cross(x, y)], -1)
    return R.mT if layout == "rows" else R


def matrix_to_rot6d(R: Float[Tensor, "*B 3 3"], layout: Layout) -> Float[Tensor, "*B 6"]:
    """The numbers of a rotation matrix that the layout keeps."""
    match layout:
        case "columns":
            return R[..., :2].mT.flatten(-2)
        case "rows":
            return R[..., :2, :].flatten(-2)
        case "interleaved":
            return R[..., :2].flatten(-2)


def _two_columns(r6: Float[Tensor, "*B 6"], layout: Layout) -> Float[Tensor, "*B 3 2"]:
    return r6.unflatten(-1, (3, 2)) if layout == "interleaved" else r6.unflatten(-1, (2, 3)).mT
