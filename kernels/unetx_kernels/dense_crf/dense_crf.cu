// Mean-field inference in the fully connected CRF for a grey image: one iteration is five kernels, all on one stream.
//
// crf_start: probabilities from logits. Then, for every iteration:
//   crf_smooth_rows, crf_splat (with the blur along intensity), crf_blur_nodes twice, crf_update.
// crf_update filters along columns, reads the grid at every pixel, adds the logits and makes the next probabilities, so
// that no message is ever in memory. crf_scale makes the two norms before the first iteration, from an image of ones.
//
// K classes, C channels: two classes are one channel, the difference of their probabilities (messages of a Potts model are
// linear in them); else C = K. H x W pixels; a grid of R x Q nodes and B levels of intensity. Sums of a node's pixels are
// made by atomics in shared memory: equal inputs give results that are equal up to float rounding.
#ifdef UNETX_HOST_SHIM
#define UNETX_DEFECT UNETX_PLANTED_DEFECT  // for the test of the tests; 1: a barrier lacks, 3: a bounds guard lacks
#else
#define UNETX_DEFECT 0
#endif

constexpr int CRF_THREADS = 256;
constexpr int MOST_CLASSES = 8;
constexpr int MOST_LEVELS = 256;
constexpr float TINY = 1.17549435e-38f;

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

__device__ inline int channels_of(int classes) { return classes == 2 ? 1 : classes; }

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

// Grid: ceil(H * W / CRF_THREADS) blocks.
extern "C" __global__ void __launch_bounds__(CRF_THREADS, 2)
    crf_start(const float* __restrict__ logits,  // (K, H, W)
              float* __restrict__ values,        // (C, H, W)
              int classes, int height, int width) {
  const long long pixels = Size{height, width}.pixels();
  const long long pixel = static_cast<long long>(blockIdx.x) * CRF_THREADS + threadIdx.x;
  if (pixel >= pixels) return;
  float own[MOST_CLASSES];
#pragma unroll
  for (int k = 0; k < MOST_CLASSES; ++k) own[k] = k < classes ? logits[k * pixels + pixel] : 0.0f;
  write_probabilities(own, classes, pixels, pixel, values);
}

// Grid: ceil(C * H * W / CRF_THREADS) blocks.
extern "C" __global__ void __launch_bounds__(CRF_THREADS, 2)
    crf_smooth_rows(const float* __restrict__ values,  // (C, H, W), or null for ones
                    const float* __restrict__ scale,   // (H, W), or null for ones
                    const float* __restrict__ taps,    // (reach + 1)
                    float* __restrict__ tall,          // (C, H, W)
                    int channels, int height, int width, int reach) {
  const long long pixels = Size{height, width}.pixels();
  const long long index = static_cast<long long>(blockIdx.x) * CRF_THREADS + threadIdx.x;
  if (index >= channels * pixels) return;
  const int x = static_cast<int>(index % width);
  const long long pixel = index % pixels;
  float sum = 0.0f;
  for (int k = -reach; k <= reach; ++k) {
    if (x + k < 0 || x + k >= width) continue;
    const float value = (values ? values[index + k] : 1.0f) * (scale ? scale[pixel + k] : 1.0f);
    sum += taps[k < 0 ? -k : k] * value;
  }
  tall[index] = sum;
}

// Grid: R * Q * C blocks; a block makes the B levels of one node.
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
  __shared__ float sums[MOST_LEVELS];
  const int thread = threadIdx.x;
  const int column = blockIdx.x % columns, row = blockIdx.x / columns % rows;
  const long long channel = blockIdx.x / columns / rows;
  for (int level = thread; level < levels; level += CRF_THREADS) sums[level] = 0.0f;
  __syncthreads();
  const int top = row_starts[row > 0 ? row - 1 : 0], bottom = row_starts[row + 1 < rows ? row + 1 : rows - 1];
  const int left = column_starts[column > 0 ? column - 1 : 0];
  const int right = column_starts[column + 1 < columns ? column + 1 : columns - 1];
  const long long pixels = Size{height, width}.pixels();
  const int count = (bottom - top) * (right - left);
  for (int index = thread; index < count; index += CRF_THREADS) {
    const int y = top + index / (right - left), x = left + index % (right - left);
    const long long pixel = static_cast<long long>(y) * width + x;
    const float down = row_cells[y] == row ? 1.0f - row_weights[y] : row_weights[y];
    const float across = column_cells[x] == column ? 1.0f - column_weights[x] : column_weights[x];
    const float value = (values ? values[channel * pixels + pixel] : 1.0f) * (scale ? scale[pixel] : 1.0f);
    atomicAdd(&sums[image[pixel] / bin_width], down * across * value);
  }
  if (UNETX_DEFECT != 1) __syncthreads();
  float* const node = grid + static_cast<long long>(blockIdx.x) * levels;
  for (int level = thread; level < levels; level += CRF_THREADS) {
    float sum = 0.0f;
    for (int k = -reach; k <= reach; ++k)
      if (level + k >= 0 && level + k < levels) sum += level_taps[k < 0 ? -k : k] * sums[level + k];
    node[level] = sum;
  }
}

// Filters along the middle of three axes. Grid: ceil(outer * nodes * inner / CRF_THREADS) blocks.
extern "C" __global__ void __launch_bounds__(CRF_THREADS, 2)
    crf_blur_nodes(const float* __restrict__ grid,  // (outer, nodes, inner)
                   const float* __restrict__ taps,  // (reach + 1)
                   float* __restrict__ out,         // as grid
                   int outer, int nodes, int inner, int reach) {
  const long long index = static_cast<long long>(blockIdx.x) * CRF_THREADS + threadIdx.x;
  if (index >= static_cast<long long>(outer) * nodes * inner) return;
  const int node = static_cast<int>(index / inner % nodes);
  float sum = 0.0f;
  for (int k = -reach; k <= reach; ++k)
    if (node + k >= 0 && node + k < nodes) sum += taps[k < 0 ? -k : k] * grid[index + static_cast<long long>(k) * inner];
  out[index] = sum;
}

// scale = sqrt(compat / filter(1)): a term's norm and weight, applied before and after its filter. One of `tall` and `grid`
// is null. Grid: ceil(H * W / CRF_THREADS) blocks.
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
  const long long pixel = static_cast<long long>(blockIdx.x) * CRF_THREADS + threadIdx.x;
  if (pixel >= size.pixels()) return;
  const int x = static_cast<int>(pixel % width), y = static_cast<int>(pixel / width);
  const Nodes down{row_cells, row_weights, nullptr, 0}, across{column_cells, column_weights, nullptr, columns};
  const float total = tall ? smooth_at(tall, taps, reach, size, y, x)
                           : slice_at(grid, down, across, levels, image[pixel] / bin_width, y, x);
  // Every pixel is its own neighbour, so the sum is positive; rounding must not make it less.
  scale[pixel] = sqrtf(compat) / sqrtf(fmaxf(total, TINY));
}

// logits + messages, then the next probabilities; after the last iteration those of every class. A term whose scale is
// null is left out. Grid: ceil(H * W / CRF_THREADS) blocks.
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
  const long long pixel = static_cast<long long>(blockIdx.x) * CRF_THREADS + threadIdx.x;
  if (pixel >= pixels) return;
  const int x = static_cast<int>(pixel % width), y = static_cast<int>(pixel / width);
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
