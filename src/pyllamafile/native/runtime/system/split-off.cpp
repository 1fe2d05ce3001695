#include "system/split-off.h"

#ifndef _WIN32

#include "log.h"
#include "system/sandbox.h"

#include <csignal>
#include <cstdio>
#include <fcntl.h>
#include <unistd.h>

// The end of the server is waited for, and what is for the server is none of its business.
static void be_quiet() {
    for (const int number : { SIGINT, SIGTERM, SIGHUP, SIGPIPE }) {
        signal(number, SIG_IGN);
    }
    const int nothing = open("/dev/null", O_RDWR);
    for (int stream = 0; stream < 3; stream++) {
        dup2(nothing, stream);
    }
}

int fork_with_log() {
    common_log_pause(common_log_main());
    const pid_t child = fork();
    common_log_resume(common_log_main());
    return child;
}

bool split_off(const std::function<void(int from, int to)> & answers, int & to, int & from) {
    int there[2], back[2];
    if (pipe(there) != 0) {
        return false;
    }
    if (pipe(back) != 0) {
        close(there[0]);
        close(there[1]);
        return false;
    }
    for (const int end : { there[0], there[1], back[0], back[1] }) {
        fcntl(end, F_SETFD, FD_CLOEXEC);
    }
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        close(there[1]);
        close(back[0]);
        be_quiet();
        answers(there[0], back[1]);
        _exit(0);
    }
    close(there[0]);
    close(back[1]);
    to = there[1];
    from = back[0];
    return child > 0;
}

void confine_to(const std::string & folder) {
    named names;
    names.writes = { folder };
    sandbox_names(names, false);
    enter_sandbox(duty::KEEPS);
}

#endif
