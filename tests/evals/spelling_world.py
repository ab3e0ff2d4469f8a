"""A toy spelling task: letters, groups and words are directions.

x = u_letter + v_group, and x = u_letter + w_word for the words of the last group. A
faithful SAE has these directions as latents. In one that absorbs, each word of the
last group has a latent of its own, (u_letter + w_word) / sqrt(2), and the latent of
its letter is 0 there. One such latent is of too few words to be a split of the
letter.
"""

import dataclasses

import numpy as np
import scipy.sparse

C, GROUPS, PER_GROUP, D = 4, 5, 24, 40
LAST = GROUPS - 1


@dataclasses.dataclass(frozen=True, eq=False)
class World:
  """Words, and the latents of an SAE at them."""

  x: np.ndarray  # [W, d]
  letter: np.ndarray  # [W]
  absorbed: np.ndarray  # whether a word is in the last group [W]
  own: np.ndarray  # the latent of the word alone, in an SAE that absorbs [W]
  train: np.ndarray  # [W]
  letters: np.ndarray  # directions of letters [C, d]
  z: scipy.sparse.csr_array  # [W, n]
  directions: np.ndarray  # [n, d]


def world(absorbs: bool, *, noise: float = 0.0, seed: int = 0) -> World:
  """Draws the world.

  Args:
    absorbs: whether words of the last group absorb their letters.
    noise: standard deviation of noise in x.
    seed: of the directions, noise and split.
  """
  rng = np.random.default_rng(seed)
  V = np.linalg.qr(rng.standard_normal((D, D)))[0]
  u, v = V[:C], V[C : C + LAST + PER_GROUP]  # of letters; of groups and words
  letter = np.repeat(np.arange(C), GROUPS * PER_GROUP)
  group = np.tile(np.repeat(np.arange(GROUPS), PER_GROUP), C)
  word = np.tile(np.arange(PER_GROUP), C * GROUPS)
  last = group == LAST
  part = np.where(last, LAST + word, group)
  x = u[letter] + v[part] + noise * rng.standard_normal((len(letter), D))
  joint = (u[:, None] + v[LAST:]).reshape(-1, D) / np.sqrt(2)
  directions = np.concatenate([u, v, joint])
  own = C + len(v) + letter * PER_GROUP + word
  z = np.zeros((len(letter), len(directions)))
  rows = np.arange(len(letter))
  z[rows, letter], z[rows, C + part] = 1, 1
  if absorbs:
    z[last] = 0
    z[rows[last], own[last]] = np.sqrt(2)
  return World(
    x=x.astype(np.float32),
    letter=letter,
    absorbed=last,
    own=own,
    train=rng.random(len(letter)) < 0.6,
    letters=u,
    z=scipy.sparse.csr_array(z),
    directions=directions,
  )
