#include "qr.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <vector>

namespace {

using bytes = std::vector<uint8_t>;

// Of the versions 1 to 5 at error correction level L, which have one block each (table 9).
struct version {
    int number;
    int data;  // codewords
    int check; // codewords
    int size() const {
        return 17 + 4 * number;
    }
};
const version VERSIONS[] = {
    { 1, 19, 7 }, { 2, 34, 10 }, { 3, 55, 15 }, { 4, 80, 20 }, { 5, 108, 26 }
};
const int OVERHEAD = 2; // bytes: mode and count are 12 bits

// Multiplication in the field of 256 elements that the code computes in (section 7.5).
uint8_t times(uint8_t a, uint8_t b) {
    int product = 0;
    for (int bit = 7; bit >= 0; bit--) {
        product = (product << 1) ^ (product & 0x80 ? 0x11D : 0);
        product ^= (b >> bit & 1) != 0 ? a : 0;
    }
    return (uint8_t)product;
}

// The remainder that is sent along, by which a reader mends what it misread.
bytes check_words(const bytes & data, int count) {
    bytes generator((size_t)count);
    generator.back() = 1;
    uint8_t root = 1;
    for (int i = 0; i < count; i++) {
        for (int j = 0; j < count; j++) {
            generator[(size_t)j] = times(generator[(size_t)j], root);
            if (j + 1 < count) {
                generator[(size_t)j] ^= generator[(size_t)j + 1];
            }
        }
        root = times(root, 2);
    }
    bytes rest((size_t)count);
    for (const uint8_t word : data) {
        const uint8_t factor = word ^ rest.front();
        rest.erase(rest.begin());
        rest.push_back(0);
        for (size_t j = 0; j < rest.size(); j++) {
            rest[j] ^= times(generator[j], factor);
        }
    }
    return rest;
}

// Mode (bytes), count, text, end, and what fills up the rest (section 7.4).
bytes code_words(const std::string & text, const version & with) {
    std::vector<bool> bits;
    const auto put = [&bits](unsigned value, int count) {
        for (int i = count - 1; i >= 0; i--) {
            bits.push_back((value >> i & 1) != 0);
        }
    };
    put(4, 4);
    put((unsigned)text.size(), 8);
    for (const char c : text) {
        put((uint8_t)c, 8);
    }
    put(0, 4);
    bytes out;
    for (size_t i = 0; i < bits.size(); i += 8) {
        int byte = 0;
        for (size_t j = 0; j < 8; j++) {
            byte = byte << 1 | (i + j < bits.size() && bits[i + j] ? 1 : 0);
        }
        out.push_back((uint8_t)byte);
    }
    out.resize(std::min(out.size(), (size_t)with.data));
    for (int fill = 0xEC; (int)out.size() < with.data; fill ^= 0xEC ^ 0x11) {
        out.push_back((uint8_t)fill);
    }
    const bytes check = check_words(out, with.check);
    out.insert(out.end(), check.begin(), check.end());
    return out;
}

class grid {
  public:
    explicit grid(const version & with)
        : size(with.size()), dark((size_t)(size * size)), fixed((size_t)(size * size)) {
        for (int i = 0; i < size; i++) { // timing
            put(6, i, i % 2 == 0);
            put(i, 6, i % 2 == 0);
        }
        finder(3, 3);
        finder(size - 4, 3);
        finder(3, size - 4);
        if (with.number > 1) {
            for (int y = -2; y <= 2; y++) {
                for (int x = -2; x <= 2; x++) {
                    put(size - 7 + x, size - 7 + y, std::max(abs(x), abs(y)) != 1);
                }
            }
        }
        format();
    }

    bool at(int x, int y) const {
        return x >= 0 && y >= 0 && x < size && y < size && dark[place(x, y)];
    }

    // In pairs of columns from the right, upwards and downwards in turn (section 7.7.3); mask 0.
    void fill(const bytes & words) {
        size_t bit = 0;
        bool up = true;
        for (int right = size - 1; right > 0; right -= 2, up = !up) {
            right -= right == 6 ? 1 : 0;
            for (int i = 0; i < size; i++) {
                const int y = up ? size - 1 - i : i;
                for (int x = right; x > right - 2; x--) {
                    if (fixed[place(x, y)]) {
                        continue;
                    }
                    const bool on =
                        bit < words.size() * 8 && (words[bit / 8] >> (7 - bit % 8) & 1) != 0;
                    dark[place(x, y)] = on != ((x + y) % 2 == 0);
                    bit++;
                }
            }
        }
    }

    const int size;

  private:
    size_t place(int x, int y) const {
        return (size_t)(y * size + x);
    }

    void put(int x, int y, bool on) {
        if (x >= 0 && y >= 0 && x < size && y < size) {
            dark[place(x, y)] = on;
            fixed[place(x, y)] = true;
        }
    }

    void finder(int left, int top) {
        for (int y = -4; y <= 4; y++) {
            for (int x = -4; x <= 4; x++) {
                const int ring = std::max(abs(x), abs(y));
                put(left + x, top + y, ring != 2 && ring != 4);
            }
        }
    }

    // Level L and mask 0, twice (section 7.9): 01 000 and its check bits, exclusive or 0x5412.
    void format() {
        static const unsigned bits = 0x77C4;
        const auto on = [](int i) { return (bits >> i & 1) != 0; };
        for (int i = 0; i < 6; i++) {
            put(8, i, on(i));
            put(5 - i, 8, on(9 + i));
        }
        put(8, 7, on(6));
        put(8, 8, on(7));
        put(7, 8, on(8));
        for (int i = 0; i < 8; i++) {
            put(size - 1 - i, 8, on(i));
        }
        for (int i = 0; i < 7; i++) {
            put(8, size - 7 + i, on(8 + i));
        }
        put(8, size - 8, true);
    }

    std::vector<bool> dark, fixed;
};

} // namespace

std::string qr_code(const std::string & text) {
    const version * with = nullptr;
    for (const version & candidate : VERSIONS) {
        if (with == nullptr && (int)text.size() + OVERHEAD <= candidate.data) {
            with = &candidate;
        }
    }
    if (with == nullptr) {
        return "";
    }
    grid code(*with);
    code.fill(code_words(text, *with));
    std::string out;
    const int quiet = 4;
    for (int y = -quiet; y < code.size + quiet; y += 2) { // two rows to a line
        out += "\033[30;107m";
        for (int x = -quiet; x < code.size + quiet; x++) {
            const std::array<const char *, 4> halves = { " ", "▀", "▄", "█" };
            out += halves[(size_t)((code.at(x, y) ? 1 : 0) + (code.at(x, y + 1) ? 2 : 0))];
        }
        out += "\033[0m\n";
    }
    return out;
}
