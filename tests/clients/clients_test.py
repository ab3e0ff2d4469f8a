"""Real clients load what saejax writes, and compute the same.

They run in an environment of their own: `make clients` makes .venv-clients;
$SAEJAX_CLIENTS names the Python of another. Without one these tests are skipped,
and tests/interop/golden_test.py and formats_test.py keep what clients once wrote
and computed: files that they wrote are written again tensor by tensor.
"""

import os
import pathlib
import subprocess
import unittest

import numpy as np
from absl.testing import absltest, parameterized

import saejax
from saejax.interop import certificate, conversion, names
from tests import shared, toy
from tests.interop import cases
from tests.interop.conversion_test import AFFINE, SAES

# Format -> client in client.py, with where it looks for the files.
FORMATS = {
  "saelens": ("saelens", ""),
  "dictionary_learning": ("dictionary_learning", ""),
  "sparsify": ("sparsify", ""),
  "gemma_scope": ("gemma_scope", "layer_3/width_16k/average_l0_59"),
  "gemma_scope_2": ("gemma_scope_2", "resid_post/layer_3_width_16k_l0_small"),
}
OURS = {
  "saelens": list(SAES),
  "dictionary_learning": ["relu", "jumprelu", "gated", "topk", "topk_norm"],
  "sparsify": ["topk", "topk_norm"],
  "gemma_scope": ["relu", "threshold", "jumprelu", "gated"],
  "gemma_scope_2": ["jumprelu"],
}
# Architectures that saejax has no recipe for: read from a client, written again.
THEIRS = (
  "saelens_pursuit",
  "saelens_transcoder",
  "saelens_skip_transcoder",
  "saelens_jumprelu_transcoder",
  "saelens_jumprelu_skip_transcoder",
  "saelens_layer_norm",
  "saelens_constant_norm_rescale",
  "saelens_topk_layer_norm",
  "saelens_batchtopk_scaled",
  "saelens_matryoshka",
  "dictionary_learning_AutoEncoderNew",
  "dictionary_learning_BatchTopKSAE",
  "dictionary_learning_MatryoshkaBatchTopKSAE",
  "sparsify_groupmax",
  "sparsify_transcoder",
  "sparsify_skip",
)


def python() -> str:
  """The Python of the clients' environment.

  Raises:
    unittest.SkipTest: there is none.
  """
  given = os.environ.get("SAEJAX_CLIENTS")
  found = pathlib.Path(given or shared.ROOT / ".venv-clients/bin/python")
  if not found.exists():
    raise unittest.SkipTest(f"no {found} (make clients, or SAEJAX_CLIENTS)")
  return str(found)


def setUpModule():
  python()


class ClientsTest(parameterized.TestCase):
  """All cases in one process of the clients: importing them takes seconds."""

  def test_clients_compute_what_saejax_does(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    expected, jobs = {}, []
    for name, client, place, sae, x in self.written(folder):
      z, x_hat = np.asarray(sae.encode(x)), np.asarray(sae.reconstruct(x))
      expected[name] = (z, x_hat)
      np.save(folder / f"{name}.npy", x)
      jobs += [client, place, folder / f"{name}.npy", folder / f"{name}.npz"]
    script = pathlib.Path(__file__).parent / "client.py"
    done = subprocess.run(
      [python(), script, *map(str, jobs)], capture_output=True, text=True
    )
    self.assertEqual(done.returncode, 0, done.stderr[-2000:])
    self.assertGreater(len(expected), 30)
    flips = 0
    for name, (z, x_hat) in expected.items():
      with self.subTest(name), np.load(folder / f"{name}.npz") as got:
        flipped = (z != 0) != (got["z"] != 0)
        at = np.abs(np.where(z != 0, z, got["z"]))[flipped]
        self.assertEmpty(at[at > 1e-5], "active in one alone, off a threshold")
        flips += len(at)
        clear = ~flipped.any(axis=1)
        np.testing.assert_allclose(got["z"][clear], z[clear], 1e-5, 1e-5)
        np.testing.assert_allclose(
          got["x_hat"][clear], x_hat[clear], 1e-5, 2e-5
        )
    self.assertLess(flips, 5)

  def written(self, folder):
    """Each conversion: its name, client, folder, SAE as written, and rows."""
    for format, (client, inside) in FORMATS.items():
      for name in OURS[format]:
        sae = SAES[name].replace(prep=AFFINE)
        saejax.save(sae, folder / "sae")
        yield from self.converted(
          folder,
          f"{format}-{name}",
          str(folder / "sae"),
          format,
          client,
          inside,
        )
    for name in THEIRS:
      case = cases.case(name)
      format = case.read().format
      yield from self.converted(
        folder,
        name,
        str(cases.path(name)),
        format,
        *FORMATS[format],
        scale=case.hints.scale,
      )

  def converted(self, folder, name, source, format, client, inside, **more):
    place = folder / name
    place.mkdir()
    out = place / inside if inside else place / "out"
    out.parent.mkdir(parents=True, exist_ok=True)
    conversion.convert(source, out, format, **more)
    record = names.read(out).record
    x = certificate.random_rows(record, 96).x
    x = x + 0.1 * np.asarray(toy.rows(1, record.d))
    yield name, client, place if inside else out, record.to_sae(), x


if __name__ == "__main__":
  absltest.main()
