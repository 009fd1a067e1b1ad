// The way back through a teacher's operations, for training through it: gradients of what went in from those of what came
// out. Nobody needs those of a teacher's weights. Sums are f32, in a fixed order.
#include "activation.cuh"
#include "attention.cuh"
#include "convolution.cuh"

// The gradient of a layer norm's rows, with factors as `layer_norm` takes them: with x̂ the normalised row and h = g · factor,
// (h − mean(h) − x̂ · mean(h · x̂)) / √(variance + ε). A warp takes a row.
template <class T, int N>
__device__ __forceinline__ void layer_norm_back(const T* x, const T* g, const float* factors, T* out, int channels, int64_t rows,
                                                int64_t rows_of_sample, int64_t of_sample, float add, float eps) {
  const int lane = threadIdx.x % 32, columns = channels / N;
  const int64_t row = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  if (row >= rows) return;
  const float* own = factors + (of_sample == 0 ? 0 : row / rows_of_sample) * of_sample;
  const auto* from = reinterpret_cast<const Lanes<T, N>*>(x) + row * columns;
  const auto* gradients = reinterpret_cast<const Lanes<T, N>*>(g) + row * columns;
  auto* to = reinterpret_cast<Lanes<T, N>*>(out) + row * columns;
  float sum = 0.0f, squares = 0.0f;
  for (int column = lane; column < columns; column += 32) {
    const Lanes<T, N> values = from[column];
#pragma unroll
    for (int i = 0; i < N; ++i) sum += to_float(values.lanes[i]);
  }
  const float mean = warp_sum(sum) / float(channels);
  for (int column = lane; column < columns; column += 32) {
    const Lanes<T, N> values = from[column];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float d = to_float(values.lanes[i]) - mean;
      squares = fmaf(d, d, squares);
    }
  }
  const float inverse = 1.0f / sqrtf(warp_sum(squares) / float(channels) + eps);
  float plain = 0.0f, along = 0.0f;
  for (int column = lane; column < columns; column += 32) {
    const Lanes<T, N> values = from[column], of = gradients[column];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float h = to_float(of.lanes[i]) * (add + own[column * N + i]);
      plain += h;
      along = fmaf(h, (to_float(values.lanes[i]) - mean) * inverse, along);
    }
  }
  plain = warp_sum(plain) / float(channels);
  along = warp_sum(along) / float(channels);
  for (int column = lane; column < columns; column += 32) {
    Lanes<T, N> values = from[column];
    const Lanes<T, N> of = gradients[column];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float h = to_float(of.lanes[i]) * (add + own[column * N + i]);
      const float normalised = (to_float(values.lanes[i]) - mean) * inverse;
      values.lanes[i] = from_float<T>((h - plain - normalised * along) * inverse);
    }
    to[column] = values;
  }
}

// Sums over a part of a sample's pixels, for each channel, of the gradient before the activation and of it times the
// normalised x: parts [B, parts, 2, C]. Grid and blocks as of `group_sums`.
template <class T, int N>
__device__ __forceinline__ void group_back_sums(const T* x, const T* g, const float* affine, const float* statistics,
                                                float* parts, int channels, int64_t pixels, int per_part, int groups,
                                                int activation) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x, columns = channels / N;
  const int part = blockIdx.y, sample = blockIdx.z, of_group = channels / groups;
  const auto* from = reinterpret_cast<const Lanes<T, N>*>(x) + int64_t(sample) * pixels * columns;
  const auto* gradients = reinterpret_cast<const Lanes<T, N>*>(g) + int64_t(sample) * pixels * columns;
  float sums[N] = {}, along[N] = {};
  if (column < columns) {
    float factor[N], offset[N], mean[N], inverse[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int channel = column * N + i;
      const float* own = statistics + (int64_t(sample) * groups + channel / of_group) * 2;
      mean[i] = own[0], inverse[i] = own[1];
      factor[i] = affine[int64_t(sample) * 2 * channels + channel];
      offset[i] = affine[(int64_t(sample) * 2 + 1) * channels + channel];
    }
    const int64_t first = int64_t(part) * per_part, last = first + per_part < pixels ? first + per_part : pixels;
#pragma unroll 2
    for (int64_t pixel = first + threadIdx.y; pixel < last; pixel += blockDim.y) {
      const Lanes<T, N> values = from[pixel * columns + column], of = gradients[pixel * columns + column];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float value = to_float(values.lanes[i]);
        const float h = to_float(of.lanes[i]) * slope(activation, fmaf(value, factor[i], offset[i]));
        sums[i] += h;
        along[i] = fmaf(h, (value - mean[i]) * inverse[i], along[i]);
      }
    }
  }
  finish_part<N>(sums, along, parts, channels);
}

// Their means over each group, weighted by the channels' factors: means [B, groups, 2]. A block of 128 threads for each
// (group, sample).
extern "C" __global__ void group_back_means(const float* parts, const float* affine, float* means, int channels, int64_t pixels,
                                            int count, int groups) {
  __shared__ float scratch[32];
  const int group = blockIdx.x, sample = blockIdx.y, width = channels / groups;
  float plain = 0.0f, along = 0.0f;
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const int channel = group * width + i;
    float sum = 0.0f, sum_along = 0.0f;
    for (int part = 0; part < count; ++part) {
      const float* of_part = parts + (int64_t(sample) * count + part) * 2 * channels + channel;
      sum += of_part[0];
      sum_along += of_part[channels];
    }
    const float factor = affine[int64_t(sample) * 2 * channels + channel];
    plain = fmaf(sum, factor, plain);
    along = fmaf(sum_along, factor, along);
  }
  plain = block_sum(plain, scratch);
  along = block_sum(along, scratch);
  if (threadIdx.x == 0) {
    const float n = float(pixels) * float(width);
    float* own = means + (int64_t(sample) * groups + group) * 2;
    own[0] = plain / n, own[1] = along / n;
  }
}

// The gradient of x: h · factor − mean(h · factor) − x̂ · mean(h · factor · x̂), with h that before the activation.
template <class T, int N>
__device__ __forceinline__ void group_back(const T* x, const T* g, const float* affine, const float* statistics,
                                           const float* means, T* out, int channels, int64_t pixels, int64_t total, int groups,
                                           int activation) {
  const int columns = channels / N, of_group = channels / groups;
  const int64_t of_sample = pixels * columns;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += int64_t(gridDim.x) * blockDim.x) {
    const int64_t sample = i / of_sample;
    const int channel = int(i % columns) * N;
    const float* factors = affine + sample * 2 * channels + channel;
    Lanes<T, N> values = reinterpret_cast<const Lanes<T, N>*>(x)[i];
    const Lanes<T, N> of = reinterpret_cast<const Lanes<T, N>*>(g)[i];
#pragma unroll
    for (int lane = 0; lane < N; ++lane) {
      const int64_t group = (sample * groups + (channel + lane) / of_group) * 2;
      const float value = to_float(values.lanes[lane]);
      const float h = to_float(of.lanes[lane]) * slope(activation, fmaf(value, factors[lane], factors[channels + lane]));
      const float normalised = (value - statistics[group]) * statistics[group + 1];
      values.lanes[lane] = from_float<T>(fmaf(h, factors[lane], -means[group]) - normalised * means[group + 1]);
    }
    reinterpret_cast<Lanes<T, N>*>(out)[i] = values;
  }
}

// The gradient of x from that of activation(x), of vectors.
template <class T, int N>
__device__ __forceinline__ void activate_back(const T* x, const T* g, T* out, int64_t total, int activation) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += int64_t(gridDim.x) * blockDim.x) {
    const Lanes<T, N> values = reinterpret_cast<const Lanes<T, N>*>(x)[i];
    Lanes<T, N> of = reinterpret_cast<const Lanes<T, N>*>(g)[i];
#pragma unroll
    for (int lane = 0; lane < N; ++lane)
      of.lanes[lane] = from_float<T>(to_float(of.lanes[lane]) * slope(activation, to_float(values.lanes[lane])));
    reinterpret_cast<Lanes<T, N>*>(out)[i] = of;
  }
}

// The gradient of rows [h, z] of 2·width values from that of h · gelu(z).
template <class T, int N>
__device__ __forceinline__ void geglu_back(const T* x, const T* g, T* out, int width, int64_t total) {
  const int columns = width / N;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += int64_t(gridDim.x) * blockDim.x) {
    const int64_t row = i / columns, at = row * 2 * columns + (i - row * columns);
    const auto* from = reinterpret_cast<const Lanes<T, N>*>(x) + at;
    auto* to = reinterpret_cast<Lanes<T, N>*>(out) + at;
    Lanes<T, N> h = from[0], z = from[columns];
    const Lanes<T, N> of = reinterpret_cast<const Lanes<T, N>*>(g)[i];
#pragma unroll
    for (int lane = 0; lane < N; ++lane) {
      const float gradient = to_float(of.lanes[lane]), gate = to_float(z.lanes[lane]);
      z.lanes[lane] = from_float<T>(gradient * to_float(h.lanes[lane]) * slope(kGelu, gate));
      h.lanes[lane] = from_float<T>(gradient * activated(kGelu, gate));
    }
    to[0] = h, to[columns] = z;
  }
}

// Of a convolution whose rows are gathered: `src/cuda/teacher/conv.rs` mirrors it.
struct Scatter {
  const void* rows;  // gradients of gathered rows, [samples · out pixels, pitch]
  void* x;           // gradients of the map, [samples, height, width, channels]
  int64_t samples;
  Convolution of;
};
static_assert(sizeof(Scatter) == 72, "src/cuda/teacher/conv.rs mirrors it");

// The resized pixels that are copies of source pixel i: from this one to the one before that of i + 1.
__device__ __forceinline__ int first_copy(int i, int source, int side) {
  if (source == side) return i;
  const float scale = float(source) / float(side);
  int at = int(float(i) / scale);
  while (at > 0 && nearest(at - 1, source, side) >= i) --at;
  while (at < side && nearest(at, source, side) < i) ++at;
  return at;
}

// Adds up, for every pixel and channel of the map, the gradients of the rows that it was gathered into.
template <class T, int N> __device__ __forceinline__ void scatter(const Scatter& s) {
  const Convolution& of = s.of;
  const int columns = of.channels / N, of_row = of.pitch / N;
  const int64_t total = s.samples * of.height * of.width * columns;
  const auto* rows = static_cast<const Lanes<T, N>*>(s.rows);
  auto* x = static_cast<Lanes<T, N>*>(s.x);
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += int64_t(gridDim.x) * blockDim.x) {
    const int column = int(i % columns);
    const int64_t pixel = i / columns;
    const int z = int(pixel % of.width), y = int(pixel / of.width % of.height);
    const int64_t sample = pixel / of.width / of.height;
    const int last_y = first_copy(y + 1, of.height, of.full_height), last_z = first_copy(z + 1, of.width, of.full_width);
    float sums[N] = {};
    for (int full_y = first_copy(y, of.height, of.full_height); full_y < last_y; ++full_y)
      for (int tap_row = 0; tap_row < of.kernel; ++tap_row) {
        const int below = full_y + of.before - tap_row, line = below / of.stride;
        if (below < 0 || line * of.stride != below || line >= of.out_height) continue;
        for (int full_z = first_copy(z, of.width, of.full_width); full_z < last_z; ++full_z)
          for (int tap_column = 0; tap_column < of.kernel; ++tap_column) {
            const int beside = full_z + of.before - tap_column, place = beside / of.stride;
            if (beside < 0 || place * of.stride != beside || place >= of.out_width) continue;
            const int64_t row = (sample * of.out_height + line) * of.out_width + place;
            const Lanes<T, N> values = rows[row * of_row + (tap_row * of.kernel + tap_column) * columns + column];
#pragma unroll
            for (int lane = 0; lane < N; ++lane) sums[lane] += to_float(values.lanes[lane]);
          }
      }
    Lanes<T, N> out;
#pragma unroll
    for (int lane = 0; lane < N; ++lane) out.lanes[lane] = from_float<T>(sums[lane]);
    x[i] = out;
  }
}

constexpr int kKeys = 32, kQueriesOfWarp = 4, kWarps = 8, kWidestHead = 512;

// The queries' gradient from that of attention to keys and values that stay as they are; `out` is where it goes and
// `gradient` lies as that does. With s = q Kᵀ · scale + bias, p = softmax(s) and d = g Vᵀ, it is Σ p · (d − Σ p · d) · scale · k. A warp
// takes four queries of a head, a lane a key of the tile in shared memory and then every 32nd channel. Grid
// (queries / 32, heads, B), 256 threads; shared: 32 queries and their gradients, then 32 keys and their values, dim + 1
// numbers each.
template <class T> __device__ __forceinline__ void query_gradient(const Attention& a, const T* gradient) {
  extern __shared__ float own[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, head = blockIdx.y, sample = blockIdx.z;
  const int pitch = a.dim + 1, first_query = blockIdx.x * kWarps * kQueriesOfWarp;
  float *q = own, *g = q + kWarps * kQueriesOfWarp * pitch, *k = g + kWarps * kQueriesOfWarp * pitch, *v = k + kKeys * pitch;
  // Rows from `first` on, zeros where there are none.
  const auto load = [&](float* to, const void* from, int64_t of_sample, int row_values, int first, int rows, int count) {
    const T* values = static_cast<const T*>(from) + sample * of_sample + head * a.dim;
    for (int row = warp; row < rows; row += kWarps)
      for (int c = lane; c < a.dim; c += 32)
        to[row * pitch + c] = first + row < count ? to_float(values[int64_t(first + row) * row_values + c]) : 0.0f;
  };
  load(q, a.q, a.q_sample, a.q_row, first_query, kWarps * kQueriesOfWarp, a.queries);
  load(g, gradient, a.out_sample, a.out_row, first_query, kWarps * kQueriesOfWarp, a.queries);
  const float *own_q = q + warp * kQueriesOfWarp * pitch, *own_g = g + warp * kQueriesOfWarp * pitch;
  // Of this lane's key: scores and d, by query.
  float scores[kQueriesOfWarp], drifts[kQueriesOfWarp];
  const auto dots = [&](int first) {
    const float bias = a.bias && first + lane < a.keys ? a.bias[int64_t(sample) * a.keys + first + lane] : 0.0f;
#pragma unroll
    for (int i = 0; i < kQueriesOfWarp; ++i) scores[i] = drifts[i] = 0.0f;
    for (int c = 0; c < a.dim; ++c) {
      const float of_key = k[lane * pitch + c], of_value = v[lane * pitch + c];
#pragma unroll
      for (int i = 0; i < kQueriesOfWarp; ++i) {
        scores[i] = fmaf(own_q[i * pitch + c], of_key, scores[i]);
        drifts[i] = fmaf(own_g[i * pitch + c], of_value, drifts[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kQueriesOfWarp; ++i) scores[i] = first + lane < a.keys ? scores[i] * a.scale + bias : -INFINITY;
  };
  const auto tile = [&](int first) {
    __syncthreads();
    load(k, a.k, a.k_sample, a.k_row, first, kKeys, a.keys);
    load(v, a.v, a.v_sample, a.v_row, first, kKeys, a.keys);
    __syncthreads();
    dots(first);
  };
  float highest[kQueriesOfWarp], total[kQueriesOfWarp] = {}, mean[kQueriesOfWarp] = {};
#pragma unroll
  for (int i = 0; i < kQueriesOfWarp; ++i) highest[i] = -INFINITY;
  for (int first = 0; first < a.keys; first += kKeys) {
    tile(first);
#pragma unroll
    for (int i = 0; i < kQueriesOfWarp; ++i) {
      float most = scores[i];
      for (int offset = 16; offset > 0; offset >>= 1) most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
      most = fmaxf(most, highest[i]);
      const float shrink = expf(highest[i] - most), weight = expf(scores[i] - most);
      highest[i] = most;
      total[i] = total[i] * shrink + warp_sum(weight);
      mean[i] = mean[i] * shrink + warp_sum(weight * drifts[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kQueriesOfWarp; ++i) mean[i] /= total[i];
  float sums[kQueriesOfWarp][kWidestHead / 32] = {};
  for (int first = 0; first < a.keys; first += kKeys) {
    // A single tile is there still.
    if (a.keys > kKeys) tile(first);
#pragma unroll
    for (int i = 0; i < kQueriesOfWarp; ++i)
      scores[i] = expf(scores[i] - highest[i]) / total[i] * (drifts[i] - mean[i]) * a.scale;
    const int count = min(kKeys, a.keys - first);
    for (int l = 0; l < count; ++l) {
      float shares[kQueriesOfWarp];
#pragma unroll
      for (int i = 0; i < kQueriesOfWarp; ++i) shares[i] = __shfl_sync(~0u, scores[i], l);
#pragma unroll
      for (int part = 0; part < kWidestHead / 32; ++part) {
        const int c = part * 32 + lane;
        if (c >= a.dim) break;
        const float of_key = k[l * pitch + c];
#pragma unroll
        for (int i = 0; i < kQueriesOfWarp; ++i) sums[i][part] = fmaf(shares[i], of_key, sums[i][part]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kQueriesOfWarp; ++i) {
    const int query = first_query + warp * kQueriesOfWarp + i;
    if (query >= a.queries) break;
    T* out = static_cast<T*>(a.out) + sample * a.out_sample + int64_t(query) * a.out_row + head * a.dim;
#pragma unroll
    for (int part = 0; part < kWidestHead / 32; ++part) {
      const int c = part * 32 + lane;
      if (c < a.dim) out[c] = from_float<T>(sums[i][part]);
    }
  }
}

// Σ (a − b)² over a block's share of the values, for each block: sums. Where there are weights, those of a sample, `of_sample`
// vectors, count as its weight.
template <class T, int N>
__device__ __forceinline__ void squared_difference(const T* a, const T* b, const float* weights, int64_t of_sample, double* sums,
                                                   int64_t total) {
  __shared__ double scratch[32];
  double sum = 0;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += int64_t(gridDim.x) * blockDim.x) {
    const Lanes<T, N> left = reinterpret_cast<const Lanes<T, N>*>(a)[i];
    Lanes<T, N> right = {};
    if (b) right = reinterpret_cast<const Lanes<T, N>*>(b)[i];
    float of_vector = 0.0f;
#pragma unroll
    for (int lane = 0; lane < N; ++lane) {
      const float d = to_float(left.lanes[lane]) - to_float(right.lanes[lane]);
      of_vector = fmaf(d, d, of_vector);
    }
    sum += double(weights ? of_vector * weights[i / of_sample] : of_vector);
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// out = Σ sums · share / energy; without an energy at least f32's smallest normal number, so that it can be divided by. One
// block of 256 threads.
extern "C" __global__ void finish_difference(const double* sums, int count, double share, const float* energy, float* out) {
  __shared__ double scratch[32];
  double sum = 0;
  for (int i = threadIdx.x; i < count; i += 256) sum += sums[i];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) *out = energy ? float(sum * share / double(*energy)) : fmaxf(float(sum * share), 1.17549435e-38f);
}

// out = gradient · times / energy · (a − b) · the sample's weight; gradient and energy lie on the device.
template <class T, int N>
__device__ __forceinline__ void difference_back(const T* a, const T* b, const float* weights, int64_t of_sample,
                                                const float* gradient, const float* energy, float times, T* out,
                                                int64_t total) {
  const float of_all = *gradient * times / *energy;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += int64_t(gridDim.x) * blockDim.x) {
    Lanes<T, N> left = reinterpret_cast<const Lanes<T, N>*>(a)[i];
    const Lanes<T, N> right = reinterpret_cast<const Lanes<T, N>*>(b)[i];
    const float by = of_all * weights[i / of_sample];
#pragma unroll
    for (int lane = 0; lane < N; ++lane)
      left.lanes[lane] = from_float<T>((to_float(left.lanes[lane]) - to_float(right.lanes[lane])) * by);
    reinterpret_cast<Lanes<T, N>*>(out)[i] = left;
  }
}

#define OF(T, NAME, N)                                                                                                   \
  extern "C" __global__ void layer_norm_back_##NAME(const T* x, const T* g, const float* factors, T* out, int channels,  \
                                                    int64_t rows, int64_t rows_of_sample, int64_t of_sample, float add,  \
                                                    float eps) {                                                         \
    layer_norm_back<T, N>(x, g, factors, out, channels, rows, rows_of_sample, of_sample, add, eps);                      \
  }                                                                                                                      \
  extern "C" __global__ void group_back_sums_##NAME(const T* x, const T* g, const float* affine, const float* statistics, \
                                                    float* parts, int channels, int64_t pixels, int per_part,            \
                                                    int groups, int activation) {                                        \
    group_back_sums<T, N>(x, g, affine, statistics, parts, channels, pixels, per_part, groups, activation);              \
  }                                                                                                                      \
  extern "C" __global__ void group_back_##NAME(const T* x, const T* g, const float* affine, const float* statistics,     \
                                               const float* means, T* out, int channels, int64_t pixels, int64_t total,  \
                                               int groups, int activation) {                                             \
    group_back<T, N>(x, g, affine, statistics, means, out, channels, pixels, total, groups, activation);                 \
  }                                                                                                                      \
  extern "C" __global__ void activate_back_##NAME(const T* x, const T* g, T* out, int64_t total, int activation) {       \
    activate_back<T, N>(x, g, out, total, activation);                                                                   \
  }                                                                                                                      \
  extern "C" __global__ void geglu_back_##NAME(const T* x, const T* g, T* out, int width, int64_t total) {               \
    geglu_back<T, N>(x, g, out, width, total);                                                                           \
  }                                                                                                                      \
  extern "C" __global__ void scatter_##NAME(const __grid_constant__ Scatter s) { scatter<T, N>(s); }                     \
  extern "C" __global__ void squared_difference_##NAME(const T* a, const T* b, const float* weights, int64_t of_sample,   \
                                                       double* sums, int64_t total) {                                    \
    squared_difference<T, N>(a, b, weights, of_sample, sums, total);                                                     \
  }                                                                                                                      \
  extern "C" __global__ void difference_back_##NAME(const T* a, const T* b, const float* weights, int64_t of_sample,      \
                                                    const float* gradient, const float* energy, float times, T* out,     \
                                                    int64_t total) {                                                     \
    difference_back<T, N>(a, b, weights, of_sample, gradient, energy, times, out, total);                                \
  }
OF(float, f32, 4)
OF(float, f32_single, 1)
OF(bf16, bf16, 8)
OF(bf16, bf16_single, 1)
OF(__half, f16, 8)
OF(__half, f16_single, 1)

#define ONCE(T, NAME)                                                                                          \
  extern "C" __global__ void __launch_bounds__(256)                                                            \
      query_gradient_##NAME(const __grid_constant__ Attention a, const T* gradient) {                          \
    query_gradient<T>(a, gradient);                                                                            \
  }
ONCE(float, f32)
ONCE(bf16, bf16)
ONCE(__half, f16)
