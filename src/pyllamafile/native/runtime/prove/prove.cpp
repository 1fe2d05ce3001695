#include "prove/prove.h"

#include "build-info.h"
#include "gguf.h"
#include "llama.h"
#include "prove/child.h"
#include "prove/products.h"
#include "system/cpu.h"
#include "system/identity.h"
#include "system/sandbox.h"
#include "weights.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cpp-httplib/httplib.h>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <functional>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <stdexcept>

const char PROVE[] = "--prove";

namespace {

namespace fs = std::filesystem;
using json = nlohmann::ordered_json;
using words = std::vector<std::string>;

const char TRESPASS[] = "--prove-sandbox";
const char TOKENS[] = "24";    // that models/tiny.py has recorded
const char THREADS[] = "2";    // more would wait for each other longer than they compute
const double FAR_APART = 0.02; // quants of columns are rounded: some hundredths are too much
const int WAIT = 60;           // seconds for an answer

// What came of one thing that was tried.
struct outcome {
    enum { HOLDS, FAILS, UNTRIED } is;
    std::string remark;
};

outcome holds(const std::string & remark = "") {
    return { outcome::HOLDS, remark };
}

outcome fails(const std::string & remark) {
    return { outcome::FAILS, remark };
}

outcome untried(const std::string & reason) {
    return { outcome::UNTRIED, reason };
}

std::string number(const char * format, double value) {
    char text[64];
    snprintf(text, sizeof(text), format, value);
    return text;
}

double now() {
    using clock = std::chrono::steady_clock;
    return std::chrono::duration<double>(clock::now().time_since_epoch()).count();
}

// The small model, and what was recorded of it when the file was built.
struct recorded {
    std::string model; // as -m takes it
    std::string prompt;
    std::string answer;
};

recorded recorded_in(const container & file) {
    recorded out;
    if (file.path.empty()) {
        throw std::runtime_error(std::string(PROVE) + " is for a llamafile, and this is none");
    }
    if (file.find(PROOF) == nullptr) {
        throw std::runtime_error(file.path + ": has no " + PROOF +
                                 ", with which it proves itself; "
                                 "`pyllamafile upgrade` puts it in, unless the file was built with "
                                 "--no-prove");
    }
    out.model = file.path + "@" + PROOF;
    weights found;
    const std::string problem = find_weights(out.model, found);
    if (!problem.empty()) {
        throw std::runtime_error(problem);
    }
    const gguf_init_params params = { true, nullptr };
    const std::unique_ptr<gguf_context, decltype(&gguf_free)> facts(
        gguf_init_from_file(out.model.c_str(), params), gguf_free);
    const auto text = [&](const char * key) -> std::string {
        const int64_t at = facts ? gguf_find_key(facts.get(), key) : -1;
        if (at < 0 || gguf_get_kv_type(facts.get(), at) != GGUF_TYPE_STRING) {
            throw std::runtime_error(file.path + ": " + PROOF + " is damaged");
        }
        return gguf_get_val_str(facts.get(), at);
    };
    out.prompt = text("prove.prompt");
    out.answer = text("prove.answer");
    return out;
}

// Where the launch script has unpacked this program; empty if no script did.
fs::path cache_of(const std::string & program) {
    const fs::path folder = fs::path(program).parent_path();
    return folder.filename() == "run" ? folder.parent_path() : fs::path();
}

// What starts programs of this kind on the machine, if it doesn't do so by itself: an emulator and
// its options, for scripts/prove. Of its path alone nobody could tell which processor it is to be.
words emulator() {
    const char * given = getenv("PYLLAMAFILE_EMULATOR");
    std::istringstream text(given != nullptr ? given : "");
    return { std::istream_iterator<std::string>(text), {} };
}

class proof {
  public:
    proof(const container & file, const std::string & program, bool as_json)
        : file(file), program(program), with(recorded_in(file)), as_json(as_json),
          levels(cpu_levels()), by(emulator()) {}

    int run() {
        const double began = now();
        print_head();
        words version = starter();
        version.push_back("--version");
        try_("cold_start", [&] { return cold_start(version); });
        try_("warm_start", [&] { return start(version, "warm_start_seconds"); });
        for (const level & each : levels) {
            try_(std::string("tokens_") + each.name, [&] { return tokens(each); });
        }
        products();
        try_("pipe", [this] { return pipe(); });
        try_("terminal", [this] { return terminal(); });
        try_("exit_codes", [this] { return exit_codes(); });
        try_("mapping", [this] { return mapping(); });
        server();
        try_("sandbox", [this] { return sandbox(); });
        try_("gpu", [] { return untried("the processor computes here; --gpu-trial tries GPUs"); });
        print_end(now() - began);
        return good ? 0 : 1;
    }

  private:
    // Reports what came of one thing, which nothing ends but its own end.
    void try_(const std::string & name, const std::function<outcome()> & point) {
        const double began = now();
        outcome result;
        try {
            result = point();
        } catch (const std::exception & problem) {
            result = fails(problem.what());
        }
        const double seconds = std::round((now() - began) * 1000) / 1000;
        if (result.is == outcome::UNTRIED) {
            not_tried.push_back({ { "name", name }, { "reason", result.remark } });
        } else {
            good = good && result.is == outcome::HOLDS;
            checks.push_back({ { "name", name },
                               { "ok", result.is == outcome::HOLDS },
                               { "seconds", seconds },
                               { "remark", result.remark } });
        }
        static const char * const SAYS[] = { "holds", "FAILS", "not tried" };
        if (!as_json) {
            printf("%-10s %-*s%s%s\n", SAYS[result.is], result.remark.empty() ? 0 : 20,
                   name.c_str(), result.remark.empty() ? "" : " ", result.remark.c_str());
            fflush(stdout);
        }
    }

    void print_head() const {
        if (as_json) {
            return;
        }
        printf("pyllamafile %s, llama.cpp %s (%s)\n%s, CPU level %s of %s\n%s\n%s\n\n",
               RUNTIME_VERSION, llama_version(), llama_commit(), RUNTIME_TARGET, cpu_level(),
               level_names().c_str(), system_name().c_str(), processor_name().c_str());
        fflush(stdout);
    }

    void print_end(double seconds) const {
        if (!as_json) {
            const auto failed = std::count_if(checks.begin(), checks.end(),
                                              [](const json & each) { return !each["ok"]; });
            printf("\n%zu hold, %zu fail, %zu not tried; %.1f seconds\n",
                   checks.size() - (size_t)failed, (size_t)failed, not_tried.size(), seconds);
            return;
        }
        char date[16];
        const time_t today = time(nullptr);
        strftime(date, sizeof(date), "%Y-%m-%d", gmtime(&today));
        std::vector<std::string> names;
        for (const level & each : levels) {
            names.push_back(each.name);
        }
        const json report = {
            { "report", 1 }, // scripts/targets-table reads it
            { "date", date },
            { "pyllamafile", RUNTIME_VERSION },
            { "llama_cpp", std::string(llama_version()) + " (" + llama_commit() + ")" },
            { "target", RUNTIME_TARGET },
            { "level", cpu_level() },
            { "levels", names },
            { "system", system_name() },
            { "processor", processor_name() },
            { "ok", good },
            { "seconds", std::round(seconds * 10) / 10 },
            { "figures", figures },
            { "checks", checks },
            { "not_tried", not_tried },
        };
        printf("%s\n", report.dump(2, ' ', false, json::error_handler_t::replace).c_str());
    }

    std::string level_names() const {
        std::string out;
        for (const level & each : levels) {
            out += std::string(out.empty() ? "" : " ") + each.name;
        }
        return out;
    }

    words own(const words & more) const {
        words out = by;
        out.push_back(program);
        out.insert(out.end(), more.begin(), more.end());
        return out;
    }

    // The runtime alone, without what `.args` of the file say.
    words alone(const words & more) const {
        words out = own({ "--llamafile", "" });
        out.insert(out.end(), more.begin(), more.end());
        return out;
    }

    words answering(const words & more) const {
        words out = alone({ "-m", with.model, "-t", THREADS, "--temp", "0", "-n", TOKENS });
        out.insert(out.end(), more.begin(), more.end());
        return out;
    }

    words continuing(const words & more = {}) const {
        words out = answering({ "--no-display-prompt", "-p", with.prompt });
        out.insert(out.end(), more.begin(), more.end());
        return out;
    }

    outcome expect(const ended & done, const std::string & out) const {
        return done.code == 0 && done.out == out && done.err.empty() ? holds() : fails(done.said());
    }

    // What starts the file, as somebody does who has it.
    words starter() const {
#ifndef _WIN32
        char head[4] = {};
        const file_ptr opened = open_file(file.path);
        const bool script = opened && fread(head, 1, 4, opened.get()) == 4 && head[0] != 0x7f;
        return !by.empty() ? own({ "--llamafile", file.path })
               : script    ? words{ "/bin/sh", file.path }
                           : words{ file.path };
#else
        // its companion, where it is too large; the arm64 program, which was unpacked
        std::error_code error;
        return fs::equivalent(program, file.path, error) ? own({})
                                                         : own({ "--llamafile", file.path });
#endif
    }

    // For the first time, which is when the script has to unpack the program.
    outcome cold_start(const words & command) {
        const fs::path cache = cache_of(program);
        if (cache.empty() || command[0] != "/bin/sh") {
            return untried("nothing is unpacked here");
        }
        const std::string folder =
            (cache / ("prove-" + std::to_string(std::random_device()()))).string();
        const variable elsewhere("PYLLAMAFILE_CACHE", folder);
        const outcome result = start(command, "cold_start_seconds");
        std::error_code error;
        fs::remove_all(folder, error);
        return result;
    }

    outcome start(const words & command, const char * figure) {
        const ended done = run_child(command);
        if (done.code != 0 ||
            done.out.find(std::string("CPU level ") + cpu_level() + "\n") == std::string::npos) {
            return fails(done.said());
        }
        figures[figure] = std::round(done.seconds * 1000) / 1000;
        return holds(number("%.3f seconds", done.seconds));
    }

    outcome tokens(const level & at) const {
        const variable lower("PYLLAMAFILE_CPU", at.name);
        const ended done = run_child(continuing());
        return done.out == with.answer + "\n" ? expect(done, done.out)
                                              : fails("not " + with.answer + ": " + done.said());
    }

    // Those of the lowest level against arithmetic, those of the others against the lowest.
    void products() {
        std::vector<product> expected;
        std::string whose = "exact ones";
        for (const level & each : levels) {
            std::vector<product> made;
            try_(std::string("products_") + each.name, [&] {
                if (expected.empty()) {
                    expected = exact_products();
                }
                made = products_by(each.kernels());
                std::map<std::string, const product *> by_type;
                for (const product & one : expected) {
                    by_type[one.type] = &one;
                }
                double most = 0;
                std::string wrong;
                for (const product & one : made) {
                    const auto same = by_type.find(one.type);
                    const double apart =
                        same == by_type.end() ? HUGE_VAL : distance(one, *same->second);
                    most = std::max(most, apart);
                    wrong += apart > FAR_APART ? " " + one.type : "";
                }
                const std::string said = std::to_string(made.size()) + " types, at most " +
                                         number("%.4f", 100 * most) + " % from " + whose;
                return !wrong.empty()                  ? fails(said + ":" + wrong)
                       : made.size() < expected.size() ? fails("not all types: " + said)
                                                       : holds(said);
            });
            if (&each == &levels.front()) {
                expected = std::move(made);
                whose = std::string("those of ") + each.name;
            }
        }
    }

    outcome pipe() const {
        return expect(run_child(answering({ "--no-display-prompt", "-f", "-" }), with.prompt),
                      with.answer + "\n");
    }

    outcome terminal() const {
#ifdef _WIN32
        return untried("no program has a console of another kind on Windows");
#else
        const ended done =
            run_at_terminal(alone({ "--chat", "-m", with.model, "-t", THREADS }), "> ", "/exit\r");
        return !done.started    ? untried("this system gives no terminal to a program")
               : done.code != 0 ? fails(done.said())
                                : holds();
#endif
    }

    outcome exit_codes() const {
        const ended version = run_child(alone({ "--version" }));
        if (version.code != 0 || !version.err.empty()) {
            return fails("--version: " + version.said());
        }
        for (const words & wrong :
             { words{ "--no-such-option" }, words{ "-p", "x", "-m", "no-such-file.gguf" } }) {
            const ended done = run_child(alone(wrong));
            if (done.code != 1 || !done.out.empty() || done.err.rfind("error: ", 0) != 0) {
                return fails(wrong[0] + ": " + done.said());
            }
        }
        return holds("0, and 1 with an error");
    }

    outcome mapping() const {
        const std::string mapped = "CPU_Mapped model buffer";
        const auto loaded = [&](const char * mode) {
            return run_child(continuing({ "-v", "--load-mode", mode }));
        };
        const ended by_map = loaded("mmap"), by_read = loaded("none");
        for (const ended & each : { by_map, by_read }) {
            if (each.code != 0 || each.out != with.answer + "\n") {
                return fails(each.said());
            }
        }
        return by_map.err.find(mapped) == std::string::npos ? fails("the weights are not mapped")
               : by_read.err.find(mapped) != std::string::npos
                   ? fails("mapped, where reading was asked for")
                   : holds("mapped and read, the same answer");
    }

    // A server of the small model, which this process asks over the loopback interface.
    void server() {
        child process(
            alone({ "--server", "-m", with.model, "-t", THREADS, "--port", "0", "--nobrowser", "-c",
                    "2048", "-np", "1", "--chat-template", "chatml" }),
            true);
        const std::string ready = " is ready: ";
        const std::string line = process.line_with(ready);
        const std::string url =
            line.empty() ? "" : line.substr(line.find(ready) + ready.size(), std::string::npos);
        const size_t colon = url.rfind(':');
        const int port = colon == std::string::npos ? 0 : atoi(url.c_str() + colon + 1);
        try_("server_ready", [&] { return port > 0 ? holds() : fails(process.end().said()); });
        if (port == 0) {
            return;
        }
        httplib::Client client("127.0.0.1", port);
        client.set_read_timeout(WAIT);
        const auto asked = [&](const char * path, const json & body) {
            const auto answer = client.Post(path, body.dump(), "application/json");
            if (!answer) {
                throw std::runtime_error(std::string(path) +
                                         ": no answer: " + httplib::to_string(answer.error()));
            }
            if (answer->status != 200) {
                throw std::runtime_error(std::string(path) + ": status " +
                                         std::to_string(answer->status) + ": " + answer->body);
            }
            return answer->body;
        };
        json chat = { { "messages", { { { "role", "user" }, { "content", with.prompt } } } },
                      { "temperature", 0 },
                      { "max_tokens", 16 } };
        std::string said;
        try_("server_tokens", [&] {
            const json answer = json::parse(asked("/completion", { { "prompt", with.prompt },
                                                                   { "n_predict", atoi(TOKENS) },
                                                                   { "temperature", 0 } }));
            const std::string got = answer.at("content");
            return got == with.answer ? holds() : fails("not " + with.answer + ": " + got);
        });
        try_("server_chat", [&] {
            const json answer = json::parse(asked("/v1/chat/completions", chat));
            said = answer.at("choices").at(0).at("message").at("content");
            return said.empty() ? fails("an empty answer") : holds();
        });
        try_("server_stream", [&] {
            chat["stream"] = true;
            const std::string body = asked("/v1/chat/completions", chat);
            std::string got;
            bool ended = false;
            for (size_t at = 0; (at = body.find("data: ", at)) != std::string::npos; at++) {
                const std::string data = body.substr(at + 6, body.find('\n', at) - at - 6);
                if (data == "[DONE]") {
                    ended = true;
                } else {
                    const json choices = json::parse(data).value("choices", json::array());
                    const json delta = choices.empty() ? json() : choices[0].value("delta", json());
                    got += delta.is_object() && delta.contains("content") &&
                                   delta["content"].is_string()
                               ? delta["content"].get<std::string>()
                               : "";
                }
            }
            return !ended        ? fails("the stream has no end")
                   : got != said ? fails("another answer than without a stream: " + got)
                                 : holds();
        });
        try_("server_404", [&] {
            const auto answer = client.Get("/no-such-page");
            return answer && answer->status == 404
                       ? holds()
                       : fails(answer ? "status " + std::to_string(answer->status)
                                      : httplib::to_string(answer.error()));
        });
        try_("prompt_speed", [&] {
            std::string text;
            while (text.size() < 1024) { // a token is a character
                text += with.prompt;
            }
            const json timings = json::parse(asked("/completion", { { "prompt", text },
                                                                    { "n_predict", 1 },
                                                                    { "cache_prompt", false } }))
                                     .at("timings");
            const double speed = timings.at("prompt_per_second");
            figures["prompt_tokens_per_second"] = std::round(speed);
            return speed > 0 ? holds(number("%.0f", timings.at("prompt_n")) + " tokens of the " +
                                     "small model, " + number("%.0f", speed) + " a second")
                             : fails("no speed");
        });
        try_("server_interrupt", [&] {
            if (!process.interrupt()) {
                return untried("no program presses Ctrl-C for one other on Windows");
            }
            const ended done = process.end();
            if (done.late || (done.code != 0 && done.code != 130)) {
                return fails(done.said());
            }
            httplib::Client after("127.0.0.1", port);
            return after.Get("/health") ? fails("it still answers")
                                        : holds(number("ended with %.0f", done.code));
        });
    }

    // What is on, and that it holds: the same is tried without a sandbox, where it has to work.
    outcome sandbox() const {
        httplib::Server bait; // somebody to connect to
        const int port = bait.bind_to_any_port("127.0.0.1");
        std::thread listening([&] { bait.listen_after_bind(); });
        bait.wait_until_ready();
        const fs::path cache = cache_of(program);
        const fs::path folder = cache.empty() ? fs::temp_directory_path() : cache;
        const std::string name = (folder / ("prove-" + std::to_string(port))).string();
        const auto attempts = [&](const char * how) {
            const ended done =
                run_child(own({ TRESPASS, how, file.path, name, std::to_string(port) }));
            std::error_code error;
            fs::remove(name, error);
            return done;
        };
        const ended free = attempts("off"), confined = attempts("on");
        bait.stop();
        listening.join();
        const std::string line = "sandbox: " + confined.out.substr(0, confined.out.find('\n'));
        if (free.code != 0 || confined.code != 0) {
            return fails((free.code != 0 ? free : confined).said());
        }
        std::string held, broken;
        for (const std::string & each : what_it_holds(line)) {
            if (free.out.find("\n" + each + ": done\n") == std::string::npos) {
                continue; // nor would it work without a sandbox
            }
            const bool refused =
                confined.out.find("\n" + each + ": refused\n") != std::string::npos;
            (refused ? held : broken) += " " + each;
        }
        const std::string stands = stand_in();
        return !broken.empty() && !stands.empty()
                   ? untried(stands + " holds nobody to it (" + line + ")")
               : !broken.empty() ? fails(line + ", and it does not keep from:" + broken)
               : held.empty()    ? untried(line)
                                 : holds(line + "; keeps from:" + held);
    }

    // By what each system says it does, of a server that is ready.
    static words what_it_holds(const std::string & line) {
        static const struct {
            const char * says;
            const char * but_not;
            words holds;
        } TABLE[] = {
            { "Landlock", "no Landlock", { "read", "write" } },
            { "seccomp", "no seccomp", { "connect", "start" } },
            { "pledge", "(pledge:", { "write", "start" } },
            { ", unveil", "(pledge:", { "read" } },
            { "Capsicum", "none", { "read", "write", "connect", "start" } },
            { "a profile of macOS", "no other", { "write", "connect", "start" } },
            { "dynamic code", "none", { "write", "start" } }, // Windows
        };
        words out;
        for (const auto & row : TABLE) {
            if (line.find(row.says) != std::string::npos &&
                line.find(row.but_not) == std::string::npos && line.find(": none") == line.npos) {
                out.insert(out.end(), row.holds.begin(), row.holds.end());
            }
        }
        return out;
    }

    const container & file;
    const std::string program;
    const recorded with;
    const bool as_json;
    const std::vector<level> levels;
    const words by;
    bool good = true;
    json checks = json::array(), not_tried = json::array(), figures = json::object();
};

} // namespace

int prove(const container & file, const std::string & program, const arguments & given) {
    bool as_json = false;
    for (const word & each : given) {
        if (each == "--json") {
            as_json = true;
        } else if (each != PROVE) {
            throw std::runtime_error(std::string(PROVE) +
                                     " takes no other option than --json: " + each);
        }
    }
    return proof(file, program, as_json).run();
}

bool is_trespasser(const arguments & words) {
    return words.size() == 5 && words[0] == TRESPASS;
}

int trespass(const std::string & program, const arguments & given) {
    const bool confined = given[1] == "on";
    const std::string secret = given[2], made = given[3];
    if (confined) {
        named names;
        names.program = program;
        sandbox_names(names, false);
        enter_sandbox(duty::SERVES, { 0 });
        tighten_sandbox();
    }
    printf("%s\n", sandbox_line().substr(sizeof("sandbox: ") - 1).c_str());
    const auto attempt = [](const char * what, bool done) {
        printf("%s: %s\n", what, done ? "done" : "refused");
        fflush(stdout);
    };
    char byte;
    const file_ptr read = open_file(secret);
    attempt("read", read && fread(&byte, 1, 1, read.get()) == 1);
    const file_ptr written(fopen(made.c_str(), "wb"));
    attempt("write", written != nullptr);
    httplib::Client client("127.0.0.1", atoi(given[4].c_str()));
    attempt("connect", (bool)client.Get("/"));
    const ended other = run_child({ program, "--probe" });
    attempt("start", other.started && other.code == 0);
    return 0;
}
