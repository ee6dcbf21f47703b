// The state of the emulated machine: one launch at a time, one block at a time, one fiber for each thread of the block.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "emulator/core.h"

namespace emu {

constexpr unsigned LANES = 32, MAX_THREADS = 1024;

struct AsyncCopy {
  uint32_t shared;
  const void* global;
  unsigned bytes, from_global;
};

struct Fiber {
  void* stack_pointer;
  const char *stack_low, *stack_high;
  uint3 index;
  unsigned number, warp, lane;  // in the block
  bool checked, done;
  const char* waits_at;  // what it waits in, or null
  int line;
  unsigned mask;
  void* slot;
  std::deque<std::vector<AsyncCopy>> copies;  // groups, the last one not committed yet
};

// The order in which threads and blocks run, and when asynchronous copies arrive.
struct Order {
  int kind = 0;  // 0 forward, 1 reverse, 2 shuffled by `seed`
  unsigned seed = 0;
  bool late_copies = false;  // data arrive when they are waited for, not at once
};

extern Order order;
extern Fiber* current;  // null outside of kernels
extern std::string message;

// Numbers of intervals between barriers, over all launches: accesses of one interval are not ordered among threads.
extern uint32_t interval, first_of_block, first_of_launch;
extern uint32_t warp_phase[MAX_THREADS / LANES];  // counts __syncwarp

unsigned thread_of_lane(unsigned lane);

// memory.cpp
void begin_launch_memory(size_t dynamic_bytes);
void begin_block_memory();
void access(const void* pointer, size_t bytes, bool write);

// fiber.cpp
void prepare(Fiber& fiber, void (*entry)());
void switch_to(Fiber& fiber);
void switch_to_host();
void run_from_host(Fiber& fiber);

}  // namespace emu
