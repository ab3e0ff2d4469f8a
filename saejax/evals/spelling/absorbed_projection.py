"""Absorption by projection: which latents carry a letter's direction at a word.

For a word of a letter whose unit ground-truth probe is u, with d_f what a unit of
latent f adds to the reconstruction, c_f = cos(u, d_f) and the letter's main latents,

  p = <x, u>,   proj_f = z_f <u, d_f>,   main = sum of proj over main latents

Full absorption (0 or 1): all main latents are below 1e-8, and the latent of largest
proj has c >= 0.025 and proj >= 0.4 p, with p > 0.

Fraction: absorbers are the latents beside the main ones with c >= 0.1 and proj > 0;
A is the sum of the 3 largest proj. The fraction is 0 if p <= 0, main >= p or
A < 0.4 p, else 1 if main <= 0, else a / (a + main) with a = min(A, p - main). It jumps: where
the main latent carries a share lambda of p and one absorber the rest, it is
1 - lambda up to lambda = 0.6, then 0.

Both are means over the held-out words of a letter that its ground-truth probe finds,
and then over letters whose probe has an F1 above 0.6. A low score may also mean that
an SAE has no latent of the letter at all, as a random one: read it with F1 of the
main latents. The norm of a decoder row counts, so that rows need not have norm 1.

References:
  Karvonen et al., SAEBench: A Comprehensive Benchmark for Sparse Autoencoders in
  Language Model Interpretability, 2025, arXiv:2503.09532 (this version).
  Chanin et al., A is for Absorption, 2024, arXiv:2409.14507.
"""

import dataclasses
from typing import Any

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int

from saejax.errors import InputError
from saejax.evals.spelling import letter_probes

EPS = 1e-8
LEAST_COSINE = 0.025
LEAST_ABSORBER_COSINE = 0.1
LEAST_SHARE = 0.4
ABSORBERS = 3
LEAST_F1 = 0.6
LEAST_LETTERS = 20
_BLOCK = 256  # words whose latents are dense at once


@dataclasses.dataclass(frozen=True, eq=False)
class Projected:
  """Absorption at words.

  Attributes:
    full: whether the word is fully absorbed.
    fraction: fraction of absorption, in [0, 1].
  """

  full: Bool[np.ndarray, "W"]
  fraction: Float[np.ndarray, "W"]


@dataclasses.dataclass(frozen=True)
class Letter:
  """Absorption of one letter.

  Attributes:
    letter: number of the letter.
    words: held-out words that the ground-truth probe finds.
    f1: of the ground-truth probe on held-out words.
    sparse_f1: of the probe on the main latents.
    main: the main latents.
    fraction: mean fraction of absorption over words; NaN without words.
    full: share of fully absorbed words; NaN without words.
  """

  letter: int
  words: int
  f1: float
  sparse_f1: float
  main: tuple[int, ...]
  fraction: float
  full: float


@dataclasses.dataclass(frozen=True)
class Absorption:
  """Absorption of an SAE: its letters, and means over the usable ones.

  Attributes:
    letters: all letters.
    least_f1: F1 that the ground-truth probe of a usable letter exceeds.
  """

  letters: tuple[Letter, ...]
  least_f1: float

  @property
  def usable(self) -> tuple[Letter, ...]:
    """Letters with a ground-truth probe of sufficient F1."""
    return tuple(l for l in self.letters if l.f1 > self.least_f1 and l.words)

  def record(self) -> dict[str, Any]:
    """Returns means and standard deviations over usable letters, and details.

    Names are those of SAEBench; standard deviations divide by the number of
    letters.
    """
    usable = self.usable
    values = {
      "absorption_fraction_score": [l.fraction for l in usable],
      "full_absorption_score": [l.full for l in usable],
      "num_split_features": [len(l.main) for l in usable],
    }
    found: dict[str, Any] = {"letters": len(usable)}
    for name, numbers in values.items():
      found[f"mean_{name}"] = float(np.mean(numbers))
      found[f"std_dev_{name}"] = float(np.std(numbers))
    found["mean_sparse_f1"] = float(np.mean([l.sparse_f1 for l in usable]))
    found["details"] = [
      {name: v for name, v in dataclasses.asdict(l).items() if v == v}
      for l in self.letters
    ]
    return found


def projected(
  x: Float[np.ndarray, "W d"],
  z: Float[np.ndarray, "W n"],
  directions: Float[np.ndarray, "n d"],
  probe: Float[np.ndarray, "d"],
  main: Int[np.ndarray, "s"],
) -> Projected:
  """Computes the absorption of a letter at words.

  Args:
    x: activations at the words.
    z: their latents.
    directions: what a unit of each latent adds to the reconstruction.
    probe: ground-truth probe of the letter, of any norm.
    main: main latents of the letter.
  """
  u = np.asarray(probe, np.float64) / np.linalg.norm(probe)
  each = np.asarray(directions, np.float64) @ u
  norm = np.linalg.norm(directions, axis=-1)
  c = each / np.where(norm > 0, norm, 1)
  p, proj = np.asarray(x, np.float64) @ u, z * each
  own = proj[:, main].sum(axis=-1)
  top = proj.argmax(axis=-1)
  largest = np.take_along_axis(proj, top[:, None], axis=-1)[:, 0]
  silent = np.all(np.abs(z[:, main]) < EPS, axis=-1)
  strong = (p > 0) & (largest >= LEAST_SHARE * p)
  full = silent & (c[top] >= LEAST_COSINE) & strong
  others = np.where((c >= LEAST_ABSORBER_COSINE) & (proj > 0), proj, 0)
  others[:, main] = 0
  A = np.sort(others, axis=-1)[:, -ABSORBERS:].sum(axis=-1)
  a = np.minimum(A, p - own)
  shared = np.clip(a / np.where(a + own > 0, a + own, 1), 0, 1)
  none = (p <= 0) | (own >= p) | (LEAST_SHARE * p > A)
  return Projected(full, np.where(none, 0.0, np.where(own <= 0, 1.0, shared)))


def absorption(
  fitted: letter_probes.Fitted,
  x: Float[np.ndarray, "W d"],
  z: scipy.sparse.csr_array,
  directions: Float[np.ndarray, "n d"],
  *,
  least_f1: float = LEAST_F1,
  least_letters: int = LEAST_LETTERS,
) -> Absorption:
  """Computes the absorption of an SAE on first letters.

  Args:
    fitted: its probes, see `letter_probes.fit`.
    x: activations at the words of `fitted`.
    z: their latents.
    directions: what a unit of each latent adds to the reconstruction, such as
      `sae.direction(np.arange(sae.n))`.
    least_f1: F1 that the ground-truth probe of a usable letter exceeds.
    least_letters: least number of usable letters.

  Raises:
    InputError: fewer letters are usable, or the numbers of latents differ.
  """
  n = z.shape[1]  # pyright: ignore[reportOptionalSubscript]
  if n != len(directions):
    raise InputError(
      "directions",
      len(directions),
      f"must be one for each of {n} latents",
      "give the rows of the SAE's decoder",
    )
  found = []
  for place, letter in enumerate(fitted.truth.letters):
    words, split = fitted.true_positives(place), fitted.splits[place]
    parts = [
      projected(
        x[some],
        z[some].toarray(),
        directions,
        fitted.truth.weight[place],
        split.main,
      )
      for some in np.split(words, range(_BLOCK, len(words), _BLOCK))
      if len(some)
    ]
    means = [
      float(np.mean(np.concatenate([getattr(part, name) for part in parts])))
      if parts else np.nan
      for name in ("fraction", "full")
    ]  # fmt: skip
    found.append(
      Letter(
        int(letter),
        len(words),
        float(fitted.truth.f1[place]),
        split.f1[len(split.main) - 1],
        tuple(split.main.tolist()),
        *means,
      )
    )
  result = Absorption(tuple(found), least_f1)
  if len(result.usable) < least_letters:
    raise InputError(
      "letters",
      len(result.usable),
      f"must be at least {least_letters} with a probe of F1 above {least_f1}",
      "take more words, or another layer, where letters are linearly readable",
    )
  return result
