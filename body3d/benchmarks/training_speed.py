"""How fast lifters train: batches gathered where the data lies, against a DataLoader that is fed single samples.

`body3d bench train` prints it. The second is the shape of the published loops.
"""

import time
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, TensorDataset

from body3d.lift.baseline import SimpleBaseline3D

FRAMES, BATCH = 200_000, 1024
PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm"}

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


def bench_training(steps: int = 20) -> dict[str, dict[str, float]]:
    """Frames per second of feeding alone and of whole steps of SimpleBaseline-3D (1024 wide), and where a step's time goes."""
    xy, xyz = torch.randn(FRAMES, 32), torch.randn(FRAMES, 48)

    def gathered() -> Iterable[tuple[Tensor, Tensor]]:
        for index in torch.randperm(FRAMES).split(BATCH):
            yield xy[index], xyz[index]

    # Pairs of tensors by number, collated one by one, as the published loops have them.
    loader = DataLoader(TensorDataset(xy, xyz), BATCH, shuffle=True)
    feeds: dict[str, Batches] = {"gathered": gathered, "DataLoader": lambda: loader}
    net = SimpleBaseline3D(32, 48)
    step = _step(net)
    rates: dict[str, dict[str, list[float]]] = {name: {"feed": [], "whole": []} for name in feeds}
    for _ in range(3):  # in turns, so that what else runs on the machine meets both
        for name, feed in feeds.items():
            rates[name]["feed"].append(_rate(feed, lambda x, y: None, steps))
            rates[name]["whole"].append(_rate(feed, step, steps))
    median = lambda values: sorted(values)[len(values) // 2]
    table = {
        name: {
            "frames per second, feeding alone": median(r["feed"]),
            "frames per second, whole steps": median(r["whole"]),
        }
        for name, r in rates.items()
    }
    table["gathered over DataLoader"] = {
        key: table["gathered"][key] / table["DataLoader"][key] for key in table["gathered"]
    }
    table["a step"] = {"share of the time in matrix products": _products(gathered, step, steps)}
    return table


def _step(net: SimpleBaseline3D) -> Callable[[Float[Tensor, "B I"], Float[Tensor, "B O"]], None]:
    net.train()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)

    def step(x: Float[Tensor, "B I"], y: Float[Tensor, "B O"]) -> None:
        loss = (net(x) - y).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _rate(feed: Batches, use: Callable[[Tensor, Tensor], object], steps: int) -> float:
    batches = iter(feed())
    use(*next(batches))
    began = time.perf_counter()
    for _ in range(steps):
        use(*next(batches))
    return steps * BATCH / (time.perf_counter() - began)


def _products(feed: Batches, step: Callable[[Tensor, Tensor], None], steps: int) -> float:
    batches = iter(feed())
    step(*next(batches))
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        for _ in range(steps):
            step(*next(batches))
    own = {event.key: event.self_cpu_time_total for event in trace.key_averages()}
    return sum(t for key, t in own.items() if key in PRODUCTS) / sum(own.values())
