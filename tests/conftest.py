import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the project; what needs it is skipped where it is missing."""
    folder = Path(os.environ.get("BODY3D_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip("needs real photos, mocap and annotations beside the project (BODY3D_SHARED)")
    return folder


@pytest.fixture(scope="session")
def embedded_models() -> Path:
    """The embedded detector's models, fetched once; what needs them is skipped where they cannot be had."""
    from body3d.errors import InputError
    from body3d.weights import get_embedded

    try:
        return get_embedded()
    except InputError as error:
        pytest.skip(f"the embedded detector's models are not here: {error}")
