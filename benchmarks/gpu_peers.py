"""One case of step_gpu.py that needs PyTorch: a library or a formulation.

  python benchmarks/gpu_peers.py REQUEST FILE

under the Python in which the peers are installed; no process holds both JAX and
PyTorch. REQUEST is JSON, see `step_gpu.measure`; the result is written to FILE.
"""

import contextlib
import importlib.metadata
import json
import pathlib
import sys
import warnings
from typing import Any

import gpu_case
import numpy as np
import peers
import torch_topk


def measure(torch: Any, request: dict[str, Any]) -> dict[str, Any]:
  """Times the steps of one contender.

  Args:
    torch: the module.
    request: see `step_gpu.measure`.
  """
  name, shape, device = (request[f] for f in ("contender", "sizes", "device"))
  own = name in torch_topk.BUILDERS
  torch.manual_seed(0)
  torch.backends.cuda.matmul.allow_tf32 = True
  batches = torch.from_numpy(np.load(request["data"])).to(device)
  if own:
    batches = batches.to(torch.bfloat16)
  build = torch_topk.BUILDERS[name] if own else peers.BUILDERS[name]
  # Libraries keep float32 weights and multiply in bfloat16 by autocast.
  step = build(
    torch,
    **shape,
    dtype="bfloat16" if own else "float32",
    steps=1000,
    device=device,
  )
  cast = (
    contextlib.nullcontext
    if own
    else lambda: torch.autocast(device, torch.bfloat16)
  )
  losses: list[float] = []

  def one():
    with cast():
      losses.append(step(batches[len(losses) % gpu_case.BATCHES]))

  def wait(_):
    if device == "cuda":
      torch.cuda.synchronize()

  ms, each = gpu_case.timed(one, wait, request["rounds"])
  if not np.isfinite(losses).all():
    raise FloatingPointError(f"loss {losses[-1]}")
  result = {"ms": ms, "rounds_ms": each}
  result |= {"loss_first": losses[0], "loss_last": losses[-1]}
  if device == "cuda":
    result["peak_bytes"] = torch.cuda.max_memory_allocated()
  return result


def main() -> None:
  warnings.simplefilter("ignore")
  request = json.loads(sys.argv[1])
  versions = {}
  try:
    import torch

    distribution = peers.DISTRIBUTIONS.get(request["contender"], "torch")
    for name in ("torch", distribution):
      versions[name] = importlib.metadata.version(name)
    result = measure(torch, request)
  except Exception as e:  # absent or out of memory: the parent reports it
    result = {"error": f"{type(e).__name__}: {str(e)[:300]}"}
  result["versions"] = versions
  pathlib.Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
  main()
