// The neighbourhood gate as TensorRT starts it from an engine: inputs, whole numbers and outputs, in that order, and no
// fractions. The scale is therefore computed from D, as the gate's definition has it. NCHW, no dilation, no residual.
#include "attention_gate.cu"

#define UNETX_PLUGIN(NAME, T, K, ROWS)                                                                           \
  extern "C" __global__ void __launch_bounds__(THREADS, UNETX_BLOCKS(T, false, K))                                   \
      NAME(const T* __restrict__ theta,  /* (N, D, H, W) */                                                      \
           const T* __restrict__ phi,    /* (N, D, H, W) */                                                      \
           const T* __restrict__ values, /* (N, C, H, W) */                                                      \
           int images, int hidden, int channels, int height, int width, T* __restrict__ out /* (N, C, H, W) */) { \
    neighbourhood_gate<T, false, K, ROWS>(theta, phi, values, static_cast<const T*>(nullptr), out, images, hidden, \
                                          Shape{channels, height, width}, 1, 1.0f / sqrtf(hidden));              \
  }

#if UNETX_PLUGIN_HALF
#define UNETX_PLUGIN_TYPE half
#else
#define UNETX_PLUGIN_TYPE float
#endif

#if UNETX_PLUGIN_WINDOW == 3
UNETX_PLUGIN(attention_gate_plugin, UNETX_PLUGIN_TYPE, 3, 2)
#elif UNETX_PLUGIN_WINDOW == 5
UNETX_PLUGIN(attention_gate_plugin, UNETX_PLUGIN_TYPE, 5, 1)
#else
UNETX_PLUGIN(attention_gate_plugin, UNETX_PLUGIN_TYPE, 7, 1)
#endif
