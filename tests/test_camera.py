"""The camera against OpenCV's own projection, and its inverses."""

import cv2
import numpy as np
import pytest
import roma
import torch

from body3d.camera import Camera, distort, undistort

D = torch.tensor([-0.2071, 0.2478, -0.0012, 0.0014, -0.0031], dtype=torch.float64)


def random_camera(seed: int = 0, distortion=D) -> Camera:
    g = torch.Generator().manual_seed(seed)
    R = roma.rotvec_to_rotmat(torch.randn(3, generator=g, dtype=torch.float64) * 0.3)
    t = torch.tensor([0.1, -0.2, 4.0], dtype=torch.float64)
    K = torch.tensor([[1145.0, 0, 512.5], [0, 1143.8, 515.4], [0, 0, 1]], dtype=torch.float64)
    return Camera(K, R, t, (1000, 1002), distortion)


def points(n: int = 50) -> torch.Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_projection_is_opencvs():
    camera, p = random_camera(), points()
    theirs, _ = cv2.projectPoints(
        p.numpy(), cv2.Rodrigues(camera.R.numpy())[0], camera.t.numpy(), camera.K.numpy(), camera.distortion.numpy()
    )
    np.testing.assert_allclose(camera.project(p).numpy(), theirs[:, 0], atol=1e-9)


def test_projection_of_a_batch_is_that_of_each():
    cameras = [random_camera(s) for s in range(3)]
    batch = Camera(*(torch.stack([getattr(c, f) for c in cameras]) for f in ("K", "R", "t")), (1, 1), D.expand(3, 5))
    p = points().expand(3, -1, -1)
    torch.testing.assert_close(batch.project(p), torch.stack([c.project(points()) for c in cameras]))


@pytest.mark.parametrize("distortion", [None, D])
def test_unproject_inverts_project(distortion):
    camera, p = random_camera(distortion=distortion), points()
    p = p * 0.5
    depth = camera.to_camera(p)[..., 2]
    torch.testing.assert_close(camera.unproject(camera.project(p), depth), p, atol=1e-6, rtol=0)


def test_undistort_inverts_distort():
    xy = torch.rand(100, 2, dtype=torch.float64) - 0.5
    torch.testing.assert_close(undistort(distort(xy, D), D), xy, atol=1e-8, rtol=0)


def test_crop_sees_the_warped_image():
    camera, p = random_camera(distortion=None), points()
    matrix = torch.tensor([[0.5, 0, -20.0], [0, 0.5, 13]], dtype=torch.float64)
    torch.testing.assert_close(camera.crop(matrix, (100, 100)).project(p), camera.project(p) * 0.5 + matrix[:, 2])


def test_guess():
    assert Camera.guess((480, 640)).K[0, 0] == pytest.approx(1.2 * 640)
    wide = Camera.guess((480, 640), fov=90.0)
    assert wide.K[0, 0].item() == pytest.approx(320.0)
    assert wide.K[:2, 2].tolist() == [319.5, 239.5]
    with pytest.raises(ValueError, match="positive number of pixels, got -5"):
        Camera.guess((480, 640), focal=-5.0)
    with pytest.raises(ValueError, match="between 0 and 180 degrees, got 200"):
        Camera.guess((480, 640), fov=200.0)
