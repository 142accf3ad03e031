"""Crops by the batch, cut by several processes."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from body3d.errors import InputError

__all__ = ["load_crops"]


def load_crops(
    crops: Dataset, index: Int[Tensor, " N"], matrix: Float[Tensor, "N 2 3"], batch: int, workers: int
) -> Iterator[UInt8[Tensor, "B 3 h w"]]:
    """Batches of `crops[i, matrix]` in the order of `index`, by so many processes. InputError as of the crops."""
    asked = list(zip(index.tolist(), matrix.double().cpu(), strict=True))
    batches = [asked[k : k + batch] for k in range(0, len(asked), batch)]
    # Its own generator: the shared one is the network's, whose numbers must not depend on how crops are made.
    own = torch.Generator()
    loader = DataLoader(crops, batch_sampler=batches, num_workers=min(workers, len(batches)), generator=own)  # type: ignore[arg-type]
    try:
        yield from loader
    except InputError as error:  # of another process it is the last line of a traceback
        raise InputError(str(error).splitlines()[-1].removeprefix(f"{InputError.__module__}.InputError: ")) from None
