"""Published ways of finding everybody at once: networks, losses, grouping."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from body3d.bottomup import associative, grouping, higherhrnet, lightweight_openpose, openpose
from body3d.known_answers.question import Adapter, Network, Question
from body3d.skeletons import COCO17

__all__ = ["ADAPTERS", "NETWORKS"]


# ---- networks ------------------------------------------------------------------------------------------------------
def _openpose(system: str) -> Network:
    """The published port has a ReLU after the last heat maps, which ours has not."""
    net = openpose.openpose_body()

    def run(image: Tensor) -> list[Tensor]:
        heat, fields = net(image)[-1]
        return [fields.flatten(1, 2), heat.relu()]

    return Network(net, lambda state: openpose.from_caffe(state, net), run)


def _lightweight(system: str) -> Network:
    net = lightweight_openpose.lightweight_openpose()
    return Network(net, run=lambda image: [maps.flatten(1, -3) for stage in net(image) for maps in stage])


def _ae_hourglass(system: str) -> Network:
    net = associative.ae_hourglass_4().net
    return Network(net, run=lambda image: [torch.stack(net(image.permute(0, 3, 1, 2)), 1)])


def _ae_hrnet(system: str) -> Network:
    net = associative.ae_hrnet_w32().net
    rename = lambda state: associative.in_our_names(net, state)
    return Network(net, rename, lambda image: list(net(image)[0].chunk(2, 1)))


def _higherhrnet(system: str) -> Network:
    return Network(higherhrnet.higherhrnet_w32().net)


NETWORKS: dict[str, Callable[[str], Network]] = {
    "openpose_body": _openpose,
    "lightweight_openpose": _lightweight,
    "ae_hourglass_4": _ae_hourglass,
    "ae_hrnet_w32_mmpose": _ae_hrnet,
    "higherhrnet_w32": _higherhrnet,
}


# ---- functions -----------------------------------------------------------------------------------------------------
def _ae(q: Question) -> dict[str, Tensor]:
    tags = q["tag_values"].requires_grad_()
    push, pull = associative.tag_loss(tags, q["joint_valid"] > 0)
    (gradient,) = torch.autograd.grad(push + pull, tags)
    heat, tag_maps = q["det"][0].float(), q["tag"][0].float().movedim(-1, 1)
    reading = grouping.Reading(window=3, threshold=0.03)  # that of the release's parser
    found = grouping.group(heat, tag_maps, COCO17, reading, munkres)
    rows = lambda xy: torch.cat([xy, found.score[..., None], found.tag], -1)
    joint = torch.arange(len(heat)).expand(found.score.shape).flatten()
    shift = grouping.quarter(heat, joint, found.xy.flatten(0, 1)).unflatten(0, found.score.shape)
    # The release's places are from the corner of the first cell, half a cell from its centre.
    adjusted = torch.where((found.score > 0)[..., None], found.xy + shift + 0.5, 0.0)
    return {
        "push": push.detach()[None],
        "pull": pull.detach()[None],
        "grad_tag_values": gradient,
        "heatmap_loss": associative.heat_loss(q["det_pred"], q["det_target"], q["det_mask"]),
        "people": rows(found.xy),
        "people_adjusted": rows(adjusted),
    }


def munkres(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The Hungarian method in the order of the `munkres` package from version 1.1 on, which the release calls.

    Any solver finds matchings of the least cost; where there are several, as there often are once distances are rounded, the order
    in which zeros are looked for decides which. Rows must not be more than columns.
    """
    n = cost.shape[1]
    left = np.zeros((n, n))
    left[: len(cost)] = cost
    left -= left.min(1, keepdims=True)
    star = np.zeros((n, n), bool)
    for i, j in zip(*np.nonzero(left == 0), strict=True):
        star[i, j] = not (star[i].any() or star[:, j].any())
    while not star.any(0).all():
        i = j = 0
        prime, rows, columns = np.zeros((n, n), bool), np.zeros(n, bool), star.max(0)
        while True:
            zeros = (left == 0) & ~rows[:, None] & ~columns
            if not zeros.any():
                least = left[~rows][:, ~columns].min()
                left[rows] += least
                left[:, ~columns] -= least
                i = j = 0
                continue
            # The first row with a zero from the last place on, and in it the last zero, both cyclically.
            i = (i + int(np.roll(zeros.any(1), -i).argmax())) % n
            j = (j - 1 - int(np.roll(zeros[i], -j)[::-1].argmax())) % n
            prime[i, j] = True
            if not star[i].any():
                break
            rows[i], j = True, int(star[i].argmax())
            columns[j] = False
        path = [(i, j)]
        while star[:, j].any():
            i = int(star[:, j].argmax())
            path += [(i, j), (i, j := int(prime[i].argmax()))]
        for i, j in path:
            star[i, j] ^= True
    return np.arange(len(cost)), star[: len(cost)].argmax(1)


def _openpose_decode(q: Question) -> dict[str, Tensor]:
    """The network saw the image 184 pixels high and padded to whole cells; what it put out is read in pixels of the image."""
    height, width = size = tuple(q["image_size"].tolist())
    seen = 0.5 * 368 / height

    def in_pixels(maps: Tensor) -> Tensor:
        finer = openpose.enlarged(maps, (8 * maps.shape[-2], 8 * maps.shape[-1]))
        return openpose.enlarged(finer[..., : round(height * seen), : round(width * seen)], size)

    heat = in_pixels(q["heatmaps"][0, :-1])
    fields = in_pixels(q["paf"][0].unflatten(0, (-1, 2)))
    found = openpose.candidates(heat)
    people = openpose.assemble(found, fields)
    number = torch.arange(len(found.score))
    return {
        "candidate": torch.cat([found.xy, found.score[:, None], number[:, None]], 1),
        "subset": torch.cat([people.member, people.score[:, None], people.parts[:, None]], 1),
    }


ADAPTERS: dict[str, Adapter] = {"ae": _ae, "openpose_decode": _openpose_decode}
