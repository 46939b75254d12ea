"""The split over processes changes no bit: tried with threads in place of MPI ranks."""

from __future__ import annotations

import numpy as np
import pytest
from lte_common import OPTIMIZERS, batches, config, lora_only, start, together

from loko_ref import lte
from loko_ref.errors import InputError
from loko_ref.lte.team import span
from loko_ref.network.model import mlp_spec

CASES = {
    "shared": {},
    "copies": {"realisation": "copies"},
    "B": {"reset": "B"},
    "AB": {"reset": "AB", "realisation": "copies", "merging": "incremental"},
    "replicated": {"data": "replicated", "reduction": "own"},
    "fresh": {"optimizer_state": "reset"},
    "mhlora": {"mode": "mhlora"},
}


def end(c: lte.LteConfig, steps: int, team=None, dtype: str = "float64"):
    more = {} if team is None else {"team": team}
    state, _ = lte.run(c, start(c, dtype=dtype, **more), batches(c, steps, dtype=dtype), **more)
    return lte.fingerprint(c, state, **more), state


@pytest.mark.sampled(0.3)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_split_gives_the_same_bits(case, optimizer) -> None:
    make = lora_only if case == "mhlora" else config
    c = make(optimizer=OPTIMIZERS[optimizer], heads=5, **CASES[case])
    want, serial = end(c, 5)
    for size in (1, 2, 3, 5):
        found = together(size, lambda team: end(c, 5, team))
        assert {digest for digest, _ in found} == {want}
        theta = np.concatenate([state.theta for _, state in found])
        np.testing.assert_array_equal(theta, serial.theta)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("widths", [[64, 128, 128, 10], [33, 65, 17, 3]])
def test_every_split_gives_the_same_bits_at_usual_sizes(dtype, widths) -> None:
    spec = mlp_spec(widths, "relu", {"r": 3, "alpha": 8.0})
    c = lte.LteConfig(spec=spec, heads=6, merge_every=3)
    want, _ = end(c, 7, dtype=dtype)
    for size in (2, 4, 6):
        assert {d for d, _ in together(size, lambda t: end(c, 7, t, dtype))} == {want}


def test_every_array_and_counter_enters_the_fingerprint() -> None:
    from dataclasses import fields, replace

    c = config(
        optimizer=OPTIMIZERS["loko"].__class__(observation="logits", p0=0.02), realisation="copies"
    )
    _, s = end(c, 4)
    seen = {lte.fingerprint(c, s)}

    def bump(a: np.ndarray) -> np.ndarray:
        a = a.copy()
        a.reshape(-1)[-1] = np.nextafter(a.reshape(-1)[-1], np.inf)
        return a

    count = 1
    for f in fields(s):
        value = getattr(s, f.name)
        if f.name == "first":
            continue
        if isinstance(value, int):
            changed = [value + 1]
        elif isinstance(value, dict):
            changed = [{**value, k: bump(v)} for k, v in value.items()]
        else:
            changed = [bump(value)]
        for new in changed:
            seen.add(lte.fingerprint(c, replace(s, **{f.name: new})))
            count += 1
    assert len(seen) == count


def test_more_processes_than_heads_are_refused() -> None:
    c = config()
    with pytest.raises(InputError, match="3 heads on 4 ranks"):
        together(4, lambda team: lte.init(c, team=team))


def test_spans_cover_the_heads_in_order() -> None:
    for heads in range(1, 12):
        for size in range(1, heads + 1):
            spans = [span(heads, k, size) for k in range(size)]
            assert [h for s in spans for h in range(heads)[s]] == list(range(heads))
            sizes = [s.stop - s.start for s in spans]
            assert max(sizes) - min(sizes) <= 1
            assert min(sizes) >= 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch", [3, 16])
def test_a_flat_product_is_taken_only_where_it_has_the_stacked_bits(dtype, batch) -> None:
    from loko_ref.lte.heads import _times

    rng = np.random.default_rng(0)
    for o, i in ((400, 400), (512, 300), (1024, 1024)):
        W = rng.standard_normal((o, i)).astype(dtype)
        x = rng.standard_normal((6, batch, i)).astype(dtype)
        dy = rng.standard_normal((6, batch, o)).astype(dtype)
        for heads in range(1, 7):
            np.testing.assert_array_equal(_times(x[:heads], W.T), x[:heads] @ W.T)
            np.testing.assert_array_equal(_times(dy[:heads], W), dy[:heads] @ W)
    spec = mlp_spec([400, 401, 400], "relu", {"r": 3, "alpha": 8.0})
    c = lte.LteConfig(spec=spec, heads=4, merge_every=2)
    want, _ = end(c, 3, dtype=dtype)
    assert {d for d, _ in together(2, lambda t: end(c, 3, t, dtype))} == {want}
