// Included before upstream's completion.cpp, which writes two kinds of things to standard
// output: the text, as LOG("%s", text), and remarks such as " [end of text]\n", as literals.
// A script wants the text alone, so remarks go nowhere unless somebody talks to the program.
#pragma once

#include "log.h"

// Set by main.cpp: standard output belongs to a script.
extern bool completion_is_scripted;

template <typename... Text>
static void completion_output(const char * format, Text... text) {
    if (sizeof...(text) > 0 || !completion_is_scripted) {
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wformat-security"
        common_log_add(common_log_main(), GGML_LOG_LEVEL_NONE, format, text...);
#pragma clang diagnostic pop
    }
}

#undef LOG
#define LOG(...) completion_output(__VA_ARGS__)
