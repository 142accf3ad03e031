"""Further networks for the 2D pose of one person that published ones answer for."""

from collections.abc import Callable

from body3d.known_answers.question import Network
from body3d.nets.chained import SimplifiedChain

__all__ = ["NETWORKS"]


def _chained(system: str) -> Network:
    return Network(SimplifiedChain(16))


NETWORKS: dict[str, Callable[[str], Network]] = {"chained_naman": _chained}
