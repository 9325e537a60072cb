// A fiber: a function on a stack of its own, that stops where it likes and goes on when it is told to. A switch saves
// the registers that a callee must keep: a few nanoseconds, while swapcontext makes a system call.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

namespace emulator {

#if defined(__x86_64__) || defined(__aarch64__)

struct Context {
  void* stack_pointer = nullptr;
};

extern "C" void emulator_switch(void** from, void* to);

#if defined(__x86_64__)
asm(R"(
.text
.weak emulator_switch
emulator_switch:
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
)");
constexpr size_t kSavedWords = 8, kReturnWord = 6;  // six registers, the address to return to, and one for alignment
#else
asm(R"(
.text
.weak emulator_switch
emulator_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
constexpr size_t kSavedWords = 20, kReturnWord = 11;
#endif

inline void switch_to(Context& from, Context& to) {
  emulator_switch(&from.stack_pointer, to.stack_pointer);
}

// Makes `context` begin with `entry`, which must never return. The stack ends at a multiple of 16.
inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
  auto* words = reinterpret_cast<uintptr_t*>(stack + size) - kSavedWords;
  for (size_t i = 0; i < kSavedWords; ++i) words[i] = 0;
  words[kReturnWord] = reinterpret_cast<uintptr_t>(entry);
  context.stack_pointer = words;
}

#else

struct Context {
  ucontext_t registers;
};

inline void switch_to(Context& from, Context& to) {
  swapcontext(&from.registers, &to.registers);
}

inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
  getcontext(&context.registers);
  context.registers.uc_stack.ss_sp = stack;
  context.registers.uc_stack.ss_size = size;
  context.registers.uc_link = nullptr;
  makecontext(&context.registers, entry, 0);
}

#endif

}  // namespace emulator
