// Reads cases from stdin, runs each through the kernel of attention_gate.cu and writes the results to stdout.
//
// A case: int32 kind (0 neighbourhood, 1 additive), is_half, channels_last, window, images, hidden, channels, height,
// width, dilation, coarse_height, coarse_width, has_residual, shift (elements by which every pointer is off a
// 16-byte border), blocks; float number (scale or psi_bias); then the tensors in the order of the kernel's arguments.
#include "cuda_on_host.h"

// Chosen by the first argument, so that one program serves every test.
static int planted_defect = 0;
#define UNETX_PLANTED_DEFECT planted_defect

#include KERNEL_SOURCE

struct Case {
  int kind, is_half, channels_last, window, images, hidden, channels, height, width, dilation, coarse_height,
      coarse_width, has_residual, shift, blocks;
  float number;
};

// Exactly as large as its tensor, so that the sanitizer sees the first element beyond it.
template <typename T> struct Buffer {
  T* memory = nullptr;
  T* data = nullptr;
  Buffer(const Case& c, long long elements) {
    if (posix_memalign(reinterpret_cast<void**>(&memory), 16, (elements + c.shift) * sizeof(T))) std::abort();
    data = memory + c.shift;
  }
  void read(long long elements) {
    if (std::fread(data, sizeof(T), elements, stdin) != static_cast<size_t>(elements)) std::abort();
  }
  ~Buffer() { std::free(memory); }
};

#define NEIGHBOURHOOD(TYPE, LAYOUT)                                                     \
  (c.window == 3   ? neighbourhood_gate_##TYPE##_##LAYOUT##_k3                          \
   : c.window == 5 ? neighbourhood_gate_##TYPE##_##LAYOUT##_k5                          \
                   : neighbourhood_gate_##TYPE##_##LAYOUT##_k7)

template <typename T, typename Neighbourhood, typename Additive>
void run(const Case& c, Neighbourhood neighbourhood, Additive additive) {
  const long long pixels = static_cast<long long>(c.images) * c.height * c.width;
  const long long coarse_pixels = static_cast<long long>(c.images) * c.coarse_height * c.coarse_width;
  const dim3 block{static_cast<unsigned>(TILE_WIDTH), static_cast<unsigned>(TILE_HEIGHT), 1};
  const dim3 grid{static_cast<unsigned>(c.blocks), 1, 1};
  Buffer<T> out(c, pixels * c.channels), values(c, pixels * c.channels), residual(c, pixels * c.channels);
  T* const added = c.has_residual ? residual.data : nullptr;
  if (c.kind == 0) {
    Buffer<T> theta(c, pixels * c.hidden), phi(c, pixels * c.hidden);
    theta.read(pixels * c.hidden);
    phi.read(pixels * c.hidden);
    values.read(pixels * c.channels);
    if (added) residual.read(pixels * c.channels);
    host::launch(grid, block, [&] {
      neighbourhood(theta.data, phi.data, values.data, added, out.data, c.images, c.hidden, c.channels, c.height,
                    c.width, c.dilation, c.number);
    });
  } else {
    Buffer<T> skip(c, pixels * c.hidden), coarse(c, coarse_pixels * c.hidden), psi(c, c.hidden);
    values.read(pixels * c.channels);
    skip.read(pixels * c.hidden);
    coarse.read(coarse_pixels * c.hidden);
    psi.read(c.hidden);
    if (added) residual.read(pixels * c.channels);
    host::launch(grid, block, [&] {
      additive(values.data, skip.data, coarse.data, psi.data, added, out.data, c.images, c.hidden, c.channels,
               c.height, c.width, c.coarse_height, c.coarse_width, c.number);
    });
  }
  std::fwrite(out.data, sizeof(T), pixels * c.channels, stdout);
}

int main(int, char** arguments) {
  planted_defect = std::atoi(arguments[1]);
  Case c;
  while (std::fread(&c, sizeof c, 1, stdin) == 1) {
    if (c.is_half && c.channels_last) run<half>(c, NEIGHBOURHOOD(f16, nhwc), additive_gate_f16_nhwc);
    else if (c.is_half) run<half>(c, NEIGHBOURHOOD(f16, nchw), additive_gate_f16_nchw);
    else if (c.channels_last) run<float>(c, NEIGHBOURHOOD(f32, nhwc), additive_gate_f32_nhwc);
    else run<float>(c, NEIGHBOURHOOD(f32, nchw), additive_gate_f32_nchw);
  }
  return 0;
}
