// Text files as a person sees them in an editor, whatever wrote them.
#pragma once

#include <string>

// UTF-8 without a byte order mark and with line feeds alone: what Windows editors write as UTF-16
// or with a mark in front is recognized by that mark, and CR LF becomes LF.
std::string as_text(std::string bytes);

// The text of a file; - is standard input. Throws std::runtime_error when it can't be read.
std::string read_text(const std::string & path);

// The bytes of a file, as they are.
std::string read_bytes(const std::string & path);
