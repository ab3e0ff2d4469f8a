"""One TopK training step of other libraries, served over stdin and stdout.

`step.py` starts this with the Python of the environment in which the peers are
installed, so that no process holds both JAX and PyTorch. Each request is one
line of JSON, each answer too:

  {"do": "versions"}                       -> {"versions": {..}, "absent": {..}}
  {"do": "build", "peer": .., "sizes": {"B": .., "d": .., "n": .., "k": ..},
   "dtype": "float32", "seed": 0, "steps": 20, "threads": 2, "device": "cpu"}
                                           -> {"built": name}
  {"do": "run", "peer": ..}                -> {"ms": .., "loss": ..}
  {"do": "quit"}

A step is what each library does for one batch when it trains a TopK SAE with
its own defaults: forward, loss, backward, clipping where it clips, Adam, and
the decoder's norm. AuxK is as the library has it and idle in so few steps.

  sae_lens             SAETrainer.step, TopKTrainingSAE
  dictionary_learning  TopKTrainer.update
  sparsify             the body of Trainer.fit for one SAE: norm, forward,
                       backward, parallel gradient removed, torch's Adam
"""

import importlib
import importlib.metadata
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

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


def build_sae_lens(torch, B, d, n, k, dtype, steps, device):
  from sae_lens import config
  from sae_lens.saes import topk_sae
  from sae_lens.training import sae_trainer

  sae = topk_sae.TopKTrainingSAE(
    topk_sae.TopKTrainingSAEConfig(
      d_in=d, d_sae=n, k=k, dtype=dtype, device=device
    )
  )
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


def build_dictionary_learning(torch, B, d, n, k, dtype, steps, device):
  from dictionary_learning.trainers import top_k

  if dtype != "float32":
    raise ValueError("dictionary_learning's TopKTrainer trains in float32")
  trainer = top_k.TopKTrainer(
    steps=max(steps, 2000),  # its schedule needs room for 1,000 warmup steps
    activation_dim=d,
    dict_size=n,
    k=k,
    layer=0,
    lm_name="none",
    device=device,
    seed=0,
  )
  done = iter(range(10**9))
  return lambda x: trainer.update(next(done), x)


def build_sparsify(torch, B, d, n, k, dtype, steps, device):
  import sparsify

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


class Server:
  """The peers that have been built, by name."""

  def __init__(self):
    self.steps: dict[str, Callable] = {}
    self.batches: dict[tuple, Any] = {}

  def versions(self, request):
    found, absent = {}, {}
    for name in ["torch", *BUILDERS]:
      try:
        importlib.import_module(name)
        found[name] = importlib.metadata.version(DISTRIBUTIONS.get(name, name))
      except Exception as e:  # a peer that does not import is a peer absent
        absent[name] = f"{type(e).__name__}: {e}"
    return {"versions": found, "absent": absent}

  def build(self, request):
    import torch

    torch.set_num_threads(request["threads"])
    torch.manual_seed(request["seed"])
    sizes, dtype, device = request["sizes"], request["dtype"], request["device"]
    key = (request["seed"], sizes["B"], sizes["d"], dtype, device)
    if key not in self.batches:
      x = torch.from_numpy(data(request["seed"], sizes["B"], sizes["d"]))
      self.batches = {key: x.to(device=device, dtype=getattr(torch, dtype))}
    x = self.batches[key]
    step = BUILDERS[request["peer"]](
      torch, **sizes, dtype=dtype, steps=request["steps"], device=device
    )
    count = iter(range(10**9))

    def timed():
      batch = x[next(count) % BATCHES]
      if device != "cpu":
        torch.cuda.synchronize()
      start = time.perf_counter()
      loss = step(batch)  # every builder's step ends with .item(): it waits
      if device != "cpu":
        torch.cuda.synchronize()
      return {"ms": 1e3 * (time.perf_counter() - start), "loss": loss}

    self.steps[request["peer"]] = timed
    return {"built": request["peer"]}

  def run(self, request):
    return self.steps[request["peer"]]()


def main():
  # What the libraries print must not get between our lines.
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
  warnings.simplefilter("ignore")
  server = Server()
  for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "quit":
      break
    try:
      answer = getattr(server, request["do"])(request)
    except Exception as e:
      answer = {"error": f"{type(e).__name__}: {e}"}
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
  main()
