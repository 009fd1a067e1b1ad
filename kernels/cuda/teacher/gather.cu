// The rows that a convolution's product reads: for every output pixel the kernel's rows, columns and channels, gathered
// from a map that is channels last. Padding, stride and nearest enlargement are folded in.
#include "../common.cuh"

struct Gather {
  const void* x;
  void* rows;
  int64_t first, count;   // output pixels, numbered through all samples
  int height, width, channels;  // of x
  int full_height, full_width;  // after resizing
  int out_height, out_width;
  int kernel, stride, before;
  int pitch;  // values from row to row; those past the last tap are zero
  int padding;
};
static_assert(sizeof(Gather) == 80, "src/cuda/teacher/conv.rs mirrors it");

// PyTorch's nearest neighbour, which scales in f32.
__device__ __forceinline__ int nearest(int i, int source, int side) {
  if (source == side) return i;
  const float scale = float(source) / float(side);
  return min(int(float(i) * scale), source - 1);
}

// T: what is copied at once, LANES values of it a vector.
template <class T> __device__ __forceinline__ void gather(const Gather& g, int lanes) {
  const int of_channels = g.channels / lanes, of_row = g.pitch / lanes;
  const unsigned taps = unsigned(g.kernel) * g.kernel;
  const T* x = static_cast<const T*>(g.x);
  T* rows = static_cast<T*>(g.rows);
  // A block takes whole rows: blockDim.y of them, threads along the row.
  for (int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y; row < g.count; row += int64_t(gridDim.x) * blockDim.y) {
    const int64_t pixel = g.first + row;
    const int column = int(pixel % g.out_width);
    const int64_t lines = pixel / g.out_width;
    const int line = int(lines % g.out_height);
    const int64_t sample = lines / g.out_height;
    T* target = rows + row * of_row;
    for (unsigned i = threadIdx.x; i < unsigned(of_row); i += blockDim.x) {
      const unsigned tap = i / unsigned(of_channels), channel = i - tap * unsigned(of_channels);
      T value{};
      if (tap < taps) {
        const int tap_row = int(tap) / g.kernel, tap_column = int(tap) - tap_row * g.kernel;
        const int y = line * g.stride + tap_row - g.before, z = column * g.stride + tap_column - g.before;
        if (y >= 0 && y < g.full_height && z >= 0 && z < g.full_width) {
          const int from_y = nearest(y, g.height, g.full_height), from_z = nearest(z, g.width, g.full_width);
          value = x[((sample * g.height + from_y) * g.width + from_z) * of_channels + channel];
        }
      }
      target[i] = value;
    }
  }
}
extern "C" __global__ void gather_16(const Gather g, int lanes) { gather<uint4>(g, lanes); }
extern "C" __global__ void gather_4(const Gather g, int lanes) { gather<uint32_t>(g, lanes); }
extern "C" __global__ void gather_2(const Gather g, int lanes) { gather<uint16_t>(g, lanes); }
