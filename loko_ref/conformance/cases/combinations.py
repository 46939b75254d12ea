"""Every valid combination of options, in a step and in a run; named by the options.

Networks, batch sizes and forgetting take turns over the combinations, so that every two values of
any two of them meet.  [LOKO-4, NOISE-7]
"""

from __future__ import annotations

from typing import Any

from loko_ref.conformance.cases.attention import TINY
from loko_ref.conformance.cases.model import loko_inputs, lora
from loko_ref.conformance.cases.registry import Draw, define
from loko_ref.network.model import mlp_spec
from loko_ref.textbook.loko import choices

__all__ = ["named"]

Inputs = dict[str, Any]
Spec = list[dict[str, Any]]

_NETWORKS: tuple[Spec, ...] = (
    mlp_spec([3, 4, 3], "tanh", lora(1, 2.0)),
    mlp_spec([3, 5, 3], "relu", lora(2, 3.0)),
    mlp_spec([4, 3, 2], "gelu", lora(2, 1.0, True)),
    TINY,
)
_FORGETTING: tuple[dict[str, float], ...] = (
    {},
    {"lam": 0.9, "q": 0.01},
    {"lam": 0.95},
    {"q": 0.02},
)
_STEPS = 3


def named(o: dict[str, Any]) -> str:
    """Return the name of the case of a combination of options."""
    parts = [o["observation"], o["noise"], o["timing"]]
    parts.append("dense" if o["covariance"] == "dense" else o["diagonal"])
    parts += ["implicit"] if o["solve"] == "implicit" else []
    return "-".join([*parts, *(["centred"] if o["center"] else [])])


def _inputs(draw: Draw, spec: Spec, options: dict[str, Any], batch: int, steps: int) -> Inputs:
    made = loko_inputs(draw, spec, options, batch, steps)
    if spec is TINY:
        made["x"] = draw(*((steps,) if steps else ()), batch, 3, 4)
    return made


for _k, _options in enumerate(choices()):
    for _operation, _steps in (("loko.step", 0), ("loko.run", _STEPS)):
        _turn = _k + _k // 4 + (_steps > 0)
        _spec, _batch = _NETWORKS[_turn % 4], 1 + (_k + _k // 3 + (_steps > 0)) % 2
        _chosen = _options | _FORGETTING[(_turn + _k // 16 + _k // 3) % 4]
        _text = ", ".join(
            f"{key}={value}" for key, value in _options.items() if value not in (False, "linear")
        )

        @define(
            _operation,
            named(_options),
            "",
            text=f"the combination {_text}",
            spec=_spec,
            shared=True,
            **_chosen,
        )
        def _(
            draw: Draw,
            dtype: str,
            spec: Spec = _spec,
            options: dict[str, Any] = _chosen,
            batch: int = _batch,
            steps: int = _steps,
        ) -> Inputs:
            return _inputs(draw, spec, options, batch, steps)
