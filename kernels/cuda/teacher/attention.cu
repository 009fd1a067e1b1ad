// softmax(Q Kᵀ · scale + bias) V for each head, without the matrix of scores: FlashAttention-2's order (arXiv 2307.08691)
// on the tensor cores with mma.sync, bf16 or f16 in, f32 sums. A block takes 4 warps' rows of queries of one head and goes
// over the keys, whose next tile is on its way while one is multiplied.
#include "../common.cuh"

struct Attention {
  const void *q, *k, *v;
  // [B, keys] or null.
  const float* bias;
  void* out;
  int64_t q_sample, k_sample, v_sample, out_sample;  // values from sample to sample
  int q_row, k_row, v_row, out_row;                  // values from position to position
  int heads, dim, queries, keys;
  float scale;
  int padding;
};
static_assert(sizeof(Attention) == 112, "src/cuda/teacher/attention.rs mirrors it");

constexpr int kKeys = 64;
constexpr int kThreads = 128;
constexpr float kLog2E = 1.4426950408889634f;

extern __shared__ __align__(128) unsigned char shared[];

__device__ __forceinline__ void load4(uint32_t (&r)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
}
__device__ __forceinline__ void load4_transposed(uint32_t (&r)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
}
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
template <int D, class T>
__device__ __forceinline__ void load_rows(uint32_t to, const T* from, int rows, int left, int row_stride, int dim) {
  constexpr int kChunks = D / 8, kPitch = (D + 8) * 2;
  for (int i = threadIdx.x; i < rows * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const bool exists = row < left && chunk * 8 < dim;
    copy16(to + row * kPitch + chunk * 16, exists ? from + int64_t(row) * row_stride + chunk * 8 : from, exists);
  }
}

// D: the head's channels, padded to a multiple of 16. TILES: of 16 rows, a warp's share of the queries.
template <class T, int D, int TILES> __device__ __forceinline__ void attend(const Attention& a) {
  constexpr int kSteps = D / 16, kPitch = (D + 8) * 2, kTileBytes = kKeys * kPitch;
  constexpr int kQueries = 64 * TILES;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first = blockIdx.x * kQueries, head = blockIdx.y, sample = blockIdx.z;
  const T* q = static_cast<const T*>(a.q) + sample * a.q_sample + head * a.dim + int64_t(first) * a.q_row;
  const T* k = static_cast<const T*>(a.k) + sample * a.k_sample + head * a.dim;
  const T* v = static_cast<const T*>(a.v) + sample * a.v_sample + head * a.dim;
  const float* bias = a.bias ? a.bias + int64_t(sample) * a.keys : nullptr;
  const uint32_t base = uint32_t(__cvta_generic_to_shared(shared));
  // K and V take turns: [stage][K, V]. The queries lie in the first stages before anything else does.
  const int tiles = (a.keys + kKeys - 1) / kKeys;

  uint32_t queries[TILES][kSteps][4];
  load_rows<D>(base, q, kQueries, a.queries - first, a.q_row, a.dim);
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
    const int left = a.keys - tile * kKeys;
    load_rows<D>(at, k + int64_t(tile) * kKeys * a.k_row, kKeys, left, a.k_row, a.dim);
    load_rows<D>(at + kTileBytes, v + int64_t(tile) * kKeys * a.v_row, kKeys, left, a.v_row, a.dim);
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

  for (int tile_of_keys = 0; tile_of_keys < tiles; ++tile_of_keys) {
    if (tile_of_keys + 1 < tiles) {
      fetch(tile_of_keys + 1);
      asm volatile("cp.async.wait_group 1;" ::: "memory");
    } else {
      asm volatile("cp.async.wait_group 0;" ::: "memory");
    }
    __syncthreads();
    const uint32_t keys_at = base + (tile_of_keys & 1) * 2 * kTileBytes, values_at = keys_at + kTileBytes;

    float scores[TILES][kKeys / 8][4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int pair = 0; pair < kKeys / 16; ++pair) {
        // Two groups of 8 keys, 16 channels.
        uint32_t keys[4];
        const int row = pair * 16 + lane / 16 * 8 + lane % 8;
        load4(keys, keys_at + row * kPitch + (step * 16 + lane / 8 % 2 * 8) * 2);
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
          const uint32_t(&x)[4] = queries[tile][step];
          multiply<T>(scores[tile][2 * pair], x, keys[0], keys[1]);
          multiply<T>(scores[tile][2 * pair + 1], x, keys[2], keys[3]);
        }
      }

    const int first_key = tile_of_keys * kKeys, left = a.keys - first_key;
    if (bias != nullptr || left < kKeys) {
#pragma unroll
      for (int group = 0; group < kKeys / 8; ++group)
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          const int key = group * 8 + lane % 4 * 2 + odd;
          const bool exists = key < left;
          // Scores are scaled later.
          const float add = exists && bias != nullptr ? bias[first_key + key] / a.scale : 0.0f;
#pragma unroll
          for (int tile = 0; tile < TILES; ++tile) {
            scores[tile][group][odd] = exists ? scores[tile][group][odd] + add : -INFINITY;
            scores[tile][group][2 + odd] = exists ? scores[tile][group][2 + odd] + add : -INFINITY;
          }
        }
    }

#pragma unroll
    for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float most = highest[tile][half];
#pragma unroll
        for (int group = 0; group < kKeys / 8; ++group)
          most = fmaxf(most, fmaxf(scores[tile][group][2 * half], scores[tile][group][2 * half + 1]));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        // Every tile has a key, so `most` is finite.
        const float shrink = exp2_fast((highest[tile][half] - most) * scale);
        highest[tile][half] = most;
        const float offset = most * scale;
        float sum = 0.0f;
#pragma unroll
        for (int group = 0; group < kKeys / 8; ++group)
#pragma unroll
          for (int odd = 0; odd < 2; ++odd) {
            float& score = scores[tile][group][2 * half + odd];
            score = exp2_fast(fmaf(score, scale, -offset));
            sum += score;
          }
        total[tile][half] = total[tile][half] * shrink + sum;
#pragma unroll
        for (int group = 0; group < D / 8; ++group)
          sums[tile][group][2 * half] *= shrink, sums[tile][group][2 * half + 1] *= shrink;
      }

#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      uint32_t weights[TILES][4];
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile) {
        const float(&low)[4] = scores[tile][2 * step];
        const float(&high)[4] = scores[tile][2 * step + 1];
        weights[tile][0] = pack<T>(low[0], low[1]);
        weights[tile][1] = pack<T>(low[2], low[3]);
        weights[tile][2] = pack<T>(high[0], high[1]);
        weights[tile][3] = pack<T>(high[2], high[3]);
      }
#pragma unroll
      for (int pair = 0; pair < D / 16; ++pair) {
        uint32_t values[4];
        const int row = step * 16 + lane / 8 % 2 * 8 + lane % 8;
        load4_transposed(values, values_at + row * kPitch + (pair * 16 + lane / 16 * 8) * 2);
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
          const uint32_t(&p)[4] = weights[tile];
          multiply<T>(sums[tile][2 * pair], p, values[0], values[1]);
          multiply<T>(sums[tile][2 * pair + 1], p, values[2], values[3]);
        }
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

#define FLASH(D, TILES)                                                                                \
  extern "C" __global__ void __launch_bounds__(kThreads) flash_bf16_##D(const Attention attention) {   \
    attend<bf16, D, TILES>(attention);                                                                 \
  }                                                                                                    \
  extern "C" __global__ void __launch_bounds__(kThreads) flash_f16_##D(const Attention attention) {    \
    attend<__half, D, TILES>(attention);                                                               \
  }
FLASH(16, 2)
FLASH(32, 2)
FLASH(48, 2)
FLASH(64, 2)
FLASH(80, 2)
FLASH(96, 1)
FLASH(112, 1)
FLASH(128, 1)
FLASH(144, 1)
FLASH(160, 1)

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
