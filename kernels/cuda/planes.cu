// The block's middle for any kernel size and storage type, one simple kernel a stage. Maps are planes: a channel's maps
// of all images lie one after another, [d, B, H, W]. What passes between the stages is f32; `h`, the features and their
// gradients, which matrix products read and write, are T.
#include "common.cuh"

struct Map {
  int channels, batch, height, width;
  __device__ int64_t positions() const { return int64_t(batch) * height * width; }
};

// small = adaptive average pooling of h + bias.
template <class T> __device__ void pool(const T* h, const float* bias, float* small, Map map, int height, int width) {
  const int64_t total = int64_t(map.channels) * map.batch * height * width;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += int64_t(gridDim.x) * blockDim.x) {
    const int column = int(i % width), row = int(i / width % height);
    const int64_t plane = i / width / height;
    const Bin rows = bin(row, map.height, height), columns = bin(column, map.width, width);
    const T* source = h + plane * map.height * map.width;
    float sum = 0;
    for (int y = rows.start; y < rows.end; ++y)
      for (int x = columns.start; x < columns.end; ++x) sum += to_float(source[int64_t(y) * map.width + x]);
    const float count = float((rows.end - rows.start) * (columns.end - columns.start));
    small[i] = sum / count + bias[plane / map.batch];
  }
}

// out = K×K depthwise convolution of the planes (+ bias inside the map), taps [d, K, K]; `turned` by half a turn for
// the gradient of the input.
template <class T, class W>
__device__ void convolve(const T* in, const float* bias, const W* taps, float* out, Map map, int kernel, int turned) {
  const int64_t total = map.channels * map.positions();
  const int pad = kernel / 2;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += int64_t(gridDim.x) * blockDim.x) {
    const int column = int(i % map.width), row = int(i / map.width % map.height);
    const int64_t plane = i / map.width / map.height;
    const int channel = int(plane / map.batch);
    const T* source = in + plane * map.height * map.width;
    const W* weights = taps + int64_t(channel) * kernel * kernel;
    const float add = bias ? bias[channel] : 0.0f;
    float sum = 0;
    for (int ki = 0; ki < kernel; ++ki) {
      const int y = row + ki - pad;
      if (y < 0 || y >= map.height) continue;
      for (int kj = 0; kj < kernel; ++kj) {
        const int x = column + kj - pad, tap = ki * kernel + kj;
        if (x < 0 || x >= map.width) continue;
        const float weight = to_float(weights[turned ? kernel * kernel - 1 - tap : tap]);
        sum = fmaf(to_float(source[int64_t(y) * map.width + x]) + add, weight, sum);
      }
    }
    out[i] = sum;
  }
}

// p = gate of the halves of g; map.channels is half.
template <class T> __device__ void gate(const float* g, T* p, Map map, int kind, float factor) {
  const int64_t total = map.channels * map.positions();
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += int64_t(gridDim.x) * blockDim.x)
    p[i] = from_float<T>(gated(kind, factor, g[i], g[total + i]));
}

// g's gradient in place of g, given p's.
template <class T> __device__ void gate_backward(const T* p, float* g, Map map, int kind, float factor) {
  const int64_t total = map.channels * map.positions();
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += int64_t(gridDim.x) * blockDim.x) {
    const float2 gradient = gate_gradient(kind, factor, g[i], g[total + i], to_float(p[i]));
    g[i] = gradient.x;
    g[total + i] = gradient.y;
  }
}

// p [d/2, B, H, W] = bilinear enlargement of small [d/2, B, height, width].
template <class T> __device__ void enlarge(const float* small, T* p, Map map, int height, int width) {
  const int64_t total = map.channels * map.positions();
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += int64_t(gridDim.x) * blockDim.x) {
    const int column = int(i % map.width), row = int(i / map.width % map.height);
    const float* source = small + i / map.width / map.height * height * width;
    const Sample y = sample(row, height, map.height), x = sample(column, width, map.width);
    const float* low = source + y.low * width;
    const float* high = source + y.high * width;
    const float left = low[x.low] * (1.0f - y.weight) + high[x.low] * y.weight;
    const float right = low[x.high] * (1.0f - y.weight) + high[x.high] * y.weight;
    p[i] = from_float<T>(left * (1.0f - x.weight) + right * x.weight);
  }
}

// small's gradient, given p's.
template <class T> __device__ void enlarge_backward(const T* p, float* small, Map map, int height, int width) {
  const int64_t total = int64_t(map.channels) * map.batch * height * width;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += int64_t(gridDim.x) * blockDim.x) {
    const int column = int(i % width), row = int(i / width % height);
    const T* source = p + i / width / height * map.height * map.width;
    const Reach rows = reach(row, height, map.height), columns = reach(column, width, map.width);
    float sum = 0;
    for (int y = rows.first; y <= rows.last; ++y) {
      const float of_row = share(row, y, height, map.height);
      for (int x = columns.first; x <= columns.last; ++x)
        sum = fmaf(of_row * share(column, x, width, map.width), to_float(source[int64_t(y) * map.width + x]), sum);
    }
    small[i] = sum;
  }
}

// full += the gradient of what its averages `small` were given.
__device__ void spread(const float* small, float* full, Map map, int height, int width) {
  const int64_t total = map.channels * map.positions();
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += int64_t(gridDim.x) * blockDim.x) {
    const int column = int(i % map.width), row = int(i / map.width % map.height);
    const float* source = small + i / map.width / map.height * height * width;
    float sum = 0;
    for (int y = int(int64_t(row) * height / map.height); y < height; ++y) {
      const Bin rows = bin(y, map.height, height);
      if (rows.start > row) break;
      for (int x = int(int64_t(column) * width / map.width); x < width; ++x) {
        const Bin columns = bin(x, map.width, width);
        if (columns.start > column) break;
        if (rows.end > row && columns.end > column)
          sum += source[y * width + x] / float((rows.end - rows.start) * (columns.end - columns.start));
      }
    }
    full[i] += sum;
  }
}

// A block for each (tap, channel): taps' gradient [K, K, d] = Σ g · (x + bias).
template <class T>
__device__ void taps_gradient(const float* g, const T* in, const float* bias, float* out, Map map, int kernel) {
  __shared__ float scratch[32];
  const int channel = blockIdx.x, tap = blockIdx.y, pad = kernel / 2;
  const int down = tap / kernel - pad, right = tap % kernel - pad;
  const int64_t positions = map.positions(), start = channel * positions;
  const float add = bias ? bias[channel] : 0.0f;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < positions; i += blockDim.x) {
    const int x = int(i % map.width) + right, y = int(i / map.width % map.height) + down;
    if (x < 0 || x >= map.width || y < 0 || y >= map.height) continue;
    sum = fmaf(g[start + i], to_float(in[start + i + int64_t(down) * map.width + right]) + add, sum);
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) out[int64_t(tap) * map.channels + channel] = sum;
}

// A block for each channel: dh in T and its sum, the bias' gradient.
template <class T> __device__ void finish_hidden(const float* full, T* dh, float* bias, Map map) {
  __shared__ float scratch[32];
  const int64_t positions = map.positions(), start = blockIdx.x * positions;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < positions; i += blockDim.x) {
    dh[start + i] = from_float<T>(full[start + i]);
    sum += full[start + i];
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) bias[blockIdx.x] = sum;
}

#define STAGES(T, NAME)                                                                                               \
  extern "C" __global__ void pool_##NAME(const T* h, const float* bias, float* small, Map map, int height, int width) { \
    pool(h, bias, small, map, height, width);                                                                         \
  }                                                                                                                   \
  extern "C" __global__ void convolve_##NAME(const T* in, const float* bias, const T* taps, float* out, Map map,      \
                                             int kernel, int turned) {                                                \
    convolve(in, bias, taps, out, map, kernel, turned);                                                               \
  }                                                                                                                   \
  extern "C" __global__ void gate_##NAME(const float* g, T* p, Map map, int kind, float factor) {                     \
    gate(g, p, map, kind, factor);                                                                                    \
  }                                                                                                                   \
  extern "C" __global__ void gate_backward_##NAME(const T* p, float* g, Map map, int kind, float factor) {            \
    gate_backward(p, g, map, kind, factor);                                                                           \
  }                                                                                                                   \
  extern "C" __global__ void enlarge_##NAME(const float* small, T* p, Map map, int height, int width) {               \
    enlarge(small, p, map, height, width);                                                                            \
  }                                                                                                                   \
  extern "C" __global__ void enlarge_backward_##NAME(const T* p, float* small, Map map, int height, int width) {      \
    enlarge_backward(p, small, map, height, width);                                                                   \
  }                                                                                                                   \
  extern "C" __global__ void taps_gradient_##NAME(const float* g, const T* in, const float* bias, float* out, Map map, \
                                                  int kernel) {                                                       \
    taps_gradient(g, in, bias, out, map, kernel);                                                                     \
  }                                                                                                                   \
  extern "C" __global__ void finish_hidden_##NAME(const float* full, T* dh, float* bias, Map map) {                   \
    finish_hidden(full, dh, bias, map);                                                                               \
  }
STAGES(float, f32)
STAGES(bf16, bf16)

// The smaller scales' planes are f32 whatever T is.
extern "C" __global__ void convolve_small_bf16(const float* in, const float* bias, const bf16* taps, float* out, Map map,
                                               int kernel, int turned) {
  convolve(in, bias, taps, out, map, kernel, turned);
}
extern "C" __global__ void pool_backward(const float* small, float* full, Map map, int height, int width) {
  spread(small, full, map, height, width);
}
