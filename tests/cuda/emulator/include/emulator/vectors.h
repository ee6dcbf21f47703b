// CUDA's vector types, with its alignments.
#pragma once
#include <cstdint>

#define EMU_VECTORS(type, name)                                                                     \
  struct name##1 { type x; };                                                                       \
  struct alignas(2 * sizeof(type)) name##2 { type x, y; };                                          \
  struct name##3 { type x, y, z; };                                                                 \
  struct alignas(4 * sizeof(type) > 16 ? 16 : 4 * sizeof(type)) name##4 { type x, y, z, w; };       \
  static inline name##1 make_##name##1(type x) { return {x}; }                                      \
  static inline name##2 make_##name##2(type x, type y) { return {x, y}; }                           \
  static inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }                \
  static inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

EMU_VECTORS(signed char, char)
EMU_VECTORS(unsigned char, uchar)
EMU_VECTORS(short, short)
EMU_VECTORS(unsigned short, ushort)
EMU_VECTORS(int, int)
EMU_VECTORS(unsigned int, uint)
EMU_VECTORS(long long, longlong)
EMU_VECTORS(unsigned long long, ulonglong)
EMU_VECTORS(float, float)
EMU_VECTORS(double, double)
#undef EMU_VECTORS

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
