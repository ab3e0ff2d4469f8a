"""Absorption by effect: which latent carries a letter to the model's answer.

At a word whose letter the ground-truth probe finds while the probe on the letter's
main latents does not and these are all 0, every latent gets its effect on

  M = logit of the right letter - mean logit of the others

by integrated gradients from the clean latents z and error e = x - x_hat to zero, at
the token of the word alone, with left end points alpha_j = j / steps,

  effect_f = -z_f mean_j dM/dz_f,   effect of the error = -<e, mean_j dM/de>
  at (1 - alpha_j) z and (1 - alpha_j) e

Effects sum to M(0, 0) - M(z, e) exactly where M is linear; on a quadratic one this
one-sided sum has a gap proportional to 1 / steps. The paper has 6 steps, the
default of its library is 10.

A latent absorbs the letter if its effect is the largest in size, is negative, is
larger in size than the second by at least 1, and its decoder row has a cosine of at
least 0.025 with the probe. The rate of a letter is

  absorbed words / (sampled share of candidates * words that the probe finds)

References:
  Chanin et al., A is for Absorption, 2024, arXiv:2409.14507, section 5.
  Sundararajan et al., Axiomatic Attribution for Deep Networks, 2017,
  arXiv:1703.01365 (integrated gradients).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, PyTree

from saejax.errors import InputError
from saejax.evals.spelling import letter_probes
from saejax.evals.spelling.absorbed_projection import EPS, LEAST_COSINE
from saejax.interventions import operators
from saejax.sae.sae import SAE

STEPS = 6
LEAST_GAP = 1.0
MOST_WORDS = 200

Decode = Callable[[Float[Array, "n"]], Float[Array, "d"]]
# x [d] -> (latents [n], their decoder); see `coder`.
Coder = Callable[[Float[Array, "d"]], tuple[Float[Array, "n"], Decode]]
# (x [d], what is known of the word) -> logits [C]; see `first_letter.readout`.
Logits = Callable[[Float[Array, "d"], Any], Float[Array, "C"]]


@dataclasses.dataclass(frozen=True)
class Letter:
  """Absorption of one letter by effect.

  Attributes:
    letter: number of the letter.
    words: held-out words that the ground-truth probe finds.
    candidates: those of them that the main latents miss.
    sampled: candidates whose effects were computed.
    absorbed: (word, latent) of the absorbed ones among these.
    rate: the absorption rate; NaN without words.
  """

  letter: int
  words: int
  candidates: int
  sampled: int
  absorbed: tuple[tuple[int, int], ...]
  rate: float


def integrated(
  metric: Callable[[Float[Array, "d"]], Float[Array, ""]],
  z: Float[Array, "n"],
  e: Float[Array, "d"],
  decode: Decode,
  *,
  steps: int = STEPS,
) -> tuple[Float[Array, "n"], Float[Array, ""]]:
  """Computes the effects of latents and of the error by integrated gradients.

  Args:
    metric: M as a function of the activation.
    z: latents.
    e: error of the reconstruction.
    decode: z -> reconstruction.
    steps: number of points.

  Returns:
    (effect of each latent, effect of the error).
  """
  if steps < 1:
    raise InputError("steps", steps, "must be at least 1", "use 6 or more")
  at = lambda z, e: metric(decode(z) + e)
  slopes = lambda left: jax.grad(at, argnums=(0, 1))(left * z, left * e)
  left = 1 - jnp.arange(steps, dtype=jnp.float32) / steps
  of_z, of_e = jax.vmap(slopes)(left)
  return -z * of_z.mean(axis=0), -jnp.vdot(e, of_e.mean(axis=0))


def coder(sae: SAE) -> Partial:
  """Returns the latents of an activation with their decoder, for `effects`.

  Args:
    sae: the SAE of the site, in the inference form.

  Raises:
    InputError: it is a transcoder.
  """
  operators.splice(sae)  # refuses a transcoder
  return Partial(_coder, sae)


def _coder(sae: SAE, x: Float[Array, "d"]) -> tuple[Array, Decode]:
  out = sae.forward(x[None])
  decode = lambda z: sae.decode(z[None], out.statistics)[0]
  return out.latents.dense()[0], decode


def effects(
  logits: Logits,
  coder: Coder,
  x: Float[np.ndarray, "d"],
  about: PyTree,
  right: int,
  *,
  steps: int = STEPS,
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"], float]:
  """Computes the effects of the latents of one word on the answer.

  Args:
    logits: (x, about) -> logits of letters; a `jax.tree_util.Partial` where it
      holds arrays, as a model.
    coder: x -> (latents, their decoder).
    x: activation at the word.
    about: what else the logits depend on, such as the tokens of the prompt.
    right: number of the right letter.
    steps: points of the integral.

  Returns:
    (latents, effect of each, effect of the error).
  """
  whole = [f if isinstance(f, Partial) else Partial(f) for f in (logits, coder)]
  z, own, error = _effects(*whole, jnp.asarray(x), about, right, steps=steps)
  return np.asarray(z), np.asarray(own), float(error)


@partial(jax.jit, static_argnames="steps")
def _effects(
  logits: Partial,
  coder: Partial,
  x: Float[Array, "d"],
  about: PyTree,
  right: Int[Array, ""],
  *,
  steps: int,
) -> tuple[Float[Array, "n"], Float[Array, "n"], Float[Array, ""]]:
  def metric(x: Array) -> Array:
    found = logits(x, about)
    others = (jnp.sum(found) - found[right]) / (len(found) - 1)
    return found[right] - others

  z, decode = coder(x)
  return z, *integrated(metric, z, x - decode(z), decode, steps=steps)


def absorber(
  effect: Float[np.ndarray, "n"],
  cosine: Float[np.ndarray, "n"],
  *,
  least_gap: float = LEAST_GAP,
  least_cosine: float = LEAST_COSINE,
) -> int:
  """Returns the latent that absorbs the letter at a word, -1 if none does.

  Args:
    effect: effect of each latent on M where it is removed.
    cosine: of each decoder row with the letter's probe.
    least_gap: least difference in size from the second.
    least_cosine: least cosine of the latent.

  >>> absorber(np.array([-3.0, 0.5]), np.array([0.3, 0.0]))
  0
  >>> absorber(np.array([-3.0, 2.5]), np.array([0.3, 0.0]))
  -1
  """
  size = np.abs(effect)
  top = int(size.argmax())
  second = np.delete(size, top).max(initial=0)
  clear = effect[top] < 0 and size[top] - second >= least_gap
  return top if clear and cosine[top] >= least_cosine else -1


def absorption(
  fitted: letter_probes.Fitted,
  logits: Logits,
  coder: Coder,
  x: Float[np.ndarray, "W d"],
  about: PyTree,
  directions: Float[np.ndarray, "n d"],
  *,
  most_words: int = MOST_WORDS,
  steps: int = STEPS,
  seed: int = 0,
) -> tuple[Letter, ...]:
  """Computes the absorption of each letter by effects on the answer.

  Args:
    fitted: probes of the SAE, see `letter_probes.fit`.
    logits, coder, steps: as for `effects`.
    x: activations at the words of `fitted`.
    about: of each word, a pytree of arrays with words as first axis.
    directions: what a unit of each latent adds to the reconstruction.
    most_words: candidates of a letter whose effects are computed, at most.
    seed: of their choice.
  """
  rng = np.random.default_rng(seed)
  norm = np.linalg.norm(directions, axis=-1)
  unit = directions / np.where(norm > 0, norm, 1)[:, None]
  found = []
  for place, letter in enumerate(fitted.truth.letters):
    words, split = fitted.true_positives(place), fitted.splits[place]
    probe = fitted.truth.weight[place]
    cosine = unit @ (probe / np.linalg.norm(probe))
    missed = words[split.score[words] <= 0]
    # Of the words that the probe on main latents misses, a latent may be active.
    silent = [w for w in missed if _silent(coder, x[w], split.main)]
    chosen = np.sort(rng.permutation(np.asarray(silent, int))[:most_words])
    absorbed = []
    for w in chosen.tolist():
      own = jax.tree.map(lambda a, w=w: a[w], about)
      _, effect, _ = effects(logits, coder, x[w], own, int(letter), steps=steps)
      latent = absorber(effect, cosine)
      if latent >= 0:
        absorbed.append((w, latent))
    share = len(chosen) / max(len(silent), 1)
    rate = len(absorbed) / (share * len(words)) if len(chosen) else 0.0
    found.append(
      Letter(
        letter=int(letter),
        words=len(words),
        candidates=len(silent),
        sampled=len(chosen),
        absorbed=tuple(absorbed),
        rate=rate if len(words) else np.nan,
      )
    )
  return tuple(found)


def _silent(coder: Coder, x: np.ndarray, main: Int[np.ndarray, "s"]) -> bool:
  whole = coder if isinstance(coder, Partial) else Partial(coder)
  return bool(np.abs(np.asarray(_latents(whole, x))[main]).max() < EPS)


@jax.jit
def _latents(coder: Partial, x: Float[Array, "d"]) -> Float[Array, "n"]:
  return coder(x)[0]
