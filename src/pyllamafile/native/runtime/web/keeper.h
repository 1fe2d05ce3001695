// Where the conversations of the web GUI are kept, and the process that keeps them. The server may
// write no file: it asks a process that was split off before, which may write into that folder and
// do nothing else.
#pragma once

#include "../flags.h"
#include "chats.h"

#include <string>
#include <vector>

struct chats_place {
    std::string folder = {}; // empty where nothing is kept
    bool everybody = false;  // who may use the server sees the conversations; else this user alone
    std::string wrong = {};  // why nothing is kept, where something should be
};

// Takes --chats and --no-chats out of the arguments, and says where conversations are kept by the
// server that listens on these addresses: below a name that the llamafile has, or else `model`.
// Throws std::runtime_error if --chats names what can't be used.
chats_place settle_chats(arguments & args, const flag_table & flags,
                         const std::vector<std::string> & listens, const std::string & model);

// Starts the process, or says in one line why the browser keeps the conversations. Called while
// this one has a single thread, and before the sandbox.
void start_keeper(const chats_place & place);

// Whether there is one.
bool keeps_chats();

// Names the folder without saying where it is.
std::string chats_name();

// What chat_folder does, done by the keeper. `ID` is checked here.
chat_answer list_chats();
chat_answer read_chat(const std::string & id);
chat_answer write_chat(const std::string & id, const std::string & expected,
                       const std::string & text);
chat_answer erase_chat(const std::string & id);
