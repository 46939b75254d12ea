"""Every valid combination of options, in a step and in a run; named by the options.

Networks, batch sizes and forgetting take turns over the combinations, so that every two values of
any two of them meet.  [LOKO-4, NOISE-7]
"""

from __future__ import annotations

from functools import partial
from typing import Any

from loko_ref.conformance.cases.attention import TINY
from loko_ref.conformance.cases.model import loko_inputs, lora
from loko_ref.conformance.cases.registry import Draw, Recipe, define
from loko_ref.network.model import mlp_spec
from loko_ref.textbook.loko import choices

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
_KINDS = ("tanh", "relu", "gelu", "transformer")
_FEW = 6
"""Most combinations for which cases on every network are built."""


def named(o: dict[str, Any]) -> str:
    """Return the name of the case of a combination of options."""
    parts = [o["observation"], o["noise"], o["timing"]]
    parts.append("dense" if o["covariance"] == "dense" else o["diagonal"])
    parts += ["implicit"] if o.get("solve") == "implicit" else []
    return "-".join([*parts, *(["centred"] if o["center"] else [])])


def _inputs(draw: Draw, spec: Spec, options: dict[str, Any], batch: int, steps: int) -> Inputs:
    made = loko_inputs(draw, spec, options, batch, steps)
    if spec is TINY:
        made["x"] = draw(*((steps,) if steps else ()), batch, 3, 4)
    return made


def on_networks(operation: str, chosen: dict[str, Any]) -> list[Recipe]:
    """Build cases of the combinations that agree with options on every network, if they are few.

    Parameters
    ----------
    operation : {"loko.step", "loko.run"}
        The operation.
    chosen : dict
        Options by name, ``beta``, ``lam`` and ``q`` among them.
    """
    agree = [o for o in choices() if all(o[k] == v for k, v in chosen.items() if k in o)]
    numbers = {k: chosen[k] for k in ("beta", "lam", "q") if k in chosen}
    steps = _STEPS if operation == "loko.run" else 0
    if len(agree) > _FEW or chosen.get("train", "factors") != "factors":
        return []
    found = []
    for o in agree:
        for k, (kind, spec) in enumerate(zip(_KINDS, _NETWORKS, strict=True)):
            batch, options = 1 + k // 2, o | _FORGETTING[k] | numbers
            name = "+".join([named(o), kind, *(f"{key}={value}" for key, value in numbers.items())])
            build = partial(_built, spec=spec, options=options, batch=batch, steps=steps)
            found.append(
                Recipe(
                    operation=operation,
                    name=name,
                    build=build,
                    options={"spec": spec, **options},
                    shared=True,
                    text=f"the combination {named(o)} on a network of {kind}, batch {batch}",
                )
            )
    return found


def _built(draw: Draw, dtype: str, **about: Any) -> Inputs:
    return _inputs(draw, **about)


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
