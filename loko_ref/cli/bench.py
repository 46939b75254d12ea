"""``loko-ref bench``: time one LoKO step of a fixed problem."""

from __future__ import annotations

import json
from typing import Annotated

import typer

__all__ = ["bench"]


def bench(
    config: Annotated[
        str, typer.Argument(help="mlp_b1, mlp_b32, tf_small, roberta, vit, vit_100, or all.")
    ] = "all",
    dtype: Annotated[str, typer.Argument(help="float64 or float32.")] = "float64",
    min_time: Annotated[float, typer.Option(help="Seconds to repeat each step for.")] = 3.0,
    route: Annotated[str, typer.Option(help="fast or readable.")] = "fast",
    as_json: Annotated[
        bool, typer.Option("--json", help="All four problems of the table, in both dtypes.")
    ] = False,
    curves: Annotated[
        bool, typer.Option(help="Instead: how the cost grows with n and with T, at fixed widths.")
    ] = False,
) -> None:
    """Time one step; print JSON, a line a problem."""
    from loko_ref import bench as room
    from loko_ref.bench import PROBLEMS, measure

    if curves:
        print(json.dumps(room.curves(dtype)))
        return

    if as_json and config == "all":
        cases = [(name, kind) for name in list(PROBLEMS)[:4] for kind in ("float64", "float32")]
        print(json.dumps([measure(*case, min_time=min_time, route=route) for case in cases]))
        return
    names = list(PROBLEMS)[:4] if config == "all" else [config]
    for name in names:
        print(json.dumps(measure(name, dtype, min_time=min_time, route=route)), flush=True)
