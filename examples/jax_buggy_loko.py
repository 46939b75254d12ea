"""jax_loko with one mistake: GELU by tanh, which is jax.nn.gelu's default."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp

from loko_ref.conformance.implementations.frameworks import from_step

_spec = importlib.util.spec_from_file_location(
    "jax_loko_with_a_mistake", Path(__file__).with_name("jax_loko.py")
)
jax_loko = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(jax_loko)
jax_loko.ACTIVATIONS["gelu"] = jax.nn.gelu  # the mistake: approximate=False is missing

IMPLEMENTATION = from_step(jax_loko.step, jnp.asarray)
