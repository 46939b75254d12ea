"""What LTE costs on 1 to 1,024 nodes against data-parallel training, on paper.

    python examples/lte_cost.py [PLOT.svg]

The model and its assumptions stand in derivations/lte.md, [LTE-11]. One head a node, each node
works on its own samples (weak scaling); float32; the weights of 24 layers of 4096 x 4096; rank 16.
Only factors are counted: every layer is a LoRA site, and no replica is trained or sent.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Network:
    """What the model assumes of machine and network.  [LTE-11]."""

    bandwidth: float  # bytes per second, each way, of one node's link
    latency: float  # seconds per message
    flops: float  # floating-point operations per second of one node
    itemsize: int = 4  # bytes per number


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds of one step on one node, on average over a merge interval.  [LTE-11]."""

    compute: float  # forward and backward of a head's chunk
    merge: float  # forming W, a share of each step
    lte: float  # communication of LTE
    data_parallel: float  # communication of data-parallel training (ring all-reduce)
    lte_bytes: float  # received by one node per step


def costs(sizes, *, nodes: int, heads: int, r: int, merge_every: int, batch: int, network) -> Costs:
    """Seconds of one step of LoRA sites of `sizes` (o, i); a node computes `batch` samples."""
    weights = sum(o * i for o, i in sizes.values())
    factors = sum(r * (o + i) for o, i in sizes.values())  # of one head
    # an allgather's ring: nodes - 1 rounds, each brings the factors of one node's heads
    lte_bytes = network.itemsize * factors * heads * (nodes - 1) / nodes / merge_every
    lte = lte_bytes / network.bandwidth + (nodes - 1) * network.latency / merge_every
    # a ring all-reduce: 2 (nodes - 1) rounds of weights / nodes numbers
    dp_bytes = 2 * network.itemsize * weights * (nodes - 1) / nodes
    return Costs(
        compute=6 * batch * weights / network.flops,
        merge=2 * heads * r * weights / network.flops / merge_every,
        lte=lte,
        data_parallel=dp_bytes / network.bandwidth + 2 * (nodes - 1) * network.latency,
        lte_bytes=lte_bytes,
    )


SIZES = {str(j): (4096, 4096) for j in range(24)}
RANK = 16
ROWS = 8192  # samples x tokens of one node in a step
NODES = [2**k for k in range(11)]
NETWORKS = {
    "100 Gbit/s, 5 us": Network(bandwidth=12.5e9, latency=5e-6, flops=50e12),
    "1 Gbit/s, 50 us": Network(bandwidth=0.125e9, latency=50e-6, flops=50e12),
}
INTERVALS = (1, 8, 64)


def at(nodes: int, merge_every: int, network: Network):
    return costs(
        SIZES,
        nodes=nodes,
        heads=nodes,
        r=RANK,
        merge_every=merge_every,
        batch=ROWS,
        network=network,
    )


def table() -> str:
    lines = []
    for name, network in NETWORKS.items():
        lines.append(
            f"{name}: milliseconds per step, computing {at(1, 1, network).compute * 1e3:.1f}"
        )
        lines.append("nodes   data-parallel" + "".join(f"   LTE, T = {t:<3}" for t in INTERVALS))
        for nodes in NODES:
            dp = at(nodes, 1, network).data_parallel * 1e3
            row = f"{nodes:5}   {dp:13.2f}"
            for t in INTERVALS:
                c = at(nodes, t, network)
                row += f"   {(c.lte + c.merge) * 1e3:12.2f}"
            lines.append(row)
    return "\n".join(lines)


def plot(path: str) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "loko-ref", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9, 4), layout="constrained")
        for ax, (name, network) in zip(
            figure.subplots(1, 2, sharey=True), NETWORKS.items(), strict=False
        ):
            compute = at(1, 1, network).compute
            ax.axhline(compute, color="0.6", label="computing")
            ax.plot(
                NODES[1:],
                [at(n, 1, network).data_parallel for n in NODES[1:]],
                "k-",
                label="data-parallel, sending",
            )
            for j, t in enumerate(INTERVALS):
                found = [at(n, t, network) for n in NODES]
                ax.plot(
                    NODES[1:], [c.lte for c in found[1:]], f"C{j}-", label=f"LTE, T = {t}, sending"
                )
                ax.plot(NODES, [c.merge for c in found], f"C{j}:", label=f"LTE, T = {t}, merging")
            ax.set(title=name, xlabel="nodes = heads", xscale="log", yscale="log")
        figure.axes[0].set(ylabel="seconds per step")
        figure.axes[1].legend(fontsize=7)
        figure.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    print(table())
    if len(sys.argv) > 1:
        plot(sys.argv[1])
