"""Keys from (root, name, step): the step is the whole random state, so a resume repeats nothing."""

import zlib

import jax


def named(root: jax.Array, name: str, step=0) -> jax.Array:
  """The key of one use at one step; equal arguments, equal key, on any number of hosts."""
  return jax.random.fold_in(jax.random.fold_in(root, zlib.crc32(name.encode())), step)
