// The optimiser over all of a block's weights at once. It adds up the partial gradients in a fixed order while it reads
// them, and writes the weights in the form that the next step's products read.
#include "common.cuh"

// Where a block's tensors begin in its arena (see BlockShape::tensors), and the partial sums that its gradient is
// made of. conv_up.weight begins at 0.
struct Arena {
  int64_t up_bias, taps, out, out_bias, pool, pool_bias, end;
  int channels, inner, taps_count, batch;
  const float *up_parts, *middle_bias_parts, *middle_taps_parts, *out_parts;
  int up_count, middle_count, out_count, unused;
  // Sums over positions of y's gradient, and x's means, both [B, C].
  const float *output_sums, *means;
};
static_assert(sizeof(Arena) == 136, "src/cuda/weights.rs mirrors it");

// N neighbours of a tensor, in one access. Either all tensors begin at multiples of 4 values, and their rows do, and N is
// 4; or N is 1.
template <class T, int N> struct alignas(N * sizeof(T)) Some {
  T lanes[N];
};
template <int N> using Floats = Some<float, N>;
// As load and store, for what nothing else reads before the next step, which is long out of the cache by then.
template <int N> __device__ __forceinline__ Floats<N> load_once(const float* from) {
  Floats<N> values;
  if constexpr (N == 4)
    *reinterpret_cast<float4*>(&values) = __ldcs(reinterpret_cast<const float4*>(from));
  else
    values.lanes[0] = __ldcs(from);
  return values;
}
template <int N> __device__ __forceinline__ void store_once(float* to, const Floats<N>& values) {
  if constexpr (N == 4)
    __stcs(reinterpret_cast<float4*>(to), *reinterpret_cast<const float4*>(&values));
  else
    __stcs(to, values.lanes[0]);
}
template <int N> __device__ __forceinline__ Floats<N> load(const float* from) {
  return *reinterpret_cast<const Floats<N>*>(from);
}
template <int N> __device__ __forceinline__ void store(float* to, const Floats<N>& values) {
  *reinterpret_cast<Floats<N>*>(to) = values;
}

// The sum of parts [count, length] at `i`.
template <int N>
__device__ __forceinline__ Floats<N> sum_of_parts(const float* parts, int count, int64_t length, int64_t i) {
  Floats<N> sum = {};
#pragma unroll 4
  for (int part = 0; part < count; ++part) {
    const Floats<N> values = load<N>(parts + part * length + i);
#pragma unroll
    for (int lane = 0; lane < N; ++lane) sum.lanes[lane] += values.lanes[lane];
  }
  return sum;
}

// The gradient of the arena's values from `i` on, of the squared error's sum.
template <int N> __device__ __forceinline__ Floats<N> gradient(const Arena& arena, int64_t i) {
  if (i < arena.up_bias) return sum_of_parts<N>(arena.up_parts, arena.up_count, arena.up_bias, i);
  if (i < arena.taps)
    return sum_of_parts<N>(arena.middle_bias_parts, arena.middle_count, arena.inner, i - arena.up_bias);
  if (i < arena.out)
    return sum_of_parts<N>(arena.middle_taps_parts, arena.middle_count, arena.out - arena.taps, i - arena.taps);
  if (i < arena.out_bias)
    return sum_of_parts<N>(arena.out_parts, arena.out_count, arena.out_bias - arena.out, i - arena.out);
  if (i < arena.pool) return sum_of_parts<N>(arena.output_sums, arena.batch, arena.channels, i - arena.out_bias);
  if (i >= arena.pool_bias)
    return sum_of_parts<N>(arena.output_sums, arena.batch, arena.channels, i - arena.pool_bias);
  // The host refuses arenas of more than 2³¹ values.
  const unsigned index = unsigned(i - arena.pool), output = index / unsigned(arena.channels);
  const unsigned input = index - output * unsigned(arena.channels);
  Floats<N> sum = {};
#pragma unroll 4
  for (int image = 0; image < arena.batch; ++image) {
    const float factor = arena.output_sums[int64_t(image) * arena.channels + output];
    const Floats<N> means = load<N>(arena.means + int64_t(image) * arena.channels + input);
#pragma unroll
    for (int lane = 0; lane < N; ++lane) sum.lanes[lane] = fmaf(factor, means.lanes[lane], sum.lanes[lane]);
  }
  return sum;
}

// Writes the scaled gradient, or adds it to what is there, and a sum of its squares for each block. `slot` is the one behind
// the step's.
template <int N>
__device__ void collect_gradient(const Arena& arena, const Factors* factors, const int* slot, float* gradients, double* norms,
                                 int add) {
  __shared__ double scratch[8];
  const float scale = factors[*slot - 1].gradient_scale;
  double square = 0;
  const int64_t step = int64_t(gridDim.x) * 256 * N;
  for (int64_t i = (int64_t(blockIdx.x) * 256 + threadIdx.x) * N; i < arena.end; i += step) {
    Floats<N> values = gradient<N>(arena, i), before = {};
    if (add) before = load<N>(gradients + i);
#pragma unroll
    for (int lane = 0; lane < N; ++lane) {
      values.lanes[lane] = values.lanes[lane] * scale + before.lanes[lane];
      square += double(values.lanes[lane]) * double(values.lanes[lane]);
    }
    store(gradients + i, values);
  }
  square = block_sum(square, scratch);
  if (threadIdx.x == 0) norms[blockIdx.x] = square;
}

// The weights in the type that the next step's products read: matrices as they are, taps [S, d, K, K].
template <class T> struct Prepared {
  T *up, *taps, *out, *pool;
  // The taps as the fused kernels read them, [S, d, K, 64]; null where there are none. A row of taps stands in 32
  // columns of zeros from column 7 + left - K/2 on, and again one column further to the left in the next 32.
  T *upright, *turned;
  int kernel, left;
};
static_assert(sizeof(Prepared<float>) == 56, "src/cuda/weights.rs mirrors it");

// Writes the tap at `t` of [S, K, K, d].
template <class T>
__device__ __forceinline__ void prepare_tap(const Arena& arena, const Prepared<T>& to, unsigned t, T value) {
  const unsigned line = t / unsigned(arena.inner), channel = t - line * unsigned(arena.inner);
  const unsigned scale = line / unsigned(arena.taps_count), tap = line - scale * unsigned(arena.taps_count);
  to.taps[(int64_t(scale) * arena.inner + channel) * arena.taps_count + tap] = value;
  if (!to.upright) return;
  const int row = int(tap) / to.kernel, column = int(tap) % to.kernel, pad = to.kernel / 2;
  const int64_t first = (int64_t(scale) * arena.inner + channel) * to.kernel;
  T* upright = to.upright + (first + row) * 64 + column + 7 + to.left - pad;
  upright[0] = upright[31] = value;
  T* turned = to.turned + (first + to.kernel - 1 - row) * 64 + to.kernel - 1 - column + 7 + 8 - pad;
  turned[0] = turned[31] = value;
}

template <class T, int N>
__device__ __forceinline__ void prepare(const Arena& arena, const Prepared<T>& to, int64_t i, const Floats<N>& weights) {
  Some<T, N> values;
#pragma unroll
  for (int lane = 0; lane < N; ++lane) values.lanes[lane] = from_float<T>(weights.lanes[lane]);
  const auto write = [&](T* target) { *reinterpret_cast<Some<T, N>*>(target) = values; };
  if (i < arena.up_bias) {
    write(to.up + i);
  } else if (i >= arena.taps && i < arena.out) {
#pragma unroll
    for (int lane = 0; lane < N; ++lane) prepare_tap(arena, to, unsigned(i - arena.taps) + lane, values.lanes[lane]);
  } else if (i >= arena.out && i < arena.out_bias) {
    write(to.out + (i - arena.out));
  } else if (i >= arena.pool && i < arena.pool_bias) {
    write(to.pool + (i - arena.pool));
  }
}

template <class T> __device__ void prepare_all(const Arena& arena, const float* weights, const Prepared<T>& to) {
  for (int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x; i < arena.end; i += int64_t(gridDim.x) * 256)
    prepare<T, 1>(arena, to, i, load<1>(weights + i));
}

// One step over the whole arena. With `norms`, `gradients` holds the gradient already and is clipped by its norm;
// without, the gradient is added up here. `ema` may be null. `slot` is the one behind the step's.
template <class T, int N>
__device__ void adamw(const Arena& arena, const Factors* factors, const int* slot, const float* gradients, const double* norms, int norm_count,
                      float* weights, float* m, float* v, float* ema, const Prepared<T>& to) {
  __shared__ double scratch[8];
  const Factors f = factors[*slot - 1];
  float clip = 1;
  if (norms) {
    double square = 0;
    for (int part = threadIdx.x; part < norm_count; part += 256) square += norms[part];
    const double norm = sqrt(block_sum(square, scratch));
    if (norm > double(f.clip_norm)) clip = float(double(f.clip_norm) / norm);
  }
  const int64_t step = int64_t(gridDim.x) * 256 * N;
  for (int64_t i = (int64_t(blockIdx.x) * 256 + threadIdx.x) * N; i < arena.end; i += step) {
    Floats<N> first = load_once<N>(m + i), second = load_once<N>(v + i), weight = load_once<N>(weights + i), average = {};
    if (ema) average = load_once<N>(ema + i);
    const Floats<N> found = norms ? load<N>(gradients + i) : gradient<N>(arena, i);
    const float scale = norms ? clip : f.gradient_scale;
#pragma unroll
    for (int lane = 0; lane < N; ++lane) {
      const float value = found.lanes[lane] * scale;
      const float next_m = f.beta1 * first.lanes[lane] + f.rest1 * value;
      const float next_v = f.beta2 * second.lanes[lane] + f.rest2 * value * value;
      const float next = weight.lanes[lane] * f.keep - f.rate * next_m / (sqrtf(next_v) * f.root + f.eps);
      first.lanes[lane] = next_m;
      second.lanes[lane] = next_v;
      weight.lanes[lane] = next;
      average.lanes[lane] = f.ema * average.lanes[lane] + f.ema_rest * next;
    }
    store_once(m + i, first);
    store_once(v + i, second);
    store_once(weights + i, weight);
    if (ema) store_once(ema + i, average);
    prepare<T, N>(arena, to, i, weight);
  }
}

#define COLLECT(NAME, N)                                                                                           \
  extern "C" __global__ void __launch_bounds__(256) NAME(const __grid_constant__ Arena arena, const Factors* factors, \
                                                         const int* slot, float* gradients, double* norms, int add) { \
    collect_gradient<N>(arena, factors, slot, gradients, norms, add);                                                  \
  }
COLLECT(collect_gradient, 4)
COLLECT(collect_gradient_single, 1)

#define PREPARE(T, NAME)                                                                                            \
  extern "C" __global__ void __launch_bounds__(256)                                                                \
      prepare_##NAME(const __grid_constant__ Arena arena, const float* weights, const __grid_constant__ Prepared<T> to) { \
    prepare_all(arena, weights, to);                                                                               \
  }
PREPARE(float, f32)
PREPARE(bf16, bf16)

#define ADAMW(T, NAME, N)                                                                                              \
  extern "C" __global__ void __launch_bounds__(256, 4)                                                                 \
      adamw_##NAME(const __grid_constant__ Arena arena, const Factors* factors,                                        \
                   const int* slot, const float* gradients, const double* norms, int norm_count, float* weights,       \
                   float* m, float* v, float* ema, const __grid_constant__ Prepared<T> to) {                           \
    adamw<T, N>(arena, factors, slot, gradients, norms, norm_count, weights, m, v, ema, to);                           \
  }
ADAMW(float, f32, 4)
ADAMW(bf16, bf16, 4)
ADAMW(float, f32_single, 1)
ADAMW(bf16, bf16_single, 1)
