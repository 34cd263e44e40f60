// As much of CUDA as the kernels use, on one host thread: every CUDA thread of a block is a fiber with a stack of its
// own. A warp runs until all of its threads wait at __syncthreads(), then the next warp does, in turns whose order is
// reversed after every barrier. A barrier that is missing therefore shows as a wrong result in every run, and one that some
// threads do not reach ends the run, as does a function of the whole warp that some of its threads do not call. Copies to
// shared memory arrive when they are waited for, not before. Blocks run one after another.
#pragma once
#define UNETX_HOST_SHIM

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include <sanitizer/common_interface_defs.h>
#include <ucontext.h>

using std::size_t;

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)

struct float2 { float x, y; };
struct half { _Float16 value; };
struct half2 { half x, y; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };

struct uint2 { unsigned x, y; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float __half2float(half value) { return static_cast<float>(value.value); }
inline half __float2half_rn(float value) { return {static_cast<_Float16>(value)}; }
inline float2 __half22float2(half2 value) { return {__half2float(value.x), __half2float(value.y)}; }
inline half2 __halves2half2(half x, half y) { return {x, y}; }

inline int atomicAdd(int* place, int value) { return (*place += value) - value; }
inline int atomicMax(int* place, int value) { return std::exchange(*place, *place > value ? *place : value); }
inline int __float_as_int(float value) { int bits; std::memcpy(&bits, &value, sizeof bits); return bits; }
inline float __int_as_float(int bits) { float value; std::memcpy(&value, &bits, sizeof value); return value; }
inline int __float2int_rn(float value) { return static_cast<int>(std::nearbyint(value)); }
inline int max(int a, int b) { return a > b ? a : b; }
inline int min(int a, int b) { return a < b ? a : b; }

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace host {

constexpr size_t STACK_BYTES = 256 * 1024;
constexpr int WARP_SIZE = 32;

enum class Waits { FOR_NOTHING, FOR_WARP, FOR_BLOCK };

struct Copy {
  void* to;
  const void* from;  // null for zeros
  size_t bytes;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
  void* shadow = nullptr;
  bool done = false;
  Waits waits = Waits::FOR_NOTHING;
  // What the thread shows the others of its warp; two, so that the next may be shown before all have seen the last.
  std::array<std::array<unsigned char, 64>, 2> shown;
  unsigned turns = 0;
  std::deque<std::vector<Copy>> copies{1};
};

inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline void* scheduler_shadow = nullptr;
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_stack_bytes = 0;
inline int current = 0;
inline std::function<void()> body;
inline bool last_thread_first = false;
// Beside what a kernel declares: as large as the launch says, made anew for every block and full of NaN.
inline size_t dynamic_bytes = 0;
inline void* dynamic_memory = nullptr;

inline void to_scheduler(Fiber& fiber) {
  __sanitizer_start_switch_fiber(fiber.done ? nullptr : &fiber.shadow, scheduler_stack, scheduler_stack_bytes);
  swapcontext(&fiber.context, &scheduler);
  __sanitizer_finish_switch_fiber(fiber.shadow, nullptr, nullptr);
}

inline void enter() {
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
  body();
  Fiber& fiber = fibers[current];
  fiber.done = true;
  to_scheduler(fiber);
}

inline void resume(int thread) {
  Fiber& fiber = fibers[thread];
  current = thread;
  threadIdx = {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / blockDim.x / blockDim.y};
  __sanitizer_start_switch_fiber(&scheduler_shadow, fiber.stack.get(), STACK_BYTES);
  swapcontext(&scheduler, &fiber.context);
  __sanitizer_finish_switch_fiber(scheduler_shadow, nullptr, nullptr);
}

inline void stop(const char* what, int ended, int threads) {
  std::fprintf(stderr, "%s: %d of %d threads ended while the others wait\n", what, ended, threads);
  std::exit(97);
}

// Runs the threads [first, last) until each waits for the block or has ended.
inline void run_warp(int first, int last, bool backwards) {
  for (;;) {
    int for_warp = 0, ended = 0;
    for (int turn = first; turn < last; ++turn) {
      const int thread = backwards ? last - 1 - (turn - first) : turn;
      Fiber& fiber = fibers[thread];
      if (!fiber.done && fiber.waits == Waits::FOR_NOTHING) resume(thread);
      for_warp += !fiber.done && fiber.waits == Waits::FOR_WARP;
      ended += fiber.done;
    }
    if (for_warp == 0) return;
    if (for_warp != last - first) stop("warp", ended, last - first);
    for (int thread = first; thread < last; ++thread) fibers[thread].waits = Waits::FOR_NOTHING;
  }
}

inline void run_block() {
  const int threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  for (Fiber& fiber : fibers) {
    fiber.done = false;
    fiber.shadow = nullptr;
    fiber.waits = Waits::FOR_NOTHING;
    fiber.copies.assign(1, {});
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  std::free(dynamic_memory);
  if (posix_memalign(&dynamic_memory, 16, dynamic_bytes)) std::abort();
  std::memset(dynamic_memory, 0xff, dynamic_bytes);
  const int warps = (threads + WARP_SIZE - 1) / WARP_SIZE;
  for (bool backwards = last_thread_first;; backwards = !backwards) {
    for (int turn = 0; turn < warps; ++turn) {
      const int first = (backwards ? warps - 1 - turn : turn) * WARP_SIZE;
      run_warp(first, first + WARP_SIZE < threads ? first + WARP_SIZE : threads, backwards);
    }
    int done = 0;
    for (Fiber& fiber : fibers) {
      done += fiber.done;
      fiber.waits = Waits::FOR_NOTHING;
    }
    if (done == threads) return;
    if (done != 0) stop("barrier", done, threads);
  }
}

inline void launch(dim3 grid, dim3 block, std::function<void()> kernel) {
  body = std::move(kernel);
  gridDim = grid;
  blockDim = block;
  fibers = std::vector<Fiber>(block.x * block.y * block.z);
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run_block();
}

inline void wait(Waits what) {
  Fiber& fiber = fibers[current];
  fiber.waits = what;
  to_scheduler(fiber);
}

// Shows a value to the warp; the result gives what any of its threads shows in the same call.
template <typename T> std::function<T(int)> exchange(const T& value) {
  static_assert(sizeof(T) <= 64, "what a thread can show");
  Fiber& own = fibers[current];
  const unsigned place = own.turns++ % 2;
  std::memcpy(own.shown[place].data(), &value, sizeof(T));
  const int first = current / WARP_SIZE * WARP_SIZE;
  wait(Waits::FOR_WARP);
  return [first, place](int lane) {
    T seen;
    std::memcpy(&seen, fibers[first + lane].shown[place].data(), sizeof(T));
    return seen;
  };
}

inline int lane() { return current % WARP_SIZE; }

}  // namespace host

inline void __syncthreads() { host::wait(host::Waits::FOR_BLOCK); }
