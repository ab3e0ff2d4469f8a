"""Batches of other libraries, served to loader.py; runs in their environment.

sae_lens             ActivationsStore over cached activations: contexts of
                     float32 in a dataset of Arrow files, mixed in a buffer
dictionary_learning  ActivationBuffer on a model whose activations are in
                     memory, so that only the buffer takes time
"""

import contextlib
import importlib.metadata
import pathlib
import tempfile
import types
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import serving

CONTEXT = 128
HOOK = "rows"


def contexts(rows: int, d: int) -> np.ndarray:
  """Activations [contexts, CONTEXT, d], float32.

  Args:
    rows: at most as many rows.
    d: width.
  """
  shape = (rows // CONTEXT, CONTEXT, d)
  return np.random.default_rng(0).standard_normal(shape, np.float32)


def sae_lens(rows: int, d: int, batch_rows: int, buffer_rows: int) -> Any:
  """An ActivationsStore that reads cached activations.

  Args:
    rows, d: rows of the store, and their width.
    batch_rows: rows per batch.
    buffer_rows: rows of the buffer.
  """
  import datasets
  import torch
  from sae_lens.training import activations_store

  shape = datasets.Array2D(shape=(CONTEXT, d), dtype="float32")
  held = contexts(rows, d)
  path = pathlib.Path(tempfile.mkdtemp()) / "cached"
  datasets.Dataset.from_generator(
    lambda: ({HOOK: one} for one in held),
    features=datasets.Features({HOOK: shape}),
    cache_dir=str(path.parent / "cache"),
  ).save_to_disk(str(path))
  return activations_store.ActivationsStore(
    model=types.SimpleNamespace(),  # pyright: ignore[reportArgumentType]
    dataset=None,
    streaming=False,
    hook_name=HOOK,
    hook_head_index=None,
    context_size=CONTEXT,
    d_in=d,
    n_batches_in_buffer=buffer_rows // CONTEXT,
    total_training_tokens=rows,
    store_batch_size_prompts=32,
    train_batch_size_tokens=batch_rows,
    prepend_bos=False,
    normalize_activations="none",
    device=torch.device("cpu"),
    dtype="float32",
    cached_activations_path=str(path),
  )


class Model:
  """A model whose activations are in memory, as nnsight's is called.

  Args:
    held: the activations, [contexts, CONTEXT, d].
    at_once: contexts per call.
  """

  def __init__(self, held: Any, at_once: int):
    import torch

    self.dtype = torch.float32
    self._held, self._at, self._at_once = held, 0, at_once
    mask = {"attention_mask": torch.ones(at_once, CONTEXT)}
    value = types.SimpleNamespace(value=(None, mask))
    self.inputs = types.SimpleNamespace(save=lambda: value)
    self.output = types.SimpleNamespace(save=self._save, stop=lambda: None)

  @contextlib.contextmanager
  def trace(self, *_: Any, **__: Any) -> Iterator[None]:
    """Does nothing."""
    yield

  def _save(self) -> Any:
    if self._at + self._at_once > len(self._held):
      self._at = 0
    self._at += self._at_once
    part = self._held[self._at - self._at_once : self._at]
    return types.SimpleNamespace(value=part)


def dictionary_learning(
  rows: int, d: int, batch_rows: int, buffer_rows: int
) -> Any:
  """An ActivationBuffer on a model whose activations are in memory.

  Args:
    rows, d, batch_rows, buffer_rows: as for `sae_lens`.
  """
  import itertools

  import torch
  from dictionary_learning import buffer

  model: Any = Model(torch.from_numpy(contexts(rows, d)), 64)
  return buffer.ActivationBuffer(
    itertools.repeat(""),
    model,
    model,
    d_submodule=d,
    n_ctxs=buffer_rows // CONTEXT,
    ctx_len=CONTEXT,
    refresh_batch_size=64,
    out_batch_size=batch_rows,
  )


def build(name: str, threads: int, **sizes: int) -> Any:
  """A function that takes a batch of a peer, and the versions in use.

  Args:
    name: of the peer.
    threads: of PyTorch.
    **sizes: as for `sae_lens`.
  """
  import torch

  warnings.simplefilter("ignore")
  torch.set_num_threads(threads)
  peers = {
    "sae_lens": (sae_lens, "sae-lens"),
    "dictionary_learning": (dictionary_learning, "dictionary-learning"),
  }
  make, distribution = peers[name]
  stream = make(**sizes)

  def take() -> None:
    batch = next(stream)
    assert tuple(batch.shape) == (sizes["batch_rows"], sizes["d"])

  take()
  version = importlib.metadata.version(distribution)
  return take, {name: version, "torch": torch.__version__}


if __name__ == "__main__":
  serving.serve(build)
