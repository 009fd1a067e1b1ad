// The rows that a convolution's product reads: for every output pixel the kernel's rows, columns and channels, gathered
// from a map that is channels last. Padding, stride and nearest enlargement are folded in.
#include "convolution.cuh"

struct Gather {
  const void* x;
  void* rows;
  int64_t first, count;  // output pixels, numbered through all samples
  Convolution of;
};
static_assert(sizeof(Gather) == 80, "src/cuda/teacher/conv.rs mirrors it");

// T: what is copied at once, LANES values of it a vector.
template <class T> __device__ __forceinline__ void gather(const Gather& g, int lanes) {
  const Convolution& of = g.of;
  const int of_channels = of.channels / lanes, of_row = of.pitch / lanes;
  const unsigned taps = unsigned(of.kernel) * of.kernel;
  const T* x = static_cast<const T*>(g.x);
  T* rows = static_cast<T*>(g.rows);
  // A block takes whole rows: blockDim.y of them, threads along the row.
  for (int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y; row < g.count; row += int64_t(gridDim.x) * blockDim.y) {
    const int64_t pixel = g.first + row;
    const int column = int(pixel % of.out_width);
    const int64_t lines = pixel / of.out_width;
    const int line = int(lines % of.out_height);
    const int64_t sample = lines / of.out_height;
    T* target = rows + row * of_row;
    for (unsigned i = threadIdx.x; i < unsigned(of_row); i += blockDim.x) {
      const unsigned tap = i / unsigned(of_channels), channel = i - tap * unsigned(of_channels);
      T value{};
      if (tap < taps) {
        const int tap_row = int(tap) / of.kernel, tap_column = int(tap) - tap_row * of.kernel;
        const int y = line * of.stride + tap_row - of.before, z = column * of.stride + tap_column - of.before;
        if (y >= 0 && y < of.full_height && z >= 0 && z < of.full_width) {
          const int from_y = nearest(y, of.height, of.full_height), from_z = nearest(z, of.width, of.full_width);
          value = x[((sample * of.height + from_y) * of.width + from_z) * of_channels + channel];
        }
      }
      target[i] = value;
    }
  }
}
extern "C" __global__ void gather_16(const Gather g, int lanes) { gather<uint4>(g, lanes); }
extern "C" __global__ void gather_4(const Gather g, int lanes) { gather<uint32_t>(g, lanes); }
extern "C" __global__ void gather_2(const Gather g, int lanes) { gather<uint16_t>(g, lanes); }
