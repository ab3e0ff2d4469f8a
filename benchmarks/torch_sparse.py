"""A TopK training step in PyTorch by its sparse operations, for a CPU.

    a = W_enc (x - b_pre) + b_enc;  z = relu(a) on the k largest of a, else 0
    x_hat = sum_j z_j W_dec[i_j] + b_pre;  loss = |x - x_hat|^2 / |x - mean x|^2

The gradient of the values is a product with the gathered rows of W_dec in chunks
of rows; those of both W are sums of rows by latent. Gradients are clipped to norm
1 after the component of the decoder's along its rows is removed; Adam is fused;
rows of the decoder are renormalised. Decode is `embedding_bag` in both forms:

  index_add      sums by latent with `index_add_`, a chunk of rows at a time
  embedding_bag  entries sorted by latent, sums with `embedding_bag` over them
"""

from collections.abc import Callable
from typing import Any

ROWS = 128  # per chunk


def scatter_index_add(torch: Any, values, indices, y, n: int):
  """Row i: the sum of values[b, j] y[b] where indices[b, j] = i.

  Args:
    torch: the module.
    values, indices: entries [b, k].
    y: rows [b, d].
    n: number of rows of the result.
  """
  out = y.new_zeros(n, y.shape[1])
  parts = (a.split(ROWS) for a in (values, indices, y))
  for v, i, rows in zip(*parts, strict=True):
    added = v[:, :, None] * rows[:, None]
    out.index_add_(0, i.flatten(), added.flatten(0, 1))
  return out


def scatter_embedding_bag(torch: Any, values, indices, y, n: int):
  """As `scatter_index_add`, with one bag of rows of y per latent."""
  flat = indices.flatten()
  order = torch.argsort(flat)
  counts = torch.bincount(flat, minlength=n)
  return torch.nn.functional.embedding_bag(
    order // indices.shape[1],
    y,
    torch.cumsum(counts, 0) - counts,
    mode="sum",
    per_sample_weights=values.flatten()[order],
  )


FORMS: dict[str, Callable] = {
  "torch_index_add": scatter_index_add,
  "torch_embedding_bag": scatter_embedding_bag,
}


def build(
  torch: Any, scatter: Callable, B: int, d: int, n: int, k: int
) -> Callable[[Any], float]:
  """A step on a batch; gives the loss.

  Args:
    torch: the module.
    scatter: one of `FORMS`.
    B: rows of a batch.
    d: width of the activations.
    n: latents.
    k: latents kept per row.
  """
  W = torch.nn.functional.normalize(torch.randn(n, d))
  p = {
    "W_enc": W.clone(),
    "W_dec": W,
    "b_enc": torch.zeros(n),
    "b_pre": torch.zeros(d),
  }
  adam = torch.optim.Adam(p.values(), lr=3e-4, eps=6.25e-10, fused=True)

  @torch.no_grad()
  def step(x):
    loss, gradients = _gradients(torch, scatter, p, x, k)
    W, g = p["W_dec"], gradients["W_dec"]
    g -= (g * W).sum(1, keepdim=True) * W
    norm = torch.stack([torch.norm(g) for g in gradients.values()]).norm()
    scale = float(1 / max(1.0, float(norm)))
    for name, g in gradients.items():
      p[name].grad = g.mul_(scale) if scale < 1 else g
    adam.step()
    W /= W.norm(dim=1, keepdim=True)
    return float(loss)

  return step


def _gradients(torch, scatter, p, x, k):
  """The loss, and its gradient in each weight by name."""
  n = p["b_enc"].shape[0]
  centred = x - p["b_pre"]
  a = torch.addmm(p["b_enc"], centred, p["W_enc"].T)
  values, indices = torch.topk(a, k, dim=-1, sorted=False)
  values = torch.relu(values)
  error = -x + torch.nn.functional.embedding_bag(
    indices, p["W_dec"], mode="sum", per_sample_weights=values
  )
  error += p["b_pre"]
  total = (x - x.mean(0)).square().sum()
  g = error * (2 / total)
  d_values = torch.cat(
    [
      torch.einsum("bd,bkd->bk", rows, p["W_dec"][i])
      for rows, i in zip(g.split(ROWS), indices.split(ROWS), strict=True)
    ]
  )
  d_values = torch.where(values > 0, d_values, 0)
  d_b = torch.zeros(n).index_add_(0, indices.flatten(), d_values.flatten())
  gradients = {
    "W_dec": scatter(torch, values, indices, g, n),
    "W_enc": scatter(torch, d_values, indices, centred, n),
    "b_enc": d_b,
    "b_pre": g.sum(0) - d_b @ p["W_enc"],
  }
  return error.square().sum() / total, gradients
