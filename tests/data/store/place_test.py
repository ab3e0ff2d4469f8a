"""Places of stores: object stores that speak S3 or gs, and one that fails."""

import concurrent.futures
import errno
import os
import pathlib
import pickle
import time
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from saejax.data import harvest, loader
from saejax.data.store import create, objects, reader
from saejax.data.store import place as places
from saejax.data.store.share import Share
from saejax.errors import InputError
from tests import gcs, s3
from tests.data import tiny

SMALL = {"bucket_rows": 64, "shard_rows": 32, "chunk_rows": 8}


def rows(n=150, d=6):
  x = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
  return {"x": x, "doc": np.arange(n) // 10}


class PlaceTest(parameterized.TestCase):
  @parameterized.parameters("file", "memory")
  def test_objects_are_written_whole_and_once(self, scheme):
    path = self.create_tempdir().full_path
    place = places.at(f"{scheme}://{path}")
    self.assertEqual(place.read(["a", "b/c"]), {})
    place.write("a", b"1")
    place.write("a", b"2")
    self.assertTrue(place.add("b/c", b"3"))
    self.assertFalse(place.add("b/c", b"4"))
    self.assertEqual(place.read(["a", "b/c", "d"]), {"a": b"2", "b/c": b"3"})
    self.assertEqual(place.names(), ["a", "b/c"])
    self.assertEqual(place.names("b"), ["b/c"])
    place.remove("a")
    place.remove("a")
    self.assertEqual(place.names(), ["b/c"])
    self.assertEqual((place / "b").read(["c"]), {"c": b"3"})

  def test_a_file_system_without_hard_links(self):
    place = places.at(self.create_tempdir().full_path)
    refused = PermissionError(errno.EPERM, "Operation not permitted")
    with mock.patch.object(os, "link", side_effect=refused):
      self.assertTrue(place.add("a", b"1"))
      self.assertFalse(place.add("a", b"2"))
    self.assertEqual(place.read(["a"]), {"a": b"1"})
    self.assertEqual(place.names(), ["a"])

  @parameterized.parameters("s3://", "s3:///", "http://a/b", "://a")
  def test_a_url_that_cannot_be(self, url):
    with self.assertRaisesRegex(InputError, "path=.*must be a folder or a URL"):
      places.at(url)

  def test_a_store_in_memory(self):
    url = f"memory://{self.id()}"
    made = create.write_store(url, rows(), **SMALL)
    self.assertEqual(reader.open(url).content, made.content)
    with self.assertRaisesRegex(InputError, "path=memory.*local folder"):
      _ = made.path


class ServedChecks:
  """What holds of any object store; `url` is its server, empty for none."""

  scheme: str
  url: str

  def setUp(self):
    super().setUp()
    self.path = f"{self.scheme}://bucket/{self.id()}"
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def at(self, name="store", endpoint=None):
    return places.at(f"{self.path}/{name}", endpoint=endpoint or self.url)

  def write(self, name="store", endpoint=None):
    return create.write_store(self.at(name, endpoint), rows(), **SMALL)

  def test_the_store_is_that_of_a_folder(self):
    local = create.write_store(self.folder / "a", rows(), **SMALL)
    found = self.write()
    self.assertEqual(found.content, local.content)
    for name, values in local.whole("x", "doc").items():
      np.testing.assert_array_equal(found.whole(name)[name], values)
    found.verify()
    batches = [
      list(loader.batches(store, batch_rows=32, seed=1))
      for store in (local, pickle.loads(pickle.dumps(found)))
    ]
    for a, b in zip(*batches, strict=True):
      np.testing.assert_array_equal(a["x"], b["x"])

  def test_several_processes_harvest_one_store(self):
    corpus = tiny.corpus(self.folder / "corpus")
    local = harvest.harvest(
      tiny.config(corpus, self.folder / "a"), source=tiny.source()
    )
    config = tiny.config(corpus, self.path, endpoint=self.url)
    for process in (1, 0):
      found = harvest.harvest_share(
        config, share=Share(process, 2), source=tiny.source()
      )
    for (place, complete), store in zip(found[0], local, strict=True):
      self.assertTrue(complete)
      self.assertEqual(reader.open(place).content, store.content)

  def test_of_many_who_add_an_object_one_does(self):
    def add(number):
      return self.at().add("entry", b"%d" % number)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
      won = list(pool.map(add, range(16)))
    self.assertEqual(sum(won), 1)
    content = b"%d" % won.index(True)
    self.assertEqual(places.one(self.at(), "entry"), content)


class GcsTest(ServedChecks, parameterized.TestCase):
  scheme, url = "gs", ""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.enterClassContext(gcs.server())

  def test_objects_are_listed_below_a_folder_in_pages(self):
    place = self.at()
    for number in range(7):
      place.write(f"a/{number}", b"%d" % number)
    place.write("b", b"")
    self.assertEqual(place.names("a"), [f"a/{n}" for n in range(7)])
    self.assertLen(place.names(), 8)
    place.remove("a/3")
    self.assertLen(place.names("a"), 6)

  def test_a_bucket_that_is_not_there(self):
    with self.assertRaisesRegex(InputError, "must exist .*make the bucket"):
      create.write_store(places.at("gs://elsewhere/store"), rows(), **SMALL)


class S3Test(ServedChecks, parameterized.TestCase):
  scheme = "s3"

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.url = cls.enterClassContext(s3.server())
    cls.enterClassContext(mock.patch.dict(os.environ, s3.ENVIRONMENT))

  def faulty(self, fault):
    return self.enterContext(s3.proxy(self.url, fault))

  def test_the_endpoint_may_be_a_variable(self):
    self.write()
    with mock.patch.dict(os.environ, AWS_ENDPOINT_URL=self.url):
      self.assertEqual(reader.open(f"{self.path}/store").rows, 150)

  # --- damage -----------------------------------------------------------------

  def test_a_shard_that_is_damaged_or_gone(self):
    found = self.write()
    name = "x/c/1/0"
    content = places.one(found.place, name)
    for damage, message in (
      (content[:100] + b"?" + content[101:], "corrupt"),
      (places.one(found.place, "x/c/2/0"), "rows from 32 on differ"),
      (content[:-7], "corrupt"),
    ):
      found.place.write(name, damage)
      with self.assertRaisesRegex(InputError, f"path=s3://.*{message}"):
        reader.open(self.at()).verify()
    found.place.remove(name)
    with self.assertRaisesRegex(InputError, f"{name}: the object is missing"):
      reader.open(self.at())
    with self.assertRaisesRegex(InputError, "x: a shard or row is missing"):
      found.read(40, 41)

  # --- a server that fails ----------------------------------------------------

  @parameterized.parameters(500, 503, "drop", "lose")
  def test_a_request_in_ten_fails(self, kind):
    endpoint = self.faulty(lambda n, *_: kind if n % 10 == 0 else None)
    found = self.write(endpoint=endpoint)
    self.assertEqual(found.content, self.write("sound").content)
    found.verify()

  def test_a_server_that_never_answers(self):
    endpoint = self.faulty(lambda *_: "hang")
    self.enterContext(mock.patch.object(objects, "_SECONDS", 1.0))
    began = time.monotonic()
    for use in (
      self.write,
      reader.open,
      lambda *_, **__: self._names(endpoint),
    ):
      with self.assertRaisesRegex(InputError, "path=s3://.*must answer .*run"):
        use(endpoint=endpoint) if use == self.write else use(
          self.at(endpoint=endpoint)
        )
    self.assertLess(time.monotonic() - began, 15)

  def _names(self, endpoint):
    return self.at(endpoint=endpoint).names()

  @parameterized.parameters(30, 45, 60)
  def test_a_server_that_dies_keeps_the_finished_buckets(self, at):
    endpoint = self.faulty(lambda n, *_: None if n < at else "drop")
    with self.assertRaisesRegex(InputError, "path=s3://.*must be reachable"):
      self.write(endpoint=endpoint)
    again = self.write()
    self.assertEqual(again.content, self.write("sound").content)
    again.verify()

  def test_a_bucket_without_permission(self):
    endpoint = self.faulty(
      lambda n, method, _: 403 if method == "PUT" else None
    )
    with self.assertRaisesRegex(InputError, "must permit .*credentials"):
      self.write(endpoint=endpoint)
    self.assertEmpty(self.at().names())

  def test_a_bucket_that_is_not_there(self):
    place = places.at("s3://elsewhere/store", endpoint=self.url)
    with self.assertRaisesRegex(InputError, "must exist .*make the bucket"):
      create.write_store(place, rows(), **SMALL)


if __name__ == "__main__":
  absltest.main()
