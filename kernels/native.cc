// Calls of a training step on a CPU that XLA compiles badly, for its FFI.
//
// Every call takes leading axes of members, which vmap adds. Work is split by
// rows or by latents and each result is summed by one thread in the order of
// the entries, so that results are the same for any number of threads.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

// A version for each instruction set, chosen when the library is loaded.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(SAEJAX_BASELINE)
#define DISPATCHED \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DISPATCHED
#endif

namespace {

// --- threads -----------------------------------------------------------------

struct Parts {
  std::function<void(int64_t)> body;
  int64_t count;
  std::atomic<int64_t> next{0};
  int64_t done = 0;
  std::mutex mutex;
  std::condition_variable finished;
};

void Work(Parts& parts) {
  int64_t own = 0;
  for (int64_t i; (i = parts.next.fetch_add(1)) < parts.count; ++own) {
    parts.body(i);
  }
  if (own == 0) return;
  std::lock_guard<std::mutex> lock(parts.mutex);
  parts.done += own;
  if (parts.done == parts.count) parts.finished.notify_one();
}

// Runs body(0) ... body(count - 1) on this thread and those of the pool that
// are free: it never waits for a thread that has not started a part, so that
// calls that fill the whole pool do not wait for each other.
void ForEach(ffi::ThreadPool& pool, int64_t count,
             std::function<void(int64_t)> body) {
  auto parts = std::make_shared<Parts>();
  parts->body = std::move(body);
  parts->count = count;
  const int64_t helpers = std::min(count, pool.num_threads()) - 1;
  for (int64_t i = 0; i < helpers; ++i) {
    pool.Schedule([parts] { Work(*parts); });
  }
  Work(*parts);
  std::unique_lock<std::mutex> lock(parts->mutex);
  parts->finished.wait(lock, [&] { return parts->done == parts->count; });
}

int64_t Product(ffi::Span<const int64_t> dims, size_t last) {
  int64_t product = 1;
  for (size_t i = 0; i + last < dims.size(); ++i) product *= dims[i];
  return product;
}

// --- selection ---------------------------------------------------------------

// Integers in the total order of the floats: -NaN < -inf < -0.0 < 0.0 < NaN.
inline int32_t Ordered(int32_t bits) {
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

struct Scratch {
  std::vector<int32_t> keys, most;
  std::vector<uint64_t> candidates;
};

// Keys of a row, and of each of `lanes` lanes (entries i, i + lanes, ...) the
// largest.
DISPATCHED void Keys(const int32_t* bits, int64_t n, int64_t lanes,
                     int32_t* keys, int32_t* most) {
  for (int64_t i = 0; i < n; ++i) keys[i] = Ordered(bits[i]);
  std::memcpy(most, keys, lanes * sizeof(int32_t));
  for (int64_t first = lanes; first < n; first += lanes) {
    const int32_t* block = keys + first;
    const int64_t size = std::min(lanes, n - first);
    for (int64_t i = 0; i < size; ++i) most[i] = std::max(most[i], block[i]);
  }
}

DISPATCHED int64_t CountAtLeast(const int32_t* keys, int64_t n, int32_t t) {
  int32_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += keys[i] >= t;
  return count;
}

// A key that at least k of the n keys reach, and few more where they differ.
int32_t LowerBound(const int32_t* keys, int64_t n, int64_t k) {
  int64_t low = *std::min_element(keys, keys + n);
  int64_t high = static_cast<int64_t>(*std::max_element(keys, keys + n)) + 1;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    const int64_t count = CountAtLeast(keys, n, static_cast<int32_t>(middle));
    if (count < k) {
      high = middle;
    } else {
      low = middle;
      if (count <= k + k / 8) break;
    }
  }
  return static_cast<int32_t>(low);
}

// The k largest of a row, equal ones lowest index first. Each lane with one of
// the k largest has a largest entry that reaches the k-th largest of all lanes.
void SelectRow(const float* row, int64_t n, int64_t k, int64_t lanes,
               bool ordered, Scratch& scratch, float* values,
               int32_t* indices) {
  int32_t* keys = scratch.keys.data();
  int32_t* most = scratch.most.data();
  Keys(reinterpret_cast<const int32_t*>(row), n, lanes, keys, most);
  const int32_t bound = LowerBound(most, lanes, k);
  std::vector<uint64_t>& found = scratch.candidates;
  found.clear();
  for (int64_t lane = 0; lane < lanes; ++lane) {
    if (most[lane] < bound) continue;
    for (int64_t i = lane; i < n; i += lanes) {
      if (keys[i] < bound) continue;
      // Larger keys first, then lower indices, in one number.
      const uint64_t high = static_cast<uint32_t>(keys[i]) ^ 0x80000000u;
      found.push_back(high << 32 | (0xffffffffu - static_cast<uint32_t>(i)));
    }
  }
  const auto descending = std::greater<uint64_t>();
  if (static_cast<int64_t>(found.size()) > k) {
    std::nth_element(found.begin(), found.begin() + (k - 1), found.end(),
                     descending);
  }
  for (int64_t j = 0; j < k; ++j) {
    indices[j] = static_cast<int32_t>(0xffffffffu - (found[j] & 0xffffffffu));
  }
  if (ordered) {
    std::sort(found.begin(), found.begin() + k, descending);
    for (int64_t j = 0; j < k; ++j) {
      indices[j] = static_cast<int32_t>(0xffffffffu - (found[j] & 0xffffffffu));
    }
  } else {
    std::sort(indices, indices + k);
  }
  for (int64_t j = 0; j < k; ++j) values[j] = row[indices[j]];
}

constexpr int64_t kRowsAtOnce = 16;

ffi::Error Select(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> a, int64_t lanes,
                  bool ordered, ffi::ResultBuffer<ffi::F32> values,
                  ffi::ResultBuffer<ffi::S32> indices) {
  const int64_t n = a.dimensions().back();
  const int64_t k = values->dimensions().back();
  const int64_t rows = Product(a.dimensions(), 1);
  ForEach(pool, (rows + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t part) {
    Scratch scratch{std::vector<int32_t>(n), std::vector<int32_t>(lanes), {}};
    const int64_t stop = std::min(rows, (part + 1) * kRowsAtOnce);
    for (int64_t row = part * kRowsAtOnce; row < stop; ++row) {
      SelectRow(a.typed_data() + row * n, n, k, lanes, ordered, scratch,
                values->typed_data() + row * k,
                indices->typed_data() + row * k);
    }
  });
  return ffi::Error::Success();
}

// The entries of a part of a batch that may be among the largest.
struct Found {
  std::vector<int32_t> keys;
  std::vector<int64_t> positions;
};

constexpr int kBins = 1 << 16;

inline uint32_t Bin(int32_t key) {
  return (static_cast<uint32_t>(key) ^ 0x80000000u) >> 16;
}

DISPATCHED void Count(const int32_t* bits, int64_t size, int32_t* bins) {
  for (int64_t i = 0; i < size; ++i) ++bins[Bin(Ordered(bits[i]))];
}

DISPATCHED bool AnyReaches(const int32_t* bits, int64_t size, int32_t least) {
  int32_t any = 0;
  for (int64_t i = 0; i < size; ++i) any |= Ordered(bits[i]) >= least;
  return any != 0;
}

void Collect(const int32_t* bits, int64_t first, int64_t size, int32_t least,
             Found& found) {
  constexpr int64_t kAtOnce = 64;
  for (int64_t start = 0; start < size; start += kAtOnce) {
    const int64_t some = std::min(kAtOnce, size - start);
    if (!AnyReaches(bits + start, some, least)) continue;
    for (int64_t i = start; i < start + some; ++i) {
      const int32_t key = Ordered(bits[i]);
      if (key < least) continue;
      found.keys.push_back(key);
      found.positions.push_back(first + i);
    }
  }
}

// Rows and columns of the `count` largest of all entries, equal ones lowest
// position first, in the order of their positions; -1 beyond the last. The upper
// 16 bits of the count-th largest come from a histogram; those that reach them
// are collected, and the smallest of these left out.
void LargestOf(ffi::ThreadPool& pool, const int32_t* bits, int64_t rows,
               int64_t n, int64_t count, int64_t size, int32_t* out_rows,
               int32_t* out_columns) {
  const int64_t parts = std::min(rows, 4 * std::max<int64_t>(
                                           1, pool.num_threads()));
  const auto begin = [&](int64_t part) { return part * rows / parts * n; };
  std::vector<std::vector<int32_t>> bins(parts);
  ForEach(pool, parts, [&](int64_t part) {
    bins[part].assign(kBins, 0);
    Count(bits + begin(part), begin(part + 1) - begin(part),
          bins[part].data());
  });
  count = std::min({count, size, rows * n});
  int64_t above = 0;  // entries in higher bins
  int64_t bin = kBins - 1;
  for (; bin >= 0; --bin) {
    int64_t here = 0;
    for (const auto& each : bins) here += each[bin];
    if (above + here >= count) break;
    above += here;
  }
  const auto least = static_cast<int32_t>(
      (static_cast<uint32_t>(std::max<int64_t>(bin, 0)) << 16) ^ 0x80000000u);
  std::vector<Found> found(parts);
  ForEach(pool, parts, [&](int64_t part) {
    Collect(bits + begin(part), begin(part), begin(part + 1) - begin(part),
            least, found[part]);
  });
  std::vector<int32_t> edge;  // keys in the bin of the count-th largest
  for (const Found& each : found) {
    for (int32_t key : each.keys) {
      if (Bin(key) == static_cast<uint32_t>(bin)) edge.push_back(key);
    }
  }
  const int64_t wanted = count - above;
  int32_t kth = least;
  int64_t equal = 0;  // entries taken that equal the count-th largest
  if (wanted > 0) {
    std::nth_element(edge.begin(), edge.begin() + (wanted - 1), edge.end(),
                     std::greater<int32_t>());
    kth = edge[wanted - 1];
    equal = wanted - std::count_if(edge.begin(), edge.end(),
                                   [&](int32_t key) { return key > kth; });
  }
  int64_t e = 0;
  for (const Found& each : found) {
    for (size_t i = 0; i < each.keys.size() && e < count; ++i) {
      const int32_t key = each.keys[i];
      if (key < kth || (key == kth && equal-- <= 0)) continue;
      out_rows[e] = static_cast<int32_t>(each.positions[i] / n);
      out_columns[e++] = static_cast<int32_t>(each.positions[i] % n);
    }
  }
  std::fill(out_rows + e, out_rows + size, -1);
  std::fill(out_columns + e, out_columns + size, -1);
}

ffi::Error Largest(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> scores,
                   ffi::Buffer<ffi::F32> count,
                   ffi::ResultBuffer<ffi::S32> rows,
                   ffi::ResultBuffer<ffi::S32> columns) {
  const auto shape = scores.dimensions();
  const int64_t n = shape[shape.size() - 1], b = shape[shape.size() - 2];
  const int64_t size = rows->dimensions().back();
  for (int64_t m = 0; m < Product(shape, 2); ++m) {
    LargestOf(pool,
              reinterpret_cast<const int32_t*>(scores.typed_data()) + m * b * n,
              b, n, static_cast<int64_t>(count.typed_data()[m]), size,
              rows->typed_data() + m * size, columns->typed_data() + m * size);
  }
  return ffi::Error::Success();
}

// --- rows of latents ---------------------------------------------------------

// The entries of a code by latent: positions in the code, ascending, of latent
// i between first[i] and first[i + 1]. Entries of value 0 and of indices outside
// [0, n) are left out.
struct ByLatent {
  std::vector<int64_t> first;
  std::vector<int32_t> positions;

  ByLatent(const float* values, const int32_t* indices, int64_t entries,
           int64_t n)
      : first(n + 1) {
    const auto present = [&](int64_t e) {
      return values[e] != 0 && indices[e] >= 0 && indices[e] < n;
    };
    for (int64_t e = 0; e < entries; ++e) {
      if (present(e)) ++first[indices[e] + 1];
    }
    for (int64_t i = 0; i < n; ++i) first[i + 1] += first[i];
    positions.resize(first[n]);
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (int64_t e = 0; e < entries; ++e) {
      if (present(e)) positions[next[indices[e]]++] = e;
    }
  }
};

// sum += v y, for four rows y at once: one pass over the sum.
DISPATCHED void AddRows(const float* const* y, const float* v, int64_t count,
                        int64_t d, float* sum) {
  int64_t r = 0;
  for (; r + 4 <= count; r += 4) {
    const float *a = y[r], *b = y[r + 1], *c = y[r + 2], *e = y[r + 3];
    const float va = v[r], vb = v[r + 1], vc = v[r + 2], ve = v[r + 3];
#pragma omp simd
    for (int64_t i = 0; i < d; ++i) {
      sum[i] += va * a[i] + vb * b[i] + vc * c[i] + ve * e[i];
    }
  }
  for (; r < count; ++r) {
    const float* a = y[r];
    const float va = v[r];
#pragma omp simd
    for (int64_t i = 0; i < d; ++i) sum[i] += va * a[i];
  }
}

// As AddRows, and products[r] = <y[r], w>, with one read of each row.
DISPATCHED void AddRowsAndProducts(const float* const* y, const float* v,
                                   int64_t count, const float* w, int64_t d,
                                   float* sum, float* products) {
  int64_t r = 0;
  for (; r + 4 <= count; r += 4) {
    const float *a = y[r], *b = y[r + 1], *c = y[r + 2], *e = y[r + 3];
    const float va = v[r], vb = v[r + 1], vc = v[r + 2], ve = v[r + 3];
    float pa = 0, pb = 0, pc = 0, pe = 0;
#pragma omp simd reduction(+ : pa, pb, pc, pe)
    for (int64_t i = 0; i < d; ++i) {
      const float wi = w[i];
      pa += a[i] * wi;
      pb += b[i] * wi;
      pc += c[i] * wi;
      pe += e[i] * wi;
      sum[i] += va * a[i] + vb * b[i] + vc * c[i] + ve * e[i];
    }
    products[r] = pa, products[r + 1] = pb;
    products[r + 2] = pc, products[r + 3] = pe;
  }
  for (; r < count; ++r) {
    const float* a = y[r];
    const float va = v[r];
    float pa = 0;
#pragma omp simd reduction(+ : pa)
    for (int64_t i = 0; i < d; ++i) {
      pa += a[i] * w[i];
      sum[i] += va * a[i];
    }
    products[r] = pa;
  }
}

constexpr int64_t kLatentsAtOnce = 64;
constexpr int64_t kEntriesAtOnce = 64;

// Sums of values times rows of y by latent, [n, d]; with W also the products
// of the rows of y with the rows of W that the entries name, one per entry.
void GradientRows(ffi::ThreadPool& pool, const float* values,
                  const int32_t* indices, const int32_t* source, const float* y,
                  const float* W, int64_t entries, int64_t d, int64_t n,
                  float* out, float* products) {
  const ByLatent code(values, indices, entries, n);
  if (W != nullptr) std::memset(products, 0, entries * sizeof(float));
  ForEach(pool, (n + kLatentsAtOnce - 1) / kLatentsAtOnce, [&](int64_t part) {
    const float* rows[kEntriesAtOnce];
    float factors[kEntriesAtOnce], found[kEntriesAtOnce];
    const int64_t stop = std::min(n, (part + 1) * kLatentsAtOnce);
    for (int64_t i = part * kLatentsAtOnce; i < stop; ++i) {
      float* sum = out + i * d;
      std::memset(sum, 0, d * sizeof(float));
      for (int64_t e = code.first[i]; e < code.first[i + 1];) {
        const int64_t count = std::min(kEntriesAtOnce, code.first[i + 1] - e);
        const int32_t* positions = code.positions.data() + e;
        for (int64_t r = 0; r < count; ++r) {
          rows[r] = y + int64_t{source[positions[r]]} * d;
          factors[r] = values[positions[r]];
        }
        if (W == nullptr) {
          AddRows(rows, factors, count, d, sum);
        } else {
          AddRowsAndProducts(rows, factors, count, W + i * d, d, sum, found);
          for (int64_t r = 0; r < count; ++r) products[positions[r]] = found[r];
        }
        e += count;
      }
    }
  });
}

ffi::Error AddEntries(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> values,
                      ffi::Buffer<ffi::S32> to, ffi::Buffer<ffi::S32> source,
                      ffi::Buffer<ffi::F32> y,
                      ffi::ResultBuffer<ffi::F32> out) {
  const auto shape = y.dimensions();
  const int64_t entries = values.dimensions().back(), d = shape.back();
  const int64_t size = out->dimensions()[out->dimensions().size() - 2];
  const int64_t rows = shape[shape.size() - 2];
  for (int64_t m = 0; m < Product(values.dimensions(), 1); ++m) {
    GradientRows(pool, values.typed_data() + m * entries,
                 to.typed_data() + m * entries,
                 source.typed_data() + m * entries,
                 y.typed_data() + m * rows * d, nullptr, entries, d, size,
                 out->typed_data() + m * size * d, nullptr);
  }
  return ffi::Error::Success();
}

ffi::Error EntryGradients(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> values,
                          ffi::Buffer<ffi::S32> rows,
                          ffi::Buffer<ffi::S32> indices,
                          ffi::Buffer<ffi::F32> g, ffi::Buffer<ffi::F32> W,
                          ffi::ResultBuffer<ffi::F32> d_values,
                          ffi::ResultBuffer<ffi::F32> d_W) {
  const auto shape = W.dimensions(), from = g.dimensions();
  const int64_t entries = values.dimensions().back(), d = shape.back();
  const int64_t n = shape[shape.size() - 2], size = from[from.size() - 2];
  for (int64_t m = 0; m < Product(values.dimensions(), 1); ++m) {
    GradientRows(pool, values.typed_data() + m * entries,
                 indices.typed_data() + m * entries,
                 rows.typed_data() + m * entries,
                 g.typed_data() + m * size * d, W.typed_data() + m * n * d,
                 entries, d, n, d_W->typed_data() + m * n * d,
                 d_values->typed_data() + m * entries);
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(saejaxSelect, Select,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("lanes")
                                  .Attr<bool>("ordered")
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(saejaxLargest, Largest,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(saejaxAddEntries, AddEntries,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(saejaxEntryGradients, EntryGradients,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
