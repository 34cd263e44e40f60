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

// The image of one of its tensors that a block works on. Within it 32 bits are enough: the launcher refuses larger ones.
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

// What a thread copies of every buffer: worked out once, since a tile keeps its place from buffer to buffer.
template <bool CHANNELS_LAST, int K> struct Filler {
  using Buffer = MatrixTile<CHANNELS_LAST, K>;
  static constexpr int RUN = CHANNELS_LAST ? 8 : 4;  // elements copied at once: channels, or columns
  static constexpr int BYTES = RUN * sizeof(half);
  static constexpr int PER_ROW = Buffer::WIDTH / RUN, PLACES = Buffer::HEIGHT * PER_ROW;
  static constexpr int ABREAST = CHANNELS_LAST ? THREADS / 2 : THREADS / PLACES;
  static_assert(ABREAST > 0, "a thread for each place");
  Tile tile;
  int height, width, thread;
  int pixel, place;  // NCHW: its run in a plane of the image, or -1 beside the image; its run in a plane of the buffer

  __device__ Filler(Tile tile, int height, int width, int thread)
      : tile(tile), height(height), width(width), thread(thread), pixel(-1), place(0) {
    if (CHANNELS_LAST) return;
    const int y = thread % PLACES / PER_ROW, x = thread % PLACES % PER_ROW * RUN;
    pixel = pixel_at(y, x);
    place = y * Buffer::WIDTH + x;
  }

  // The pixel of a plane of the image for row y and column x of the buffer, or -1 beside the image.
  __device__ int pixel_at(int y, int x) const {
    const int row = tile.row(y - K / 2), column = tile.column(x - MARGIN);
    const bool columns = column >= 0 && column < width;
    return row >= 0 && row < height && (columns || UNETX_PLANTED_DEFECT == 3) ? row * width + column : -1;
  }

  __device__ void fill(Buffer& buffer, const half* __restrict__ source,  // (C, H, W) or (H, W, C)
                       int channels, int first) const {
    // A run lies inside the image or outside, never across its border.
    const int length = CHANNELS_LAST ? channels : width;
    const bool runs = length % RUN == 0 && reinterpret_cast<size_t>(source) % BYTES == 0;
    if (!runs || (!CHANNELS_LAST && tile.dilation != 1))
      fill_by_elements(buffer, source, channels, first);
    else if (CHANNELS_LAST)
      fill_pixels(buffer, source, channels, first);
    else
      fill_planes(buffer, source, channels, first);
  }

  __device__ void fill_planes(Buffer& buffer, const half* __restrict__ source, int channels, int first) const {
    const int begin = thread / PLACES, plane = height * width;
    if (begin >= ABREAST) return;
    const int left = pixel >= 0 ? channels - first - begin : 0;
    const half* const from = source + (left > 0 ? (first + begin) * plane + pixel : 0);
    half* const to = buffer.elements + begin * Buffer::PLANE + place;
#pragma unroll
    for (int channel = 0; channel < DEPTH; channel += ABREAST)
      if (DEPTH % ABREAST == 0 || begin + channel < DEPTH)
        copy_later<BYTES>(to + channel * Buffer::PLANE, from + channel * plane, channel < left);
  }

  __device__ void fill_pixels(Buffer& buffer, const half* __restrict__ source, int channels, int first) const {
    const int channel = thread % 2 * RUN;
#pragma unroll
    for (int index = 0; index < Buffer::HEIGHT * Buffer::WIDTH; index += ABREAST) {
      const int y = (index + thread / 2) / Buffer::WIDTH, x = (index + thread / 2) % Buffer::WIDTH;
      if (y >= Buffer::HEIGHT) return;
      const int near = pixel_at(y, x);
      const bool inside = near >= 0 && first + channel < channels;
      copy_later<BYTES>(buffer.at(channel, y, x), source + (inside ? near * channels + first + channel : 0), inside);
    }
  }

  __device__ void fill_by_elements(Buffer& buffer, const half* __restrict__ source, int channels, int first) const {
#pragma unroll 1
    for (int index = thread; index < DEPTH * Buffer::HEIGHT * Buffer::WIDTH; index += THREADS) {
      const int channel = CHANNELS_LAST ? index % DEPTH : index / (Buffer::HEIGHT * Buffer::WIDTH);
      const int inner = CHANNELS_LAST ? index / DEPTH : index % (Buffer::HEIGHT * Buffer::WIDTH);
      const int y = inner / Buffer::WIDTH, x = inner % Buffer::WIDTH, near = pixel_at(y, x);
      const bool inside = near >= 0 && first + channel < channels;
      const int from = CHANNELS_LAST ? near * channels + first + channel : (first + channel) * (height * width) + near;
      *buffer.at(channel, y, x) = inside ? source[from] : from_float<half>(0.0f);
    }
  }
};

// One warp's part of the gate. `part` is one of the two halves of its patch, `line` one of its two rows of pixels.
template <bool CHANNELS_LAST, int K> struct MatrixGate {
  using Buffer = MatrixTile<CHANNELS_LAST, K>;
  static constexpr int KEY_ROWS = K + 1;
  Tile tile;
  int height, width, lane, x, y;        // of the patch within the tile
  int origin;                           // its first pixel in a plane of the image
  HalfPair weights[2][2][K][2];         // of part, line, row of keys, block: of two keys each, one after the other

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
  __device__ void softmax(float (&scores)[KEY_ROWS][2][4], int part, float scale) {
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
      float largest = NEVER, sum = 0.0f;
#pragma unroll
      for (int key = 0; key < K; ++key) {
        const int row = tile.row(y + line + key - K / 2);
        const bool rows = row >= 0 && row < height;
#pragma unroll
        for (int block = 0; block < 2; ++block)
#pragma unroll
          for (int one = 0; one < 2; ++one) {
            float& score = scores[line + key][block][2 * line + one];
            score = rows && counts[block][one] ? score : NEVER;
            largest = fmaxf(largest, score);
          }
      }
      largest = most_of_row(largest);
      // A pixel beside the image has no neighbour at all: its weights are finite and not stored.
      const float offset = largest * (scale * LOG2_E);
#pragma unroll
      for (int key = 0; key < K; ++key)
#pragma unroll
        for (int block = 0; block < 2; ++block)
#pragma unroll
          for (int one = 0; one < 2; ++one) {
            float& score = scores[line + key][block][2 * line + one];
            score = exp2_approximately(score * (scale * LOG2_E) - offset);
            sum += score;
          }
      sum = sum_of_row(sum);
      const float share = 1.0f / sum;
#pragma unroll
      for (int key = 0; key < K; ++key)
#pragma unroll
        for (int block = 0; block < 2; ++block) {
          const float(&pair)[4] = scores[line + key][block];
          weights[part][line][key][block] = pack_halves(pair[2 * line] * share, pair[2 * line + 1] * share);
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
    store(sums, residual, out, shape, first);
  }

  // A lane has columns (NCHW) or channels (NHWC) 2 t and 2 t + 1 of two octets, t = lane % 4: an even one trades its pair of
  // the second for its neighbour's of the first, so that each has four in a row, and four lanes fill 32 bytes.
  __device__ void trade(float (&four)[4], float first0, float first1, float second0, float second1) const {
    const bool odd = lane % 2;
    const float got0 = from_lane_across(odd ? first0 : second0, 1), got1 = from_lane_across(odd ? first1 : second1, 1);
    four[0] = odd ? got0 : first0;
    four[1] = odd ? got1 : first1;
    four[2] = odd ? second0 : got0;
    four[3] = odd ? second1 : got1;
  }
  __device__ int first_of_four() const { return lane % 2 * 8 + lane % 4 / 2 * 4; }

  __device__ void store(const float (&sums)[2][2][4], const half* __restrict__ residual, half* __restrict__ out,
                        Shape shape, int first) const {
    const int run = CHANNELS_LAST ? shape.channels : tile.dilation == 1 ? shape.width : 1;
    const bool whole = run % 4 == 0 && (reinterpret_cast<size_t>(out) | reinterpret_cast<size_t>(residual)) % 8 == 0;
#pragma unroll
    for (int line = 0; line < 2; ++line)
#pragma unroll
      for (int octet = 0; octet < 2; ++octet) {  // of channels (NCHW), or of columns
        float four[4];
        if (CHANNELS_LAST)
          trade(four, sums[octet][0][2 * line], sums[octet][0][2 * line + 1], sums[octet][1][2 * line],
                sums[octet][1][2 * line + 1]);
        else
          trade(four, sums[0][line][2 * octet], sums[0][line][2 * octet + 1], sums[1][line][2 * octet],
                sums[1][line][2 * octet + 1]);
        const int channel = first + (CHANNELS_LAST ? first_of_four() : 8 * octet + lane / 4);
        const int column = CHANNELS_LAST ? 8 * octet + lane / 4 : first_of_four();
        if (channel >= shape.channels || !holds(line, column)) continue;
        const int start = place_in_image(shape, channel, line, column);
        if (whole)
          store_run(four, residual == nullptr ? nullptr : residual + start, out + start);
        else
          store_elements(four, residual, out, shape, start, channel, line, column);
      }
  }

  __device__ static void store_run(const float (&four)[4], const half* __restrict__ residual, half* __restrict__ out) {
    float2 more[2] = {make_float2(0.0f, 0.0f), make_float2(0.0f, 0.0f)};
    if (residual != nullptr) {
      const uint2 read = *reinterpret_cast<const uint2*>(residual);
      more[0] = unpack_halves(read.x);
      more[1] = unpack_halves(read.y);
    }
    *reinterpret_cast<uint2*>(out) = make_uint2(pack_halves(four[0] + more[0].x, four[1] + more[0].y),
                                                pack_halves(four[2] + more[1].x, four[3] + more[1].y));
  }

  // Four columns of one channel, or four channels of one pixel, as far as they exist.
  __device__ void store_elements(const float (&four)[4], const half* __restrict__ residual, half* __restrict__ out,
                                 Shape shape, int start, int channel, int line, int column) const {
#pragma unroll
    for (int one = 0; one < 4; ++one) {
      if (CHANNELS_LAST ? channel + one >= shape.channels : !holds(line, column + one)) continue;
      const int place = start + (CHANNELS_LAST ? one : one * tile.dilation);
      out[place] = from_float<half>(four[one] + (residual != nullptr ? to_float(residual[place]) : 0.0f));
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
  using Buffer = typename Gate::Buffer;
  constexpr int STAGES = UNETX_STAGES * sizeof(Buffer) <= 48 * 1024 ? UNETX_STAGES : 2;
  __shared__ Buffer buffers[STAGES];
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
  const Filler<CHANNELS_LAST, K> filler(block.tile, shape.height, shape.width, block.thread);
  // A patch beside the image has nothing to compute, but fills buffers and meets barriers.
  const bool works = gate.holds(0, 0);

  const auto fill = [&](int step) {
    Buffer& buffer = buffers[step % STAGES];
    if (step < before_values)
      filler.fill(buffer, phi, hidden, step % of_keys * DEPTH);
    else if (step < steps)
      filler.fill(buffer, values, shape.channels, (step - before_values) * DEPTH);
    end_copies();  // an empty group too, so that their number is the number of steps
  };
  // One barrier for each step: before it, all have left the buffer that is filled after it.
  const auto arrive = [&](int step) {
    if (UNETX_PLANTED_DEFECT != 4) wait_for_copies<STAGES - 2>();
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
