// What all kernels share: storage types, the pooling and enlarging arithmetic, reductions in a fixed order.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

using bf16 = __nv_bfloat16;

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(bf16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
template <class T> __device__ __forceinline__ T from_float(float v);
template <> __device__ __forceinline__ float from_float<float>(float v) { return v; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float v) { return __float2bfloat16_rn(v); }
template <> __device__ __forceinline__ __half from_float<__half>(float v) { return __float2half_rn(v); }

// 16 bytes of T at once.
template <class T> struct alignas(16) Vector {
  static constexpr int kLanes = 16 / sizeof(T);
  T lanes[kLanes];
};

// The input rows (or columns) that output `index` of adaptive average pooling averages; `end` is exclusive.
struct Bin {
  int start, end;
};
__device__ __forceinline__ Bin bin(int index, int inputs, int outputs) {
  // 32 bits hold the products: the host refuses maps of more than 32768 rows or columns.
  const unsigned start = unsigned(index) * unsigned(inputs), divisor = unsigned(outputs);
  return {int(start / divisor), int((start + unsigned(inputs) + divisor - 1) / divisor)};
}

// What output `index` of a bilinear enlargement is made of: (1 - weight)·input[low] + weight·input[high].
struct Sample {
  int low, high;
  float weight;
};
__device__ __forceinline__ Sample sample(int index, int inputs, int outputs) {
  const float position = fmaxf((index + 0.5f) * (float(inputs) / float(outputs)) - 0.5f, 0.0f);
  const int low = min(int(position), inputs - 1);
  return {low, min(low + 1, inputs - 1), position - float(low)};
}

// As sample, for an enlargement to exactly twice the size.
__device__ __forceinline__ Sample sample_by_half(int index, int inputs) {
  const int low = max((index - 1) >> 1, 0);
  return {low, min(low + 1, inputs - 1), index == 0 ? 0.0f : index & 1 ? 0.25f : 0.75f};
}

// The outputs of an enlargement that input `index` may take part in, both ends included.
struct Reach {
  int first, last;
};
__device__ __forceinline__ Reach reach(int index, int inputs, int outputs) {
  const float ratio = float(outputs) / float(inputs);
  return {max(0, int(floorf((index - 0.5f) * ratio - 0.5f))),
          min(outputs - 1, int(ceilf((index + 1.5f) * ratio - 0.5f)))};
}
// The share of input `index` in output `output`.
__device__ __forceinline__ float share(int index, int output, int inputs, int outputs) {
  const Sample s = sample(output, inputs, outputs);
  return (s.low == index ? 1.0f - s.weight : 0.0f) + (s.high == index ? s.weight : 0.0f);
}

constexpr int kGateScaled = 0;

// p = a·b·factor, or a·sigmoid(b).
__device__ __forceinline__ float gated(int gate, float factor, float a, float b) {
  return gate == kGateScaled ? a * b * factor : a / (1.0f + expf(-b));
}
// The gradients of a and b, given that of p.
__device__ __forceinline__ float2 gate_gradient(int gate, float factor, float a, float b, float p) {
  if (gate == kGateScaled) return make_float2(p * factor * b, p * factor * a);
  const float s = 1.0f / (1.0f + expf(-b));
  return make_float2(p * s, p * a * (s * (1.0f - s)));
}

// The sum over a block, in a fixed order; every thread gets it. `scratch` holds a value for each warp.
template <class T> __device__ __forceinline__ T block_sum(T value, T* scratch) {
  for (int offset = 16; offset > 0; offset >>= 1) value += __shfl_xor_sync(~0u, value, offset);
  __syncthreads();
  if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = value;
  __syncthreads();
  T sum = 0;
  for (int warp = 0; warp < int(blockDim.x + 31) / 32; ++warp) sum += scratch[warp];
  return sum;
}

// Four 8×8 tiles of 16-bit values from shared memory, as the tensor cores take them.
__device__ __forceinline__ void load4(uint32_t (&r)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
}
__device__ __forceinline__ void load4_transposed(uint32_t (&r)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
}

// c += a [16, 16] · b [16, 8] of bf16, on the tensor cores.
__device__ __forceinline__ void multiply16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                           uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// A step's numbers, set before it by the host: steps take the slots of an array one after another. The factors are AdamW's (arXiv 1711.05101), see adamw.rs.
struct Factors {
  float keep, beta1, rest1, beta2, rest2, rate, root, eps, ema, ema_rest, clip_norm;
  // What the gradient of the squared error's sum is multiplied by.
  float gradient_scale;
};
static_assert(sizeof(Factors) == 48, "src/cuda/trainer.rs mirrors it");
