// What a model remembers of one conversation, as bytes: what a slot file has.
#pragma once

#include "llama.h"

#include <cstdint>
#include <string>
#include <vector>

// How its bytes are summed up: one by one, as slot files are, or eight at a time, which is some ten
// times as fast. All are read that were ever written.
enum class slot_sum { BYTES, WORDS };

// These bytes, behind others that are to stand in front of them.
std::vector<uint8_t> slot_bytes(llama_context * context, llama_seq_id sequence,
                                const llama_token * tokens, size_t count, slot_sum sum,
                                const std::string & front);

// The tokens in the first of these bytes, however many follow; empty if they are no slot file's.
std::vector<llama_token> slot_tokens(const uint8_t * data, size_t size);

// The other way, after all lengths in them and their sum were checked: they are no slot file's, or
// of other tokens than expected; or they don't fit the context, which may have no room for them at
// the moment. What it remembered of the conversation may be gone then, and has to be removed. May
// throw what llama.cpp throws.
enum class outcome { RESTORED, NO_SLOT, NO_ROOM };
outcome restore_slot(llama_context * context, llama_seq_id sequence, const uint8_t * data,
                     size_t size, std::vector<llama_token> & tokens,
                     const std::vector<llama_token> * expected = nullptr);
