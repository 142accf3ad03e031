"""What moving and converting does to values with several fields."""

import torch

from body3d.camera import Camera
from body3d.types import Mesh


def test_a_floating_point_type_is_for_floating_point_numbers():
    """2049 and 70,000 are no numbers of half precision."""
    mesh = Mesh(torch.rand(3, 3), torch.tensor([[0, 2049, 70_000]]))
    for half in (mesh.to(torch.float16), mesh.to("cpu", torch.float16), mesh.to(torch.zeros(1, dtype=torch.float16))):
        assert half.verts.dtype == torch.float16
        assert torch.equal(half.faces, mesh.faces)
    assert mesh.to("meta").faces.device.type == mesh.to(device="meta").verts.device.type == "meta"
    assert Camera.pinhole(500.0, (4, 4)).to(torch.float64).K.dtype == torch.float64
