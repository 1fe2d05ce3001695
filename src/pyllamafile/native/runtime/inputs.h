// Text files that options name, as llama.cpp's options for the text itself.
#pragma once

#include "flags.h"

// Reads the files of texts, grammars, schemas, templates and keys, and puts what is in them in the
// place of their names, so that all of them are read alike: as an editor shows them. A prompt
// arrives as it is, but where -e asks for escapes. `tool`: llama_example.
void read_inputs(arguments & args, const flag_table & flags, int tool);

// Refuses a file to write whose folder isn't there: llama.cpp would go on without a word.
void check_outputs(const arguments & args, const flag_table & flags);

// Refuses a key for the API that is nothing, or that no client can send; in variables, too.
void check_keys(const arguments & args, const flag_table & flags);
