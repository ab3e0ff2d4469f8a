"""Trains one TopK SAE with another library on given rows; for `outcome.py`.

One request, a line of JSON on stdin:

  {"peer": "sae_lens", "train": "x.npy", "held_out": "h.npy", "out": "y.npy",
   "n": 1024, "k": 16, "batch_rows": 2048, "rate": 4e-3, "seed": 0,
   "threads": 2}

and one answer, or {"error": ..}: the seconds from rows in memory to a trained
SAE, and how many latents fired on held-out rows; `out` gets the
reconstructions. Rows come in the order of the file, once.

A rate of null trains with the library's own default optimizer, rate and
schedule, its warm-up cut to a tenth of the run where it would be longer. With
a rate, the optimizer is the library's own too, with a short warm-up and, where
the library has one, its linear decay over the last fifth, as our own default.
"""

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

WARMUP, DECAY = 0.05, 0.2  # of the run, where a rate is given


def dictionary_learning(torch, x: Iterator, d, n, k, rate, seed, steps):
  from dictionary_learning.trainers import top_k

  given: dict[str, Any] = {"warmup_steps": min(1000, steps // 10)}
  if rate is not None:
    given = {
      "lr": rate,
      "warmup_steps": round(WARMUP * steps),
      "decay_start": steps - round(DECAY * steps),
    }
  trainer = top_k.TopKTrainer(
    steps=steps,
    activation_dim=d,
    dict_size=n,
    k=k,
    layer=0,
    lm_name="none",
    device="cpu",
    seed=seed,
    threshold_start_step=steps,  # reconstructions below use the k largest
    **given,
  )
  for step, batch in enumerate(x):
    trainer.update(step, batch)

  def encode_decode(rows):
    latents = trainer.ae.encode(rows, use_threshold=False)
    return latents, trainer.ae.decode(latents)

  return encode_decode


def sae_lens(torch, x: Iterator, d, n, k, rate, seed, steps):
  from sae_lens import config
  from sae_lens.saes import topk_sae
  from sae_lens.training import sae_trainer

  first = next(x)
  rows = len(first)
  given: dict[str, Any] = {}
  if rate is not None:
    given = {
      "lr": rate,
      "lr_warm_up_steps": round(WARMUP * steps),
      "lr_decay_steps": round(DECAY * steps),
    }
  sae = topk_sae.TopKTrainingSAE(
    topk_sae.TopKTrainingSAEConfig(
      d_in=d, d_sae=n, k=k, dtype="float32", device="cpu"
    )
  )
  settings = config.SAETrainerConfig(
    total_training_samples=steps * rows,
    train_batch_size_samples=rows,
    device="cpu",
    **given,
  )
  settings.lr_end = settings.lr / 10  # its runner's default
  trainer = sae_trainer.SAETrainer(settings, sae=sae, data_provider=iter(()))
  trainer.step(first)
  for batch in x:
    trainer.n_training_steps += 1
    trainer.step(batch)

  def encode_decode(rows):
    latents = sae.encode(rows)
    found = sae.decode(latents)
    return latents.to_dense() if latents.is_sparse else latents, found

  return encode_decode


def sparsify(torch, x: Iterator, d, n, k, rate, seed, steps):
  import schedulefree
  import sparsify
  from sparsify.sign_sgd import SignSGD

  sae = sparsify.SparseCoder(
    d, sparsify.SparseCoderConfig(num_latents=n, k=k), device="cpu"
  )
  rate = 5e-3 / (n / 2**14) ** 0.5 if rate is None else rate
  optimizer = schedulefree.ScheduleFreeWrapper(
    SignSGD(sae.parameters(), lr=rate), momentum=0.95
  )
  optimizer.train()
  for batch in x:
    if sae.cfg.normalize_decoder:
      sae.set_decoder_norm_to_unit_norm()
    sae(batch, dead_mask=None).fvu.backward()  # its default has no AuxK
    if sae.cfg.normalize_decoder:
      sae.remove_gradient_parallel_to_decoder_directions()
    optimizer.step()
    optimizer.zero_grad()
  optimizer.eval()
  if sae.cfg.normalize_decoder:
    sae.set_decoder_norm_to_unit_norm()

  def encode_decode(rows):
    out = sae(rows, dead_mask=None)
    latents = torch.zeros(len(rows), n)
    latents.scatter_(1, out.latent_indices, out.latent_acts)
    return latents, out.sae_out

  return encode_decode


PEERS: dict[str, Callable] = {
  "dictionary_learning": dictionary_learning,
  "sae_lens": sae_lens,
  "sparsify": sparsify,
}


def run(request: dict[str, Any]) -> dict[str, Any]:
  import torch

  torch.set_num_threads(request["threads"])
  torch.manual_seed(request["seed"])
  rows, held = (np.load(request[name]) for name in ("train", "held_out"))
  size = request["batch_rows"]
  batches = torch.from_numpy(rows[: len(rows) // size * size]).split(size)
  start = time.perf_counter()
  encode_decode = PEERS[request["peer"]](
    torch,
    iter(batches),
    d=rows.shape[1],
    n=request["n"],
    k=request["k"],
    rate=request["rate"],
    seed=request["seed"],
    steps=len(batches),
  )
  seconds = time.perf_counter() - start
  fired = np.zeros(request["n"], bool)
  found = []
  with torch.no_grad():
    for part in torch.from_numpy(held).split(4096):
      latents, reconstruction = encode_decode(part)
      fired |= (latents != 0).any(0).numpy()
      found.append(reconstruction.numpy())
  np.save(request["out"], np.concatenate(found))
  return {"seconds": seconds, "dead": 1 - float(fired.mean())}


def main():
  # What the libraries print must not get between our lines.
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
  warnings.simplefilter("ignore")
  try:
    answer = run(json.loads(sys.stdin.readline()))
  except Exception as e:
    answer = {"error": f"{type(e).__name__}: {e}"}
  print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
  main()
