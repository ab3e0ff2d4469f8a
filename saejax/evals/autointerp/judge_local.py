"""Judges by the log-probabilities of a language model on this machine.

A small model cannot answer a question, but it knows which of two texts is likelier:

  Local      s(e, w) = log p(e | w) - log p(e | a neutral text)
  Surprisal  s(e, w) = (log p(w | e) - log p(w | a neutral topic)) / tokens of w

both in nats, p of the tokens of one after those of the other in a form of
`judge_prompts`. The neutral term takes away how likely e, or w, is by itself.
`Surprisal` is the scorer of that name of delphi. Explanations are another judge's.

References:
  github.com/EleutherAI/delphi, scorers/surprisal.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from saejax.errors import InputError
from saejax.evals.autointerp import judge_embedding, judge_prompts
from saejax.evals.autointerp.judge import FUZZING, Judge
from saejax.evals.autointerp.judge_keyword import Keyword
from saejax.evals.autointerp.windows import LEVELS, Window
from saejax.models.model import Model
from saejax.models.tokenizer import Tokenizer

NEUTRAL_TEXT = "This is a passage of text."
NEUTRAL_TOPIC = "various things"
_MULTIPLE = 32  # lengths are padded to it, so that few shapes are compiled


def log_p(
  model: Model,
  pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
  *,
  batch: int = 16,
) -> list[Float[np.ndarray, "T"]]:
  """Computes log p of each token of a text, after another text and those before.

  Args:
    model: a causal model with a language head.
    pairs: ids of the text before, at least one, and of the text.
    batch: rows at once.

  Raises:
    InputError: a text before is empty, or an id is outside the vocabulary.
  """
  if any(not len(before) for before, _ in pairs):
    rule, remedy = "must not be empty", "begin with a token, such as the first"
    raise InputError("pairs", "a text before", rule, remedy)
  found: list[np.ndarray] = [np.zeros(0)] * len(pairs)
  order = np.argsort([len(a) + len(b) for a, b in pairs], kind="stable")
  for start in range(0, len(order), batch):
    some = [int(i) for i in order[start : start + batch]]
    rows = [[*pairs[i][0], *pairs[i][1]] for i in some]
    ids, mask = judge_embedding.padded(rows, batch, _MULTIPLE)
    model.check(ids, mask)
    values = np.asarray(_log_p(model, jnp.asarray(ids), jnp.asarray(mask)))
    for i, row, value in zip(some, rows, values, strict=False):
      found[i] = value[len(pairs[i][0]) - 1 : len(row) - 1].astype(float)
  return found


@jax.jit
def _log_p(
  model: Model, ids: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B T-1"]:
  """log p of the token after each."""
  found = jax.nn.log_softmax(model(ids, mask).astype(jnp.float32))[:, :-1]
  return jnp.take_along_axis(found, ids[:, 1:, None], axis=-1)[..., 0]


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
  """A language model that reads texts.

  Attributes:
    model: a causal model with a language head.
    tokenizer: its tokenizer.
    batch: texts at once.
  """

  model: Model
  tokenizer: Tokenizer
  batch: int = 16

  def __post_init__(self):
    _ = self.model.head  # refuses an encoder
    if self.start is None:
      rule = "must have a token that begins or ends a text"
      remedy = "use a model whose tokenizer has one"
      raise InputError("tokenizer", self.model.name, rule, remedy)

  @functools.cached_property
  def start(self) -> int | None:
    """The token before every text."""
    first = (*self.tokenizer.prefix, self.tokenizer.bos, self.tokenizer.eos)
    return next((token for token in first if token is not None), None)

  def log_p(
    self, pairs: Sequence[tuple[str, str]]
  ) -> list[Float[np.ndarray, "T"]]:
    """Computes log p of the tokens of each text after another.

    What is longer than the model reads loses its beginning, or, where the second
    text alone is longer than half of that, its end.

    Args:
      pairs: the text before, and the text.
    """
    encode = self.tokenizer.encode_batch
    before, texts = (encode(part) for part in zip(*pairs, strict=True))
    most, ids = self.model.max_positions, []
    for a, b in zip(before, texts, strict=True):
      b = b[: most // 2].tolist()
      ids.append(([self.start, *a.tolist()[-(most - len(b) - 1) :]], b))
    return log_p(self.model, ids, batch=self.batch)


@dataclasses.dataclass(frozen=True, eq=False)
class Local:
  """Judges by log p(explanation | text) - log p(explanation | neutral text).

  Attributes:
    reader: the model.
    explainer: who writes the explanations.
    prompts: folder of edited prompts; those of the package by default.
    threshold: least score of a yes, in nats.
  """

  reader: Reader
  explainer: Judge = Keyword()
  prompts: str = ""
  threshold: float = 0.0

  def explain(
    self, windows: Sequence[Window], silent: Sequence[Window] = ()
  ) -> str:
    return self.explainer.explain(windows, silent)

  def score(
    self, explanation: str, windows: Sequence[Window], question: str
  ) -> Float[np.ndarray, "N"]:
    return self._gains(explanation, [_asked(w, question) for w in windows])

  def simulate(
    self, explanation: str, windows: Sequence[Window]
  ) -> list[Float[np.ndarray, "T"]]:
    """The gain of each token over the text before it, at most 10 nats."""
    gains = [self._gains(explanation, _prefixes(w)) for w in windows]
    return [np.clip(np.diff(g, prepend=0), 0, LEVELS) for g in gains]

  def odd(self, windows: Sequence[Window]) -> int:
    return _least_fit(self, windows)

  def _gains(
    self, explanation: str, texts: Sequence[str]
  ) -> Float[np.ndarray, "N"]:
    form = judge_prompts.read("meaning", self.prompts)
    read = [form.filled(text=t)[1] for t in (NEUTRAL_TEXT, *texts)]
    found = self.reader.log_p([(text, f" {explanation}") for text in read])
    total = np.array([values.sum() for values in found])
    return total[1:] - total[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Surprisal:
  """Judges by log p(text | explanation) - log p(text | neutral topic), per token.

  Attributes: those of `Local`.
  """

  reader: Reader
  explainer: Judge = Keyword()
  prompts: str = ""
  threshold: float = 0.0

  def explain(
    self, windows: Sequence[Window], silent: Sequence[Window] = ()
  ) -> str:
    return self.explainer.explain(windows, silent)

  def score(
    self, explanation: str, windows: Sequence[Window], question: str
  ) -> Float[np.ndarray, "N"]:
    gains = self._gains(explanation, [_asked(w, question) for w in windows])
    return np.array([gain.mean() if len(gain) else 0.0 for gain in gains])

  def simulate(
    self, explanation: str, windows: Sequence[Window]
  ) -> list[Float[np.ndarray, "T"]]:
    """The gain of each token, at most 10 nats."""
    found = []
    for window in windows:
      gains = self._gains(explanation, _prefixes(window))
      total = np.array([gain.sum() for gain in gains])
      found.append(np.clip(np.diff(total, prepend=0), 0, LEVELS))
    return found

  def odd(self, windows: Sequence[Window]) -> int:
    return _least_fit(self, windows)

  def _gains(
    self, explanation: str, texts: Sequence[str]
  ) -> list[Float[np.ndarray, "T"]]:
    form = judge_prompts.read("topic", self.prompts)
    topics = [
      form.filled(explanation=e)[1] for e in (explanation, NEUTRAL_TOPIC)
    ]
    found = self.reader.log_p([(e, text) for e in topics for text in texts])
    pairs = zip(found[: len(texts)], found[len(texts) :], strict=True)
    return [told - neutral for told, neutral in pairs]


def _asked(window: Window, question: str) -> str:
  """The text of a window; with its marks where they are asked about."""
  return window.shown() if question == FUZZING else window.text


def _prefixes(window: Window) -> list[str]:
  """The text up to each token."""
  return ["".join(window.tokens[: i + 1]) for i in range(len(window.tokens))]


def _least_fit(judge: Judge, windows: Sequence[Window]) -> int:
  """The window that an explanation of the others fits least; -1 of fewer than 2."""
  if len(windows) < 2:
    return -1
  fit = []
  for i, window in enumerate(windows):
    others = [other for j, other in enumerate(windows) if j != i]
    explanation = judge.explain(others)
    fit.append(judge.score(explanation, [window], FUZZING)[0])
  return int(np.argmin(fit))
