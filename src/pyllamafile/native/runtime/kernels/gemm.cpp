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

#include "arm-products.h"

// Upstream's kernel of repacked weights, under the name that repack.cpp calls.
#define UPSTREAMS(name, upstream)                                                                  \
    extern "C" void name(int n, float * out, size_t ldc, const void * a, const void * b,           \
                         int columns, int rows) {                                                  \
        upstream(n, out, ldc, a, b, columns, rows);                                                \
    }

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "k-products.h"
#include "number-products.h"

namespace {

const int64_t FEW_COLUMNS = 8; // below, a panel doesn't pay

using product_of = decltype(&product<block_q8_0>);
using expert_product = decltype(&product_of_expert<block_q8_0>);

struct row {
    ggml_type weights;
    ggml_type columns;
    product_of many;
    product_of few; // null where upstream's is as good
    int64_t few_columns = FEW_COLUMNS;
    expert_product of_expert = nullptr;          // null where upstream makes them column by column
    expert_product of_repacked_expert = nullptr; // the same for the form of repack.cpp
};

template <typename block>
row quants(ggml_type weights, ggml_type columns, expert_product repacked = nullptr) {
    return { weights,
             columns,
             product<block>,
             product_of_few<block>,
             FEW_COLUMNS_OF_QUANTS,
             product_of_expert<block>,
             repacked };
}

template <typename block> row k_quants(ggml_type weights, expert_product repacked = nullptr) {
    return { weights,
             GGML_TYPE_Q8_K,
             k_product<block>,
             k_product_of_few<block>,
             FEW_COLUMNS_OF_QUANTS,
             k_product_of_expert<block>,
             repacked };
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
    quants<block_q4_0>(GGML_TYPE_Q4_0, GGML_TYPE_Q8_0,
                       product_of_repacked_expert<block_q4_0x8, ggml_gemv_q4_0_8x8_q8_0>),
    quants<block_q4_1>(GGML_TYPE_Q4_1, GGML_TYPE_Q8_1),
    quants<block_q5_0>(GGML_TYPE_Q5_0, GGML_TYPE_Q8_0),
    quants<block_q5_1>(GGML_TYPE_Q5_1, GGML_TYPE_Q8_1),
    quants<block_q8_0>(GGML_TYPE_Q8_0, GGML_TYPE_Q8_0),
    quants<block_iq4_nl>(GGML_TYPE_IQ4_NL, GGML_TYPE_Q8_0,
                         product_of_repacked_expert<block_iq4_nlx8, ggml_gemv_iq4_nl_8x8_q8_0>),
    quants<block_mxfp4>(GGML_TYPE_MXFP4, GGML_TYPE_Q8_0,
                        product_of_repacked_expert<block_mxfp4x8, ggml_gemv_mxfp4_8x8_q8_0>),
    k_quants<block_q2_K>(
        GGML_TYPE_Q2_K,
        k_product_of_repacked_expert<block_q2_K, block_q2_Kx8, ggml_gemv_q2_K_8x8_q8_K>),
    k_quants<block_q3_K>(GGML_TYPE_Q3_K),
    k_quants<block_q4_K>(
        GGML_TYPE_Q4_K,
        k_product_of_repacked_expert<block_q4_K, block_q4_Kx8, ggml_gemv_q4_K_8x8_q8_K>),
    k_quants<block_q5_K>(GGML_TYPE_Q5_K),
    k_quants<block_q6_K>(GGML_TYPE_Q6_K),
    k_quants<block_iq4_xs>(GGML_TYPE_IQ4_XS),
    k_quants<block_iq3_s>(GGML_TYPE_IQ3_S),
    k_quants<block_iq3_xxs>(GGML_TYPE_IQ3_XXS),
    k_quants<block_iq2_s>(GGML_TYPE_IQ2_S),
    k_quants<block_iq2_xs>(GGML_TYPE_IQ2_XS),
    k_quants<block_iq2_xxs>(GGML_TYPE_IQ2_XXS),
    k_quants<block_iq1_m>(GGML_TYPE_IQ1_M),
    k_quants<block_iq1_s>(GGML_TYPE_IQ1_S),
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
#ifdef WITH_AVX512
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

extern "C" void our_gemm_iq4_nl(int n, float * out, size_t ldc, const void * a, const void * b,
                                int columns, int rows) {
    repacked_product(rows, columns, n / QUANTS, (const block_iq4_nlx8 *)a, (const block_q8_0x4 *)b,
                     out, (int64_t)ldc);
}

extern "C" void our_gemm_mxfp4(int n, float * out, size_t ldc, const void * a, const void * b,
                               int columns, int rows) {
    repacked_product(rows, columns, n / QUANTS, (const block_mxfp4x8 *)a, (const block_q8_0x4 *)b,
                     out, (int64_t)ldc);
}

// Upstream's tiled products of types in blocks of 256 have other sums for few columns than for
// many.
extern "C" bool our_tiled_product(const ggml_compute_params *, ggml_tensor *) {
    return false;
}

// The kernels for experts of these weights, or null.
static const row * row_of_experts(const ggml_compute_params * params, const ggml_tensor * dst) {
    for (const row & known : PRODUCTS) {
        if (known.weights == dst->src[0]->type && dst->src[1]->type == GGML_TYPE_F32 &&
            !params->use_ref) {
            return &known;
        }
    }
    return nullptr;
}

thread_local std::vector<line> values_memory;

// Some rows of an expert, and the columns that come to it, one after the other; in memory there are
// others between them.
static expert expert_of(const ggml_compute_params * params, const ggml_tensor * dst,
                        const row & known, int64_t number, int64_t first, int64_t end,
                        int64_t columns, const int32_t * places) {
    const ggml_tensor * const weights = dst->src[0];
    const auto of_columns = (const int32_t(*)[2])places;
    const int64_t at_once = dst->src[1]->ne[1];
    const size_t bytes = ggml_row_size(known.columns, weights->ne[0]);
    auto * values = scratch<char>(values_memory, columns * bytes);
    for (int64_t c = 0; c < columns; c++) {
        const int64_t from = of_columns[c][0] % at_once + of_columns[c][1] * at_once;
        memcpy(values + c * bytes, (const char *)params->wdata + from * bytes, bytes);
    }
    return { (const char *)weights->data + number * weights->nb[2],
             (int64_t)(weights->nb[1] / ggml_type_size(weights->type)),
             first,
             end,
             values,
             columns,
             weights->ne[0] / ggml_blck_size(known.columns),
             dst,
             of_columns };
}

extern "C" bool our_tiled_expert(const ggml_compute_params * params, ggml_tensor * dst,
                                 int64_t number, int64_t columns, const int32_t * places, char *) {
    const row * const known = row_of_experts(params, dst);
    if (known == nullptr || known->of_expert == nullptr) {
        return false;
    }
    const int64_t rows = dst->src[0]->ne[1], panels = (rows + ROWS_OF_K - 1) / ROWS_OF_K;
    const int64_t first = panels * params->ith / params->nth * ROWS_OF_K;
    const int64_t end = panels * (params->ith + 1) / params->nth * ROWS_OF_K;
    known->of_expert(
        expert_of(params, dst, *known, number, first, std::min(rows, end), columns, places));
    return true;
}

extern "C" bool our_repacked_expert(const ggml_compute_params * params, ggml_tensor * dst,
                                    int64_t number, int64_t first, int64_t end, int64_t columns,
                                    const int32_t * places) {
    const row * const known = row_of_experts(params, dst);
    if (known == nullptr || known->of_repacked_expert == nullptr) {
        return false;
    }
    known->of_repacked_expert(expert_of(params, dst, *known, number, first, end, columns, places));
    return true;
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

// Upstream's, column by column. What gemm.h asks for at the other levels alone is here for
// levels.py to see the names.

extern "C" bool our_repacked_expert(const ggml_compute_params *, ggml_tensor *, int64_t, int64_t,
                                    int64_t, int64_t, const int32_t *) {
    return false;
}

extern "C" bool our_tiled_product(const ggml_compute_params *, ggml_tensor *) {
    return false;
}

extern "C" bool our_tiled_expert(const ggml_compute_params *, ggml_tensor *, int64_t, int64_t,
                                 const int32_t *, char *) {
    return false;
}

// Upstream's sgemm adds up in another order than its kernels for one column do.
extern "C" bool our_sgemm(const ggml_compute_params *, int64_t, int64_t, int64_t, const void *,
                          int64_t, const void *, int64_t, void *, int64_t, int, int, int) {
    return false;
}

UPSTREAMS(our_gemm_q4_0, ggml_gemm_q4_0_8x8_q8_0)
UPSTREAMS(our_gemm_iq4_nl, ggml_gemm_iq4_nl_8x8_q8_0)
UPSTREAMS(our_gemm_mxfp4, ggml_gemm_mxfp4_8x8_q8_0)
UPSTREAMS(our_gemm_q4_K, ggml_gemm_q4_K_8x8_q8_K)
UPSTREAMS(our_gemm_q2_K, ggml_gemm_q2_K_8x8_q8_K)

extern "C" void our_quantize_row_q8_K(const float * x, void * out, int64_t depth) {
    quantize_row_q8_K(x, out, depth);
}

extern "C" void our_quantize_mat_q8_K(const float * x, void * out, int64_t depth) {
    ggml_quantize_mat_q8_K_4x8(x, out, depth);
}

#endif

#ifdef __ARM_FEATURE_MATMUL_INT8
#define OF_ONE_COLUMN(name, block, upstream)                                                       \
    extern "C" void name(int n, float * out, size_t, const void * a, const void * b, int,          \
                         int rows) {                                                               \
        product_of_one_column<block>(n, out, a, b, rows);                                          \
    }
#else
#define OF_ONE_COLUMN(name, block, upstream) UPSTREAMS(name, upstream)
#endif

OF_ONE_COLUMN(our_gemv_q4_K, block_q4_Kx8, ggml_gemv_q4_K_8x8_q8_K)
OF_ONE_COLUMN(our_gemv_q5_K, block_q5_Kx8, ggml_gemv_q5_K_8x8_q8_K)
