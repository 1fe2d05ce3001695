// Starts itself by run_for (gpu/child.h) with the words that it has, and says what came of it. In
// front of them `child` makes it that process, and the first word behind is what it does.
#include "gpu/child.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

static int behave(int argc, char ** argv) {
    const char * how = argv[2];
    for (int i = 3; i < argc; i++) {
        printf("%s\n", argv[i]);
    }
    fflush(stdout);
    fputs("nobody hears this\n", stderr);
    const time_t began = time(nullptr);
    while (strcmp(how, "hangs") == 0 && time(nullptr) - began < 60) {
    }
    while (strcmp(how, "chatters") == 0 && time(nullptr) - began < 60) {
        puts("a line of many");
    }
    if (strcmp(how, "crashes") == 0) {
        *(volatile int *)8 = 0;
    }
    return getchar() == EOF ? atoi(how) : 99;
}

int main(int argc, char ** argv) {
    if (strcmp(argv[1], "child") == 0) {
        return behave(argc, argv);
    }
    std::vector<std::string> words = { argv[0], "child" };
    words.insert(words.end(), argv + 1, argv + argc);
    const child_end how = run_for(2, words);
    printf("%d|%s|%d\n%s", how.late, how.crash.c_str(), how.code, how.said.c_str());
    return 0;
}
