// How a process talks through pipes to one that it was split off from. Neither of the two believes
// the other in how much there is to come. Each function says false when the other end is gone.
#pragma once

#ifndef _WIN32

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>
#include <unistd.h>

inline bool transfer(int file, bool writes, char * data, size_t size) {
    while (size > 0) {
        const ssize_t count = writes ? write(file, data, size) : read(file, data, size);
        if (count <= 0) {
            if (count < 0 && errno == EINTR) {
                continue;
            }
            return false;
        }
        data += count;
        size -= (size_t)count;
    }
    return true;
}

template <typename Number> bool send(int to, Number number) {
    return transfer(to, true, (char *)&number, sizeof(number));
}

inline bool send(int to, const std::string & text) {
    return send(to, (uint64_t)text.size()) &&
           transfer(to, true, const_cast<char *>(text.data()), text.size());
}

template <typename Number> bool receive(int from, Number & number) {
    return transfer(from, false, (char *)&number, sizeof(number));
}

inline bool receive(int from, std::string & text, uint64_t most) {
    uint64_t size = 0;
    if (!receive(from, size) || size > most) {
        return false;
    }
    text.resize(size);
    return transfer(from, false, text.data(), size);
}

#endif
