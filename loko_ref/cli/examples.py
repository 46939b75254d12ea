"""Examples of each command, as ``--help`` prints them."""

from __future__ import annotations

EXAMPLES = {
    "verify": (
        "loko-ref verify mine.py",
        "loko-ref verify mine.py --only 'kalman.*' --html report.html",
        "loko-ref verify --cmd ./harness --dtype float64",
        "loko-ref verify --trace run.npz",
    ),
    "init": ("loko-ref init torch", "loko-ref init cpp filter.cpp --only 'kalman.*'"),
    "operations": ("loko-ref operations", "loko-ref operations kalman.diagonal_update"),
    "case": (
        "loko-ref case lora.delta/tiny/float64",
        "loko-ref case lora.delta/tiny/float64 --python case.py",
    ),
    "mutants": ("loko-ref mutants --only 'SCALE-*'", "loko-ref mutants --score --only S-JITTER"),
    "properties": ("loko-ref properties mine.py --only 'kalman.*'", "loko-ref properties --list"),
    "protocol": ("loko-ref protocol", "loko-ref protocol --cmd ./harness"),
    "vectors export": ("loko-ref vectors export vectors --only 'lora.*'",),
    "vectors check": ("loko-ref vectors check vectors",),
    "vectors judge": ("loko-ref vectors judge vectors answers.npz",),
    "vectors schema": ("loko-ref vectors schema",),
    "train": (
        "loko-ref train --data digits --shift rotate90 --optimizer loko --optimizer adamw",
        "loko-ref train --data iris --optimizer loko,logits,p0=0.5 --json run.json",
    ),
    "explain": (
        "loko-ref explain --data digits --steps 2",
        "loko-ref explain tiny --html tiny.html",
        "loko-ref explain lte --html lte.html --heads 2 --merge-every 3",
        "loko-ref explain KAL-2",
        "loko-ref explain labels --matrix",
    ),
    "compare online": ("loko-ref compare online --quick --json quick.json --plot pictures",),
    "compare report": ("loko-ref compare report quick.json --json results.json --plot pictures",),
    "compare lte": ("loko-ref compare lte --quick --json lte.json",),
    "lte": ("loko-ref lte --data digits --heads 4 --rank 4",),
    "certify": ("loko-ref certify --operation 'kalman.*'",),
    "bench": ("loko-ref bench mlp_b1 float64",),
    "schema": ("loko-ref schema verify",),
}
"""Command -> command lines."""


def epilog(command: str) -> str:
    """Return the examples of a command as the end of its help: a list, one line each."""
    return "\n\n".join(["Examples:", "", *(f"- `{line}`" for line in EXAMPLES[command])])
