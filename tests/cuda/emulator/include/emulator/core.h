// What a kernel asks of the machine that runs it: its place in the grid, barriers, shared memory.  Implemented in ../runtime.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

#include "emulator/vectors.h"

namespace emu {

// Constant while one thread of a kernel runs, which spares a call at every use.
__attribute__((const)) uint3 thread_index();
__attribute__((const)) uint3 block_index();
__attribute__((const)) dim3 block_size();
__attribute__((const)) dim3 grid_size();

// Ends the launch with a message that starts with kernel, block and thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// From here on the accesses of the calling thread are checked: its arguments are on its own stack.
void begin_thread();

void sync_block(int line);
void sync_warp(unsigned mask, int line);
unsigned active_mask();

// All lanes of `mask` meet; the last one calls `combine` on the lanes' slots (null for lanes outside of the mask).
void collective(unsigned mask, const char* what, int line, void* slot, void (*combine)(void** slots));

// Shared memory is addressed by byte offsets, as by instructions on a GPU.
uint32_t shared_address(const void* pointer);
void* dynamic_shared();
void* static_shared(int declaration, size_t bytes, size_t alignment);
// The bytes at `address`, read or written by lane `lane` of the calling thread's warp.
const void* shared_read(uint32_t address, size_t bytes, unsigned lane, const char* what);
void* shared_write(uint32_t address, size_t bytes, unsigned lane, const char* what);

void copy_async(uint32_t shared, const void* global, unsigned bytes, unsigned from_global);
void commit_async();
void wait_async(unsigned groups_in_flight);

// What the text says about a kernel: its name and the threads it was compiled for.
struct Registered {
  Registered(const void* kernel, const char* name, unsigned threads);
};

// Where the library of a text lies: its constants may be read.
struct Image {
  Image(const char* begin, const char* end);
};

struct Shape {
  dim3 grid, block;
  size_t shared;
};
int allow_shared(const void* kernel, size_t bytes);
int launch(const void* kernel, const Shape& shape, const std::function<void()>& thread);
const char* last_message();

// A vector access through a pointer, which must be aligned to the size of the vector.
template <class T>
inline T& aligned(const void* pointer) {
  if (reinterpret_cast<uintptr_t>(pointer) % alignof(T)) fail("misaligned access of %zu bytes at %p", sizeof(T), pointer);
  return *static_cast<T*>(const_cast<void*>(pointer));
}

}  // namespace emu

#define warpSize 32

static inline size_t __cvta_generic_to_shared(const void* pointer) { return ::emu::shared_address(pointer); }
