// What clang calls for `long double` on arm64, which has 128 bits there (AAPCS64; IEEE 754
// binary128): libc++'s sleep_for compares with one. compiler-rt has them, but for OpenBSD they are
// here, since zig's lacks the marks of its jump protection (CMakeLists.txt). Rounded to the
// nearest, ties to even.

#include <stdint.h>
#include <string.h>

typedef unsigned __int128 bits;

namespace {

const int FRACTION = 112; // bits, without the first one of a normal number
const int BIAS = 16383, MOST = 32767;
const bits ONE = (bits)1 << FRACTION, SIGN = (bits)1 << 127, INFINITE = (bits)MOST << FRACTION;

bits bits_of(long double value) {
    bits out;
    memcpy(&out, &value, sizeof(out));
    return out;
}

long double from_bits(bits value) {
    long double out;
    memcpy(&out, &value, sizeof(out));
    return out;
}

// By halves: where size counts, clang calls compiler-rt for shifts by any number of bits.
bits left(bits value, int count) {
    const uint64_t low = (uint64_t)value, high = (uint64_t)(value >> 64);
    if (count >= 64) {
        return (bits)(low << (count - 64)) << 64;
    }
    return count == 0 ? value : (bits)(high << count | low >> (64 - count)) << 64 | low << count;
}

bits right(bits value, int count) {
    const uint64_t low = (uint64_t)value, high = (uint64_t)(value >> 64);
    if (count >= 64) {
        return high >> (count - 64);
    }
    return count == 0 ? value : (bits)(high >> count) << 64 | (low >> count | high << (64 - count));
}

int first_bit(bits value) {
    const uint64_t high = (uint64_t)(value >> 64);
    return high != 0 ? 127 - __builtin_clzll(high) : 63 - __builtin_clzll((uint64_t)value);
}

// The fraction with its first bit at FRACTION; gives its exponent.
int taken_apart(bits magnitude, bits & fraction) {
    fraction = magnitude & (ONE - 1);
    const int exponent = (int)(magnitude >> FRACTION);
    if (exponent != 0) {
        fraction |= ONE;
        return exponent;
    }
    const int shift = FRACTION - first_bit(fraction);
    fraction = left(fraction, shift);
    return 1 - shift;
}

// Whatever is lost on the right leaves the last bit set.
bits shifted(bits value, int count) {
    if (count <= 0) {
        return value;
    }
    return count > 127 ? value != 0 : right(value, count) | (left(value, 128 - count) != 0);
}

} // namespace

extern "C" long double __floatditf(int64_t value) {
    if (value == 0) {
        return from_bits(0);
    }
    const bits magnitude = value < 0 ? -(uint64_t)value : (uint64_t)value;
    const int exponent = first_bit(magnitude);
    const bits fraction = left(magnitude, FRACTION - exponent) & (ONE - 1);
    return from_bits((value < 0 ? SIGN : 0) | (bits)(BIAS + exponent) << FRACTION | fraction);
}

// Below 0 where a < b, 0 where they are equal, else above 0, also where one is no number.
extern "C" int __lttf2(long double a, long double b) {
    const bits x = bits_of(a), y = bits_of(b);
    const bits size_of_x = x & ~SIGN, size_of_y = y & ~SIGN;
    if (size_of_x > INFINITE || size_of_y > INFINITE) {
        return 1;
    }
    if ((size_of_x | size_of_y) == 0) {
        return 0;
    }
    const __int128 p = (x & SIGN) != 0 ? -(__int128)size_of_x : (__int128)size_of_x;
    const __int128 q = (y & SIGN) != 0 ? -(__int128)size_of_y : (__int128)size_of_y;
    return p < q ? -1 : p == q ? 0 : 1;
}

extern "C" long double __multf3(long double a, long double b) {
    const bits x = bits_of(a) & ~SIGN, y = bits_of(b) & ~SIGN;
    const bits sign = (bits_of(a) ^ bits_of(b)) & SIGN;
    const bits quiet = INFINITE | ONE >> 1;
    if (x > INFINITE || y > INFINITE) {
        return from_bits((x > INFINITE ? x : y) | quiet);
    }
    if (x == 0 || y == 0) {
        return from_bits(x == INFINITE || y == INFINITE ? quiet : sign);
    }
    if (x == INFINITE || y == INFINITE) {
        return from_bits(sign | INFINITE);
    }
    bits p, q;
    int exponent = taken_apart(x, p) + taken_apart(y, q) - BIAS;
    // The product has 225 or 226 bits: `high` has all but 128, and then all that count.
    const uint64_t p0 = (uint64_t)p, p1 = (uint64_t)(p >> 64);
    const uint64_t q0 = (uint64_t)q, q1 = (uint64_t)(q >> 64);
    const bits crossed = (bits)p0 * q1, other = (bits)p1 * q0, lowest = (bits)p0 * q0;
    const bits middle = (lowest >> 64) + (uint64_t)crossed + (uint64_t)other;
    const bits low = middle << 64 | (uint64_t)lowest;
    bits high = (bits)p1 * q1 + (crossed >> 64) + (other >> 64) + (middle >> 64);
    high = high << 19 | low >> 109; // the first bit at 115 or 116, so that three are below
    high |= (low << 19) != 0;       // what those three don't show
    if (high >> 116 != 0) {
        high = shifted(high, 1);
        exponent++;
    }
    if (exponent <= 0) {
        high = shifted(high, 1 - exponent);
        exponent = 0;
    }
    const int rest = (int)(high & 7);
    high >>= 3;
    high += rest > 4 || (rest == 4 && (high & 1) != 0);
    // A carry out of the fraction belongs to the exponent, as the bits lie.
    const bits out = exponent == 0 ? high : ((bits)(exponent - 1) << FRACTION) + high;
    return from_bits(sign | (exponent >= MOST || out > INFINITE ? INFINITE : out));
}
