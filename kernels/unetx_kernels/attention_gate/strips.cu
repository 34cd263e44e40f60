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
// Blocks that a multiprocessor shall have room for, of its 512 threads with 128 registers.
constexpr int STRIP_BLOCKS = STRIP_THREADS < 512 ? 512 / STRIP_THREADS : 1;

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

// RUN elements of every channel's rows: what a thread copies of a tensor, AT_ONCE copies without a branch between them.
template <int RUN, int ROW_RUNS, int PITCH, int AT_ONCE> struct Copier {
  static constexpr int BYTES = RUN * sizeof(half);
  static constexpr int PLACES = STEP * ROW_RUNS;
  static constexpr int BESIDE = STRIP_THREADS / PLACES;  // channels at once
  static_assert(BESIDE > 0, "a thread for each place");
  int begin, row, x;  // its first channel, or more than there are; row of the step; column of the buffer
  int column;         // of the image
  bool inside;        // whether the image has it

  __device__ Copier(int left, int width, int thread)
      : begin(thread < BESIDE * PLACES ? thread / PLACES : 1 << 30), row(thread % PLACES / ROW_RUNS),
        x(thread % ROW_RUNS * RUN), column(left + x), inside(column >= 0 && column < width) {}

  // `to` is where the step's first row lies in the first plane, y where it lies in the image.
  __device__ void copy(half* to, const half* __restrict__ source, int channels, int y, int height, int width) const {
    if (begin >= channels) return;
    const bool exists = (inside && y + row >= 0 && y + row < height) || UNETX_PLANTED_DEFECT == 3;
    const int plane = height * width;
    const half* from = source + (exists ? begin * plane + (y + row) * width + column : 0);
    const int step = exists ? BESIDE * plane : 0;
    to += begin * PITCH + x;
#pragma unroll 1
    for (int first = begin; first < channels; first += AT_ONCE * BESIDE, to += AT_ONCE * BESIDE * PITCH)
#pragma unroll
      for (int turn = 0; turn < AT_ONCE; ++turn, from += step)
        if (first + turn * BESIDE < channels) copy_later<BYTES>(to + turn * BESIDE * PITCH, from, exists);
  }
};

// Planes of products that have no channel: 0, for good.
__device__ inline void clear_planes(half* planes, int pitch, int channels, int thread) {
#pragma unroll 1
  for (int place = channels * pitch + thread; place < whole_products(channels) * pitch; place += STRIP_THREADS)
    planes[place] = from_float<half>(0.0f);
}

template <int K> struct StripGate {
  using Keys = Ring<K>;
  Strip strip;
  int lane, x, line;            // of the patch: its first column in the strip, and its row in a step
  float limits[2][2][2];        // of part, octet, key: what a score is cut off at, infinity within the window
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

  // Where each row of keys lies in a plane of the ring, whose first row of the step is `base`.
  __device__ void find_rows(int (&rows)[K], int base) const {
#pragma unroll
    for (int key = 0; key < K; ++key) {
      const int row = base + line + key;
      rows[key] = (row < Keys::ROWS ? row : row - Keys::ROWS) * Keys::WIDTH;
    }
  }

  // Where this lane's row of the matrices begins: of 16 channels, of an octet of keys and the one after it.
  __device__ int row_of_lane() const { return (lane / 8 % 2 * 8 + lane % 8) * Keys::PLANE + x + lane / 16 * 8; }

  __device__ void attend(SharedHalves keys, SharedHalves queries, const int (&rows)[K], int y, float scale) {
    float scores[K][3][4] = {};
    SharedHalves near = keys + row_of_lane();
    SharedHalves query =
        queries + ((lane / 16 * 8 + lane % 8) * QUERY_PLANE + line * STRIP_WIDTH + x + lane / 8 % 2 * 8);
#pragma unroll 1
    for (int channel = 0; channel < strip.hidden; channel += PATCH) {
      HalfPair own[4];
      load_matrices<true>(own, query);
#pragma unroll
      for (int key = 0; key < K; ++key) {
        HalfPair two[4], third[2];
        load_matrices<true>(two, near + rows[key]);
        load_two_matrices<true>(third, near + (rows[key] + 16));
        multiply_add(scores[key][0], own[0], own[1], own[2], own[3], two[0], two[1]);
        multiply_add(scores[key][1], own[0], own[1], own[2], own[3], two[2], two[3]);
        multiply_add(scores[key][2], own[0], own[1], own[2], own[3], third[0], third[1]);
      }
      near = near + PATCH * Keys::PLANE;
      query = query + PATCH * QUERY_PLANE;
    }
    if (y < K / 2 || y + K / 2 >= strip.height) hide_rows(scores, y);
#pragma unroll
    for (int part = 0; part < 2; ++part) softmax(scores, part, scale);
  }

  // Rows of keys above and below the image take no part.
  __device__ void hide_rows(float (&scores)[K][3][4], int y) const {
    keep_branch();
#pragma unroll
    for (int key = 0; key < K; ++key) {
      const int row = y + key - K / 2;
      if (row >= 0 && row < strip.height) continue;
#pragma unroll
      for (int octet = 0; octet < 3; ++octet)
#pragma unroll
        for (int one = 0; one < 4; ++one) scores[key][octet][one] = NEVER;
    }
  }

  // Scores to weights: a neighbour outside of the window or of the image takes no part.
  __device__ void softmax(float (&scores)[K][3][4], int part, float scale) {
    // Four chains of each, since one would wait for itself.
    float most[2][2] = {{NEVER, NEVER}, {NEVER, NEVER}}, sums[2][2] = {};
#pragma unroll
    for (int key = 0; key < K; ++key)
#pragma unroll
      for (int octet = 0; octet < 2; ++octet)
#pragma unroll
        for (int one = 0; one < 2; ++one) {
          float& score = scores[key][part + octet][2 * part + one];
          score = fminf(score, limits[part][octet][one]);
          most[octet][one] = fmaxf(most[octet][one], score);
        }
    const float largest = most_of_row(fmaxf(fmaxf(most[0][0], most[0][1]), fmaxf(most[1][0], most[1][1])));
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
          sums[octet][one] += score;
        }
    const float sum = sum_of_row((sums[0][0] + sums[0][1]) + (sums[1][0] + sums[1][1]));
    const float share = reciprocal_approximately(sum);
#pragma unroll
    for (int key = 0; key < K; ++key)
#pragma unroll
      for (int octet = 0; octet < 2; ++octet) {
        const float(&pair)[4] = scores[key][part + octet];
        weights[part][key][octet] = pack_halves(pair[2 * part] * share, pair[2 * part + 1] * share);
      }
  }

  // out = weights . values (+ residual), 16 channels at a time.
  template <bool ADDS>
  __device__ void gather(SharedHalves values, const half* __restrict__ residual, half* __restrict__ out,
                         const int (&rows)[K], int y) const {
    const int plane = strip.height * strip.width;
    const bool exists = y < strip.bottom && strip.left + x + first_of_four() < strip.width;
    // The lane's first pixels, of its first channel: what it adds, in two pairs, and where it stores, four in a row.
    int left = strip.channels - strip.first - lane / 4;
    const int place = (strip.first + lane / 4) * plane + y * strip.width + strip.left + x;
    const half* more = residual + (place + 2 * (lane % 4));
    half* to = out + (place + first_of_four());
    SharedHalves near = values + row_of_lane();
#pragma unroll 1
    for (int channel = 0; channel < strip.group; channel += PATCH) {
      float sums[2][4] = {};
#pragma unroll
      for (int key = 0; key < K; ++key)
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          HalfPair two[4];
          load_matrices<false>(two, near + (rows[key] + 8 * part));
          multiply_add(sums[part], two[0], two[1], two[2], two[3], weights[part][key][0], weights[part][key][1]);
        }
#pragma unroll
      for (int octet = 0; octet < 2; ++octet) {
        if (ADDS && y < strip.bottom && left > 8 * octet) add_residual(sums, octet, more + octet * 8 * plane);
        store(sums, octet, to + octet * 8 * plane, exists && left > 8 * octet);
      }
      near = near + PATCH * Keys::PLANE;
      left -= PATCH;
      to += PATCH * plane;
      if (ADDS) more += PATCH * plane;
    }
  }

  __device__ void add_residual(float (&sums)[2][4], int octet, const half* __restrict__ more) const {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      if (strip.left + x + 8 * part >= strip.width) continue;
      const float2 pair = unpack_halves(*reinterpret_cast<const HalfPair*>(more + 8 * part));
      sums[part][2 * octet] += pair.x;
      sums[part][2 * octet + 1] += pair.y;
    }
  }

  // A lane has pixels 2 t and 2 t + 1 of both parts, t = lane % 4: an even one trades its pair of the second for its
  // neighbour's of the first, so that each has four in a row, and four lanes fill 32 bytes.
  __device__ void store(const float (&sums)[2][4], int octet, half* __restrict__ to, bool exists) const {
    const bool odd = lane % 2;
    const HalfPair first = pack_halves(sums[0][2 * octet], sums[0][2 * octet + 1]);
    const HalfPair second = pack_halves(sums[1][2 * octet], sums[1][2 * octet + 1]);
    const HalfPair got = from_lane_across(odd ? first : second, 1);
    store_pairs(to, odd ? got : first, odd ? second : got, exists);
  }
  __device__ int first_of_four() const { return lane % 2 * 8 + lane % 4 / 2 * 4; }
};

template <int K>
__device__ void neighbourhood_gate_strips(const half* __restrict__ theta, const half* __restrict__ phi,
                                          const half* __restrict__ values, const half* __restrict__ residual,
                                          half* __restrict__ out, Strip strip, float scale) {
  using Keys = Ring<K>;
  const int planes_of_keys = whole_products(strip.hidden), queries_of_step = planes_of_keys * QUERY_PLANE;
  half* const ring = dynamic_shared_memory();
  half* const ring_of_values = ring + planes_of_keys * Keys::PLANE;
  half* const queries = ring_of_values + strip.group * Keys::PLANE;
  const int thread = static_cast<int>(threadIdx.x);
  const Copier<4, Keys::WIDTH / 4, Keys::PLANE, 5> of_keys(strip.left - MARGIN, strip.width, thread);
  const Copier<8, STRIP_WIDTH / 8, QUERY_PLANE, 1> of_queries(strip.left, strip.width, thread);

  const int own = min(strip.group, strip.channels - strip.first);
  const half* const own_values = values + strip.first * (strip.height * strip.width);

  // Rows of phi, or of values, of one step into the ring from row `slot` on.
  const auto copy_rows = [&](half* to, const half* source, int channels, int step, int slot) {
    of_keys.copy(to + (slot + of_keys.row) * Keys::WIDTH, source, channels, strip.top - K / 2 + step * STEP, strip.height,
                 strip.width);
  };
  const auto copy_queries = [&](int step) {
    of_queries.copy(queries + step % 2 * queries_of_step + of_queries.row * STRIP_WIDTH, theta, strip.hidden,
                    strip.top + step * STEP, strip.height, strip.width);
  };
  if (strip.hidden % PATCH != 0 || own % PATCH != 0) {
    clear_planes(ring, Keys::PLANE, strip.hidden, thread);
    clear_planes(ring_of_values, Keys::PLANE, own, thread);
    clear_planes(queries, QUERY_PLANE, strip.hidden, thread);
    clear_planes(queries + queries_of_step, QUERY_PLANE, strip.hidden, thread);
  }

  StripGate<K> gate(strip, thread);
  const int steps = ceil_div(strip.bottom - strip.top, STEP);
  int base = 0, free = 0;
  // Before the first step there are rows to be copied alone: in the same loop, since every instruction comes from memory too.
#pragma unroll 1
  for (int step = -Keys::AHEAD; step < steps; ++step) {
    if (step >= 0) {
      if (UNETX_PLANTED_DEFECT != 4) wait_for_copies<0>();
      // Before it, all have left the rows that are overwritten after it.
      if (UNETX_PLANTED_DEFECT != 1 && UNETX_PLANTED_DEFECT != 2) __syncthreads();
    }
    if (step + 1 < steps) {
      copy_rows(ring, phi, strip.hidden, step + Keys::AHEAD, free);
      if (step >= -1) copy_queries(step + 1);
      copy_rows(ring_of_values, own_values, own, step + Keys::AHEAD, free);
      end_copies();
    }
    free = free + STEP < Keys::ROWS ? free + STEP : 0;
    if (step < 0) continue;
    const int y = strip.top + step * STEP + gate.line;
    int rows[K];
    gate.find_rows(rows, base);
    gate.attend(in_shared_memory(ring), in_shared_memory(queries + step % 2 * queries_of_step), rows, y, scale);
    if (residual == nullptr)
      gate.template gather<false>(in_shared_memory(ring_of_values), residual, out, rows, y);
    else
      gate.template gather<true>(in_shared_memory(ring_of_values), residual, out, rows, y);
    base = base + STEP < Keys::ROWS ? base + STEP : 0;
  }
}

// Earlier GPUs have less shared memory than two wide strips need; there is nothing to compile for them.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define UNETX_STRIPS_RUN 1
#else
#define UNETX_STRIPS_RUN 0
#endif

#define UNETX_STRIPS(K)                                                                                               \
  extern "C" __global__ void __launch_bounds__(STRIP_THREADS, STRIP_BLOCKS) neighbourhood_gate_strips_k##K(           \
      const half* __restrict__ theta,    /* (N, D, H, W) */                                                           \
      const half* __restrict__ phi,      /* as theta */                                                               \
      const half* __restrict__ values,   /* (N, C, H, W) */                                                           \
      const half* __restrict__ residual, /* as values, or null */                                                     \
      half* __restrict__ out,            /* as values */                                                              \
      int hidden, int channels, int height, int width, int rows, int group, float scale) {                            \
    if (!UNETX_STRIPS_RUN) return;                                                                                    \
    const int left = static_cast<int>(blockIdx.x) * STRIP_WIDTH, top = static_cast<int>(blockIdx.y) * rows;           \
    const int groups = channels > group ? ceil_div(channels, group) : 1, block = static_cast<int>(blockIdx.z);        \
    const int of_group = groups > 1 ? block % groups : 0, first = of_group * group;                                   \
    const long long image = groups > 1 ? block / groups : block, pixels = static_cast<long long>(height) * width;  \
    const Strip strip{left, top, min(top + rows, height), first, min(group, whole_products(channels - first)),        \
                      hidden, channels, height, width};                                                               \
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
