// The two attention gates of the `attention` variant, forward, each in one pass over its inputs.
//
// neighbourhood_gate: s_ij = <theta_i, phi_j> * scale, a = softmax_j(s), out_i = sum_j a_ij values_j (+ residual_i)
//     for j in the K x K window round pixel i; neighbours outside the image take no part.
// additive_gate: out = sigmoid(<psi, relu(projected_skip + up(projected_coarse))> + psi_bias) * values (+ residual).
//
// theta, phi, projections: D channels; values, residual, out: C channels. Nothing but inputs and the output is in
// global memory: the K * K weights of a pixel live in registers, so one softmax over registers does what an online
// softmax would.
#include "matrix_gate.cuh"
#include "tile.cuh"

template <typename T, bool CHANNELS_LAST, int K, int ROWS>
__device__ void neighbourhood_gate_by_threads(const T* __restrict__ theta,     // (N, D, H, W) or (N, H, W, D)
                                   const T* __restrict__ phi,       // as theta
                                   const T* __restrict__ values,    // (N, C, H, W) or (N, H, W, C)
                                   const T* __restrict__ residual,  // as values, or null
                                   T* __restrict__ out,             // as values
                                   int images, int hidden, Shape shape, int dilation, float scale) {
  using Block = Window<T, CHANNELS_LAST, K, ROWS>;
  __shared__ typename Block::Shared shared;
  const Block block(shape.height, shape.width, dilation);
  if (block.tile.image >= images) return;  // the whole block, so no barrier is left waiting
  float weights[ROWS][Block::TAPS];
  block.correlate(weights, shared, theta, phi, hidden);
#pragma unroll
  for (int line = 0; line < ROWS; ++line) block.softmax(weights[line], line, scale);
  block.gather(weights, shared, values, residual, out, shape.channels);
}

// Where a pixel of the fine grid lies on the coarse one, with half-pixel centres.
struct Between {
  int low, high;
  float part;
  __device__ Between(int target, int source_size, int target_size) {
    const float position = (target + 0.5f) * (static_cast<float>(source_size) / target_size) - 0.5f;
    const float clamped = fmaxf(position, 0.0f);
    low = static_cast<int>(clamped) < source_size - 1 ? static_cast<int>(clamped) : source_size - 1;
    high = low + 1 < source_size ? low + 1 : source_size - 1;
    part = clamped - low;
  }
};

// Grid: ceil(N * H * W / THREADS) blocks of TILE_WIDTH x TILE_HEIGHT threads; a thread owns one pixel.
template <typename T, bool CHANNELS_LAST>
__device__ void additive_gate(const T* __restrict__ values,            // (N, C, H, W) or (N, H, W, C)
                              const T* __restrict__ projected_skip,    // (N, D, H, W) or (N, H, W, D)
                              const T* __restrict__ projected_coarse,  // (N, D, h, w) or (N, h, w, D)
                              const T* __restrict__ psi,               // (D)
                              const T* __restrict__ residual,          // as values, or null
                              T* __restrict__ out,                     // as values
                              int images, Shape hidden, Shape coarse, Shape shape, float psi_bias) {
  const long long pixels = static_cast<long long>(images) * shape.height * shape.width;
  const long long pixel = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.y * TILE_WIDTH + threadIdx.x;
  if (pixel >= pixels) return;
  const int x = static_cast<int>(pixel % shape.width), y = static_cast<int>(pixel / shape.width % shape.height);
  const long long image = pixel / shape.width / shape.height;
  const Between across(x, coarse.width, shape.width), down(y, coarse.height, shape.height);

  float score = psi_bias;
#pragma unroll 1
  for (int first = 0; first < hidden.channels; first += CHUNK) {
    T fine[CHUNK], corner[4][CHUNK];
    load_pixel<T, CHANNELS_LAST>(fine, projected_skip, hidden, image, first, y, x);
    load_pixel<T, CHANNELS_LAST>(corner[0], projected_coarse, coarse, image, first, down.low, across.low);
    load_pixel<T, CHANNELS_LAST>(corner[1], projected_coarse, coarse, image, first, down.low, across.high);
    load_pixel<T, CHANNELS_LAST>(corner[2], projected_coarse, coarse, image, first, down.high, across.low);
    load_pixel<T, CHANNELS_LAST>(corner[3], projected_coarse, coarse, image, first, down.high, across.high);
#pragma unroll
    for (int channel = 0; channel < CHUNK; ++channel) {
      if (first + channel >= hidden.channels) continue;
      const float upper = to_float(corner[0][channel]) * (1.0f - across.part) + to_float(corner[1][channel]) * across.part;
      const float lower = to_float(corner[2][channel]) * (1.0f - across.part) + to_float(corner[3][channel]) * across.part;
      const float feature = to_float(fine[channel]) + upper * (1.0f - down.part) + lower * down.part;
      score += to_float(psi[first + channel]) * fmaxf(feature, 0.0f);
    }
  }
  const float weight = 1.0f / (1.0f + exp2f(-LOG2_E * score));
#pragma unroll 1
  for (int first = 0; first < shape.channels; first += CHUNK) {
    T value[CHUNK];
    float weighted[CHUNK];
    load_pixel<T, CHANNELS_LAST>(value, values, shape, image, first, y, x);
#pragma unroll
    for (int channel = 0; channel < CHUNK; ++channel) weighted[channel] = weight * to_float(value[channel]);
    store_pixel<T, CHANNELS_LAST>(out, residual, weighted, shape, image, first, y, x);
  }
}

// fp32 has no products on the tensor cores that keep its accuracy.
template <typename T, bool CHANNELS_LAST, int K, int ROWS>
__device__ void neighbourhood_gate(const T* __restrict__ theta, const T* __restrict__ phi, const T* __restrict__ values,
                                   const T* __restrict__ residual, T* __restrict__ out, int images, int hidden,
                                   Shape shape, int dilation, float scale) {
  if constexpr (sizeof(T) == sizeof(half))
    neighbourhood_gate_by_matrices<CHANNELS_LAST, K>(theta, phi, values, residual, out, images, hidden, shape, dilation,
                                                     scale);
  else
    neighbourhood_gate_by_threads<T, CHANNELS_LAST, K, ROWS>(theta, phi, values, residual, out, images, hidden, shape,
                                                             dilation, scale);
}

// The K * K weights of a pixel stay in registers: in fp32 two pixels a thread where they fit without spilling, else one.
// The least number of blocks on a multiprocessor is what keeps ptxas from spilling: without it sm_90 trades spills for
// occupancy in K = 5, with it they spill in K = 7, where 0 leaves the choice to ptxas, and in the fp16 of K = 5 on sm_75
// and, in NHWC, in blocks of 128 threads, where one block less leaves enough.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define UNETX_BLOCKS(T, CHANNELS_LAST, K) (K == 7 ? 0 : K == 5 && sizeof(T) == 2 ? BLOCKS / 2 : BLOCKS)
#else
#define UNETX_BLOCKS(T, CHANNELS_LAST, K) \
  (K == 7 ? 0 : K == 5 && sizeof(T) == 2 && CHANNELS_LAST && BLOCKS > 2 ? BLOCKS - 1 : BLOCKS)
#endif
#define UNETX_NEIGHBOURHOOD(NAME, T, CHANNELS_LAST, K, ROWS)                                                          \
  extern "C" __global__ void __launch_bounds__(THREADS, UNETX_BLOCKS(T, CHANNELS_LAST, K))                \
      NAME(const T* __restrict__ theta,    /* (N, D, H, W) or (N, H, W, D) */                                        \
           const T* __restrict__ phi,      /* as theta */                                                            \
           const T* __restrict__ values,   /* (N, C, H, W) or (N, H, W, C) */                                        \
           const T* __restrict__ residual, /* as values, or null */                                                  \
           T* __restrict__ out,            /* as values */                                                           \
           int images, int hidden, int channels, int height, int width, int dilation, float scale) {                 \
    neighbourhood_gate<T, CHANNELS_LAST, K, ROWS>(theta, phi, values, residual, out, images, hidden,                 \
                                                  Shape{channels, height, width}, dilation, scale);                  \
  }

#define UNETX_ADDITIVE(NAME, T, CHANNELS_LAST)                                                                        \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                           \
      NAME(const T* __restrict__ values,           /* (N, C, H, W) or (N, H, W, C) */                                \
           const T* __restrict__ projected_skip,   /* (N, D, H, W) or (N, H, W, D) */                                \
           const T* __restrict__ projected_coarse, /* (N, D, h, w) or (N, h, w, D) */                                \
           const T* __restrict__ psi,              /* (D) */                                                         \
           const T* __restrict__ residual,         /* as values, or null */                                          \
           T* __restrict__ out,                    /* as values */                                                   \
           int images, int hidden, int channels, int height, int width, int coarse_height, int coarse_width,         \
           float psi_bias) {                                                                                         \
    additive_gate<T, CHANNELS_LAST>(values, projected_skip, projected_coarse, psi, residual, out, images,            \
                                    Shape{hidden, height, width}, Shape{hidden, coarse_height, coarse_width},        \
                                    Shape{channels, height, width}, psi_bias);                                       \
  }

#if UNETX_HAS_WINDOW(0)
#define UNETX_FORWARD_0(TYPE, T, LAYOUT, CHANNELS_LAST) \
  UNETX_ADDITIVE(additive_gate_##TYPE##_##LAYOUT, T, CHANNELS_LAST)
#else
#define UNETX_FORWARD_0(TYPE, T, LAYOUT, CHANNELS_LAST)
#endif
#if UNETX_HAS_WINDOW(3)
#define UNETX_FORWARD_3(TYPE, T, LAYOUT, CHANNELS_LAST) \
  UNETX_NEIGHBOURHOOD(neighbourhood_gate_##TYPE##_##LAYOUT##_k3, T, CHANNELS_LAST, 3, 2)
#else
#define UNETX_FORWARD_3(TYPE, T, LAYOUT, CHANNELS_LAST)
#endif
#if UNETX_HAS_WINDOW(5)
#define UNETX_FORWARD_5(TYPE, T, LAYOUT, CHANNELS_LAST) \
  UNETX_NEIGHBOURHOOD(neighbourhood_gate_##TYPE##_##LAYOUT##_k5, T, CHANNELS_LAST, 5, 1)
#else
#define UNETX_FORWARD_5(TYPE, T, LAYOUT, CHANNELS_LAST)
#endif
#if UNETX_HAS_WINDOW(7)
#define UNETX_FORWARD_7(TYPE, T, LAYOUT, CHANNELS_LAST) \
  UNETX_NEIGHBOURHOOD(neighbourhood_gate_##TYPE##_##LAYOUT##_k7, T, CHANNELS_LAST, 7, 1)
#else
#define UNETX_FORWARD_7(TYPE, T, LAYOUT, CHANNELS_LAST)
#endif

#if UNETX_HAS_FORMAT(1)
UNETX_FORWARD_0(f32, float, nchw, false)
UNETX_FORWARD_3(f32, float, nchw, false)
UNETX_FORWARD_5(f32, float, nchw, false)
UNETX_FORWARD_7(f32, float, nchw, false)
#endif
#if UNETX_HAS_FORMAT(2)
UNETX_FORWARD_0(f32, float, nhwc, true)
UNETX_FORWARD_3(f32, float, nhwc, true)
UNETX_FORWARD_5(f32, float, nhwc, true)
UNETX_FORWARD_7(f32, float, nhwc, true)
#endif
#if UNETX_HAS_FORMAT(3)
UNETX_FORWARD_0(f16, half, nchw, false)
UNETX_FORWARD_3(f16, half, nchw, false)
UNETX_FORWARD_5(f16, half, nchw, false)
UNETX_FORWARD_7(f16, half, nchw, false)
#endif
#if UNETX_HAS_FORMAT(4)
UNETX_FORWARD_0(f16, half, nhwc, true)
UNETX_FORWARD_3(f16, half, nhwc, true)
UNETX_FORWARD_5(f16, half, nhwc, true)
UNETX_FORWARD_7(f16, half, nhwc, true)
#endif
