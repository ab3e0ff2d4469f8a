"""One training step of other libraries, for step.py.

`step.py` starts this with the Python of the environment in which the peers are
installed, so that no process holds both JAX and PyTorch; see `serving` for what
it is asked. A step is what each library does for one batch when it trains an SAE
of the method with its own defaults: forward, loss, backward, clipping where it
clips, Adam, and the decoder's norm. AuxK is as the library has it and idle in so
few steps.

  sae_lens             SAETrainer.step, TopK, BatchTopK and JumpReLU
  dictionary_learning  update of its trainer of each of the three
  sparsify             the body of Trainer.fit for one TopK SAE: norm, forward,
                       backward, parallel gradient removed, torch's Adam
  torch_index_add, torch_embedding_bag
                       TopK written in PyTorch for its sparse operations, see
                       torch_sparse.py
"""

import importlib
import importlib.metadata
import warnings
from collections.abc import Callable

import numpy as np
import serving
import torch_sparse

DISTRIBUTIONS = {
  "sae_lens": "sae-lens",
  "dictionary_learning": "dictionary-learning",
  "sparsify": "eai-sparsify",
}
BATCHES = 4  # distinct batches, used in turn


def data(seed: int, rows: int, d: int) -> np.ndarray:
  """Batches [BATCHES, rows, d] float32, the same for every library.

  Sparse non-negative mixtures of 4 d random directions with a little noise.
  """
  rng = np.random.default_rng(seed)
  directions = rng.standard_normal((4 * d, d), dtype=np.float32) / d**0.5
  batches = []
  for _ in range(BATCHES):
    on = rng.random((rows, 4 * d), dtype=np.float32) < 8 / (4 * d)
    size = rng.random((rows, 4 * d), dtype=np.float32) + 0.5
    noise = rng.standard_normal((rows, d), dtype=np.float32)
    batches.append((on * size) @ directions + 0.05 * noise)
  return np.stack(batches)


def build_sae_lens(torch, B, d, n, k, dtype, steps, device, method="topk"):
  from sae_lens import config, saes
  from sae_lens.training import sae_trainer

  sizes = {"d_in": d, "d_sae": n, "dtype": dtype, "device": device}
  if method == "topk":
    sae = saes.TopKTrainingSAE(saes.TopKTrainingSAEConfig(k=k, **sizes))
  elif method == "batchtopk":
    sae = saes.BatchTopKTrainingSAE(
      saes.BatchTopKTrainingSAEConfig(k=k, **sizes)
    )
  else:
    sae = saes.JumpReLUTrainingSAE(saes.JumpReLUTrainingSAEConfig(**sizes))
  trainer = sae_trainer.SAETrainer(
    config.SAETrainerConfig(
      total_training_samples=steps * B,
      train_batch_size_samples=B,
      lr_end=3e-5,  # its runner's default, a tenth of lr; not used here
      device=device,
    ),
    sae=sae,
    data_provider=iter(()),
  )

  def step(x):
    output = trainer.step(x)
    trainer.n_training_steps += 1
    return output.loss.item()

  return step


def build_dictionary_learning(
  torch, B, d, n, k, dtype, steps, device, method="topk"
):
  from dictionary_learning import trainers

  if dtype != "float32":
    raise ValueError("dictionary_learning's trainers train in float32")
  names = {
    "topk": ("top_k", "TopKTrainer", {"k": k}),
    "batchtopk": ("batch_top_k", "BatchTopKTrainer", {"k": k}),
    "jumprelu": ("jumprelu", "JumpReluTrainer", {"target_l0": float(k)}),
  }
  file, name, own = names[method]
  module = importlib.import_module(f"{trainers.__name__}.{file}")
  trainer = getattr(module, name)(
    # Its schedules need room for 1,000 steps of warmup, and 2,000 of JumpReLU's
    # penalty.
    steps=max(steps, 5000),
    activation_dim=d,
    dict_size=n,
    layer=0,
    lm_name="none",
    device=device,
    seed=0,
    **own,
  )
  done = iter(range(10**9))
  return lambda x: trainer.update(next(done), x)


def build_sparsify(torch, B, d, n, k, dtype, steps, device, method="topk"):
  import sparsify

  if method != "topk":
    raise ValueError(f"sparsify has no {method}")
  sae = sparsify.SparseCoder(
    d,
    sparsify.SparseCoderConfig(num_latents=n, k=k),
    device=device,
    dtype=getattr(torch, dtype),
  )
  adam = torch.optim.Adam(sae.parameters(), lr=2e-4 / (n / 2**14) ** 0.5)
  tokens_since_fired = torch.zeros(n, device=device, dtype=torch.long)

  def step(x):
    sae.set_decoder_norm_to_unit_norm()
    out = sae(x, dead_mask=None)  # its default has no AuxK
    fired = torch.zeros(n, device=device, dtype=torch.bool)
    fired[out.latent_indices.flatten()] = True
    out.fvu.backward()
    sae.remove_gradient_parallel_to_decoder_directions()
    adam.step()
    adam.zero_grad()
    with torch.no_grad():
      tokens_since_fired.add_(x.shape[0])
      tokens_since_fired[fired] = 0
    return out.fvu.item()

  return step


BUILDERS: dict[str, Callable] = {
  "sae_lens": build_sae_lens,
  "dictionary_learning": build_dictionary_learning,
  "sparsify": build_sparsify,
}


def build(name, method, sizes, dtype, seed, steps, threads, device):
  """A step of a peer on batches in turn, and the versions in use."""
  import torch

  warnings.simplefilter("ignore")
  torch.set_num_threads(threads)
  torch.manual_seed(seed)
  if name in torch_sparse.FORMS:
    if method != "topk":
      raise ValueError(f"{name} is TopK alone")
    take = torch_sparse.build(torch, torch_sparse.FORMS[name], **sizes)
    versions = {}
  else:
    take = BUILDERS[name](
      torch, **sizes, dtype=dtype, steps=steps, device=device, method=method
    )
    versions = {name: importlib.metadata.version(DISTRIBUTIONS[name])}
  x = torch.from_numpy(data(seed, sizes["B"], sizes["d"]))
  x = x.to(device=device, dtype=getattr(torch, dtype))
  count = iter(range(10**9))
  versions["torch"] = torch.__version__
  return lambda: take(x[next(count) % BATCHES]), versions


if __name__ == "__main__":
  serving.serve(build)
