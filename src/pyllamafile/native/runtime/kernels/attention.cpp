// Attention: what tokens (queries) make of the positions (keys and values) that they see, ahead of
// upstream's. What is not for us goes on to it.
//
// Tokens that see mostly the same positions are taken together, with all heads that share keys and
// values: the rows of a tile. Keys and values are made ready once for all of them, a block of
// positions at a time, and only those that one of the tokens sees.
//
// What comes out for a row doesn't depend on the others, on how positions fall into blocks, where
// they lie in the cache or what lies between them, bit for bit:
//
// - the score of a position is summed over the key from its first number to its last;
// - weights and values are summed over positions in ascending order, one by one;
// - weights are relative to the largest score so far, as always, but rounded to a power of two:
// when
//   a larger one comes, what there is is multiplied by another, which is exact. It doesn't matter
//   then when that happens.

#include "ggml-cpu-impl.h"
#include "ops.h"

#if defined(__SSE4_1__) || defined(__ARM_NEON)

#include "lanes.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

namespace {

const int BLOCK = 64;           // positions
const int64_t MOST_ROWS = 64;   // of a tile, unless a single token has more
const int64_t LEAST_ROWS = 16;  // that tiles are cut down to, for all threads to have some
const int64_t JOBS = 4;         // that a thread should have
const uint16_t UNSEEN = 0xfc00; // minus infinity

struct attention {
    const ggml_tensor *q, *k, *v, *mask, *sinks, *out;
    int64_t depth;   // numbers of a key
    int64_t vectors; // registers for a value
    int64_t group;   // heads that share keys and values
    float scale, bias, cap;

    int64_t width() const {
        return vectors * LANES;
    }
};

// Tokens of one sequence that follow each other.
struct tokens {
    int64_t sequence, first, end;

    int64_t count() const {
        return end - first;
    }
};

template <typename T>
const T * row_of(const ggml_tensor * tensor, int64_t i1, int64_t i2, int64_t i3) {
    return (const T *)((const char *)tensor->data + i1 * (int64_t)tensor->nb[1] +
                       i2 * (int64_t)tensor->nb[2] + i3 * (int64_t)tensor->nb[3]);
}

const uint16_t * mask_of(const attention & a, int64_t sequence, int64_t token) {
    return row_of<uint16_t>(a.mask, token, 0, sequence % a.mask->ne[3]);
}

float power_of_two(float whole) {
    const int32_t biased = whole < -126 ? 0 : ((int32_t)whole + 127) << 23;
    float out;
    memcpy(&out, &biased, sizeof(out));
    return out;
}

// Memory of a thread for a tile. Rows are in the order of tokens, and of heads for each.
struct memory {
    float * queries;    // [rows][depth], scaled
    float * panel;      // [depth][BLOCK], the keys of a block
    float * values;     // [BLOCK][width]
    float * converted;  // [8][depth], keys of types that panels aren't made of
    float * seen;       // [tokens][BLOCK], what the mask adds to scores
    float * weights;    // [rows][BLOCK]
    float * tops;       // [rows], what weights are relative to, in powers of two
    float * out;        // [rows][width]
    float * references; // [rows], the same for what there is
    float * sums;       // [rows], of weights
};

thread_local std::vector<line> tile_memory;

memory memory_for(const attention & a, int64_t count) {
    const int64_t rows = count * a.group;
    const int64_t sizes[] = { rows * a.depth,
                              a.depth * BLOCK,
                              BLOCK * a.width(),
                              8 * a.depth,
                              count * BLOCK,
                              rows * BLOCK,
                              rows,
                              rows * a.width(),
                              rows,
                              rows };
    float * parts[10];
    int64_t total = 0;
    for (const int64_t size : sizes) {
        total += (size + LANES - 1) / LANES * LANES;
    }
    float * at = scratch<float>(tile_memory, (size_t)total);
    for (int i = 0; i < 10; i++) {
        parts[i] = at;
        at += (sizes[i] + LANES - 1) / LANES * LANES;
    }
    return { parts[0], parts[1], parts[2], parts[3], parts[4],
             parts[5], parts[6], parts[7], parts[8], parts[9] };
}

// Which tokens, and which positions.

// Whether two tokens see mostly the same, as those of one conversation do.
bool are_alike(const uint16_t * a, const uint16_t * b, int64_t count) {
    int32_t of_a = 0, of_b = 0, of_both = 0;
    for (int64_t i = 0; i < count; i++) {
        of_a += a[i] != UNSEEN;
        of_b += b[i] != UNSEEN;
        of_both += a[i] != UNSEEN && b[i] != UNSEEN;
    }
    return 2 * of_both >= std::min(of_a, of_b);
}

// The tiles, which are the same for every thread.
std::vector<tokens> tiles_of(const attention & a, int threads) {
    const int64_t heads = a.k->ne[2], count = a.q->ne[1], sequences = a.q->ne[3];
    const int64_t wished = (count * sequences * heads + JOBS * threads - 1) / (JOBS * threads);
    const int64_t least = (LEAST_ROWS + a.group - 1) / a.group;
    const int64_t most = std::max<int64_t>(1, MOST_ROWS / a.group);
    const int64_t size = std::min(most, std::max(least, wished));
    std::vector<tokens> out;
    for (int64_t sequence = 0; sequence < sequences; sequence++) {
        for (int64_t first = 0, end; first < count; first = end) {
            for (end = first + 1; end < std::min(count, first + size); end++) {
                if (a.mask && !are_alike(mask_of(a, sequence, end - 1), mask_of(a, sequence, end),
                                         a.k->ne[1])) {
                    break;
                }
            }
            out.push_back({ sequence, first, end });
        }
    }
    return out;
}

thread_local std::vector<uint16_t> some_see; // 0 where nobody does

// The positions that any of the tokens sees.
void find_seen(const attention & a, const tokens & some, std::vector<int32_t> & out) {
    const int64_t count = a.k->ne[1];
    out.clear();
    if (!a.mask) {
        for (int64_t i = 0; i < count; i++) {
            out.push_back((int32_t)i);
        }
        return;
    }
    some_see.assign((size_t)count, 0);
    for (int64_t token = some.first; token < some.end; token++) {
        const uint16_t * const mask = mask_of(a, some.sequence, token);
        for (int64_t i = 0; i < count; i++) {
            some_see[i] |= mask[i] ^ UNSEEN;
        }
    }
    for (int64_t i = 0; i < count; i++) {
        if (some_see[i]) {
            out.push_back((int32_t)i);
        }
    }
}

// Keys and values in memory.

void convert(const ggml_tensor * tensor, const void * from, float * out, int64_t count) {
    if (tensor->type == GGML_TYPE_F32) {
        memcpy(out, from, count * sizeof(float));
    } else if (tensor->type == GGML_TYPE_F16) {
        const auto * const numbers = (const ggml_fp16_t *)from;
        int64_t i = 0;
        for (; i + LANES <= count; i += LANES) {
            store(out + i, widen(numbers + i));
        }
        for (; i < count; i++) {
            out[i] = GGML_CPU_FP16_TO_FP32(numbers[i]);
        }
    } else {
        ggml_get_type_traits(tensor->type)->to_float(from, out, count);
    }
}

// Asks for what comes next. Rows are too far from each other for the processor to guess.
void fetch(const ggml_tensor * tensor, int64_t head, int64_t sequence, const int32_t * positions,
           int count) {
    const int64_t bytes = (int64_t)ggml_row_size(tensor->type, tensor->ne[0]);
    for (int i = 0; i < count; i++) {
        const char * const row = row_of<char>(tensor, positions[i], head, sequence);
        for (int64_t at = 0; at < bytes; at += 64) {
            __builtin_prefetch(row + at);
        }
    }
}

float word(const float * x) {
    return *x;
}
float word(const ggml_fp16_t * x) {
    return GGML_CPU_FP16_TO_FP32(*x);
}

template <typename number>
void turn(const number * const (&rows)[8], int64_t depth, float * panel) {
    int64_t d = 0;
#ifdef __AVX2__
    for (; d + 8 <= depth; d += 8) {
        __m256i eight[8];
        for (int i = 0; i < 8; i++) {
            if constexpr (std::is_same_v<number, float>) {
                eight[i] = _mm256_loadu_si256((const __m256i *)(rows[i] + d));
            } else {
                const __m128i halves = _mm_loadu_si128((const __m128i *)(rows[i] + d));
                eight[i] = _mm256_castps_si256(_mm256_cvtph_ps(halves));
            }
        }
        transpose(eight);
        for (int i = 0; i < 8; i++) {
            _mm256_store_si256((__m256i *)(panel + (d + i) * BLOCK), eight[i]);
        }
    }
#elif defined(__ARM_NEON)
    for (; d + 4 <= depth; d += 4) {
        for (int first = 0; first < 8; first += 4) {
            floats four[4];
            for (int i = 0; i < 4; i++) {
                four[i] = widen(rows[first + i] + d);
            }
            const float32x4x2_t low = vzipq_f32(four[0], four[2]);
            const float32x4x2_t high = vzipq_f32(four[1], four[3]);
            for (int half = 0; half < 2; half++) {
                const float32x4x2_t two = vzipq_f32(low.val[half], high.val[half]);
                store(panel + (d + 2 * half) * BLOCK + first, two.val[0]);
                store(panel + (d + 2 * half + 1) * BLOCK + first, two.val[1]);
            }
        }
    }
#endif
    for (; d < depth; d++) {
        for (int i = 0; i < 8; i++) {
            panel[d * BLOCK + i] = word(rows[i] + d);
        }
    }
}

// The keys of positions side by side, as the lanes of registers; the last one fills what is left.
void make_panel(const attention & a, int64_t head, int64_t sequence, const int32_t * positions,
                int count, const memory & at) {
    for (int first = 0; first < count; first += 8) {
        const void * rows[8];
        for (int i = 0; i < 8; i++) {
            rows[i] = row_of<char>(a.k, positions[std::min(first + i, count - 1)], head, sequence);
        }
        if (a.k->type == GGML_TYPE_F16) {
            const ggml_fp16_t * halves[8];
            std::copy_n((const ggml_fp16_t * const *)rows, 8, halves);
            turn(halves, a.depth, at.panel + first);
        } else {
            const float * numbers[8];
            for (int i = 0; i < 8; i++) {
                convert(a.k, rows[i], at.converted + i * a.depth, a.depth);
                numbers[i] = at.converted + i * a.depth;
            }
            turn(numbers, a.depth, at.panel + first);
        }
    }
    for (int first = (count + 7) / 8 * 8; first % LANES != 0; first += 8) {
        for (int64_t d = 0; d < a.depth; d++) {
            std::fill_n(at.panel + d * BLOCK + first, 8, at.panel[d * BLOCK + first - 1]);
        }
    }
}

// Some rows at a time, and as many registers for each as there are.

const int MOST_AT_ONCE = 6;

constexpr int registers_of_each(int rows) {
    int out = 8;
    while (out * rows > SUMS_AT_ONCE) {
        out /= 2;
    }
    return out;
}

template <int N> using number_of = std::integral_constant<int, N>;

// Adds to sums of rows what registers times a number of each row are, in an order in which all of
// it stays in registers.
template <int N, int W, typename left, typename right>
inline void multiply_all(floats (&sums)[N][W], const left & number_of_row, const right & part) {
    if constexpr (W <= N) {
        floats parts[W];
        for (int i = 0; i < W; i++) {
            parts[i] = part(i);
        }
        for (int r = 0; r < N; r++) {
            const floats number = all(number_of_row(r));
            for (int i = 0; i < W; i++) {
                sums[r][i] = multiply_add(number, parts[i], sums[r][i]);
            }
        }
    } else {
        floats numbers[N];
        for (int r = 0; r < N; r++) {
            numbers[r] = all(number_of_row(r));
        }
        for (int i = 0; i < W; i++) {
            const floats one = part(i);
            for (int r = 0; r < N; r++) {
                sums[r][i] = multiply_add(numbers[r], one, sums[r][i]);
            }
        }
    }
}

// Calls `run` with a number of rows, the first of them, a number of registers and the first of
// them.
template <int N, int W, typename work>
void in_registers(int64_t row, int64_t first, int64_t end, const work & run) {
    for (; first + W <= end; first += W) {
        run(number_of<N>(), row, number_of<W>(), first);
    }
    if constexpr (W > 1) {
        in_registers<N, W / 2>(row, first, end, run);
    }
}

template <int N = MOST_AT_ONCE, typename work>
void in_tiles(int64_t row, int64_t end_of_rows, int64_t first, int64_t end, const work & run) {
    for (; row + N <= end_of_rows; row += N) {
        in_registers<N, registers_of_each(N)>(row, first, end, run);
    }
    if constexpr (N > 1) {
        in_tiles<N - 1>(row, end_of_rows, first, end, run);
    }
}

// Rows of a tile for which a block has something.
struct range {
    int64_t first, end;
};

// What the mask adds to the scores of a block, and which tokens see some of it.
range look(const attention & a, const tokens & some, const int32_t * positions, int count,
           const memory & at) {
    range out = { some.count(), 0 };
    const bool together = positions[count - 1] - positions[0] == count - 1;
    for (int64_t i = 0; i < some.count(); i++) {
        uint16_t halves[BLOCK];
        std::fill(halves + count, halves + BLOCK, UNSEEN);
        if (!a.mask) {
            std::fill_n(halves, count, 0);
        } else if (const uint16_t * const mask = mask_of(a, some.sequence, some.first + i);
                   together) {
            memcpy(halves, mask + positions[0], count * sizeof(halves[0]));
        } else {
            for (int c = 0; c < count; c++) {
                halves[c] = mask[positions[c]];
            }
        }
        if (std::any_of(halves, halves + count, [](uint16_t half) { return half != UNSEEN; })) {
            out = { std::min(out.first, i), i + 1 };
        }
        for (int c = 0; c < BLOCK; c += LANES) {
            store(at.seen + i * BLOCK + c, widen((const ggml_fp16_t *)halves + c));
        }
    }
    return out;
}

// e^x is 2^whole times what this gives.
floats fraction_of_exp(floats x, floats whole) {
    floats r = multiply_add(whole, all(-0x1.62e4p-1f), x); // ln 2 in two parts
    r = multiply_add(whole, all(-0x1.7f7d1cp-20f), r);
    r = largest(r, all(-1.0f)); // and for minus infinity, whose whole is -infinity, some number
    floats p = all(0.00138145f);
    p = multiply_add(p, r, all(0.00836875f));
    p = multiply_add(p, r, all(0.04166839f));
    p = multiply_add(p, r, all(0.1666652f));
    p = multiply_add(p, r, all(0.49999993f));
    p = multiply_add(p, r, all(1.0f));
    return multiply_add(p, r, all(1.0f));
}

const float LOG2_E = 1.44269504f;

float slope_of(const attention & a, int64_t head) {
    if (a.bias <= 0) {
        return 1;
    }
    const int64_t heads = a.q->ne[2];
    const int64_t whole = (int64_t)1 << (int)floor(log2((double)heads));
    return head < whole
               ? powf(powf(2, -a.bias / (float)whole), (float)(head + 1))
               : powf(powf(2, -a.bias / 2 / (float)whole), (float)(2 * (head - whole) + 1));
}

// Scores of a block become weights, relative to the largest.
void weigh_row(const attention & a, float slope, const float * seen, int width, float * weights,
               float * top) {
    if (a.cap != 0) {
        for (int c = 0; c < width; c++) {
            weights[c] = a.cap * tanhf(weights[c]);
        }
    }
    floats best = all(-INFINITY);
    for (int c = 0; c < width; c += LANES) {
        const floats score = multiply_add(all(slope), load(seen + c), load(weights + c));
        store(weights + c, score);
        best = largest(score, best);
    }
    const floats whole_of_best = nearest(multiply(all(largest_of(best)), all(LOG2_E)));
    for (int c = 0; c < width; c += LANES) {
        const floats score = load(weights + c);
        const floats whole = nearest(multiply(score, all(LOG2_E)));
        const floats factor = power_of_two(whole - whole_of_best);
        store(weights + c, multiply(fraction_of_exp(score, whole), factor));
    }
    float lanes[LANES];
    store(lanes, whole_of_best);
    *top = lanes[0];
}

// The weights of a block, for the rows that see some of it.
range weigh(const attention & a, const tokens & some, int64_t head, const int32_t * positions,
            int count, const memory & at, float * weights, float * tops) {
    const range seeing = look(a, some, positions, count, at);
    if (seeing.first >= seeing.end) {
        return { 0, 0 };
    }
    const range rows = { seeing.first * a.group, seeing.end * a.group };
    make_panel(a, head, some.sequence, positions, count, at);
    const int registers = (count + LANES - 1) / LANES;
    in_tiles(rows.first, rows.end, 0, registers, [&](auto n, int64_t row, auto w, int64_t first) {
        floats sums[n()][w()];
        for (auto & of_row : sums) {
            std::fill_n(of_row, w(), zero());
        }
        const float * const query = at.queries + row * a.depth;
        const float * const panel = at.panel + first * LANES;
        for (int64_t d = 0; d < a.depth; d++) {
            multiply_all(
                sums, [&](int r) { return query[r * a.depth + d]; },
                [&](int i) { return load(panel + d * BLOCK + i * LANES); });
        }
        for (int r = 0; r < n(); r++) {
            for (int i = 0; i < w(); i++) {
                store(weights + (row + r) * BLOCK + (first + i) * LANES, sums[r][i]);
            }
        }
    });
    for (int64_t row = rows.first; row < rows.end; row++) {
        const float slope = slope_of(a, head * a.group + row % a.group);
        weigh_row(a, slope, at.seen + row / a.group * BLOCK, registers * LANES,
                  weights + row * BLOCK, tops + row);
    }
    return rows;
}

// Adds weights to the sums of their rows, in ascending order.
void add_weights(const float * weights, range rows, int count, float * sums) {
#ifdef __AVX2__
    // Rows side by side, as lanes.
    for (int64_t row = rows.first; row < rows.end; row += 8) {
        const int64_t left = std::min<int64_t>(8, rows.end - row);
        float eight[8] = {};
        std::copy_n(sums + row, left, eight);
        __m256 total = _mm256_loadu_ps(eight);
        for (int c = 0; c < count; c += 8) {
            __m256i x[8];
            for (int i = 0; i < 8; i++) {
                const float * const from = weights + (row + std::min<int64_t>(i, left - 1)) * BLOCK;
                x[i] = _mm256_loadu_si256((const __m256i *)(from + c));
            }
            transpose(x);
            for (int i = 0; i < 8; i++) {
                total = _mm256_add_ps(total, _mm256_castsi256_ps(x[i]));
            }
        }
        _mm256_storeu_ps(eight, total);
        std::copy_n(eight, left, sums + row);
    }
#else
    const int64_t AT_ONCE = 8; // sums that don't wait for each other
    for (int64_t row = rows.first; row < rows.end; row += AT_ONCE) {
        const int64_t end = std::min(row + AT_ONCE, rows.end);
        for (int c = 0; c < count; c++) {
            for (int64_t r = row; r < end; r++) {
                sums[r] += weights[r * BLOCK + c];
            }
        }
    }
#endif
}

// Adds the values of a block by their weights, in the registers from `first` to `end` of each.
void add_values(const attention & a, const tokens & some, int64_t head, const int32_t * positions,
                int count, range rows, const float * weights, const float * tops, int64_t first,
                int64_t end, const memory & at) {
    for (int64_t row = rows.first; row < rows.end; row++) {
        float * const own = at.weights + row * BLOCK;
        const float apart = tops[row] - at.references[row];
        if (apart > 0) {
            const floats factor = all(power_of_two(-apart));
            for (int64_t i = first; i < end; i++) {
                float * const out = at.out + row * a.width() + i * LANES;
                store(out, multiply(load(out), factor));
            }
            at.sums[row] *= power_of_two(-apart);
            at.references[row] = tops[row];
        }
        if (apart < 0 || own != weights + row * BLOCK) {
            // also where a token sees nothing of the block, whose weights are 0
            const floats factor = all(apart < 0 ? power_of_two(apart) : 1);
            for (int c = 0; c < count; c += LANES) {
                store(own + c, multiply(widen(weights + row * BLOCK + c), factor));
            }
        }
    }
    add_weights(at.weights, rows, count, at.sums);

    const auto add = [&](const auto & value_of) {
        in_tiles(rows.first, rows.end, first, end, [&](auto n, int64_t row, auto w, int64_t at_) {
            floats sums[n()][w()];
            float * const out = at.out + row * a.width() + at_ * LANES;
            for (int r = 0; r < n(); r++) {
                for (int i = 0; i < w(); i++) {
                    sums[r][i] = load(out + r * a.width() + i * LANES);
                }
            }
            const float * const own = at.weights + row * BLOCK;
            for (int c = 0; c < count; c++) {
                const auto * const value = value_of(c) + at_ * LANES;
                multiply_all(
                    sums, [&](int r) { return own[r * BLOCK + c]; },
                    [&](int i) { return widen(value + i * LANES); });
            }
            for (int r = 0; r < n(); r++) {
                for (int i = 0; i < w(); i++) {
                    store(out + r * a.width() + i * LANES, sums[r][i]);
                }
            }
        });
    };
    const bool whole = a.v->ne[0] == a.width();
    if (whole && a.v->type == GGML_TYPE_F16 && rows.end - rows.first <= 2 * MOST_AT_ONCE) {
        add([&](int c) { return row_of<ggml_fp16_t>(a.v, positions[c], head, some.sequence); });
        return;
    }
    for (int c = 0; c < count; c++) {
        float * const value = at.values + c * a.width();
        convert(a.v, row_of<char>(a.v, positions[c], head, some.sequence), value, a.v->ne[0]);
        std::fill(value + a.v->ne[0], value + a.width(), 0.0f);
    }
    add([&](int c) { return at.values + c * a.width(); });
}

void begin(const attention & a, const tokens & some, int64_t head, const memory & at) {
    const int64_t rows = some.count() * a.group;
    for (int64_t row = 0; row < rows; row++) {
        const float * const query = row_of<float>(a.q, some.first + row / a.group,
                                                  head * a.group + row % a.group, some.sequence);
        for (int64_t d = 0; d < a.depth; d++) {
            at.queries[row * a.depth + d] = a.scale * query[d];
        }
    }
    std::fill_n(at.out, rows * a.width(), 0.0f);
    std::fill_n(at.references, rows, -INFINITY);
    std::fill_n(at.sums, rows, 0.0f);
}

// Writes the numbers from `first` on of all rows.
void finish(const attention & a, const tokens & some, int64_t head, int64_t first, int64_t end,
            const memory & at) {
    for (int64_t row = 0; row < some.count() * a.group; row++) {
        const int64_t own_head = head * a.group + row % a.group;
        float sum = at.sums[row], factor = 1;
        if (a.sinks) { // a position without a value
            const float sink = ((const float *)a.sinks->data)[own_head];
            const float whole = nearbyintf(sink * LOG2_E);
            const float top = std::max(whole, at.references[row]);
            factor = power_of_two(at.references[row] - top);
            float lanes[LANES];
            store(lanes, fraction_of_exp(all(sink), all(whole)));
            sum = sum * factor + lanes[0] * power_of_two(whole - top);
        }
        const float share = sum == 0 ? 0 : factor / sum;
        float * const out =
            (float *)row_of<float>(a.out, own_head, some.first + row / a.group, some.sequence);
        for (int64_t i = first; i < end; i++) {
            out[i] = share * at.out[row * a.width() + i];
        }
    }
}

thread_local std::vector<int32_t> positions_seen;

// A tile from its queries to what comes out, by one thread.
void attend(const attention & a, const tokens & some, int64_t head) {
    const memory at = memory_for(a, some.count());
    std::vector<int32_t> & positions = positions_seen;
    find_seen(a, some, positions);
    begin(a, some, head, at);
    const int64_t seen = (int64_t)positions.size();
    for (int64_t first = 0; first < seen; first += BLOCK) {
        const int count = (int)std::min<int64_t>(BLOCK, seen - first);
        fetch(a.v, head, some.sequence, positions.data() + first, count);
        const range rows =
            weigh(a, some, head, positions.data() + first, count, at, at.weights, at.tops);
        const int64_t next = first + count;
        fetch(a.k, head, some.sequence, positions.data() + next,
              (int)std::min<int64_t>(BLOCK, seen - next));
        add_values(a, some, head, positions.data() + first, count, rows, at.weights, at.tops, 0,
                   a.vectors, at);
    }
    finish(a, some, head, 0, a.v->ne[0], at);
}

// Few tiles for many threads: weights are made of some blocks each, for all to see, and then some
// numbers of every value are added by them. False if there is no memory for a block of all tiles.
bool attend_together(const attention & a, const std::vector<tokens> & tiles,
                     const ggml_compute_params * params) {
    const int64_t heads = a.k->ne[2], jobs = (int64_t)tiles.size() * heads;
    const int64_t parts = std::min(a.vectors, (2 * params->nth + jobs - 1) / jobs);
    const int64_t of_part = (a.vectors + parts - 1) / parts;
    int64_t most_tokens = 0, most_seen = 0;
    std::vector<std::vector<int32_t>> seen(tiles.size());
    for (size_t t = 0; t < tiles.size(); t++) {
        find_seen(a, tiles[t], seen[t]);
        most_tokens = std::max(most_tokens, tiles[t].count());
        most_seen = std::max(most_seen, (int64_t)seen[t].size());
    }
    const int64_t rows = most_tokens * a.group;

    // Of all threads: what there is of every part of a tile, and then blocks.
    const int64_t of_state = rows * (a.width() + 2), of_block = rows * (BLOCK + 1) + LANES;
    float * const states = (float *)params->wdata;
    float * const blocks = states + jobs * parts * of_state;
    const int64_t room = (int64_t)(params->wsize / sizeof(float)) - jobs * parts * of_state;
    const int64_t at_once = room / (jobs * of_block);
    if (at_once < 1) {
        return false;
    }
    const memory at = memory_for(a, most_tokens);
    for (int64_t start = 0; start < most_seen; start += at_once * BLOCK) {
        const int64_t left = (most_seen - start + BLOCK - 1) / BLOCK;
        const int64_t count_of_blocks = std::min(at_once, left);
        const auto part_of = [&](const std::vector<int32_t> & positions, int64_t block) {
            const int64_t first = start + block * BLOCK, end = (int64_t)positions.size();
            return std::make_pair(positions.data() + first,
                                  (int)std::clamp<int64_t>(end - first, 0, BLOCK));
        };
        if (start > 0) {
            ggml_barrier(params->threadpool);
        }
        const int64_t all_blocks = jobs * count_of_blocks;
        const int64_t end_of_own = all_blocks * (params->ith + 1) / params->nth;
        for (int64_t i = all_blocks * params->ith / params->nth; i < end_of_own; i++) {
            const int64_t job = i / count_of_blocks, head = job % heads;
            const tokens & some = tiles[job / heads];
            const auto [positions, count] = part_of(seen[job / heads], i % count_of_blocks);
            float * const block = blocks + i * of_block;
            range rows_seeing = { 0, 0 };
            if (count > 0) {
                fetch(a.k, head, some.sequence, positions, count);
                begin(a, some, head, at);
                rows_seeing = weigh(a, some, head, positions, count, at, at.weights, at.tops);
            }
            memcpy(block, at.weights, rows * BLOCK * sizeof(float));
            memcpy(block + rows * BLOCK, at.tops, rows * sizeof(float));
            block[rows * (BLOCK + 1)] = (float)rows_seeing.first;
            block[rows * (BLOCK + 1) + 1] = (float)rows_seeing.end;
        }
        ggml_barrier(params->threadpool);
        for (int64_t i = params->ith; i < jobs * parts; i += params->nth) {
            const int64_t job = i / parts, head = job % heads;
            const tokens & some = tiles[job / heads];
            const int64_t first = i % parts * of_part;
            const int64_t end = std::min(a.vectors, first + of_part);
            if (first >= end) {
                continue;
            }
            float * const state = states + i * of_state;
            if (start == 0) {
                begin(a, some, head, at);
            } else {
                memcpy(at.out, state, rows * a.width() * sizeof(float));
                memcpy(at.references, state + rows * a.width(), rows * sizeof(float));
                memcpy(at.sums, state + rows * (a.width() + 1), rows * sizeof(float));
            }
            for (int64_t b = 0; b < count_of_blocks; b++) {
                const auto [positions, count] = part_of(seen[job / heads], b);
                if (count == 0) {
                    break;
                }
                const float * const block = blocks + (job * count_of_blocks + b) * of_block;
                const range rows_seeing = { (int64_t)block[rows * (BLOCK + 1)],
                                            (int64_t)block[rows * (BLOCK + 1) + 1] };
                fetch(a.v, head, some.sequence, positions, count);
                add_values(a, some, head, positions, count, rows_seeing, block,
                           block + rows * BLOCK, first, end, at);
            }
            memcpy(state, at.out, rows * a.width() * sizeof(float));
            memcpy(state + rows * a.width(), at.references, rows * sizeof(float));
            memcpy(state + rows * (a.width() + 1), at.sums, rows * sizeof(float));
            if (start + count_of_blocks * BLOCK >= most_seen) {
                finish(a, some, head, first * LANES, std::min(a.v->ne[0], end * LANES), at);
            }
        }
    }
    return true;
}

bool is_for_us(const attention & a) {
    const auto readable = [](const ggml_tensor * tensor) {
        return (tensor->type == GGML_TYPE_F32 ||
                ggml_get_type_traits(tensor->type)->to_float != nullptr) &&
               tensor->nb[0] == ggml_type_size(tensor->type);
    };
    return a.q->type == GGML_TYPE_F32 && a.q->nb[0] == sizeof(float) && readable(a.k) &&
           readable(a.v) && a.k->ne[2] == a.v->ne[2] && a.k->ne[3] == a.q->ne[3] &&
           a.v->ne[3] == a.q->ne[3] && a.q->ne[2] % a.k->ne[2] == 0 &&
           (!a.mask || (a.mask->type == GGML_TYPE_F16 && a.mask->ne[2] == 1));
}

} // namespace

extern "C" void our_attention(const ggml_compute_params * params, ggml_tensor * dst) {
    attention a = { dst->src[0], dst->src[1], dst->src[2], dst->src[3], dst->src[4], dst,
                    0,           0,           0,           0,           0,           0 };
    if (params->use_ref || !is_for_us(a)) {
        ggml_compute_forward_flash_attn_ext(params, dst);
        return;
    }
    a.depth = a.k->ne[0];
    a.vectors = (a.v->ne[0] + LANES - 1) / LANES;
    a.group = a.q->ne[2] / a.k->ne[2];
    memcpy(&a.scale, dst->op_params, sizeof(float));
    memcpy(&a.bias, dst->op_params + 1, sizeof(float));
    memcpy(&a.cap, dst->op_params + 2, sizeof(float));
    if (a.cap != 0) {
        a.scale /= a.cap;
    }
    const std::vector<tokens> tiles = tiles_of(a, params->nth);
    const int64_t heads = a.k->ne[2], jobs = (int64_t)tiles.size() * heads;
    if (params->nth > 1 && jobs < 2 * params->nth && a.k->ne[1] > 4 * BLOCK &&
        attend_together(a, tiles, params)) {
        return;
    }
    // From the last tile, which sees most.
    share(params, jobs,
          [&](int64_t job) { attend(a, tiles[tiles.size() - 1 - job / heads], job % heads); });
}

#else

extern "C" void our_attention(const ggml_compute_params * params, ggml_tensor * dst) {
    ggml_compute_forward_flash_attn_ext(params, dst);
}

#endif
