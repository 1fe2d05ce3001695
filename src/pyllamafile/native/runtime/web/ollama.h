// Ollama's JSON, and that of the server's own handlers, each made of the other.
#pragma once

#include <nlohmann/json.hpp>

#include <chrono>
#include <string>
#include <vector>

using ollama_json = nlohmann::ordered_json;

// What Ollama's API answers with, by the route that was asked.
enum class ollama_kind { CHAT, GENERATE };

// A request for one of the server's own handlers. An empty path asks for nothing: the model is only
// to be loaded, or to go.
struct ollama_request {
    std::string path;
    ollama_json body;
};

// The request that does what Ollama's asks for. The server always streams, and an answer in one
// piece is made here. Throws std::invalid_argument.
ollama_request ollama_translate(ollama_kind kind, const ollama_json & asked);

// Whether a request without words says that the model is no longer needed.
bool ollama_lets_go(const ollama_json & asked);

// The index of the model that a name means: its own name or another of its names, in any case,
// with or without a tag. -1 if there is none.
int ollama_find(const ollama_json & models, const std::string & name);

// A model's name as Ollama lists it.
std::string ollama_name(const ollama_json & model);

// The time, as Ollama writes it: RFC 3339 in UTC.
std::string ollama_now();

// The message of an answer that is an error, or the answer itself where it is in no form known.
std::string ollama_reason(const std::string & answer);

// A vector's first `dimensions` numbers, of length 1 again.
std::vector<float> ollama_shortened(std::vector<float> vector, size_t dimensions);

// Turns the events of the server's stream into the lines of Ollama's.
class ollama_answer {
  public:
    ollama_answer(ollama_kind kind, const std::string & model);

    // The lines that another piece of the stream makes; a piece may end anywhere.
    std::vector<ollama_json> take(const std::string & piece);

    // The line that ends the stream, with the counts; an error if the server's didn't come to an
    // end. Nothing (null) where an error was said already.
    ollama_json last();

    // All that was said, in one piece, if the server's stream has ended.
    ollama_json whole();

  private:
    void take_event(const ollama_json & event, std::vector<ollama_json> & lines);
    void take_calls(const ollama_json & deltas);
    ollama_json line(const std::string & words, const std::string & thoughts,
                     const ollama_json & tools, bool done) const;
    ollama_json finished_calls() const;

    const ollama_kind kind;
    const std::string model;
    const std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
    std::string rest;               // of the stream, up to the end of a line
    std::string words, thoughts;    // said so far
    std::vector<ollama_json> calls; // of tools, as far as they are known
    std::string reason;             // why the answer ended; empty until then
    ollama_json usage, timings, error;
};
