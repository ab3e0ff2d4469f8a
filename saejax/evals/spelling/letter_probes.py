"""Probes of first letters: of activations, and of few latents.

Ground truth: one linear probe per letter on activations x, one against the rest,
with positives and negatives of equal weight in total. It is the minimum of the
convex loss, where the reference trains 50 epochs of Adam. The unit of activations
does not matter to its penalty.

k-sparse probes: the latents of a letter are ranked by the weights of a probe on z
with an L1 penalty, whose loss per letter is

  mean over words of the weighted log-loss + l1 sum_i |w_i|

and a logistic regression is fitted to the k latents of largest positive weight.
Splitting: from k = 1 on, k + 1 is accepted while F1 on held-out words rises by more
than tau over the best so far; the first that fails ends it. The accepted latents
are the letter's main latents, and their number is the split count.

So that the ranking does not hold all n latents of all words, it is over those that
are among the `screened` of largest difference of means for some letter (ours; the
reference has all).

References:
  Chanin et al., A is for Absorption, 2024, arXiv:2409.14507, section 4.
"""

import dataclasses

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int

from saejax.errors import InputError
from saejax.evals import metrics
from saejax.evals.probing import probe

TAU = 0.03
L1 = 0.01
LEAST_WORDS = 20
MOST = 10
SCREENED = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Truth:
  """The ground-truth probe of each letter.

  Attributes:
    letters: the letters [C], ascending.
    weight, bias: of the probes.
    score: of each word, positive where the probe finds the letter.
    f1: on held-out words.
  """

  letters: Int[np.ndarray, "C"]
  weight: Float[np.ndarray, "C d"]
  bias: Float[np.ndarray, "C"]
  score: Float[np.ndarray, "W C"]
  f1: Float[np.ndarray, "C"]

  def found(
    self, letter: Int[np.ndarray, "W"], place: int
  ) -> Bool[np.ndarray, "W"]:
    """Returns the words of a letter that its probe finds.

    Args:
      letter: letter of each word.
      place: place of the letter in `letters`.
    """
    return (letter == self.letters[place]) & (self.score[:, place] > 0)


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """The main latents of a letter.

  Attributes:
    main: the latents.
    f1: of the probes on 1, 2, ... latents, up to the first that was not accepted.
    score: of each word, by the probe on the main latents.
  """

  main: Int[np.ndarray, "s"]
  f1: tuple[float, ...]
  score: Float[np.ndarray, "W"]


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
  """All probes of an SAE, and the words that they were fitted to.

  Attributes:
    letter: letter of each word.
    train: words that probes were fitted to.
    truth: the ground-truth probes.
    splits: main latents of each letter of `truth`.
  """

  letter: Int[np.ndarray, "W"]
  train: Bool[np.ndarray, "W"]
  truth: Truth
  splits: tuple[Split, ...]

  def true_positives(self, place: int) -> Int[np.ndarray, "t"]:
    """Returns the held-out words of a letter that its probe finds.

    Args:
      place: place of the letter in `truth.letters`.
    """
    found = self.truth.found(self.letter, place) & ~self.train
    return np.flatnonzero(found)


def truth(
  x: Float[np.ndarray, "W d"],
  letter: Int[np.ndarray, "W"],
  train: Bool[np.ndarray, "W"],
  *,
  l2: float = 1.0,
  least_words: int = LEAST_WORDS,
) -> Truth:
  """Fits the ground-truth probes.

  Args:
    x: activations at words.
    letter: letter of each word.
    train: words that probes are fitted to; the others are held out.
    l2: L2 penalty, see `probe.logistic`, of activations that are divided by
      their standard deviation, one number for all dimensions.
    least_words: least number of words of a letter.

  Raises:
    InputError: a letter has fewer words, or none in one of the two parts.
  """
  letters = _letters(letter, train, least_words)
  y = letter[:, None] == letters
  variance = np.mean(np.square(x[train] - x[train].mean(axis=0)), dtype=float)
  scale = np.sqrt(max(variance, np.finfo(np.float32).tiny))
  fitted = probe.logistic(x[train] / scale, y[train], l2=l2, balanced=True)
  score = fitted.score(x / scale)
  f1 = [metrics.f1(score[~train, c] > 0, y[~train, c]) for c in
        range(len(letters))]  # fmt: skip
  return Truth(
    letters=letters,
    weight=fitted.weight / scale,
    bias=fitted.bias,
    score=score,
    f1=np.asarray(f1),
  )


def ranked(
  z: scipy.sparse.csr_array,
  letter: Int[np.ndarray, "W"],
  letters: Int[np.ndarray, "C"],
  train: Bool[np.ndarray, "W"],
  *,
  l1: float = L1,
  most: int = MOST,
  screened: int = SCREENED,
) -> Int[np.ndarray, "C k"]:
  """Ranks the latents of each letter by the weight of an L1 probe.

  Args:
    z: latents of words.
    letter: letter of each word.
    letters: the letters.
    train: words that the probe is fitted to.
    l1: penalty of the mean loss.
    most: number of latents per letter.
    screened: latents of each letter that are candidates for all.
  """
  y = letter[train, None] == letters
  own = z[np.flatnonzero(train)]
  gap = probe.mean_gap(own, y)
  size = min(screened, gap.shape[1])
  near = np.argpartition(-gap, size - 1, axis=-1)[:, :size]
  columns = np.unique(near)
  dense = own[:, columns].toarray()
  # The reference weighs positives by N_neg / N_pos, so that weights sum to about
  # 2 N; here they sum to N, and the loss is a sum over words.
  fitted = probe.logistic(dense, y, l2=1e-6, l1=l1 * len(y) / 2, balanced=True)
  # Of equal weights, such as 0, the one of the largest gap is first.
  order = np.lexsort((-gap[:, columns], -fitted.weight), axis=-1)
  return columns[order[:, :most]]


def split(
  z: scipy.sparse.csr_array,
  is_letter: Bool[np.ndarray, "W"],
  train: Bool[np.ndarray, "W"],
  order: Int[np.ndarray, "k"],
  *,
  tau: float = TAU,
) -> Split:
  """Finds the main latents of a letter.

  Args:
    z: latents of words.
    is_letter: whether a word has the letter.
    train: words that probes are fitted to; F1 is that of the others.
    order: latents of the letter, the best first.
    tau: least rise of F1 for a further latent.
  """
  dense = z[:, order].toarray()
  best, scores, f1 = 0, [], []
  for k in range(1, len(order) + 1):
    own = dense[:, :k]
    fitted = probe.logistic(own[train], is_letter[train], balanced=True)
    score = fitted.score(own)[:, 0]
    value = metrics.f1(score[~train] > 0, is_letter[~train])
    scores.append(score)
    f1.append(float(value))
    if k > 1 and value <= f1[best] + tau:
      break
    best = k - 1
  return Split(order[: best + 1], tuple(f1), scores[best])


def fit(
  x: Float[np.ndarray, "W d"],
  z: scipy.sparse.csr_array,
  letter: Int[np.ndarray, "W"],
  train: Bool[np.ndarray, "W"],
  *,
  truths: Truth | None = None,
  tau: float = TAU,
  l1: float = L1,
  most: int = MOST,
) -> Fitted:
  """Fits all probes of the task.

  Args:
    x: activations at words.
    z: their latents, see `word_rows.latents`.
    letter: letter of each word.
    train: words that probes are fitted to, see `probe.split`.
    truths: the ground-truth probes, where several SAEs share them; fitted with
      the defaults of `truth` otherwise.
    tau: least rise of F1 for a further latent.
    l1: penalty of the ranking.
    most: largest number of main latents.

  Raises:
    InputError: as `truth`.
  """
  own = truth(x, letter, train) if truths is None else truths
  order = ranked(z, letter, own.letters, train, l1=l1, most=most)
  splits = tuple(
    split(z, letter == c, train, order[place], tau=tau)
    for place, c in enumerate(own.letters)
  )
  return Fitted(letter=letter, train=train, truth=own, splits=splits)


def _letters(
  letter: Int[np.ndarray, "W"], train: Bool[np.ndarray, "W"], least: int
) -> Int[np.ndarray, "C"]:
  letters, count = np.unique(letter, return_counts=True)
  if len(letters) < 2:
    rule = "must have words of at least two letters"
    raise InputError("letter", len(letters), rule, "give words of all letters")
  few = count < least
  if few.any():
    raise InputError(
      "letter",
      dict(zip(letters[few].tolist(), count[few].tolist(), strict=True)),
      f"must have at least {least} words each",
      "leave these letters out, or take more words",
    )
  for name, part in (("train", train), ("held-out", ~train)):
    missing = np.setdiff1d(letters, letter[part])
    if len(missing):
      raise InputError(
        "train",
        missing.tolist(),
        f"must be letters of {name} words too",
        "split with another seed, or take more words",
      )
  return letters
