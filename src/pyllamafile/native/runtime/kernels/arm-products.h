// Products of one column with rows of Q4_K and Q5_K, eight of which repack.cpp puts together for
// processors with I8MM. Upstream's kernel for a column rounds after every 32 weights, and its
// kernel for four columns after every block; here it is every block, too.
#pragma once

#include "ggml-cpu-impl.h"
#include "repack.h"

#include <cstring>

#if defined(__ARM_NEON) && defined(__ARM_FEATURE_DOTPROD)

namespace {

// Bits 0 to 3 or 4 to 7 of bytes, and the fifth ones of a part of 32 out of other bytes.
template <int HALF> uint8x16_t quants_of(const block_q4_Kx8 & x, int64_t at, int64_t, int) {
    const uint8x16_t both = vld1q_u8(x.qs + at);
    return HALF == 0 ? vandq_u8(both, vdupq_n_u8(15)) : vshrq_n_u8(both, 4);
}
template <int HALF>
uint8x16_t quants_of(const block_q5_Kx8 & x, int64_t at, int64_t high, int part) {
    const uint8x16_t both = vld1q_u8(x.qs + at);
    const uint8x16_t four = HALF == 0 ? vandq_u8(both, vdupq_n_u8(15)) : vshrq_n_u8(both, 4);
    const uint8x16_t fifth = vshlq_u8(vld1q_u8(x.qh + high), vdupq_n_s8((int8_t)-part));
    return vorrq_u8(four, vshlq_n_u8(vandq_u8(fifth, vdupq_n_u8(1)), 4));
}

// Of eight rows, the sums of a part's products and the scales of it, added to what there is. The
// quants of a row stand eight together.
template <int HALF, typename eight_rows>
void add_part(const eight_rows & x, const block_q8_K & column, int part, int32x4_t (&sums)[2],
              int32x4_t (&minima)[2]) {
    int32x4_t pairs[4] = {};
    for (int i = 0; i < 4; i++) {
        const int64_t * const eight = (const int64_t *)(column.qs + 32 * part + 8 * i);
        const int8x16_t values = vreinterpretq_s8_s64(vld1q_dup_s64(eight));
        for (int two = 0; two < 4; two++) {
            const uint8x16_t quants =
                quants_of<HALF>(x, part / 2 * 256 + 64 * i + 16 * two, 64 * i + 16 * two, part);
            pairs[two] = vdotq_s32(pairs[two], vreinterpretq_s8_u8(quants), values);
        }
    }
    // Eight scales and eight mins of six bits (ggml-quants.c, get_scale_min_k4).
    uint32_t packed[3];
    memcpy(packed, x.scales + 12 * part, sizeof(packed));
    const uint32_t low = 0x0f0f0f0f, high = 0x30303030, six = 0x3f3f3f3f;
    const uint32_t scales[] = { packed[0] & six, (packed[2] & low) | (packed[0] >> 2 & high) };
    const uint32_t mins[] = { packed[1] & six, (packed[2] >> 4 & low) | (packed[1] >> 2 & high) };
    const int16x8_t wide_scales = vreinterpretq_s16_u16(vmovl_u8(vld1_u8((const uint8_t *)scales)));
    const int16x8_t wide_mins = vreinterpretq_s16_u16(vmovl_u8(vld1_u8((const uint8_t *)mins)));
    const int32x4_t sum = vdupq_n_s32(column.bsums[2 * part] + column.bsums[2 * part + 1]);
    sums[0] =
        vmlaq_s32(sums[0], vpaddq_s32(pairs[0], pairs[1]), vmovl_s16(vget_low_s16(wide_scales)));
    sums[1] =
        vmlaq_s32(sums[1], vpaddq_s32(pairs[2], pairs[3]), vmovl_s16(vget_high_s16(wide_scales)));
    minima[0] = vmlaq_s32(minima[0], sum, vmovl_s16(vget_low_s16(wide_mins)));
    minima[1] = vmlaq_s32(minima[1], sum, vmovl_s16(vget_high_s16(wide_mins)));
}

inline float32x4_t four_halves(const ggml_half * p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}

template <typename eight_rows>
void product_of_eight_rows(int64_t blocks, float * out, const eight_rows * rows,
                           const block_q8_K * column) {
    float32x4_t totals[2] = {};
    for (int64_t b = 0; b < blocks; b++) {
        int32x4_t sums[2] = {}, minima[2] = {};
        for (int part = 0; part < 8; part += 2) {
            add_part<0>(rows[b], column[b], part, sums, minima);
            add_part<1>(rows[b], column[b], part + 1, sums, minima);
        }
        const float32x4_t scale = vdupq_n_f32(column[b].d);
        for (int i = 0; i < 2; i++) {
            const float32x4_t d = vmulq_f32(four_halves(rows[b].d + 4 * i), scale);
            const float32x4_t dmin = vmulq_f32(four_halves(rows[b].dmin + 4 * i), scale);
            totals[i] = vfmsq_f32(totals[i], vcvtq_f32_s32(minima[i]), dmin);
            totals[i] = vfmaq_f32(totals[i], vcvtq_f32_s32(sums[i]), d);
        }
    }
    vst1q_f32(out, totals[0]);
    vst1q_f32(out + 4, totals[1]);
}

template <typename eight_rows>
void product_of_one_column(int depth, float * out, const void * a, const void * b, int rows) {
    const int64_t blocks = depth / QK_K;
    for (int64_t row = 0; row < rows; row += 8) {
        product_of_eight_rows(blocks, out + row, (const eight_rows *)a + row / 8 * blocks,
                              (const block_q8_K *)b);
    }
}

} // namespace

#endif
