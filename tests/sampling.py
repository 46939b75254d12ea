"""A seeded sample of everything: what of the tests runs, how much of it, and how to repeat it.

The default run takes a share of the parametrizations marked ``sampled`` and a share of the lengths
given to `count` and `sample`; the draw is a function of one seed, the same in every process.
``.ci/run`` takes larger shares under another seed each time; ``pytest --long`` takes all.
"""

import hashlib
import math
import os
from collections import defaultdict

LONG = False
"""Whether everything runs at full length (``--long``, or ``LOKO_REF_LONG=1``)."""
SEED = "0"
"""What the draws are a function of (``--sample-seed``, or ``LOKO_REF_SEED``)."""
SHARE = 1.0
"""By how much every share is larger than in the default run (``LOKO_REF_SHARE``)."""


def read_environment():
    """Set the three from the environment; subprocesses and xdist's workers find the same there."""
    global LONG, SEED, SHARE
    LONG = os.environ.get("LOKO_REF_LONG", "0") not in ("", "0")
    SEED = os.environ.get("LOKO_REF_SEED", "") or "0"
    SHARE = float(os.environ.get("LOKO_REF_SHARE", "") or 1)
    if not SHARE > 0:
        raise ValueError(f"LOKO_REF_SHARE: got {SHARE}, required a number above 0")


def repeat():
    """Return the variables that repeat this run's draws, as they are written before a command."""
    words = [f"LOKO_REF_SEED={SEED}"]
    words += [f"LOKO_REF_SHARE={SHARE:g}"] if SHARE != 1 else []
    return " ".join(words + (["LOKO_REF_LONG=1"] if LONG else []))


def count(few, whole):
    """Return how many of `whole` repetitions, steps or draws to take: `few` by default."""
    return whole if LONG else min(whole, math.ceil(few * SHARE))


def _rank(name):
    return hashlib.blake2b(f"{SEED}\0{name}".encode(), digest_size=8).digest()


def sample(items, share, *, by=None, name=None):
    """Draw a share of the items of each kind, and at least one.

    Parameters
    ----------
    items : iterable
    share : float or int
        A share (float, up to 1.0), or a number (int), of each kind, in the default run.
    by : callable, optional
        Gives an item's kind; by default all are of one.
    name : callable, optional
        Gives what the draw depends on beside the seed; by default an item's ``id``, so that all
        tests of a run draw the same cases, or else its position.

    Returns
    -------
    drawn : list
        In their order. The same seed draws from the larger share what it draws from the smaller.
    """
    items = list(items)
    if LONG or not items:
        return items
    names = map(name, items) if name else (getattr(x, "id", k) for k, x in enumerate(items))
    ranks = [_rank(one) for one in names]
    kinds = defaultdict(list)
    for k in sorted(range(len(items)), key=ranks.__getitem__):
        kinds[by(items[k]) if by else None].append(k)
    chosen = []
    for members in kinds.values():
        few = share if isinstance(share, int) else share * len(members)
        chosen += members[: count(few, len(members))]
    return [items[k] for k in sorted(chosen)]


read_environment()
