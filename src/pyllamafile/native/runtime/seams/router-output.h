// Included before upstream's server-models.cpp, which writes all that a model's process says to
// standard output, the empty lines between its messages as well. It is a log, so it goes where
// logs go, and what is empty goes nowhere.
#pragma once

#include "log.h"

#include <cstdio>

static inline void log_of_child(const char * format, int port, const char * line) {
    if (line[0] != '\n') {
        fprintf(stderr, format, port, line);
    }
}

#undef LOG
#define LOG(...) log_of_child(__VA_ARGS__)
