// What a warp does together: matrices from shared memory, their product on the tensor cores, and copies from global memory
// that arrive later. The host shim has functions of the same names.
#pragma once

#include "tile.cuh"

constexpr int WARP = 32;
constexpr unsigned EVERY_LANE = 0xffffffffu;

// Two halves, as the tensor cores take them: the first in the low bits.
using HalfPair = unsigned;

#ifndef UNETX_HOST_SHIM

__device__ inline HalfPair pack_halves(float first, float second) {
  const half2 packed = __floats2half2_rn(first, second);
  return *reinterpret_cast<const HalfPair*>(&packed);
}

__device__ inline HalfPair pack_halves(half first, half second) {
  const half2 packed = __halves2half2(first, second);
  return *reinterpret_cast<const HalfPair*>(&packed);
}

__device__ inline float2 unpack_halves(HalfPair packed) {
  return __half22float2(*reinterpret_cast<const half2*>(&packed));
}

// Halves in shared memory, by the address that the instructions here take.
struct SharedHalves {
  unsigned address;
  __device__ SharedHalves operator+(int elements) const { return {address + static_cast<unsigned>(elements) * 2u}; }
};

__device__ inline SharedHalves in_shared_memory(const half* place) {
  return {static_cast<unsigned>(__cvta_generic_to_shared(place))};
}

// Four matrices of 8 x 8 halves in shared memory. Lane l gives the address of row l % 8 of matrix l / 8, on 16 bytes, and
// gets of each matrix the elements (l / 4, 2 (l % 4)) and the next in that row; of its transpose where TRANSPOSED.
template <bool TRANSPOSED> __device__ inline void load_matrices(HalfPair (&matrices)[4], SharedHalves row) {
  if (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(row.address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(row.address)
                 : "memory");
}

template <bool TRANSPOSED> __device__ inline void load_matrices(HalfPair (&matrices)[4], const half* row) {
  load_matrices<TRANSPOSED>(matrices, in_shared_memory(row));
}

// Two of them: the addresses are those of lanes 0 to 15.
template <bool TRANSPOSED> __device__ inline void load_two_matrices(HalfPair (&matrices)[2], SharedHalves row) {
  if (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(matrices[0]), "=r"(matrices[1])
                 : "r"(row.address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(matrices[0]), "=r"(matrices[1])
                 : "r"(row.address)
                 : "memory");
}

// sums (16 x 8, float) += a (16 x 16) * b (16 x 8). Lane l = 4 g + t holds of a the pairs from column 2 t of rows g and g + 8,
// then from column 2 t + 8 of both; of b the pairs from row 2 t of column g, then from row 2 t + 8; of sums the pairs from
// column 2 t of rows g and g + 8.
__device__ inline void multiply_add(float (&sums)[4], HalfPair a0, HalfPair a1, HalfPair a2, HalfPair a3, HalfPair b0,
                                    HalfPair b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a0), "r"(a1), "r"(b0));
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a2), "r"(a3), "r"(b1));
#endif
}

__device__ inline float from_lane_across(float value, int bits) { return __shfl_xor_sync(EVERY_LANE, value, bits); }
__device__ inline HalfPair from_lane_across(HalfPair value, int bits) { return __shfl_xor_sync(EVERY_LANE, value, bits); }

// 2^x to 22 bits, 0 for a result below the least normal float.
__device__ inline float exp2_approximately(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// 1 / x to 22 bits.
__device__ inline float reciprocal_approximately(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Within code that a whole warp rarely runs: the compiler jumps over it, in place of selecting what it does.
__device__ inline void keep_branch() { __syncwarp(); }

// Stores four halves on 8 bytes where they `exist`, without a branch.
__device__ inline void store_pairs(half* __restrict__ to, HalfPair first, HalfPair second, bool exist) {
  asm volatile("{ .reg .pred exist; setp.ne.u32 exist, %0, 0; @exist st.global.v2.b32 [%1], {%2, %3}; }" ::"r"(
                   static_cast<unsigned>(exist)),
               "l"(to), "r"(first), "r"(second)
               : "memory");
}

// Copies BYTES to shared memory, or zeros where it is not `inside`. It has arrived after the `wait_for_copies` that follows.
template <int BYTES> __device__ inline void copy_later(half* to, const half* __restrict__ from, bool inside) {
  static_assert(BYTES == 8 || BYTES == 16, "as much as one instruction copies");
#if __CUDA_ARCH__ >= 800
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(inside ? 16 : 0)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(address), "l"(from), "r"(inside ? 8 : 0)
                 : "memory");
#else
  for (int part = 0; part < BYTES / 8; ++part)
    reinterpret_cast<uint2*>(to)[part] = inside ? reinterpret_cast<const uint2*>(from)[part] : make_uint2(0u, 0u);
#endif
}

// Ends a group of copies.
__device__ inline void end_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until all groups of this thread but the newest NEWEST have arrived.
template <int NEWEST> __device__ inline void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(NEWEST) : "memory");
#endif
}

// What the launcher asks for beside the shared memory that a kernel declares, on 16 bytes.
__device__ inline half* dynamic_shared_memory() {
  extern __shared__ uint4 dynamic_memory[];
  return reinterpret_cast<half*>(dynamic_memory);
}

#endif  // UNETX_HOST_SHIM

// The largest of a row of a product, and its sum: over the four lanes that hold it.
__device__ inline float most_of_row(float value) {
  value = fmaxf(value, from_lane_across(value, 1));
  return fmaxf(value, from_lane_across(value, 2));
}
__device__ inline float sum_of_row(float value) {
  value += from_lane_across(value, 1);
  return value + from_lane_across(value, 2);
}
