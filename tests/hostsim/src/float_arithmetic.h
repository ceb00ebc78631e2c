// Arithmetic on floats and doubles in any of the four rounding modes.
//
// In f32, a directed rounding starts from the result in double, rounded to odd: cut off, with the last
// bit set if anything was lost. Such a result keeps on which side of every f32 the exact one lies, so
// one more rounding gives what a single one would have given. In f64 the host's rounding mode is
// switched.
#pragma once

#include <cfenv>
#include <cmath>

#include "number.h"

namespace hostsim {

// ---- Doubles rounded to odd. The sources are floats, so nothing here overflows or underflows. -------

// `error`: the exact result less `rounded`, or anything of its sign; NaN where `rounded` is special.
inline double to_odd(double rounded, double error) {
  uint64_t bits = bits_of_double(rounded);
  bool const inexact = error < 0 || error > 0;
  if (inexact && (bits & 1) == 0) {
    bits += (error > 0) == (rounded > 0) ? 1 : uint64_t(-1);
  }
  return as_double(bits);
}

inline double sum_to_odd(double a, double b) {
  double const sum = a + b;
  double const b_in_sum = sum - a;
  double const error = (a - (sum - b_in_sum)) + (b - b_in_sum);
  return to_odd(sum, error);
}

// The product of two floats is exact in double.
inline double fused_to_odd(float a, float b, float c) { return sum_to_odd(double(a) * b, c); }

inline double quotient_to_odd(double a, double b) {
  double const quotient = a / b;
  double const remainder = std::fma(-quotient, b, a);
  return to_odd(quotient, b < 0 ? -remainder : remainder);
}

inline double root_to_odd(double a) {
  double const root = std::sqrt(a);
  return to_odd(root, std::fma(-root, root, a));
}

// ---- From there to float ----------------------------------------------------------------------------

inline float towards_zero(float value) { return as_float(bits_of_float(value) - 1); }
inline float away_from_zero(float value) { return as_float(bits_of_float(value) + 1); }

template <Rounding kRounding>
float round_odd(double odd) {
  float const nearest = float(odd);
  bool const above = double(nearest) > odd;
  bool const below = double(nearest) < odd;
  if constexpr (kRounding == Rounding::kZero) {
    return (odd > 0 ? above : below) ? towards_zero(nearest) : nearest;
  } else if constexpr (kRounding == Rounding::kDown) {
    return !above ? nearest : odd > 0 ? towards_zero(nearest) : away_from_zero(nearest);
  } else if constexpr (kRounding == Rounding::kUp) {
    return !below ? nearest : odd > 0 ? away_from_zero(nearest) : towards_zero(nearest);
  } else {
    return nearest;
  }
}

// The exact sum of opposite numbers is -0 when rounding down, +0 otherwise.
template <Rounding kRounding>
double signed_zero(double sum, double a, double b) {
  bool const negative = kRounding == Rounding::kDown && std::signbit(a) != std::signbit(b);
  return negative && sum == 0 ? -0.0 : sum;
}

// ---- Double -----------------------------------------------------------------------------------------

// The host's rounding mode, for as long as this lives.
class HostRounding {
 public:
  explicit HostRounding(Rounding rounding) : saved_(std::fegetround()) {
    std::fesetround(rounding == Rounding::kDown ? FE_DOWNWARD
                    : rounding == Rounding::kUp ? FE_UPWARD
                                                : FE_TOWARDZERO);
  }
  HostRounding(HostRounding const&) = delete;
  HostRounding& operator=(HostRounding const&) = delete;
  ~HostRounding() { std::fesetround(saved_); }

 private:
  int saved_;
};

// function(sources...) in a rounding mode. Volatile keeps the compiler from computing it elsewhere.
template <Rounding kRounding, class Function>
double in_double(Function function, double a, double b = 0, double c = 0) {
  if constexpr (kRounding == Rounding::kNearestEven) {
    return function(a, b, c);
  } else {
    HostRounding const mode(kRounding);
    double const volatile x = a, y = b, z = c;
    double const volatile result = function(x, y, z);
    return result;
  }
}

// ---- The functions ----------------------------------------------------------------------------------

template <Rounding kRounding>
struct Add {
  float operator()(float a, float b) const {
    if constexpr (kRounding == Rounding::kNearestEven) {
      return a + b;
    } else {
      return round_odd<kRounding>(signed_zero<kRounding>(sum_to_odd(a, b), a, b));
    }
  }
  double operator()(double a, double b) const {
    return in_double<kRounding>([](double x, double y, double) { return x + y; }, a, b);
  }
};

template <Rounding kRounding>
struct Sub {
  template <class Value>
  Value operator()(Value a, Value b) const {
    return Add<kRounding>()(a, -b);
  }
};

template <Rounding kRounding>
struct Mul {
  float operator()(float a, float b) const {
    if constexpr (kRounding == Rounding::kNearestEven) {
      return a * b;
    } else {
      return round_odd<kRounding>(double(a) * b);
    }
  }
  double operator()(double a, double b) const {
    return in_double<kRounding>([](double x, double y, double) { return x * y; }, a, b);
  }
};

template <Rounding kRounding>
struct Fma {
  float operator()(float a, float b, float c) const {
    double const odd = fused_to_odd(a, b, c);
    return round_odd<kRounding>(signed_zero<kRounding>(odd, double(a) * b, c));
  }
  double operator()(double a, double b, double c) const {
    return in_double<kRounding>([](double x, double y, double z) { return std::fma(x, y, z); }, a,
                                b, c);
  }
};

// For formats narrower than f32, which round the result once more.
struct FmaToOdd {
  double operator()(float a, float b, float c) const { return fused_to_odd(a, b, c); }
};

template <Rounding kRounding>
struct Div {
  float operator()(float a, float b) const {
    if constexpr (kRounding == Rounding::kNearestEven) {
      return a / b;
    } else {
      return round_odd<kRounding>(quotient_to_odd(a, b));
    }
  }
  double operator()(double a, double b) const {
    return in_double<kRounding>([](double x, double y, double) { return x / y; }, a, b);
  }
};

template <Rounding kRounding>
struct Reciprocal {
  template <class Value>
  Value operator()(Value a) const {
    return Div<kRounding>()(Value(1), a);
  }
};

template <Rounding kRounding>
struct SquareRoot {
  float operator()(float a) const {
    if constexpr (kRounding == Rounding::kNearestEven) {
      return std::sqrt(a);
    } else {
      return round_odd<kRounding>(root_to_odd(a));
    }
  }
  double operator()(double a) const {
    return in_double<kRounding>([](double x, double, double) { return std::sqrt(x); }, a);
  }
};

// ---- Sign, minimum and maximum ----------------------------------------------------------------------

struct Negate {
  template <class Value>
  Value operator()(Value a) const {
    return -a;
  }
};

struct Magnitude {
  template <class Value>
  Value operator()(Value a) const {
    return std::fabs(a);
  }
};

// Of a number and a NaN, the number, or with kNan the NaN; -0 is less than +0.
template <bool kNan>
struct Min {
  template <class Value>
  Value operator()(Value a, Value b) const {
    if (a != a || b != b) {
      return (a != a) == kNan ? a : b;
    }
    if (a == b) {
      return std::signbit(a) ? a : b;
    }
    return a < b ? a : b;
  }
};

template <bool kNan>
struct Max {
  template <class Value>
  Value operator()(Value a, Value b) const {
    return -Min<kNan>()(-a, -b);
  }
};

// .xorsign.abs: of the magnitudes, with the sign of the product.
template <class Extremum>
struct XorSignAbs {
  template <class Value>
  Value operator()(Value a, Value b) const {
    Value const result = Extremum()(std::fabs(a), std::fabs(b));
    return std::signbit(a) != std::signbit(b) ? -result : result;
  }
};

template <class Extremum>
struct OfThree {
  template <class Value>
  Value operator()(Value a, Value b, Value c) const {
    return Extremum()(Extremum()(a, b), c);
  }
};

template <class Extremum>
struct OfMagnitudes {
  template <class... Values>
  auto operator()(Values... values) const {
    return Extremum()(std::fabs(values)...);
  }
};

}  // namespace hostsim
