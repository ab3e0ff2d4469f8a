"""Contrast: how far latents stand out that two stories of a subject differ in.

Each row has a subject and two stories, one that shows it strongly and one that
shows it weakly. With V1 and V2 [n] the means of z over the tokens of each story,
I the mean over the tokens of both, and I_bar the mean of I over rows,

  contrast distance      c = |V1 - V2|
  independence distance  u = |I - I_bar|
  scores of a row        max_i zscore(c), max_i zscore(u), max_i zscore(c + u)

where the z-score is over the n latents, with the unbiased standard deviation (1
where it is 0). Scores of an SAE are means over rows.

The reference implementation never adds to I_bar, so that I_bar = 0 and u = I: its
independence is the largest mean activation, whatever the subject. Scores here have
the mean over rows; `Contrast.compat` has those of the reference. Which tokens are
averaged is the caller's choice: the reference takes all, BOS included, which
should be left out (see `word_rows.texts`).

The largest possible z-score is (n - 1) / sqrt(n), and that of noise grows with n
too, so that only SAEs of equal width can be compared; score / sqrt(n) is given
next to it (our definition). Dead latents lower the standard deviation and so raise
the score.

References:
  Gulko et al., CE-Bench: Towards a Reliable Contrastive Evaluation Benchmark of
  Interpretability of Sparse Autoencoders, 2025, arXiv:2509.00691.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int

from saejax.errors import InputError
from saejax.evals.words import json_lines
from saejax.evals.words.word_rows import Encode
from saejax.features import reading

_PADDED = 32  # tokens of a story are padded to a multiple of it


@dataclasses.dataclass(frozen=True)
class Stories:
  """A subject, a story that shows it strongly, and one that hardly does."""

  subject: str
  strong: str
  weak: str


@dataclasses.dataclass(frozen=True, eq=False)
class Means:
  """Latents averaged over the tokens of texts.

  Attributes:
    mean: mean of each latent over the tokens of a text.
    tokens: number of tokens of each text.
  """

  mean: Float[np.ndarray, "R n"]
  tokens: Int[np.ndarray, "R"]


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
  """The three scores of each row, largest z-scores over latents."""

  contrastive: Float[np.ndarray, "R"]
  independent: Float[np.ndarray, "R"]
  interpretability: Float[np.ndarray, "R"]

  def means(self) -> dict[str, float]:
    """Returns the scores of the SAE, means over rows."""
    return {
      name: float(getattr(self, name).mean())
      for name in ("contrastive", "independent", "interpretability")
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Contrast:
  """Scores of an SAE on stories of subjects.

  Attributes:
    scores: scores of rows.
    compat: scores of rows with I_bar = 0, as in the reference implementation.
    latent: latent with the largest zscore(c + u) of each row.
    subjects: distinct subjects, in order of appearance.
    shift: mean of I - I_bar over the rows of each subject.
    strength: mean of zscore(c + u) over the rows of each subject.
    responsible: for each latent the place of the subject with its highest
      strength, -1 for latents without any distance.
  """

  scores: Scores
  compat: Scores
  latent: Int[np.ndarray, "R"]
  subjects: tuple[str, ...]
  shift: Float[np.ndarray, "S n"]
  strength: Float[np.ndarray, "S n"]
  responsible: Int[np.ndarray, "n"]

  @property
  def n(self) -> int:
    """Number of latents."""
    return len(self.responsible)

  def latents_of(self, subject: str, count: int = 10) -> Int[np.ndarray, "l"]:
    """Returns the latents responsible for a subject, strongest first.

    Args:
      subject: the subject.
      count: largest number of latents.

    Raises:
      InputError: there is no such subject.
    """
    if subject not in self.subjects:
      raise InputError(
        "subject",
        subject,
        "must be the subject of a row",
        f"choose one of {', '.join(self.subjects)}",
      )
    place = self.subjects.index(subject)
    own = np.flatnonzero(self.responsible == place)
    order = np.argsort(-self.strength[place, own], kind="stable")
    return own[order[:count]]

  def record(self) -> dict[str, float]:
    """Returns the scores, by width, and as in the reference implementation."""
    means, compat = self.scores.means(), self.compat.means()
    root = np.sqrt(self.n)
    return (
      means
      | {f"{name}_by_root_n": float(v / root) for name, v in means.items()}
      | {f"{name}_compat": v for name, v in compat.items()}
      | {"rows": len(self.latent), "n": self.n}
    )


def stories(lines: Iterable[str]) -> list[Stories]:
  """Returns the rows of JSON lines with subject, story1 and story2.

  Args:
    lines: lines of the file; story1 shows the subject strongly.

  Raises:
    InputError: a line is wrong, with its number, or there is none.
  """
  names = ("subject", "story1", "story2")
  found = [
    Stories(*(record[name] for name in names))
    for _, record in json_lines.records(
      lines, dict.fromkeys(names, str), field="stories"
    )
  ]
  if not found:
    rule = "must have at least one row"
    raise InputError("stories", "no lines", rule, "give a file with stories")
  return found


def means(encode: Encode, texts: Iterable[Float[np.ndarray, "T d"]]) -> Means:
  """Averages latents over the tokens of each text, one text at a time.

  Args:
    encode: the latents of rows, such as `jax.jit(sae.encode)`.
    texts: activations at the tokens of each text that are averaged.

  Raises:
    InputError: there is no text, or one has no tokens.
  """
  mean, tokens = [], []
  for number, x in enumerate(texts):
    if not len(x):
      raise InputError(
        "texts", f"text {number}", "must have tokens", "leave it out"
      )
    padded, real = reading.pad(np.asarray(x), -(-len(x) // _PADDED) * _PADDED)
    z = np.asarray(encode(padded), np.float64)[real]
    mean.append(z.mean(axis=0))
    tokens.append(len(x))
  if not mean:
    raise InputError("texts", "none", "must be at least one", "give stories")
  return Means(np.stack(mean), np.asarray(tokens))


def contrast(first: Means, second: Means, subjects: Sequence[str]) -> Contrast:
  """Computes the scores of an SAE.

  Args:
    first, second: means over the two stories of each row.
    subjects: subject of each row.

  Raises:
    InputError: numbers of rows or latents differ, there is no row, or only one
      latent.
  """
  _check(first, second, subjects)
  V1, V2 = first.mean, second.mean
  total = (first.tokens + second.tokens)[:, None]
  I = (V1 * first.tokens[:, None] + V2 * second.tokens[:, None]) / total
  shift = I - I.mean(axis=0)
  c, u = np.abs(V1 - V2), np.abs(shift)
  z = _zscore(c + u)
  names = tuple(dict.fromkeys(subjects))
  rows = [np.flatnonzero([s == name for s in subjects]) for name in names]
  strength = np.stack([z[own].mean(axis=0) for own in rows])
  moves = np.any(c + u > 0, axis=0)
  return Contrast(
    scores=_scores(c, u),
    compat=_scores(c, np.abs(I)),
    latent=z.argmax(axis=-1),
    subjects=names,
    shift=np.stack([shift[own].mean(axis=0) for own in rows]),
    strength=strength,
    responsible=np.where(moves, strength.argmax(axis=0), -1),
  )


def _scores(c: Float[np.ndarray, "R n"], u: Float[np.ndarray, "R n"]) -> Scores:
  return Scores(*(_zscore(a).max(axis=-1) for a in (c, u, c + u)))


def _zscore(a: Float[np.ndarray, "R n"]) -> Float[np.ndarray, "R n"]:
  sd = a.std(axis=-1, ddof=1, keepdims=True)
  sd = np.where(np.ptp(a, axis=-1, keepdims=True) == 0, 1, sd)
  return (a - a.mean(axis=-1, keepdims=True)) / sd


def _check(first: Means, second: Means, subjects: Sequence[str]) -> None:
  if first.mean.shape != second.mean.shape:
    raise InputError(
      "second",
      second.mean.shape,
      f"must have the rows and latents of first, {first.mean.shape}",
      "encode both stories of each row with one SAE",
    )
  rows, n = first.mean.shape
  if len(subjects) != rows or not rows:
    raise InputError(
      "subjects",
      f"{len(subjects)} subjects",
      f"must be one for each of {rows} rows, at least one",
      "repeat the subject of rows that share it",
    )
  if n < 2:
    rule = "must be at least 2 latents to compare one with the others"
    raise InputError("first", n, rule, "give a wider SAE")
