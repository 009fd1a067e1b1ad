// Group and layer norms of maps that are channels last; statistics are f32, in a fixed order.
#include "activation.cuh"

// Sums of x − pivot and of its square over a part of a sample's pixels, for each channel: parts [B, parts, 2, C], pivot the
// sample's first pixel. blockDim.x threads along the channels, blockDim.y along the pixels; blockIdx is (channels, part,
// sample).
template <class T, int N>
__device__ __forceinline__ void group_sums(const T* x, float* parts, int channels, int64_t pixels, int per_part) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x, columns = channels / N;
  const int part = blockIdx.y, sample = blockIdx.z;
  const auto* from = reinterpret_cast<const Lanes<T, N>*>(x) + int64_t(sample) * pixels * columns;
  float sums[N] = {}, squares[N] = {};
  if (column < columns) {
    const Lanes<T, N> pivot = from[column];
    const int64_t first = int64_t(part) * per_part, last = first + per_part < pixels ? first + per_part : pixels;
#pragma unroll 4
    for (int64_t pixel = first + threadIdx.y; pixel < last; pixel += blockDim.y) {
      const Lanes<T, N> values = from[pixel * columns + column];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float d = to_float(values.lanes[i]) - to_float(pivot.lanes[i]);
        sums[i] += d;
        squares[i] = fmaf(d, d, squares[i]);
      }
    }
  }
  finish_part<N>(sums, squares, parts, channels);
}

// A block of 128 threads for each (group, sample): its mean and variance, and from them each channel's factor and offset,
// affine [B, 2, C]; and where wanted the mean and 1 / √(variance + ε) themselves, statistics [B, groups, 2].
template <class T>
__device__ __forceinline__ void group_affine(const T* x, const float* parts, const float* weight, const float* bias,
                                             const T* scale_shift, float* affine, float* statistics, int channels,
                                             int64_t pixels, int count, int groups, float eps) {
  __shared__ float scratch[32];
  extern __shared__ float own[];  // [2, width]: means, sums of squares around them
  const int group = blockIdx.x, sample = blockIdx.y, width = channels / groups;
  const float n = float(pixels);
  float means = 0.0f;
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const int channel = group * width + i;
    float sum = 0.0f, square = 0.0f;
    for (int part = 0; part < count; ++part) {
      const float* of_part = parts + (int64_t(sample) * count + part) * 2 * channels + channel;
      sum += of_part[0];
      square += of_part[channels];
    }
    const float shift = sum / n;
    own[i] = to_float(x[int64_t(sample) * pixels * channels + channel]) + shift;
    own[width + i] = fmaxf(square - sum * shift, 0.0f);
    means += own[i];
  }
  const float mean = block_sum(means, scratch) / float(width);
  float squares = 0.0f;
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const float d = own[i] - mean;
    squares += own[width + i] + n * d * d;
  }
  const float variance = block_sum(squares, scratch) / (n * float(width));
  const float inverse = 1.0f / sqrtf(variance + eps);
  if (statistics && threadIdx.x == 0) {
    float* own_statistics = statistics + (int64_t(sample) * groups + group) * 2;
    own_statistics[0] = mean, own_statistics[1] = inverse;
  }
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const int channel = group * width + i;
    float factor = weight[channel] * inverse, offset = bias[channel] - mean * factor;
    if (scale_shift) {
      const T* own_scale = scale_shift + int64_t(sample) * 2 * channels + channel;
      const float scale = 1.0f + to_float(own_scale[0]);
      factor *= scale;
      offset = fmaf(offset, scale, to_float(own_scale[channels]));
    }
    affine[int64_t(sample) * 2 * channels + channel] = factor;
    affine[(int64_t(sample) * 2 + 1) * channels + channel] = offset;
  }
}

template <class T, int N>
__device__ __forceinline__ void group_apply(const T* x, const float* affine, T* y, int channels, int64_t pixels, int64_t total,
                                            int activation) {
  const int columns = channels / N;
  const int64_t of_sample = pixels * columns;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += int64_t(gridDim.x) * blockDim.x) {
    const int64_t sample = i / of_sample;
    const int channel = int(i % columns) * N;
    const float* factors = affine + sample * 2 * channels + channel;
    Lanes<T, N> values = reinterpret_cast<const Lanes<T, N>*>(x)[i];
#pragma unroll
    for (int lane = 0; lane < N; ++lane)
      values.lanes[lane] =
          from_float<T>(activated(activation, fmaf(to_float(values.lanes[lane]), factors[lane], factors[channels + lane])));
    reinterpret_cast<Lanes<T, N>*>(y)[i] = values;
  }
}

// y = (x − mean) / √(variance + ε) · (add + factor) + offset for each row. Factor and offset lie at the start of a sample's
// `of_sample` values; with of_sample 0 all samples share them. A warp takes kRows rows, one after another, and keeps the
// row and its factors in registers where MOST vectors a lane hold them.
constexpr int kRows = 4;
template <class T, int N, int MOST>
__device__ __forceinline__ void layer_norm(const T* x, const float* factors, const float* offsets, T* y, int channels,
                                           int64_t rows, int64_t rows_of_sample, int64_t of_sample, float add, float eps) {
  const int lane = threadIdx.x % 32, columns = channels / N;
  const int64_t first = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / 32 * kRows;
  const auto* from = reinterpret_cast<const Lanes<T, N>*>(x);
  auto* to = reinterpret_cast<Lanes<T, N>*>(y);
  const bool held = columns <= 32 * MOST;
  float factor[MOST][N], offset[MOST][N];
  int64_t known = -1;
  for (int64_t row = first; row < first + kRows && row < rows; ++row) {
    const int64_t sample = of_sample == 0 ? 0 : row / rows_of_sample;
    const float *own_factors = factors + sample * of_sample, *own_offsets = offsets + sample * of_sample;
    if (held) {
      if (sample != known) {
        known = sample;
#pragma unroll
        for (int j = 0; j < MOST; ++j)
          if (j * 32 + lane < columns)
#pragma unroll
            for (int i = 0; i < N; ++i) {
              factor[j][i] = add + own_factors[(j * 32 + lane) * N + i];
              offset[j][i] = own_offsets[(j * 32 + lane) * N + i];
            }
      }
      Lanes<T, N> values[MOST];
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < MOST; ++j)
        if (j * 32 + lane < columns) values[j] = from[row * columns + j * 32 + lane];
#pragma unroll
      for (int j = 0; j < MOST; ++j)
        if (j * 32 + lane < columns)
#pragma unroll
          for (int i = 0; i < N; ++i) sum += to_float(values[j].lanes[i]);
      const float mean = warp_sum(sum) / float(channels);
      float squares = 0.0f;
#pragma unroll
      for (int j = 0; j < MOST; ++j)
        if (j * 32 + lane < columns)
#pragma unroll
          for (int i = 0; i < N; ++i) {
            const float d = to_float(values[j].lanes[i]) - mean;
            squares = fmaf(d, d, squares);
          }
      const float inverse = 1.0f / sqrtf(warp_sum(squares) / float(channels) + eps);
#pragma unroll
      for (int j = 0; j < MOST; ++j)
        if (j * 32 + lane < columns) {
#pragma unroll
          for (int i = 0; i < N; ++i)
            values[j].lanes[i] = from_float<T>(fmaf((to_float(values[j].lanes[i]) - mean) * inverse, factor[j][i], offset[j][i]));
          to[row * columns + j * 32 + lane] = values[j];
        }
      continue;
    }
    float sum = 0.0f, squares = 0.0f;
    for (int column = lane; column < columns; column += 32)
      for (int i = 0; i < N; ++i) sum += to_float(from[row * columns + column].lanes[i]);
    const float mean = warp_sum(sum) / float(channels);
    for (int column = lane; column < columns; column += 32)
      for (int i = 0; i < N; ++i) {
        const float d = to_float(from[row * columns + column].lanes[i]) - mean;
        squares = fmaf(d, d, squares);
      }
    const float inverse = 1.0f / sqrtf(warp_sum(squares) / float(channels) + eps);
    for (int column = lane; column < columns; column += 32) {
      Lanes<T, N> values = from[row * columns + column];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const int channel = column * N + i;
        values.lanes[i] = from_float<T>(
            fmaf((to_float(values.lanes[i]) - mean) * inverse, add + own_factors[channel], own_offsets[channel]));
      }
      to[row * columns + column] = values;
    }
  }
}

// y = activation(x), of vectors.
template <class T, int N> __device__ __forceinline__ void activate(const T* x, T* y, int64_t total, int activation) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += int64_t(gridDim.x) * blockDim.x) {
    Lanes<T, N> values = reinterpret_cast<const Lanes<T, N>*>(x)[i];
#pragma unroll
    for (int lane = 0; lane < N; ++lane) values.lanes[lane] = from_float<T>(activated(activation, to_float(values.lanes[lane])));
    reinterpret_cast<Lanes<T, N>*>(y)[i] = values;
  }
}

// Rows [h, g] of 2·width values → h · gelu(g).
template <class T, int N> __device__ __forceinline__ void geglu(const T* x, T* y, int width, int64_t total) {
  const int columns = width / N;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += int64_t(gridDim.x) * blockDim.x) {
    const int64_t row = i / columns;
    const auto* from = reinterpret_cast<const Lanes<T, N>*>(x) + row * 2 * columns + (i - row * columns);
    Lanes<T, N> h = from[0];
    const Lanes<T, N> g = from[columns];
#pragma unroll
    for (int lane = 0; lane < N; ++lane)
      h.lanes[lane] = from_float<T>(to_float(h.lanes[lane]) * erf_free_gelu(to_float(g.lanes[lane])));
    reinterpret_cast<Lanes<T, N>*>(y)[i] = h;
  }
}

// residual + gate · x, or gate · x without a residual; gates at the start of a sample's `of_sample` values. `vectors` of a
// sample in all.
template <class T, int N>
__device__ __forceinline__ void add_gated(const T* residual, const float* gates, const T* x, T* y, int channels, int64_t vectors,
                                          int64_t of_sample, int64_t total) {
  const int columns = channels / N;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += int64_t(gridDim.x) * blockDim.x) {
    const float* gate = gates + i / vectors * of_sample + i % columns * N;
    Lanes<T, N> values = reinterpret_cast<const Lanes<T, N>*>(x)[i];
    Lanes<T, N> onto = {};
    if (residual) onto = reinterpret_cast<const Lanes<T, N>*>(residual)[i];
#pragma unroll
    for (int lane = 0; lane < N; ++lane)
      values.lanes[lane] = from_float<T>(fmaf(gate[lane], to_float(values.lanes[lane]), to_float(onto.lanes[lane])));
    reinterpret_cast<Lanes<T, N>*>(y)[i] = values;
  }
}

// y = a + b.
template <class T, int N> __device__ __forceinline__ void add(const T* a, const T* b, T* y, int64_t total) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += int64_t(gridDim.x) * blockDim.x) {
    Lanes<T, N> values = reinterpret_cast<const Lanes<T, N>*>(a)[i];
    const Lanes<T, N> more = reinterpret_cast<const Lanes<T, N>*>(b)[i];
#pragma unroll
    for (int lane = 0; lane < N; ++lane)
      values.lanes[lane] = from_float<T>(to_float(values.lanes[lane]) + to_float(more.lanes[lane]));
    reinterpret_cast<Lanes<T, N>*>(y)[i] = values;
  }
}

// Rows of c1 and of c2 vectors side by side.
template <class V> __device__ __forceinline__ void join(const V* first, const V* second, V* joined, int c1, int c2, int64_t total) {
  const int columns = c1 + c2;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += int64_t(gridDim.x) * blockDim.x) {
    const int64_t row = i / columns;
    const int column = int(i - row * columns);
    joined[i] = column < c1 ? first[row * c1 + column] : second[row * c2 + column - c1];
  }
}

// out [B, C] = bias [C] + shift [B, C].
template <class T> __device__ __forceinline__ void add_bias(const T* shift, const T* bias, T* out, int channels, int total) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < total; i += gridDim.x * blockDim.x)
    out[i] = from_float<T>(to_float(shift[i]) + to_float(bias[i % channels]));
}

// To f16 as it is stored; what does not fit becomes infinite, which encoding refuses.
template <class T> __device__ __forceinline__ void to_half(const T* x, __half* y, int64_t total) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += int64_t(gridDim.x) * blockDim.x)
    y[i] = __float2half_rn(to_float(x[i]));
}
template <> __device__ __forceinline__ void to_half<bf16>(const bf16* x, __half* y, int64_t total) {
  const int64_t whole = total / 8, start = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  for (int64_t i = start; i < whole; i += int64_t(gridDim.x) * blockDim.x) {
    const Lanes<bf16, 8> values = reinterpret_cast<const Lanes<bf16, 8>*>(x)[i];
    Lanes<__half, 8> halves;
#pragma unroll
    for (int lane = 0; lane < 8; ++lane) halves.lanes[lane] = __float2half_rn(to_float(values.lanes[lane]));
    reinterpret_cast<Lanes<__half, 8>*>(y)[i] = halves;
  }
  if (start < total - whole * 8) y[whole * 8 + start] = __float2half_rn(to_float(x[whole * 8 + start]));
}

#define OF(T, NAME, N, MOST)                                                                                            \
  extern "C" __global__ void group_sums_##NAME(const T* x, float* parts, int channels, int64_t pixels, int per_part) {  \
    group_sums<T, N>(x, parts, channels, pixels, per_part);                                                             \
  }                                                                                                                     \
  extern "C" __global__ void group_apply_##NAME(const T* x, const float* affine, T* y, int channels, int64_t pixels,    \
                                                int64_t total, int activation) {                                       \
    group_apply<T, N>(x, affine, y, channels, pixels, total, activation);                                               \
  }                                                                                                                     \
  extern "C" __global__ void layer_norm_##NAME(const T* x, const float* factors, const float* offsets, T* y,            \
                                               int channels, int64_t rows, int64_t rows_of_sample, int64_t of_sample,   \
                                               float add, float eps) {                                                  \
    layer_norm<T, N, MOST>(x, factors, offsets, y, channels, rows, rows_of_sample, of_sample, add, eps);                \
  }                                                                                                                     \
  extern "C" __global__ void activate_##NAME(const T* x, T* y, int64_t total, int activation) {                         \
    activate<T, N>(x, y, total, activation);                                                                            \
  }                                                                                                                     \
  extern "C" __global__ void geglu_##NAME(const T* x, T* y, int width, int64_t total) { geglu<T, N>(x, y, width, total); } \
  extern "C" __global__ void add_gated_##NAME(const T* residual, const float* gates, const T* x, T* y, int channels,    \
                                              int64_t vectors, int64_t of_sample, int64_t total) {                      \
    add_gated<T, N>(residual, gates, x, y, channels, vectors, of_sample, total);                                        \
  }                                                                                                                     \
  extern "C" __global__ void add_##NAME(const T* a, const T* b, T* y, int64_t total) { add<T, N>(a, b, y, total); }     \
  extern "C" __global__ void join_##NAME(const T* first, const T* second, T* joined, int c1, int c2, int64_t total) {   \
    using V = Lanes<T, N>;                                                                                              \
    join<V>(reinterpret_cast<const V*>(first), reinterpret_cast<const V*>(second), reinterpret_cast<V*>(joined), c1, c2, \
            total);                                                                                                     \
  }
OF(float, f32, 4, 10)
OF(float, f32_single, 1, 10)
OF(bf16, bf16, 8, 5)
OF(bf16, bf16_single, 1, 10)
OF(__half, f16, 8, 5)
OF(__half, f16_single, 1, 10)

#define ONCE(T, NAME)                                                                                                   \
  extern "C" __global__ void group_affine_##NAME(const T* x, const float* parts, const float* weight, const float* bias, \
                                                 const T* scale_shift, float* affine, float* statistics, int channels,  \
                                                 int64_t pixels, int count, int groups, float eps) {                    \
    group_affine<T>(x, parts, weight, bias, scale_shift, affine, statistics, channels, pixels, count, groups, eps);     \
  }                                                                                                                     \
  extern "C" __global__ void add_bias_##NAME(const T* shift, const T* bias, T* out, int channels, int total) {          \
    add_bias<T>(shift, bias, out, channels, total);                                                                     \
  }                                                                                                                     \
  extern "C" __global__ void to_half_##NAME(const T* x, __half* y, int64_t total) { to_half<T>(x, y, total); }
ONCE(float, f32)
ONCE(bf16, bf16)
ONCE(__half, f16)
