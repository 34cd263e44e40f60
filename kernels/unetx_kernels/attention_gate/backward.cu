// The gradients of the neighbourhood gate of attention_gate.cu, in two passes over its inputs.
//
// With g the gradient of the output: p_ij = <g_i, values_j>, delta_i = sum_j a_ij p_ij, q_ij = a_ij (p_ij - delta_i) * scale;
//     query gradient: grad_theta_i = sum_j q_ij phi_j;
//     key gradient: grad_phi_j = sum_i q_ij theta_i, grad_values_j = sum_i a_ij g_i.
// The gradient of the residual is g itself. Windows are symmetric: j is in the window of i where i is in that of j, so the
// second pass gathers too, without atomics, and equal inputs give equal bits. It computes the weights again from the
// logarithm of their sum, which the first pass leaves with delta: two floats a pixel are all that is kept between them.
#include "tile.cuh"

template <typename T, bool CHANNELS_LAST, int K>
__device__ void query_gradient(const T* __restrict__ theta,     // (N, D, H, W) or (N, H, W, D)
                               const T* __restrict__ phi,       // as theta
                               const T* __restrict__ values,    // (N, C, H, W) or (N, H, W, C)
                               const T* __restrict__ gradient,  // as values, of the output
                               T* __restrict__ grad_theta,      // as theta
                               float* __restrict__ log_sums,    // (N, H, W), base 2
                               float* __restrict__ deltas,      // (N, H, W)
                               int images, int hidden, Shape shape, int dilation, float scale) {
  using Block = Window<T, CHANNELS_LAST, K, 1>;
  __shared__ typename Block::Shared shared;
  const Block block(shape.height, shape.width, dilation);
  if (block.tile.image >= images) return;  // the whole block, so no barrier is left waiting
  float weights[1][Block::TAPS], products[1][Block::TAPS];
  block.correlate(weights, shared, theta, phi, hidden);
  const float log_sum = block.softmax(weights[0], 0, scale);
  block.correlate(products, shared, gradient, values, shape.channels);
  float delta = 0.0f;
#pragma unroll
  for (int tap = 0; tap < Block::TAPS; ++tap) delta += weights[0][tap] * products[0][tap];
#pragma unroll
  for (int tap = 0; tap < Block::TAPS; ++tap) weights[0][tap] *= (products[0][tap] - delta) * scale;
  if (block.inside(0)) {
    log_sums[block.place(0)] = log_sum;
    deltas[block.place(0)] = delta;
  }
  block.gather(weights, shared, phi, static_cast<const T*>(nullptr), grad_theta, hidden);
}

template <typename T, bool CHANNELS_LAST, int K>
__device__ void key_gradient(const T* __restrict__ theta,         // (N, D, H, W) or (N, H, W, D)
                             const T* __restrict__ phi,           // as theta
                             const T* __restrict__ values,        // (N, C, H, W) or (N, H, W, C)
                             const T* __restrict__ gradient,      // as values, of the output
                             const float* __restrict__ log_sums,  // (N, H, W), of query_gradient
                             const float* __restrict__ deltas,    // (N, H, W), of query_gradient
                             T* __restrict__ grad_phi,            // as theta
                             T* __restrict__ grad_values,         // as values
                             int images, int hidden, Shape shape, int dilation, float scale) {
  using Block = Window<T, CHANNELS_LAST, K, 1>;
  __shared__ typename Block::Shared shared;
  const Block block(shape.height, shape.width, dilation);
  if (block.tile.image >= images) return;  // the whole block, so no barrier is left waiting
  float weights[1][Block::TAPS], products[1][Block::TAPS];
  block.correlate(weights, shared, phi, theta, hidden);
#pragma unroll
  for (int tap = 0; tap < Block::TAPS; ++tap) {
    const bool counts = block.inside(0) && block.takes_part(0, tap);
    weights[0][tap] = counts ? exp2f(weights[0][tap] * (scale * LOG2_E) - log_sums[block.place_of(0, tap)]) : 0.0f;
  }
  block.gather(weights, shared, gradient, static_cast<const T*>(nullptr), grad_values, shape.channels);
  block.correlate(products, shared, values, gradient, shape.channels);
#pragma unroll
  for (int tap = 0; tap < Block::TAPS; ++tap) {
    const bool counts = block.inside(0) && block.takes_part(0, tap);
    weights[0][tap] *= counts ? (products[0][tap] - deltas[block.place_of(0, tap)]) * scale : 0.0f;
  }
  block.gather(weights, shared, theta, static_cast<const T*>(nullptr), grad_phi, hidden);
}

#define UNETX_QUERY_GRADIENT(NAME, T, CHANNELS_LAST, K)                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS, K == 7 ? BLOCKS / 2 : BLOCKS)                                             \
      NAME(const T* __restrict__ theta,    /* (N, D, H, W) or (N, H, W, D) */                                       \
           const T* __restrict__ phi,      /* as theta */                                                           \
           const T* __restrict__ values,   /* (N, C, H, W) or (N, H, W, C) */                                       \
           const T* __restrict__ gradient, /* as values */                                                          \
           T* __restrict__ grad_theta,     /* as theta */                                                           \
           float* __restrict__ log_sums,   /* (N, H, W) */                                                          \
           float* __restrict__ deltas,     /* (N, H, W) */                                                          \
           int images, int hidden, int channels, int height, int width, int dilation, float scale) {                \
    query_gradient<T, CHANNELS_LAST, K>(theta, phi, values, gradient, grad_theta, log_sums, deltas, images, hidden, \
                                        Shape{channels, height, width}, dilation, scale);                           \
  }

#define UNETX_KEY_GRADIENT(NAME, T, CHANNELS_LAST, K)                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS, K == 7 ? BLOCKS / 2 : BLOCKS)                                             \
      NAME(const T* __restrict__ theta,        /* (N, D, H, W) or (N, H, W, D) */                                   \
           const T* __restrict__ phi,          /* as theta */                                                       \
           const T* __restrict__ values,       /* (N, C, H, W) or (N, H, W, C) */                                   \
           const T* __restrict__ gradient,     /* as values */                                                      \
           const float* __restrict__ log_sums, /* (N, H, W) */                                                      \
           const float* __restrict__ deltas,   /* (N, H, W) */                                                      \
           T* __restrict__ grad_phi,           /* as theta */                                                       \
           T* __restrict__ grad_values,        /* as values */                                                      \
           int images, int hidden, int channels, int height, int width, int dilation, float scale) {                \
    key_gradient<T, CHANNELS_LAST, K>(theta, phi, values, gradient, log_sums, deltas, grad_phi, grad_values,        \
                                      images, hidden, Shape{channels, height, width}, dilation, scale);             \
  }

#if UNETX_HAS_WINDOW(3)
#define UNETX_BACKWARD_3(TYPE, T, LAYOUT, CHANNELS_LAST) \
  UNETX_QUERY_GRADIENT(neighbourhood_query_gradient_##TYPE##_##LAYOUT##_k3, T, CHANNELS_LAST, 3) \
  UNETX_KEY_GRADIENT(neighbourhood_key_gradient_##TYPE##_##LAYOUT##_k3, T, CHANNELS_LAST, 3)
#else
#define UNETX_BACKWARD_3(TYPE, T, LAYOUT, CHANNELS_LAST)
#endif
#if UNETX_HAS_WINDOW(5)
#define UNETX_BACKWARD_5(TYPE, T, LAYOUT, CHANNELS_LAST) \
  UNETX_QUERY_GRADIENT(neighbourhood_query_gradient_##TYPE##_##LAYOUT##_k5, T, CHANNELS_LAST, 5) \
  UNETX_KEY_GRADIENT(neighbourhood_key_gradient_##TYPE##_##LAYOUT##_k5, T, CHANNELS_LAST, 5)
#else
#define UNETX_BACKWARD_5(TYPE, T, LAYOUT, CHANNELS_LAST)
#endif
#if UNETX_HAS_WINDOW(7)
#define UNETX_BACKWARD_7(TYPE, T, LAYOUT, CHANNELS_LAST) \
  UNETX_QUERY_GRADIENT(neighbourhood_query_gradient_##TYPE##_##LAYOUT##_k7, T, CHANNELS_LAST, 7) \
  UNETX_KEY_GRADIENT(neighbourhood_key_gradient_##TYPE##_##LAYOUT##_k7, T, CHANNELS_LAST, 7)
#else
#define UNETX_BACKWARD_7(TYPE, T, LAYOUT, CHANNELS_LAST)
#endif

#if UNETX_HAS_FORMAT(1)
UNETX_BACKWARD_3(f32, float, nchw, false)
UNETX_BACKWARD_5(f32, float, nchw, false)
UNETX_BACKWARD_7(f32, float, nchw, false)
#endif
#if UNETX_HAS_FORMAT(2)
UNETX_BACKWARD_3(f32, float, nhwc, true)
UNETX_BACKWARD_5(f32, float, nhwc, true)
UNETX_BACKWARD_7(f32, float, nhwc, true)
#endif
#if UNETX_HAS_FORMAT(3)
UNETX_BACKWARD_3(f16, half, nchw, false)
UNETX_BACKWARD_5(f16, half, nchw, false)
UNETX_BACKWARD_7(f16, half, nchw, false)
#endif
#if UNETX_HAS_FORMAT(4)
UNETX_BACKWARD_3(f16, half, nhwc, true)
UNETX_BACKWARD_5(f16, half, nhwc, true)
UNETX_BACKWARD_7(f16, half, nhwc, true)
#endif
