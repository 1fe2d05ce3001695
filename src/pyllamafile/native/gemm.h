// Included before ggml-cpu.c: its products of matrices come to gemm.cpp first.
#pragma once

#define llamafile_sgemm our_sgemm
