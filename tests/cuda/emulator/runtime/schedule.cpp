// Launches: blocks one after another, the threads of a block as fibers that run until they have to wait.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <map>
#include <numeric>
#include <random>

#include "machine.h"

namespace emu {

Order order;
Fiber* current;
std::string message;
uint32_t interval, first_of_block, first_of_launch;
uint32_t warp_phase[MAX_THREADS / LANES];

namespace {

constexpr size_t DEFAULT_SHARED = 48 << 10, MOST_SHARED = 227 << 10;  // bytes; what sm_90 allows a block

struct Kernel {
  std::string name;
  unsigned threads;
  size_t shared;
};
std::map<const void*, Kernel>& kernels() {
  static std::map<const void*, Kernel> known;
  return known;
}

Shape shape;
uint3 block_at;
const Kernel* kernel;
const std::function<void()>* thread_body;
Fiber fibers[MAX_THREADS];
unsigned count, finished, at_barrier;
std::deque<Fiber*> ready;
std::vector<unsigned> turns, lane_turns;  // the threads of a block and the lanes of a warp as they get their turn
unsigned waiting_lanes[MAX_THREADS / LANES];  // lanes of each warp that wait for other lanes
int barrier_line;                             // of the first thread that reached the barrier

enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_CONFIGURATION = 9, LAUNCH_FAILURE = 719 };

std::string formatted(const char* format, va_list arguments) {
  char text[2000];
  vsnprintf(text, sizeof text, format, arguments);
  return text;
}

int refuse(int code, const char* format, ...) __attribute__((format(printf, 2, 3)));
int refuse(int code, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  message = formatted(format, arguments);
  va_end(arguments);
  return code;
}

// Who waits where: "threads 0-31 wait at __syncthreads in line 40; threads 32-63 have ended".
std::string census() {
  std::map<std::string, std::vector<unsigned>> places;
  for (unsigned i = 0; i < count; ++i) {
    const Fiber& f = fibers[i];
    std::string where = "have ended";
    if (!f.done) where = f.waits_at ? std::string("wait at ") + f.waits_at + " in line " + std::to_string(f.line) : "run";
    places[where].push_back(i);
  }
  std::string text;
  for (const auto& [where, who] : places) {
    text += text.empty() ? "threads " : "; threads ";
    for (size_t i = 0, j; i < who.size(); i = j) {
      for (j = i + 1; j < who.size() && who[j] == who[j - 1] + 1;) ++j;
      text += (i ? ", " : "") + std::to_string(who[i]) + (j - i > 1 ? "-" + std::to_string(who[j - 1]) : "");
    }
    text += " " + where;
  }
  return text;
}

void release(Fiber& fiber) {
  fiber.waits_at = nullptr;
  ready.push_back(&fiber);
}

// Give the turn to another thread; comes back when this one is released.
void next() {
  if (ready.empty()) fail("threads wait for each other: %s", census().c_str());
  Fiber* to = ready.front();
  ready.pop_front();
  if (to != current) switch_to(*to);
}

void wait(const char* where, int line, unsigned mask, void* slot) {
  current->waits_at = where, current->line = line, current->mask = mask, current->slot = slot;
}

void thread_main() {
  (*thread_body)();
  current->checked = false;
  current->done = true;
  if (++finished == count) switch_to_host();
  next();
  __builtin_unreachable();
}

std::vector<unsigned> permuted(unsigned n, unsigned salt) {
  std::vector<unsigned> made(n);
  std::iota(made.begin(), made.end(), 0u);
  if (order.kind == 1) std::reverse(made.begin(), made.end());
  if (order.kind == 2) std::shuffle(made.begin(), made.end(), std::mt19937(order.seed * 7919u + salt));
  return made;
}

bool run_block() {
  first_of_block = ++interval;
  begin_block_memory();
  finished = at_barrier = 0;
  std::fill_n(waiting_lanes, MAX_THREADS / LANES, 0u);
  ready.clear();
  turns = permuted(count, interval);
  lane_turns = permuted(LANES, interval);
  for (unsigned i = 0; i < count; ++i) {
    Fiber& f = fibers[i];
    f.number = i, f.warp = i / LANES, f.lane = i % LANES;
    f.index = {i % shape.block.x, i / shape.block.x % shape.block.y, i / (shape.block.x * shape.block.y)};
    f.checked = f.done = false, f.waits_at = nullptr;
    f.copies.assign(1, {});
    prepare(f, thread_main);
  }
  for (unsigned i : turns) ready.push_back(&fibers[i]);
  Fiber* first = ready.front();
  ready.pop_front();
  run_from_host(*first);
  return finished == count;
}

}  // namespace

uint3 thread_index() { return current->index; }
uint3 block_index() { return block_at; }
dim3 block_size() { return shape.block; }
dim3 grid_size() { return shape.grid; }
const char* last_message() { return message.c_str(); }
unsigned thread_of_lane(unsigned lane) { return current->warp * LANES + lane; }

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  char head[300];
  const uint3 t = current->index, b = block_at;
  const char* where = "kernel %s, block (%u, %u, %u), thread (%u, %u, %u): ";
  snprintf(head, sizeof head, where, kernel->name.c_str(), b.x, b.y, b.z, t.x, t.y, t.z);
  message = head + formatted(format, arguments);
  va_end(arguments);
  switch_to_host();  // nobody comes back to a failed block
  __builtin_unreachable();
}

void begin_thread() { current->checked = true; }

void sync_block(int line) {
  wait("__syncthreads", line, 0, nullptr);
  if (!at_barrier) barrier_line = line;
  if (barrier_line != line) fail("divergent barrier: %s", census().c_str());
  if (++at_barrier < count) return next();
  at_barrier = 0;
  ++interval;
  for (unsigned i : turns) release(fibers[i]);
  next();
}

unsigned active_mask() {
  unsigned mask = 0;
  for (unsigned lane = 0; lane < LANES; ++lane) {
    unsigned thread = thread_of_lane(lane);
    if (thread < count && !fibers[thread].done) mask |= 1u << lane;
  }
  return mask;
}

void collective(unsigned mask, const char* what, int line, void* slot, void (*combine)(void** slots)) {
  const unsigned warp = current->warp;
  if (!(mask >> current->lane & 1)) fail("%s in line %d for lanes %08x, which do not include this one", what, line, mask);
  if (LANES * (warp + 1) > count && mask >> (count - LANES * warp))
    fail("%s in line %d for lanes %08x of an incomplete warp, which has %u", what, line, mask, count - LANES * warp);
  wait(what, line, mask, slot);
  if (++waiting_lanes[warp] < static_cast<unsigned>(__builtin_popcount(mask))) return next();
  void* slots[LANES] = {};
  for (unsigned lane = 0; lane < LANES; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const Fiber& f = fibers[LANES * warp + lane];
    if (!f.waits_at) return next();
    if (f.line != line || f.waits_at != what || f.mask != mask) fail("divergent warp: %s", census().c_str());
    slots[lane] = f.slot;
  }
  current->checked = false;  // the slots are on other threads' stacks
  if (combine) combine(slots);
  current->checked = true;
  waiting_lanes[warp] -= static_cast<unsigned>(__builtin_popcount(mask));
  for (unsigned lane : lane_turns)
    if (mask >> lane & 1 && lane != current->lane) release(fibers[LANES * warp + lane]);
  current->waits_at = nullptr;
}

void sync_warp(unsigned mask, int line) {
  collective(mask, "__syncwarp", line, nullptr, [](void**) { ++warp_phase[current->warp]; });
}

Registered::Registered(const void* function, const char* name, unsigned threads) {
  kernels()[function] = {name, threads, DEFAULT_SHARED};
}

int allow_shared(const void* function, size_t bytes) {
  Kernel& k = kernels()[function];
  const char* why = "kernel %s asks for %zu bytes of shared memory, a block has %zu at most";
  if (bytes > MOST_SHARED) return refuse(INVALID_VALUE, why, k.name.c_str(), bytes, MOST_SHARED);
  k.shared = bytes;
  return SUCCESS;
}

int launch(const void* function, const Shape& wanted, const std::function<void()>& thread) {
  kernel = &kernels()[function];
  const char* name = kernel->name.c_str();
  shape = wanted;
  const dim3 g = shape.grid, b = shape.block;
  size_t threads = size_t{b.x} * b.y * b.z;
  if (!threads || threads > MAX_THREADS || threads > kernel->threads)
    return refuse(INVALID_CONFIGURATION, "kernel %s is launched with %zu threads, compiled for %u", name, threads,
                  kernel->threads);
  if (!g.x || !g.y || !g.z || g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535)
    return refuse(INVALID_CONFIGURATION, "kernel %s is launched with a grid of (%u, %u, %u)", name, g.x, g.y, g.z);
  if (shape.shared > kernel->shared)
    return refuse(INVALID_VALUE,
                  "kernel %s is launched with %zu bytes of dynamic shared memory, allowed are %zu; cudaFuncSetAttribute "
                  "allows more",
                  name, shape.shared, kernel->shared);
  count = static_cast<unsigned>(threads);
  thread_body = &thread;
  first_of_launch = interval + 1;
  begin_launch_memory(shape.shared);
  for (unsigned i : permuted(g.x * g.y * g.z, 0)) {
    block_at = {i % g.x, i / g.x % g.y, i / (g.x * g.y)};
    if (!run_block()) return LAUNCH_FAILURE;
  }
  return SUCCESS;
}

}  // namespace emu

extern "C" void emu_set_order(int kind, unsigned seed, int late_copies) {
  emu::order = {kind, seed, late_copies != 0};
}
