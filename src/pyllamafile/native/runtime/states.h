// The folder of states: what models remember of the beginnings of conversations, kept from one
// start to the next. It is in the cache of whoever runs the file. The server may write no file, so
// a process that was split off before reads and writes there for it.
#pragma once

#include "container.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

// A state may have so many bytes, and all in the folder twice as many.
const uint64_t MOST_STATE = 2ull << 30;

// Opens the state in the llamafile, if there is one. Called before the sandbox.
void open_own_state(const container & own);

// Says that states of these weights are to be kept: `weights` is what they are known by, and the
// folder is that of this program. Without it, none are.
void settle_states(const std::string & program, const std::string & weights);

// Starts the process. Called while this one has a single thread, and before the sandbox.
void start_states();

// Whether there is one.
bool keeps_states();

// Bytes that are there as long as this is.
struct state_bytes {
    const uint8_t * data = nullptr; // null if there are none
    size_t size = 0;
    std::shared_ptr<const void> owner = {};
};

// The file's own state, if there is one.
state_bytes own_state();

// The state of a key, 32 hexadecimal digits, if there is one.
state_bytes read_state(const std::string & key);

// Writes it, beside what this process does, over what is there. `then` is told whether it was
// written.
void write_state(const std::string & key, std::vector<uint8_t> && bytes,
                 const std::function<void(bool)> & then);

// Waits until all is written.
void finish_states();

// Removes all of them from that folder; how many, and their bytes.
struct removed_states {
    int count = 0;
    uint64_t bytes = 0;
};
removed_states remove_states(const std::string & folder);
