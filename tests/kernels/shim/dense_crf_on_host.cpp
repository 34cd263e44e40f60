// Reads buffers and launches from stdin, runs the launches through the kernels of KERNEL_SOURCE and writes the first
// buffer to stdout.
//
// int32 count of buffers, each int64 bytes and its content; int32 count of launches, each int32 kernel, blocks, threads and
// count of arguments; an argument is int32 kind (0 null, 1 buffer, 2 integer, 3 float) and float64 value.
#include "cuda_on_host.h"

// Chosen by the first argument, so that one program serves every test.
static int planted_defect = 0;
#define UNETX_PLANTED_DEFECT planted_defect

#include KERNEL_SOURCE

template <typename T> T read() {
  T value;
  if (std::fread(&value, sizeof value, 1, stdin) != 1) std::abort();
  return value;
}

struct Argument {
  int kind;
  double value;
};

// Exactly as large as their content, so that the sanitizer sees the first byte beyond it.
static std::vector<std::pair<char*, size_t>> buffers;

struct Arguments {
  std::vector<Argument> all;
  size_t next = 0;
  template <typename T> operator T*() {
    const Argument& a = all.at(next++);
    if (a.kind > 1) std::abort();
    return a.kind ? reinterpret_cast<T*>(buffers.at(static_cast<size_t>(a.value)).first) : nullptr;
  }
  operator int() {
    const Argument& a = all.at(next++);
    if (a.kind != 2) std::abort();
    return static_cast<int>(a.value);
  }
  operator float() {
    const Argument& a = all.at(next++);
    if (a.kind != 3) std::abort();
    return static_cast<float>(a.value);
  }
};

// Braces evaluate the arguments from the first to the last.
template <typename... T> void launch(void (*kernel)(T...), dim3 grid, dim3 block, Arguments& arguments) {
  const std::tuple<T...> given{static_cast<T>(arguments)...};
  if (arguments.next != arguments.all.size()) std::abort();
  host::launch(grid, block, [&] { std::apply(kernel, given); });
}

int main(int, char** arguments) {
  planted_defect = std::atoi(arguments[1]);
  host::last_thread_first = planted_defect < 0;  // no defect: the threads of a block in the other order
  for (int count = read<int>(); count > 0; --count) {
    const size_t bytes = read<long long>();
    char* memory = static_cast<char*>(std::malloc(bytes));
    if (std::fread(memory, 1, bytes, stdin) != bytes) std::abort();
    buffers.emplace_back(memory, bytes);
  }
  for (int count = read<int>(); count > 0; --count) {
    const int kernel = read<int>(), blocks = read<int>(), threads = read<int>();
    Arguments given;
    for (int left = read<int>(); left > 0; --left) {
      const int kind = read<int>();
      given.all.push_back({kind, read<double>()});
    }
    const dim3 grid{static_cast<unsigned>(blocks), 1, 1}, block{static_cast<unsigned>(threads), 1, 1};
    switch (kernel) {
      case 0: launch(crf_start, grid, block, given); break;
      case 1: launch(crf_smooth_rows, grid, block, given); break;
      case 2: launch(crf_splat, grid, block, given); break;
      case 3: launch(crf_blur_nodes, grid, block, given); break;
      case 4: launch(crf_scale, grid, block, given); break;
      default: launch(crf_update, grid, block, given);
    }
  }
  std::fwrite(buffers[0].first, 1, buffers[0].second, stdout);
  return 0;
}
