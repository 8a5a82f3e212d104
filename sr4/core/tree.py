"""Trees as flat dicts of names to arrays: how checkpoints, masks and tables see a model."""

import re

import jax


def name_of(path) -> str:
  """'video.blocks.qkv.kernel' for a path of jax.tree_util."""
  return jax.tree_util.keystr(path, simple=True, separator='.').removesuffix('.value')


def to_flat(tree) -> dict:
  return {name_of(path): x for path, x in jax.tree.leaves_with_path(tree)}


def from_flat(like, flat: dict):
  """The tree `like`, its leaves taken from `flat` by name.  KeyError for a name that is missing."""
  return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in to_flat(like)])


def matching(tree, patterns: tuple[str, ...]):
  """A tree of bools: does the leaf's name match any of these regular expressions?"""
  rules = [re.compile(p) for p in patterns]
  return jax.tree_util.tree_map_with_path(
    lambda path, _: any(rule.search(name_of(path)) for rule in rules), tree
  )


def count(tree) -> int:
  """Number of elements in all leaves (of arrays or of their shapes)."""
  return sum(x.size for x in jax.tree.leaves(tree))


def without_leaves(tree):
  """The tree with None in place of each leaf: what it knows besides arrays."""
  return jax.tree.map(lambda _: None, tree)


def abstract(fn, *args):
  """Shapes, dtypes and concrete layouts of fn(*args), without running it."""
  mesh = jax.sharding.get_mesh()

  def concrete(x):
    spec = x.sharding.spec if x.sharding else jax.P()
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.NamedSharding(mesh, spec))

  return jax.tree.map(concrete, jax.eval_shape(fn, *args))
