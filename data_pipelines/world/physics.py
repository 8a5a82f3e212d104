"""Elastic balls in a box, solved from contact to contact in continuous time.

Between contacts everything moves in straight lines, so a path is exact at any frame rate.
"""

from typing import NamedTuple

import numpy as np

WALLS = ('left', 'top', 'right', 'bottom')
_MAX_CONTACTS = 10_000


class Bodies(NamedTuple):
  """State of n bodies; lengths in shorter sides, y points down."""

  position: np.ndarray  # [n, 2]
  velocity: np.ndarray  # [n, 2]
  radius: np.ndarray  # [n], for contacts between bodies.
  reach: np.ndarray  # [n], distance from the centre at which a wall is touched.
  mobility: np.ndarray  # [n], 1 / mass; 0 stands still for ever.
  solid: np.ndarray  # bool [n, n]: do these two bounce off each other?


class Hit(NamedTuple):
  time: float  # Seconds.
  bodies: tuple[int, ...]  # One body at a wall, or the two that hit each other.
  wall: str  # One of WALLS, or '' between bodies.
  speed: float  # Along the normal, in shorter sides a second.


def simulate(bodies: Bodies, box: tuple[float, float], seconds: float):
  """Runs from 0 to `seconds`.

  Returns (knots [k] in s, paths [k, n, 2], hits): positions are linear between knots, and every
  hit is a knot.
  """
  position, velocity = bodies.position.copy(), bodies.velocity.copy()
  low = np.repeat(bodies.reach[:, None], 2, axis=1)
  high = np.asarray(box) - low
  now, knots, paths, hits = 0.0, [0.0], [position.copy()], []
  for _ in range(_MAX_CONTACTS):
    wall_in, wall_at = _next_wall(position, velocity, low, high)
    pair_in, pair_at = _next_pair(position, velocity, bodies)
    step = min(wall_in, pair_in)
    if now + step >= seconds:
      break
    now += step
    position += velocity * step
    if wall_in <= pair_in:
      hits.append(_off_wall(now, wall_at, position, velocity, low, high))
    else:
      hits.append(_off_each_other(now, pair_at, position, velocity, bodies))
    knots.append(now)
    paths.append(position.copy())
  else:
    raise RuntimeError(
      f'{_MAX_CONTACTS} contacts in {now:.3f} s; bodies must have room between them: lower '
      'objects, sizes or speeds.'
    )
  knots.append(seconds)
  paths.append(position + velocity * (seconds - now))
  return np.array(knots), np.stack(paths), hits


def _next_wall(position, velocity, low, high):
  """Seconds to the first wall contact, and (body, axis)."""
  room = np.where(velocity > 0, high - position, position - low)
  speed = np.abs(velocity)
  wait = np.divide(np.maximum(room, 0), speed, where=speed > 0, out=np.full(speed.shape, np.inf))
  at = np.unravel_index(np.argmin(wait), wait.shape)
  return wait[at], at


def _next_pair(position, velocity, bodies: Bodies):
  """Seconds to the first contact of two bodies, and (one, other)."""
  # |p + v t| = r, the earlier root, for pairs that approach each other.
  p = position[:, None] - position[None]
  v = velocity[:, None] - velocity[None]
  r = bodies.radius[:, None] + bodies.radius[None]
  a, b, c = (v * v).sum(-1), (p * v).sum(-1), (p * p).sum(-1) - r * r
  root = b * b - a * c
  meets = (b < 0) & (root >= 0) & bodies.solid
  safe = np.where(meets, a, 1)
  wait = np.where(meets, np.maximum((-b - np.sqrt(np.maximum(root, 0))) / safe, 0), np.inf)
  at = np.unravel_index(np.argmin(wait), wait.shape)
  return wait[at], at


def _off_wall(now, at, position, velocity, low, high) -> Hit:
  body, axis = at
  speed = abs(velocity[at])
  far = velocity[at] > 0
  position[at] = high[at] if far else low[at]  # Exactly on it: no drift over many bounces.
  velocity[at] = -velocity[at]
  return Hit(now, (int(body),), WALLS[axis + 2 * int(far)], float(speed))


def _off_each_other(now, at, position, velocity, bodies: Bodies) -> Hit:
  one, other = at
  normal = position[one] - position[other]
  normal /= np.linalg.norm(normal)
  speed = -(velocity[one] - velocity[other]) @ normal
  share = 2 * speed / (bodies.mobility[one] + bodies.mobility[other])
  velocity[one] += share * bodies.mobility[one] * normal
  velocity[other] -= share * bodies.mobility[other] * normal
  return Hit(now, (int(one), int(other)), '', float(speed))
