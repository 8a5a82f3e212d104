"""What the layers added to the tokens, used again while the tokens hardly change from step to step.

After TeaCache (arXiv 2411.19108): the modulated tokens that enter the first layer are compared with
those of the step before; their relative L1 changes are summed, and while the sum is below a limit
the layers are not run, and what they added last is added again.  Each modality has its sum and its
limit, and the layers run as soon as one is reached: sound is the more sensitive by far.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp

from sr4.core.av import AV
from sr4.models import block
from sr4.nn import modulation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """Of one condition's velocities, from a step to the next."""

  seen: AV  # [b s d], modulated tokens of the step before
  added: AV  # [b s d], by the layers when they ran last
  drift: AV  # fp32, summed since


class Reuse:
  """Stands around the layers of a model in one step (mmdit.MMDiT, `around`).

  Args:
    limits: AV of sums below which the layers are not run.
    states: what `kept` was in the step before, in the order of the calls; (): all layers run.
  """

  def __init__(self, limits: AV, states: tuple[State, ...]):
    self.limits, self.states, self.kept = limits, states, ()

  def __call__(self, layers: Callable, tokens: AV, contexts: AV) -> AV:
    def run():
      return each(lambda out, x: out.x - x.x, layers(tokens, contexts), tokens), zero

    seen = each(lambda x, context: modulation.modulate(x.x, *context.mod[:2]), tokens, contexts)
    zero = each(lambda _: jnp.float32(0), tokens)
    if not self.states:
      added, drift = run()
    else:
      before = self.states[len(self.kept)]
      drift = each(
        lambda sum, a, b, context: sum + change(a, b, context.valid),
        before.drift,
        seen,
        before.seen,
        contexts,
      )
      still = each(lambda sum, limit: sum < limit, drift, self.limits)
      skip = jnp.all(jnp.stack([x for x in still if x is not None]))
      added, drift = jax.lax.cond(skip, lambda: (before.added, drift), run)
    self.kept += (State(seen, added, drift),)
    return each(lambda x, more: block.Tokens(x.x + more, x.text), tokens, added)


def each(f: Callable, *trees: AV) -> AV:
  """f of each modality that the first tree has."""
  return AV(*(None if x[0] is None else f(*x) for x in zip(*trees)))


def change(now: jax.Array, before: jax.Array, valid: jax.Array) -> jax.Array:
  """Relative L1 of the tokens that there are, fp32."""
  now, before = (jnp.where(valid[..., None], x.astype(jnp.float32), 0) for x in (now, before))
  return jnp.sum(jnp.abs(now - before)) / jnp.sum(jnp.abs(before))
