"""What of a device's memory the saved activations take, read from the compiled program.

A layer's inputs (and whatever else its rematerialisation policy keeps) are stacked by the forward
loop over layers, for the backward loop to read.  In the program that is an element of a `while`'s
state that its body updates slice by slice, and that another `while` takes and does not update.
"""

from sr4.planning import hlo

PASSED_ON = ('bitcast', 'copy', 'opt-barrier', 'copy-start', 'copy-done', 'async-done')


def stacked(module: hlo.Module) -> dict[int, float]:
  """{memory space: bytes} of the stacks that one loop writes for another to read, with padding.

  hlo.HBM are the device's saved activations, hlo.HOST those that are offloaded.
  """
  found = {hlo.HBM: 0.0, hlo.HOST: 0.0}
  for computation in module.computations.values():
    for loop in computation:
      if loop.op != 'while':
        continue
      for i in updated(module, computation, loop):
        array = loop.types[i]
        if array.space in found and goes_on(module, computation, loop, i):
          found[array.space] += array.held
  return found


def updated(module: hlo.Module, computation, loop: hlo.Instruction) -> list[int]:
  """Elements of a loop's state, as long as it has steps, that it writes a slice of in each.

  One longer, where the compiler has peeled a step off, which then stands beside the loop.
  """
  inner, steps = module.body(loop), module.trips(computation, loop)
  root = inner.root
  if root.op != 'tuple' or len(root.operands) != len(loop.types):
    return []
  return [
    i
    for i, name in enumerate(root.operands)
    if loop.types[i].dims[:1] in ((steps,), (steps + 1,))
    and updates(module, inner, inner.by_name[name])
  ]


def updates(module: hlo.Module, computation: hlo.Computation, x: hlo.Instruction) -> bool:
  """Is it an update of a slice, or a fusion or an asynchronous end of one?"""
  if x.op in ('dynamic-update-slice', 'dynamic-update-slice-start', 'async-start'):
    return x.op != 'async-start' or 'dynamic-update-slice' in x.name
  if x.op == 'get-tuple-element':
    source = computation.operand(x)
    return source.op == 'fusion' and updates_part(module, source, x.number('index'))
  if x.op in ('bitcast', 'copy', 'async-done', 'async-update', 'dynamic-update-slice-done'):
    return bool(source := computation.operand(x)) and updates(module, computation, source)
  return x.op == 'fusion' and updates_part(module, x, 0)


def updates_part(module: hlo.Module, fusion: hlo.Instruction, part: int) -> bool:
  inner = module.computations[fusion.called[0]]
  root = inner.root
  if root.op == 'tuple':
    root = inner.by_name[root.operands[part]]
  return updates(module, inner, root)


def goes_on(module: hlo.Module, computation, loop: hlo.Instruction, i: int) -> bool:
  """Does another loop take this element of a loop's result, to read it only?"""
  frontier = [
    x
    for x in computation.users[loop.name]
    if x.op == 'get-tuple-element' and x.number('index') == i
  ]
  while frontier:
    x = frontier.pop()
    for user in computation.users[x.name]:
      if user.op in PASSED_ON or updates(module, computation, user):
        frontier.append(user)
      elif user.op == 'tuple':
        at = [k for k, name in enumerate(user.operands) if name == x.name]
        for taker in computation.users[user.name]:
          if taker.op == 'while' and not set(at) & set(updated(module, computation, taker)):
            return True
  return False
