// The server with --on goes on when a machine is lost: another process starts it again.
#pragma once

#include "machines/machines.h"

#include <optional>

// What the server that is about to start has of other machines.
struct attempt {
    arguments shares;   // of start_workers
    bool again = false; // one before it has lost a machine
};

// Starts the workers, and splits the server off from this process, which stays to start them again
// with the machines that are left when one is lost, or with this one alone, where that many have
// room for the weights. In the server it returns nothing, and elsewhere the exit code, when the
// server has ended. Throws std::runtime_error with one line.
std::optional<int> outlive_machines(machines asked, const container & llamafile,
                                    const weights & model, attempt & out);

// In such a server, once it is in its sandbox: it ends with the process that would start it again.
void end_with_supervisor();
