// Included before upstream's console.cpp. Its editor takes a slash at the end of a line for an
// order to send it, and drops it from the line and the screen. That is the one way in which a line
// ends and no line feed is written, so whether one was tells conversation.cpp what the line was.
#pragma once

#include <cstdio>

extern bool console_fed_line; // conversation.cpp

static inline int note_and_put(int character, FILE * file) {
    console_fed_line = console_fed_line || character == '\n';
    return fputc(character, file);
}

#define fputc(character, file) note_and_put(character, file)
