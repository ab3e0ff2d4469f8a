"""SAEBench itself computes what the golden file says, see core_compat_test."""

import json
import pathlib
import subprocess

import numpy as np
from absl.testing import absltest

from tests.clients import clients_test, make_core_golden
from tests.evals import core_cases


class CoreClientTest(absltest.TestCase):
  def test_the_golden_file_is_what_saebench_computes(self):
    installed = [clients_test.python(), "-c", "import sae_bench"]
    if subprocess.run(installed, capture_output=True).returncode:
      self.skipTest("no sae-bench (make clients)")
    folder = pathlib.Path(self.create_tempdir().full_path)
    got = make_core_golden.saebench(folder)
    want = json.loads(core_cases.GOLDEN.read_text())
    self.assertEqual(got["windows"], want["windows"])
    self.assertEqual(got["saes"].keys(), want["saes"].keys())
    for name, found in want["saes"].items():
      for category, values in found["metrics"].items():
        for key, value in values.items():
          now = got["saes"][name]["metrics"][category][key]
          np.testing.assert_allclose(now, value, 1e-4, 1e-6, err_msg=key)


if __name__ == "__main__":
  absltest.main()
