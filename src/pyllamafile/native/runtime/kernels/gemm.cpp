// Products of weights with columns of numbers, which is what a model spends its time on. What is
// not for us goes on to upstream's llamafile_sgemm.
//
// Many columns are a prompt. For the types of weights below, upstream's kernels unpack every weight
// again for every few of them; here it is unpacked once for all. Some rows of weights at a time go
// into a panel, in which what every row has at one place stands side by side, as the lanes of a
// register. Then the panel meets all columns, a few at a time.
//
// A single column, or a few, are text being written, which is as fast as weights come from memory.
// There weights are multiplied as they are read.
//
// What a column's product is doesn't depend on how many there are: sums and roundings are the same
// in a panel and outside of it, bit for bit.

#include "llamafile/sgemm.h"

#include "ggml-backend.h"
#include "ggml-cpu-impl.h"
#include "quants.h"
#include "repack.h"
#include "tiled/tiled.h"
#include "vec.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "k-products.h"
#include "number-products.h"

namespace {

const int64_t FEW_COLUMNS = 8; // below, a panel doesn't pay

using product_of = decltype(&product<block_q8_0>);

// Where a product with an expert's column goes: each comes from a token, and is one of its experts.
struct place_of {
    const ggml_tensor * dst;
    const int32_t (*places)[2];

    float * operator()(int64_t column) const {
        const int32_t * place = places[column];
        return (float *)((char *)dst->data + place[0] * dst->nb[1] + place[1] * dst->nb[2]);
    }
};

using expert_product = decltype(&k_product_of_expert<block_q4_K, place_of>);

struct row {
    ggml_type weights;
    ggml_type columns;
    product_of many;
    product_of few; // null where upstream's is as good
    int64_t few_columns = FEW_COLUMNS;
    expert_product of_expert = nullptr; // null where upstream makes them column by column anyway
};

template <typename block> row quants(ggml_type weights, ggml_type columns) {
    return { weights, columns, product<block>, product_of_few<block>, FEW_COLUMNS_OF_QUANTS };
}

template <typename block> row k_quants(ggml_type weights) {
    return { weights,
             GGML_TYPE_Q8_K,
             k_product<block>,
             k_product_of_few<block>,
             FEW_COLUMNS_OF_QUANTS,
             k_product_of_expert<block, place_of> };
}

template <typename number> row numbers(ggml_type weights) {
    return { weights, GGML_TYPE_F32, product_of_numbers<singly<number>>,
             numbers_of_few<singly<number>> };
}

#ifdef __AVX512BF16__

// All that this level is asked for.
const row PRODUCTS[] = {
    { GGML_TYPE_BF16, GGML_TYPE_BF16, product_of_numbers<in_pairs>, nullptr },
    { GGML_TYPE_BF16, GGML_TYPE_F32, nullptr, numbers_of_few<in_pairs> },
};

#else

const row PRODUCTS[] = {
    quants<block_q4_0>(GGML_TYPE_Q4_0, GGML_TYPE_Q8_0),
    quants<block_q4_1>(GGML_TYPE_Q4_1, GGML_TYPE_Q8_1),
    quants<block_q5_0>(GGML_TYPE_Q5_0, GGML_TYPE_Q8_0),
    quants<block_q5_1>(GGML_TYPE_Q5_1, GGML_TYPE_Q8_1),
    quants<block_q8_0>(GGML_TYPE_Q8_0, GGML_TYPE_Q8_0),
    quants<block_iq4_nl>(GGML_TYPE_IQ4_NL, GGML_TYPE_Q8_0),
    k_quants<block_q2_K>(GGML_TYPE_Q2_K),
    k_quants<block_q3_K>(GGML_TYPE_Q3_K),
    k_quants<block_q4_K>(GGML_TYPE_Q4_K),
    k_quants<block_q5_K>(GGML_TYPE_Q5_K),
    k_quants<block_q6_K>(GGML_TYPE_Q6_K),
    k_quants<block_iq4_xs>(GGML_TYPE_IQ4_XS),
    numbers<float>(GGML_TYPE_F32),
    numbers<ggml_fp16_t>(GGML_TYPE_F16),
    numbers<ggml_bf16_t>(GGML_TYPE_BF16),
};

#endif

} // namespace

#ifdef BETTER

// Another level differs from this one here and in vec.cpp alone, so a processor that it is for
// takes everything else from here.

extern "C" bool BETTER(our_sgemm)(const ggml_compute_params * params, int64_t m, int64_t n,
                                  int64_t k, const void * a, int64_t lda, const void * b,
                                  int64_t ldb, void * c, int64_t ldc, int a_type, int b_type,
                                  int c_type);
extern "C" decltype(ggml_vec_dot_bf16) BETTER(ggml_vec_dot_bf16);
extern "C" ggml_backend_reg_t ggml_backend_cpu_reg();

static bool is_better = false;

extern "C" ggml_backend_reg_t BETTER(ggml_backend_cpu_reg)() {
    is_better = true;
    return ggml_backend_cpu_reg();
}

extern "C" void our_vec_dot_bf16(int n, float * sum, size_t bs, ggml_bf16_t * x, size_t bx,
                                 ggml_bf16_t * y, size_t by, int rows) {
    (is_better ? BETTER(ggml_vec_dot_bf16) : ggml_vec_dot_bf16)(n, sum, bs, x, bx, y, by, rows);
}

#endif

extern "C" bool our_sgemm(const ggml_compute_params * params, int64_t m, int64_t n, int64_t k,
                          const void * a, int64_t lda, const void * b, int64_t ldb, void * c,
                          int64_t ldc, int a_type, int b_type, int c_type) {
#ifdef BETTER
    if (is_better && a_type == GGML_TYPE_BF16) {
        return BETTER(our_sgemm)(params, m, n, k, a, lda, b, ldb, c, ldc, a_type, b_type, c_type);
    }
#endif
    for (const row & known : PRODUCTS) {
        const product_of run = n < known.few_columns ? known.few : known.many;
        if (a_type == known.weights && b_type == known.columns && c_type == GGML_TYPE_F32 &&
            run != nullptr && run(params, m, n, k, a, lda, b, ldb, (float *)c, ldc)) {
            return true;
        }
    }
#ifdef WITH_VNNI
    return false; // nothing is left that upstream's would take, which so need not be in the program
#else
    return llamafile_sgemm(params, m, n, k, a, lda, b, ldb, c, ldc, a_type, b_type, c_type);
#endif
}

extern "C" void our_gemm_q4_0(int n, float * out, size_t ldc, const void * a, const void * b,
                              int columns, int rows) {
    repacked_product(rows, columns, n / QUANTS, (const block_q4_0x8 *)a, (const block_q8_0x4 *)b,
                     out, (int64_t)ldc);
}

extern "C" bool our_tiled_product(const ggml_compute_params * params, ggml_tensor * dst) {
    for (const row & known : PRODUCTS) {
        if (dst->src[0]->type == known.weights && known.columns == GGML_TYPE_Q8_K) {
            return false;
        }
    }
    return ggml_compute_forward_mul_mat_tiled(params, dst);
}

thread_local std::vector<line> values_memory;

extern "C" bool our_tiled_expert(const ggml_compute_params * params, ggml_tensor * dst,
                                 int64_t expert, int64_t columns, const int32_t * places,
                                 char * memory) {
    const ggml_tensor * const weights = dst->src[0];
    const ggml_tensor * const src1 = dst->src[1];
    const auto of_columns = (const int32_t(*)[2])places;
    for (const row & known : PRODUCTS) {
        if (known.weights != weights->type || known.of_expert == nullptr ||
            src1->type != GGML_TYPE_F32 || params->use_ref) {
            continue;
        }
        const int64_t rows = weights->ne[1], blocks = weights->ne[0] / QK_K;
        auto * values = scratch<block_q8_K>(values_memory, columns * blocks);
        for (int64_t c = 0; c < columns; c++) {
            const int64_t from = of_columns[c][0] % src1->ne[1] + of_columns[c][1] * src1->ne[1];
            memcpy(values + c * blocks, (const block_q8_K *)params->wdata + from * blocks,
                   (size_t)blocks * sizeof(block_q8_K));
        }
        const int64_t panels = (rows + ROWS_OF_K - 1) / ROWS_OF_K;
        const int64_t first = panels * params->ith / params->nth * ROWS_OF_K;
        const int64_t end = panels * (params->ith + 1) / params->nth * ROWS_OF_K;
        known.of_expert((const char *)weights->data + expert * weights->nb[2],
                        weights->nb[1] / ggml_type_size(weights->type), first, std::min(rows, end),
                        values, columns, blocks, place_of{ dst, of_columns });
        return true;
    }
    return ggml_compute_forward_mul_mat_id_tiled(params, dst, expert, columns, places, memory);
}

extern "C" void our_gemm_q4_K(int n, float * out, size_t ldc, const void * a, const void * b,
                              int columns, int rows) {
    repacked_k_product<block_q4_K>(rows, columns, n / QK_K, (const block_q4_Kx8 *)a,
                                   (const block_q8_K *)b, out, (int64_t)ldc,
                                   ggml_gemv_q4_K_8x8_q8_K);
}

extern "C" void our_gemm_q2_K(int n, float * out, size_t ldc, const void * a, const void * b,
                              int columns, int rows) {
    repacked_k_product<block_q2_K>(rows, columns, n / QK_K, (const block_q2_Kx8 *)a,
                                   (const block_q8_K *)b, out, (int64_t)ldc,
                                   ggml_gemv_q2_K_8x8_q8_K);
}

extern "C" void our_quantize_row_q8_K(const float * x, void * out, int64_t depth) {
    round_column(x, (block_q8_K *)out, depth / QK_K);
}

// Four columns of repack.cpp's stay one after the other.
extern "C" void our_quantize_mat_q8_K(const float * x, void * out, int64_t depth) {
    round_column(x, (block_q8_K *)out, 4 * depth / QK_K);
}

#else

extern "C" bool our_tiled_product(const ggml_compute_params * params, ggml_tensor * dst) {
    return ggml_compute_forward_mul_mat_tiled(params, dst);
}

extern "C" bool our_tiled_expert(const ggml_compute_params * params, ggml_tensor * dst,
                                 int64_t expert, int64_t columns, const int32_t * places,
                                 char * memory) {
    return ggml_compute_forward_mul_mat_id_tiled(params, dst, expert, columns, places, memory);
}

extern "C" bool our_sgemm(const ggml_compute_params * params, int64_t m, int64_t n, int64_t k,
                          const void * a, int64_t lda, const void * b, int64_t ldb, void * c,
                          int64_t ldc, int a_type, int b_type, int c_type) {
    return llamafile_sgemm(params, m, n, k, a, lda, b, ldb, c, ldc, a_type, b_type, c_type);
}

extern "C" void our_gemm_q4_0(int n, float * out, size_t ldc, const void * a, const void * b,
                              int columns, int rows) {
    ggml_gemm_q4_0_8x8_q8_0(n, out, ldc, a, b, columns, rows);
}

extern "C" void our_gemm_q4_K(int n, float * out, size_t ldc, const void * a, const void * b,
                              int columns, int rows) {
    ggml_gemm_q4_K_8x8_q8_K(n, out, ldc, a, b, columns, rows);
}

extern "C" void our_gemm_q2_K(int n, float * out, size_t ldc, const void * a, const void * b,
                              int columns, int rows) {
    ggml_gemm_q2_K_8x8_q8_K(n, out, ldc, a, b, columns, rows);
}

extern "C" void our_quantize_row_q8_K(const float * x, void * out, int64_t depth) {
    quantize_row_q8_K(x, out, depth);
}

extern "C" void our_quantize_mat_q8_K(const float * x, void * out, int64_t depth) {
    ggml_quantize_mat_q8_K_4x8(x, out, depth);
}

#endif
