// Included before upstream's mtmd-cli.cpp, which writes to standard output as completion.cpp does.
// Its errors have other formats, and begin as all of ours do.
#pragma once

#include "completion-output.h"

#undef LOG_ERR
#define LOG_ERR(...) LOG_TMPL(GGML_LOG_LEVEL_ERROR, LOG_LEVEL_ERROR, "error: " __VA_ARGS__)
