// --chat: a conversation in the terminal, or over a pipe.
#pragma once

// A tool as upstream's are, with the flags of LLAMA_EXAMPLE_CLI. Ends the program.
int chat(int argc, char ** argv);
