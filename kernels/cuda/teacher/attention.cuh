// Where attention's operands lie, both ways. `src/cuda/teacher/attention.rs` mirrors it.
#pragma once

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
