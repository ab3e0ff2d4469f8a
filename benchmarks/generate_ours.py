"""Generation with saejax, for generate.py; see `serving` for what it is asked."""

import functools
import hashlib

import jax
import serving

from saejax import models
from saejax.models import generate

load = functools.cache(models.load)  # once for all numbers of rows


def build(name, path, folder, file, prompts, tokens, threads):
  """A step generates `tokens` greedy tokens after each prompt.

  Args:
    name: unused, the only contender here.
    path: model, as `models.load` takes it.
    folder, file, threads: unused, of the peers.
    prompts: ids of each prompt.
    tokens: tokens per prompt.
  """
  model = load(path)

  def step():
    return generate.generate(
      model, prompts, max_tokens=tokens, temperature=0
    ).ids

  digest = hashlib.sha256(str(step().tolist()).encode()).hexdigest()
  return step, {"jax": jax.__version__, "ids": digest}


if __name__ == "__main__":
  serving.serve(build)
