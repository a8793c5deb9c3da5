// Decoding on a CPU in few calls: products of few rows, experts, the router, norm and rotation.
//
// Weights stay as they are stored, [out, in], in float32 or in int8 with a scale per output. A number
// depends on its own row alone, but for the order of its sum, which more than eight rows change.
// `native.py` says what each function computes; the twins in plain torch are in `quant`, `experts`,
// `route`, `norm` and `rope`.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>
#include <pybind11/stl.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

using at::Tensor;
using Maybe = std::optional<Tensor>;

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
constexpr int64_t COLUMNS = 32;  // least outputs of one unit of parallel work
typedef float Vec __attribute__((vector_size(4 * LANES)));

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline Vec load(const int8_t* p) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
  return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
  Vec v;
  for (int i = 0; i < LANES; ++i) v[i] = p[i];
  return v;
#endif
}
inline float total(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float a[LANES];
  std::memcpy(a, &v, sizeof v);
  for (int n = LANES / 2; n; n /= 2)
    for (int i = 0; i < n; ++i) a[i] += a[i + n];
  return a[0];
#endif
}

// y[r, o] = x[r] . w[o] for a tile of R rows and O outputs
template <int R, int O, class W>
inline void tile(const float* x, const W* w, int64_t k, float* y, int64_t ldy) {
  Vec sum[R][O] = {};
  int64_t i = 0;
  for (; i + LANES <= k; i += LANES) {
    Vec weight[O];
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) weight[o] = load(w + o * k + i);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      Vec row = load(x + r * k + i);
#pragma GCC unroll 8
      for (int o = 0; o < O; ++o) sum[r][o] += row * weight[o];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) {
      float rest = 0;
      for (int64_t j = i; j < k; ++j) rest += x[r * k + j] * float(w[o * k + j]);
      y[r * ldy + o] = total(sum[r][o]) + rest;
    }
}

template <int R, int O, class W>
void strip(const float* x, const W* w, int64_t outs, int64_t k, float* y, int64_t ldy) {
  int64_t o = 0;
  for (; o + O <= outs; o += O) tile<R, O>(x, w + o * k, k, y + o, ldy);
  for (; o < outs; ++o) tile<R, 1>(x, w + o * k, k, y + o, ldy);
}

// The same for up to LANES rows, one to a lane: `turned` is [k, LANES], `wide` room for 8 k numbers
template <class W>
void lanes(const float* turned, int64_t rows, const W* w, int64_t outs, int64_t k, float* wide,
           float* y, int64_t ldy) {
  constexpr int O = 8;
  for (int64_t o = 0; o < outs; o += O) {
    int64_t n = std::min<int64_t>(O, outs - o);
    for (int64_t i = 0; i < n * k; ++i) wide[i] = w[o * k + i];
    Vec sum[O] = {};
    for (int64_t i = 0; i < k; ++i) {
      Vec row = load(turned + i * LANES);
#pragma GCC unroll 8
      for (int j = 0; j < O; ++j) sum[j] += row * wide[j * k + i];
    }
    float out[O][LANES];
    std::memcpy(out, sum, sizeof sum);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < n; ++j) y[r * ldy + o + j] = out[j][r];
  }
}

// y = x w^T for `outs` outputs, scaled per output
template <class W>
void product(const float* x, int64_t rows, const W* w, const float* scale, int64_t outs, int64_t k,
             float* y, int64_t ldy) {
  int64_t r = 0;
  std::vector<float> room(rows > 8 ? k * (LANES + 8) : 0, 0.0f);
  float *turned = room.data(), *wide = turned + k * LANES;
  for (; rows - r > 8; r += LANES) {
    int64_t n = std::min<int64_t>(LANES, rows - r);
    for (int64_t j = 0; j < n; ++j)
      for (int64_t i = 0; i < k; ++i) turned[i * LANES + j] = x[(r + j) * k + i];
    lanes(turned, n, w, outs, k, wide, y + r * ldy, ldy);
  }
  for (; rows - r >= 4; r += 4) strip<4, 4>(x + r * k, w, outs, k, y + r * ldy, ldy);
  switch (rows - r) {
    case 3: strip<3, 4>(x + r * k, w, outs, k, y + r * ldy, ldy); break;
    case 2: strip<2, 8>(x + r * k, w, outs, k, y + r * ldy, ldy); break;
    case 1: strip<1, 8>(x + r * k, w, outs, k, y + r * ldy, ldy); break;
  }
  if (scale)
    for (r = 0; r < rows; ++r)
      for (int64_t o = 0; o < outs; ++o) y[r * ldy + o] *= scale[o];
}

const float* floats(const Maybe& t) { return t ? t->const_data_ptr<float>() : nullptr; }

// One number for each of `count` outputs, side by side, or none
Maybe each(const char* what, const Maybe& t, int64_t count) {
  TORCH_CHECK(!t || t->numel() == count, what, ": ", t->numel(), " numbers for ", count, " outputs");
  return t ? t->contiguous() : t;
}

// A matrix or a stack of them, whole in memory, and its scales if it is of bytes
struct Stack {
  Tensor weight;  // [E, O, I], or [O, I] for one
  Maybe scale;    // [E, O] or [O]

  Stack(const char* what, const Tensor& w, const Maybe& by) : weight(w.contiguous()) {
    TORCH_CHECK(w.dim() >= 2 && w.numel() > 0, what, ": a weight of shape ", w.sizes());
    TORCH_CHECK(by.has_value() == (w.scalar_type() == at::kChar), what, ": bytes alone have scales");
    scale = each(what, by, w.numel() / w.size(-1));
  }
  int64_t outs() const { return weight.size(-2); }
  int64_t inner() const { return weight.size(-1); }
};

template <class F>
void typed(const Tensor& w, F run) {
  if (w.scalar_type() == at::kChar)
    run(w.const_data_ptr<int8_t>());
  else
    run(w.const_data_ptr<float>());
}

Tensor linear(const Tensor& x_, const Tensor& w_, const Maybe& scale_, const Maybe& bias_) {
  Tensor x = x_.contiguous();
  Stack held("linear", w_, scale_);
  const Tensor& w = held.weight;
  TORCH_CHECK(w.dim() == 2 && x.size(-1) == held.inner(), "linear: ", x.sizes(), " by ", w.sizes());
  int64_t k = held.inner(), outs = held.outs(), rows = x.numel() / k;
  Maybe scale = held.scale, bias = each("linear", bias_, outs);
  auto shape = x.sizes().vec();
  shape.back() = outs;
  Tensor y = at::empty(shape, x.options());
  const float *from = x.const_data_ptr<float>(), *by = floats(scale), *add = floats(bias);
  float* to = y.mutable_data_ptr<float>();
  typed(w, [&](auto* weight) {
    at::parallel_for(0, outs, COLUMNS, [&](int64_t a, int64_t b) {
      product(from, rows, weight + a * k, by ? by + a : nullptr, b - a, k, to + a, outs);
      if (add)
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t o = a; o < b; ++o) to[r * outs + o] += add[o];
    });
  });
  return y;
}

inline void activate(bool silu, const float* gate, float* up, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i)
    up[i] *= silu ? gate[i] / (1.0f + expf(-gate[i])) : std::max(gate[i], 0.0f) * std::max(gate[i], 0.0f);
}

// Products of sorted rows, ends[e-1]..ends[e] with matrix e of each stack, some outputs of one matrix at a time
template <class After>
void grouped(const float* x, const std::vector<int64_t>& ends, const std::vector<Stack>& stacks,
             const std::vector<float*>& y, After after) {
  int64_t outs = stacks[0].outs(), k = stacks[0].inner();
  std::vector<int64_t> used;
  for (int64_t e = 0; e + 1 < int64_t(ends.size()); ++e)
    if (ends[e + 1] > ends[e]) used.push_back(e);
  int64_t threads = at::get_num_threads(), parts = (threads + used.size() - 1) / used.size();
  int64_t columns = (outs + parts - 1) / parts;
  parts = (outs + columns - 1) / columns;  // rounded up, columns may end before the last part
  at::parallel_for(0, used.size() * parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t unit = first; unit < last; ++unit) {
      int64_t e = used[unit / parts], o = unit % parts * columns, n = std::min(columns, outs - o);
      int64_t start = ends[e], rows = ends[e + 1] - start;
      for (size_t s = 0; s < stacks.size(); ++s) {
        const float* scale = floats(stacks[s].scale);
        typed(stacks[s].weight, [&](auto* w) {
          product(x + start * k, rows, w + (e * outs + o) * k, scale ? scale + e * outs + o : nullptr,
                  n, k, y[s] + start * outs + o, outs);
        });
      }
      for (int64_t r = start; r < start + rows; ++r) after(r, r * outs + o, n);
    }
  });
}

Tensor experts(const Tensor& x_, const Maybe& chosen_, const Maybe& weights_,
               const std::vector<Tensor>& matrices, const std::vector<Tensor>& scales, bool silu) {
  Tensor x = x_.contiguous();
  size_t kinds = matrices.size();
  TORCH_CHECK(kinds == 2 || kinds == 3, "experts: ", kinds, " matrices");
  TORCH_CHECK(scales.empty() || scales.size() == kinds, "experts: ", scales.size(), " scales");
  std::vector<Stack> first, last;
  for (size_t i = 0; i < kinds; ++i)
    (i + 1 < kinds ? first : last)
        .emplace_back("experts", matrices[i], scales.empty() ? Maybe() : Maybe(scales[i]));
  int64_t wide = first[0].outs(), dim = first[0].inner();
  int64_t count = first[0].weight.numel() / (wide * dim);
  for (const Stack& one : first)
    TORCH_CHECK(one.weight.sizes() == first[0].weight.sizes(), "experts: unlike gate and up");
  TORCH_CHECK(last[0].outs() == dim && last[0].inner() == wide && x.size(-1) == dim &&
                  last[0].weight.numel() == count * wide * dim,
              "experts: ", x.sizes(), " by ", matrices[0].sizes(), " and ", matrices.back().sizes());
  int64_t rows = x.numel() / dim, active = chosen_ ? chosen_->size(1) : 1, pairs = rows * active;
  TORCH_CHECK(chosen_ ? weights_ && chosen_->size(0) == rows && weights_->sizes() == chosen_->sizes()
                      : count == 1,
              "experts: each of ", rows, " rows needs its choice and its weights");
  if (!pairs) return at::zeros_like(x);
  Tensor chosen, weights;
  std::vector<int64_t> ends(count + 1, 0), place(pairs), source(pairs);
  if (chosen_) {
    chosen = chosen_->contiguous(), weights = weights_->contiguous();
    const int64_t* e = chosen.const_data_ptr<int64_t>();
    for (int64_t p = 0; p < pairs; ++p) {
      TORCH_CHECK(e[p] >= 0 && e[p] < count, "experts: number ", e[p], " of ", count);
      ++ends[e[p] + 1];
    }
    for (int64_t n = 0; n < count; ++n) ends[n + 1] += ends[n];
    std::vector<int64_t> next(ends.begin(), ends.end() - 1);
    for (int64_t p = 0; p < pairs; ++p) source[place[p] = next[e[p]]++] = p;
  } else {
    ends[1] = rows;
    for (int64_t p = 0; p < rows; ++p) source[p] = place[p] = p;
  }
  const float *from = x.const_data_ptr<float>(), *share = chosen_ ? weights.const_data_ptr<float>() : nullptr;
  bool gated = first.size() == 2;
  Tensor buffer = at::empty({pairs * (dim + 2 * wide)}, x.options());
  float *sorted = buffer.mutable_data_ptr<float>(), *up = sorted + pairs * dim, *gate = up + pairs * wide;
  for (int64_t p = 0; p < pairs; ++p)
    std::memcpy(sorted + p * dim, from + source[p] / active * dim, dim * sizeof(float));
  grouped(sorted, ends, first, gated ? std::vector<float*>{gate, up} : std::vector<float*>{up},
          [&](int64_t r, int64_t at, int64_t n) {
            if (!gated) {
              std::memcpy(gate + at, up + at, n * sizeof(float));
              std::fill(up + at, up + at + n, 1.0f);
            }
            activate(silu, gate + at, up + at, n);
            if (share)
              for (int64_t i = at; i < at + n; ++i) up[i] *= share[source[r]];
          });
  Tensor y = at::empty_like(x);
  float* to = y.mutable_data_ptr<float>();
  grouped(up, ends, last, {share ? sorted : to}, [](int64_t, int64_t, int64_t) {});
  if (share)
    for (int64_t r = 0; r < rows; ++r) {
      float* out = to + r * dim;
      std::memcpy(out, sorted + place[r * active] * dim, dim * sizeof(float));
      for (int64_t a = 1; a < active; ++a)
        for (int64_t i = 0; i < dim; ++i) out[i] += sorted[place[r * active + a] * dim + i];
    }
  return y;
}

Tensor rms_norm(const Tensor& x_, const Tensor& weight, double eps) {
  Tensor x = x_.contiguous(), y = at::empty_like(x), w = weight.contiguous();
  int64_t dim = x.size(-1);
  TORCH_CHECK(dim > 0 && w.numel() > 0 && w.numel() % dim == 0, "rms_norm: ", x.sizes(), " by ", w.sizes());
  int64_t rows = x.numel() / dim, kinds = w.numel() / dim;
  const float *from = x.const_data_ptr<float>(), *by = w.const_data_ptr<float>();
  float* to = y.mutable_data_ptr<float>();
  at::parallel_for(0, rows, std::max<int64_t>(1, 32768 / dim), [&](int64_t a, int64_t b) {
    for (int64_t r = a; r < b; ++r) {
      float square = 0;
      tile<1, 1>(from + r * dim, from + r * dim, dim, &square, 1);
      float inverse = 1.0f / std::sqrt(square / dim + float(eps));
      const float* own = by + r % kinds * dim;
      for (int64_t i = 0; i < dim; ++i) to[r * dim + i] = from[r * dim + i] * inverse * own[i];
    }
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> route(const Tensor& x_, const Tensor& weight, const Maybe& bias_,
                                         bool sigmoid, int64_t active, bool normalize,
                                         double factor) {
  Tensor x = x_.contiguous(), w = weight.contiguous();
  int64_t dim = x.size(-1), count = w.size(0);
  TORCH_CHECK(w.dim() == 2 && dim > 0 && w.size(1) == dim, "route: ", x.sizes(), " by ", w.sizes());
  TORCH_CHECK(active >= 0 && active <= count, "route: ", active, " of ", count, " experts");
  int64_t rows = x.numel() / dim;
  Maybe bias = each("route", bias_, count);
  Tensor scores = at::empty({rows, count}, x.options());
  Tensor chosen = at::empty({rows, active}, x.options().dtype(at::kLong));
  Tensor shares = at::empty({rows, active}, x.options());
  const float* add = floats(bias);
  std::vector<float> rank(count);
  float* score = scores.mutable_data_ptr<float>();
  product(x.const_data_ptr<float>(), rows, w.const_data_ptr<float>(), nullptr, count, dim, score, count);
  for (int64_t r = 0; r < rows; ++r, score += count) {
    float top = *std::max_element(score, score + count), sum = 0;
    for (int64_t e = 0; e < count; ++e)
      score[e] = sigmoid ? 1.0f / (1.0f + std::exp(-score[e])) : std::exp(score[e] - top);
    if (!sigmoid) {
      for (int64_t e = 0; e < count; ++e) sum += score[e];
      for (int64_t e = 0; e < count; ++e) score[e] /= sum;
    }
    for (int64_t e = 0; e < count; ++e) {
      rank[e] = score[e] + (add ? add[e] : 0.0f);
      if (std::isnan(rank[e])) rank[e] = INFINITY;  // the largest, as to torch: it must be seen
    }
    int64_t* pick = chosen.mutable_data_ptr<int64_t>() + r * active;
    float *share = shares.mutable_data_ptr<float>() + r * active, whole = 1e-20f;
    for (int64_t a = 0; a < active; ++a) {
      pick[a] = std::max_element(rank.begin(), rank.end()) - rank.begin();
      rank[pick[a]] = -INFINITY;
      whole += share[a] = score[pick[a]];
    }
    for (int64_t a = 0; a < active; ++a) share[a] *= float(factor) / (normalize ? whole : 1.0f);
  }
  return {scores, chosen, shares};
}

Tensor rotate(const Tensor& x_, const Tensor& cos_, const Tensor& sin_, int64_t width, bool half) {
  Tensor x = x_.stride(-1) == 1 ? x_ : x_.contiguous(), cos = cos_.contiguous(), sin = sin_.contiguous();
  TORCH_CHECK(x.dim() == 4 && width % 2 == 0 && width <= x.size(3), "rotate: ", width, " of ", x.sizes());
  bool fits = cos.dim() == 4 && cos.sizes() == sin.sizes() && cos.size(1) == x.size(1) && cos.size(2) == 1;
  TORCH_CHECK(fits && cos.size(3) == x.size(3) && (cos.size(0) == 1 || cos.size(0) == x.size(0)),
              "rotate: ", x.sizes(), " by ", cos.sizes());
  Tensor y = at::empty(x.sizes(), x.options());
  int64_t times = x.size(1), heads = x.size(2), dim = x.size(3), by = width / 2;
  float* to = y.mutable_data_ptr<float>();
  for (int64_t b = 0; b < x.size(0); ++b)
    for (int64_t t = 0; t < times; ++t) {
      int64_t at = ((cos.size(0) > 1 ? b : 0) * times + t) * dim;
      const float *c = cos.const_data_ptr<float>() + at, *s = sin.const_data_ptr<float>() + at;
      for (int64_t h = 0; h < heads; ++h, to += dim) {
        const float* from = x.const_data_ptr<float>() + b * x.stride(0) + t * x.stride(1) + h * x.stride(2);
        for (int64_t i = 0; i < by; ++i) {
          int64_t m = half ? i : 2 * i, n = half ? i + by : 2 * i + 1;
          to[m] = from[m] * c[m] + from[n] * s[m];
          to[n] = from[n] * c[n] + from[m] * s[n];
        }
        for (int64_t i = width; i < dim; ++i) to[i] = from[i] * c[i];
      }
    }
  return y;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("linear", &linear);
  m.def("experts", &experts);
  m.def("route", &route);
  m.def("rms_norm", &rms_norm);
  m.def("rotate", &rotate);
}
