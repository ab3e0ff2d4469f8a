"""Arms on several layers of a small causal model, or on text it generates.

Arms are the compared settings. Every group of arms has its own rows, harvested
into stores inside the run's folder; their name is the "data" of its points.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from saejax import models
from saejax.data import harvest, spec, streams
from saejax.data.store.reader import Store
from saejax.data.text import corpus as text
from saejax.evals import faithfulness, reconstruction
from saejax.models import generate, hub, tokenizer
from saejax.recipes import conditioned as recipes
from saejax.recipes import row_sparse
from saejax.runs import stores as run_stores
from saejax.sae import condition_preps, prep
from saejax.sae.context import Batch
from saejax.studies import arms
from saejax.training.config import TrainConfig

ROWS = 60_000  # training rows per layer; an eighth as many are held out
N, K = 256, 8  # latents, and active latents per row
EACH = "a group for each layer"
POINT = "resid_post"
CONTEXT = 128  # tokens per window, special tokens included
DOCUMENT_TOKENS = 508  # four windows: many documents rather than few long ones
OWN_TEXT = 1.5  # tokens written by the model for each row wanted
RANDOM_WINDOWS = 64  # windows of random tokens
LAYERS, OWN_TEXT_ROWS = "layers", "own text"
Group = tuple[list[dict[str, Any]], dict[str, Any]]
Rows3 = Float[np.ndarray, "rows layers d"]


def points(
  folder: pathlib.Path,
  model: str,
  config: TrainConfig,
  seeds: int,
  *,
  rows: int = ROWS,
  layers: int | None = None,
  corpus: str = "python-docs",
) -> Group:
  """Points of every group, and facts about its rows by name.

  Args:
    folder: of the run; stores are made in its folder "stores".
    model: a causal model, as in `harvest.model`.
    config: how arms are trained.
    seeds: SAEs of each arm.
    rows: training rows per layer.
    layers: number of layers, from the first; all by default.
    corpus: corpus that the model reads and that its own text is compared with.
  """
  site = harvest.HarvestConfig(
    model=model,
    point=POINT,
    corpus=corpus,
    rows=rows,
    held_out_rows=max(rows // 8, DOCUMENT_TOKENS),
    document_tokens=DOCUMENT_TOKENS,
    context=CONTEXT,
    outlier_multiple=0.0,  # so that all layers have the same tokens
    dir=str(folder / "stores"),
  )
  loaded = models.load(model)
  count = layers or loaded.config.layers
  found, data = _layers(folder, site, count, config, seeds)
  more, own = _own_text(folder, site, loaded, config, seeds)
  return found + more, data | own


# --- Several layers ----------------------------------------------------------


def _layers(
  folder: pathlib.Path,
  site: harvest.HarvestConfig,
  count: int,
  config: TrainConfig,
  seeds: int,
) -> Group:
  """One SAE of all layers against one per layer, and after a modulation."""
  train, held_out, about = aligned(site, count)
  rows = lambda group: mixed(train, held_out, group, seed=0, about=about)
  all_ = rows(range(count))
  options = arms.options(config, all_)
  made = [
    _group(f"layers G={count} {layer}", EACH, rows([layer]), config)
    for layer in range(count)
  ]
  made.append(_group("layers G=1", "one group", all_, config))
  recipes_ = {
    "topk": lambda k: row_sparse.topk(all_.d, N, k, **options),
    "tide": lambda k: recipes.tide(all_.d, N, k, timesteps=count, **options),
  }
  made += [
    arms.Arm(
      name=f"layers {name}",
      make=make,
      n=N,
      k=(K,),
      rows=all_,
      facts={"arm": name},
    )
    for name, make in recipes_.items()
  ]
  found = arms.run(folder, made, all_, config, seeds=seeds, measure=by_layer)
  return [{**p, "data": LAYERS} for p in found], {LAYERS: about}


def _group(
  name: str, label: str, rows: arms.Rows, config: TrainConfig
) -> arms.Arm:
  """SAEs of the layers that the rows are of, as one group."""
  options = arms.options(config, rows)
  del options["prep"]  # the recipe has its own
  cond = condition_preps.required(rows.train.cond)
  scale = condition_preps.per_condition(
    rows.train.x, cond, int(cond.max()) + 1
  ).scale
  scale = tuple(np.asarray(scale).tolist())
  return arms.Arm(
    name=name,
    make=lambda k: recipes.layergroup(rows.d, N, k, scale=scale, **options),
    n=N,
    k=(K,),
    rows=rows,
    facts={"arm": label},
  )


def aligned(
  site: harvest.HarvestConfig, count: int
) -> tuple[Rows3, Rows3, dict[str, Any]]:
  """Harvests equal tokens at layers 0 .. count-1: training, held out, facts.

  Args:
    site: settings of the harvest; its layer is replaced.
    count: number of layers.

  Returns:
    Training and held-out rows [rows, layers, d], and facts for results.json.

  Raises:
    InputError: the stores do not hold the same tokens in the same order.
  """
  pairs = [
    run_stores.harvested(dataclasses.replace(site, layer=layer))
    for layer in range(count)
  ]
  train, held_out = (_stacked(stores) for stores in zip(*pairs, strict=True))
  meta = pairs[0][0].meta
  about = {
    "model": meta["model"],
    "point": site.point,
    "layers": count,
    "corpus": meta["corpus"],
    "train_rows": len(train),
    "held_out_rows": len(held_out),
    "mean_norms": np.linalg.norm(train, axis=-1).mean(axis=0).tolist(),
  }
  return train, held_out, about


def _stacked(stores: Sequence[Store]) -> Rows3:
  streams.Stacked((), stores)  # checks their tokens
  layers = [
    np.concatenate([store.read(*interval) for interval in store.intervals])
    for store in stores
  ]
  return np.stack(layers, axis=1).astype(np.float32)


def mixed(
  train: Rows3,
  held_out: Rows3,
  group: Sequence[int],
  *,
  seed: int,
  about: dict[str, Any],
) -> arms.Rows:
  """Rows of a group of layers; `cond` is the place of a row's layer in it.

  Training has each token as often as the group has layers, at a layer drawn
  anew each time. Held out is every token at every layer.

  Args:
    train: training rows [rows, layers, d].
    held_out: held-out rows [rows, layers, d].
    group: indices of the group's layers.
    seed: seed of the order and of the layers drawn.
    about: facts for results.json.
  """
  epochs = streams.array_batches(
    {"x": train}, batch_rows=len(train), seed=seed, epochs=len(group)
  )
  drawn = list(streams.OneLayer(epochs, group, seed=seed))
  x, cond = (np.concatenate([b[name] for b in drawn]) for name in ("x", "cond"))
  every = held_out[:, list(group)].swapaxes(0, 1)
  stats = {"mean": x.mean(axis=0), "mean_square": (x**2).sum(axis=-1).mean()}
  return arms.Rows(
    train=Batch(x=x, cond=cond),
    held_out=Batch(
      x=every.reshape(-1, every.shape[-1]),
      cond=np.repeat(np.arange(len(group), dtype=np.int32), len(held_out)),
    ),
    prep=prep.from_stats("centre_scale", stats),
    about=about,
  )


def by_layer(trained: arms.Trained) -> list[dict[str, float]]:
  """Held-out FVU of each layer about its own mean: their mean and largest.

  Args:
    trained: the SAEs of an arm; cond of the held-out rows is the layer.

  Returns:
    mean_layer_fvu and worst_layer_fvu of each SAE.
  """
  held_out, fvus = trained.rows.held_out, []
  # The program of the evaluation of all layers, and not another.
  batch_rows = next(iter(arms.chunks(held_out))).rows
  cond = np.asarray(condition_preps.required(held_out.cond))
  for c in np.unique(cond):
    own = jax.tree.map(lambda a, c=c: a[cond == c], held_out)
    found = reconstruction.evaluate_many(
      trained.saes,
      arms.chunks(own),
      means=[trained.rows.mean] * len(trained.saes),
      frame="raw",
      batch_rows=batch_rows,
    )
    fvus.append([f.fvu for f in found])
  return [
    {"mean_layer_fvu": float(np.mean(own)), "worst_layer_fvu": max(own)}
    for own in zip(*fvus, strict=True)
  ]


# --- Its own text ------------------------------------------------------------


def _own_text(
  folder: pathlib.Path,
  site: harvest.HarvestConfig,
  model: models.Model,
  config: TrainConfig,
  seeds: int,
) -> Group:
  """SAEs of what the model writes against SAEs of what others wrote."""
  words = tokenizer.load(hub.resolve(site.model))
  layer = model.config.layers // 2
  site = dataclasses.replace(site, layer=layer)
  own = dataclasses.replace(
    site, corpus=samples(folder / "stores" / "own.jsonl", site, model, words)
  )
  nonsense = random_rows(site, words)
  measure = lambda trained: [
    {
      "shared": faithfulness.sfr(sae, following),
      "fake": faithfulness.ffr(sae, nonsense),
    }
    for sae, following in zip(
      trained.saes, [*trained.saes[1:], trained.saes[0]], strict=True
    )
  ]
  rows = {"own": arms.harvested(own), "read": arms.harvested(site)}
  made = [
    arms.Arm(
      name=f"text {kind}",
      make=lambda k, r=r: row_sparse.topk(r.d, N, k, **arms.options(config, r)),
      n=N,
      k=(K,),
      rows=r,
    )
    for kind, r in rows.items()
  ]
  found = arms.run(
    folder, made, rows["own"], config, seeds=seeds, measure=measure
  )
  facts = {kind: r.about for kind, r in rows.items()}
  return [{**p, "data": OWN_TEXT_ROWS} for p in found], {OWN_TEXT_ROWS: facts}


def samples(
  path: pathlib.Path,
  site: harvest.HarvestConfig,
  model: models.Model,
  words: tokenizer.Tokenizer,
) -> str:
  """The corpus of the model's own samples, which are drawn at the first call.

  Each is a window: what follows the prefix of the harvest, in general BOS,
  until the model ends it.

  Args:
    path: file of the token ids, written if it does not exist.
    site: settings of the harvest: prefix, context and numbers of rows.
    model: the causal model that is sampled from.
    words: its tokenizer, for the id that ends a sample.

  Returns:
    The corpus as `harvest.corpus` takes it, ids:FILE.
  """
  if not path.exists():
    prefix = spec.subject_of(site).prefix
    found = generate.samples(
      model,
      total_tokens=int(OWN_TEXT * (site.rows + site.held_out_rows)),
      max_tokens=site.context - len(prefix),
      prompt=prefix,
      end=words.eos,
    )
    draft = path.with_suffix(".draft")
    draft.parent.mkdir(parents=True, exist_ok=True)
    text.write_ids(draft, found.documents())
    draft.replace(path)
  return f"{text.IDS}{path}"


def random_rows(
  site: harvest.HarvestConfig, words: tokenizer.Tokenizer
) -> Float[np.ndarray, "rows d"]:
  """Activations of tokens drawn uniformly, special ones left out.

  Args:
    site: settings of the harvest: model, site and context.
    words: the tokenizer, for its vocabulary and special tokens.
  """
  source = spec.subject_of(site)
  before = len(source.prefix)
  drawn = faithfulness.random_ids(
    RANDOM_WINDOWS,
    site.context - before,
    words.vocabulary,
    leave_out=sorted(words.special_ids),
  )
  prefix = np.tile(np.asarray(source.prefix, np.int32), (RANDOM_WINDOWS, 1))
  ids = np.concatenate([prefix, drawn], axis=1)
  x = np.asarray(source.forward(ids, np.ones(ids.shape, bool)), np.float32)
  never = max(before, spec.drop_first(site, source))
  return x[:, never:].reshape(-1, source.d)
