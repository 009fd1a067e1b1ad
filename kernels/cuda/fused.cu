// The block's middle in one kernel a direction, for bf16 and one kernel size (KERNEL_SIZE, odd, at most 13).
//
// A block works on one pair of channels that the gate multiplies, a = pair and b = pair + d/2, and on some images'
// planes of them, in shared memory with a margin of zeros. A depthwise convolution is a matrix product then: for each
// row i of taps, 16 rows of the plane times a band matrix T_i [columns in, 8 columns out] that holds the row's taps on
// its diagonals, T_i[k][n] = w[i][k - n]. The tensor cores waste the zeros of the band and are still far ahead. The
// gradient of the taps is a product of the same planes: P_i = gᵀ·x, shifted by i rows, over all rows of all images, and
// tap (i, j) is the sum of P_i's j-th diagonal.
//
// Rows of all images of a unit are numbered one after another, so that small maps fill the 16 rows of a product.
#include "common.cuh"

constexpr int K = KERNEL_SIZE;
constexpr int kPad = K / 2;
// Columns of zeros to the left: of the input planes as few as 8-byte stores allow, so that 16 columns are all that 8
// outputs need up to K = 9; of the gradient planes 8, since they are also read 16 columns wide from their first.
constexpr int kLeftX = K <= 9 ? 4 : 8, kLeftG = 8;
// Column groups of 8 that 8 outputs need.
constexpr int kChunksX = K <= 9 ? 2 : 3, kChunksG = K == 1 ? 2 : 3;
// Column groups of 8 that hold the taps' diagonals of 16 columns.
constexpr int kSpan = K <= 9 ? 3 : 4;
// Bytes of a row of taps: 32 values, once from the first and once from the second, so that any pair is one word.
constexpr int kTapRow = 128;
constexpr int kScratchPitch = kSpan * 8 + 1;

// One scale's place in shared memory; the host fills it in (src/cuda/plan.rs). Offsets are in bytes.
struct Scale {
  int height, width;
  // Column groups of 8.
  int tiles;
  // Whether the full map is exactly twice as high and wide.
  int halves;
  // Rows of a plane with its margins, and its columns, of the input and of the gradient.
  int rows, pitch_x, pitch_g;
  // Planes [2, images, rows, pitch].
  int x, g;
  // f32 [2, images, height, width], the first half in the forward kernel; absent at scale 0.
  int small;
  // Tables of taps [2, K], and turned by half a turn.
  int taps, turned;
  // Sums of the taps' gradient [2, K, K].
  int sums;
};

struct Middle {
  int batch, height, width, half, scales, gate;
  float factor;
  // Images of a unit, and how many units share a part of the sums (backward).
  int images, parts;
  // Rows of the output that a unit computes, and units that a map is cut into (forward).
  int strip, strips;
  int zero_row, scratch;
  // All of the region that begins as zeros.
  int zero_end;
  Scale scale[3];
  const bf16* h;
  const float* bias;
  // Bands [S, d, K, 64], and turned by half a turn.
  const bf16 *upright, *turned;
  bf16* features;
  const bf16* feature_gradient;
  bf16* hidden_gradient;
  float *taps_parts, *bias_parts;
};
static_assert(sizeof(Middle) == 288, "src/cuda/fused.rs mirrors it");

extern __shared__ __align__(128) unsigned char shared[];

__device__ __forceinline__ uint32_t address(const void* pointer) { return uint32_t(__cvta_generic_to_shared(pointer)); }
template <class T> __device__ __forceinline__ T* at(int offset) { return reinterpret_cast<T*>(shared + offset); }

__device__ __forceinline__ void load2_transposed(uint32_t& a, uint32_t& b, uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(a), "=r"(b) : "r"(from) : "memory");
}
__device__ __forceinline__ uint32_t load_word(uint32_t from) {
  uint32_t value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(from) : "memory");
  return value;
}
// c += a [16, 8] · b [8, 8].
__device__ __forceinline__ void multiply8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(b0));
}

// Copies a channel's bands, K rows of kTapRow bytes that `prepare` of step.cu wrote: row i holds w[i][position - 7 - (left
// - kPad)], zeros around, twice.
__device__ __forceinline__ void load_bands(int table, const bf16* bands) {
  for (int index = threadIdx.x; index < K * kTapRow / 16; index += blockDim.x)
    at<uint4>(table)[index] = reinterpret_cast<const uint4*>(bands)[index];
}
// Where a lane finds its pair of the band matrix in a row of taps.
__device__ __forceinline__ int tap_offset(int lane) {
  const int position = 2 * (lane & 3) - (lane >> 2) + 7;
  return ((position & 1) * 32 + (position & ~1)) * 2;
}

// sums [TILES][4] += the convolution of 16 rows: `source` is this lane's address for ldmatrix, of row lane % 16 and of
// columns 8·(lane / 16) on.
template <int CHUNKS, int TILES>
__device__ __forceinline__ void convolve(float (&sums)[TILES][4], uint32_t source, int pitch, uint32_t taps) {
  constexpr int kLoads = (TILES + CHUNKS) / 2;
#pragma unroll 1
  for (int i = 0; i < K; ++i) {
    uint32_t band[3];
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) band[chunk] = load_word(taps + chunk * 16);
    uint32_t rows[kLoads][4];
#pragma unroll
    for (int load = 0; load < kLoads; ++load) load4(rows[load], source + load * 32);
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
      const int odd = (tile & 1) * 2, next = ((tile + 1) & 1) * 2;
      multiply16(sums[tile], rows[tile / 2][odd], rows[tile / 2][odd + 1], rows[(tile + 1) / 2][next],
                 rows[(tile + 1) / 2][next + 1], band[0], band[1]);
      if constexpr (CHUNKS == 3)
        multiply8(sums[tile], rows[(tile + 2) / 2][odd], rows[(tile + 2) / 2][odd + 1], band[2]);
    }
    source += pitch * 2;
    taps += kTapRow;
  }
}

// The row `v` of a unit: its image and its row in the map; past the last, image is -1.
struct Row {
  int image, row;
};
__device__ __forceinline__ Row row_of(int v, int images, int rows) {
  if (images == 1) return v < rows ? Row{0, v} : Row{-1, 0};
  const int image = v / rows;
  return image < images ? Row{image, v - image * rows} : Row{-1, 0};
}

// Calls f(plane, row, group) for all groups of columns of all rows of all planes, spread over the block.
template <class F> __device__ __forceinline__ void for_groups(int planes, int rows, int groups, F f) {
  if ((groups & (groups - 1)) == 0 && groups <= int(blockDim.x)) {
    const int shift = 31 - __clz(groups), step = int(blockDim.x) >> shift, group = int(threadIdx.x) & (groups - 1);
    const int line = int(threadIdx.x) >> shift, planes_on = step / rows, rows_on = step - planes_on * rows;
    int plane = line / rows, row = line - plane * rows;
    while (plane < planes) {
      f(plane, row, group);
      plane += planes_on;
      row += rows_on;
      if (row >= rows) {
        row -= rows;
        ++plane;
      }
    }
  } else {
    for (int i = threadIdx.x; i < planes * rows * groups; i += blockDim.x) f(i / groups / rows, i / groups % rows, i % groups);
  }
}

// Loads planes a and b of a unit, with the bias, into scale 0's input planes. Rows first..last of the map; the plane's
// first row is the map's row `base`. Images past the batch become zeros.
__device__ __forceinline__ void load_planes(const Middle& p, int pair, int image0, int base, int first, int last) {
  const Scale& s = p.scale[0];
  const bool wide = p.width % 8 == 0;
  const float biases[2] = {p.bias[pair], p.bias[pair + p.half]};
  for_groups(2 * p.images, last - first, wide ? p.width / 8 : p.width, [&](int plane, int line, int group) {
    const int ab = plane >= p.images, image = image0 + plane - ab * p.images, channel = pair + ab * p.half;
    bf16* target = at<bf16>(s.x) + (plane * s.rows + first + line - base) * s.pitch_x + kLeftX;
    const bf16* source = p.h + ((int64_t(channel) * p.batch + image) * p.height + first + line) * p.width;
    const float bias = ab ? biases[1] : biases[0];
    const bool there = image < p.batch;
    if (wide) {
      uint4 words = make_uint4(0, 0, 0, 0);
      if (there) {
        words = *reinterpret_cast<const uint4*>(source + group * 8);
        __nv_bfloat162* pairs = reinterpret_cast<__nv_bfloat162*>(&words);
#pragma unroll
        for (int lane = 0; lane < 4; ++lane) {
          const float2 value = __bfloat1622float2(pairs[lane]);
          pairs[lane] = __floats2bfloat162_rn(value.x + bias, value.y + bias);
        }
      }
      uint2* to = reinterpret_cast<uint2*>(target + group * 8);
      to[0] = make_uint2(words.x, words.y);
      to[1] = make_uint2(words.z, words.w);
    } else {
      target[group] = __float2bfloat16_rn(there ? to_float(source[group]) + bias : 0.0f);
    }
  });
}

// Fills rows first..last of a smaller scale's input planes by averaging scale 0's. `base` is the map row that scale 0's
// planes begin with, `small_base` the small map's row that these begin with.
__device__ __forceinline__ void pool_planes(const Middle& p, int index, int base, int small_base, int first, int last) {
  const Scale& full = p.scale[0];
  const Scale& s = p.scale[index];
  if (s.halves && p.width % 8 == 0) {
    // 4 averages at a time.
    for_groups(2 * p.images, last - first, s.width / 4, [&](int plane, int line, int group) {
      const int row = first + line;
      const bf16* source =
          at<bf16>(full.x) + (plane * full.rows + 2 * row - base) * full.pitch_x + kLeftX + group * 8;
      const uint2* upper = reinterpret_cast<const uint2*>(source);
      const uint2* lower = reinterpret_cast<const uint2*>(source + full.pitch_x);
      const uint2 words[4] = {upper[0], upper[1], lower[0], lower[1]};
      const __nv_bfloat162* pairs = reinterpret_cast<const __nv_bfloat162*>(words);
      float means[4];
#pragma unroll
      for (int lane = 0; lane < 4; ++lane) {
        const float2 above = __bfloat1622float2(pairs[lane]), below = __bfloat1622float2(pairs[4 + lane]);
        means[lane] = (above.x + above.y + below.x + below.y) * 0.25f;
      }
      uint2 packed;
      __nv_bfloat162* target = reinterpret_cast<__nv_bfloat162*>(&packed);
      target[0] = __floats2bfloat162_rn(means[0], means[1]);
      target[1] = __floats2bfloat162_rn(means[2], means[3]);
      *reinterpret_cast<uint2*>(at<bf16>(s.x) + (plane * s.rows + row - small_base) * s.pitch_x + kLeftX + group * 4) =
          packed;
    });
    return;
  }
  for_groups(2 * p.images, last - first, s.width, [&](int plane, int line, int column) {
    const int row = first + line;
    const Bin down = bin(row, p.height, s.height), across = bin(column, p.width, s.width);
    const bf16* source = at<bf16>(full.x) + plane * full.rows * full.pitch_x + kLeftX;
    float sum = 0;
    for (int y = down.start; y < down.end; ++y)
      for (int x = across.start; x < across.end; ++x) sum += to_float(source[(y - base) * full.pitch_x + x]);
    sum /= float((down.end - down.start) * (across.end - across.start));
    at<bf16>(s.x)[(plane * s.rows + row - small_base) * s.pitch_x + kLeftX + column] = __float2bfloat16_rn(sum);
  });
}

__device__ void zero_fill(int end) {
  uint4* words = at<uint4>(0);
  for (int index = threadIdx.x; index < end / 16; index += blockDim.x) words[index] = make_uint4(0, 0, 0, 0);
}

// The convolution of both planes of a pair at one task: 16 rows from `band`·16, tiles from `first_tile`.
template <int TILES>
__device__ __forceinline__ void convolve_pair(const Middle& p, const Scale& s, int band, int rows, int first_row,
                                              int first_tile, float (&a)[TILES][4], float (&b)[TILES][4]) {
  const int lane = threadIdx.x & 31;
  const Row row = row_of(band * 16 + (lane & 15), p.images, rows);
  const int line = row.image < 0 ? 0 : row.image * s.rows + first_row + row.row;
  const uint32_t source = address(at<bf16>(s.x) + line * s.pitch_x + first_tile * 8 + (lane >> 4) * 8);
  const uint32_t taps = address(shared + s.taps) + tap_offset(lane);
  convolve<kChunksX>(a, source, s.pitch_x, taps);
  convolve<kChunksX>(b, source + p.images * s.rows * s.pitch_x * 2, s.pitch_x, taps + K * kTapRow);
}

// A task's results lie, for both halves of its 16 rows, in row lane / 4 of the half, and of each tile in columns
// 2·(lane % 4) and one more.
template <int TILES>
__device__ __forceinline__ void forward_task(const Middle& p, int index, int pair, int image0, int rows, int first_row,
                                             int out_row, int band, int first_tile) {
  const Scale& s = p.scale[index];
  float a[TILES][4] = {}, b[TILES][4] = {};
  convolve_pair<TILES>(p, s, band, rows, first_row, first_tile, a, b);
  const int lane = threadIdx.x & 31;
  const int64_t positions = int64_t(p.height) * p.width;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Row row = row_of(band * 16 + (lane >> 2) + half * 8, p.images, rows);
    if (row.image < 0 || image0 + row.image >= p.batch) continue;
    bf16* features = p.features + (int64_t(pair) * p.batch + image0 + row.image) * positions +
                     int64_t(out_row + row.row) * p.width;
    float* small = at<float>(s.small) + (row.image * rows + row.row) * s.width;
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
      const int column = (first_tile + tile) * 8 + 2 * (lane & 3);
      if (column >= s.width) continue;
      const float first = gated(p.gate, p.factor, a[tile][2 * half], b[tile][2 * half]);
      const float second = gated(p.gate, p.factor, a[tile][2 * half + 1], b[tile][2 * half + 1]);
      if (index > 0) {
        small[column] = first;
        if (column + 1 < s.width) small[column + 1] = second;
      } else if (p.width % 2 == 0) {
        *reinterpret_cast<__nv_bfloat162*>(features + column) = __floats2bfloat162_rn(first, second);
      } else {
        features[column] = __float2bfloat16_rn(first);
        if (column + 1 < s.width) features[column + 1] = __float2bfloat16_rn(second);
      }
    }
  }
}

// features [S, d/2, B, H, W] of a unit. Grid (d/2, strips · ⌈B / images⌉).
extern "C" __global__ void __launch_bounds__(256, 3) middle_forward(const __grid_constant__ Middle p) {
  const int pair = blockIdx.x, image0 = int(blockIdx.y) / p.strips * p.images;
  const int row0 = int(blockIdx.y) % p.strips * p.strip, row1 = min(row0 + p.strip, p.height);
  const int warp = threadIdx.x >> 5, warps = blockDim.x >> 5;

  // The rows of each scale that this strip needs.
  int base = row0 - kPad, end = min(row1 + kPad, p.height), low[3] = {}, high[3] = {};
  for (int index = 1; index < p.scales; ++index) {
    const Scale& s = p.scale[index];
    low[index] = sample(row0, s.height, p.height).low;
    high[index] = sample(row1 - 1, s.height, p.height).high + 1;
    base = min(base, bin(max(low[index] - kPad, 0), p.height, s.height).start);
    end = max(end, bin(min(high[index] + kPad, s.height) - 1, p.height, s.height).end);
  }

  zero_fill(p.zero_end);
  for (int index = 0; index < p.scales; ++index)
    for (int ab = 0; ab < 2; ++ab)
      load_bands(p.scale[index].taps + ab * K * kTapRow,
                 p.upright + (int64_t(index) * 2 * p.half + pair + ab * p.half) * K * (kTapRow / 2));
  __syncthreads();
  load_planes(p, pair, image0, base, max(base, 0), end);
  __syncthreads();
  for (int index = 1; index < p.scales; ++index)
    pool_planes(p, index, base, low[index] - kPad, max(low[index] - kPad, 0),
                min(high[index] + kPad, p.scale[index].height));
  __syncthreads();

  int task = warp;
  for (int index = 0; index < p.scales; ++index) {
    const Scale& s = p.scale[index];
    const int rows = index == 0 ? row1 - row0 : high[index] - low[index];
    const int first_row = index == 0 ? row0 - kPad - base : 0;
    const int wide = s.tiles > 2 ? 4 : 2, groups = (s.tiles + wide - 1) / wide;
    const int tasks = (p.images * rows + 15) / 16 * groups;
    for (; task < tasks; task += warps) {
      if (wide == 4)
        forward_task<4>(p, index, pair, image0, rows, first_row, row0, task / groups, task % groups * 4);
      else
        forward_task<2>(p, index, pair, image0, rows, first_row, row0, task / groups, task % groups * 2);
    }
    task -= tasks;
  }
  if (p.scales == 1) return;
  __syncthreads();

  const int rows = row1 - row0, groups = (p.width + 7) / 8;
  for (int index = 1; index < p.scales; ++index) {
    const Scale& s = p.scale[index];
    const int small_rows = high[index] - low[index];
    for_groups(p.images, rows, groups, [&](int image, int line, int group) {
      if (image0 + image >= p.batch) return;
      const int first = group * 8, row = row0 + line;
      const Sample y = s.halves ? sample_by_half(row, s.height) : sample(row, s.height, p.height);
      const float* upper = at<float>(s.small) + (image * small_rows + y.low - low[index]) * s.width;
      const float* lower = at<float>(s.small) + (image * small_rows + y.high - low[index]) * s.width;
      alignas(16) bf16 values[8];
      if (s.halves) {
        // Outputs 2k and 2k + 1 lie a quarter before and behind input k; past the edges its values repeat.
        float mixed[6];
#pragma unroll
        for (int lane = 0; lane < 6; ++lane) {
          const int column = min(max(first / 2 + lane - 1, 0), s.width - 1);
          mixed[lane] = upper[column] * (1.0f - y.weight) + lower[column] * y.weight;
        }
#pragma unroll
        for (int lane = 0; lane < 4; ++lane) {
          values[2 * lane] = __float2bfloat16_rn(mixed[lane] * 0.25f + mixed[lane + 1] * 0.75f);
          values[2 * lane + 1] = __float2bfloat16_rn(mixed[lane + 1] * 0.75f + mixed[lane + 2] * 0.25f);
        }
      }
#pragma unroll
      for (int lane = 0; lane < (s.halves ? 0 : 8); ++lane) {
        const Sample x = sample(min(first + lane, p.width - 1), s.width, p.width);
        const float left = upper[x.low] * (1.0f - y.weight) + lower[x.low] * y.weight;
        const float right = upper[x.high] * (1.0f - y.weight) + lower[x.high] * y.weight;
        values[lane] = __float2bfloat16_rn(left * (1.0f - x.weight) + right * x.weight);
      }
      bf16* target = p.features + (int64_t(index * p.half + pair) * p.batch + image0 + image) * p.height * p.width +
                     int64_t(row) * p.width + first;
      if (p.width % 8 == 0) {
        *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(values);
      } else {
        for (int lane = 0; lane < 8 && first + lane < p.width; ++lane) target[lane] = values[lane];
      }
    });
  }
}

// As shrink_gradient, for maps of exactly half the size: input k has a part in outputs 2k - 1 to 2k + 2. A thread takes 4
// inputs of a row.
__device__ __forceinline__ void shrink_gradient_by_half(const Middle& p, int index, int pair, int image0) {
  const Scale& s = p.scale[index];
  const int groups = s.width / 4;
  for_groups(p.images, s.height, groups, [&](int plane, int row, int group) {
    const int image = image0 + plane;
    float sums[4] = {};
    if (image < p.batch) {
      const bf16* source = p.feature_gradient +
                           (int64_t(index * p.half + pair) * p.batch + image) * p.height * p.width + group * 8;
#pragma unroll
      for (int offset = -1; offset <= 2; ++offset) {
        const int y = 2 * row + offset;
        if (y < 0 || y >= p.height) continue;
        const bool edge = y == 0 || y == p.height - 1;
        const float of_row = offset == -1 || offset == 2 ? 0.25f : edge ? 1.0f : 0.75f;
        const bf16* from = source + int64_t(y) * p.width;
        const Vector<bf16> middle = *reinterpret_cast<const Vector<bf16>*>(from);
        float values[10];
        values[0] = group > 0 ? to_float(from[-1]) : to_float(middle.lanes[0]);
        values[9] = group + 1 < groups ? to_float(from[8]) : to_float(middle.lanes[7]);
#pragma unroll
        for (int lane = 0; lane < 8; ++lane) values[lane + 1] = to_float(middle.lanes[lane]);
#pragma unroll
        for (int lane = 0; lane < 4; ++lane) {
          const float inner = (values[2 * lane + 1] + values[2 * lane + 2]) * 0.75f;
          const float outer = (values[2 * lane] + values[2 * lane + 3]) * 0.25f;
          sums[lane] = fmaf(of_row, inner + outer, sums[lane]);
        }
      }
    }
    *reinterpret_cast<float4*>(at<float>(s.small) + (plane * s.height + row) * s.width + group * 4) =
        make_float4(sums[0], sums[1], sums[2], sums[3]);
  });
}

// The gradient of what a smaller scale's gate gave, from that of its enlargement, into the scale's first small planes.
__device__ void shrink_gradient(const Middle& p, int index, int pair, int image0) {
  const Scale& s = p.scale[index];
  if (s.halves && p.width % 8 == 0) return shrink_gradient_by_half(p, index, pair, image0);
  for (int i = threadIdx.x; i < p.images * s.height * s.width; i += blockDim.x) {
    const int column = i % s.width, row = i / s.width % s.height, image = image0 + i / s.width / s.height;
    float sum = 0;
    if (image < p.batch) {
      const bf16* source =
          p.feature_gradient + (int64_t(index * p.half + pair) * p.batch + image) * p.height * p.width;
      const Reach rows = reach(row, s.height, p.height), columns = reach(column, s.width, p.width);
      for (int y = rows.first; y <= rows.last; ++y) {
        const float of_row = share(row, y, s.height, p.height);
        if (of_row == 0) continue;
        for (int x = columns.first; x <= columns.last; ++x) {
          const float part = of_row * share(column, x, s.width, p.width);
          if (part != 0) sum = fmaf(part, to_float(source[int64_t(y) * p.width + x]), sum);
        }
      }
    }
    at<float>(s.small)[i] = sum;
  }
}

// Recomputes a task's convolutions and writes the gradients of a and b to the gradient planes.
template <int TILES>
__device__ __forceinline__ void gate_task(const Middle& p, int index, int pair, int image0, int band, int first_tile) {
  const Scale& s = p.scale[index];
  float a[TILES][4] = {}, b[TILES][4] = {};
  convolve_pair<TILES>(p, s, band, s.height, 0, first_tile, a, b);
  const int lane = threadIdx.x & 31, plane = p.images * s.rows * s.pitch_g;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Row row = row_of(band * 16 + (lane >> 2) + half * 8, p.images, s.height);
    if (row.image < 0) continue;
    const bool there = image0 + row.image < p.batch;
    const bf16* source = p.feature_gradient +
                         ((int64_t(pair) * p.batch + image0 + row.image) * p.height + row.row) * p.width;
    const float* small = at<float>(s.small) + (row.image * s.height + row.row) * s.width;
    bf16* target = at<bf16>(s.g) + (row.image * s.rows + kPad + row.row) * s.pitch_g + kLeftG;
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
      const int column = (first_tile + tile) * 8 + 2 * (lane & 3);
      if (column >= s.width) continue;
      float first = 0, second = 0;
      if (index > 0) {
        first = small[column];
        if (column + 1 < s.width) second = small[column + 1];
      } else if (there && p.width % 2 == 0) {
        const float2 both = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(source + column));
        first = both.x;
        second = both.y;
      } else if (there) {
        first = to_float(source[column]);
        if (column + 1 < s.width) second = to_float(source[column + 1]);
      }
      const float2 one = gate_gradient(p.gate, p.factor, a[tile][2 * half], b[tile][2 * half], first);
      float2 two = gate_gradient(p.gate, p.factor, a[tile][2 * half + 1], b[tile][2 * half + 1], second);
      if (column + 1 >= s.width) two = make_float2(0, 0);
      *reinterpret_cast<__nv_bfloat162*>(target + column) = __floats2bfloat162_rn(one.x, two.x);
      *reinterpret_cast<__nv_bfloat162*>(target + plane + column) = __floats2bfloat162_rn(one.y, two.y);
    }
  }
}

// The gradient of one plane's input at a task, from the gradient planes.
template <int TILES>
__device__ __forceinline__ void turned_task(const Middle& p, const Scale& s, int ab, int band, int first_tile,
                                            float (&sums)[TILES][4]) {
  const int lane = threadIdx.x & 31;
  const Row row = row_of(band * 16 + (lane & 15), p.images, s.height);
  const int line = row.image < 0 ? 0 : row.image * s.rows + row.row;
  const uint32_t source = address(at<bf16>(s.g) + (ab * p.images * s.rows + line) * s.pitch_g + first_tile * 8 +
                                  (lane >> 4) * 8);
  convolve<kChunksG>(sums, source, s.pitch_g, address(shared + s.turned) + ab * K * kTapRow + tap_offset(lane));
}

template <int TILES>
__device__ __forceinline__ void small_hidden_task(const Middle& p, int index, int ab, int band, int first_tile) {
  const Scale& s = p.scale[index];
  float sums[TILES][4] = {};
  turned_task<TILES>(p, s, ab, band, first_tile, sums);
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Row row = row_of(band * 16 + (lane >> 2) + half * 8, p.images, s.height);
    if (row.image < 0) continue;
    float* small = at<float>(s.small) + ((ab * p.images + row.image) * s.height + row.row) * s.width;
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
      const int column = (first_tile + tile) * 8 + 2 * (lane & 3);
      if (column < s.width) small[column] = sums[tile][2 * half];
      if (column + 1 < s.width) small[column + 1] = sums[tile][2 * half + 1];
    }
  }
}

// What the averages of all smaller scales give back to one position of the full map.
__device__ __forceinline__ float pooled_share(const Middle& p, int plane, int row, int column) {
  float sum = 0;
  for (int index = 1; index < p.scales; ++index) {
    const Scale& s = p.scale[index];
    const float* small = at<float>(s.small) + plane * s.height * s.width;
    if (s.halves) {
      sum += small[row / 2 * s.width + column / 2] * 0.25f;
      continue;
    }
    for (int y = row * s.height / p.height; y < s.height; ++y) {
      const Bin down = bin(y, p.height, s.height);
      if (down.start > row) break;
      for (int x = column * s.width / p.width; x < s.width; ++x) {
        const Bin across = bin(x, p.width, s.width);
        if (across.start > column) break;
        if (down.end > row && across.end > column)
          sum += small[y * s.width + x] / float((down.end - down.start) * (across.end - across.start));
      }
    }
  }
  return sum;
}

template <int TILES>
__device__ __forceinline__ float hidden_task(const Middle& p, int pair, int image0, int ab, int band, int first_tile) {
  const Scale& s = p.scale[0];
  float sums[TILES][4] = {}, total = 0;
  turned_task<TILES>(p, s, ab, band, first_tile, sums);
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Row row = row_of(band * 16 + (lane >> 2) + half * 8, p.images, s.height);
    if (row.image < 0 || image0 + row.image >= p.batch) continue;
    bf16* target = p.hidden_gradient +
                   ((int64_t(pair + ab * p.half) * p.batch + image0 + row.image) * p.height + row.row) * p.width;
    const int plane = ab * p.images + row.image;
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
      const int column = (first_tile + tile) * 8 + 2 * (lane & 3);
      if (column >= s.width) continue;
      const float first = sums[tile][2 * half] + pooled_share(p, plane, row.row, column);
      total += first;
      float second = 0;
      if (column + 1 < s.width) second = sums[tile][2 * half + 1] + pooled_share(p, plane, row.row, column + 1);
      total += second;
      if (p.width % 2 == 0) {
        *reinterpret_cast<__nv_bfloat162*>(target + column) = __floats2bfloat162_rn(first, second);
      } else {
        target[column] = __float2bfloat16_rn(first);
        if (column + 1 < s.width) target[column + 1] = __float2bfloat16_rn(second);
      }
    }
  }
  return total;
}

// Adds the gradient of row i of one plane's taps over the unit to the block's sums.
__device__ void taps_task(const Middle& p, const Scale& s, int ab, int i) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int rows = p.images * s.height, blocks = (s.width + 15) / 16;
  float sums[kSpan][4] = {};
  const int g_line = (lane >> 4) * 8 + (lane & 7), x_line = (lane >> 3 & 1) * 8 + (lane & 7);
  for (int band = 0; band < (rows + 15) / 16; ++band) {
    const Row g_row = row_of(band * 16 + g_line, p.images, s.height);
    const Row x_row = row_of(band * 16 + x_line, p.images, s.height);
    const bf16* g_source = g_row.image < 0 ? at<bf16>(p.zero_row)
                                           : at<bf16>(s.g) + ((ab * p.images + g_row.image) * s.rows + kPad + g_row.row) *
                                                                 s.pitch_g + kLeftG;
    const bf16* x_source = at<bf16>(s.x) + ((ab * p.images + max(x_row.image, 0)) * s.rows + i + x_row.row) * s.pitch_x;
    uint32_t g = address(g_source + (lane >> 3 & 1) * 8), x = address(x_source + (lane >> 4) * 8);
    for (int block = 0; block < blocks; ++block) {
      uint32_t left[4], right[4], more[4];
      load4_transposed(left, g);
      load4_transposed(right, x);
      if constexpr (kSpan == 4)
        load4_transposed(more, x + 32);
      else
        load2_transposed(more[0], more[1], x + 32);
      multiply16(sums[0], left[0], left[1], left[2], left[3], right[0], right[1]);
      multiply16(sums[1], left[0], left[1], left[2], left[3], right[2], right[3]);
      multiply16(sums[2], left[0], left[1], left[2], left[3], more[0], more[1]);
      if constexpr (kSpan == 4) multiply16(sums[3], left[0], left[1], left[2], left[3], more[2], more[3]);
      g += 32;
      x += 32;
    }
  }
  float* scratch = at<float>(p.scratch) + warp * 16 * kScratchPitch;
  __syncwarp();
#pragma unroll
  for (int tile = 0; tile < kSpan; ++tile)
#pragma unroll
    for (int value = 0; value < 4; ++value)
      scratch[((lane >> 2) + value / 2 * 8) * kScratchPitch + tile * 8 + 2 * (lane & 3) + value % 2] = sums[tile][value];
  __syncwarp();
  if (lane < K) {
    float sum = 0;
#pragma unroll
    for (int row = 0; row < 16; ++row) sum += scratch[row * kScratchPitch + row + lane + kLeftX - kPad];
    at<float>(s.sums)[(ab * K + i) * K + lane] += sum;
  }
}

// The gradients of h, of the taps and of the bias, in parts. Grid (d/2, parts).
// Wider kernels need more registers than 512 threads leave them.
extern "C" __global__ void __launch_bounds__(K <= 7 ? 512 : 256, 2) middle_backward(const __grid_constant__ Middle p) {
  __shared__ float bias_scratch[2][16];
  const int pair = blockIdx.x, part = blockIdx.y, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  zero_fill(p.zero_end);
  for (int index = 0; index < p.scales; ++index) {
    const Scale& s = p.scale[index];
    for (int ab = 0; ab < 2; ++ab) {
      const int64_t channel = int64_t(index) * 2 * p.half + pair + ab * p.half;
      load_bands(s.taps + ab * K * kTapRow, p.upright + channel * K * (kTapRow / 2));
      load_bands(s.turned + ab * K * kTapRow, p.turned + channel * K * (kTapRow / 2));
    }
  }
  float bias[2] = {};
  const int units = (p.batch + p.images - 1) / p.images;
  for (int unit = part; unit < units; unit += p.parts) {
    const int image0 = unit * p.images;
    __syncthreads();
    load_planes(p, pair, image0, -kPad, 0, p.height);
    for (int index = 1; index < p.scales; ++index) shrink_gradient(p, index, pair, image0);
    __syncthreads();
    for (int index = 1; index < p.scales; ++index)
      pool_planes(p, index, -kPad, -kPad, 0, p.scale[index].height);
    __syncthreads();

    int task = warp;
    for (int index = 0; index < p.scales; ++index) {
      const Scale& s = p.scale[index];
      const int wide = s.tiles > 2 ? 4 : 2, groups = (s.tiles + wide - 1) / wide;
      const int tasks = (p.images * s.height + 15) / 16 * groups;
      for (; task < tasks; task += warps) {
        if (wide == 4)
          gate_task<4>(p, index, pair, image0, task / groups, task % groups * 4);
        else
          gate_task<2>(p, index, pair, image0, task / groups, task % groups * 2);
      }
      task -= tasks;
    }
    __syncthreads();

    task = warp;
    for (int index = 1; index < p.scales; ++index) {
      const Scale& s = p.scale[index];
      const int wide = s.tiles > 2 ? 4 : 2, groups = (s.tiles + wide - 1) / wide;
      const int tasks = (p.images * s.height + 15) / 16 * groups;
      for (; task < 2 * tasks; task += warps) {
        const int ab = task / tasks, rest = task % tasks;
        if (wide == 4)
          small_hidden_task<4>(p, index, ab, rest / groups, rest % groups * 4);
        else
          small_hidden_task<2>(p, index, ab, rest / groups, rest % groups * 2);
      }
      task -= 2 * tasks;
    }
    for (int index = 0; index < p.scales; ++index) {
      for (; task < 2 * K; task += warps) taps_task(p, p.scale[index], task / K, task % K);
      task -= 2 * K;
    }
    __syncthreads();

    const Scale& s = p.scale[0];
    const int wide = s.tiles > 2 ? 4 : 2, groups = (s.tiles + wide - 1) / wide;
    const int tasks = (p.images * s.height + 15) / 16 * groups;
    for (task = warp; task < 2 * tasks; task += warps) {
      const int ab = task / tasks, rest = task % tasks;
      const float sum = wide == 4 ? hidden_task<4>(p, pair, image0, ab, rest / groups, rest % groups * 4)
                                  : hidden_task<2>(p, pair, image0, ab, rest / groups, rest % groups * 2);
      bias[0] += ab == 0 ? sum : 0.0f;
      bias[1] += ab == 1 ? sum : 0.0f;
    }
  }

  for (int ab = 0; ab < 2; ++ab) {
    const float sum = block_sum(bias[ab], bias_scratch[ab]);
    if (threadIdx.x == 0) p.bias_parts[int64_t(part) * 2 * p.half + pair + ab * p.half] = sum;
  }
  __syncthreads();
  for (int index = 0; index < p.scales; ++index) {
    const float* sums = at<float>(p.scale[index].sums);
    for (int i = threadIdx.x; i < 2 * K * K; i += blockDim.x) {
      const int ab = i / (K * K), tap = i % (K * K);
      const int64_t row = (int64_t(part) * p.scales + index) * K * K + tap;
      p.taps_parts[row * 2 * p.half + pair + ab * p.half] = sums[i];
    }
  }
}
