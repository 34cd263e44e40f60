// The neighbourhood gate in fp16 for large NCHW images: a block walks down a strip of the image and reads each row once.
//
// neighbourhood_gate_strips: as neighbourhood_gate of attention_gate.cu, with dilation 1.
//
// Shared memory holds the rows that the window needs, and those of the next step, of all D channels of phi and of one group
// of channels of values: a ring of rows for each channel. A step is two rows of pixels; a warp has 16 pixels of one of
// them. For one row of keys it looks at 24 columns, from 4 before its first, in three octets: its first 8 pixels see the
// first two octets, the others the last two. Products with keys outside of the K x K window are computed and thrown away.
// The weights never leave the registers: what the first product leaves in a lane is what the second one takes from it.
//
// A value of `values` that is infinite or NaN reaches pixels up to 11 columns away, not K / 2: its weight there is 0, and
// 0 times infinity is NaN.
//
// The width is a multiple of 8 and every tensor lies on 16 bytes, so that a copy lies inside of the image or beside it; the
// launcher sees to both, and to the size of the dynamic shared memory.
#include "warp.cuh"

#ifndef UNETX_STRIP_WIDTH
#define UNETX_STRIP_WIDTH 64  // pixels
#endif

constexpr int STRIP_WIDTH = UNETX_STRIP_WIDTH;
constexpr int STEP = 2;            // rows of pixels that a block works on at once
constexpr int PATCH = 16;          // pixels of a warp, and channels of one product of the tensor cores
constexpr int MARGIN = 4;          // columns beside the strip: at least K / 2, and 8 bytes keep the alignment
constexpr int STRIP_THREADS = STRIP_WIDTH / PATCH * STEP * WARP;
// Blocks that a multiprocessor shall have room for, of its 512 threads with 128 registers; K = 7 would spill.
template <int K> constexpr int STRIP_BLOCKS = STRIP_THREADS < 512 && K < 7 ? 512 / STRIP_THREADS : 1;

static_assert(STRIP_WIDTH % PATCH == 0, "a strip is whole patches");

__host__ __device__ constexpr int whole_products(int channels) { return (channels + PATCH - 1) / PATCH * PATCH; }

// Rows of one channel in a ring, and where a row of keys lies in it.
template <int K> struct Ring {
  static constexpr int WIDTH = STRIP_WIDTH + 2 * MARGIN;
  static constexpr int AHEAD = (K + 1) / STEP;  // steps' rows that are there before the first step
  static constexpr int ROWS = STEP * (AHEAD + 1);
  // An odd number of 16 bytes from channel to channel: eight rows of a matrix then lie in different banks.
  static constexpr int PLANE = ROWS * WIDTH + 8;
  static_assert(PLANE % 16 == 8, "rows of a matrix would share banks");
};

// Queries of one step, of one channel.
constexpr int QUERY_PLANE = STEP * STRIP_WIDTH + 8;
static_assert(QUERY_PLANE % 16 == 8, "rows of a matrix would share banks");

struct Strip {
  int left, top, bottom;       // its columns begin at left; rows of pixels from top up to, not including, bottom
  int first, group;            // channels of values: the first, and how many planes of the ring they fill
  int hidden, channels, height, width;
};

// RUN elements of every channel's rows: what a thread copies of a tensor, with the steps between its copies.
template <int RUN, int ROW_RUNS> struct Copier {
  static constexpr int BYTES = RUN * sizeof(half);
  static constexpr int PLACES = STEP * ROW_RUNS;
  static constexpr int ABREAST = STRIP_THREADS / PLACES;  // channels at once
  static_assert(ABREAST > 0, "a thread for each place");
  int begin, row, column, x;  // its first channel; row of the step; column of the image, and of the buffer
  bool inside;                // whether the image has that column

  __device__ Copier(int left, int width, int thread)
      : begin(thread / PLACES), row(thread % PLACES / ROW_RUNS), column(left + thread % ROW_RUNS * RUN),
        x(thread % ROW_RUNS * RUN), inside(column >= 0 && column < width) {}

  // `channels` of `planes` planes exist; `slot` is where the step's first row lies in a plane of `pitch` elements.
  __device__ void copy(half* to, int pitch, const half* __restrict__ source, int channels, int planes, int y, int height,
                       int width) const {
    if (begin >= ABREAST) return;
    const bool exists = inside && y + row >= 0 && y + row < height;
    const int left = exists || UNETX_PLANTED_DEFECT == 3 ? channels : 0, plane = height * width;
    const half* from = source + (left > begin ? begin * plane + (y + row) * width + column : 0);
    const int step = left > begin ? ABREAST * plane : 0;
    to += begin * pitch + x;
#pragma unroll 4
    for (int channel = begin; channel < planes; channel += ABREAST, from += step, to += ABREAST * pitch)
      copy_later<BYTES>(to, channel < left ? from : source, channel < left);
  }
};

template <int K> struct StripGate {
  using Keys = Ring<K>;
  Strip strip;
  int lane, x, line;            // of the patch: its first column in the strip, and its row in a step
  float limits[2][2][2];        // of part, octet, key: what a score is cut off at, infinity within the window
  int rows[K];                  // where each row of keys lies in a plane of the ring
  HalfPair weights[2][K][2];    // of part, row of keys, octet: of two keys each, one after the other

  __device__ StripGate(Strip strip, int thread) : strip(strip) {
    const int warp = thread / WARP;
    lane = thread % WARP;
    x = warp % (STRIP_WIDTH / PATCH) * PATCH;
    line = warp / (STRIP_WIDTH / PATCH);
#pragma unroll
    for (int part = 0; part < 2; ++part)
#pragma unroll
      for (int octet = 0; octet < 2; ++octet)
#pragma unroll
        for (int one = 0; one < 2; ++one) {
          const int key = 8 * octet + 2 * (lane % 4) + one - MARGIN, beside = key - lane / 4;
          const int column = strip.left + x + 8 * part + key;
          const bool counts = beside >= -(K / 2) && beside <= K / 2 && column >= 0 && column < strip.width;
          limits[part][octet][one] = counts ? __int_as_float(0x7f800000) : NEVER;
        }
  }

  // `base` is where the first row of keys of the step lies in the ring.
  __device__ void turn(int base) {
#pragma unroll
    for (int key = 0; key < K; ++key) {
      const int row = base + line + key;
      rows[key] = (row < Keys::ROWS ? row : row - Keys::ROWS) * Keys::WIDTH;
    }
  }

  // Where this lane's row of the matrices begins: of 16 channels, and of the octet and the one after it.
  __device__ int row_of_lane() const { return (lane / 8 % 2 * 8 + lane % 8) * Keys::PLANE + x + lane / 16 * 8; }

  __device__ void attend(const half* keys, const half* queries, int y, float scale) {
    float scores[K][3][4] = {};
    const half* near = keys + row_of_lane();
    const half* query = queries + (lane / 16 * 8 + lane % 8) * QUERY_PLANE + line * STRIP_WIDTH + x + lane / 8 % 2 * 8;
#pragma unroll 1
    for (int channel = 0; channel < strip.hidden; channel += PATCH) {
      HalfPair own[4];
      load_matrices<true>(own, query);
#pragma unroll
      for (int key = 0; key < K; ++key) {
        HalfPair two[4], third[2];
        load_matrices<true>(two, near + rows[key]);
        load_two_matrices<true>(third, near + rows[key] + 16);
        multiply_add(scores[key][0], own[0], own[1], own[2], own[3], two[0], two[1]);
        multiply_add(scores[key][1], own[0], own[1], own[2], own[3], two[2], two[3]);
        multiply_add(scores[key][2], own[0], own[1], own[2], own[3], third[0], third[1]);
      }
      near += PATCH * Keys::PLANE;
      query += PATCH * QUERY_PLANE;
    }
#pragma unroll
    for (int part = 0; part < 2; ++part) softmax(scores, part, y, scale);
  }

  // Scores to weights: a neighbour outside of the window or of the image takes no part.
  __device__ void softmax(float (&scores)[K][3][4], int part, int y, float scale) {
    float largest = NEVER, sum = 0.0f;
#pragma unroll
    for (int key = 0; key < K; ++key) {
      const int row = y + key - K / 2;
      const bool exists = row >= 0 && row < strip.height;
#pragma unroll
      for (int octet = 0; octet < 2; ++octet)
#pragma unroll
        for (int one = 0; one < 2; ++one) {
          float& score = scores[key][part + octet][2 * part + one];
          score = fminf(score, exists ? limits[part][octet][one] : NEVER);
          largest = fmaxf(largest, score);
        }
    }
    largest = fmaxf(largest, from_lane_across(largest, 1));
    largest = fmaxf(largest, from_lane_across(largest, 2));
    // A pixel beside the image has no neighbour at all: its weights are finite and not stored.
    const float offset = largest * (scale * LOG2_E);
#pragma unroll
    for (int key = 0; key < K; ++key)
#pragma unroll
      for (int octet = 0; octet < 2; ++octet)
#pragma unroll
        for (int one = 0; one < 2; ++one) {
          float& score = scores[key][part + octet][2 * part + one];
          score = exp2_approximately(score * (scale * LOG2_E) - offset);
          sum += score;
        }
    sum += from_lane_across(sum, 1);
    sum += from_lane_across(sum, 2);
    const float share = 1.0f / sum;
#pragma unroll
    for (int key = 0; key < K; ++key)
#pragma unroll
      for (int octet = 0; octet < 2; ++octet) {
        const float(&pair)[4] = scores[key][part + octet];
        weights[part][key][octet] = pack_halves(pair[2 * part] * share, pair[2 * part + 1] * share);
      }
  }

  // out = weights . values (+ residual), 16 channels at a time.
  __device__ void gather(const half* values, const half* __restrict__ residual, half* __restrict__ out, int y) const {
    const half* near = values + row_of_lane();
#pragma unroll 1
    for (int channel = 0; channel < strip.group; channel += PATCH, near += PATCH * Keys::PLANE) {
      float sums[2][4] = {};
#pragma unroll
      for (int key = 0; key < K; ++key) {
        HalfPair two[4], third[2];
        load_matrices<false>(two, near + rows[key]);
        load_two_matrices<false>(third, near + rows[key] + 16);
        multiply_add(sums[0], two[0], two[1], two[2], two[3], weights[0][key][0], weights[0][key][1]);
        multiply_add(sums[1], two[2], two[3], third[0], third[1], weights[1][key][0], weights[1][key][1]);
      }
#pragma unroll
      for (int octet = 0; octet < 2; ++octet)
        store(sums[0][2 * octet], sums[0][2 * octet + 1], sums[1][2 * octet], sums[1][2 * octet + 1], residual, out,
              channel + 8 * octet + lane / 4, y);
    }
  }

  // A lane has pixels 2 t and 2 t + 1 of both parts, t = lane % 4: an even one trades its pair of the second for its
  // neighbour's of the first, so that each has four in a row, and four lanes fill 32 bytes.
  __device__ void store(float first0, float first1, float second0, float second1, const half* __restrict__ residual,
                        half* __restrict__ out, int channel, int y) const {
    const bool odd = lane % 2;
    const float got0 = from_lane_across(odd ? first0 : second0, 1), got1 = from_lane_across(odd ? first1 : second1, 1);
    const int column = strip.left + x + lane % 2 * 8 + lane % 4 / 2 * 4;
    if (strip.first + channel >= strip.channels || y >= strip.bottom || column >= strip.width) return;
    const int place = (strip.first + channel) * (strip.height * strip.width) + y * strip.width + column;
    float2 more[2] = {make_float2(0.0f, 0.0f), make_float2(0.0f, 0.0f)};
    if (residual != nullptr) {
      const uint2 read = *reinterpret_cast<const uint2*>(residual + place);
      more[0] = unpack_halves(read.x);
      more[1] = unpack_halves(read.y);
    }
    *reinterpret_cast<uint2*>(out + place) =
        make_uint2(pack_halves((odd ? got0 : first0) + more[0].x, (odd ? got1 : first1) + more[0].y),
                   pack_halves((odd ? second0 : got0) + more[1].x, (odd ? second1 : got1) + more[1].y));
  }
};

template <int K>
__device__ void neighbourhood_gate_strips(const half* __restrict__ theta, const half* __restrict__ phi,
                                          const half* __restrict__ values, const half* __restrict__ residual,
                                          half* __restrict__ out, Strip strip, float scale) {
  using Keys = Ring<K>;
  half* const ring = dynamic_shared_memory();
  half* const ring_of_values = ring + whole_products(strip.hidden) * Keys::PLANE;
  half* const queries = ring_of_values + strip.group * Keys::PLANE;
  const int queries_of_step = whole_products(strip.hidden) * QUERY_PLANE;
  const int thread = static_cast<int>(threadIdx.x);
  const Copier<4, Keys::WIDTH / 4> of_keys(strip.left - MARGIN, strip.width, thread);
  const Copier<8, STRIP_WIDTH / 8> of_queries(strip.left, strip.width, thread);
  const int plane = strip.height * strip.width;

  // Rows of keys of one step into the ring at row `slot`.
  const auto copy_keys = [&](int step, int slot) {
    const int y = strip.top - K / 2 + step * STEP, place = (slot + of_keys.row) * Keys::WIDTH;
    of_keys.copy(ring + place, Keys::PLANE, phi, strip.hidden, whole_products(strip.hidden), y, strip.height, strip.width);
    of_keys.copy(ring_of_values + place, Keys::PLANE, values + strip.first * plane, strip.channels - strip.first,
                 strip.group, y, strip.height, strip.width);
  };
  const auto copy_queries = [&](int step) {
    of_queries.copy(queries + step % 2 * queries_of_step + of_queries.row * STRIP_WIDTH, QUERY_PLANE, theta, strip.hidden,
                    whole_products(strip.hidden), strip.top + step * STEP, strip.height, strip.width);
  };

  StripGate<K> gate(strip, thread);
#pragma unroll 1
  for (int step = 0; step < Keys::AHEAD; ++step) copy_keys(step, step * STEP);
  copy_queries(0);
  end_copies();
  const int steps = ceil_div(strip.bottom - strip.top, STEP);
  int base = 0, free = Keys::AHEAD * STEP;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    if (UNETX_PLANTED_DEFECT != 4) wait_for_copies<0>();
    // Before it, all have left the rows that are overwritten after it.
    if (UNETX_PLANTED_DEFECT != 1 && UNETX_PLANTED_DEFECT != 2) __syncthreads();
    if (step + 1 < steps) {
      copy_keys(step + Keys::AHEAD, free);
      copy_queries(step + 1);
      end_copies();
    }
    const int y = strip.top + step * STEP + gate.line;
    gate.turn(base);
    gate.attend(ring, queries + step % 2 * queries_of_step, y, scale);
    gate.gather(ring_of_values, residual, out, y);
    free = base;
    base = base + STEP < Keys::ROWS ? base + STEP : 0;
  }
}

#define UNETX_STRIPS(K)                                                                                               \
  extern "C" __global__ void __launch_bounds__(STRIP_THREADS, STRIP_BLOCKS<K>) neighbourhood_gate_strips_k##K(        \
      const half* __restrict__ theta,    /* (N, D, H, W) */                                                           \
      const half* __restrict__ phi,      /* as theta */                                                               \
      const half* __restrict__ values,   /* (N, C, H, W) */                                                           \
      const half* __restrict__ residual, /* as values, or null */                                                     \
      half* __restrict__ out,            /* as values */                                                              \
      int hidden, int channels, int height, int width, int rows, int group, float scale) {                            \
    const int across = ceil_div(width, STRIP_WIDTH), groups = ceil_div(channels, group), down = ceil_div(height, rows);  \
    const int block = static_cast<int>(blockIdx.x), of_group = block / across % groups;                               \
    const int top = block / across / groups % down * rows;                                                            \
    const long long image = block / across / groups / down, pixels = static_cast<long long>(height) * width;         \
    const Strip strip{block % across * STRIP_WIDTH, top, min(top + rows, height), of_group * group,                   \
                      min(group, whole_products(channels - of_group * group)), hidden, channels, height, width};       \
    const long long keys = image * hidden * pixels, own = image * channels * pixels;                                  \
    neighbourhood_gate_strips<K>(theta + keys, phi + keys, values + own, residual ? residual + own : nullptr,         \
                                 out + own, strip, scale);                                                            \
  }

#if UNETX_HAS_WINDOW(3)
UNETX_STRIPS(3)
#endif
#if UNETX_HAS_WINDOW(5)
UNETX_STRIPS(5)
#endif
#if UNETX_HAS_WINDOW(7)
UNETX_STRIPS(7)
#endif
