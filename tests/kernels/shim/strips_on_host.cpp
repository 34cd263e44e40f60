// Reads cases from stdin, runs each through the kernels of STRIPS_SOURCE and writes the results to stdout.
//
// A case: int32 window, images, hidden, channels, height, width, has_residual, rows, group, three of the
// grid, shared_bytes; float
// scale; then theta, phi, values and, where there is one, the residual.
#include "cuda_on_host.h"
#include "warp_on_host.h"

static int planted_defect = 0;
#define UNETX_PLANTED_DEFECT planted_defect

#include STRIPS_SOURCE

struct Case {
  int window, images, hidden, channels, height, width, has_residual, rows, group, grid[3], shared_bytes;
  float scale;
};

// Exactly as large as its tensor, so that the sanitizer sees the first element beyond it.
struct Tensor {
  half* data = nullptr;
  long long elements;
  explicit Tensor(long long elements) : elements(elements) {
    if (posix_memalign(reinterpret_cast<void**>(&data), 16, elements * sizeof(half))) std::abort();
  }
  void read() {
    if (std::fread(data, sizeof(half), elements, stdin) != static_cast<size_t>(elements)) std::abort();
  }
  ~Tensor() { std::free(data); }
};

int main(int, char** arguments) {
  planted_defect = std::atoi(arguments[1]);
  Case c;
  while (std::fread(&c, sizeof c, 1, stdin) == 1) {
    const long long pixels = static_cast<long long>(c.images) * c.height * c.width;
    Tensor theta(pixels * c.hidden), phi(pixels * c.hidden), values(pixels * c.channels),
        residual(pixels * c.channels), out(pixels * c.channels);
    theta.read();
    phi.read();
    values.read();
    if (c.has_residual) residual.read();
    const auto kernel = c.window == 3 ? neighbourhood_gate_strips_k3 : neighbourhood_gate_strips_k5;
    const dim3 block{static_cast<unsigned>(STRIP_THREADS), 1, 1};
    const dim3 grid{static_cast<unsigned>(c.grid[0]), static_cast<unsigned>(c.grid[1]), static_cast<unsigned>(c.grid[2])};
    host::dynamic_bytes = c.shared_bytes;
    host::launch(grid, block, [&] {
      kernel(theta.data, phi.data, values.data, c.has_residual ? residual.data : nullptr, out.data, c.hidden, c.channels,
             c.height, c.width, c.rows, c.group, c.scale);
    });
    std::fwrite(out.data, sizeof(half), out.elements, stdout);
  }
  return 0;
}
