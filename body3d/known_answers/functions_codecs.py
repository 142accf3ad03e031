"""Codecs, their losses and crops that published implementations answer for."""

import torch
from torch import Tensor

from body3d import crop
from body3d.codecs import dsnt as dsnt_codec
from body3d.codecs import peaks, pipnet, sampling, simcc
from body3d.codecs.base import to_fraction
from body3d.codecs.flow import RLE, Likelihood, RealNVP
from body3d.codecs.heatmap import gaussian_maps, in_view, msra_centre, msra_maps
from body3d.codecs.integral import SIKR, Integral, flat_softmax, symmetric_expectation
from body3d.codecs.offset import UDPOffset
from body3d.known_answers.question import Adapter, Question, published_weight
from body3d.losses import bone_loss, joint_mse, ohkm_mse, weighted_mean

__all__ = ["ADAPTERS"]


def _gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of, retain_graph=True)[0]


# ---- maps ----------------------------------------------------------------------------------------------------------
def _top(maps: Tensor) -> Tensor:
    return peaks.peaks(maps)[1].unsqueeze(-1)


def _dark(q: Question) -> dict[str, Tensor]:
    maps, kernel = q["heatmaps"], int(q["kernel"])
    blurred = peaks.gaussian_blur(maps, kernel, "zero")
    blurred = blurred * (maps.amax((-1, -2)) / blurred.amax((-1, -2)))[..., None, None]
    return {"coords": peaks.dark(maps, kernel), "maxvals": _top(maps), "blurred": blurred[:, :2]}


def _udp_dark(q: Question) -> dict[str, Tensor]:
    maps, kernel = q["heatmaps"], int(q["kernel"])
    xy, top = UDPOffset(kernel=kernel).cells(q["combined"])
    return {
        "coords": peaks.udp_dark(maps, kernel),
        "maxvals": _top(maps),
        "argmax": peaks.argmax(maps),
        "combined_coords": xy,
        "combined_maxvals": top.unsqueeze(-1),
    }


def _quarter_shift(q: Question) -> dict[str, Tensor]:
    maps = q["heatmaps"]
    w, h = q["output_size"].tolist()
    matrix = crop.crop_matrix(q["center"], 200 * q["scale"][:, 0], q["rot"].deg2rad(), (h, w), "msra")
    order = list(range(maps.shape[1]))
    for a, b in q["flip_pairs"].tolist():
        order[a], order[b] = b, a
    turned = maps.flip(-1)[:, order]
    return {
        "coords": peaks.quarter_shift(maps),
        "maxvals": _top(maps),
        "affine": matrix,
        "affine_inverse": crop.invert(matrix),
        "flipped": turned[:1, :2],
    }


def _targets(q: Question) -> dict[str, Tensor]:
    """Joints are counted as seen from a visibility of a half on, and stay at 0 in the maps below it or out of sight."""
    (w, h), sigma = q["heatmap_size"].tolist(), float(q["sigma"])
    xy = (q["joints"] * q["heatmap_size"] / q["image_size"]).unsqueeze(0)
    out = {}
    for name, make, centre in (("msra", msra_maps, msra_centre(xy)), ("dark", gaussian_maps, xy)):
        weight = q["visible"] * in_view(centre, (h, w), sigma)[0]
        out[name] = make(xy, (h, w), sigma)[0] * (weight > 0.5)[:, None, None]
        out[f"{name}_weight"] = weight.unsqueeze(-1)
    return out


def _ohkm(q: Question) -> dict[str, Tensor]:
    pred, target, weight = q["pred"].requires_grad_(), q["target"], q["weight"].squeeze(-1)
    hard = ohkm_mse(pred, target, weight, 8)
    return {
        "mse": joint_mse(pred, target, weight),
        "mse_unweighted": joint_mse(pred, target, torch.ones_like(weight)),
        "ohkm8": hard,
        "ohkm8_grad": _gradient(hard, pred),
        "ohkm5": ohkm_mse(pred, target, weight, 5),
    }


# ---- expectations --------------------------------------------------------------------------------------------------
def _dsnt(q: Question) -> dict[str, Tensor]:
    logits, target, sigma = q["logits"].requires_grad_(), q["target"], float(q["sigma"])
    p = flat_softmax(logits)
    xy = dsnt_codec.dsnt(p)
    distance, js = (xy - target).norm(dim=-1), dsnt_codec.js_divergence(p, target, sigma)
    loss = weighted_mean(distance + js, q["mask"])
    return {
        "heatmaps": p,
        "coords": xy,
        "euclidean": distance,
        "js": js,
        "kl": dsnt_codec.kl_divergence(p, target, sigma),
        "variance": dsnt_codec.variance_error(p, target, sigma),
        "loss": loss,
        "grad_logits": _gradient(loss, logits),
        "gauss": dsnt_codec.target_maps(target, (logits.shape[-2], logits.shape[-1]), sigma),
    }


def _integral_heads(q: Question) -> dict[str, Tensor]:
    """mmpose's two heads give the same numbers: cells i / w as fractions."""
    maps = q["maps"]
    grid = maps.shape[-2], maps.shape[-1]
    at = lambda beta: to_fraction(Integral(beta).cells(maps), grid, "msra")
    return {
        "ipr_beta1": at(1.0), "dsnt_beta1": at(1.0), "ipr_beta10": at(10.0), "dsnt_beta10": at(10.0),
        "heatmaps": flat_softmax(maps),
    }  # fmt: skip


def _sikr(q: Question) -> dict[str, Tensor]:
    logits, target = q["logits"].requires_grad_(), q["target"]
    h, w = logits.shape[-2:]
    out = {}
    for name, codec in (("softmax", SIKR(sigmoid=False, places="msra")), ("sigmoid", SIKR(places="msra"))):
        xy, scores = codec.cells(logits)
        xy = to_fraction(xy, (h, w), "msra").flatten(1) - 0.5
        loss = ((xy - target).abs() * q["weight"]).sum() / len(target)
        out |= {f"{name}_coords": xy, f"{name}_scores": scores.unsqueeze(-1), f"{name}_loss": loss}
        out[f"{name}_grad"] = _gradient(loss, logits)
    return out


def _sampling_argmax(q: Question) -> dict[str, Tensor]:
    logits = q["logits"].requires_grad_()
    samples = (logits.unsqueeze(-2) + sampling.gumbel(q["uniform"]) / q["tau"].to(logits)).softmax(-1)
    jitter = sampling.triangular(q["basis_uniform"])
    places = symmetric_expectation(samples, torch.arange(logits.shape[-1]) + jitter)
    return {
        "samples": samples,
        "eval": logits.softmax(-1),
        "triangular": jitter,
        "triangular_density": 1 - jitter.abs(),
        "integral": places,
        "grad_logits": _gradient(places.mean(), logits),
        "retrieved": sampling.interpolate(logits.softmax(-1), q["query"]),
    }


# ---- numbers, bins and cells ---------------------------------------------------------------------------------------
def _rle(q: Question) -> dict[str, Tensor]:
    flow = RealNVP()
    keys = {key: value.shape for key, value in flow.state_dict().items() if key != "mask"}
    filled = {key: published_weight(f"flow.{key}", shape, q.meta["seed"]) for key, shape in keys.items()}
    flow.load_state_dict(filled | {"mask": flow.mask})
    pred, logit = q["pred"].requires_grad_(), q["sigma_logit"].requires_grad_()
    raw, target = Likelihood(pred, logit.sigmoid(), flow), q["target"]
    scaled = ((pred - target) / raw.sigma).flatten(0, 1)
    latent, log_det = flow.to_latent(scaled)
    losses = {d: (RLE(d).joint_losses(raw, target) * q["weight"]).sum() / len(pred) for d in ("original", "mmpose")}
    return {
        "log_phi": flow.log_prob(scaled).view(*pred.shape[:2], 1),
        "latent": latent,
        "log_det": log_det,
        "inverse": flow.from_latent(latent),
        "loss": losses["original"],
        "loss_grad_pred": _gradient(losses["original"], pred),
        "loss_grad_sigma_logit": _gradient(losses["original"], logit),
        "loss_mmpose": losses["mmpose"],
        "loss_mmpose_grad_pred": _gradient(losses["mmpose"], pred),
    }


def _simcc(q: Question) -> dict[str, Tensor]:
    x, y, weight = q["x"].requires_grad_(), q["y"], q["weight"].squeeze(-1)
    each = simcc.kl_to_labels(x, q["target_x"]) + simcc.kl_to_labels(y, q["target_y"])
    kl = (each * weight).mean()
    smooth = [
        simcc.kl_to_labels(logits, simcc.smoothed_labels(index, logits.shape[-1]))
        for logits, index in zip((x, y), q["target_index"].unbind(-1), strict=True)
    ]
    summed = smooth[0] * x.shape[-1] + smooth[1] * y.shape[-1]
    return {
        "kl": kl,
        "kl_grad_x": _gradient(kl, x),
        "label_smooth_norm": ((smooth[0] + smooth[1]) * weight).mean(),
        "label_smooth_sum": (summed * weight).sum() / len(x),
    }


def _pipnet(q: Question) -> dict[str, Tensor]:
    maps = lambda *names: pipnet.PIPMaps(*(q[name] for name in names))
    raw = maps("cls", "x", "y", "nb_x", "nb_y")
    label = maps("label_cls", "label_x", "label_y", "label_nb_x", "label_nb_y")
    own, around, _ = pipnet.read_pip(raw)
    near = pipnet.nearest_points(q["mean_face"], around.shape[2])
    said = torch.cat([own, around.flatten(1, 2)], 1)
    cell = label.score.flatten(-2).argmax(-1)
    (own_raw, around_raw), (own_label, around_label) = pipnet.offsets_at(raw, cell), pipnet.offsets_at(label, cell)
    errors = [*(own_raw - own_label).unbind(-1), *(around_raw - around_label).unbind(-1)]
    return {
        "own_x": own[0, :, :1],
        "own_y": own[0, :, 1:],
        "neighbour_x": around[0, ..., 0],
        "neighbour_y": around[0, ..., 1],
        "neighbours": near,
        "merged": (pipnet.merge_weights(near, released=True) @ said)[0],
        "losses": torch.stack([(raw.score - label.score).square().mean(), *(e.abs().mean() for e in errors)]),
    }


def _bone(q: Question) -> dict[str, Tensor]:
    pred = q["pred"].requires_grad_()
    bones = [(p, i) for i, p in enumerate(q["parents"].tolist()) if p != i]
    loss = bone_loss(pred, q["target"], bones, over="batch")
    return {
        "loss": loss,
        "grad_pred": _gradient(loss, pred),
        "loss_weighted": bone_loss(pred, q["target"], bones, q["weight"][:, [i for _, i in bones]], over="batch"),
    }


ADAPTERS: dict[str, Adapter] = {
    "dark": _dark,
    "udp_dark": _udp_dark,
    "quarter_shift": _quarter_shift,
    "targets": _targets,
    "ohkm": _ohkm,
    "dsnt": _dsnt,
    "integral_heads": _integral_heads,
    "sikr": _sikr,
    "sampling_argmax": _sampling_argmax,
    "rle": _rle,
    "simcc": _simcc,
    "pipnet": _pipnet,
    "bone": _bone,
}
