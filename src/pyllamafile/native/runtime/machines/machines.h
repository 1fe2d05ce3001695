// --on: a model over several machines. On each of them a worker (worker.h) computes some of the
// layers. ssh starts it, and what the two say to each other goes through that ssh alone, so that
// nothing listens anywhere, and nothing is left when either side ends.
#pragma once

#include "container.h"
#include "flags.h"
#include "weights.h"

#include <stdexcept>
#include <string>
#include <vector>

// What a command line asks for.
struct machines {
    std::vector<std::string> names; // as ssh knows them; none without --on
    std::vector<double> shares;     // of --split, the first this machine's; empty without it
    arguments upstreams;            // -ngl and -ts, where they say who has how much
};

// Takes --on and --split out of the arguments, and with them what is for GPUs otherwise. In `.args`
// they have no effect, with a line. Throws std::runtime_error with one line.
machines take_machines(arguments & args, const flag_table & flags);

// How many of the layers each gets, by its weight; of a weight that is not 0, one at least, while
// there are any.
std::vector<int> share_out(int layers, const std::vector<double> & weights);

// What one of the machines can do.
struct capacity {
    double memory; // bytes that it has free; 0 if nobody knows
    double speed;  // of speed.h; 0 if nobody knows
};

// How many each gets by its speed, of which none gets more than it has memory for; where all
// together have too little for that, or something is unknown, by memory alone. `bytes`: of all.
std::vector<int> share_by_capacity(int layers, uint64_t bytes, const std::vector<capacity> & all);

// One of them has no worker, for this reason.
struct machine_failed : std::runtime_error {
    machine_failed(size_t which, const std::string & why) : std::runtime_error(why), which(which) {}
    const size_t which; // of the names
};

// Starts a worker on each machine, with the program that the llamafile has for it, and says who has
// how much. Returns the arguments by which llama.cpp shares the layers so. Throws
// std::runtime_error with one line, a machine_failed that names the machine where it is the fault
// of one.
arguments start_workers(const machines & asked, const container & llamafile, const weights & model);

// Makes devices of llama.cpp's of the workers that were started; nothing where there are none. In
// the process that loads the model, once it is in its sandbox.
void use_workers();

// Another process has the model, which this one was split off from or which was split off from it:
// leaves the workers to that. Returns how many words of its command line are left for this one;
// the last ones are those of start_workers, and mean something where the workers are.
int leave_workers(int words);

// For the process that has started the workers, when another has the model (supervisor.h): leaves
// the connections to that; says which machines that has lost; waits a little for the end of the
// workers, and forgets them.
void leave_to_others();
std::vector<size_t> lost_workers();
void end_workers();

// Bytes of memory that this machine, and those that have a worker, had free when that started.
double memory_of_all();
