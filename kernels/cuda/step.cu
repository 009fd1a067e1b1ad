// What a step needs besides matrix products, the block's middle and the optimiser: column sums, the loss, and the pooled
// linear.
#include "common.cuh"

// `factor` times the column sums of x [B, rows, C] over a part of the rows: parts [Z, B, C]; and, where wanted, the squares' sum of each
// block. Where the values are bent, by gates [B, C] or a loss' slope, the squares are those of gate · x, and x and its sums
// become gate · (gain · gate · x, kept within ± limit); without gates these are 1.
// Grid (⌈C / (8·lanes)⌉, Z, B), 256 threads; lanes is 1 where C or the address asks for it.
template <class T, int LANES, bool BENT>
__device__ void column_sums(T* x, const float* gates, float gain, float limit, float factor, float* parts, double* squares,
                            int rows, int channels) {
  __shared__ float scratch[32][8 * LANES + 1];
  __shared__ double square_scratch[8];
  const int column = threadIdx.x % 8, line = threadIdx.x / 8;
  const int channel = (blockIdx.x * 8 + column) * LANES, image = blockIdx.z;
  const int first = int(int64_t(rows) * blockIdx.y / gridDim.y), last = int(int64_t(rows) * (blockIdx.y + 1) / gridDim.y);
  float sums[LANES] = {};
  float square = 0;
  if (channel < channels) {
    T* source = x + int64_t(image) * rows * channels + channel;
    float gate[LANES];
#pragma unroll
    for (int lane = 0; lane < LANES; ++lane) gate[lane] = BENT && gates ? gates[int64_t(image) * channels + channel + lane] : 1.0f;
    const auto bent = [&](float value, int lane) { return gate[lane] * fminf(fmaxf(gain * value, -limit), limit); };
#pragma unroll 4
    for (int row = first + line; row < last; row += 32) {
      if constexpr (LANES == 1) {
        float value = to_float(source[int64_t(row) * channels]);
        if constexpr (BENT) value *= gate[0];
        square = fmaf(value, value, square);
        if constexpr (BENT) source[int64_t(row) * channels] = from_float<T>(value = bent(value, 0));
        sums[0] += value;
      } else {
        Vector<T> values = *reinterpret_cast<const Vector<T>*>(source + int64_t(row) * channels);
#pragma unroll
        for (int lane = 0; lane < LANES; ++lane) {
          float value = to_float(values.lanes[lane]);
          if constexpr (BENT) value *= gate[lane];
          square = fmaf(value, value, square);
          if constexpr (BENT) values.lanes[lane] = from_float<T>(value = bent(value, lane));
          sums[lane] += value;
        }
        if constexpr (BENT) *reinterpret_cast<Vector<T>*>(source + int64_t(row) * channels) = values;
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
      column_sums_##NAME(T* x, float factor, float* parts, double* squares, int rows, int channels) {      \
    column_sums<T, LANES, false>(x, nullptr, 1.0f, 0.0f, factor, parts, squares, rows, channels);           \
  }                                                                                                         \
  extern "C" __global__ void __launch_bounds__(256)                                                         \
      bent_sums_##NAME(T* x, const float* gates, float gain, float limit, float factor, float* parts,       \
                       double* squares, int rows, int channels) {                                           \
    column_sums<T, LANES, true>(x, gates, gain, limit, factor, parts, squares, rows, channels);             \
  }
COLUMN_SUMS(float, f32, 4)
COLUMN_SUMS(bf16, bf16, 8)
COLUMN_SUMS(float, f32_single, 1)
COLUMN_SUMS(bf16, bf16_single, 1)

// sums [n] = factor · Σ parts [Z, n], 32 columns a block; where there are squares, block 0 writes the loss and takes the
// step's slot. 256 threads.
extern "C" __global__ void __launch_bounds__(256)
    reduce_sums(const float* parts, int count, int length, float factor, float* sums, const double* squares,
                int square_count, double share, double* losses, int* slot) {
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
    if (threadIdx.x == 0) losses[(*slot)++] = total * share;
  }
}

// out [B, C] = mean [B, C] · weightᵀ [C, C] + both biases: what all positions of an image share. A warp for an output
// channel and an image; grid (⌈C / 8⌉, B), 256 threads.
template <class T>
__device__ void pooled_linear(const float* mean, const T* weight, const float* pool_bias, const float* out_bias, T* out,
                              int channels) {
  const int lane = threadIdx.x & 31, channel = blockIdx.x * 8 + (threadIdx.x >> 5), image = blockIdx.y;
  if (channel >= channels) return;
  float sum = 0;
  for (int i = lane; i < channels; i += 32)
    sum = fmaf(mean[int64_t(image) * channels + i], to_float(weight[int64_t(channel) * channels + i]), sum);
  for (int offset = 16; offset > 0; offset >>= 1) sum += __shfl_xor_sync(~0u, sum, offset);
  if (lane == 0) out[int64_t(image) * channels + channel] = from_float<T>(sum + pool_bias[channel] + out_bias[channel]);
}
extern "C" __global__ void pooled_linear_f32(const float* mean, const float* weight, const float* pool_bias,
                                             const float* out_bias, float* out, int channels) {
  pooled_linear(mean, weight, pool_bias, out_bias, out, channels);
}
extern "C" __global__ void pooled_linear_bf16(const float* mean, const bf16* weight, const float* pool_bias,
                                              const float* out_bias, bf16* out, int channels) {
  pooled_linear(mean, weight, pool_bias, out_bias, out, channels);
}

__device__ __forceinline__ uint32_t packed(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// As pooled_linear, on the tensor cores and from the means' parts [count, B, C], whose sum times `factor` the first blocks
// write to `mean` where it is not null. For channels in multiples of 32. A block computes 16 channels of 16 images, its 8 warps take turns at
// pieces of 32 inputs. The means enter as the sum of two bf16 values each, so that they lose nothing. Within a piece a
// lane's inputs are 8 neighbours, in weights and means alike: a sum doesn't mind which input stands where.
// Grid (C / 16, ⌈B / 16⌉), 256 threads.
extern "C" __global__ void __launch_bounds__(256)
    pooled_linear_of_parts(const float* parts, int count, float factor, float* mean, const bf16* weight, const float* pool_bias,
                  const float* out_bias, bf16* out, int batch, int channels) {
  __shared__ float scratch[8][16][17];
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, group = lane >> 2, inner = (lane & 3) * 8;
  const int first_channel = blockIdx.x * 16, first_image = blockIdx.y * 16;
  const int64_t length = int64_t(batch) * channels;
  const bf16* rows = weight + int64_t(first_channel + group) * channels + inner;
  float sums[2][4] = {};
#pragma unroll 2
  for (int input = warp * 32; input < channels; input += 8 * 32) {
    const uint4 upper = *reinterpret_cast<const uint4*>(rows + input);
    const uint4 lower = *reinterpret_cast<const uint4*>(rows + int64_t(8) * channels + input);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int image = first_image + half * 8 + group;
      float values[8] = {};
      if (image < batch) {
        const int64_t at = int64_t(image) * channels + input + inner;
#pragma unroll 4
        for (int part = 0; part < count; ++part) {
          const float4* source = reinterpret_cast<const float4*>(parts + part * length + at);
          const float4 low = source[0], high = source[1];
          values[0] += low.x, values[1] += low.y, values[2] += low.z, values[3] += low.w;
          values[4] += high.x, values[5] += high.y, values[6] += high.z, values[7] += high.w;
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) values[i] *= factor;
        if (mean && blockIdx.x == 0) {
          float4* target = reinterpret_cast<float4*>(mean + at);
          target[0] = make_float4(values[0], values[1], values[2], values[3]);
          target[1] = make_float4(values[4], values[5], values[6], values[7]);
        }
      }
#pragma unroll
      for (int round = 0; round < 2; ++round) {
        uint32_t pairs[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          pairs[i] = packed(values[2 * i], values[2 * i + 1]);
          const __nv_bfloat162 taken = *reinterpret_cast<const __nv_bfloat162*>(&pairs[i]);
          values[2 * i] -= to_float(taken.x);
          values[2 * i + 1] -= to_float(taken.y);
        }
        multiply16(sums[half], upper.x, lower.x, upper.y, lower.y, pairs[0], pairs[1]);
        multiply16(sums[half], upper.z, lower.z, upper.w, lower.w, pairs[2], pairs[3]);
      }
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      scratch[warp][half * 8 + (lane & 3) * 2 + i % 2][group + i / 2 * 8] = sums[half][i];
  __syncthreads();
  const int channel = first_channel + threadIdx.x % 16, image = first_image + threadIdx.x / 16;
  if (image >= batch) return;
  float sum = pool_bias[channel] + out_bias[channel];
#pragma unroll
  for (int other = 0; other < 8; ++other) sum += scratch[other][threadIdx.x / 16][threadIdx.x % 16];
  out[int64_t(image) * channels + channel] = from_float<bf16>(sum);
}

template <class From, class To> __device__ void convert(const From* from, To* to, int64_t length) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < length; i += int64_t(gridDim.x) * blockDim.x)
    to[i] = from_float<To>(to_float(from[i]));
}
extern "C" __global__ void f16_to_bf16(const __half* from, bf16* to, int64_t length) { convert(from, to, length); }
extern "C" __global__ void f16_to_f32(const __half* from, float* to, int64_t length) { convert(from, to, length); }
extern "C" __global__ void bf16_to_f32(const bf16* from, float* to, int64_t length) { convert(from, to, length); }

// Values that lie side by side somewhere, and where they go, counted in values. rust: Entry in src/cuda/rows.rs
struct Piece {
  const __half* from;
  uint64_t to;
};

// Puts values together that lie in `count` pieces; behind the last one there is an entry with `to` = `length`.
template <class T> __device__ void collect(const Piece* pieces, int count, T* out, int64_t length) {
  constexpr int kLanes = 8;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t vector = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; vector * kLanes < length; vector += stride) {
    const int64_t first = vector * kLanes;
    int piece = 0, end = count;  // the last piece that begins at or before `first`
    while (end - piece > 1) {
      const int middle = (piece + end) / 2;
      if (int64_t(pieces[middle].to) <= first) piece = middle; else end = middle;
    }
    const __half* from = pieces[piece].from + (first - int64_t(pieces[piece].to));
    if (first + kLanes <= int64_t(pieces[piece + 1].to) && uintptr_t(from) % 16 == 0) {
      const Vector<__half> values = *reinterpret_cast<const Vector<__half>*>(from);
      alignas(16) T converted[kLanes];
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) converted[lane] = from_float<T>(to_float(values.lanes[lane]));
#pragma unroll
      for (int lane = 0; lane < kLanes; lane += Vector<T>::kLanes)
        *reinterpret_cast<Vector<T>*>(out + first + lane) = *reinterpret_cast<const Vector<T>*>(converted + lane);
      continue;
    }
    for (int64_t at = first; at < min(first + kLanes, length); ++at) {
      while (at >= int64_t(pieces[piece + 1].to)) ++piece;
      out[at] = from_float<T>(to_float(pieces[piece].from[at - int64_t(pieces[piece].to)]));
    }
  }
}
extern "C" __global__ void collect_bf16(const Piece* pieces, int count, bf16* out, int64_t length) {
  collect(pieces, count, out, length);
}
extern "C" __global__ void collect_f32(const Piece* pieces, int count, float* out, int64_t length) {
  collect(pieces, count, out, length);
}

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
