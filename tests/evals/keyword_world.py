"""Windows of a latent that fires on a word, as strongly as one likes."""

import numpy as np

from saejax.evals.autointerp.windows import Window

WORDS = (
  *("the", "a", "house", "was", "green", "and", "they", "ran", "over", "hill"),
  *("before", "rain", "came", "down", "again", "on", "every", "road", "in"),
  *("town", "while", "people", "slept", "under", "trees"),
)


def window(rng, *, word="", value=0.0, length=32, key=(-1, -1), largest=1.0):
  """Random words, with one word at a random place, and the latent on it."""
  tokens = [f" {w}" for w in rng.choice(WORDS, length)]
  values = np.zeros(length)
  if word:
    at = int(rng.integers(length))
    tokens[at] = f" {word}"
    values[at] = value
  return Window(
    tuple(tokens), values, np.zeros(length, bool), largest=largest, key=key
  )


def active(count, *, word="cat", seed=0, most=1.0):
  """Windows with the word, where the latent is between most / 10 and most."""
  rng = np.random.default_rng(seed)
  values = most * np.linspace(1, 0.1, count)
  return [
    window(rng, word=word, value=v, key=(0, i * 32), largest=most)
    for i, v in enumerate(values)
  ]


def silent(count, *, word="", seed=1):
  """Windows where the latent is silent, with or without the word."""
  rng = np.random.default_rng(seed)
  return [window(rng, word=word, key=(1, i * 32)) for i in range(count)]
