// Included before ggml-cpu.c and repack.cpp: their products of matrices come to gemm.cpp first, and
// attention to attention.cpp.
#pragma once

#define ggml_compute_forward_flash_attn_ext our_attention
#define llamafile_sgemm our_sgemm
#define ggml_gemm_q4_0_8x8_q8_0 our_gemm_q4_0

// Where there are such kernels for all types, and for what repack.cpp arranges eight rows at a
// time.
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define ggml_compute_forward_mul_mat_tiled our_tiled_product
#define ggml_compute_forward_mul_mat_id_tiled our_tiled_expert
#define ggml_gemm_iq4_nl_8x8_q8_0 our_gemm_iq4_nl
#define ggml_gemm_mxfp4_8x8_q8_0 our_gemm_mxfp4
#define ggml_gemm_q4_K_8x8_q8_K our_gemm_q4_K
#define ggml_gemm_q2_K_8x8_q8_K our_gemm_q2_K
#define ggml_quantize_mat_q8_K_4x8 our_quantize_mat_q8_K
#define quantize_row_q8_K our_quantize_row_q8_K
#endif

// Where repack.cpp has another order for one column of these than for four.
#ifdef __ARM_FEATURE_MATMUL_INT8
#define ggml_gemv_q4_K_8x8_q8_K our_gemv_q4_K
#define ggml_gemv_q5_K_8x8_q8_K our_gemv_q5_K
#endif

// The experts of a mixture, which repack.cpp takes column by column.
#ifdef __cplusplus
#include <cstdint>
struct ggml_compute_params;
struct ggml_tensor;
extern "C" bool our_repacked_expert(const ggml_compute_params * params, ggml_tensor * dst,
                                    int64_t number, int64_t first, int64_t end, int64_t columns,
                                    const int32_t * places);
#endif

// Where a level stands in for a better one, which has this function of its own.
#ifdef BETTER
#define ggml_vec_dot_bf16 our_vec_dot_bf16
#endif
