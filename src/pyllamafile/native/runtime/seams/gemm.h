// Included before ggml-cpu.c and repack.cpp: their products of matrices come to gemm.cpp first, and
// attention to attention.cpp.
#pragma once

#define ggml_compute_forward_flash_attn_ext our_attention
#define llamafile_sgemm our_sgemm
#define ggml_gemm_q4_0_8x8_q8_0 our_gemm_q4_0

// Where there are such kernels for the K types.
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define ggml_compute_forward_mul_mat_tiled our_tiled_product
#define ggml_compute_forward_mul_mat_id_tiled our_tiled_expert
#define ggml_gemm_q4_K_8x8_q8_K our_gemm_q4_K
#define ggml_gemm_q2_K_8x8_q8_K our_gemm_q2_K
#define ggml_quantize_mat_q8_K_4x8 our_quantize_mat_q8_K
#define quantize_row_q8_K our_quantize_row_q8_K
#endif

// Where a level stands in for a better one, which has this function of its own.
#ifdef BETTER
#define ggml_vec_dot_bf16 our_vec_dot_bf16
#endif
