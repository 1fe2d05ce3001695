// In front of upstream's readers of what a stranger may have written, grammars, schemas and
// templates: how deep that may go, how much a template may do, and what is wrong with a grammar.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>

// One level of a function that calls itself for what is within. A thread's stack has 512 KiB on
// some systems, and a level takes up to 1 KiB.
template <class What> class nested {
  public:
    explicit nested(const char * what, int most = 200) {
        if (depth >= most) {
            throw std::invalid_argument(std::string(what) + " is nested too deeply");
        }
        depth++;
    }
    ~nested() {
        depth--;
    }
    nested(const nested &) = delete;
    nested & operator=(const nested &) = delete;

    static inline thread_local int depth = 0;
};

// What templates do, in bytes: of the texts that they make, and as many for a step or an item of a
// list as that takes in time. Upstream tries a template twenty times when it starts, so what it may
// do grows with what it is given.
class template_work {
  public:
    static constexpr size_t STEP = 256;

    // `given`: how many bytes the conversation has, as JSON.
    static void begin(size_t given = 0) {
        left = ((size_t)32 << 20) + given * 2048;
    }

    // Throws std::invalid_argument where `times` of `bytes` more are too much.
    static void add(size_t bytes, size_t times = 1) {
        if (bytes > 0 && times > left / bytes) {
            throw std::invalid_argument("the chat template loops or grows without end");
        }
        left -= bytes * times;
    }

  private:
    static inline thread_local size_t left = 0;
};

// What is wrong with the grammar that a thread read last, to be put behind what is said of it:
// upstream prints it with the whole grammar, and tells those who asked nothing.
inline thread_local char grammar_problem[200] = "";

// Upstream's reasons may end with all of the grammar from some place on: its line is enough.
inline void keep_grammar_problem(const char * why) {
    const int line = (int)strcspn(why, "\r\n");
    const bool at_end = line > 3 && strncmp(why + line - 3, "at ", 3) == 0;
    snprintf(grammar_problem, sizeof(grammar_problem), ": %.*s%s", line, why,
             !at_end             ? ""
             : why[line] == '\0' ? "the end"
                                 : "the end of a line");
}
