// The neighbourhood gate in fp16 on the tensor cores: its scores and its sums as small matrix products, sums in float.
//
// A warp owns a patch of 2 x 16 pixels, in two halves of 2 x 8. For one row of keys a half looks at 16 columns, from 4
// before its first: products with keys outside of the K x K window are computed and thrown away, which costs less than
// picking the window's out. The weights never leave the registers: what the first product leaves in a lane is what the
// second one takes from it.
//
// Shared memory holds 16 channels of the tile with its halo, in two or more buffers: phi's channels, then those of values, each
// filled while earlier ones are worked on. It lies there as in global memory, (channel, row, column) or (row, column,
// channel), and the matrices are transposed on their way into registers where needed.
//
// A value of `values` that is infinite or NaN reaches pixels up to 11 columns away, not K / 2: its weight there is 0, and
// 0 times infinity is NaN.
#pragma once

#include "warp.cuh"

#ifndef UNETX_STAGES
#define UNETX_STAGES 2  // buffers in shared memory, where they fit into the 48 KiB that a kernel has without asking
#endif

constexpr int DEPTH = 16;         // channels of one buffer: what one product of the tensor cores takes
constexpr int MARGIN = 4;         // columns before the tile: at least K / 2, and 8 bytes keep the alignment
constexpr int PATCH_WIDTH = 16;   // pixels of a warp
constexpr int PATCH_HEIGHT = 2;

static_assert(TILE_WIDTH % PATCH_WIDTH == 0 && TILE_HEIGHT % PATCH_HEIGHT == 0, "a tile is whole patches");
static_assert(PATCH_WIDTH * PATCH_HEIGHT == WARP, "a thread for each pixel");

// Where an element lies in its image. The launcher refuses images of 2^31 elements and more.
template <bool CHANNELS_LAST> __device__ inline int place_of(Shape shape, int channel, int y, int x) {
  return CHANNELS_LAST ? (y * shape.width + x) * shape.channels + channel : (channel * shape.height + y) * shape.width + x;
}

// The image of one of its tensors that a block works on.
template <typename T> __device__ inline T* image_of(T* tensor, Shape shape, long long image) {
  return tensor == nullptr ? nullptr : tensor + image * shape.channels * shape.height * shape.width;
}

// DEPTH channels of the tile with its halo, 0 outside of the image and past the last channel.
template <bool CHANNELS_LAST, int K> struct MatrixTile {
  static constexpr int HEIGHT = TILE_HEIGHT + K - 1;
  static constexpr int WIDTH = TILE_WIDTH + 2 * MARGIN;
  // An odd number of 16 bytes from channel to channel: eight rows of a matrix then lie in different banks.
  static constexpr int PLANE = HEIGHT * WIDTH + 8;
  static_assert(PLANE % 16 == 8, "rows of a matrix would share banks");
  alignas(16) half elements[CHANNELS_LAST ? HEIGHT * WIDTH * DEPTH : PLANE * DEPTH];

  __device__ half* at(int channel, int y, int x) {
    if (!CHANNELS_LAST) return elements + channel * PLANE + y * WIDTH + x;
    // Both 8-channel halves of a pixel swap places every four pixels, for the banks again.
    const int octet = channel / 8 ^ (x / 4 & 1);
    return elements + (y * WIDTH + x) * DEPTH + octet * 8 + channel % 8;
  }

  __device__ void fill(const half* __restrict__ source,  // (C, H, W) or (H, W, C)
                       Shape shape, Tile tile, int first, int thread) {
    constexpr int RUN = CHANNELS_LAST ? 8 : 4;  // elements copied at once
    const int length = CHANNELS_LAST ? shape.channels : shape.width;
    if (length % RUN == 0 && reinterpret_cast<size_t>(source) % (RUN * sizeof(half)) == 0 &&
        (CHANNELS_LAST || tile.dilation == 1)) {
      fill_by_runs(source, shape, tile, first, thread);
      return;
    }
#pragma unroll 1
    for (int index = thread; index < DEPTH * HEIGHT * WIDTH; index += THREADS) {
      const int channel = CHANNELS_LAST ? index % DEPTH : index / (HEIGHT * WIDTH);
      const int pixel = CHANNELS_LAST ? index / DEPTH : index % (HEIGHT * WIDTH);
      const int y = pixel / WIDTH, x = pixel % WIDTH;
      const int row = tile.row(y - K / 2), column = tile.column(x - MARGIN);
      const bool columns = UNETX_PLANTED_DEFECT == 3 || (column >= 0 && column < shape.width);
      const bool inside = first + channel < shape.channels && row >= 0 && row < shape.height && columns;
      *at(channel, y, x) = inside ? source[place_of<CHANNELS_LAST>(shape, first + channel, row, column)]
                                  : from_float<half>(0.0f);
    }
  }

  // A run of columns, or of channels, lies inside the image or outside, never across its border.
  __device__ void fill_by_runs(const half* __restrict__ source, Shape shape, Tile tile, int first, int thread) {
    constexpr int RUN = CHANNELS_LAST ? 8 : 4, BYTES = RUN * sizeof(half);
    if (CHANNELS_LAST) {
      const int channel = thread % 2 * RUN;
#pragma unroll 1
      for (int pixel = thread / 2; pixel < HEIGHT * WIDTH; pixel += THREADS / 2) {
        const int y = pixel / WIDTH, x = pixel % WIDTH, row = tile.row(y - K / 2), column = tile.column(x - MARGIN);
        const bool inside = first + channel < shape.channels && row >= 0 && row < shape.height && column >= 0 &&
                            column < shape.width;
        const half* const from = source + place_of<true>(shape, first + channel, row, column);
        copy_later<BYTES>(at(channel, y, x), inside ? from : source, inside);
      }
      return;
    }
    // A thread keeps its place in the tile and goes through the channels.
    constexpr int PLACES = HEIGHT * (WIDTH / RUN), ABREAST = THREADS / PLACES;
    static_assert(ABREAST > 0, "a thread for each place");
    const int y = thread % PLACES / (WIDTH / RUN), x = thread % (WIDTH / RUN) * RUN;
    static_assert(PLACES % (WIDTH / RUN) == 0, "places end with a row");
    const int row = tile.row(y - K / 2), column = tile.column(x - MARGIN);
    const bool inside = row >= 0 && row < shape.height && column >= 0 && column < shape.width;
    const int plane = shape.height * shape.width;
    const int begin = thread / PLACES, end = begin < ABREAST ? DEPTH : 0;
    const half* from = source + (inside ? place_of<false>(shape, first + begin, row, column) : 0);
    half* to = at(begin, y, x);
#pragma unroll 1
    for (int channel = begin; channel < end; channel += ABREAST) {
      const bool exists = inside && first + channel < shape.channels;
      copy_later<BYTES>(to, exists ? from : source, exists);
      from += ABREAST * plane;
      to += ABREAST * PLANE;
    }
  }

  // Where this lane's row of the matrices of row y of keys begins, for the patch that begins at column x; the step from
  // pixel to pixel is PIXEL.
  static constexpr int PIXEL = CHANNELS_LAST ? DEPTH : 1;
  __device__ const half* rows_of_lane(int y, int x, int lane) {
    const int octet = lane / 8 % 2 * 8, within = lane % 8;
    return CHANNELS_LAST ? at(octet, y, x + within) : at(octet + within, y, x);
  }

  // Two blocks of 8 keys from the one at `start`, the first and the last 8 channels of each: as matrices (channel, key), or
  // (key, channel) where SWAPPED, whatever the layout.
  template <bool SWAPPED> __device__ static void load_keys(HalfPair (&blocks)[4], const half* start, int lane) {
    load_matrices<SWAPPED != CHANNELS_LAST>(blocks, start + lane / 16 * 8 * PIXEL);
  }
};

// One warp's part of the gate. `part` is one of the two halves of its patch, `line` one of its two rows of pixels.
template <bool CHANNELS_LAST, int K> struct MatrixGate {
  using Buffer = MatrixTile<CHANNELS_LAST, K>;
  static constexpr int KEY_ROWS = K + 1;
  Tile tile;
  int height, width, lane, x, y;        // of the patch within the tile
  int origin;                           // its first pixel in a plane of the image
  HalfPair weights[2][2][K][2];         // of part, line, row of keys, block: two keys each, exp2(score - largest)
  float share[2][2];                    // of part, line: 1 / sum of the weights; for the pixel of column lane / 4

  __device__ MatrixGate(Tile tile, int height, int width, int thread) : tile(tile), height(height), width(width) {
    const int warp = thread / WARP;
    lane = thread % WARP;
    x = warp % (TILE_WIDTH / PATCH_WIDTH) * PATCH_WIDTH;
    y = warp / (TILE_WIDTH / PATCH_WIDTH) * PATCH_HEIGHT;
    origin = tile.row(y) * width + tile.column(x);
  }

  __device__ bool holds(int line, int column) const {
    return tile.row(y + line) < height && tile.column(x + column) < width;
  }

  // Where a channel of a pixel of the patch lies in its image.
  __device__ int place_in_image(Shape shape, int channel, int line, int column) const {
    const int pixel = origin + (line * width + column) * tile.dilation;
    return CHANNELS_LAST ? pixel * shape.channels + channel : channel * (shape.height * shape.width) + pixel;
  }

  // theta of this lane for one part: both lines, channels from 2 (lane % 4) and from 8 after it.
  __device__ void load_queries(HalfPair (&queries)[4], const half* __restrict__ theta,  // (D, H, W) or (H, W, D)
                               Shape shape, int part, int first) const {
    const half zero = from_float<half>(0.0f);
    const int step = CHANNELS_LAST ? 1 : shape.height * shape.width;
#pragma unroll
    for (int line = 0; line < 2; ++line) {
      const int column = 8 * part + lane / 4, channel = first + 2 * (lane % 4);
      const half* const from = theta + place_in_image(shape, channel, line, column);
#pragma unroll
      for (int octet = 0; octet < 2; ++octet) {
        const int left = holds(line, column) ? shape.channels - channel - 8 * octet : 0;
        queries[line + 2 * octet] = pack_halves(left > 0 ? from[8 * octet * step] : zero,
                                                left > 1 ? from[(8 * octet + 1) * step] : zero);
      }
    }
  }

  // scores += theta . phi over the channels of one buffer, for one part.
  __device__ void correlate(float (&scores)[KEY_ROWS][2][4], const HalfPair (&queries)[4], Buffer& keys, int part) const {
    const half* const start = keys.rows_of_lane(y, x + 8 * part, lane);
#pragma unroll
    for (int row = 0; row < KEY_ROWS; ++row) {
      HalfPair near[4];
      Buffer::template load_keys<true>(near, start + row * Buffer::WIDTH * Buffer::PIXEL, lane);
#pragma unroll
      for (int block = 0; block < 2; ++block)
        multiply_add(scores[row][block], queries[0], queries[1], queries[2], queries[3], near[2 * block],
                     near[2 * block + 1]);
    }
  }

  // Scores to weights: a neighbour outside of the window or of the image takes no part.
  __device__ void softmax(const float (&scores)[KEY_ROWS][2][4], int part, float scale) {
    {
      bool counts[2][2];
#pragma unroll
      for (int block = 0; block < 2; ++block)
#pragma unroll
        for (int one = 0; one < 2; ++one) {
          const int key = 8 * block + 2 * (lane % 4) + one - MARGIN, beside = key - lane / 4;
          const int column = tile.column(x + 8 * part + key);
          counts[block][one] = beside >= -(K / 2) && beside <= K / 2 && column >= 0 && column < width;
        }
#pragma unroll
      for (int line = 0; line < 2; ++line) {
        float own[K][2][2], largest = NEVER, sum = 0.0f;
#pragma unroll
        for (int key = 0; key < K; ++key) {
          const int row = tile.row(y + line + key - K / 2);
          const bool rows = row >= 0 && row < height;
#pragma unroll
          for (int block = 0; block < 2; ++block)
#pragma unroll
            for (int one = 0; one < 2; ++one) {
              const float score = scores[line + key][block][2 * line + one] * (scale * LOG2_E);
              own[key][block][one] = rows && counts[block][one] ? score : NEVER;
              largest = fmaxf(largest, own[key][block][one]);
            }
        }
        largest = fmaxf(largest, from_lane_across(largest, 1));
        largest = fmaxf(largest, from_lane_across(largest, 2));
#pragma unroll
        for (int key = 0; key < K; ++key)
#pragma unroll
          for (int block = 0; block < 2; ++block) {
            const HalfPair pair = pack_halves(exp2f(own[key][block][0] - largest), exp2f(own[key][block][1] - largest));
            weights[part][line][key][block] = pair;
            // Of the rounded weights, so that they sum to 1 exactly.
            const float2 rounded = unpack_halves(pair);
            sum += rounded.x + rounded.y;
          }
        sum += from_lane_across(sum, 1);
        sum += from_lane_across(sum, 2);
        share[part][line] = 1.0f / sum;
      }
    }
  }

  // out = weights . values (+ residual) for the channels of one buffer.
  __device__ void gather(Buffer& values, const half* __restrict__ residual,  // (C, H, W) or (H, W, C), or null
                         half* __restrict__ out, Shape shape, int first) const {
    // NHWC: of part, octet of channels, (pixel, channel). NCHW: of part, line, (channel, pixel).
    float sums[2][2][4] = {};
    const half* const start = values.rows_of_lane(y, x, lane);
#pragma unroll
    for (int row = 0; row < KEY_ROWS; ++row)
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        HalfPair near[4];
        Buffer::template load_keys<false>(near, start + (row * Buffer::WIDTH + 8 * part) * Buffer::PIXEL, lane);
#pragma unroll
        for (int other = 0; other < 2; ++other) {
          if (CHANNELS_LAST) {
            // Row 0 of the patch does not see the last row of keys, row 1 not the first.
            const bool upper = row < K, lower = row > 0;
            const HalfPair(&above)[2] = weights[part][0][upper ? row : 0];
            const HalfPair(&below)[2] = weights[part][1][lower ? row - 1 : 0];
            multiply_add(sums[part][other], upper ? above[0] : 0, lower ? below[0] : 0, upper ? above[1] : 0,
                         lower ? below[1] : 0, near[other], near[2 + other]);
          } else if (row >= other && row - other < K) {
            const HalfPair(&own)[2] = weights[part][other][row - other];
            multiply_add(sums[part][other], near[0], near[1], near[2], near[3], own[0], own[1]);
          }
        }
      }
    if (CHANNELS_LAST)
      store_pixels(sums, residual, out, shape, first);
    else
      store_channels(sums, residual, out, shape, first);
  }

  // A lane has columns 2 t and 2 t + 1 of both parts (t = lane % 4): an even one trades its pair of the second for its
  // neighbour's of the first, so that each has four in a row, and four lanes fill 32 bytes.
  __device__ void trade(float (&four)[4], float first0, float first1, float second0, float second1) const {
    const bool odd = lane % 2;
    const float got0 = from_lane_across(odd ? first0 : second0, 1), got1 = from_lane_across(odd ? first1 : second1, 1);
    four[0] = odd ? got0 : first0;
    four[1] = odd ? got1 : first1;
    four[2] = odd ? second0 : got0;
    four[3] = odd ? second1 : got1;
  }
  __device__ int first_of_four() const { return lane % 2 * 8 + lane % 4 / 2 * 4; }

  __device__ void store_channels(const float (&sums)[2][2][4], const half* __restrict__ residual,
                                 half* __restrict__ out, Shape shape, int first) const {
#pragma unroll
    for (int line = 0; line < 2; ++line) {
      float scaled[2][4];
#pragma unroll
      for (int part = 0; part < 2; ++part)
#pragma unroll
        for (int one = 0; one < 2; ++one) {
          const float own = from_lane(share[part][line], (2 * (lane % 4) + one) * 4);
          scaled[part][one] = sums[part][line][one] * own;
          scaled[part][2 + one] = sums[part][line][2 + one] * own;
        }
#pragma unroll
      for (int octet = 0; octet < 2; ++octet) {
        float four[4];
        trade(four, scaled[0][2 * octet], scaled[0][2 * octet + 1], scaled[1][2 * octet], scaled[1][2 * octet + 1]);
        const int channel = first + 8 * octet + lane / 4;
        if (channel < shape.channels && holds(line, first_of_four()))
          store_four(four, residual, out, shape, channel, line, first_of_four());
      }
    }
  }

  __device__ void store_pixels(const float (&sums)[2][2][4], const half* __restrict__ residual,
                               half* __restrict__ out, Shape shape, int first) const {
#pragma unroll
    for (int part = 0; part < 2; ++part)
#pragma unroll
      for (int line = 0; line < 2; ++line) {
        const float own = share[part][line];
        float four[4];
        trade(four, sums[part][0][2 * line] * own, sums[part][0][2 * line + 1] * own, sums[part][1][2 * line] * own,
              sums[part][1][2 * line + 1] * own);
        const int channel = first + first_of_four(), column = 8 * part + lane / 4;
        if (channel < shape.channels && holds(line, column))
          store_four(four, residual, out, shape, channel, line, column);
      }
  }

  // Four columns of one channel, or four channels of one pixel.
  __device__ void store_four(const float (&four)[4], const half* __restrict__ residual, half* __restrict__ out,
                             Shape shape, int channel, int line, int column) const {
    const int start = place_in_image(shape, channel, line, column);
    const bool whole = (CHANNELS_LAST ? shape.channels : tile.dilation == 1 ? shape.width : 1) % 4 == 0 &&
                       (reinterpret_cast<size_t>(out) | reinterpret_cast<size_t>(residual)) % 8 == 0;
    if (whole) {
      HalfPair pairs[2];
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        const float2 more = residual ? unpack_halves(reinterpret_cast<const HalfPair*>(residual + start)[pair])
                                     : make_float2(0.0f, 0.0f);
        pairs[pair] = pack_halves(four[2 * pair] + more.x, four[2 * pair + 1] + more.y);
      }
      *reinterpret_cast<uint2*>(out + start) = make_uint2(pairs[0], pairs[1]);
      return;
    }
#pragma unroll
    for (int one = 0; one < 4; ++one) {
      if (CHANNELS_LAST ? channel + one >= shape.channels : !holds(line, column + one)) continue;
      const int place = start + (CHANNELS_LAST ? one : one * tile.dilation);
      out[place] = from_float<half>(four[one] + (residual ? to_float(residual[place]) : 0.0f));
    }
  }
};

template <bool CHANNELS_LAST, int K>
__device__ void neighbourhood_gate_by_matrices(const half* __restrict__ theta,     // (N, D, H, W) or (N, H, W, D)
                                               const half* __restrict__ phi,       // as theta
                                               const half* __restrict__ values,    // (N, C, H, W) or (N, H, W, C)
                                               const half* __restrict__ residual,  // as values, or null
                                               half* __restrict__ out,             // as values
                                               int images, int hidden, Shape shape, int dilation, float scale) {
  using Gate = MatrixGate<CHANNELS_LAST, K>;
  constexpr int STAGES = UNETX_STAGES * sizeof(typename Gate::Buffer) <= 48 * 1024 ? UNETX_STAGES : 2;
  __shared__ typename Gate::Buffer buffers[STAGES];
  const Window<half, CHANNELS_LAST, K, 1> block(shape.height, shape.width, dilation);
  if (block.tile.image >= images) return;  // the whole block, so no barrier is left waiting
  Gate gate(block.tile, shape.height, shape.width, block.thread);
  const Shape keys{hidden, shape.height, shape.width};
  theta = image_of(theta, keys, block.tile.image);
  phi = image_of(phi, keys, block.tile.image);
  values = image_of(values, shape, block.tile.image);
  residual = image_of(residual, shape, block.tile.image);
  out = image_of(out, shape, block.tile.image);
  // Both parts of a patch look at the same keys, one after the other for the sake of registers: where phi fills several
  // buffers, they come twice.
  const int of_keys = ceil_div(hidden, DEPTH), before_values = of_keys == 1 ? 1 : 2 * of_keys;
  const int steps = before_values + ceil_div(shape.channels, DEPTH);
  // A patch beside the image has nothing to compute, but fills buffers and meets barriers.
  const bool works = gate.holds(0, 0);

  const auto fill = [&](int step) {
    const bool of_phi = step < before_values;
    const int chunk = of_phi ? step % of_keys : step - before_values;
    const Shape filled{of_phi ? hidden : shape.channels, shape.height, shape.width};
    if (step < steps)
      buffers[step % STAGES].fill(of_phi ? phi : values, filled, block.tile, chunk * DEPTH, block.thread);
    end_copies();  // an empty group too, so that their number is the number of steps
  };
  // One barrier for each step: before it, all have left the buffer that is filled after it.
  const auto arrive = [&](int step) {
    wait_for_copies<STAGES - 2>();
    if (UNETX_PLANTED_DEFECT != 1 && UNETX_PLANTED_DEFECT != 2) __syncthreads();
    fill(step + STAGES - 1);
  };

  for (int step = 0; step < STAGES - 1; ++step) fill(step);
  int step = 0;
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    float scores[K + 1][2][4] = {};
#pragma unroll 1
    for (int chunk = 0; chunk < of_keys; ++chunk) {
      HalfPair queries[4];
      gate.load_queries(queries, theta, keys, part, chunk * DEPTH);
      if (step < before_values) arrive(step++);
      if (works) gate.correlate(scores, queries, buffers[(step - 1) % STAGES], part);
    }
    if (works) gate.softmax(scores, part, scale);
  }
#pragma unroll 1
  for (; step < steps; ++step) {
    arrive(step);
    if (works) gate.gather(buffers[step % STAGES], residual, out, shape, (step - before_values) * DEPTH);
  }
}
