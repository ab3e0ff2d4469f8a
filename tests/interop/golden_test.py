"""Files of real clients give the latents and outputs that these compute.

tests/clients/make_golden.py made the files; nothing here needs a client.
"""

import numpy as np
from absl.testing import absltest, parameterized

from saejax.interop import formats
from tests.interop import cases


class GoldenTest(parameterized.TestCase):
  @parameterized.parameters(cases.every())
  def test_a_client_s_files_give_what_the_client_computes(self, name):
    case = cases.case(name)
    found = case.read()
    sae = found.record.to_sae()
    got = sae.encode(case.x), sae.reconstruct(case.x)
    cases.assert_same(self, (case.z, case.x_hat), got)

  @parameterized.parameters(cases.every())
  def test_the_definition_is_that_of_the_client(self, name):
    case = cases.case(name)
    got = case.read().forward()(np.float64(case.x))
    cases.assert_same(self, (case.z, case.x_hat), got)

  def test_every_format_that_a_client_reads_has_a_case(self):
    found = {formats.detect(cases.case(name).files) for name in cases.every()}
    without = {"llama_scope", "llama_scope_r1", "llamascopium", "openai"}
    without |= {"hook_z"}  # of these no client is installed
    self.assertEqual(found | without, set(formats.NAMES))


if __name__ == "__main__":
  absltest.main()
