#include "chat/conversation.h"

#include "arg.h"
#include "base64.hpp"
#include "chat/saved.h"
#include "cli-client.h"
#include "common.h"
#include "console.h"
#include "gpu/gpu.h"
#include "llama.h"
#include "log.h"
#include "machines/machines.h"
#include "persona.h"
#include "seams/reading.h"
#include "states.h"
#include "system/sandbox.h"
#include "system/split-off.h"
#include "system/system.h"
#include "text.h"

// The server's class stands in a header whose own header has functions that are used elsewhere.
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wunused-function"
#include "cli-server.h"
#pragma clang diagnostic pop

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <signal.h>
#include <sstream>

#ifdef _WIN32
#include "system/wide.h"

#include <io.h>
#else
#include <fcntl.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <termios.h>
#include <thread>
#include <unistd.h>
#endif

bool console_fed_line = false; // for console-lines.h

extern container own_container; // main.cpp

namespace {

using json = nlohmann::ordered_json;
namespace fs = std::filesystem;

bool at_terminal = false;    // somebody types, and sees what is written
bool asks_once = false;      // --ask: one question, and what comes out is the answer alone
bool tells_progress = false; // to the builder, how far a prompt is evaluated

// Ctrl-C stops an answer. At a terminal it is heard at all times, at the next prompt if nowhere
// before (but on Windows, while the model answers). Where nobody hears it, or the last one is not
// yet heard, it ends the program.
volatile sig_atomic_t answering = 0; // the model does
volatile sig_atomic_t talking = 0;   // somebody at a terminal, to whom a prompt comes
volatile sig_atomic_t asking = 0;    // the prompt is there
volatile sig_atomic_t interrupted = 0;

#ifdef _WIN32

BOOL WINAPI on_interrupt(DWORD event) {
    if (event != CTRL_C_EVENT) {
        return FALSE;
    }
    if (!answering || interrupted) {
        console::cleanup();
        _exit(130);
    }
    interrupted = 1;
    return TRUE;
}

void catch_interrupts() {
    SetConsoleCtrlHandler(on_interrupt, TRUE);
}

void stop_asking() {
    asking = 0;
}

#else

termios found_terminal; // as the program found it
pthread_t reader;       // the thread that asks

// A signal interrupts the thread that it comes to, if that reads already. So the one that asks is
// interrupted again and again, until it hears.
void interrupt_reader(int) {
    if (asking && interrupted) {
        if (!pthread_equal(pthread_self(), reader)) {
            pthread_kill(reader, SIGALRM);
        }
        alarm(1);
    }
}

void stop_asking() {
    asking = 0;
    alarm(0);
}

void on_interrupt(int number) {
    if (number == SIGINT && (answering || talking) && !interrupted) {
        interrupted = 1;
        interrupt_reader(0);
        return;
    }
    if (at_terminal) {
        tcsetattr(STDIN_FILENO, TCSANOW, &found_terminal);
        (void)!write(STDOUT_FILENO, "\033[0m\n", 5);
    }
    _exit(128 + number);
}

void catch_interrupts() {
    tcgetattr(STDIN_FILENO, &found_terminal);
    reader = pthread_self();
    struct sigaction action = {}; // without SA_RESTART: reading a line ends, too
    action.sa_handler = on_interrupt;
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
    action.sa_handler = interrupt_reader;
    sigaction(SIGALRM, &action, nullptr);
}

#endif

// To whom it may concern: remarks are for a person, errors for the log of a script as well.
void remark(const std::string & text) {
    if (at_terminal) {
        console::set_display(DISPLAY_TYPE_INFO);
        console::log("%s\n", text.c_str());
        console::set_display(DISPLAY_TYPE_RESET);
        console::flush();
    }
}

// What a command was asked to show.
void show(const std::string & text) {
    console::log("%s%s", text.c_str(), text.empty() || text.back() != '\n' ? "\n" : "");
    console::flush();
}

// Null and errno when it fails, which it does with "x" in the mode where something has that name.
FILE * open_to_write(const fs::path & path, const char * mode) {
#ifdef _WIN32
    return _wfopen(path.c_str(), wide(mode).c_str());
#else
    return fopen(path.c_str(), mode);
#endif
}

// A new file beside another one, under a name that nobody has.
FILE * open_draft(const fs::path & beside, fs::path & draft) {
    FILE * file = nullptr;
    errno = EEXIST;
    for (int i = 0; file == nullptr && errno == EEXIST; i++) {
        draft = beside;
        draft.replace_filename("." + beside.filename().u8string() + ".draft-" + std::to_string(i));
        file = open_to_write(draft, "wbx");
    }
    return file;
}

// Nobody ever sees half of it, and what was there before stays until all of it is written. A link,
// or what is no file, such as /dev/stderr, is written to and stays what it is.
void write_file(const std::string & path, const std::string & text) {
    const fs::path target = fs::u8path(path);
    std::error_code error;
    const fs::file_type kind = fs::symlink_status(target, error).type();
    const bool replaced = kind == fs::file_type::regular || kind == fs::file_type::not_found;
    fs::path draft;
    FILE * file = replaced ? open_draft(target, draft) : open_to_write(target, "wb");
    const bool complete =
        file != nullptr && fwrite(text.data(), 1, text.size(), file) == text.size();
    bool written = file != nullptr && fclose(file) == 0 && complete;
    if (written && replaced) {
        fs::rename(draft, target, error);
        written = !error;
    }
    if (!written && replaced && file != nullptr) {
        fs::remove(draft, error);
    }
    if (!written) {
        throw std::runtime_error(path + ": can't be written");
    }
}

// The server's own words out of the body of its answer.
std::string message_of(const std::string & body) {
    const json parsed = json::parse(body, nullptr, false);
    if (parsed.is_object() && parsed.contains("error") && parsed["error"].is_object()) {
        return parsed["error"].value("message", body);
    }
    return body;
}

// By the first bytes, as upstream tells a sound from a picture (mtmd-helper.cpp): WAVE, FLAC, or
// MP3, which begins with a tag or with the eleven bits of its frames.
bool is_sound(const std::string & bytes) {
    const auto has = [&](size_t at, const char * mark) {
        return bytes.compare(at, strlen(mark), mark) == 0;
    };
    return bytes.size() >= 12 &&
           ((has(0, "RIFF") && has(8, "WAVE")) || has(0, "fLaC") || has(0, "ID3") ||
            ((unsigned char)bytes[0] == 0xFF && (unsigned char)bytes[1] >= 0xE0));
}

class conversation {
  public:
    conversation(cli_client & server, const common_params & params)
        : server(server), first_system(params.system_prompt),
          grammar(common_grammar_value(params.sampling.grammar)) {
        const json props = json::parse(server.get("/props"));
        context = props.at("default_generation_settings").value("n_ctx", 0);
        const json modalities = props.value("modalities", json::object());
        sees = modalities.value("vision", false);
        hears = modalities.value("audio", false);
        const std::string path = props.value("model_path", "");
        const std::string file = path.substr(path.find_last_of("/\\@") + 1);
        const persona own = persona_of(own_container);
        remark((own.name.empty() ? file : own.name + " (" + file + ")") + ", " +
               std::to_string(context) +
               " tokens of context; /help lists the commands, Ctrl-D ends");
        if (!own.greeting.empty() && at_terminal) {
            console::log("%s\n", own.greeting.c_str());
            console::flush();
        }
        clear("");
    }

    // Runs a command, or lets the model answer. False when there is nothing more to say.
    bool take(const std::string & line) {
        const size_t end = std::min(line.find_first_of(" \t\n"), line.size());
        const std::string word = line.substr(0, end);
        const bool named = word.size() > 1 && word[0] == '/' &&
                           std::all_of(word.begin() + 1, word.end(),
                                       [](unsigned char c) { return isalpha(c) != 0; });
        if (!named) {
            ask(line);
            return true;
        }
        if (word == "/exit") {
            return false;
        }
        for (const command & known : commands()) {
            if (word == known.name) {
                const size_t start = line.find_first_not_of(" \t\n", end);
                const std::string value = start < line.size() ? line.substr(start) : "";
                if (value.empty() && known.argument[0] != '\0' && known.argument[0] != '[') {
                    throw std::runtime_error(word + " needs a value: " + known.argument);
                }
                (this->*known.run)(value);
                return true;
            }
        }
        throw std::runtime_error(word + ": no such command (/help lists them)");
    }

    // Lets the model answer a text, whatever it begins with. False if Ctrl-C stopped the answer.
    bool ask(const std::string & text) {
        const std::string all = texts + text;
        json content = all;
        if (!media.empty()) {
            content = media;
            content.push_back({ { "type", "text" }, { "text", all } });
        }
        const bool more = !texts.empty() || !media.empty();
        messages.push_back({ { "role", "user" }, { "content", content } });
        texts.clear();
        media = json::array();
        return answer(more ? ", with all that was added to it" : "");
    }

    // The option and the command that brought a file say what it is as little as its name does.
    void stage_media(const std::string & path) {
        const std::string bytes = read_bytes(path);
        const bool sound = is_sound(bytes);
        if (!(sound ? hears : sees)) {
            throw std::runtime_error(sound ? "this model hears no sounds"
                                           : "this model sees no images");
        }
        const std::string text = base64::encode(bytes);
        const json picture = { { "url", "data:image/unknown;base64," + text } };
        media.push_back(
            sound ? json{ { "type", "input_audio" }, { "input_audio", { { "data", text } } } }
                  : json{ { "type", "image_url" }, { "image_url", picture } });
        remark(path + " goes with what you say next");
    }

    struct command {
        const char * name;
        const char * argument; // in brackets if it can be left out
        const char * does;
        void (conversation::*run)(const std::string &);
    };

    static const std::vector<command> & commands() {
        using self = conversation;
        static const std::vector<command> all = {
            { "/audio", "FILE", "adds a sound to what you say next", &self::stage_media },
            { "/clear", "", "forgets all but the system prompt", &self::clear },
            { "/context", "", "how much of the context is used", &self::show_context },
            { "/dump", "[FILE]", "what the model has before it, as text", &self::dump },
            { "/exit", "", "ends (so does Ctrl-D)", nullptr },
            { "/forget", "", "drops the oldest question and its answer", &self::forget },
            { "/help", "", "this list", &self::help },
            { "/image", "FILE", "adds an image to what you say next", &self::stage_media },
            { "/load", "FILE", "goes on with a saved conversation, or the GUI's", &self::load },
            { "/pop", "", "back to where /push was", &self::pop },
            { "/push", "", "remembers this point", &self::push },
            { "/read", "FILE", "adds a text file to what you say next", &self::read },
            { "/regen", "", "another answer to the last question", &self::regenerate },
            { "/save", "FILE", "keeps the conversation, as JSON", &self::save },
            { "/stats", "", "tokens and speed of the last answer", &self::show_stats },
            { "/system", "[TEXT]", "shows the system prompt, or sets it", &self::set_system },
            { "/undo", "", "takes back the last question and its answer", &self::undo },
        };
        return all;
    }

  private:
    // Lets the model answer the last message, which is the user's. Without an answer it goes, with
    // what it was made of: a file too long for the context would make the next one too long as
    // well. False if Ctrl-C stopped it.
    bool answer(const std::string & with = "") {
        json body = { { "messages", messages }, { "stream", true }, { "timings_per_token", true } };
        if (!grammar.empty()) {
            body["grammar"] = grammar;
        }
        if (tells_progress) {
            body["return_progress"] = true;
        }
        std::string said, thought, problem;
        const auto print = [&](display_type how, const std::string & text, std::string & all) {
            if (!text.empty() && (at_terminal || how == DISPLAY_TYPE_RESET)) {
                const bool first = how == DISPLAY_TYPE_RESET && said.empty() && !thought.empty();
                console::set_display(how);
                console::log("%s%s", first && at_terminal ? "\n" : "", text.c_str());
                console::flush();
            }
            all += text;
        };
        const auto take_chunk = [&](const std::string & payload) {
            const json chunk = json::parse(payload, nullptr, false);
            if (!chunk.is_object()) {
                return;
            }
            if (chunk.contains("error")) {
                problem = message_of(payload);
            }
            if (chunk.contains("timings")) {
                last = chunk["timings"];
            }
            if (tells_progress && chunk.contains("prompt_progress")) {
                const json & read = chunk["prompt_progress"];
                fprintf(stderr, "progress: %d of %d tokens\n", read.value("processed", 0),
                        read.value("total", 0));
            }
            if (!chunk.contains("choices") || chunk["choices"].empty()) {
                return;
            }
            const json delta = chunk["choices"][0].value("delta", json::object());
            const auto text = [&](const char * name) {
                const auto found = delta.find(name);
                return found != delta.end() && found->is_string() ? found->get<std::string>() : "";
            };
            print(DISPLAY_TYPE_REASONING, text("reasoning_content"), thought);
            print(DISPLAY_TYPE_RESET, text("content"), said);
        };
        answering = 1;
        const auto to_stop = [] { return interrupted != 0 || ferror(stdout) != 0; };
        const std::string refused =
            server.post_sse("/v1/chat/completions", body.dump(), to_stop, take_chunk);
        answering = 0;
        const bool stopped = interrupted != 0;
        interrupted = 0;
        console::set_display(DISPLAY_TYPE_RESET);
        const std::string & end = said.empty() ? thought : said;
        if (!end.empty() && end.back() != '\n') {
            console::log("\n");
            console::flush();
        }
        const bool nothing = said.empty() && thought.empty();
        if (nothing) {
            messages.erase(messages.end() - 1);
        } else {
            messages.push_back({ { "role", "assistant" }, { "content", said } });
            if (!thought.empty()) {
                messages.back()["reasoning_content"] = thought;
            }
        }
        problem = refused.empty() ? problem : message_of(refused);
        if (!problem.empty()) {
            if (asks_once) {
                throw std::runtime_error(problem);
            }
            const bool full = problem.find("context") != std::string::npos;
            throw std::runtime_error(
                problem + (nothing ? "; the question was taken back" + with : "") +
                (full ? " (/forget drops the oldest messages, /clear all)" : ""));
        }
        return !stopped;
    }

    bool has_system() const {
        return !messages.empty() && messages[0]["role"] == "system";
    }

    // Where a question begins: the index of the user's first or last message, or the end.
    size_t question(bool newest) const {
        size_t found = messages.size();
        for (size_t i = 0; i < messages.size(); i++) {
            if (messages[i]["role"] == "user" && (newest || found == messages.size())) {
                found = i;
            }
        }
        return found;
    }

    void need_question() const {
        if (question(true) == messages.size()) {
            throw std::runtime_error("nothing was said yet");
        }
    }

    void clear(const std::string &) {
        messages = json::array();
        media = json::array();
        texts.clear();
        if (!first_system.empty()) {
            messages.push_back({ { "role", "system" }, { "content", first_system } });
        }
    }

    // The conversation as the template of the model writes it down.
    std::string written() {
        const std::string answer =
            server.post("/apply-template", json{ { "messages", messages } }.dump());
        return json::parse(answer).at("prompt").get<std::string>();
    }

    void show_context(const std::string &) {
        size_t used = 0;
        if (!messages.empty()) {
            const json body = { { "content", written() }, { "parse_special", true } };
            used = json::parse(server.post("/tokenize", body.dump())).at("tokens").size();
        }
        show(std::to_string(used) + " of " + std::to_string(context) + " tokens" +
             uncounted("pictures", "image_url") + uncounted("sounds", "input_audio"));
    }

    // In what the template writes down they are marks; what they take is known to the projector.
    std::string uncounted(const std::string & what, const std::string & type) const {
        size_t found = 0;
        for (const json & message : messages) {
            for (const json & part : message["content"]) {
                found += part.is_object() && part.value("type", "") == type;
            }
        }
        return found == 0 ? "" : ", " + what + " not counted: " + std::to_string(found);
    }

    void dump(const std::string & path) {
        const std::string text = messages.empty() ? "" : written();
        if (path.empty()) {
            show(text);
        } else {
            write_file(path, text);
            remark("written to " + path);
        }
    }

    void forget(const std::string &) {
        need_question();
        const auto begin = messages.begin() + (ptrdiff_t)question(false);
        const auto is_question = [](const json & message) { return message["role"] == "user"; };
        messages.erase(begin, std::find_if(begin + 1, messages.end(), is_question));
    }

    void undo(const std::string &) {
        need_question();
        messages.erase(messages.begin() + (ptrdiff_t)question(true), messages.end());
    }

    void regenerate(const std::string &) {
        need_question();
        messages.erase(messages.begin() + (ptrdiff_t)question(true) + 1, messages.end());
        answer();
    }

    void help(const std::string &) {
        std::string text;
        for (const command & known : commands()) {
            const std::string usage = std::string(known.name) + " " + known.argument;
            text += "  " + usage + std::string(16 - usage.size(), ' ') + known.does + "\n";
        }
        show(text + "A backslash at the end of a line goes on in the next. Ctrl-C stops an "
                    "answer.");
    }

    void push(const std::string &) {
        pushed.push_back(messages);
    }

    void pop(const std::string &) {
        if (pushed.empty()) {
            throw std::runtime_error("nothing was pushed");
        }
        messages = pushed.back();
        pushed.pop_back();
    }

    void read(const std::string & path) {
        texts += "File " + path + ":\n" + read_text(path) + "\n\n";
        remark(path + " goes with what you say next");
    }

    void save(const std::string & path) {
        std::error_code error;
        const fs::path file = fs::u8path(path);
        if (fs::is_regular_file(file, error) && fs::file_size(file, error) > 0 &&
            !messages_of(json::parse(read_bytes(path), nullptr, false)).is_array()) {
            throw std::runtime_error(path + ": holds no conversation, and stays as it is");
        }
        write_file(path, json{ { "messages", messages } }.dump(1) + "\n");
        remark("saved to " + path);
    }

    void load(const std::string & path) {
        const json found = messages_of(json::parse(read_text(path), nullptr, false));
        if (!found.is_array()) {
            throw std::runtime_error(path + ": no saved conversation");
        }
        messages = found;
        remark(std::to_string(messages.size()) + " messages");
    }

    void show_stats(const std::string &) {
        if (last.is_null()) {
            throw std::runtime_error("nothing was said yet");
        }
        char text[200];
        snprintf(
            text, sizeof(text),
            "prompt %d tokens, %d of them known, %.1f a second; answer %d tokens, %.1f a second",
            last.value("prompt_n", 0) + last.value("cache_n", 0), last.value("cache_n", 0),
            last.value("prompt_per_second", 0.0), last.value("predicted_n", 0),
            last.value("predicted_per_second", 0.0));
        show(text);
    }

    void set_system(const std::string & text) {
        if (text.empty()) {
            show(has_system() ? messages[0]["content"].get<std::string>() : "(none)");
            return;
        }
        if (has_system()) {
            messages[0]["content"] = text;
        } else {
            messages.insert(messages.begin(), json{ { "role", "system" }, { "content", text } });
        }
    }

    cli_client & server;
    const std::string first_system;
    const std::string grammar;     // for every answer
    int context = 0;               // tokens
    bool sees = false;             // images
    bool hears = false;            // sounds
    json messages = json::array(); // as /v1/chat/completions takes them
    json media = json::array();    // for the next message
    std::string texts;             // as well
    std::vector<json> pushed;
    json last; // the server's timings of the last answer
};

enum class heard { text, interrupt, end };

// Standard input as lines; what begins with the mark of UTF-16 can be read as a whole only.
std::istream & piped() {
    static std::istringstream converted;
    static const bool plain = [] {
        const int first = std::cin.peek();
        if (first != 0xFF && first != 0xFE && first != 0xEF) {
            return true;
        }
        const bool utf8 = first == 0xEF;
        std::string start;
        if (utf8 && std::getline(std::cin, start)) {
            converted.str(as_text(start + "\n"));
        } else {
            converted.str(read_text("-"));
        }
        return false;
    }();
    return plain || converted.peek() == EOF ? std::cin : converted;
}

// One message: a line, or several where each but the last ends in a backslash.
heard listen(std::string & text, const common_params & params) {
    text.clear();
    if (!at_terminal) {
        std::string line;
        while (std::getline(piped(), line)) {
            if (!line.empty() && line.back() == '\r') {
                line.pop_back();
            }
            const bool more = !line.empty() && line.back() == '\\';
            text += more ? line.substr(0, line.size() - 1) + "\n" : line;
            if (!more) {
                return heard::text;
            }
        }
        return text.empty() ? heard::end : heard::text;
    }
    console::set_display(DISPLAY_TYPE_USER_INPUT);
    console::log("> ");
    asking = 1;
    std::string line;
    for (bool more = true; more && !interrupted; text += line) {
        console_fed_line = false;
        more = console::readline(line, params.multiline_input);
        const bool whole = console_fed_line || params.simple_io || params.multiline_input;
        if (!whole && !line.empty() && line.back() == '\n') {
            line.insert(line.size() - 1, "/"); // see console-lines.h
            console::log("/\n");
        }
    }
    stop_asking();
    console::set_display(DISPLAY_TYPE_RESET);
    if (interrupted) {
        interrupted = 0;
        clearerr(stdin);
        console::log("\n");
        return heard::interrupt;
    }
    const bool ended = text.empty();
    while (!text.empty() && text.back() == '\n') {
        text.pop_back();
    }
    return ended ? heard::end : heard::text;
}

using completions = std::vector<std::pair<std::string, size_t>>;

// Names of commands, and of files behind those that take one.
completions complete(std::string_view line, size_t cursor) {
    completions found;
    const std::string text(line.substr(0, cursor)), rest(line.substr(cursor));
    const auto offer = [&](const std::string & whole) {
        found.emplace_back(whole + rest, whole.size());
    };
    for (const conversation::command & known : conversation::commands()) {
        const std::string name = known.name + std::string(known.argument[0] != '\0' ? " " : "");
        if (!text.empty() && name.compare(0, text.size(), text) == 0) {
            offer(name);
        }
        if (strstr(known.argument, "FILE") == nullptr || text.compare(0, name.size(), name) != 0) {
            continue;
        }
        const std::string typed = text.substr(name.size());
        const std::string folder = typed.substr(0, typed.rfind('/') + 1);
        std::error_code error;
        for (const auto & entry :
             fs::directory_iterator(fs::u8path(folder.empty() ? "." : folder), error)) {
            const std::string path = folder + entry.path().filename().u8string();
            if (path.compare(0, typed.size(), typed) == 0) {
                offer(name + path + (entry.is_directory(error) ? "/" : ""));
            }
        }
    }
    std::sort(found.begin(), found.end());
    return found;
}

// Not through exit(): there is nothing to save, and upstream's server, which runs in a thread here,
// would be waited for.
[[noreturn]] void leave(int code) {
    console::cleanup();
    _Exit(flushed() ? code : std::max(code, 1));
}

#ifdef _WIN32

bool model_has_given_up() {
    return false;
}

#else

pid_t model_process = -1; // the one of its own

// Whether that has ended by itself, and said why; a moment later than its connections.
bool model_has_given_up() {
    int status = 0;
    for (int tries = 0; model_process > 0 && tries < 10; tries++) {
        if (waitpid(model_process, &status, WNOHANG) == model_process) {
            model_process = -1;
            return WIFEXITED(status);
        }
        usleep(10000);
    }
    return false;
}

#endif

// Does what may fail and says why it did; over a pipe that makes the exit code 1.
template <typename Action> void attempt(int & code, const Action & action) {
    try {
        action();
    } catch (const std::exception & problem) {
        fflush(stdout);
        if (model_has_given_up()) {
            leave(1);
        }
        if (at_terminal) {
            console::error("%s\n", problem.what());
            console::flush();
        } else {
            fprintf(stderr, "error: %s\n", problem.what());
            code = 1;
        }
    }
}

int answer_once(cli_client & server, const common_params & params) {
    conversation talk(server, params);
    for (const std::string & path : params.image) {
        talk.stage_media(path);
    }
    return talk.ask(params.prompt) ? 0 : 130;
}

int talk(cli_client & server, const common_params & params) {
    conversation talk(server, params);
    int code = 0;
    for (const std::string & path : params.image) {
        attempt(code, [&] { talk.stage_media(path); });
    }
    std::string message = params.prompt;
    if (!message.empty() && at_terminal) {
        console::log("> %s\n", message.c_str());
    }
    bool warned = false;
    talking = at_terminal;
    while (true) {
        const heard what = message.empty() ? listen(message, params) : heard::text;
        if (what == heard::end || (what == heard::interrupt && warned)) {
            return what == heard::end ? code : 130;
        }
        warned = what == heard::interrupt;
        if (warned) {
            remark("Ctrl-C again ends the program; so do Ctrl-D and /exit");
        } else if (!message.empty()) {
            bool more = true;
            attempt(code, [&] { more = talk.take(message); });
            if (!more || params.single_turn) {
                return code;
            }
        }
        message.clear();
    }
}

// The server that has the model. Of its process nobody types the names of files, and it speaks with
// this one alone: two that may do little, instead of one that may do all.
#ifdef _WIN32

class model_server : public cli_server {
  public:
    bool split_off(int, char **) {
        start_states();
        return true;
    }
    std::vector<int> ports() const {
        return {};
    }
    void run(const common_params & params) {
        common_params with = params;
        give_own_prompt(params.system_prompt);
        start(with);
    }
    void end() const {
        finish_states();
    }
};

#else

bool read_options(int argc, char ** argv, common_params & params);

class model_server {
  public:
    // Before anything else has started a thread.
    bool split_off(int argc, char ** argv) {
        int ends[2];
        port = common_http_get_free_port();
        if (port <= 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) {
            return false;
        }
        child = fork_with_log();
        if (child == 0) {
            close(ends[1]);
            serve(argc, argv, ends[0]);
        }
        close(ends[0]);
        to_it = ends[1];
        model_process = child;
        fcntl(to_it, F_SETFD, FD_CLOEXEC);
        return child > 0;
    }

    // It would end anyway, but maybe after whoever waits for this process has gone on.
    void end() const {
        close(to_it);
        waitpid(child, nullptr, 0);
    }

    std::vector<int> ports() const {
        return { port };
    }

    void run(const common_params &) {}

    std::string address() const {
        return "http://127.0.0.1:" + std::to_string(port);
    }

    // False if it has ended instead, and said why.
    bool wait_ready(const std::function<bool()> &) const {
        cli_client client;
        client.server_base = address();
        while (waitpid(child, nullptr, WNOHANG) == 0) {
            try {
                client.get("/health");
                char byte = 0; // and it answers when its log says nothing more
                return write(to_it, &byte, 1) == 1 && read(to_it, &byte, 1) == 1;
            } catch (const std::exception &) { // it does not listen yet, or loads
                std::this_thread::sleep_for(std::chrono::milliseconds(20));
            }
        }
        return false;
    }

  private:
    // Ends with the process that it was split off from, whatever happens to that.
    [[noreturn]] void serve(int argc, char ** argv, int parent) const {
        const int errors = dup(STDERR_FILENO), nowhere = open("/dev/null", O_WRONLY);
        signal(SIGINT, SIG_IGN);
        start_states();
        enter_sandbox(duty::SERVES, { port });
        use_workers();
        use_gpus();
        std::thread([parent] {
            char byte;
            while (read(parent, &byte, 1) == 1) { // from here on, its answers say what is wrong
                if (common_log_get_verbosity_thold() == LOG_LEVEL_ERROR) {
                    common_log_set_verbosity_thold(LOG_LEVEL_OUTPUT);
                }
                (void)!write(parent, &byte, 1);
            }
            finish_states();
            common_log_flush(common_log_main());
            _exit(0);
        }).detach();
        common_params params;
        dup2(nowhere, STDERR_FILENO); // the other process says what is wrong with them
        const bool fine = read_options(argc, argv, params);
        dup2(errors, STDERR_FILENO);
        close(errors);
        close(nowhere);
        if (!fine) {
            _exit(1);
        }
        params.port = port;
        give_own_prompt(params.system_prompt);
        params.sampling.grammar = {}; // it would hold the prompt against a JSON schema
        const int code = llama_server(params, 0, nullptr);
        common_log_flush(common_log_main());
        _exit(code);
    }

    int port = -1;
    int to_it = -1; // is closed when this process ends
    pid_t child = -1;
};

#endif

bool read_options(int argc, char ** argv, common_params & params) {
    params.verbosity = LOG_LEVEL_ERROR;
    common_init();
    if (!common_params_parse(argc, argv, params, LLAMA_EXAMPLE_CLI)) {
        return false;
    }
    llama_backend_init();
    llama_numa_init(params.numa);
    params.sse_ping_interval = 1; // how soon Ctrl-C is heard while a long prompt is read
    return true;
}

int converse(int argc, char ** argv, int (*with)(cli_client &, const common_params &)) {
    const bool elsewhere = std::any_of(
        argv, argv + argc, [](const char * word) { return strcmp(word, "--server-base") == 0; });
    static model_server server;
    if (!elsewhere && !server.split_off(argc, argv)) {
        fprintf(stderr, "error: the model gets no process of its own: %s\n", strerror(errno));
        return 1;
    }
    argc = leave_workers(argc);
    enter_sandbox(elsewhere   ? duty::ASKS
                  : asks_once ? duty::QUESTIONS
                              : duty::CONVERSES,
                  server.ports());
    common_params params;
    if (!read_options(argc, argv, params)) {
        return 1;
    }
    catch_interrupts();
    console::init(params.simple_io || !at_terminal, params.use_color && at_terminal);
    console::set_completion_callback(complete);
    console::spinner::start();
    cli_client client;
    if (elsewhere) {
        client.server_base = params.server_base;
    } else {
        common_params without = params;
        without.sampling.grammar = {}; // its server would hold the prompt against a JSON schema
        server.run(without);
        client.server_base = server.wait_ready([] { return false; }) ? server.address() : "";
    }
    console::spinner::stop();
    int code = 1;
    try {
        code = client.server_base.empty() ? 1 : with(client, params);
    } catch (const std::exception & problem) {
        if (!model_has_given_up()) {
            fprintf(stderr, "error: %s\n", problem.what());
        }
    }
    if (!elsewhere) {
        server.end();
    }
    leave(code);
}

} // namespace

int chat(int argc, char ** argv) {
#ifdef _WIN32
    at_terminal = _isatty(_fileno(stdin)) && _isatty(_fileno(stdout));
#else
    at_terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
#endif
    return converse(argc, argv, talk);
}

int ask(int argc, char ** argv) {
    asks_once = true;
    tells_progress = getenv("PYLLAMAFILE_PROGRESS") != nullptr; // the builder shows it
    return converse(argc, argv, answer_once);
}
