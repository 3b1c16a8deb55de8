"""The objective that computes what a TRL loss computes: the one table of TRL's names of losses."""

from dataclasses import dataclass, field
from typing import Any

from prefopt.commands.convert_config import TrlConfig

_NLL = {"name": "nll", "reduction": "token_mean"}
_UNPAIRED = "no objective of labels is it; apo_zero learns from pairs"
_UNSMOOTHED = "no objective without a reference smooths labels"


@dataclass(frozen=True, slots=True)
class Loss:
    """What a recipe says for a `loss_type` of DPO."""

    name: str
    beta: str | None = "beta"
    """What the objective calls TRL's beta; None if it reads none."""
    parameters: dict[str, Any] = field(default_factory=dict)
    smoothed: bool = False
    """Whether TRL reads `label_smoothing` for it."""
    weight: float = 1.0
    """TRL's loss in units of ours."""


DPO_LOSSES = {
    "sigmoid": Loss("dpo"),
    "sigmoid_norm": Loss("dpo", parameters={"length_normalized": True}),
    "ipo": Loss("ipo", beta="tau"),
    "hinge": Loss("hinge"),
    "robust": Loss("robust_dpo", smoothed=True),
    "exo_pair": Loss("exo", smoothed=True),
    "nca_pair": Loss("nca"),
    "bco_pair": Loss("bco"),
    "sppo_hard": Loss("sppo", weight=2.0),
    "apo_zero": Loss("apo_zero"),
    "apo_down": Loss("apo_down"),
    "sft": Loss("nll", beta=None, parameters={"reduction": "token_mean"}),
}

LOSSES = {
    "dpo": (*DPO_LOSSES, "aot", "aot_unpaired", "discopop"),
    "kto": ("kto", "apo_zero_unpaired"),
    "cpo": ("sigmoid", "hinge", "ipo", "simpo", "alphapo"),
    "orpo": (),
}
"""Trainer -> the values of its `loss_type`."""


def objective_of(config: TrlConfig) -> dict[str, Any]:
    """The recipe's objective; a loss that has none is put on the config's list."""
    return _BUILDERS[config.trainer](config)


def _dpo(config: TrlConfig) -> dict[str, Any]:
    said = config["loss_type"]
    losses = [said] if isinstance(said, str) else said
    weights = config["loss_weights"] or [1.0] * len(losses)
    if len(weights) != len(losses):
        config.refuse("loss_weights", weights, f"{len(losses)} losses need as many weights")
    if any(weight < 0 for weight in weights):
        config.refuse("loss_weights", weights, "a weight is above 0")
    missing = [loss for loss in losses if loss not in DPO_LOSSES]
    if missing:
        config.refuse("loss_type", said, f"no objective is {' or '.join(missing)}")
    known = [(loss, weight) for loss, weight in zip(losses, weights, strict=False) if weight > 0]
    return _sum(
        [
            (_dpo_term(config, DPO_LOSSES[loss]), weight * DPO_LOSSES[loss].weight)
            for loss, weight in known
            if loss in DPO_LOSSES
        ]
    )


def _dpo_term(config: TrlConfig, loss: Loss) -> dict[str, Any]:
    term: dict[str, Any] = {"name": loss.name}
    if loss.beta is not None:
        term[loss.beta] = config["beta"]
    if loss.smoothed:
        term["label_smoothing"] = config["label_smoothing"]
    return term | loss.parameters


def _kto(config: TrlConfig) -> dict[str, Any]:
    if config["loss_type"] != "kto":
        config.refuse("loss_type", config["loss_type"], _UNPAIRED)
    keys = ("beta", "desirable_weight", "undesirable_weight")
    size = config["per_device_train_batch_size"]
    config.notes += [
        f"kto: the baseline is that of the whole step; TRL's is that of each {size} responses.",
        "kto: a prompt counts once in a step, with all its responses; TRL counts responses.",
    ]
    return {"name": "kto", **{key: config[key] for key in keys}}


def _cpo(config: TrlConfig) -> dict[str, Any]:
    loss, beta = config["loss_type"], config["beta"]
    # AlphaPO without its alpha is SimPO without the NLL.
    nll_weight = 0.0 if loss == "alphapo" else config["cpo_alpha"]
    if loss not in ("hinge", "ipo") and config["label_smoothing"]:
        config.refuse("label_smoothing", config["label_smoothing"], _UNSMOOTHED)
    if loss == "sigmoid":
        return {"name": "cpo", "beta": beta, "nll_weight": nll_weight or None}
    if loss in ("simpo", "alphapo"):
        margin = {"name": "simpo", "beta": beta, "gamma": config["simpo_gamma"]}
        return _sum([(margin, 1.0), (_NLL, nll_weight)])
    if loss == "hinge":
        # Ours ends at a margin in nats, TRL's at 1 in units of beta.
        hinge = {"name": "slic", "margin": 1 / beta, "nll_weight": None}
        return _sum([(hinge, beta), (_NLL, nll_weight)])
    config.refuse("loss_type", loss, "no objective without a reference is it")
    return {}


def _orpo(config: TrlConfig) -> dict[str, Any]:
    config.notes.append("orpo: the NLL is that of responses; TRL's is that of prompts as well.")
    return {"name": "orpo", "odds_weight": config["beta"]}


def _sum(terms: list[tuple[dict[str, Any], float]]) -> dict[str, Any]:
    """The only term as it is, several or a weighted one as a weighted sum."""
    weighty = [(term, weight) for term, weight in terms if weight]
    if [weight for _, weight in weighty] == [1.0]:
        return weighty[0][0]
    said = [term if weight == 1.0 else {**term, "weight": weight} for term, weight in weighty]
    return {"name": "weighted_sum", "terms": said}


_BUILDERS = {"dpo": _dpo, "kto": _kto, "cpo": _cpo, "orpo": _orpo}
