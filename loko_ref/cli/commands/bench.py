"""``loko-ref bench``: time one LoKO step of a fixed problem."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

_CONFIG = "mlp_b1, mlp_b32, tf_small, roberta, vit, vit_100, or all."
_AS_JSON = "All four problems in both dtypes, as one document."
_CURVES = "Instead: how the cost grows with n and with T, at fixed widths."


def bench(
    config: Annotated[str, typer.Argument(help=_CONFIG)] = "all",
    dtype: Annotated[str, typer.Argument(help="float64 or float32.")] = "float64",
    min_time: Annotated[float, typer.Option(help="Seconds to repeat each step for.")] = 3.0,
    route: Annotated[str, typer.Option(help="fast or readable.")] = "fast",
    as_json: Annotated[bool, typer.Option("--json", help=_AS_JSON)] = False,
    curves: Annotated[bool, typer.Option(help=_CURVES)] = False,
) -> None:
    """Time one step; print JSON, one document and line per problem."""
    from loko_ref.fast import bench as timing
    from loko_ref.fast.bench import PROBLEMS
    from loko_ref.files.documents import document

    def measured(name: str, dtype: str) -> dict[str, Any]:
        return timing.measure(name, dtype, min_time=min_time, route=route)

    def show(name: str, content: dict[str, Any]) -> None:
        typer.echo(json.dumps(document(name, content), allow_nan=False))

    if curves:
        show("bench-curves", timing.curves(dtype))
    elif as_json and config == "all":
        cases = [(name, kind) for name in list(PROBLEMS)[:4] for kind in ("float64", "float32")]
        show("bench", {"rows": [measured(*case) for case in cases]})
    else:
        for name in list(PROBLEMS)[:4] if config == "all" else [config]:
            show("bench", measured(name, dtype))
