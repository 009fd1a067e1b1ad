// softmax(Q Kᵀ · scale + bias) V for each head, without the matrix of scores: FlashAttention-2's order (arXiv 2307.08691)
// on the tensor cores with mma.sync, bf16 or f16 in, f32 sums. A block takes 4 warps' rows of queries of one head and goes
// over the keys, whose next tile is on its way while one is multiplied.
#include "attention.cuh"

constexpr float kLog2E = 1.4426950408889634f;

extern __shared__ __align__(128) unsigned char shared[];

// 16 bytes, or zeros where there is no source.
__device__ __forceinline__ void copy16(uint32_t to, const void* from, bool exists) {
  const int bytes = exists ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
template <class T> __device__ __forceinline__ uint32_t pack(float low, float high);
template <> __device__ __forceinline__ uint32_t pack<bf16>(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}
template <> __device__ __forceinline__ uint32_t pack<__half>(float low, float high) {
  const __half2 both = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}
// c += a [16, 16] · b [16, 8].
template <class T> __device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <> __device__ __forceinline__ void multiply<bf16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply16(c, a[0], a[1], a[2], a[3], b0, b1);
}
template <> __device__ __forceinline__ void multiply<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Rows [rows, D] of one head into shared memory with a pitch of D + 8 values, which keeps ldmatrix free of conflicts;
// zeros past the last row and past the head's last channel.
template <int D, int THREADS, class T>
__device__ __forceinline__ void load_rows(uint32_t to, const T* from, int rows, int left, int row_stride, int dim) {
  constexpr int kChunks = D / 8, kPitch = (D + 8) * 2;
  for (int i = threadIdx.x; i < rows * kChunks; i += THREADS) {
    const int row = i / kChunks, chunk = i % kChunks;
    const bool exists = row < left && chunk * 8 < dim;
    copy16(to + row * kPitch + chunk * 16, exists ? from + int64_t(row) * row_stride + chunk * 8 : from, exists);
  }
}

// C: the head's channels, or what they are padded to: a multiple of 8. TILES: of 16 queries, a warp's share of them.
// KEYS: of a tile.
template <class T, int C, int TILES, int KEYS, int WARPS> __device__ __forceinline__ void attend(const Attention& a) {
  constexpr int D = (C + 15) / 16 * 16, kSteps = D / 16, kPairs = KEYS / 16, kPitch = (D + 8) * 2, kTileBytes = KEYS * kPitch;
  constexpr int kQueries = 16 * TILES * WARPS, kThreads = 32 * WARPS;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first = blockIdx.x * kQueries, head = blockIdx.y, sample = blockIdx.z;
  const T* q = static_cast<const T*>(a.q) + sample * a.q_sample + head * a.dim + int64_t(first) * a.q_row;
  const T* k = static_cast<const T*>(a.k) + sample * a.k_sample + head * a.dim;
  const T* v = static_cast<const T*>(a.v) + sample * a.v_sample + head * a.dim;
  const float* bias = a.bias ? a.bias + int64_t(sample) * a.keys : nullptr;
  const uint32_t base = uint32_t(__cvta_generic_to_shared(shared));
  // K and V take turns: [stage][K, V]. The queries lie in the first stages before anything else does.
  const int tiles = (a.keys + KEYS - 1) / KEYS;

  uint32_t queries[TILES][kSteps][4];
  load_rows<D, kThreads>(base, q, kQueries, a.queries - first, a.q_row, a.dim);
  asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;" ::: "memory");
  __syncthreads();
#pragma unroll
  for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int row = (warp * TILES + tile) * 16 + lane % 16;
      load4(queries[tile][step], base + row * kPitch + (step * 16 + lane / 16 * 8) * 2);
    }
  __syncthreads();

  auto fetch = [&](int tile) {
    const uint32_t at = base + (tile & 1) * 2 * kTileBytes;
    const int left = a.keys - tile * KEYS;
    load_rows<D, kThreads>(at, k + int64_t(tile) * KEYS * a.k_row, KEYS, left, a.k_row, a.dim);
    load_rows<D, kThreads>(at + kTileBytes, v + int64_t(tile) * KEYS * a.v_row, KEYS, left, a.v_row, a.dim);
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  fetch(0);

  float sums[TILES][D / 8][4] = {};
  float highest[TILES][2], total[TILES][2];
#pragma unroll
  for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
    for (int half = 0; half < 2; ++half) highest[tile][half] = -INFINITY, total[tile][half] = 0.0f;
  const float scale = a.scale * kLog2E;
  // Where this lane's rows begin for ldmatrix.
  const uint32_t of_keys = (lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 16;
  const uint32_t of_values = (lane / 8 % 2 * 8 + lane % 8) * kPitch + lane / 16 * 16;

  for (int tile_of_keys = 0; tile_of_keys < tiles; ++tile_of_keys) {
    if (tile_of_keys + 1 < tiles) {
      fetch(tile_of_keys + 1);
      asm volatile("cp.async.wait_group 1;" ::: "memory");
    } else {
      asm volatile("cp.async.wait_group 0;" ::: "memory");
    }
    __syncthreads();
    const uint32_t keys_at = base + (tile_of_keys & 1) * 2 * kTileBytes + of_keys;
    const uint32_t values_at = base + (tile_of_keys & 1) * 2 * kTileBytes + kTileBytes + of_values;

    // The next fragment is loaded while one is multiplied.
    float scores[TILES][KEYS / 8][4] = {};
    uint32_t keys[2][4];
    load4(keys[0], keys_at);
#pragma unroll
    for (int i = 0; i < kSteps * kPairs; ++i) {
      if (i + 1 < kSteps * kPairs)
        load4(keys[(i + 1) % 2], keys_at + (i + 1) % kPairs * 16 * kPitch + (i + 1) / kPairs * 32);
      const uint32_t(&fragment)[4] = keys[i % 2];
      const int step = i / kPairs, pair = i % kPairs;
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile) {
        multiply<T>(scores[tile][2 * pair], queries[tile][step], fragment[0], fragment[1]);
        multiply<T>(scores[tile][2 * pair + 1], queries[tile][step], fragment[2], fragment[3]);
      }
    }

    const int first_key = tile_of_keys * KEYS, left = a.keys - first_key;
    if (bias != nullptr || left < KEYS) {
      // Scores are scaled later.
      const float unscaled = 1.0f / a.scale;
#pragma unroll
      for (int group = 0; group < KEYS / 8; ++group)
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          const int key = group * 8 + lane % 4 * 2 + odd;
          const bool exists = key < left;
          const float add = exists && bias != nullptr ? bias[first_key + key] * unscaled : 0.0f;
#pragma unroll
          for (int tile = 0; tile < TILES; ++tile) {
            scores[tile][group][odd] = exists ? scores[tile][group][odd] + add : -INFINITY;
            scores[tile][group][2 + odd] = exists ? scores[tile][group][2 + odd] + add : -INFINITY;
          }
        }
    }

    uint32_t values[2][4];
    load4_transposed(values[0], values_at);
    float offsets[TILES][2];
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float most = highest[tile][half];
#pragma unroll
        for (int group = 0; group < KEYS / 8; ++group)
          most = fmaxf(most, fmaxf(scores[tile][group][2 * half], scores[tile][group][2 * half + 1]));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        // Every tile has a key, so `most` is finite.
        const float shrink = exp2_fast((highest[tile][half] - most) * scale);
        highest[tile][half] = most;
        offsets[tile][half] = most * scale;
        total[tile][half] *= shrink;
#pragma unroll
        for (int group = 0; group < D / 8; ++group)
          sums[tile][group][2 * half] *= shrink, sums[tile][group][2 * half + 1] *= shrink;
      }

    // The weights of the next 16 keys are computed while the tensor cores multiply those of these.
    uint32_t weights[2][TILES][4];
    const auto weigh = [&](int step) {
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          const int group = 2 * step + part / 2, half = part % 2;
          const float low = exp2_fast(fmaf(scores[tile][group][2 * half], scale, -offsets[tile][half]));
          const float high = exp2_fast(fmaf(scores[tile][group][2 * half + 1], scale, -offsets[tile][half]));
          total[tile][half] += low + high;
          weights[step % 2][tile][part] = pack<T>(low, high);
        }
    };
    constexpr int kGroups = D / 16;
    weigh(0);
#pragma unroll
    for (int step = 0; step < kPairs; ++step) {
#pragma unroll
      for (int pair = 0; pair < kGroups; ++pair) {
        const int i = step * kGroups + pair;
        if (i + 1 < kPairs * kGroups)
          load4_transposed(values[(i + 1) % 2], values_at + (i + 1) / kGroups * 16 * kPitch + (i + 1) % kGroups * 32);
        const uint32_t(&fragment)[4] = values[i % 2];
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
          multiply<T>(sums[tile][2 * pair], weights[step % 2][tile], fragment[0], fragment[1]);
          if (pair * 16 + 8 < C) multiply<T>(sums[tile][2 * pair + 1], weights[step % 2][tile], fragment[2], fragment[3]);
        }
        if (pair == 0 && step + 1 < kPairs) weigh(step + 1);
      }
    }
    // The next turn fetches into this stage.
    __syncthreads();
  }

  T* out = static_cast<T*>(a.out) + sample * a.out_sample + head * a.dim;
#pragma unroll
  for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = total[tile][half];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      const float inverse = 1.0f / sum;
      const int row = first + (warp * TILES + tile) * 16 + half * 8 + lane / 4;
      if (row >= a.queries) continue;
      T* target = out + int64_t(row) * a.out_row;
#pragma unroll
      for (int group = 0; group < D / 8; ++group)
        if (group * 8 < a.dim)
          *reinterpret_cast<uint32_t*>(target + group * 8 + lane % 4 * 2) =
              pack<T>(sums[tile][group][2 * half] * inverse, sums[tile][group][2 * half + 1] * inverse);
    }
}

#define FLASH(C, TILES, KEYS)                                                                     \
  extern "C" __global__ void __launch_bounds__(128) flash_bf16_##C(const Attention attention) {   \
    attend<bf16, C, TILES, KEYS, 4>(attention);                                                   \
  }                                                                                               \
  extern "C" __global__ void __launch_bounds__(128) flash_f16_##C(const Attention attention) {    \
    attend<__half, C, TILES, KEYS, 4>(attention);                                                 \
  }
// src/cuda/teacher/attention.rs mirrors the numbers. As many tiles as registers hold.
FLASH(16, 2, 128)
FLASH(32, 2, 128)
FLASH(40, 2, 128)
FLASH(48, 2, 128)
FLASH(64, 2, 64)
FLASH(72, 2, 64)
FLASH(80, 2, 64)
FLASH(96, 1, 64)
FLASH(112, 1, 64)
FLASH(128, 1, 64)
FLASH(144, 1, 64)
FLASH(160, 1, 64)

// Any head of up to 512 channels, f32 throughout: 16 queries a block, 16 keys at a time. Right for any shape, and slow.
constexpr int kSide = 16, kWidest = 512;

template <class T> __device__ __forceinline__ void attend_plainly(const Attention& a) {
  float* q = reinterpret_cast<float*>(shared);
  const int pitch = a.dim + 1;
  float* rows = q + kSide * pitch;
  float* scores = rows + kSide * pitch;
  const int i = threadIdx.x / kSide, j = threadIdx.x % kSide;
  const int query = blockIdx.x * kSide + i, head = blockIdx.y, sample = blockIdx.z;
  const T* from = static_cast<const T*>(a.q) + sample * a.q_sample + head * a.dim;
  for (int c = j; c < a.dim; c += kSide) q[i * pitch + c] = query < a.queries ? to_float(from[int64_t(query) * a.q_row + c]) : 0.0f;
  float sums[kWidest / kSide] = {}, highest = -INFINITY, total = 0.0f;
  for (int first = 0; first < a.keys; first += kSide) {
    const int key = first + i;
    const bool exists = key < a.keys;
    auto load = [&](const void* of, int64_t of_sample, int of_row) {
      __syncthreads();
      const T* from = static_cast<const T*>(of) + sample * of_sample + head * a.dim;
      for (int c = j; c < a.dim; c += kSide) rows[i * pitch + c] = exists ? to_float(from[int64_t(key) * of_row + c]) : 0.0f;
      __syncthreads();
    };
    load(a.k, a.k_sample, a.k_row);
    float score = 0.0f;
    for (int c = 0; c < a.dim; ++c) score = fmaf(q[i * pitch + c], rows[j * pitch + c], score);
    score *= a.scale;
    if (a.bias && first + j < a.keys) score += a.bias[int64_t(sample) * a.keys + first + j];
    if (first + j >= a.keys) score = -INFINITY;
    float most = score;
    for (int offset = kSide / 2; offset > 0; offset /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, offset, kSide));
    most = fmaxf(most, highest);
    const float shrink = expf(highest - most), weight = expf(score - most);
    highest = most;
    float sum = weight;
    for (int offset = kSide / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset, kSide);
    total = total * shrink + sum;
    scores[i * kSide + j] = weight;
    load(a.v, a.v_sample, a.v_row);
#pragma unroll
    for (int part = 0; part < kWidest / kSide; ++part) {
      const int c = part * kSide + j;
      if (c >= a.dim) break;
      float value = sums[part] * shrink;
      for (int l = 0; l < kSide; ++l) value = fmaf(scores[i * kSide + l], rows[l * pitch + c], value);
      sums[part] = value;
    }
  }
  if (query >= a.queries) return;
  T* out = static_cast<T*>(a.out) + sample * a.out_sample + head * a.dim + int64_t(query) * a.out_row;
#pragma unroll
  for (int part = 0; part < kWidest / kSide; ++part) {
    const int c = part * kSide + j;
    if (c < a.dim) out[c] = from_float<T>(sums[part] / total);
  }
}
extern "C" __global__ void __launch_bounds__(kSide * kSide) plain_f32(const Attention a) { attend_plainly<float>(a); }
extern "C" __global__ void __launch_bounds__(kSide * kSide) plain_bf16(const Attention a) { attend_plainly<bf16>(a); }
extern "C" __global__ void __launch_bounds__(kSide * kSide) plain_f16(const Attention a) { attend_plainly<__half>(a); }
