#include "errors.h"

#include "common.h"
#include "ggml.h"
#include "log.h"

#include <atomic>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

std::string weights; // what to call them; set before there is a second thread
std::atomic<bool> only_the_first{ false };
std::atomic<bool> said{ false };
std::atomic<bool> held{ false };

const char LOADING[] = "error loading model: ";

// Upstream's functions have an underscore in their names, but for those of its tools and servers.
size_t length_of_function(const std::string & text) {
    size_t end = 0;
    bool is_one = false;
    while (end < text.size() && (isalnum((unsigned char)text[end]) || strchr("_:~", text[end])) &&
           text.compare(end, 2, ": ") != 0) {
        is_one = is_one || text[end] == '_';
        end++;
    }
    is_one = is_one || text.compare(0, end, "main") == 0;
    return is_one && text.compare(end, 2, ": ") == 0 ? end + 2 : 0;
}

void leave_out_functions(std::string & text) {
    if (text.rfind("srv ", 0) == 0) { // the server pads their names
        text.erase(0, text.find_first_not_of(' ', 4));
    }
    while (const size_t length = length_of_function(text)) {
        text.erase(0, length);
    }
}

// What a header says may have any bytes in it.
std::string as_line(std::string text) {
    while (!text.empty() && isspace((unsigned char)text.back())) {
        text.pop_back();
    }
    for (char & c : text) {
        c = (unsigned char)c < ' ' || c == '\x7f' ? ' ' : c;
    }
    return text;
}

std::string as_ours(std::string text) {
    leave_out_functions(text);
    if (text.rfind(LOADING, 0) == 0) {
        text.erase(0, sizeof(LOADING) - 1);
        leave_out_functions(text);
        text = weights + " can't be loaded: " + text;
    }
    return as_line(text);
}

// Called in whatever thread it happens.
void give_up(const char * message) {
    if (!said.exchange(true)) {
        const std::string about = only_the_first ? weights + " can't be run: " : "";
        fprintf(stderr, "error: %sllama.cpp gave up: %s\n", about.c_str(),
                as_line(message).c_str());
    }
    fflush(nullptr);
    _Exit(1);
}

} // namespace

void say_the_first_error_of(const std::string & what) {
    weights = what;
    only_the_first = true;
}

void say_all_errors() {
    only_the_first = false;
}

void hold_errors() {
    held = true;
}

void forget_errors() {
    common_log_flush(common_log_main()); // another thread has the lines
    held = false;
}

bool error_is_said(const char * line) {
    if (!only_the_first) {
        return false;
    }
    if (!held && !said.exchange(true)) {
        fprintf(stderr, "error: %s\n", as_ours(line).c_str());
        fflush(stderr);
    }
    return true;
}

bool an_error_was_said() {
    common_log_flush(common_log_main());
    return said;
}

void end_with_error(const std::string & why) {
    forget_errors();
    fprintf(stderr, "error: %s\n", why.c_str());
    fflush(nullptr);
    _Exit(1);
}

void end_without_abort() {
    ggml_set_abort_callback(give_up);
}
