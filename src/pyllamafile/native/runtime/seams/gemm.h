// Included before ggml-cpu.c and repack.cpp: their products of matrices come to gemm.cpp first.
#pragma once

#define llamafile_sgemm our_sgemm
#define ggml_gemm_q4_0_8x8_q8_0 our_gemm_q4_0

// Where a level stands in for a better one, which has this function of its own.
#ifdef BETTER
#define ggml_vec_dot_bf16 our_vec_dot_bf16
#endif
