"""What several processes have saved is read by another number of them."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from saejax.training import orbax_io


class ProcessesTest(absltest.TestCase):
  def test_a_position_saved_by_more_processes_is_read(self):
    path = pathlib.Path(self.create_tempdir().full_path) / "1"
    arrays = {"a": jnp.arange(3)}
    orbax_io.begin(path, arrays, '{"batches": 3}').result()
    (file,) = path.rglob("process-0-of-1.json")
    file.rename(file.with_name("process-0-of-2.json"))
    abstract = {"a": orbax_io.abstract(arrays["a"])}
    found, position = orbax_io.load(path, abstract, position=True)
    self.assertEqual(json.loads(position), {"batches": 3})
    np.testing.assert_array_equal(found["a"], arrays["a"])


if __name__ == "__main__":
  absltest.main()
