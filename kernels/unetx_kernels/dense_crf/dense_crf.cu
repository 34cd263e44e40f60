// Mean-field inference in the fully connected CRF for a grey image: one iteration is five kernels, all on one stream.
//
// crf_start: probabilities from logits. Then, for every iteration:
//   crf_smooth_rows, crf_splat (with the blur along intensity), crf_blur_nodes twice, crf_update.
// crf_update filters along columns, reads the grid at every pixel, adds the logits and makes the next probabilities, so
// that no message is ever in memory. crf_scale makes the two norms before the first iteration, from an image of ones.
//
// K classes, C channels: two classes are one channel, the difference of their probabilities (messages of a Potts model are
// linear in them); else C = K. H x W pixels, K * H * W below 2^31; a grid of R x Q nodes and B levels of intensity. A node's
// sums over its pixels are sums of whole numbers, which no order of the threads changes: equal inputs give equal bits.
#ifdef UNETX_HOST_SHIM
#define UNETX_DEFECT UNETX_PLANTED_DEFECT  // for the test of the tests; 1: a barrier lacks, 3: a bounds guard lacks
#else
#define UNETX_DEFECT 0
#endif

// A block of pixels is a tile: what its threads read above and below one another is then mostly the same.
constexpr int TILE_WIDTH = 32, TILE_HEIGHT = 8;
constexpr int CRF_THREADS = TILE_WIDTH * TILE_HEIGHT;
constexpr int MOST_CLASSES = 8;
constexpr int MOST_LEVELS = 256;
constexpr float TINY = 1.17549435e-38f;
// Pixels whose sum is one 32-bit number: each then has 18 bits or more.
constexpr int SUMMED_PIXELS = 8192;
// Below this the sum of a node is taken for zero; the message of a pixel with itself is far above.
constexpr float LEAST_VALUE = 1e-18f;

struct Size {
  int height, width;
  __device__ long long pixels() const { return static_cast<long long>(height) * width; }
};

// Nodes along one axis: of every pixel its cell and the share of the farther node; of every cell its first pixel.
struct Nodes {
  const int* cells;      // (length)
  const float* weights;  // (length)
  const int* starts;     // (count), the last is the length of the axis
  int count;
};

// The pixel of a thread; blocks are tiles of the image, row by row, channel by channel.
struct Place {
  int channel, y, x;
  long long pixel;
  __device__ explicit Place(Size size) {
    const unsigned across = (size.width + TILE_WIDTH - 1) / TILE_WIDTH;
    const unsigned down = (size.height + TILE_HEIGHT - 1) / TILE_HEIGHT;
    const unsigned row = blockIdx.x / across;
    channel = row / down;
    x = (blockIdx.x - row * across) * TILE_WIDTH + threadIdx.x % TILE_WIDTH;
    y = (row - channel * down) * TILE_HEIGHT + threadIdx.x / TILE_WIDTH;
    pixel = static_cast<long long>(y) * size.width + x;
  }
};

// The filter along y at one pixel, zero outside the image.
__device__ inline float smooth_at(const float* __restrict__ tall,  // (H, W), filtered along x
                                  const float* __restrict__ taps,  // (reach + 1)
                                  int reach, Size size, int y, int x) {
  float sum = tall[static_cast<long long>(y) * size.width + x] * taps[0];
  for (int k = 1; k <= reach; ++k) {
    const float above = y >= k ? tall[static_cast<long long>(y - k) * size.width + x] : 0.0f;
    const float below = y + k < size.height || UNETX_DEFECT == 3 ? tall[static_cast<long long>(y + k) * size.width + x] : 0.0f;
    sum += taps[k] * (above + below);
  }
  return sum;
}

// The grid at one pixel, interpolated between the four nodes round it.
__device__ inline float slice_at(const float* __restrict__ grid,  // (R, Q, B)
                                 Nodes rows, Nodes columns, int levels, int level, int y, int x) {
  const int row = rows.cells[y], column = columns.cells[x];
  const float down = rows.weights[y], across = columns.weights[x];
  const float* corner = grid + (static_cast<long long>(row) * columns.count + column) * levels + level;
  const float* under = corner + static_cast<long long>(columns.count) * levels;
  const float upper = corner[0] + across * (corner[levels] - corner[0]);
  const float lower = under[0] + across * (under[levels] - under[0]);
  return upper + down * (lower - upper);
}

// Writes softmax of K logits, or for two classes the difference of the probabilities.
__device__ inline void write_probabilities(const float (&logits)[MOST_CLASSES], int classes, long long pixels,
                                           long long pixel, float* __restrict__ values) {  // (C, H, W)
  if (classes == 2) {
    values[pixel] = tanhf(0.5f * (logits[1] - logits[0]));
    return;
  }
  float largest = logits[0], sum = 0.0f, exponentials[MOST_CLASSES];
#pragma unroll
  for (int k = 1; k < MOST_CLASSES; ++k)
    if (k < classes) largest = fmaxf(largest, logits[k]);
#pragma unroll
  for (int k = 0; k < MOST_CLASSES; ++k) {
    exponentials[k] = k < classes ? expf(logits[k] - largest) : 0.0f;
    sum += exponentials[k];
  }
#pragma unroll
  for (int k = 0; k < MOST_CLASSES; ++k)
    if (k < classes) values[k * pixels + pixel] = exponentials[k] / sum;
}

// Grid: a block for every tile.
extern "C" __global__ void __launch_bounds__(CRF_THREADS, 2)
    crf_start(const float* __restrict__ logits,  // (K, H, W)
              float* __restrict__ values,        // (C, H, W)
              int classes, int height, int width) {
  const Size size{height, width};
  const long long pixels = size.pixels();
  const Place at(size);
  if (at.y >= height || at.x >= width) return;
  const long long pixel = at.pixel;
  float own[MOST_CLASSES];
#pragma unroll
  for (int k = 0; k < MOST_CLASSES; ++k) own[k] = k < classes ? logits[k * pixels + pixel] : 0.0f;
  write_probabilities(own, classes, pixels, pixel, values);
}

// Grid: a block for every tile of every channel.
extern "C" __global__ void __launch_bounds__(CRF_THREADS, 2)
    crf_smooth_rows(const float* __restrict__ values,  // (C, H, W), or null for ones
                    const float* __restrict__ scale,   // (H, W), or null for ones
                    const float* __restrict__ taps,    // (reach + 1)
                    float* __restrict__ tall,          // (C, H, W)
                    int channels, int height, int width, int reach) {
  const Size size{height, width};
  const Place at(size);
  if (at.channel >= channels || at.y >= height || at.x >= width) return;
  const long long pixel = at.pixel, index = at.channel * size.pixels() + pixel;
  float sum = 0.0f;
  for (int k = -reach; k <= reach; ++k) {
    if (at.x + k < 0 || at.x + k >= width) continue;
    const float value = (values ? values[index + k] : 1.0f) * (scale ? scale[pixel + k] : 1.0f);
    sum += taps[k < 0 ? -k : k] * value;
  }
  tall[index] = sum;
}

// One node's pixels: those of the cells around it.
struct Around {
  int top, bottom, left, right;
  __device__ int width() const { return right - left; }
};

__device__ inline Around pixels_around(Nodes rows, Nodes columns, int row, int column) {
  return {rows.starts[row > 0 ? row - 1 : 0], rows.starts[row + 1 < rows.count ? row + 1 : rows.count - 1],
          columns.starts[column > 0 ? column - 1 : 0],
          columns.starts[column + 1 < columns.count ? column + 1 : columns.count - 1]};
}

// Grid: R * Q * C blocks; a block makes the B levels of one node.
//
// Shared memory adds whole numbers in one instruction, and floats in a loop that runs once for every thread of the warp
// that adds to the same place, as neighbours of one grey level do. So the values of some rows are scaled to whole numbers
// by the largest of them, summed, and added to the node's sums.
extern "C" __global__ void __launch_bounds__(CRF_THREADS, 2)
    crf_splat(const float* __restrict__ values,          // (C, H, W), or null for ones
              const float* __restrict__ scale,           // (H, W), or null for ones
              const unsigned char* __restrict__ image,   // (H, W)
              const int* __restrict__ row_cells, const float* __restrict__ row_weights,
              const int* __restrict__ row_starts, const int* __restrict__ column_cells,
              const float* __restrict__ column_weights, const int* __restrict__ column_starts,
              const float* __restrict__ level_taps,  // (reach + 1)
              float* __restrict__ grid,              // (C, R, Q, B)
              int height, int width, int rows, int columns, int levels, int bin_width, int reach) {
  __shared__ int whole[MOST_LEVELS];
  __shared__ float sums[MOST_LEVELS];
  __shared__ int largest;  // a float that is not negative, as an integer: their order is the same
  const int thread = threadIdx.x, lane = thread % TILE_WIDTH, line = thread / TILE_WIDTH;
  const int column = blockIdx.x % columns, row = blockIdx.x / columns % rows;
  const long long channel = blockIdx.x / columns / rows;
  const float* const own = values ? values + channel * Size{height, width}.pixels() : nullptr;
  const Nodes down_nodes{row_cells, row_weights, row_starts, rows};
  const Around around = pixels_around(down_nodes, {column_cells, column_weights, column_starts, columns}, row, column);
  const int together = max(1, SUMMED_PIXELS / max(1, around.width()));
  for (int level = thread; level < levels; level += CRF_THREADS) {
    whole[level] = 0;
    sums[level] = 0.0f;
  }
  if (thread == 0) largest = 0;
  __syncthreads();
  for (int top = around.top; top < around.bottom; top += together) {
    const int bottom = min(around.bottom, top + together);
    float most = 0.0f;
    for (int x = around.left + lane; x < around.right; x += TILE_WIDTH)
      for (int y = top + line; y < bottom; y += TILE_HEIGHT) {
        const long long pixel = static_cast<long long>(y) * width + x;
        most = fmaxf(most, fabsf((own ? own[pixel] : 1.0f) * (scale ? scale[pixel] : 1.0f)));
      }
    atomicMax(&largest, __float_as_int(most));
    __syncthreads();
    const float bound = __int_as_float(largest) * static_cast<float>((bottom - top) * around.width());
    const float steps = bound > LEAST_VALUE ? 1073741824.0f / bound : 0.0f;
    for (int x = around.left + lane; x < around.right; x += TILE_WIDTH) {
      const float across = column_cells[x] == column ? 1.0f - column_weights[x] : column_weights[x];
      for (int y = top + line; y < bottom; y += TILE_HEIGHT) {
        const long long pixel = static_cast<long long>(y) * width + x;
        const float down = row_cells[y] == row ? 1.0f - row_weights[y] : row_weights[y];
        const float value = (own ? own[pixel] : 1.0f) * (scale ? scale[pixel] : 1.0f);
        atomicAdd(&whole[image[pixel] / bin_width], __float2int_rn(down * across * value * steps));
      }
    }
    if (UNETX_DEFECT != 1) __syncthreads();
    for (int level = thread; level < levels; level += CRF_THREADS) {
      sums[level] += static_cast<float>(whole[level]) * (bound * (1.0f / 1073741824.0f));
      whole[level] = 0;
    }
    if (thread == 0) largest = 0;
    __syncthreads();
  }
  float* const node = grid + static_cast<long long>(blockIdx.x) * levels;
  for (int level = thread; level < levels; level += CRF_THREADS) {
    float sum = 0.0f;
    for (int k = max(-reach, -level); k <= min(reach, levels - 1 - level); ++k)
      sum += level_taps[k < 0 ? -k : k] * sums[level + k];
    node[level] = sum;
  }
}

// Filters along the middle of three axes. Grid: ceil(outer * nodes * inner / CRF_THREADS) blocks.
extern "C" __global__ void __launch_bounds__(CRF_THREADS, 2)
    crf_blur_nodes(const float* __restrict__ grid,  // (outer, nodes, inner)
                   const float* __restrict__ taps,  // (reach + 1)
                   float* __restrict__ out,         // as grid
                   int outer, int nodes, int inner, int reach) {
  const unsigned index = blockIdx.x * CRF_THREADS + threadIdx.x;
  if (index >= static_cast<unsigned>(outer) * nodes * inner) return;
  const int node = static_cast<int>(index / inner % nodes);
  float sum = 0.0f;
  for (int k = max(-reach, -node); k <= min(reach, nodes - 1 - node); ++k)
    sum += taps[k < 0 ? -k : k] * grid[static_cast<long long>(index) + static_cast<long long>(k) * inner];
  out[index] = sum;
}

// scale = sqrt(compat / filter(1)): a term's norm and weight, applied before and after its filter. One of `tall` and `grid`
// is null. Grid: a block for every tile.
extern "C" __global__ void __launch_bounds__(CRF_THREADS, 2)
    crf_scale(const float* __restrict__ tall,  // (H, W)
              const float* __restrict__ taps,  // (reach + 1)
              const float* __restrict__ grid,  // (R, Q, B)
              const unsigned char* __restrict__ image,  // (H, W)
              const int* __restrict__ row_cells, const float* __restrict__ row_weights,
              const int* __restrict__ column_cells, const float* __restrict__ column_weights,
              float* __restrict__ scale,  // (H, W)
              int height, int width, int reach, int columns, int levels, int bin_width, float compat) {
  const Size size{height, width};
  const Place at(size);
  if (at.y >= height || at.x >= width) return;
  const long long pixel = at.pixel;
  const int x = at.x, y = at.y;
  const Nodes down{row_cells, row_weights, nullptr, 0}, across{column_cells, column_weights, nullptr, columns};
  const float total = tall ? smooth_at(tall, taps, reach, size, y, x)
                           : slice_at(grid, down, across, levels, image[pixel] / bin_width, y, x);
  // Every pixel is its own neighbour, so the sum is positive; rounding must not make it less.
  scale[pixel] = sqrtf(compat) / sqrtf(fmaxf(total, TINY));
}

// logits + messages, then the next probabilities; after the last iteration those of every class. A term whose scale is
// null is left out. Grid: a block for every tile.
extern "C" __global__ void __launch_bounds__(CRF_THREADS, 2)
    crf_update(const float* __restrict__ logits,           // (K, H, W)
               const float* __restrict__ tall,             // (C, H, W)
               const float* __restrict__ taps,             // (reach + 1)
               const float* __restrict__ smooth_scale,     // (H, W), or null
               const float* __restrict__ grid,             // (C, R, Q, B)
               const float* __restrict__ bilateral_scale,  // (H, W), or null
               const unsigned char* __restrict__ image,    // (H, W)
               const int* __restrict__ row_cells, const float* __restrict__ row_weights,
               const int* __restrict__ column_cells, const float* __restrict__ column_weights,
               float* __restrict__ values,         // (C, H, W)
               float* __restrict__ probabilities,  // (K, H, W), or null before the last iteration
               int classes, int height, int width, int reach, int rows, int columns, int levels, int bin_width) {
  const Size size{height, width};
  const long long pixels = size.pixels();
  const Place at(size);
  if (at.y >= height || at.x >= width) return;
  const long long pixel = at.pixel;
  const int x = at.x, y = at.y;
  const Nodes down{row_cells, row_weights, nullptr, rows}, across{column_cells, column_weights, nullptr, columns};
  float updated[MOST_CLASSES];
#pragma unroll
  for (int k = 0; k < MOST_CLASSES; ++k) {
    updated[k] = k < classes ? logits[k * pixels + pixel] : 0.0f;
    const int channel = classes == 2 ? 0 : k;
    // Of two classes the first keeps its logit: the message is of the difference.
    if (k >= classes || (classes == 2 && k == 0)) continue;
    if (smooth_scale)
      updated[k] += smooth_scale[pixel] * smooth_at(tall + channel * pixels, taps, reach, size, y, x);
    if (bilateral_scale) {
      const float* own = grid + static_cast<long long>(channel) * rows * columns * levels;
      updated[k] += bilateral_scale[pixel] * slice_at(own, down, across, levels, image[pixel] / bin_width, y, x);
    }
  }
  if (!probabilities) {
    write_probabilities(updated, classes, pixels, pixel, values);
  } else if (classes == 2) {
    // Each from its own exponential: 1 less the other would round small probabilities away.
    probabilities[pixel] = 1.0f / (1.0f + expf(updated[1] - updated[0]));
    probabilities[pixels + pixel] = 1.0f / (1.0f + expf(updated[0] - updated[1]));
  } else {
    write_probabilities(updated, classes, pixels, pixel, probabilities);
  }
}
