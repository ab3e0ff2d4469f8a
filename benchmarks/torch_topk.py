"""A TopK SAE in PyTorch, from the equations of the paper, for step_gpu.py.

    a = W_enc (x - b_pre) + b_enc;  z = relu(a) on the k largest of a, else 0
    x_hat = W_dec z + b_pre;        loss = |x - x_hat|^2 / |x - mean x|^2

Gradients are clipped to norm 1, the component of the decoder's gradient along
its rows is removed, Adam has eps 6.25e-10 and is fused, rows of the decoder are
renormalised. Weights are float32 and matmuls run in bfloat16. Everything but
Adam is compiled by `torch.compile`. AuxK, idle in so few steps, is left out.

  dense   decodes with z as a matrix; gradients by autograd
  gather  decodes and differentiates by the k rows of each example alone, with
          the gradient of the pre-bias summed before its one product

References:
  Gao et al., Scaling and evaluating sparse autoencoders, 2024, arXiv:2406.04093.
"""

import functools
from collections.abc import Callable
from typing import Any


def parameters(torch: Any, d: int, n: int, device: str) -> dict[str, Any]:
  """W_enc, W_dec [n, d] with unit rows, b_enc [n], b_pre [d]; W_enc = W_dec.

  Args:
    torch: the module.
    d: width of the activations.
    n: latents.
    device: device of the tensors.
  """
  W = torch.nn.functional.normalize(torch.randn(n, d, device=device))
  made = {
    "W_enc": W.clone(),
    "W_dec": W,
    "b_enc": torch.zeros(n, device=device),
    "b_pre": torch.zeros(d, device=device),
  }
  return {name: p.requires_grad_() for name, p in made.items()}


def _largest(torch, p, x, k, dtype):
  centred = x.float() - p["b_pre"]
  a = (centred.to(dtype) @ p["W_enc"].to(dtype).T).float() + p["b_enc"]
  values, indices = torch.topk(a, k, dim=-1, sorted=False)
  return centred, torch.relu(values), indices


def _scale(x):
  """The sum of squares around the mean: the loss of the best constant."""
  x = x.float()
  return (x - x.mean(0)).square().sum()


def dense_loss(torch: Any, p: dict[str, Any], x: Any, k: int, dtype: Any):
  """Loss with a dense decode, for autograd.

  Args:
    torch: the module.
    p: see `parameters`.
    x: rows [B, d].
    k: latents kept in a row.
    dtype: dtype of the matmuls' operands.
  """
  _, values, indices = _largest(torch, p, x, k, dtype)
  z = torch.zeros(x.shape[0], p["W_enc"].shape[0], device=x.device, dtype=dtype)
  z = z.scatter(1, indices, values.to(dtype))
  x_hat = (z @ p["W_dec"].to(dtype)).float() + p["b_pre"]
  return (x_hat - x.float()).square().sum() / _scale(x)


def gather_gradients(torch: Any, p: dict[str, Any], x: Any, k: int, dtype: Any):
  """Loss and gradients that touch the k chosen rows of each example alone.

  Args:
    torch, p, x, k, dtype: see `dense_loss`.
  """
  with torch.no_grad():
    centred, values, indices = _largest(torch, p, x, k, dtype)
    rows = p["W_dec"].to(dtype)
    x_hat = (values[..., None] * rows[indices].float()).sum(1) + p["b_pre"]
    error, scale = x_hat - x.float(), _scale(x)
    g = 2 * error / scale
    d_values = (rows[indices].float() * g[:, None]).sum(-1) * (values > 0)
    flat = indices.flatten()

    def scattered(factors, y):
      terms = (factors[..., None] * y[:, None]).flatten(0, 1)
      return torch.zeros_like(p["W_dec"]).index_add(0, flat, terms)

    d_b = torch.zeros_like(p["b_enc"]).index_add(0, flat, d_values.flatten())
    return error.square().sum() / scale, {
      "W_enc": scattered(d_values, centred),
      "W_dec": scattered(values, g),
      "b_enc": d_b,
      "b_pre": g.sum(0) - d_b @ p["W_enc"],
    }


def build(
  torch: Any, B, d, n, k, dtype, steps, device, *, form: str
) -> Callable[[Any], float]:
  """A callable that takes one training step on a batch and gives its loss.

  Args:
    torch: the module.
    B, d, n, k: sizes; B is not needed.
    dtype: dtype of the matmuls' operands, by name.
    steps: not needed.
    device: "cuda" or "cpu".
    form: "dense" or "gather".
  """
  del B, steps
  dtype = getattr(torch, dtype)
  p = parameters(torch, d, n, device)
  adam = torch.optim.Adam(
    p.values(), lr=1e-4, eps=6.25e-10, fused=device == "cuda"
  )

  def across(W, g):
    return g - (g * W).sum(-1, keepdim=True) * W

  loss_of = torch.compile(functools.partial(dense_loss, torch))
  gradients_of = torch.compile(functools.partial(gather_gradients, torch))
  across, unit = torch.compile(across), torch.nn.functional.normalize

  def step(x):
    if form == "dense":
      adam.zero_grad()
      loss = loss_of(p, x, k, dtype)
      loss.backward()
    else:
      loss, gradients = gradients_of(p, x, k, dtype)
      for name, tensor in p.items():
        tensor.grad = gradients[name]
    with torch.no_grad():
      p["W_dec"].grad = across(p["W_dec"], p["W_dec"].grad)
    torch.nn.utils.clip_grad_norm_(p.values(), 1.0)
    adam.step()
    with torch.no_grad():
      unit(p["W_dec"], out=p["W_dec"])
    return loss.item()

  return step


BUILDERS: dict[str, Callable] = {
  "openai_dense": functools.partial(build, form="dense"),
  "openai_gather": functools.partial(build, form="gather"),
}
