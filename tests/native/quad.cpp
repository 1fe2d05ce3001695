// Prints operands and what the functions of system/quad.cpp make of them, for somebody to check.
#include "system/quad.cpp"

#include <cstdio>

static uint64_t state = 1;

static uint64_t any() { // xorshift64
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static bits value() {
    const bits random = ((bits)any() << 64 | any()) & (ONE - 1);
    const bits fractions[] = { 0, 1, ONE - 1, ONE >> 1, random, random >> 60, random >> 111 };
    const int exponents[] = { 0, 1, 2, BIAS / 2, BIAS - 57, BIAS, BIAS + 1, MOST - 1, MOST };
    const int exponent = any() % 2 != 0 ? exponents[any() % 9] : (int)(any() % MOST);
    return (bits)(any() & 1) << 127 | (bits)exponent << FRACTION | fractions[any() % 7];
}

static void print(bits value) {
    printf("%016llx%016llx ", (unsigned long long)(value >> 64), (unsigned long long)value);
}

int main() {
    for (int i = 0; i < 30000; i++) {
        const bits a = value(), b = any() % 16 != 0 ? value() : a;
        const int64_t whole = i == 0 ? 0 : i == 1 ? INT64_MIN : (int64_t)any() >> any() % 64;
        print(a);
        print(b);
        print(bits_of(__multf3(from_bits(a), from_bits(b))));
        print(bits_of(__floatditf(whole)));
        printf("%d %lld\n", __lttf2(from_bits(a), from_bits(b)), (long long)whole);
    }
}
