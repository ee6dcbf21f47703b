// __half and __nv_bfloat16: stored in 16 bits, every operation in float with one rounding to nearest even.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emulator/arithmetic.h"

namespace emu {

struct Bf16 {
  static uint16_t encode(float value) {
    uint32_t bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
  }
  static float decode(uint16_t half) { return __uint_as_float(static_cast<uint32_t>(half) << 16); }
};

struct Fp16 {
  static uint16_t encode(float value) {
    uint32_t bits = __float_as_uint(value), sign = (bits >> 16) & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return 0x7fff;
    if (bits >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above round to infinity
    if (bits < 0x38800000u) {  // subnormal: adding 0.5 leaves the rounded mantissa in the low bits
      uint32_t low = __float_as_uint(__uint_as_float(bits) + 0.5f) - 0x3f000000u;
      return static_cast<uint16_t>(sign | low);
    }
    bits += 0xfffu + ((bits >> 13) & 1);
    return static_cast<uint16_t>(sign | ((bits - 0x38000000u) >> 13));
  }
  static float decode(uint16_t half) {
    uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, rest = half & 0x7fffu;
    if (rest >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    float magnitude = rest < 0x400u ? static_cast<float>(rest) * 0x1p-24f : __uint_as_float((rest << 13) + 0x38000000u);
    return sign ? -magnitude : magnitude;
  }
};

template <class Format>
struct Half16 {
  uint16_t bits;
  Half16() = default;
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
  Half16(T value) : bits(Format::encode(static_cast<float>(value))) {}
  operator float() const { return Format::decode(bits); }

  friend Half16 operator+(Half16 a, Half16 b) { return float(a) + float(b); }
  friend Half16 operator-(Half16 a, Half16 b) { return float(a) - float(b); }
  friend Half16 operator*(Half16 a, Half16 b) { return float(a) * float(b); }
  friend Half16 operator/(Half16 a, Half16 b) { return float(a) / float(b); }
  friend Half16 operator-(Half16 a) { return -float(a); }
  Half16& operator+=(Half16 b) { return *this = *this + b; }
  Half16& operator-=(Half16 b) { return *this = *this - b; }
  Half16& operator*=(Half16 b) { return *this = *this * b; }
  Half16& operator/=(Half16 b) { return *this = *this / b; }
  friend bool operator<(Half16 a, Half16 b) { return float(a) < float(b); }
  friend bool operator<=(Half16 a, Half16 b) { return float(a) <= float(b); }
  friend bool operator>(Half16 a, Half16 b) { return float(a) > float(b); }
  friend bool operator>=(Half16 a, Half16 b) { return float(a) >= float(b); }
  friend bool operator==(Half16 a, Half16 b) { return float(a) == float(b); }
  friend bool operator!=(Half16 a, Half16 b) { return float(a) != float(b); }

  friend bool __hlt(Half16 a, Half16 b) { return a < b; }
  friend bool __hle(Half16 a, Half16 b) { return a <= b; }
  friend bool __hgt(Half16 a, Half16 b) { return a > b; }
  friend bool __hge(Half16 a, Half16 b) { return a >= b; }
  friend bool __heq(Half16 a, Half16 b) { return a == b; }
  friend bool __hne(Half16 a, Half16 b) { return a != b; }
  friend bool __hisnan(Half16 a) { return float(a) != float(a); }
  friend Half16 __hadd(Half16 a, Half16 b) { return a + b; }
  friend Half16 __hsub(Half16 a, Half16 b) { return a - b; }
  friend Half16 __hmul(Half16 a, Half16 b) { return a * b; }
  friend Half16 __hdiv(Half16 a, Half16 b) { return a / b; }
  friend Half16 __hneg(Half16 a) { return -a; }
  friend Half16 __habs(Half16 a) { return fabsf(a); }
  friend Half16 __hfma(Half16 a, Half16 b, Half16 c) { return fmaf(a, b, c); }
  friend Half16 __hmax(Half16 a, Half16 b) { return fmaxf(a, b); }
  friend Half16 __hmin(Half16 a, Half16 b) { return fminf(a, b); }
  friend Half16 hexp(Half16 a) { return expf(a); }
  friend Half16 hexp2(Half16 a) { return exp2f(a); }
  friend Half16 hlog(Half16 a) { return logf(a); }
  friend Half16 hlog2(Half16 a) { return log2f(a); }
  friend Half16 hsqrt(Half16 a) { return sqrtf(a); }
  friend Half16 hrsqrt(Half16 a) { return 1.0f / sqrtf(a); }
  friend Half16 hrcp(Half16 a) { return 1.0f / float(a); }
  friend Half16 hsin(Half16 a) { return sinf(a); }
  friend Half16 hcos(Half16 a) { return cosf(a); }
  friend Half16 hfloor(Half16 a) { return floorf(a); }
  friend Half16 hceil(Half16 a) { return ceilf(a); }
  friend Half16 htrunc(Half16 a) { return truncf(a); }
  friend Half16 hrint(Half16 a) { return rintf(a); }
};

template <class Format>
struct alignas(4) Half16x2 {
  Half16<Format> x, y;
  Half16x2() = default;
  Half16x2(Half16<Format> x, Half16<Format> y) : x(x), y(y) {}
};

}  // namespace emu

using __half = emu::Half16<emu::Fp16>;
using __half2 = emu::Half16x2<emu::Fp16>;
using half = __half;
using half2 = __half2;
using __nv_bfloat16 = emu::Half16<emu::Bf16>;
using __nv_bfloat162 = emu::Half16x2<emu::Bf16>;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

static inline half __float2half(float x) { return x; }
static inline half __float2half_rn(float x) { return x; }
static inline float __half2float(half x) { return x; }
static inline half2 __floats2half2_rn(float x, float y) { return {half(x), half(y)}; }
static inline half2 __float22half2_rn(float2 v) { return {half(v.x), half(v.y)}; }
static inline float2 __half22float2(half2 v) { return {float(v.x), float(v.y)}; }
static inline half2 __halves2half2(half x, half y) { return {x, y}; }
static inline half2 make_half2(half x, half y) { return {x, y}; }
static inline half __ushort_as_half(unsigned short bits) { half x; x.bits = bits; return x; }
static inline unsigned short __half_as_ushort(half x) { return x.bits; }
static inline nv_bfloat16 __float2bfloat16(float x) { return x; }
static inline nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
static inline float __bfloat162float(nv_bfloat16 x) { return x; }
static inline nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {nv_bfloat16(x), nv_bfloat16(y)}; }
static inline nv_bfloat162 __float22bfloat162_rn(float2 v) { return {nv_bfloat16(v.x), nv_bfloat16(v.y)}; }
static inline float2 __bfloat1622float2(nv_bfloat162 v) { return {float(v.x), float(v.y)}; }
static inline nv_bfloat162 __halves2bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return {x, y}; }
static inline nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { nv_bfloat16 x; x.bits = bits; return x; }
static inline unsigned short __bfloat16_as_ushort(nv_bfloat16 x) { return x.bits; }
