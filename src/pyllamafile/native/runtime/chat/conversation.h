// --chat: a conversation in the terminal, or over a pipe. --ask: one question, answered.
#pragma once

// Tools as upstream's are, with the flags of LLAMA_EXAMPLE_CLI. They end the program.
int chat(int argc, char ** argv);
int ask(int argc, char ** argv); // -p is the question
