// Stacks, and switching between them.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>

#include "machine.h"

namespace emu {
namespace {

constexpr size_t STACK = 256 << 10, GUARD = 16 << 10;  // bytes; pages that no thread touches cost nothing

char* stacks() {
  static char* base = [] {
    void* room = mmap(nullptr, MAX_THREADS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) abort();
    for (unsigned i = 0; i < MAX_THREADS; ++i) mprotect(static_cast<char*>(room) + i * STACK, GUARD, PROT_NONE);
    return static_cast<char*>(room);
  }();
  return base;
}

void place(Fiber& fiber) {
  fiber.stack_low = stacks() + fiber.number * STACK + GUARD;
  fiber.stack_high = stacks() + (fiber.number + 1) * STACK;
}

}  // namespace
}  // namespace emu

#if defined(__x86_64__)

// Saves what a called function must keep, changes the stack, and returns into the other one: swapcontext without system calls.
extern "C" void emu_switch(void** save, void* to);
asm(R"(
.text
.globl emu_switch
.type emu_switch, @function
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch, .-emu_switch
)");

namespace emu {
namespace {
void* host_stack_pointer;
}

void prepare(Fiber& fiber, void (*entry)()) {
  place(fiber);
  // Six registers, the address to return to, and one word that leaves the stack as a call would.
  auto* top = reinterpret_cast<void**>(const_cast<char*>(fiber.stack_high)) - 8;
  for (int i = 0; i < 8; ++i) top[i] = nullptr;
  top[6] = reinterpret_cast<void*>(entry);
  fiber.stack_pointer = top;
}

void switch_to(Fiber& fiber) {
  Fiber* from = current;
  current = &fiber;
  emu_switch(&from->stack_pointer, fiber.stack_pointer);
}

void switch_to_host() {
  Fiber* from = current;
  current = nullptr;
  emu_switch(&from->stack_pointer, host_stack_pointer);
}

void run_from_host(Fiber& fiber) {
  current = &fiber;
  emu_switch(&host_stack_pointer, fiber.stack_pointer);
}

}  // namespace emu

#else

#include <ucontext.h>

namespace emu {
namespace {
ucontext_t host, contexts[MAX_THREADS];
}

void prepare(Fiber& fiber, void (*entry)()) {
  place(fiber);
  ucontext_t& context = contexts[fiber.number];
  getcontext(&context);
  context.uc_stack.ss_sp = const_cast<char*>(fiber.stack_low);
  context.uc_stack.ss_size = STACK - GUARD;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}

void switch_to(Fiber& fiber) {
  Fiber* from = current;
  current = &fiber;
  swapcontext(&contexts[from->number], &contexts[fiber.number]);
}

void switch_to_host() {
  Fiber* from = current;
  current = nullptr;
  swapcontext(&contexts[from->number], &host);
}

void run_from_host(Fiber& fiber) {
  current = &fiber;
  swapcontext(&host, &contexts[fiber.number]);
}

}  // namespace emu

#endif
