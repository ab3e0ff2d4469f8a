"""Tests of saejax.evals.probing.sparse_probing: planted latents of classes."""

import numpy as np
import scipy.sparse
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.evals import metrics
from saejax.evals.probing import probe, probe_tasks, sparse_probing

CLASSES, N, D = 4, 600, 24
OWN = np.array([11, 3, 7, 20])  # the latent of each class


def world(seed=0):
  """Latents of which one is on in each class, and rows that mix them all."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, CLASSES, N)
  z = np.maximum(rng.standard_normal((N, 32)), 0)
  z[:, OWN] *= 0.05
  z[np.arange(N), OWN[labels]] += 1
  return {"sae": z, "llm": z @ rng.standard_normal((32, D))}, labels


class SparseProbingTest(parameterized.TestCase):
  def test_one_planted_latent_is_found_and_predicts_its_class(self):
    features, labels = world()
    found = sparse_probing.sparse_probing(features, labels, ks=(1, 5, 100))
    one = found.scores["sae"][1]
    self.assertEqual(one.columns[:, 0].tolist(), OWN.tolist())
    np.testing.assert_array_equal(one.accuracy, 1)
    np.testing.assert_array_equal(one.f1, 1)
    self.assertLess(found.scores["llm"][1].accuracy.mean(), 0.8)
    self.assertGreater(found.scores["llm"]["full"].accuracy.mean(), 0.8)
    record = found.record()
    self.assertEqual(record["sae_top_1_test_accuracy"], 1)
    self.assertIn("llm_test_accuracy", record)
    self.assertNotIn("sae_top_100_test_accuracy", record)  # of 32 latents

  def test_sparse_matrices_give_the_same(self):
    features, labels = world()
    dense = features["sae"]
    both = {"sae": dense, "csr": scipy.sparse.csr_array(dense)}
    found = sparse_probing.sparse_probing(both, labels, ks=(2,)).record()
    self.assertEqual(found["csr_test_auc"], found["sae_test_auc"])
    self.assertEqual(found["csr_top_2_test_f1"], found["sae_top_2_test_f1"])

  def test_labels_without_a_relation_are_at_chance(self):
    features, labels = world()
    labels = np.random.default_rng(1).permutation(labels)
    for protocol in (sparse_probing.SAEBENCH, sparse_probing.SAE_PROBES):
      found = sparse_probing.sparse_probing(
        {"sae": features["sae"]}, labels, ks=(1, 5), protocol=protocol
      ).record()
      for name in ("sae_top_1_test", "sae_top_5_test", "sae_test"):
        self.assertAlmostEqual(found[f"{name}_accuracy"], 0.5, delta=0.1)

  def test_no_penalty_is_chosen_by_test_rows_but_in_compat(self):
    rng = np.random.default_rng(0)
    x, gains = {"llm": rng.standard_normal((120, 10))}, []
    for seed in range(8):
      y = rng.random(120) < 0.5
      ours, theirs = (
        sparse_probing.sparse_probing(x, y, ks=(), seed=seed, compat=compat)
        .scores["llm"]["full"]
        .accuracy[0]
        for compat in (None, "saebench")
      )
      gains.append(theirs - ours)
    self.assertGreaterEqual(min(gains), 0)
    self.assertGreater(np.mean(gains), 0.01)

  def test_the_l1_probe_does_not_depend_on_the_scale_of_a_latent(self):
    features, labels = world()
    z, scale = features["sae"], np.geomspace(0.5, 2, 32)
    both = [
      sparse_probing.sparse_probing(
        {"sae": x},
        labels == 0,
        ks=(32,),
        full=False,
        protocol=sparse_probing.SAE_PROBES,
      ).scores["sae"][32]
      for x in (z, z * scale)
    ]
    self.assertEqual(both[0].auc, both[1].auc)
    self.assertEqual(both[0].C, both[1].C)

  def test_with_more_columns_than_rows_the_full_probe_is_that_of_all(self):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, 90)), rng.random(60) < 0.5
    one = sparse_probing.SAEBENCH._replace(full_Cs=(0.1,))
    found = sparse_probing.sparse_probing({"x": x}, y, ks=(), protocol=one)
    train = probe.split(np.arange(60), test=0.2, seed=0)
    own, other = (
      probe_tasks.tasks(y, among=rows, seed=0)[0] for rows in (train, ~train)
    )
    fit = probe.logistic(x[own.rows], own.y, l2=10.0)
    wanted = metrics.auroc(fit.score(x[other.rows])[:, 0], other.y)
    self.assertEqual(found.scores["x"]["full"].auc[0], wanted)

  @parameterized.parameters(
    ({"labels": np.zeros(N, int)}, "^labels=one class"),
    ({"labels": np.zeros(N - 1, int)}, "^features.sae=600 rows"),
    ({"compat": "best"}, "^compat=best"),
    ({"ks": (0,)}, "^ks="),
    ({"labels": np.arange(N) // (N - 1)}, "^labels=class"),
  )
  def test_refuses_what_cannot_be_probed(self, changed, message):
    features, labels = world()
    given = {"labels": labels, "ks": (1,), **changed}
    with self.assertRaisesRegex(InputError, message):
      sparse_probing.sparse_probing({"sae": features["sae"]}, **given)


class TasksTest(absltest.TestCase):
  def test_negatives_are_as_many_and_even_over_the_other_classes(self):
    labels = np.repeat(["a", "b", "c", "d", ""], [30, 100, 100, 5, 50])
    task = probe_tasks.tasks(labels, seed=0)["a"]
    names, counts = np.unique(labels[task.rows], return_counts=True)
    found = dict(zip(names.tolist(), counts.tolist(), strict=True))
    self.assertEqual(task.y.sum(), 30)
    self.assertEqual(found["d"], 5)  # all that there are
    self.assertEqual(sorted([found["b"], found["c"]]), [12, 13])
    np.testing.assert_array_equal(task.y, labels[task.rows] == "a")
    other = probe_tasks.tasks(labels, seed=1)["a"]
    self.assertFalse(np.array_equal(task.rows, other.rows))

  def test_a_size_and_rows_to_use_bound_a_task(self):
    labels = np.arange(100) % 2
    among = np.arange(100) < 60
    task = probe_tasks.tasks(labels, among=among, size=20, seed=0)[1]
    self.assertLen(task.rows, 20)
    self.assertEqual(task.y.sum(), 10)
    self.assertLess(task.rows.max(), 60)

  def test_booleans_are_a_task_of_each_column(self):
    y = np.random.default_rng(0).random((50, 3)) < 0.4
    found = probe_tasks.tasks(y, seed=0)
    self.assertEqual(list(found), [0, 1, 2])
    np.testing.assert_array_equal(found[2].y, y[found[2].rows, 2])
    with self.assertRaisesRegex(InputError, "^labels=class 0: 0 positive"):
      probe_tasks.tasks(np.zeros(5, bool), seed=0)
    with self.assertRaisesRegex(InputError, "^labels=float64"):
      probe_tasks.tasks(np.zeros(5), seed=0)


if __name__ == "__main__":
  absltest.main()
