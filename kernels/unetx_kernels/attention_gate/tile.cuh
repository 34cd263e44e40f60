// What the kernels of both attention gates share: types, pixels in registers, a tile with its halo in shared memory, and
// the two loops over a window: `correlate` (a dot product per tap) and `gather` (a weighted sum over taps).
//
// Tensors are float or half, NCHW or NHWC; every sum is in float. An image has N x H x W pixels.
//
// Dilation: pixels whose row and column agree modulo `dilation` see only one another. Such a lattice is an image
// of its own with dilation 1; a block works on a tile of one lattice, and its halo is K / 2 for any dilation.
#pragma once

#ifndef UNETX_HOST_SHIM
#include <cuda_fp16.h>
#endif

#ifndef UNETX_TILE_WIDTH
#define UNETX_TILE_WIDTH 32  // threads of a block along x; a multiple of 8, the halves in 16 bytes
#endif
#ifndef UNETX_TILE_HEIGHT
#define UNETX_TILE_HEIGHT 8  // threads of a block along y
#endif

// Which entry points to compile, so that a first use waits for one only; by default all. UNETX_FORMAT: 1 f32 NCHW,
// 2 f32 NHWC, 3 f16 NCHW, 4 f16 NHWC. UNETX_WINDOW: 3, 5, 7, and 0 for the additive gate.
#ifdef UNETX_FORMAT
#define UNETX_HAS_FORMAT(format) (UNETX_FORMAT == format)
#else
#define UNETX_HAS_FORMAT(format) 1
#endif
#ifdef UNETX_WINDOW
#define UNETX_HAS_WINDOW(window) (UNETX_WINDOW == window)
#else
#define UNETX_HAS_WINDOW(window) 1
#endif

// Defects for the test of the tests; 0 outside of it. 1: no barrier before the tile is read, 2: none before it is
// overwritten, 3: no bounds guard on the columns of the tile, 4: copies to shared memory are not waited for.
#ifndef UNETX_PLANTED_DEFECT
#define UNETX_PLANTED_DEFECT 0
#endif

constexpr int TILE_WIDTH = UNETX_TILE_WIDTH;
constexpr int TILE_HEIGHT = UNETX_TILE_HEIGHT;
constexpr int THREADS = TILE_WIDTH * TILE_HEIGHT;
// Blocks that a multiprocessor shall have room for: 65536 registers are 128 for each of 512 threads.
constexpr int BLOCKS = THREADS < 512 ? 512 / THREADS : 1;
constexpr int CHUNK = 8;          // channels that the tile in shared memory holds at once
constexpr int PAIRS = CHUNK / 2;  // they lie there in pairs, so that one read feeds two channels
constexpr float LOG2_E = 1.4426950408889634f;

static_assert(TILE_WIDTH % 8 == 0, "a row of threads covers whole 16-byte vectors");

template <typename T> struct PairOf;
template <> struct PairOf<float> { using type = float2; };
template <> struct PairOf<half> { using type = half2; };
template <typename T> using Pair = typename PairOf<T>::type;

// 16 bytes, read or written at once.
template <typename T> struct alignas(16) Vector {
  static constexpr int SIZE = 16 / sizeof(T);
  T lane[SIZE];
};

struct Shape {
  int channels, height, width;
};

// One lattice of one image, and where the block's tile begins in it, in lattice coordinates.
struct Tile {
  long long image;
  int phase_y, phase_x, top, left, dilation;
  __device__ int row(int y) const { return phase_y + (top + y) * dilation; }
  __device__ int column(int x) const { return phase_x + (left + x) * dilation; }
};

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(half value) { return __half2float(value); }
__device__ inline float2 to_float2(float2 value) { return value; }
__device__ inline float2 to_float2(half2 value) { return __half22float2(value); }
__device__ inline float2 make_pair(float first, float second) { return make_float2(first, second); }
__device__ inline half2 make_pair(half first, half second) { return __halves2half2(first, second); }
template <typename T> __device__ inline T from_float(float value);
template <> __device__ inline float from_float<float>(float value) { return value; }
template <> __device__ inline half from_float<half>(float value) { return __float2half_rn(value); }

__device__ inline int ceil_div(int value, int divisor) { return (value + divisor - 1) / divisor; }

template <bool CHANNELS_LAST>
__device__ inline long long offset_of(Shape shape, long long image, int channel, int y, int x) {
  if (CHANNELS_LAST) return ((image * shape.height + y) * shape.width + x) * shape.channels + channel;
  return ((image * shape.channels + channel) * shape.height + y) * shape.width + x;
}

template <typename T> __device__ inline bool is_aligned(const T* pointer) {
  return reinterpret_cast<size_t>(pointer) % 16 == 0;
}

// CHUNK channels of one pixel; channels past the last are 0.
template <typename T, bool CHANNELS_LAST>
__device__ inline void load_pixel(T (&pixel)[CHUNK],
                                  const T* __restrict__ source,  // (N, C, H, W) or (N, H, W, C)
                                  Shape shape, long long image, int first, int y, int x) {
  const long long start = offset_of<CHANNELS_LAST>(shape, image, first, y, x);
  if (CHANNELS_LAST && shape.channels % CHUNK == 0 && is_aligned(source)) {
    for (int part = 0; part < CHUNK; part += Vector<T>::SIZE) {
      const Vector<T> loaded = *reinterpret_cast<const Vector<T>*>(source + start + part);
      for (int lane = 0; lane < Vector<T>::SIZE; ++lane) pixel[part + lane] = loaded.lane[lane];
    }
    return;
  }
  const long long stride = CHANNELS_LAST ? 1 : static_cast<long long>(shape.height) * shape.width;
#pragma unroll
  for (int channel = 0; channel < CHUNK; ++channel)
    pixel[channel] = first + channel < shape.channels ? source[start + channel * stride] : from_float<T>(0.0f);
}

// out = sums (+ residual) for CHUNK channels of one pixel.
template <typename T, bool CHANNELS_LAST>
__device__ inline void store_pixel(T* __restrict__ out,             // (N, C, H, W) or (N, H, W, C)
                                   const T* __restrict__ residual,  // as out, or null
                                   const float (&sums)[CHUNK], Shape shape, long long image, int first, int y, int x) {
  T result[CHUNK];
  if (residual != nullptr) load_pixel<T, CHANNELS_LAST>(result, residual, shape, image, first, y, x);
#pragma unroll
  for (int channel = 0; channel < CHUNK; ++channel)
    result[channel] = from_float<T>(sums[channel] + (residual != nullptr ? to_float(result[channel]) : 0.0f));
  const long long start = offset_of<CHANNELS_LAST>(shape, image, first, y, x);
  if (CHANNELS_LAST && shape.channels % CHUNK == 0 && is_aligned(out)) {
    for (int part = 0; part < CHUNK; part += Vector<T>::SIZE) {
      Vector<T> stored;
      for (int lane = 0; lane < Vector<T>::SIZE; ++lane) stored.lane[lane] = result[part + lane];
      *reinterpret_cast<Vector<T>*>(out + start + part) = stored;
    }
    return;
  }
  const long long stride = CHANNELS_LAST ? 1 : static_cast<long long>(shape.height) * shape.width;
#pragma unroll
  for (int channel = 0; channel < CHUNK; ++channel)
    if (first + channel < shape.channels) out[start + channel * stride] = result[channel];
}

// The block's tile of CHUNK channels with its halo, 0 outside the image.
template <typename T, bool CHANNELS_LAST, int K, int ROWS> struct SharedTile {
  static constexpr int RADIUS = K / 2;
  static constexpr int HEIGHT = TILE_HEIGHT * ROWS + 2 * RADIUS;
  static constexpr int WIDTH = TILE_WIDTH + 2 * RADIUS;
  Pair<T> pairs[PAIRS][HEIGHT][WIDTH];

  __device__ void fill(const T* __restrict__ source,  // (N, C, H, W) or (N, H, W, C)
                       Shape shape, Tile tile, int first, int thread) {
    if (!CHANNELS_LAST && tile.dilation == 1 && shape.width % Vector<T>::SIZE == 0 && is_aligned(source)) {
      fill_by_vectors(source, shape, tile, first, thread);
      return;
    }
    for (int index = thread; index < HEIGHT * WIDTH; index += THREADS) {
      const int y = index / WIDTH, x = index % WIDTH;
      const int row = tile.row(y - RADIUS), column = tile.column(x - RADIUS);
      const bool columns = UNETX_PLANTED_DEFECT == 3 || (column >= 0 && column < shape.width);
      T pixel[CHUNK];
#pragma unroll
      for (int channel = 0; channel < CHUNK; ++channel) pixel[channel] = from_float<T>(0.0f);
      if (row >= 0 && row < shape.height && columns)
        load_pixel<T, CHANNELS_LAST>(pixel, source, shape, tile.image, first, row, column);
#pragma unroll
      for (int pair = 0; pair < PAIRS; ++pair) pairs[pair][y][x] = make_pair(pixel[2 * pair], pixel[2 * pair + 1]);
    }
  }

  // Rows begin and end on 16 bytes here, so a vector lies inside the image or outside, never across its border.
  __device__ void fill_by_vectors(const T* __restrict__ source,  // (N, C, H, W)
                                  Shape shape, Tile tile, int first, int thread) {
    constexpr int SIZE = Vector<T>::SIZE;
    constexpr int PER_ROW = TILE_WIDTH / SIZE + 2;  // one more on each side holds the halo: RADIUS < SIZE
    static_assert(RADIUS < SIZE, "the halo is within one vector");
    for (int index = thread; index < PAIRS * HEIGHT * PER_ROW; index += THREADS) {
      const int pair = index / (HEIGHT * PER_ROW), y = index / PER_ROW % HEIGHT;
      const int ahead = (index % PER_ROW - 1) * SIZE;
      const int row = tile.row(y - RADIUS), column = tile.left + ahead;
      Vector<T> loaded[2];
#pragma unroll
      for (int half_of_pair = 0; half_of_pair < 2; ++half_of_pair) {
        const int channel = first + 2 * pair + half_of_pair;
        const bool inside = channel < shape.channels && row >= 0 && row < shape.height && column >= 0 &&
                            column < shape.width;
        if (inside)
          loaded[half_of_pair] = *reinterpret_cast<const Vector<T>*>(
              source + offset_of<false>(shape, tile.image, channel, row, column));
        else
          for (int lane = 0; lane < SIZE; ++lane) loaded[half_of_pair].lane[lane] = from_float<T>(0.0f);
      }
#pragma unroll
      for (int lane = 0; lane < SIZE; ++lane) {
        const int x = ahead + lane + RADIUS;
        if (x >= 0 && x < WIDTH) pairs[pair][y][x] = make_pair(loaded[0].lane[lane], loaded[1].lane[lane]);
      }
    }
  }
};
constexpr float NEVER = -3.0e38f;  // a score whose weight is 0: below every score that is not itself infinite

// Grid: ceil(H / dilation / (TILE_HEIGHT * ROWS)) * ceil(W / dilation / TILE_WIDTH) * dilation^2 * N blocks of
// TILE_WIDTH x TILE_HEIGHT threads; a thread owns ROWS pixels below one another, and of each the K * K taps of its window.
template <typename T, bool CHANNELS_LAST, int K, int ROWS> struct Window {
  static constexpr int TAPS = K * K;
  using Shared = SharedTile<T, CHANNELS_LAST, K, ROWS>;
  Tile tile;
  int height, width, thread, x, y;

  __device__ Window(int height, int width, int dilation) : height(height), width(width) {
    const int tiles_y = ceil_div(ceil_div(height, dilation), TILE_HEIGHT * ROWS);
    const int tiles_x = ceil_div(ceil_div(width, dilation), TILE_WIDTH);
    long long rest = blockIdx.x;
    tile.dilation = dilation;
    tile.left = static_cast<int>(rest % tiles_x) * TILE_WIDTH;
    rest /= tiles_x;
    tile.top = static_cast<int>(rest % tiles_y) * TILE_HEIGHT * ROWS;
    rest /= tiles_y;
    tile.phase_x = static_cast<int>(rest % dilation);
    rest /= dilation;
    tile.phase_y = static_cast<int>(rest % dilation);
    tile.image = rest / dilation;
    thread = threadIdx.y * TILE_WIDTH + threadIdx.x;
    x = threadIdx.x;
    y = threadIdx.y * ROWS;
  }

  __device__ int row(int line) const { return tile.row(y + line); }
  __device__ int column() const { return tile.column(x); }
  __device__ bool inside(int line) const { return column() < width && row(line) < height; }
  __device__ int row_of(int line, int tap) const { return tile.row(y + line + tap / K - K / 2); }
  __device__ int column_of(int tap) const { return tile.column(x + tap % K - K / 2); }
  // A neighbour outside the image takes no part.
  __device__ bool takes_part(int line, int tap) const {
    const int beside = column_of(tap), above = row_of(line, tap);
    return above >= 0 && above < height && beside >= 0 && beside < width;
  }
  // Of a map with one number a pixel, (N, H, W).
  __device__ long long place(int line) const { return (tile.image * height + row(line)) * width + column(); }
  __device__ long long place_of(int line, int tap) const {
    return (tile.image * height + row_of(line, tap)) * width + column_of(tap);
  }

  // products[.][tap] = <own_i, near_j> for j at every tap.
  __device__ void correlate(float (&products)[ROWS][TAPS], Shared& shared,
                            const T* __restrict__ own,   // (N, C, H, W) or (N, H, W, C)
                            const T* __restrict__ near,  // as own
                            int channels) const {
    const Shape shape{channels, height, width};
#pragma unroll
    for (int line = 0; line < ROWS; ++line)
#pragma unroll
      for (int tap = 0; tap < TAPS; ++tap) products[line][tap] = 0.0f;
    for (int first = 0; first < channels; first += CHUNK) {
      shared.fill(near, shape, tile, first, thread);
      if (UNETX_PLANTED_DEFECT != 1) __syncthreads();
      float query[ROWS][CHUNK];
#pragma unroll
      for (int line = 0; line < ROWS; ++line) {
        T pixel[CHUNK];
        if (inside(line)) load_pixel<T, CHANNELS_LAST>(pixel, own, shape, tile.image, first, row(line), column());
#pragma unroll
        for (int channel = 0; channel < CHUNK; ++channel)
          query[line][channel] = inside(line) ? to_float(pixel[channel]) : 0.0f;
      }
#pragma unroll
      for (int pair = 0; pair < PAIRS; ++pair)
#pragma unroll
        for (int dy = 0; dy < K + ROWS - 1; ++dy)
#pragma unroll
          for (int dx = 0; dx < K; ++dx) {
            const float2 key = to_float2(shared.pairs[pair][y + dy][x + dx]);
#pragma unroll
            for (int line = 0; line < ROWS; ++line)
              if (dy >= line && dy - line < K)
                products[line][(dy - line) * K + dx] +=
                    query[line][2 * pair] * key.x + query[line][2 * pair + 1] * key.y;
          }
      if (UNETX_PLANTED_DEFECT != 2) __syncthreads();
    }
  }

  // out_i = sum_j weights[.][tap] * near_j (+ residual_i).
  __device__ void gather(const float (&weights)[ROWS][TAPS], Shared& shared,
                         const T* __restrict__ near,      // (N, C, H, W) or (N, H, W, C)
                         const T* __restrict__ residual,  // as near, or null
                         T* __restrict__ out,             // as near
                         int channels) const {
    const Shape shape{channels, height, width};
    for (int first = 0; first < channels; first += CHUNK) {
      shared.fill(near, shape, tile, first, thread);
      __syncthreads();
      float sums[ROWS][CHUNK];
#pragma unroll
      for (int pair = 0; pair < PAIRS; ++pair) {
#pragma unroll
        for (int line = 0; line < ROWS; ++line) sums[line][2 * pair] = sums[line][2 * pair + 1] = 0.0f;
#pragma unroll
        for (int dy = 0; dy < K + ROWS - 1; ++dy)
#pragma unroll
          for (int dx = 0; dx < K; ++dx) {
            const float2 value = to_float2(shared.pairs[pair][y + dy][x + dx]);
#pragma unroll
            for (int line = 0; line < ROWS; ++line)
              if (dy >= line && dy - line < K) {
                sums[line][2 * pair] += weights[line][(dy - line) * K + dx] * value.x;
                sums[line][2 * pair + 1] += weights[line][(dy - line) * K + dx] * value.y;
              }
          }
      }
#pragma unroll
      for (int line = 0; line < ROWS; ++line)
        if (inside(line))
          store_pixel<T, CHANNELS_LAST>(out, residual, sums[line], shape, tile.image, first, row(line), column());
      __syncthreads();
    }
  }

  // Scores to weights in place, softmax over the taps; returns the base-2 logarithm of the sum of exponentials.
  __device__ float softmax(float (&weights)[TAPS], int line, float scale) const {
    float largest = NEVER;
#pragma unroll
    for (int tap = 0; tap < TAPS; ++tap) {
      weights[tap] = takes_part(line, tap) ? weights[tap] * (scale * LOG2_E) : NEVER;
      largest = fmaxf(largest, weights[tap]);
    }
    float sum = 0.0f;
#pragma unroll
    for (int tap = 0; tap < TAPS; ++tap) {
      // A thread outside the image may have no neighbour at all; its result is not stored.
      weights[tap] = inside(line) ? exp2f(weights[tap] - largest) : 0.0f;
      sum += weights[tap];
    }
    const float share = inside(line) ? 1.0f / sum : 0.0f;
#pragma unroll
    for (int tap = 0; tap < TAPS; ++tap) weights[tap] *= share;
    return largest + log2f(sum);
  }
};
