"""experiments/evaluate.py on a mesh of CPU devices, beside one device."""

import json

from absl.testing import absltest

from tests.experiments import evaluate_test


class MeshTest(evaluate_test.Base):
  def evaluate(self, name, **more):
    written = self.folder / f"{name}.json"
    small = {
      "tokens": 200,
      "harvest.forward_batch": 4,
      "harvest.pool_batches": 1,
      "harvest.calibration_rows": 64,
      "dir": self.folder / name,
    }
    code, _, err = self.run_script(write=written, **small | more)
    self.assertEqual(code, 0, err)
    (record,) = json.loads(written.read_text())
    return record

  def test_a_mesh_gives_the_numbers_of_one_device(self):
    self.save("a", 64)
    one = self.evaluate("one")
    mesh = self.evaluate("mesh", **{"harvest.mesh": "2,2"})
    self.assertEqual(one["eval_id"], mesh["eval_id"])
    for name in ("eval_result_metrics", "eval_result_details"):
      evaluate_test.same_to(self, one[name], mesh[name], 1e-4)
    for name in ("model", "controls"):
      own, other = (r["eval_result_unstructured"][name] for r in (one, mesh))
      evaluate_test.same_to(self, own, other, 1e-4)

  def test_too_few_devices_are_refused(self):
    self.save("a", 64)
    code, _, err = self.run_script(**{"harvest.mesh": "16,1"})
    self.assertEqual(code, 2)
    self.assertIn("--harvest.mesh", err)


if __name__ == "__main__":
  absltest.main()
