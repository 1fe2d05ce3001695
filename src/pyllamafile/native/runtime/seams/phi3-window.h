// Included before upstream's phi3.cpp, which has all that a sliding window takes, and switches it
// off with a warning, because converters wrote it wrongly once. transformers has it on, and the
// weights were trained with it. The warning comes first, so this stands in its place: every layer
// has the window (set_swa_pattern(0)), and what would switch it off is not reached.
#pragma once

#include "models/models.h"

#undef LLAMA_LOG_WARN
#define LLAMA_LOG_WARN(...)                                                                        \
    do {                                                                                           \
        hparams.swa_type = LLAMA_SWA_TYPE_STANDARD;                                                \
        hparams.set_swa_pattern(0);                                                                \
        return;                                                                                    \
    } while (false)
