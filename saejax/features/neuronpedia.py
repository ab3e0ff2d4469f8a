"""Writes latents as SAEDashboard does for Neuronpedia: JSON files of features.

    FOLDER/batch-0.json ...     {model_id, layer, sae_set, sae_id_suffix, features}
    FOLDER/skipped_indexes.json latents that are never active
    FOLDER/run_settings.json    what the files were made from

with the fields of SAEDashboard 0.8.0, which Neuronpedia's importer reads. Of them

  activations    the largest values (bin_min -1, bin_contains -1), then rows drawn
                 from each quarter of the range, the highest first, with its edges
                 and the share of rows in it
  freq_hist      bins of equal ratio, four per factor of 2 (SAEDashboard: of equal
                 width); heights are numbers of rows, values the middle of bins
  pos, neg       tokens of the largest and smallest logits, and logits_hist all
                 logits: of the logit lens with the last norm (SAEDashboard: without)
  neuron_alignment, correlated_neurons
                 dimensions of the site, by the decoder row and by correlation
  correlated_features
                 Pearson correlation over rows among all latents (SAEDashboard:
                 among those of one batch); absent where L n is above 2^28

The store is read once. Every array is per latent or per batch of rows.

References:
  Bloom et al., SAEDashboard, github.com/jbloomAus/SAEDashboard,
  neuronpedia/neuronpedia_dashboard.py and neuronpedia_converter.py.
"""

import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from saejax import durable
from saejax.data.store import reader
from saejax.data.store.reader import Store
from saejax.data.text import neighbours
from saejax.errors import InputError
from saejax.features import activity, cards, lens, observing, parts
from saejax.features.activity import Activity
from saejax.features.correlations import Correlations
from saejax.models.model import Model
from saejax.models.tokenizer import Tokenizer
from saejax.sae.sae import SAE

_BARS = 50  # of a histogram of logits
_RELATED = 3  # rows of a table
_LOGITS = 2**24  # logits in memory at once
Progress = Callable[[str, int, int], None]


def write(
  folder: str | os.PathLike[str],
  sae: SAE,
  store: Store,
  choice: activity.Choice,
  *,
  name: str,
  model: Model | None = None,
  sizes: cards.Sizes = cards.Sizes(),
  file_latents: int = 128,
  batch_rows: int = 4096,
  progress: Progress | None = None,
  kept: parts.Pass | None = None,
) -> int:
  """Writes the files; returns the number of features in them.

  Args:
    folder: must not exist, or be empty.
    sae: the SAE, in the inference form.
    store: store of text.
    choice: the latents; random ones are drawn of all, dead ones among them.
    name: name of the set of SAEs in Neuronpedia, `sae_set`.
    model: causal language model, for logits.
    sizes: numbers of examples, of tokens around and of tokens favoured.
    file_latents: latents of a file.
    batch_rows: largest number of rows on the device at once.
    progress: called with a stage, what is done of it, and of how much.
    kept: folder in which a stopped pass is resumed; None for none.

  Raises:
    InputError: the store has no text or another width, there is no such latent,
      or the model has no head or another width.
    parts.Unfinished: other processes are not done.
  """
  if store.d != sae.d:
    raise InputError(
      "store",
      str(store.place),
      f"must have rows of the width of the SAE, {sae.d}, not {store.d}",
      "give a store of its site",
    )
  words = neighbours.tokenizer_of(store)
  if model is not None:
    lens.check(model, sae.d)
    lens.directions(sae, np.zeros(0, int))
  say = progress or (lambda *_: None)
  latents = choice.order(sae.n)
  if not len(choice.latents):
    latents = np.sort(latents[: choice.random])
  related = Correlations(latents, sae.n, sae.d)
  found = observing.observe(
    sae,
    store,
    activity.Choice(latents=latents, seed=choice.seed),
    top=sizes.top,
    per_bin=sizes.each,
    batch_rows=batch_rows,
    together=False,
    watch=related,
    progress=lambda *done: say("rows", *done),
    kept=kept,
  )
  live = found.latents[found.summary.count > 0]
  tables = _tables(sae, store, related)
  for number, start in enumerate(range(0, len(live), file_latents)):
    block = live[start : start + file_latents]
    part = found.chosen(block)
    shown = cards.examples(
      *(sae, store, part.latents, cards.picked(part, sizes.each)),
      sizes=sizes,
      batch_rows=batch_rows,
    )
    features = [
      _feature(part, i, store, mine, sizes)
      | tables[int(block[i])]
      | logit_fields
      for i, (mine, logit_fields) in enumerate(
        zip(shown, _logits(sae, model, block, words, sizes.tokens), strict=True)
      )
    ]
    content = _about(store, name) | {"sae_id_suffix": None}
    _write(folder, f"batch-{number}.json", content | {"features": features})
    say("latents", min(start + file_latents, len(live)), len(live))
  dead = found.latents[found.summary.count == 0]
  _write_settings(folder, store, name, dead, file_latents)
  return len(live)


def _write_settings(
  folder: str | os.PathLike[str],
  store: Store,
  name: str,
  dead: Int[np.ndarray, "m"],
  file_latents: int,
) -> None:
  """Writes what is not of a feature."""
  about = _about(store, name)
  skipped = about | {"layer": str(about["layer"]), "log_sparsity": None}
  skipped["skipped_indexes"] = dead.tolist()
  _write(folder, "skipped_indexes.json", skipped)
  prompts, length, corpus = _prompts(store)
  settings = about | {
    "n_prompts_total": prompts,
    "n_tokens_in_prompt": length,
    "huggingface_dataset_path": corpus,
    "n_features_at_a_time": file_latents,
    "rows": store.rows,
  }
  _write(folder, "run_settings.json", settings)


def _about(store: Store, name: str) -> dict[str, Any]:
  return {
    "model_id": str(reader.described(store, "model") or ""),
    "layer": reader.described(store, "layer") or 0,
    "sae_set": name,
  }


def _prompts(store: Store) -> tuple[int, int, str]:
  """Number of windows, their length, and the name of the corpus."""
  length = int(store.meta.get("context") or 1)
  corpus = (store.meta.get("corpus") or {}).get("name", "")
  return -(-store.rows // length), length, str(corpus)


def _write(
  folder: str | os.PathLike[str], name: str, content: dict[str, Any]
) -> None:
  text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
  file = pathlib.Path(folder) / name
  durable.write_file(file, text.encode("utf-8", "replace"), field="write")


def _feature(
  found: Activity,
  i: int,
  store: Store,
  shown: list[dict[str, Any]],
  sizes: cards.Sizes,
) -> dict[str, Any]:
  """What the rows say of the latent at a place."""
  edges, counts = activity.edges(), found.histogram[i]
  (used,) = np.nonzero(counts)
  prompts, length, corpus = _prompts(store)
  return {
    "feature_index": int(found.latents[i]),
    "frac_nonzero": float(found.summary.density[i]),
    "freq_hist_data_bar_values": _short((edges[:-1] + edges[1:])[used] / 2),
    "freq_hist_data_bar_heights": counts[used].tolist(),
    "n_prompts_total": prompts,
    "n_tokens_in_prompt": length,
    "dataset": corpus,
    "activations": [
      _intervals(found, i)[e["group"]]
      | {
        "tokens": e["tokens"],
        "values": e["values"],
        "qualifying_token_index": e["at"],
      }
      for e in shown
    ],
    "decoder_weights_dist": [],
    "vector": [],
  }


def _intervals(found: Activity, i: int) -> dict[str, dict[str, float]]:
  """Interval and share of rows of each group of examples."""
  largest = float(found.summary.top_values[i].max(initial=0))
  groups = {"top": {"bin_min": -1, "bin_max": largest, "bin_contains": -1}}
  if not largest:
    return groups
  edges, quarter = activity.edges(), cards.quarters(largest)
  for q in range(cards.QUARTERS):
    (bins,) = np.nonzero(quarter == q)
    low = 0.0 if q == 0 else float(edges[bins[0]])
    share = found.histogram[i][bins].sum() / max(found.summary.rows, 1)
    groups[str(q + 1)] = {
      "bin_min": low,
      "bin_max": min(float(edges[bins[-1] + 1]), largest),
      "bin_contains": float(share),
    }
  return groups


def _tables(
  sae: SAE, store: Store, related: Correlations
) -> dict[int, dict[str, Any]]:
  """Alignment with and correlation to dimensions and latents, by latent."""
  W = np.asarray(sae.W_dec, np.float32)
  pairs = related.with_latents(_RELATED), related.with_site(store, _RELATED)
  found = {}
  for latent, others, neurons in zip(related.latents, *pairs, strict=True):
    row = W[latent]
    top = np.argsort(-row, kind="stable")[:_RELATED]
    total = np.abs(row).sum() or 1.0
    fields: dict[str, Any] = {
      "neuron_alignment_indices": top.tolist(),
      "neuron_alignment_values": _short(row[top]),
      "neuron_alignment_l1": _short(np.abs(row[top]) / total),
    }
    for name, table in (("neurons", neurons), ("features", others)):
      for field, values in zip(
        ("indices", "pearson", "l1"), table, strict=True
      ):
        fields[f"correlated_{name}_{field}"] = values
    found[int(latent)] = fields
  return found


def _logits(
  sae: SAE,
  model: Model | None,
  latents: Int[np.ndarray, "L"],
  words: Tokenizer,
  count: int,
) -> Iterator[dict[str, Any]]:
  """Logits of latents: their ends, and histograms."""
  names = ("pos_str", "pos_values", "neg_str", "neg_values")
  hist = "logits_hist_data_bar_heights", "logits_hist_data_bar_values"
  if model is None:
    yield from ({name: [] for name in (*names, *hist)} for _ in latents)
    return
  block = max(1, _LOGITS // model.vocabulary)
  for start in range(0, len(latents), block):
    rows = lens.directions(sae, latents[start : start + block])
    for logits in lens.logits(model, rows):
      order = np.argsort(-logits, kind="stable")
      ends = order[:count], order[::-1][:count]
      heights, edges = np.histogram(logits, _BARS)
      found = [
        a
        for ids in ends
        for a in ([words.decode([i]) for i in ids], _short(logits[ids]))
      ]
      middle = _short((edges[:-1] + edges[1:]) / 2)
      fields: dict[str, Any] = dict(zip(names, found, strict=True))
      fields |= zip(hist, (heights.tolist(), middle), strict=True)
      yield fields


def _short(values: Float[np.ndarray, "v"]) -> list[float]:
  """Four digits of each."""
  return [float(f"{v:.4g}") for v in values]
