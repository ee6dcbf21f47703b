// The functions that a compiler calls under -fsanitize=thread; the sanitizer's own library is not linked.
#include <cstdint>

#include "machine.h"

using emu::access;

namespace {
void sized(const void* pointer, size_t bytes, bool write) {
  const bool checked = emu::current && emu::current->checked;
  if (checked && reinterpret_cast<uintptr_t>(pointer) % bytes) emu::fail("misaligned access of %zu bytes at %p", bytes, pointer);
  access(pointer, bytes, write);
}
}  // namespace

extern "C" {
#define SIZED(n) \
  void __tsan_read##n(void* pointer) { sized(pointer, n, false); } \
  void __tsan_write##n(void* pointer) { sized(pointer, n, true); } \
  void __tsan_unaligned_read##n(void* pointer) { access(pointer, n, false); } \
  void __tsan_unaligned_write##n(void* pointer) { access(pointer, n, true); }
SIZED(1)
SIZED(2)
SIZED(4)
SIZED(8)
SIZED(16)
void __tsan_read_range(void* pointer, size_t bytes) { access(pointer, bytes, false); }
void __tsan_write_range(void* pointer, size_t bytes) { access(pointer, bytes, true); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// Atomics occur in the launcher's reference counts.
#define ATOMIC(bits) \
  using u##bits = uint##bits##_t; \
  u##bits __tsan_atomic##bits##_load(const u##bits* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); } \
  u##bits __tsan_atomic##bits##_fetch_add(u##bits* p, u##bits v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); } \
  u##bits __tsan_atomic##bits##_fetch_sub(u##bits* p, u##bits v, int) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); } \
  bool __tsan_atomic##bits##_compare_exchange_strong(u##bits* p, u##bits* e, u##bits v, int, int) { \
    return __atomic_compare_exchange_n(p, e, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
  }
ATOMIC(32)
ATOMIC(64)
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
}
