// Included before upstream's completion.cpp, which writes two kinds of things to standard
// output: the text, as LOG("%s", text), and remarks such as " [end of text]\n", as literals.
// A script wants the text alone, so remarks go nowhere unless somebody talks to the program.
#pragma once

#include "log.h"

#include <cstdio>
#include <cstring>
#include <stdexcept>

// Set by main.cpp: standard output belongs to a script.
extern bool completion_is_scripted;
// The last character of the text, so that main.cpp can end its last line.
extern char completion_last;

static inline void completion_output(const char * format, const char * text) {
    if (completion_is_scripted && ferror(stdout) != 0) {
        throw std::runtime_error("standard output can't be written"); // why go on?
    }
    if (text[0] != '\0') {
        completion_last = text[strlen(text) - 1];
    }
    common_log_add(common_log_main(), GGML_LOG_LEVEL_NONE, format, text);
}

#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wformat-security" // the formats are upstream's literals
template <typename... Remark> static void completion_output(const char * format, Remark... remark) {
    if (!completion_is_scripted) {
        common_log_add(common_log_main(), GGML_LOG_LEVEL_NONE, format, remark...);
    } else if (strncmp(format, "Interrupted", 11) == 0 && completion_last != '\n') {
        common_log_add(common_log_main(), GGML_LOG_LEVEL_NONE, "\n");
    }
}
#pragma clang diagnostic pop

#undef LOG
#define LOG(...) completion_output(__VA_ARGS__)
