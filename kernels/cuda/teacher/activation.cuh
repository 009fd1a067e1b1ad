// What a teacher's pointwise kernels share: vectors, and activations with their slopes.
#pragma once

#include "../common.cuh"

__device__ __forceinline__ float erf_free_gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }
enum Activation { kNone, kSilu, kGelu, kMish, kRelu, kGeluTanh };
__device__ __forceinline__ float activated(int activation, float x) {
  switch (activation) {
    case kSilu: return x / (1.0f + __expf(-x));
    case kGelu: return erf_free_gelu(x);
    case kMish: {
      const float e = expf(fminf(x, 20.0f)), n = e * (e + 2.0f);
      return x * (n / (n + 2.0f));
    }
    case kRelu: return fmaxf(x, 0.0f);
    case kGeluTanh: return x / (1.0f + __expf(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
    default: return x;
  }
}

// The slope of an activation at x.
__device__ __forceinline__ float slope(int activation, float x) {
  switch (activation) {
    case kSilu: {
      const float s = 1.0f / (1.0f + __expf(-x));
      return s * (1.0f + x * (1.0f - s));
    }
    case kGelu: return 0.5f * (1.0f + erff(x * 0.70710678118654752f)) + x * 0.39894228040143268f * expf(-0.5f * x * x);
    case kMish: {
      const float e = expf(fminf(x, 20.0f)), n = e * (e + 2.0f), t = n / (n + 2.0f);
      return t + x * (1.0f - t * t) * (e / (1.0f + e));
    }
    case kRelu: return x > 0.0f ? 1.0f : 0.0f;
    case kGeluTanh: {
      const float s = 1.0f / (1.0f + __expf(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
      return s + x * s * (1.0f - s) * 1.5957691216057308f * (1.0f + 0.134145f * x * x);
    }
    default: return 1.0f;
  }
}

template <class T, int N> struct alignas(sizeof(T) * N) Lanes {
  T lanes[N];
};

// Adds two sums of N channels over the block's rows, in their order: parts [B, parts, 2, C], of which blockIdx is (channels,
// part, sample). blockDim.x threads lie along the channels; shared: blockDim.y · 2 · blockDim.x · N numbers.
template <int N>
__device__ __forceinline__ void finish_part(const float (&first)[N], const float (&second)[N], float* parts, int channels) {
  extern __shared__ float scratch[];  // [y][2][x·N]
  const int width = blockDim.x * N;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    scratch[(threadIdx.y * 2) * width + threadIdx.x * N + i] = first[i];
    scratch[(threadIdx.y * 2 + 1) * width + threadIdx.x * N + i] = second[i];
  }
  __syncthreads();
  const int threads = blockDim.x * blockDim.y, thread = threadIdx.y * blockDim.x + threadIdx.x;
  float* own = parts + (int64_t(blockIdx.z) * gridDim.y + blockIdx.y) * 2 * channels;
  for (int i = thread; i < 2 * width; i += threads) {
    float sum = 0.0f;
    for (int y = 0; y < int(blockDim.y); ++y) sum += scratch[y * 2 * width + i];
    const int kind = i / width, channel = blockIdx.x * width + i % width;
    if (channel < channels) own[kind * channels + channel] = sum;
  }
}

__device__ __forceinline__ float warp_sum(float value) {
  for (int offset = 16; offset > 0; offset >>= 1) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}
