// The ways from bytes to what the runtime makes of them, one for each --what (loading.cpp). A way
// throws what the runtime throws; all that ends otherwise is a finding.
#pragma once

#include "llama-cpp.h"

#include <cstdint>
#include <stdexcept>
#include <string>

struct refused : std::runtime_error {
    using std::runtime_error::runtime_error;
};

extern std::string base_path; // of the model that goes with the input

// The input as a file, which is there until the way ends. Its path.
const std::string & in_file(const std::string & bytes);

llama_model_ptr loaded(const std::string & path, bool mapped);
llama_context_ptr context_of(llama_model * model, uint32_t tokens = 64);

// The first tokens.
void answer(llama_context * context);

// What should never be true.
[[noreturn]] void wrong(const char * what);

void take_documents(const std::string & bytes);
void take_messages(const std::string & bytes);
void take_slot(const std::string & bytes);

void save_slots(const std::string & folder);

// As LLVMFuzzerCustomMutator: what a byte changed anywhere seldom finds.
size_t mutate_documents(uint8_t * data, size_t size, size_t most, unsigned seed);
size_t mutate_messages(uint8_t * data, size_t size, size_t most, unsigned seed);
size_t mutate_slot(uint8_t * data, size_t size, size_t most, unsigned seed);
size_t mutate_bytes(uint8_t * data, size_t size, size_t most, unsigned seed);
