"""What training can change of a published config, written back into it. No torch."""

import dataclasses
from typing import Any

from etude import arch


def rope(config: dict[str, Any], plan: arch.Decoder) -> dict[str, Any]:
    """Write the rope both ways, flat and as `rope_parameters`, from what the model does now.

    Args:
        config: a published config.
        plan: the model's description; one without rotary positions leaves the config as it is.
    """
    ropes = [
        op.rope for op in arch.mixers(plan.layers) if isinstance(op, arch.Attention | arch.MLA)
    ]
    turning = next((found for found in ropes if found), None)
    if turning is None:
        return config
    old = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    own = ("rope_theta", "partial_rotary_factor")
    kind = {k: v for k, v in old.items() if k not in own}
    if arch.Rope.read(config).scaling != turning.scaling:
        kind = {"rope_type": "yarn", **_yarn(turning.scaling)} if turning.scaling else {}
    both: dict[str, Any] = {"rope_theta": turning.theta}
    if turning.fraction != 1 or any("partial_rotary_factor" in part for part in (config, old)):
        both["partial_rotary_factor"] = turning.fraction
    name = kind.get("rope_type") or kind.get("type") or "default"
    return {
        **config,
        **both,
        "rope_scaling": None if name == "default" else {**kind, "rope_type": name},
        "rope_parameters": {**kind, "rope_type": name, **both},
    }


def _yarn(scaling: arch.YaRN) -> dict[str, Any]:
    fields = {field.name: getattr(scaling, field.name) for field in dataclasses.fields(scaling)}
    return {"original_max_position_embeddings": fields.pop("original_length"), **fields}
