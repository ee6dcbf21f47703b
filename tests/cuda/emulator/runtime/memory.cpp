// Every access of a kernel to memory, checked: it must lie in a tensor, in shared memory or on the thread's own stack, be
// aligned, and not race with another thread.  The compiler reports accesses through the hooks of its thread sanitizer.
#include <algorithm>
#include <cstring>
#include <map>

#include "machine.h"

namespace emu {
namespace {

constexpr size_t ARENA = 512 << 10, MOST_STATIC = 48 << 10, ZONE = 256;  // bytes; zones keep declarations apart
constexpr uint16_t MANY = 0xffff;

// What happened to a byte last.  Intervals say when; several readers of one interval count as MANY.
struct Cell {
  uint32_t written = 0, read = 0;                // intervals
  uint32_t written_phase = 0, read_phase = 0;    // of the warp
  uint16_t writer = 0, reader = 0, reading_warp = 0;
  uint16_t copying = MANY;                       // the thread whose asynchronous copy to here is in flight
};

struct Region {
  std::string name;
  const char* base;
  size_t bytes, granule;
  bool shared;
  std::vector<Cell> cells;
};

alignas(1024) char arena[ARENA];
Region shared_region{"shared memory", arena, ARENA, 1, true, std::vector<Cell>(ARENA)};
std::vector<Region> tensors;
struct Range {
  size_t begin, end;
};
std::vector<Range> allocated;           // parts of the arena that the kernel has declared
std::map<int, size_t> declared;         // offset of each static declaration
size_t arena_used, static_bytes;

[[noreturn]] void race(const Region& region, size_t at, unsigned thread, const char* does, unsigned other, const char* did,
                       const char* since) {
  char whom[40];
  if (other == MANY) snprintf(whom, sizeof whom, "several threads");
  else snprintf(whom, sizeof whom, "thread %u", other);
  fail("race: thread %u %s byte %zu of %s, which %s %s %s", thread, does, at, region.name.c_str(), whom, did, since);
}

void note(Region& region, size_t offset, size_t bytes, bool write, unsigned thread, bool by_copy) {
  const uint32_t phase = warp_phase[thread / LANES];
  const char* does = write ? "writes" : "reads";
  const char* SINCE = "with no barrier between";
  for (size_t i = offset / region.granule; i * region.granule < offset + bytes; ++i) {
    Cell& c = region.cells[i];
    const size_t at = i * region.granule;
    if (c.written < first_of_block) c.copying = MANY;  // left by another block
    if (c.copying != MANY && !by_copy)
      race(region, at, thread, does, c.copying, "copies to asynchronously", "and has not waited for");
    if (!region.shared && c.written >= first_of_launch && c.written < first_of_block)
      fail("race: thread %u %s byte %zu of %s, which another block writes", thread, does, at, region.name.c_str());
    if (c.written == interval && c.writer != thread && !(c.writer / LANES == thread / LANES && c.written_phase < phase))
      race(region, at, thread, does, c.writer, "wrote", SINCE);
    if (!write) {
      const bool again = c.read == interval;
      c.reader = again && c.reader != thread ? MANY : static_cast<uint16_t>(thread);
      c.reading_warp = again && c.reading_warp != thread / LANES ? MANY : static_cast<uint16_t>(thread / LANES);
      c.read = interval, c.read_phase = phase;
      continue;
    }
    if (!region.shared && c.read >= first_of_launch && c.read < first_of_block)
      fail("race: thread %u writes byte %zu of %s, which another block reads", thread, at, region.name.c_str());
    if (c.read == interval && c.reader != thread && !(c.reading_warp == thread / LANES && c.read_phase < phase))
      race(region, at, thread, does, c.reader, "read", SINCE);
    c.written = interval, c.written_phase = phase, c.writer = static_cast<uint16_t>(thread);
  }
}

void note_shared(size_t offset, size_t bytes, bool write, unsigned thread, bool by_copy = false) {
  for (const Range& range : allocated)
    if (offset >= range.begin && offset + bytes <= range.end) return note(shared_region, offset, bytes, write, thread, by_copy);
  fail("overrun: thread %u %s %zu bytes at %zu of shared memory, where the kernel has %zu bytes of dynamic and %zu of static "
       "memory", thread, write ? "writes" : "reads", bytes, offset, allocated[0].end, static_bytes);
}

Region* tensor_of(const char* pointer) {
  static size_t last;
  auto in = [=](size_t i) { return pointer >= tensors[i].base && pointer < tensors[i].base + tensors[i].bytes; };
  if (last < tensors.size() && in(last)) return &tensors[last];
  for (size_t i = 0; i < tensors.size(); ++i)
    if (in(i)) return last = i, &tensors[i];
  return nullptr;
}

// Names the tensor that a wild address is closest to.
[[noreturn]] void outside(const char* pointer, size_t bytes, bool write) {
  const Region* nearest = nullptr;
  long long best = 0;
  for (const Region& r : tensors) {
    long long beyond = std::max<long long>(r.base - pointer, pointer - r.base - static_cast<long long>(r.bytes));
    if (!nearest || beyond < best) nearest = &r, best = beyond;
  }
  const char* does = write ? "writes" : "reads";
  if (!nearest) fail("%s %zu bytes at %p, outside of all memory", does, bytes, pointer);
  const long long at = pointer - nearest->base;
  fail("%s %zu bytes at byte %lld of %s, which has %zu", does, bytes, at, nearest->name.c_str(), nearest->bytes);
}

void check(size_t address, size_t bytes, size_t alignment, const char* what) {
  if (!(address % alignment)) return;
  fail("misaligned %s of %zu bytes at %zu, must be at a multiple of %zu", what, bytes, address, alignment);
}

// Constants and tables of the compiled texts.
std::map<const char*, const char*>& images() {
  static std::map<const char*, const char*> known;
  return known;
}

bool in_image(const char* at) {
  auto after = images().upper_bound(at);
  return after != images().begin() && at < std::prev(after)->second;
}

}  // namespace

Image::Image(const char* begin, const char* end) { images()[begin] = end; }

void begin_launch_memory(size_t dynamic_bytes) {
  declared.clear();
  allocated.assign(1, {0, dynamic_bytes});
  arena_used = (dynamic_bytes + ZONE + 1023) / 1024 * 1024;
  static_bytes = 0;
}

void begin_block_memory() { memset(arena, 0xff, std::min(ARENA, arena_used + 2 * MOST_STATIC)); }  // NaN in every format

void access(const void* pointer, size_t bytes, bool write) {
  if (!current || !current->checked) return;
  auto* at = static_cast<const char*>(pointer);
  if (at >= current->stack_low && at < current->stack_high) return;
  if (at >= arena && at < arena + ARENA) return note_shared(static_cast<size_t>(at - arena), bytes, write, current->number);
  if (Region* tensor = tensor_of(at)) {
    size_t offset = static_cast<size_t>(at - tensor->base);
    if (offset + bytes > tensor->bytes) outside(at, bytes, write);
    return note(*tensor, offset, bytes, write, current->number, false);
  }
  if (!write && in_image(at)) return;
  outside(at, bytes, write);
}

uint32_t shared_address(const void* pointer) {
  auto* at = static_cast<const char*>(pointer);
  if (at < arena || at >= arena + ARENA) fail("%p is no address of shared memory", pointer);
  return static_cast<uint32_t>(at - arena);
}

void* dynamic_shared() { return arena; }

void* static_shared(int declaration, size_t bytes, size_t alignment) {
  auto [found, fresh] = declared.try_emplace(declaration, 0);
  if (fresh) {
    found->second = (arena_used + alignment - 1) / alignment * alignment;
    static_bytes += bytes;
    if (static_bytes > MOST_STATIC)
      fail("%zu bytes of static shared memory, a kernel has %zu at most", static_bytes, MOST_STATIC);
    arena_used = found->second + bytes + ZONE;
    allocated.push_back({found->second, found->second + bytes});
  }
  return arena + found->second;
}

const void* shared_read(uint32_t address, size_t bytes, unsigned lane, const char* what) {
  check(address, bytes, bytes, what);
  note_shared(address, bytes, false, thread_of_lane(lane));
  return arena + address;
}

void* shared_write(uint32_t address, size_t bytes, unsigned lane, const char* what) {
  check(address, bytes, bytes, what);
  note_shared(address, bytes, true, thread_of_lane(lane));
  return arena + address;
}

namespace {
void arrive(const AsyncCopy& copy) {
  memcpy(arena + copy.shared, copy.global, copy.from_global);
  memset(arena + copy.shared + copy.from_global, 0, copy.bytes - copy.from_global);
}
}  // namespace

void copy_async(uint32_t shared, const void* global, unsigned bytes, unsigned from_global) {
  if (bytes != 4 && bytes != 8 && bytes != 16) fail("cp.async of %u bytes, must be 4, 8 or 16", bytes);
  check(shared, bytes, bytes, "cp.async to shared memory");
  check(reinterpret_cast<size_t>(global), bytes, bytes, "cp.async from global memory");
  if (from_global) access(global, from_global, false);
  note_shared(shared, bytes, true, current->number);
  for (unsigned i = 0; i < bytes; ++i) shared_region.cells[shared + i].copying = static_cast<uint16_t>(current->number);
  AsyncCopy copy{shared, global, bytes, from_global};
  if (!order.late_copies) arrive(copy);
  current->copies.back().push_back(copy);
}

void commit_async() { current->copies.emplace_back(); }

void wait_async(unsigned groups_in_flight) {
  while (current->copies.size() - 1 > groups_in_flight) {
    for (const AsyncCopy& copy : current->copies.front()) {
      if (order.late_copies) arrive(copy);
      note_shared(copy.shared, copy.bytes, true, current->number, true);
      for (unsigned i = 0; i < copy.bytes; ++i) shared_region.cells[copy.shared + i].copying = MANY;
    }
    current->copies.pop_front();
  }
}

}  // namespace emu

// Where the tensors of the next call lie; accesses to anything else fail.
extern "C" void emu_set_tensors(int count, const char** names, const void** data, const size_t* bytes, const size_t* item) {
  emu::tensors.clear();
  for (int i = 0; i < count; ++i) {
    std::vector<emu::Cell> cells((bytes[i] + item[i] - 1) / item[i]);
    emu::tensors.push_back({names[i], static_cast<const char*>(data[i]), bytes[i], item[i], false, std::move(cells)});
  }
}
