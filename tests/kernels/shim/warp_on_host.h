// The functions of warp.cuh on the host: their definitions, without the arithmetic of a tensor core.
#pragma once
#include "cuda_on_host.h"

using HalfPair = unsigned;

inline HalfPair pack_halves(half first, half second) {
  HalfPair packed;
  const half pair[2] = {first, second};
  std::memcpy(&packed, pair, sizeof packed);
  return packed;
}

inline HalfPair pack_halves(float first, float second) {
  return pack_halves(__float2half_rn(first), __float2half_rn(second));
}

inline float2 unpack_halves(HalfPair packed) {
  half pair[2];
  std::memcpy(pair, &packed, sizeof packed);
  return {__half2float(pair[0]), __half2float(pair[1])};
}

using SharedHalves = const half*;
inline SharedHalves in_shared_memory(const half* place) { return place; }

template <bool TRANSPOSED> inline void load_matrices(HalfPair (&matrices)[4], const half* row) {
  if (reinterpret_cast<size_t>(row) % 16) {
    std::fprintf(stderr, "a row of a matrix is not on 16 bytes\n");
    std::exit(98);
  }
  struct Row { half elements[8]; };
  const auto rows = host::exchange(*reinterpret_cast<const Row*>(row));
  const int group = host::lane() / 4, pair = host::lane() % 4 * 2;
  for (int matrix = 0; matrix < 4; ++matrix) {
    const auto element = [&](int y, int x) { return rows(8 * matrix + y).elements[x]; };
    matrices[matrix] = TRANSPOSED ? pack_halves(element(pair, group), element(pair + 1, group))
                                  : pack_halves(element(group, pair), element(group, pair + 1));
  }
}

template <bool TRANSPOSED> inline void load_two_matrices(HalfPair (&matrices)[2], const half* row) {
  // The addresses of lanes 16 to 31 are not used on a GPU.
  HalfPair four[4];
  const auto rows = host::exchange(row);
  load_matrices<TRANSPOSED>(four, rows(host::lane() % 16));
  matrices[0] = four[0];
  matrices[1] = four[1];
}

inline void multiply_add(float (&sums)[4], HalfPair a0, HalfPair a1, HalfPair a2, HalfPair a3, HalfPair b0, HalfPair b1) {
  struct Share { HalfPair a[4], b[2]; };
  const auto shares = host::exchange(Share{{a0, a1, a2, a3}, {b0, b1}});
  const int group = host::lane() / 4, pair = host::lane() % 4 * 2;
  const auto of_pair = [](HalfPair packed, int which) {
    const float2 both = unpack_halves(packed);
    return which ? both.y : both.x;
  };
  for (int one = 0; one < 4; ++one) {
    const int row = one / 2, column = pair + one % 2;  // row: group or group + 8
    for (int k = 0; k < 16; ++k) {
      const int holder = k % 8 / 2, octet = k / 8;
      sums[one] += of_pair(shares(4 * group + holder).a[row + 2 * octet], k % 2) *
                   of_pair(shares(4 * column + holder).b[octet], k % 2);
    }
  }
}

inline float exp2_approximately(float x) { return exp2f(x); }
template <typename T> inline T from_lane_across(T value, int bits) { return host::exchange(value)(host::lane() ^ bits); }
inline float reciprocal_approximately(float x) { return 1.0f / x; }

inline void keep_branch() {}

inline void store_pairs(half* to, HalfPair first, HalfPair second, bool exist) {
  const HalfPair both[2] = {first, second};
  if (exist) std::memcpy(to, both, sizeof both);
}

template <int BYTES> inline void copy_later(half* to, const half* from, bool inside) {
  if (reinterpret_cast<size_t>(to) % BYTES || reinterpret_cast<size_t>(from) % BYTES) {
    std::fprintf(stderr, "a copy is not on %d bytes\n", BYTES);
    std::exit(98);
  }
  host::fibers[host::current].copies.back().push_back({to, inside ? from : nullptr, BYTES});
}

inline half* dynamic_shared_memory() { return static_cast<half*>(host::dynamic_memory); }

inline void end_copies() { host::fibers[host::current].copies.emplace_back(); }

template <int NEWEST> inline void wait_for_copies() {
  auto& groups = host::fibers[host::current].copies;
  // The last group is the one that has not ended.
  for (; groups.size() > NEWEST + 1; groups.pop_front())
    for (const host::Copy& copy : groups.front())
      copy.from ? std::memcpy(copy.to, copy.from, copy.bytes) : std::memset(copy.to, 0, copy.bytes);
}
