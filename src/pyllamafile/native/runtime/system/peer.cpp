#include "system/peer.h"

#ifdef __linux__

#include <arpa/inet.h>
#include <cstdio>
#include <cstring>
#include <unistd.h>

namespace {

// An address as /proc/net/tcp has it: its words in the order of this machine, in hexadecimal.
std::string in_words(const void * address, size_t size) {
    std::string out;
    for (size_t at = 0; at < size; at += 4) {
        unsigned word;
        char text[9];
        memcpy(&word, (const char *)address + at, 4);
        snprintf(text, sizeof(text), "%08X", word);
        out += text;
    }
    return out;
}

// The user of an established connection (proc_pid_net(5)), or -1.
long user_of(const char * table, const std::string & address, int port, int own_port) {
    FILE * file = fopen(table, "r");
    if (file == nullptr) {
        return -1;
    }
    long user = -1;
    char line[512];
    while (user < 0 && fgets(line, sizeof(line), file) != nullptr) {
        char from[33], to[33];
        unsigned from_port, to_port, state;
        long owner;
        if (sscanf(line, " %*d: %32[0-9A-F]:%x %32[0-9A-F]:%x %x %*s %*s %*s %ld", from, &from_port,
                   to, &to_port, &state, &owner) == 6 &&
            state == 1 && (int)from_port == port && (int)to_port == own_port && address == from) {
            user = owner;
        }
    }
    fclose(file);
    return user;
}

} // namespace

bool peer_is_another_user(const std::string & address, int port, int own_port) {
    // A client may have a socket for both kinds of addresses, and then is in the other table.
    unsigned char four[4], mapped[16] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff }, six[16];
    long user = -1;
    if (inet_pton(AF_INET, address.c_str(), four) == 1) {
        memcpy(mapped + 12, four, 4);
        user = user_of("/proc/self/net/tcp", in_words(four, 4), port, own_port);
        if (user < 0) {
            user = user_of("/proc/self/net/tcp6", in_words(mapped, 16), port, own_port);
        }
    } else if (inet_pton(AF_INET6, address.c_str(), six) == 1) {
        user = user_of("/proc/self/net/tcp6", in_words(six, 16), port, own_port);
    }
    return user != (long)geteuid() && user != 0;
}

#else

bool peer_is_another_user(const std::string &, int, int) {
    return false;
}

#endif
