// Instructions of a whole warp: barriers, shuffles, votes, ldmatrix, mma.  Fragment layouts are those of the PTX manual,
// section "Matrix fragments for mma.m16n8k16" and its neighbours.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emulator/core.h"
#include "emulator/halves.h"

// __builtin_LINE as a default argument is the line of the caller: barriers on different lines are different barriers.
static inline void __syncthreads(int line = __builtin_LINE()) { emu::sync_block(line); }
static inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) { emu::sync_warp(mask, line); }
static inline unsigned __activemask() { return emu::active_mask(); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}

namespace emu {

constexpr unsigned WARP = 32;

static inline unsigned lane() {
  uint3 at = thread_index();
  dim3 size = block_size();
  return (at.x + size.x * (at.y + size.y * at.z)) % WARP;
}

template <class T>
struct Exchange {
  T value, result;
  int from;  // lane
};

template <class T>
static T shuffle(unsigned mask, T value, int from, int line) {
  Exchange<T> mine{value, value, from};
  collective(mask, "__shfl_sync", line, &mine, [](void** slots) {
    for (unsigned i = 0; i < WARP; ++i) {
      auto* to = static_cast<Exchange<T>*>(slots[i]);
      if (!to) continue;
      auto* source = static_cast<Exchange<T>*>(slots[to->from]);
      if (!source) fail("lane %u shuffles from lane %d, which takes no part", i, to->from);
      to->result = source->value;
    }
  });
  return mine.result;
}

struct Vote {
  bool predicate;
  unsigned ballot;
};

static inline unsigned ballot(unsigned mask, bool predicate, int line) {
  Vote mine{predicate, 0};
  collective(mask, "a vote", line, &mine, [](void** slots) {
    unsigned all = 0;
    for (unsigned i = 0; i < WARP; ++i)
      if (slots[i] && static_cast<Vote*>(slots[i])->predicate) all |= 1u << i;
    for (unsigned i = 0; i < WARP; ++i)
      if (slots[i]) static_cast<Vote*>(slots[i])->ballot = all;
  });
  return mine.ballot;
}

template <int N>
struct Matrices {
  uint32_t address, out[N];
  bool transposed;
};

// Row r of matrix m is at the address that lane 8m + r gives; lane l gets elements 2(l%4), 2(l%4)+1 of row l/4.
template <int N>
static void load_matrices(void** slots) {
  constexpr unsigned ROW = 16;  // bytes
  for (unsigned m = 0; m < N; ++m) {
    uint16_t tile[8][8];
    for (unsigned r = 0; r < 8; ++r) {
      uint32_t address = static_cast<Matrices<N>*>(slots[8 * m + r])->address;
      memcpy(tile[r], shared_read(address, ROW, 8 * m + r, "ldmatrix"), ROW);
      shared_read(address, ROW, (8 * m + r + 1) % WARP, "ldmatrix");  // other lanes get the row: their read counts as well
    }
    for (unsigned l = 0; l < WARP; ++l) {
      auto* to = static_cast<Matrices<N>*>(slots[l]);
      unsigned i = l / 4, j = 2 * (l % 4);
      uint16_t low = to->transposed ? tile[j][i] : tile[i][j], high = to->transposed ? tile[j + 1][i] : tile[i][j + 1];
      to->out[m] = low | static_cast<uint32_t>(high) << 16;
    }
  }
}

template <int N, bool TRANSPOSED, class... Out>
static void ldmatrix(int line, uint32_t address, Out&... out) {
  static_assert(sizeof...(Out) == N, "one register a matrix");
  Matrices<N> mine{address, {}, TRANSPOSED};
  collective(0xffffffffu, "ldmatrix", line, &mine, load_matrices<N>);
  int i = 0;
  ((out = mine.out[i++]), ...);
}

// One multiplication of a 16 x K by a K x 8 matrix, element k of a register pair at `element`.
struct Bf16Element {
  static constexpr int PACKED = 2;
  static float get(uint32_t bits, int i) { return Bf16::decode(static_cast<uint16_t>(bits >> 16 * i)); }
};
struct Fp16Element {
  static constexpr int PACKED = 2;
  static float get(uint32_t bits, int i) { return Fp16::decode(static_cast<uint16_t>(bits >> 16 * i)); }
};
inline uint32_t tf32(float x) {  // cvt.rna.tf32.f32: to the nearest, ties away from zero
  const uint32_t bits = __float_as_uint(x);
  return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffe000u : (bits + ((bits & 0x7f800000u) < 0x7f800000u ? 0x1000u : 0u)) & 0xffffe000u;
}
struct Tf32Element {  // the hardware ignores the low 13 bits
  static constexpr int PACKED = 1;
  static float get(uint32_t bits, int) { return __uint_as_float(bits & 0xffffe000u); }
};

template <class E, int K>
struct Mma {
  static constexpr int STEP = 4 * E::PACKED;  // columns of A in one register of four lanes
  static constexpr int PARTS = K / STEP;
  uint32_t a[2 * PARTS], b[PARTS];
  float c[4];

  static void combine(void** slots) {
    float a[16][K], b[8][K];
    for (int l = 0; l < 32; ++l) {
      auto* from = static_cast<Mma*>(slots[l]);
      for (int part = 0; part < PARTS; ++part)
        for (int e = 0; e < E::PACKED; ++e) {
          int k = STEP * part + E::PACKED * (l % 4) + e;
          a[l / 4][k] = E::get(from->a[2 * part], e);
          a[l / 4 + 8][k] = E::get(from->a[2 * part + 1], e);
          b[l / 4][k] = E::get(from->b[part], e);
        }
    }
    for (int l = 0; l < 32; ++l) {
      auto* to = static_cast<Mma*>(slots[l]);
      for (int i = 0; i < 4; ++i) {
        const float *x = a[l / 4 + 8 * (i / 2)], *y = b[2 * (l % 4) + i % 2];
        float sum = to->c[i];
        for (int k = 0; k < K; ++k) sum += x[k] * y[k];
        to->c[i] = sum;
      }
    }
  }
};

// The operands as an array of bits, whatever type their registers have in the text.
template <class T>
static uint32_t bits_of(T value) {
  static_assert(sizeof(T) == 4, "a register has 32 bits");
  return emu_bits<uint32_t>(value);
}

template <class E, int K, class A, class B>
static void mma(int line, float& d0, float& d1, float& d2, float& d3, const A& a, const B& b, float c0, float c1, float c2,
                float c3) {
  Mma<E, K> mine{{}, {}, {c0, c1, c2, c3}};
  static_assert(sizeof(a) == sizeof(mine.a) && sizeof(b) == sizeof(mine.b), "registers of the fragments");
  memcpy(mine.a, &a, sizeof(a));
  memcpy(mine.b, &b, sizeof(b));
  collective(0xffffffffu, "mma.sync", line, &mine, Mma<E, K>::combine);
  d0 = mine.c[0], d1 = mine.c[1], d2 = mine.c[2], d3 = mine.c[3];
}

template <class... T>
struct Fragment {
  uint32_t registers[sizeof...(T)];
};
template <class... T>
static Fragment<T...> fragment(T... values) {
  return {{bits_of(values)...}};
}

}  // namespace emu

// Lanes are counted within groups of `width`; a source outside of the group is the lane itself, as in CUDA.
template <class T>
static T __shfl_sync(unsigned mask, T value, int from, int width = 32, int line = __builtin_LINE()) {
  int lane = emu::lane(), group = lane & ~(width - 1);
  return emu::shuffle(mask, value, group | (from & (width - 1)), line);
}
template <class T>
static T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
  int lane = emu::lane(), group = lane & ~(width - 1), from = lane - static_cast<int>(delta);
  return emu::shuffle(mask, value, from < group ? lane : from, line);
}
template <class T>
static T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
  int lane = emu::lane(), group = lane & ~(width - 1), from = lane + static_cast<int>(delta);
  return emu::shuffle(mask, value, from >= group + width ? lane : from, line);
}
template <class T>
static T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32, int line = __builtin_LINE()) {
  int lane = emu::lane(), group = lane & ~(width - 1), from = lane ^ flip;
  return emu::shuffle(mask, value, from >= group + width ? lane : from, line);
}
static inline unsigned __ballot_sync(unsigned mask, bool predicate, int line = __builtin_LINE()) {
  return emu::ballot(mask, predicate, line);
}
static inline int __any_sync(unsigned mask, bool predicate, int line = __builtin_LINE()) {
  return emu::ballot(mask, predicate, line) != 0;
}
static inline int __all_sync(unsigned mask, bool predicate, int line = __builtin_LINE()) {
  return emu::ballot(mask, !predicate, line) == 0;
}
