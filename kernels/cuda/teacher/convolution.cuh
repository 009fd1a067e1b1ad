// What a convolution does to maps that are channels last, both ways. `src/cuda/teacher/conv.rs` mirrors it.
#pragma once

#include "../common.cuh"

struct Convolution {
  int height, width, channels;  // of what goes in
  int full_height, full_width;  // after resizing
  int out_height, out_width;
  int kernel, stride, before;
  int pitch;  // values from gathered row to row; those past the last tap are zero
  int padding;
};
static_assert(sizeof(Convolution) == 48, "src/cuda/teacher/conv.rs mirrors it");

// The pixel that resized pixel i is a copy of: PyTorch's nearest neighbour, which scales in f32.
__device__ __forceinline__ int nearest(int i, int source, int side) {
  if (source == side) return i;
  const float scale = float(source) / float(side);
  return min(int(float(i) * scale), source - 1);
}
