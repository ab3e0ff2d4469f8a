"""Harvests with saejax, for harvest.py; see `serving` for what it is asked."""

import dataclasses
import functools
import pathlib
import tempfile

import jax
import numpy as np
import serving

from saejax.data import harvest, spec
from saejax.data.text import corpus, rows, windows

subject_of = functools.cache(spec.subject_of)


def build(name, model, layer, rows_wanted, folder):
  """A step harvests rows into stores, or passes the same batches forward.

  Args:
    name: "harvest" for text to store, "forward" for the passes alone.
    model: name of the model.
    layer: layer whose residual stream is harvested.
    rows_wanted: rows of the training store; the held-out store has a sixteenth.
    folder: for the stores, and for batches.npz with the batches of all passes.
  """
  config = harvest.HarvestConfig(
    model=model,
    layer=layer,
    rows=rows_wanted,
    held_out_rows=-(-rows_wanted // 16),
    context=128,
    bucket_rows=16_384,
    shard_rows=16_384,
    dir=folder,
  )
  source = subject_of(config)
  if name == "harvest":

    def step():
      new = dataclasses.replace(config, dir=tempfile.mkdtemp(dir=folder))
      train, held_out = harvest.harvest(new, source=source)
      return train.rows + held_out.rows

    step()
    return step, {"jax": jax.__version__}
  passes = [
    (batch.ids, batch.mask)
    for part in (corpus.TRAIN, corpus.HELD_OUT)
    for batch in _batches(config, source, part)
  ]
  tokens = sum(int(mask.sum()) for _, mask in passes)
  arrays = {f"ids{i}": ids for i, (ids, _) in enumerate(passes)}
  arrays |= {f"mask{i}": mask for i, (_, mask) in enumerate(passes)}
  np.savez(pathlib.Path(folder) / "batches.npz", **arrays)

  def step():
    for ids, mask in passes:
      found = np.asarray(source.forward(ids, mask))
    return found.size

  step()
  return step, {"tokens": tokens, "passes": len(passes)}


def _batches(config, source, part):
  """The batches that a part of the corpus is harvested from."""
  texts = spec.corpus_of(config)
  about = harvest.meta(config, part, source=source, corpus=texts)
  own = rows.TextRows(config, source, texts, part, about)
  kept = 0
  encode = functools.partial(texts.encode, encode=source.encode)
  for batch in windows.batches(own.plan, own.documents, encode):
    yield batch
    kept += int(batch.keep.sum())
    if kept >= about["rows"]:
      return


if __name__ == "__main__":
  serving.serve(build)
