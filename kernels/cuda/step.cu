// What a step needs besides matrix products and the block's middle: column sums, the loss, the pooled linear, and the
// optimiser, which adds up all partial gradients in a fixed order while it reads them.
#include "common.cuh"

// `factor` times the column sums of x [B, rows, C] over a part of the rows: parts [Z, B, C]; and, where wanted, the squares' sum of each
// block. Grid (⌈C / (8·lanes)⌉, Z, B), 256 threads; lanes is 1 where C or the address asks for it.
template <class T, int LANES>
__device__ void column_sums(const T* x, float factor, float* parts, double* squares, int rows, int channels) {
  __shared__ float scratch[32][8 * LANES + 1];
  __shared__ double square_scratch[8];
  const int column = threadIdx.x % 8, line = threadIdx.x / 8;
  const int channel = (blockIdx.x * 8 + column) * LANES, image = blockIdx.z;
  const int first = int(int64_t(rows) * blockIdx.y / gridDim.y), last = int(int64_t(rows) * (blockIdx.y + 1) / gridDim.y);
  float sums[LANES] = {};
  float square = 0;
  if (channel < channels) {
    const T* source = x + int64_t(image) * rows * channels + channel;
#pragma unroll 4
    for (int row = first + line; row < last; row += 32) {
      if constexpr (LANES == 1) {
        const float value = to_float(source[int64_t(row) * channels]);
        sums[0] += value;
        square = fmaf(value, value, square);
      } else {
        const Vector<T> values = *reinterpret_cast<const Vector<T>*>(source + int64_t(row) * channels);
#pragma unroll
        for (int lane = 0; lane < LANES; ++lane) {
          const float value = to_float(values.lanes[lane]);
          sums[lane] += value;
          square = fmaf(value, value, square);
        }
      }
    }
  }
#pragma unroll
  for (int lane = 0; lane < LANES; ++lane) scratch[line][column * LANES + lane] = sums[lane];
  __syncthreads();
  if (threadIdx.x < 8 * LANES && blockIdx.x * 8 * LANES + threadIdx.x < channels) {
    float sum = 0;
    for (int other = 0; other < 32; ++other) sum += scratch[other][threadIdx.x];
    parts[(int64_t(blockIdx.y) * gridDim.z + image) * channels + blockIdx.x * 8 * LANES + threadIdx.x] = sum * factor;
  }
  if (squares) {
    const double sum = block_sum(double(square), square_scratch);
    if (threadIdx.x == 0) squares[(int64_t(blockIdx.z) * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x] = sum;
  }
}

#define COLUMN_SUMS(T, NAME, LANES)                                                                         \
  extern "C" __global__ void __launch_bounds__(256)                                                         \
      column_sums_##NAME(const T* x, float factor, float* parts, double* squares, int rows, int channels) { \
    column_sums<T, LANES>(x, factor, parts, squares, rows, channels);                                               \
  }
COLUMN_SUMS(float, f32, 4)
COLUMN_SUMS(bf16, bf16, 8)
COLUMN_SUMS(float, f32_single, 1)
COLUMN_SUMS(bf16, bf16_single, 1)

// A step's numbers, set before it by the host. The factors are AdamW's (arXiv 1711.05101), see adamw.rs.
struct Factors {
  float keep, beta1, rest1, beta2, rest2, rate, root, eps, ema, ema_rest, clip_norm;
  // What the gradient of the squared error's sum is multiplied by.
  float gradient_scale;
  // Where the step's mean squared error goes.
  int slot, unused;
};
static_assert(sizeof(Factors) == 56, "src/cuda/trainer.rs mirrors it");

// sums [n] = factor · Σ parts [Z, n], 32 columns a block; block 0 closes the loss. 256 threads.
extern "C" __global__ void __launch_bounds__(256)
    reduce_sums(const float* parts, int count, int length, float factor, float* sums, const double* squares,
                int square_count, double share, double* losses, const Factors* factors) {
  __shared__ double scratch[8];
  __shared__ float lines[8][32];
  const int column = threadIdx.x % 32, line = threadIdx.x / 32, index = blockIdx.x * 32 + column;
  float sum = 0;
  if (index < length) {
#pragma unroll 4
    for (int part = line; part < count; part += 8) sum += parts[int64_t(part) * length + index];
  }
  lines[line][column] = sum;
  __syncthreads();
  if (line == 0 && index < length) {
    for (int other = 1; other < 8; ++other) sum += lines[other][column];
    sums[index] = sum * factor;
  }
  if (squares && blockIdx.x == 0) {
    double total = 0;
#pragma unroll 4
    for (int part = threadIdx.x; part < square_count; part += blockDim.x) total += squares[part];
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) losses[factors->slot] = total * share;
  }
}

// out [B, C] = mean [B, C] · weightᵀ [C, C] + both biases: what all positions of an image share. A warp for an output
// channel and 4 images; grid (⌈C / 8⌉, ⌈B / 4⌉), 256 threads.
template <class T>
__device__ void pooled_linear(const float* mean, const T* weight, const float* pool_bias, const float* out_bias, T* out,
                              int batch, int channels) {
  constexpr int kLanes = Vector<T>::kLanes;
  const int lane = threadIdx.x & 31, channel = blockIdx.x * 8 + (threadIdx.x >> 5), first = blockIdx.y * 4;
  if (channel >= channels) return;
  const T* row = weight + int64_t(channel) * channels;
  float sums[4] = {};
  if (channels % kLanes == 0) {
#pragma unroll 2
    for (int i = lane * kLanes; i < channels; i += 32 * kLanes) {
      const Vector<T> weights = *reinterpret_cast<const Vector<T>*>(row + i);
#pragma unroll
      for (int image = 0; image < 4; ++image) {
        if (first + image >= batch) continue;
        const float4* source = reinterpret_cast<const float4*>(mean + int64_t(first + image) * channels + i);
#pragma unroll
        for (int quarter = 0; quarter < kLanes / 4; ++quarter) {
          const float4 values = source[quarter];
          sums[image] = fmaf(values.x, to_float(weights.lanes[quarter * 4]), sums[image]);
          sums[image] = fmaf(values.y, to_float(weights.lanes[quarter * 4 + 1]), sums[image]);
          sums[image] = fmaf(values.z, to_float(weights.lanes[quarter * 4 + 2]), sums[image]);
          sums[image] = fmaf(values.w, to_float(weights.lanes[quarter * 4 + 3]), sums[image]);
        }
      }
    }
  } else {
    for (int i = lane; i < channels; i += 32)
      for (int image = 0; image < 4; ++image)
        if (first + image < batch)
          sums[image] = fmaf(mean[int64_t(first + image) * channels + i], to_float(row[i]), sums[image]);
  }
#pragma unroll
  for (int image = 0; image < 4; ++image) {
    for (int offset = 16; offset > 0; offset >>= 1) sums[image] += __shfl_xor_sync(~0u, sums[image], offset);
    if (lane == 0 && first + image < batch)
      out[int64_t(first + image) * channels + channel] = from_float<T>(sums[image] + pool_bias[channel] + out_bias[channel]);
  }
}
extern "C" __global__ void pooled_linear_f32(const float* mean, const float* weight, const float* pool_bias,
                                             const float* out_bias, float* out, int batch, int channels) {
  pooled_linear(mean, weight, pool_bias, out_bias, out, batch, channels);
}
extern "C" __global__ void pooled_linear_bf16(const float* mean, const bf16* weight, const float* pool_bias,
                                              const float* out_bias, bf16* out, int batch, int channels) {
  pooled_linear(mean, weight, pool_bias, out_bias, out, batch, channels);
}

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

// The gradient of value `i` of the arena, of the squared error's sum.
__device__ __forceinline__ float gradient(const Arena& arena, int64_t i) {
  float sum = 0;
  if (i < arena.up_bias) {
#pragma unroll 4
    for (int part = 0; part < arena.up_count; ++part) sum += arena.up_parts[part * arena.up_bias + i];
  } else if (i < arena.taps) {
#pragma unroll 4
    for (int part = 0; part < arena.middle_count; ++part)
      sum += arena.middle_bias_parts[int64_t(part) * arena.inner + (i - arena.up_bias)];
  } else if (i < arena.out) {
    const int64_t length = arena.out - arena.taps;
#pragma unroll 4
    for (int part = 0; part < arena.middle_count; ++part)
      sum += arena.middle_taps_parts[part * length + (i - arena.taps)];
  } else if (i < arena.out_bias) {
    const int64_t length = arena.out_bias - arena.out;
#pragma unroll 4
    for (int part = 0; part < arena.out_count; ++part) sum += arena.out_parts[part * length + (i - arena.out)];
  } else if (i < arena.pool || i >= arena.pool_bias) {
    const int64_t channel = i < arena.pool ? i - arena.out_bias : i - arena.pool_bias;
#pragma unroll 4
    for (int image = 0; image < arena.batch; ++image)
      sum += arena.output_sums[int64_t(image) * arena.channels + channel];
  } else {
    // The host refuses arenas of more than 2³¹ values.
    const unsigned index = unsigned(i - arena.pool), output = index / unsigned(arena.channels);
    const unsigned input = index - output * unsigned(arena.channels);
#pragma unroll 4
    for (int image = 0; image < arena.batch; ++image)
      sum = fmaf(arena.output_sums[int64_t(image) * arena.channels + output],
                 arena.means[int64_t(image) * arena.channels + input], sum);
  }
  return sum;
}

// Writes the scaled gradient, and a sum of its squares for each block.
extern "C" __global__ void __launch_bounds__(256)
    collect_gradient(const __grid_constant__ Arena arena, const Factors* factors, float* gradients, double* norms) {
  __shared__ double scratch[8];
  const float scale = factors->gradient_scale;
  double square = 0;
  for (int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x; i < arena.end; i += int64_t(gridDim.x) * 256) {
    const float value = gradient(arena, i) * scale;
    gradients[i] = value;
    square += double(value) * double(value);
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

template <class T> __device__ __forceinline__ void prepare(const Arena& arena, Prepared<T> to, int64_t i, float weight) {
  const T value = from_float<T>(weight);
  if (i < arena.up_bias) {
    to.up[i] = value;
  } else if (i >= arena.taps && i < arena.out) {
    const unsigned t = unsigned(i - arena.taps), line = t / unsigned(arena.inner), channel = t - line * unsigned(arena.inner);
    const unsigned scale = line / unsigned(arena.taps_count), tap = line - scale * unsigned(arena.taps_count);
    to.taps[(int64_t(scale) * arena.inner + channel) * arena.taps_count + tap] = value;
    if (to.upright) {
      const int row = int(tap) / to.kernel, column = int(tap) % to.kernel, pad = to.kernel / 2;
      const int64_t first = (int64_t(scale) * arena.inner + channel) * to.kernel;
      T* upright = to.upright + (first + row) * 64 + column + 7 + to.left - pad;
      upright[0] = upright[31] = value;
      T* turned = to.turned + (first + to.kernel - 1 - row) * 64 + to.kernel - 1 - column + 7 + 8 - pad;
      turned[0] = turned[31] = value;
    }
  } else if (i >= arena.out && i < arena.out_bias) {
    to.out[i - arena.out] = value;
  } else if (i >= arena.pool && i < arena.pool_bias) {
    to.pool[i - arena.pool] = value;
  }
}

template <class T> __device__ void prepare_all(const Arena& arena, const float* weights, Prepared<T> to) {
  for (int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x; i < arena.end; i += int64_t(gridDim.x) * 256)
    prepare(arena, to, i, weights[i]);
}

// One step over the whole arena. With `norms`, `gradients` holds the gradient already and is clipped by its norm;
// without, the gradient is added up here. `ema` may be null.
template <class T>
__device__ void adamw(const Arena& arena, const Factors* factors, const float* gradients, const double* norms, int norm_count,
                      float* weights, float* m, float* v, float* ema, Prepared<T> to) {
  __shared__ double scratch[8];
  const Factors f = *factors;
  float clip = 1;
  if (norms) {
    double square = 0;
    for (int part = threadIdx.x; part < norm_count; part += 256) square += norms[part];
    const double norm = sqrt(block_sum(square, scratch));
    if (norm > double(f.clip_norm)) clip = float(double(f.clip_norm) / norm);
  }
  for (int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x; i < arena.end; i += int64_t(gridDim.x) * 256) {
    const float first = m[i], second = v[i], weight = weights[i], average = ema ? ema[i] : 0.0f;
    const float value = norms ? gradients[i] * clip : gradient(arena, i) * f.gradient_scale;
    const float next_m = f.beta1 * first + f.rest1 * value;
    const float next_v = f.beta2 * second + f.rest2 * value * value;
    const float next = weight * f.keep - f.rate * next_m / (sqrtf(next_v) * f.root + f.eps);
    m[i] = next_m;
    v[i] = next_v;
    weights[i] = next;
    if (ema) ema[i] = f.ema * average + f.ema_rest * next;
    prepare(arena, to, i, next);
  }
}

#define OPTIMISER(T, NAME)                                                                                            \
  extern "C" __global__ void __launch_bounds__(256)                                                                   \
      prepare_##NAME(const __grid_constant__ Arena arena, const float* weights, Prepared<T> to) {                     \
    prepare_all(arena, weights, to);                                                                                  \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(256)                                                                   \
      adamw_##NAME(const __grid_constant__ Arena arena, const Factors* factors, const float* gradients,               \
                   const double* norms, int norm_count, float* weights, float* m, float* v, float* ema, Prepared<T> to) { \
    adamw(arena, factors, gradients, norms, norm_count, weights, m, v, ema, to);                                      \
  }
OPTIMISER(float, f32)
OPTIMISER(bf16, bf16)

template <class From, class To> __device__ void convert(const From* from, To* to, int64_t length) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < length; i += int64_t(gridDim.x) * blockDim.x)
    to[i] = from_float<To>(to_float(from[i]));
}
extern "C" __global__ void f16_to_bf16(const __half* from, bf16* to, int64_t length) { convert(from, to, length); }
extern "C" __global__ void f16_to_f32(const __half* from, float* to, int64_t length) { convert(from, to, length); }
extern "C" __global__ void bf16_to_f32(const bf16* from, float* to, int64_t length) { convert(from, to, length); }

// out [B, C] = factor · sums [B, C] · weight [C, C]: what the pooled linear gives back to every position's input.
template <class T>
__device__ void pooled_backward(const float* sums, const T* weight, float factor, T* out, int batch, int channels) {
  const int input = blockIdx.x * blockDim.x + threadIdx.x, image = blockIdx.y;
  if (input >= channels) return;
  float sum = 0;
  for (int output = 0; output < channels; ++output)
    sum = fmaf(sums[int64_t(image) * channels + output], to_float(weight[int64_t(output) * channels + input]), sum);
  out[int64_t(image) * channels + input] = from_float<T>(sum * factor);
}
extern "C" __global__ void pooled_backward_f32(const float* sums, const float* weight, float factor, float* out, int batch,
                                               int channels) {
  pooled_backward(sums, weight, factor, out, batch, channels);
}
extern "C" __global__ void pooled_backward_bf16(const float* sums, const bf16* weight, float factor, bf16* out, int batch,
                                                int channels) {
  pooled_backward(sums, weight, factor, out, batch, channels);
}
