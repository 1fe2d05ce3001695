// The connections of llama.cpp's RPC backend: to a worker on another machine, or the worker's own.
#pragma once

#include <cstdint>
#include <string>
#include <sys/types.h>
#include <vector>

// The other side of a connection, which is open before the sandbox is entered.
struct peer {
    std::string name;      // of the machine; empty: the one that this worker works for
    int in, out;           // descriptors, which may be one
    int errors = -1;       // a file with what its ssh has said
    pid_t ssh = -1;        // that carries the connection
    int patience = 60;     // seconds without a sign of life, after which it is given up
    bool * lost = nullptr; // is set when it is
};

// What ggml-rpc connects to by these numbers as ports. Set once.
void connections_are(const std::vector<peer> & peers);

// Bytes that were sent to workers so far.
uint64_t bytes_sent();

// Closes them in a process that was split off from the one that has the model, or beside it.
void leave_connections();

// The last line in a file of errors; empty if it has none.
std::string last_line(int errors);
