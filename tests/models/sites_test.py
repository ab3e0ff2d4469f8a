"""Sites in tensors: rows out of every layout, and back."""

import collections

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.models import sites, taps

Named = collections.namedtuple("Named", "first second")


def site(**fields):
  return taps.Site(**({"name": "s", "module": "m"} | fields))


class SitesTest(parameterized.TestCase):
  @parameterized.product(
    case=[
      ("BTD", (2, 3, 4), (2, 3, 4)),
      ("TBD", (3, 2, 4), (2, 3, 4)),
      ("BCHW", (2, 5, 3, 4), (2, 3, 4, 5)),
      ("BHWC", (2, 3, 4, 5), (2, 3, 4, 5)),
      ("BT(HD)", (2, 3, 8), (2, 3, 8)),
      ("BT(HD)", (2, 3, 4, 2), (2, 3, 8)),
      ("B(HD)T", (2, 4, 2, 3), (2, 3, 8)),
      ("BD", (2, 4), (2, 4)),
    ],
    kind=[np.asarray, jnp.asarray],
  )
  def test_rows_come_out_and_go_back(self, case, kind):
    layout, shape, wanted = case
    x = kind(np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    s = site(layout=layout)
    rows = sites.rows(x, s)
    self.assertEqual(rows.shape, wanted)
    self.assertIs(type(rows), type(x))
    np.testing.assert_array_equal(sites.replaced(x, s, rows), x)
    # One row is one place of the tensor.
    at = tuple(n - 1 for n in wanted[:-1])
    changed = np.array(rows)
    changed[at] = -1
    back = np.asarray(sites.replaced(x, s, kind(changed)))
    self.assertEqual((back == -1).sum(), wanted[-1])
    np.testing.assert_array_equal(
      sites.rows(back, s)[at], np.full(wanted[-1], -1)
    )

  def test_a_place_of_a_picture_is_its_row(self):
    x = np.arange(2 * 5 * 3 * 4).reshape(2, 5, 3, 4)
    rows = sites.rows(x, site(layout="BCHW"))
    np.testing.assert_array_equal(rows[1, 2, 3], x[1, :, 2, 3])
    found = sites.table(rows, site(layout="BCHW"), first=10)
    at = int(np.flatnonzero((found["doc"] == 11) & (found["pos"] == 11))[0])
    np.testing.assert_array_equal(found["x"][at], x[1, :, 2, 3])

  def test_parts_of_the_width(self):
    x = np.arange(2 * 3 * 12).reshape(2, 3, 12)
    middle = site(columns=(1, 4, 8))
    np.testing.assert_array_equal(sites.rows(x, middle), x[..., 4:8])
    # Two heads, each with its query, key and value of width 2.
    value = site(columns=(2, 4, 6))
    want = x[..., [4, 5, 10, 11]]
    np.testing.assert_array_equal(sites.rows(x, value), want)
    back = sites.replaced(x, value, -want)
    np.testing.assert_array_equal(back[..., [4, 5, 10, 11]], -want)
    rest = [0, 1, 2, 3, 6, 7, 8, 9]
    np.testing.assert_array_equal(back[..., rest], x[..., rest])
    with self.assertRaisesRegex(errors.InputError, "site.columns=.*12"):
      sites.rows(x, site(columns=(2, 4, 7)))

  def test_halves_of_a_guided_batch(self):
    x = jnp.arange(24.0).reshape(4, 3, 2)
    for branch, half in (("uncond", slice(2)), ("cond", slice(2, None))):
      s = site(branch=branch, columns=(1, 0, 1))
      np.testing.assert_array_equal(sites.rows(x, s), x[half, :, :1])
      back = sites.replaced(x, s, -sites.rows(x, s) - 1)
      want = x.at[half, :, :1].set(-x[half, :, :1] - 1)
      np.testing.assert_array_equal(back, want)
    with self.assertRaisesRegex(errors.InputError, "site.branch=cond.*3"):
      sites.rows(x[:3], site(branch="cond"))

  @parameterized.parameters("mask", "all")
  def test_pools(self, rows):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3)), "float32")
    mask = np.asarray([[1, 1, 0, 1], [0, 1, 1, 0]], bool)
    kept = mask if rows == "mask" else np.ones_like(mask)
    for pool, want in {
      "mean": lambda a: a.mean(axis=0),
      "sum": lambda a: a.sum(axis=0),
      "max": lambda a: a.max(axis=0),
      "last": lambda a: a[-1],
    }.items():
      s = site(pool=pool, rows=rows)
      found = sites.pooled(x, s, mask)
      for i in range(2):
        np.testing.assert_allclose(
          found[i], want(np.asarray(x[i])[kept[i]]), rtol=1e-5
        )
    with self.assertRaisesRegex(errors.InputError, "mask=.*positions of m"):
      sites.pooled(x, site(pool="mean"), mask[:, :3])

  def test_the_table_has_the_rows_of_the_mask(self):
    x = np.arange(24.0).reshape(2, 4, 3)
    mask = np.asarray([[1, 1, 0, 1], [0, 1, 1, 0]], bool)
    found = sites.table(x, site(), mask)
    self.assertEqual(found["doc"].tolist(), [0, 0, 0, 1, 1])
    self.assertEqual(found["pos"].tolist(), [0, 1, 3, 1, 2])
    np.testing.assert_array_equal(found["x"], x[mask])
    self.assertLen(sites.table(x, site(rows="all"), mask)["x"], 8)
    self.assertLen(sites.table(x[:, 0], site(pool="last"), mask)["x"], 2)

  def test_elements_of_outputs_keep_their_container(self):
    a, b, c = np.zeros((3, 1, 1, 1))
    for output, index in (
      (a, None), (a, 0), ((a, b), 0), ((a, b), 1), ([a, b], 1), ((a, b), None),
      (Named(a, b), 1), ({"x": a, "y": b}, "y"), ({"x": a, "y": b}, 1),
    ):  # fmt: skip
      s = site(index=index)
      found = sites.pick(output, s)
      self.assertIs(found, b if index in (1, "y") else a)
      changed = sites.put(output, s, c)
      self.assertIs(type(changed), type(output))
      self.assertIs(sites.pick(changed, s), c)
      self.assertIs(sites.pick(output, s), found)
    for output, index in ((a, 1), ((a, b), 2), ({"x": a}, "z"), ((1, a), 0)):
      with self.assertRaisesRegex(errors.InputError, "site.index=.*in what m"):
        sites.pick(output, site(index=index))

  @parameterized.parameters(
    ("port", "up"), ("rows", "some"), ("branch", "left"), ("pool", "median"),
    ("call", -2), ("call", "last"), ("call", True), ("layout", "TD"),
    ("layout", "BT"), ("layout", "BBD"), ("layout", "B T D"), ("layout", "BCD"),
  )  # fmt: skip
  def test_unknown_values_are_refused(self, field, value):
    with self.assertRaisesRegex(errors.InputError, f"site.{field}={value}"):
      sites.at(site(**{field: value}))

  def test_names_have_a_module_and_a_port(self):
    found = sites.at("a.b:in")
    self.assertEqual((found.module, found.port), ("a.b", "in"))
    self.assertEqual(sites.at("a.b").port, "out")
    with self.assertRaisesRegex(errors.InputError, "site.port=up"):
      sites.at("a.b:up")


if __name__ == "__main__":
  absltest.main()
