#include "ollama.h"

#include <cmath>
#include <cstdio>
#include <ctime>
#include <stdexcept>

using json = ollama_json;

namespace {

// Options of Ollama's, and what the server calls them. The others (num_ctx, num_gpu, num_thread …)
// say how a model is loaded, which is settled when the server starts.
const char * const OPTIONS[][2] = {
    { "frequency_penalty", "frequency_penalty" },
    { "min_p", "min_p" },
    { "mirostat", "mirostat" },
    { "mirostat_eta", "mirostat_eta" },
    { "mirostat_tau", "mirostat_tau" },
    { "num_keep", "n_keep" },
    { "num_predict", "n_predict" },
    { "presence_penalty", "presence_penalty" },
    { "repeat_last_n", "repeat_last_n" },
    { "repeat_penalty", "repeat_penalty" },
    { "seed", "seed" },
    { "stop", "stop" },
    { "temperature", "temperature" },
    { "top_k", "top_k" },
    { "top_p", "top_p" },
    { "typical_p", "typical_p" },
};

const json NOTHING = nullptr;

const json & at(const json & object, const char * key) {
    const auto found = object.find(key);
    return found == object.end() ? NOTHING : *found;
}

std::string text_at(const json & object, const char * key) {
    const json & value = at(object, key);
    if (!value.is_null() && !value.is_string()) {
        throw std::invalid_argument(std::string(key) + " must be a string");
    }
    return value.is_null() ? "" : value.get<std::string>();
}

bool is_filled(const json & value) {
    return value.is_array() && !value.empty();
}

// Words and pictures, as parts of one message.
json parts(const std::string & text, const json & images) {
    json out = json::array();
    if (!text.empty()) {
        out.push_back({ { "type", "text" }, { "text", text } });
    }
    for (const json & image : images) {
        const std::string data = image.get<std::string>();
        const std::string url =
            data.rfind("data:", 0) == 0 ? data : "data:image/png;base64," + data;
        out.push_back({ { "type", "image_url" }, { "image_url", { { "url", url } } } });
    }
    return out;
}

json content(const json & message, const char * key) {
    const std::string text = text_at(message, key);
    const json & images = at(message, "images");
    return is_filled(images) ? parts(text, images) : json(text);
}

// Ollama's calls of tools have no names of their own, and their answers come in the same order.
json messages(const json & asked) {
    json out = json::array();
    size_t calls = 0, answers = 0;
    for (const json & message : asked) {
        const std::string role = text_at(message, "role");
        json turn = { { "role", role }, { "content", content(message, "content") } };
        if (!text_at(message, "thinking").empty()) {
            turn["reasoning_content"] = message["thinking"];
        }
        for (const json & call : at(message, "tool_calls")) {
            const json & function = call.at("function");
            const json & arguments = at(function, "arguments");
            turn["tool_calls"].push_back(
                { { "id", "call_" + std::to_string(calls++) },
                  { "type", "function" },
                  { "function",
                    { { "name", function.at("name") },
                      { "arguments",
                        arguments.is_string() ? arguments : json(arguments.dump()) } } } });
        }
        if (role == "tool") {
            turn["tool_call_id"] = "call_" + std::to_string(answers++);
        }
        out.push_back(turn);
    }
    return out;
}

void add_options(json & body, const json & options) {
    for (const auto & [theirs, ours] : OPTIONS) {
        if (!at(options, theirs).is_null()) {
            body[ours] = options[theirs];
        }
    }
    if (at(body, "n_predict").is_number() && body["n_predict"] < 0) {
        body["n_predict"] = -1; // -2, until the context is full, which is the end of both
    }
}

void add_format(json & body, const json & format) {
    if (format.is_object()) {
        body["response_format"] = { { "type", "json_schema" },
                                    { "json_schema", { { "schema", format } } } };
    } else if (format == "json") {
        body["response_format"] = { { "type", "json_object" } };
    } else if (!format.is_null() && format != "") {
        throw std::invalid_argument("format must be \"json\" or a schema");
    }
}

void add_thinking(json & body, const json & think) {
    if (think.is_boolean()) {
        body["chat_template_kwargs"] = { { "enable_thinking", think } };
    } else if (think.is_string()) {
        body["chat_template_kwargs"] = { { "enable_thinking", true } };
        body["reasoning_effort"] = think;
    }
}

ollama_request completion(const json & asked, const std::string & prompt) {
    json body = { { "prompt", prompt } };
    const std::string suffix = text_at(asked, "suffix");
    if (!suffix.empty()) {
        body = { { "input_prefix", prompt }, { "input_suffix", suffix } };
    }
    const json & format = at(asked, "format");
    if (format.is_object() || format == "json") {
        body["json_schema"] = format.is_object() ? format : json{ { "type", "object" } };
    }
    return { suffix.empty() ? "/completion" : "/infill", body };
}

std::string lower(std::string text) {
    for (char & c : text) {
        c = c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
    }
    return text;
}

int64_t nanoseconds(const json & timings, const char * key) {
    return (int64_t)(timings.value(key, 0.0) * 1e6);
}

} // namespace

ollama_request ollama_translate(ollama_kind kind, const json & asked) {
    const bool chat = kind == ollama_kind::CHAT;
    const std::string prompt = chat ? "" : text_at(asked, "prompt");
    if (chat ? !is_filled(at(asked, "messages")) : prompt.empty()) {
        return {};
    }
    if (!text_at(asked, "template").empty()) {
        throw std::invalid_argument("a template can't be given here: start the server with "
                                    "--chat-template-file FILE");
    }
    ollama_request out;
    if (!chat && (at(asked, "raw") == true || !text_at(asked, "suffix").empty())) {
        out = completion(asked, prompt);
    } else {
        out.path = "/v1/chat/completions";
        json & turns = out.body["messages"];
        if (chat) {
            turns = messages(asked["messages"]);
        } else {
            turns = json::array();
            if (!text_at(asked, "system").empty()) {
                turns.push_back({ { "role", "system" }, { "content", asked["system"] } });
            }
            turns.push_back({ { "role", "user" }, { "content", content(asked, "prompt") } });
        }
        if (is_filled(at(asked, "tools"))) {
            out.body["tools"] = asked["tools"];
        }
        add_format(out.body, at(asked, "format"));
        add_thinking(out.body, at(asked, "think"));
        out.body["stream_options"] = { { "include_usage", true } };
    }
    add_options(out.body, at(asked, "options"));
    out.body["stream"] = true;
    return out;
}

bool ollama_lets_go(const json & asked) {
    const json & time = at(asked, "keep_alive");
    return time == 0 || time == "0" || time == "0s" || time == "0m";
}

int ollama_find(const json & models, const std::string & name) {
    const std::string wanted = lower(name);
    // In full first, for a name may have a colon of its own.
    for (const std::string & as : { wanted, wanted.substr(0, wanted.rfind(':')) }) {
        for (size_t i = 0; i < models.size(); i++) {
            bool found = lower(models[i].at("id")) == as;
            for (const json & alias : at(models[i], "aliases")) {
                found |= lower(alias) == as;
            }
            if (found) {
                return (int)i;
            }
        }
    }
    return -1;
}

std::string ollama_name(const json & model) {
    const std::string name = model.at("id");
    return name.find(':') == std::string::npos ? name + ":latest" : name;
}

std::string ollama_now() {
    using namespace std::chrono;
    const auto now = system_clock::now().time_since_epoch();
    const time_t seconds = (time_t)duration_cast<std::chrono::seconds>(now).count();
    struct tm parts;
#ifdef _WIN32
    gmtime_s(&parts, &seconds);
#else
    gmtime_r(&seconds, &parts);
#endif
    char date[32], text[48];
    strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%S", &parts);
    snprintf(text, sizeof(text), "%s.%06dZ", date,
             (int)(duration_cast<microseconds>(now).count() % 1000000));
    return text;
}

std::string ollama_reason(const std::string & answer) {
    const json parsed = json::parse(answer, nullptr, false);
    const json & error = parsed.is_object() ? at(parsed, "error") : NOTHING;
    const json & message = error.is_object() ? at(error, "message") : error;
    return message.is_string() ? message.get<std::string>() : answer;
}

std::vector<float> ollama_shortened(std::vector<float> vector, size_t dimensions) {
    if (dimensions == 0 || dimensions >= vector.size()) {
        return vector;
    }
    vector.resize(dimensions);
    double squares = 0;
    for (const float x : vector) {
        squares += (double)x * x;
    }
    for (float & x : vector) {
        x = squares > 0 ? (float)(x / std::sqrt(squares)) : x;
    }
    return vector;
}

ollama_answer::ollama_answer(ollama_kind kind, const std::string & model)
    : kind(kind), model(model) {}

std::vector<json> ollama_answer::take(const std::string & piece) {
    std::vector<json> lines;
    rest += piece;
    size_t start = 0;
    for (size_t end; (end = rest.find('\n', start)) != std::string::npos; start = end + 1) {
        const size_t colon = rest.find(": ", start);
        if (colon < end) { // data, or error
            const json event = json::parse(rest.begin() + (long)colon + 2, rest.begin() + (long)end,
                                           nullptr, false);
            if (event.is_object()) { // what ends OpenAI's streams is none
                take_event(event, lines);
            }
        }
    }
    rest.erase(0, start);
    return lines;
}

void ollama_answer::take_event(const json & event, std::vector<json> & lines) {
    if (event.contains("error") || event.contains("message")) {
        error = { { "error",
                    ollama_reason(event.contains("error") ? event.dump()
                                                          : json{ { "error", event } }.dump()) } };
        lines.push_back(error);
        return;
    }
    std::string said, thought;
    if (event.contains("content")) { // of /completion or /infill
        said = event["content"];
        if (at(event, "stop") == true) {
            reason = at(event, "stop_type") == "limit" ? "length" : "stop";
            usage = { { "prompt_tokens", event.value("tokens_evaluated", 0) },
                      { "completion_tokens", event.value("tokens_predicted", 0) } };
        }
    }
    for (const json & choice : at(event, "choices")) {
        const json & delta = choice.at("delta");
        said += text_at(delta, "content");
        thought += text_at(delta, "reasoning_content");
        take_calls(at(delta, "tool_calls"));
        const std::string why = text_at(choice, "finish_reason");
        if (!why.empty()) {
            reason = why == "length" ? "length" : "stop";
        }
    }
    usage = event.contains("usage") ? event["usage"] : usage;
    timings = event.contains("timings") ? event["timings"] : timings;
    words += said;
    thoughts += thought;
    if (!said.empty() || !thought.empty()) {
        lines.push_back(line(said, thought, NOTHING, false));
    }
}

// A call comes in pieces: its name first, and then its arguments.
void ollama_answer::take_calls(const json & deltas) {
    for (const json & delta : deltas) {
        const size_t index = delta.value("index", (size_t)0);
        if (index > calls.size()) {
            continue; // the server counts without gaps
        }
        if (index == calls.size()) {
            calls.push_back({ { "id", "" }, { "name", "" }, { "arguments", "" } });
        }
        json & call = calls[index];
        const json & function = at(delta, "function");
        call["id"] = call["id"].get<std::string>() + text_at(delta, "id");
        for (const char * key : { "name", "arguments" }) {
            call[key] = call[key].get<std::string>() + text_at(function, key);
        }
    }
}

json ollama_answer::finished_calls() const {
    json out = json::array();
    for (size_t i = 0; i < calls.size(); i++) {
        const json arguments =
            json::parse(calls[i]["arguments"].get<std::string>(), nullptr, false);
        out.push_back(
            { { "id", calls[i]["id"] },
              { "function",
                { { "index", i },
                  { "name", calls[i]["name"] },
                  { "arguments", arguments.is_object() ? arguments : json::object() } } } });
    }
    return out;
}

json ollama_answer::line(const std::string & words, const std::string & thoughts,
                         const json & tools, bool done) const {
    json out = { { "model", model }, { "created_at", ollama_now() } };
    json said;
    if (kind == ollama_kind::CHAT) {
        said = { { "role", "assistant" }, { "content", words } };
        if (is_filled(tools)) {
            said["tool_calls"] = tools;
        }
    } else {
        out["response"] = words;
    }
    if (!thoughts.empty()) {
        (said.is_null() ? out : said)["thinking"] = thoughts;
    }
    if (!said.is_null()) {
        out["message"] = said;
    }
    out["done"] = done;
    return out;
}

json ollama_answer::last() {
    if (!error.is_null()) {
        return nullptr;
    }
    if (reason.empty()) {
        return { { "error", "the model ended before its answer did" } };
    }
    json out = line("", "", finished_calls(), true);
    out["done_reason"] = reason;
    out["total_duration"] = std::chrono::duration_cast<std::chrono::nanoseconds>(
                                std::chrono::steady_clock::now() - start)
                                .count();
    out["load_duration"] = 0;
    out["prompt_eval_count"] = usage.is_object() ? usage.value("prompt_tokens", 0) : 0;
    out["prompt_eval_duration"] = timings.is_object() ? nanoseconds(timings, "prompt_ms") : 0;
    out["eval_count"] = usage.is_object() ? usage.value("completion_tokens", 0) : 0;
    out["eval_duration"] = timings.is_object() ? nanoseconds(timings, "predicted_ms") : 0;
    return out;
}

json ollama_answer::whole() {
    const json end = last();
    if (end.is_null() || end.contains("error")) {
        return end.is_null() ? error : end;
    }
    json out = line(words, thoughts, finished_calls(), true);
    for (const auto & [key, value] : end.items()) {
        if (!out.contains(key)) {
            out[key] = value;
        }
    }
    return out;
}
