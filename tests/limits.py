"""For claims that one method is another: loss and gradients at equal weights."""

import jax
import jax.numpy as jnp

from saejax.sae import decoders
from tests import contract, toy


def loss_and_gradients(recipe, *, engine="auto", decoder=decoders.Free):
  """Of one batch, with every third latent dead.

  The weights are the same for all recipes of one decoder; the activation is the
  recipe's. Gradients are a list of leaves, since activations may differ.
  """
  n = contract.N
  sae = toy.sae(
    n=n,
    d=contract.D,
    activation=recipe.init.keywords["activation"],
    decoder=decoder,
  )
  if engine == "auto":
    engine = "sparse" if sae.activation.fused else "dense"
  stats = {}
  for rule in recipe.rules:
    stats.update(rule.init(sae))
  since = jnp.where(jnp.arange(n) % 3 == 0, 20_000, 0)
  stats["tokens_since_fired"] = since.astype(jnp.int32)

  def total(sae):
    record = contract.record(
      recipe,
      sae,
      toy.rows(48, contract.D, seed=3),
      engine=engine,
      stats=stats,
      key=jax.random.key(0),
      train=True,
    )
    terms = recipe.terms.values()
    return sum(jnp.mean(term.fn(record)) * term.weight for term in terms)

  value, gradients = jax.jit(jax.value_and_grad(total))(sae)
  return value, jax.tree.leaves(gradients)


def assert_alike(test, got, want, rtol=1e-5, **settings) -> None:
  """Two recipes have equal losses, gradients, and all that acts on those.

  Weights are drawn alike too, but for the activation.
  """
  toy.assert_trees_close(
    loss_and_gradients(got, **settings),
    loss_and_gradients(want, **settings),
    rtol=rtol,
    atol=rtol,
  )
  test.assertIs(got.init.func, want.init.func)
  drawn = [
    {k: v for k, v in recipe.init.keywords.items() if k != "activation"}
    for recipe in (got, want)
  ]
  test.assertEqual(*drawn)
  for field in ("optimizer", "gradient", "project", "rules", "finish"):
    test.assertEqual(getattr(got, field), getattr(want, field), field)
