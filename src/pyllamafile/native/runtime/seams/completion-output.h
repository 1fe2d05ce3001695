// Included before upstream's completion.cpp, which writes two kinds of things to standard
// output: the text, as LOG("%s", text), and remarks such as " [end of text]\n", as literals.
// A script wants the text alone, so remarks go nowhere unless somebody talks to the program. Errors
// begin as all of ours do, and Ctrl-C ends the program at once.
#pragma once

#include "log.h"

#include <cstdio>
#include <cstring>
#include <stdexcept>
#ifndef _WIN32
#include <signal.h>
#include <unistd.h>
#endif

// Set by main.cpp: standard output belongs to a script.
extern bool completion_is_scripted;
// The last character of the text, so that main.cpp can end its last line.
extern char completion_last;

bool an_error_was_said(); // errors.cpp

static inline void completion_output(const char * format, const char * text) {
    if (text[0] != '\0') {
        completion_last = text[strlen(text) - 1];
    }
    if (!completion_is_scripted) {
        common_log_add(common_log_main(), GGML_LOG_LEVEL_NONE, format, text);
        return;
    }
    // not through the log, which has options that stop it or write it in another form
    printf(format, text);
    if (fflush(stdout) != 0 || ferror(stdout) != 0) {
        throw std::runtime_error("standard output can't be written"); // why go on?
    }
}

#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wformat-security" // the formats are upstream's literals
template <typename... Remark> static void completion_output(const char * format, Remark... remark) {
    if (!completion_is_scripted) {
        common_log_add(common_log_main(), GGML_LOG_LEVEL_NONE, format, remark...);
    } else if (strncmp(format, "Interrupted", 11) == 0 && completion_last != '\n') {
        fputs("\n", stdout);
    }
}

// Upstream's errors begin as all of ours do, and not with the name of a function, as many did.
template <typename... Values> static void completion_error(const char * format, Values... values) {
    if (!completion_is_scripted) {
        common_log_add(common_log_main(), GGML_LOG_LEVEL_ERROR, format, values...);
        return;
    }
    if (an_error_was_said()) {
        return; // this is what follows from it
    }
    const auto say = [](const char * text, auto... rest) { fprintf(stderr, text, rest...); };
    if (format[0] == ' ') {
        say(format, values...);
        return;
    }
    say("error: ");
    if constexpr (sizeof...(values) > 0) {
        if (strncmp(format, "%s: ", 4) == 0) {
            const auto without_name = [&](auto, auto... rest) { say(format + 4, rest...); };
            without_name(values...);
            return;
        }
    }
    say(format, values...);
}
#pragma clang diagnostic pop

#undef LOG
#define LOG(...) completion_output(__VA_ARGS__)
#undef LOG_ERR
#define LOG_ERR(...) completion_error(__VA_ARGS__)

#ifndef _WIN32
// Upstream's handler logs, and waits for the thread that does, which no signal handler may do:
// the program aborts or hangs now and then. Windows calls it in a thread, where it may.
static void completion_interrupted(int) {
    if (completion_last != '\n' && completion_last != '\0') {
        (void)!write(STDOUT_FILENO, "\n", 1);
    }
    _exit(130);
}

static inline int completion_sigaction(int number, const struct sigaction * action,
                                       struct sigaction * old) {
    struct sigaction ours = *action;
    if (completion_is_scripted) {
        ours.sa_handler = completion_interrupted;
    }
    return sigaction(number, &ours, old);
}
#define sigaction(number, action, old) completion_sigaction(number, action, old)
#endif
