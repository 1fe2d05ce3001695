// The text of ggml-metal's kernels, which macOS compiles: unpacked where upstream looks for it.
#pragma once

// Does so, once. False where the program is damaged.
bool unpack_kernel_texts();
