"""Harvests with saejax, for harvest.py; see `serving` for what it is asked."""

import functools
import pathlib
import shutil
import tempfile

import jax
import numpy as np
import serving

from saejax.data import harvest, spec
from saejax.data.text import corpus, rows, windows

subject_of = functools.cache(spec.subject_of)


def build(name, model, layer, rows_wanted, batches):
  """A step harvests rows into a store, or passes the same batches forward.

  Args:
    name: "harvest" for text to store, "forward" for the passes alone.
    model: name of the model.
    layer: layer whose residual stream is harvested.
    rows_wanted: rows of the training store.
    batches: .npz file that the batches of forward passes are written to.
  """
  config = harvest.HarvestConfig(
    model=model,
    layer=layer,
    rows=rows_wanted,
    held_out_rows=256,
    context=128,
    bucket_rows=16_384,
    shard_rows=16_384,
    dir=tempfile.mkdtemp(prefix="saejax-harvest-"),
  )
  source = subject_of(config)
  part = _part(config, source)
  if name == "harvest":

    def step():
      shutil.rmtree(config.dir)
      train, _ = harvest.harvest(config, source=source)
      return train.rows

    step()
    return step, {"jax": jax.__version__}
  passes = []
  coming = windows.batches(part.plan, part.documents, part._encode)
  kept = 0
  while kept < rows_wanted:
    batch = next(coming)
    passes.append((batch.ids, batch.mask))
    kept += int(batch.keep.sum())
  tokens = sum(int(mask.sum()) for _, mask in passes)
  arrays = {f"ids{i}": ids for i, (ids, _) in enumerate(passes)}
  arrays |= {f"mask{i}": mask for i, (_, mask) in enumerate(passes)}
  np.savez(pathlib.Path(batches), **arrays)

  def step():
    for ids, mask in passes:
      found = np.asarray(source.forward(ids, mask))
    return found.size

  step()
  return step, {"tokens": tokens, "passes": len(passes)}


def _part(config, source):
  """The training part of the corpus as a row source."""
  texts = spec.corpus_of(config)
  about = harvest.meta(config, source=source, corpus=texts)
  return rows.TextRows(config, source, texts, corpus.TRAIN, about)


if __name__ == "__main__":
  serving.serve(build)
