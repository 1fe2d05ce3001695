#include "machines/machines.h"

#include "machines/worker.h"
#include "manifest.h"
#include "seams/progress.h"
#include "system/cache.h"
#include "system/files.h"
#include "system/memory.h"
#include "system/system.h"
#include "system/threads.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <numeric>
#include <stdexcept>

#ifndef _WIN32
#include "common.h"
#include "ggml-backend.h"
#include "ggml-rpc.h"
#include "machines/connection.h"
#include "machines/speed.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
extern char ** environ;
#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 // there the socket itself is told
#endif
#endif

namespace {

using names = flag_table::names;

const names ON = { "--on" };
const names SPLIT = { "--split" };
const names UPSTREAMS = { "-ngl", "--gpu-layers", "--n-gpu-layers", "-ts", "--tensor-split" };

const size_t MOST_MACHINES = 15; // llama.cpp has room for 16 devices

// Of the free memory of a machine; the rest is for the context and for what is computed.
const double PART_FOR_WEIGHTS = 0.8;

std::vector<std::string> words_in(const std::string & list) {
    std::vector<std::string> out;
    for (size_t start = 0, end; start <= list.size(); start = end + 1) {
        end = std::min(list.find(',', start), list.size());
        out.push_back(list.substr(start, end - start));
    }
    return out;
}

// ssh would take one for an option.
void check_name(const word & flag, const std::string & name) {
    const auto strange = [](unsigned char c) { return c <= ' ' || c == 0x7f; };
    if (name.empty() || name[0] == '-' || std::any_of(name.begin(), name.end(), strange)) {
        refuse(flag, flag + " " + name + ": not the name of a machine, as ssh takes it");
    }
    const size_t colon = name.find(':');
    if (colon != std::string::npos && colon == name.rfind(':')) {
        refuse(flag, flag + " " + name +
                         ": a port is given as ssh://HOST:PORT, or in ~/.ssh/config; how much a "
                         "machine gets is said by --split");
    }
}

} // namespace

machines take_machines(arguments & args, const flag_table & flags) {
    machines out;
    // Whoever made the file may not reach for other machines.
    if (flags.take(args, ON, origin::file) | flags.take(args, SPLIT, origin::file)) {
        fputs("note: --on and --split in .args have no effect; only whoever runs the file may use "
              "other machines\n",
              stderr);
    }
    word flag;
    for (size_t i = 0; i < args.size(); i += 1 + flags.values(args[i])) {
        if (args[i] == "--on") {
            flag = args[i];
            for (const std::string & name :
                 words_in(i + 1 < args.size() ? std::string(args[i + 1]) : "")) {
                check_name(flag, name);
                out.names.push_back(name);
            }
        }
    }
    if (out.names.size() > MOST_MACHINES) {
        refuse(flag, "--on: more than " + std::to_string(MOST_MACHINES) + " machines");
    }
    const size_t at = flags.find(args, SPLIT);
    if (at < args.size() && out.names.empty()) {
        refuse(args[at], args[at] + " is for several machines, which --on names");
    }
    if (at < args.size()) {
        const std::string list = at + 1 < args.size() ? std::string(args[at + 1]) : "";
        for (const std::string & share : words_in(list)) {
            char * rest = nullptr;
            const double number = strtod(share.c_str(), &rest);
            if (share.empty() || *rest != 0 || !(number >= 0) || number > 1e9) {
                refuse(args[at], args[at] + " " + list + ": " + share + " is no share");
            }
            out.shares.push_back(number);
        }
        if (out.shares.size() != out.names.size() + 1 ||
            std::accumulate(out.shares.begin() + 1, out.shares.end(), 0.0) <= 0) {
            refuse(args[at], args[at] + " " + list + ": " + std::to_string(out.names.size() + 1) +
                                 " shares are wanted, this machine's and then those that --on "
                                 "names, which can't all be 0");
        }
    }
    flags.take(args, ON);
    flags.take(args, SPLIT);
    for (const char * each : out.names.empty() ? names() : UPSTREAMS) {
        const size_t given = flags.find(args, { each }, origin::user);
        if (given + 1 < args.size()) {
            out.upstreams.insert(out.upstreams.end(), { args[given], args[given + 1] });
        }
        flags.take(args, { each });
    }
    return out;
}

std::vector<int> share_out(int layers, const std::vector<double> & weights) {
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    std::vector<int> out(weights.size(), 0);
    std::vector<double> owed(weights.size(), 0);
    int left = layers;
    for (size_t i = 0; i < weights.size() && left > 0; i++) {
        if (weights[i] > 0) {
            out[i] = 1;
            left--;
        }
    }
    for (size_t i = 0; i < weights.size(); i++) {
        owed[i] = sum > 0 ? layers * weights[i] / sum : 0;
    }
    for (; left > 0; left--) {
        size_t most = 0;
        for (size_t i = 1; i < owed.size(); i++) {
            most = owed[i] - out[i] > owed[most] - out[most] ? i : most;
        }
        out[most]++;
    }
    return out;
}

std::vector<int> share_by_capacity(int layers, uint64_t bytes, const std::vector<capacity> & all) {
    std::vector<double> speeds, memories;
    std::vector<int> most;
    bool is_known = true;
    for (const capacity & each : all) {
        const double fit = PART_FOR_WEIGHTS * each.memory * layers / std::max(1.0, (double)bytes);
        most.push_back((int)std::min(fit, (double)layers));
        speeds.push_back(each.speed);
        memories.push_back(each.memory);
        is_known = is_known && each.speed > 0 && each.memory > 0;
    }
    if (!is_known || std::accumulate(most.begin(), most.end(), 0) < layers) {
        return share_out(layers, memories);
    }
    // whoever would get too much gets what fits, and the others share the rest
    std::vector<int> full(all.size(), 0);
    for (bool again = true; again;) {
        const std::vector<int> shared = share_out(layers, speeds);
        again = false;
        for (size_t i = 0; i < all.size(); i++) {
            if (shared[i] > most[i]) {
                full[i] = most[i];
                layers -= most[i];
                speeds[i] = 0;
                again = true;
            }
        }
        for (size_t i = 0; !again && i < all.size(); i++) {
            full[i] += shared[i];
        }
    }
    return full;
}

#ifdef _WIN32

arguments start_workers(const machines &, const container &, const weights &) {
    throw std::runtime_error("--on: this is not made for Windows");
}

void use_workers() {}

void say_loaded(size_t, size_t) {}

int leave_workers(int words) {
    return words;
}

#else

namespace fs = std::filesystem;

namespace {

// What `uname -sm` says where a worker can run, and the target of its program; targets.py has the
// same.
const struct {
    const char *uname, *target;
} SYSTEMS[] = {
    { "Linux x86_64", "linux-amd64" },    { "Linux amd64", "linux-amd64" },
    { "Linux aarch64", "linux-arm64" },   { "Linux arm64", "linux-arm64" },
    { "Darwin x86_64", "macos-amd64" },   { "Darwin arm64", "macos-arm64" },
    { "FreeBSD amd64", "freebsd-amd64" }, { "FreeBSD arm64", "freebsd-arm64" },
    { "NetBSD amd64", "netbsd-amd64" },   { "OpenBSD amd64", "openbsd-amd64" },
    { "OpenBSD arm64", "openbsd-arm64" },
};

const size_t HEAD = 16384;   // bytes, which have the launch script (FORMAT.md, section 2)
const int64_t BLOCK = 65536; // bytes

const uint64_t WORTH_A_BAR = 1'000'000; // bytes
const int BAR = 30;                     // columns

// Seconds. ssh ends where nothing comes for three of the first; then where its worker is mute.
const char ALIVE[] = "3";
const int PATIENCE = 8;
// For whoever types a password, and for a shell that starts slowly.
const int PATIENCE_AT_START = 120;

// What runs there. First the head of this file is sent, whose launch script finds its program in
// the cache. If it doesn't, the program is sent as well, to its place behind the head, and the
// script puts it into the cache. The program then takes the shell's place. Neither an apostrophe
// nor a backslash, for the user's shell there may be any.
const char THERE[] = "umask 077; echo \"pyllamafile system $(uname -sm)\"; "
                     "t=${TMPDIR:-/tmp}/pyllamafile-on.$$; mkdir \"$t\" || exit 1; "
                     "gone() { rm -rf \"$t\"; }; trap gone EXIT; trap \"exit 1\" HUP INT TERM; "
                     "head -c 16384 >\"$t/f\"; "
                     "p=$(sh \"$t/f\" --worker-path </dev/null 2>/dev/null) || { "
                     "echo pyllamafile wants; read -r at size; head -c \"$size\" >\"$t/p\"; "
                     "dd if=\"$t/p\" of=\"$t/f\" bs=65536 seek=\"$at\" conv=notrunc 2>/dev/null; "
                     "p=$(sh \"$t/f\" --worker-path </dev/null); }; "
                     "trap - EXIT; gone; [ -n \"$p\" ] || exit 1; exec \"$p\" ";

struct machine {
    std::string name, system;
    capacity can = { 0, 0 };
    peer connection = { "", -1, -1 };
};

std::vector<machine> started;
arguments shares; // what llama.cpp is told of them
capacity here = { 0, 0 };
bool * lost = nullptr; // which of them; of this process, and of those that it was split into

[[noreturn]] void fail(const machine & there, const std::string & why) {
    throw std::runtime_error(there.name + ": " + why);
}

// The connection is of no use any more; ssh, and what it has started there, may say why.
[[noreturn]] void lose(const machine & there, const std::string & why) {
    close(there.connection.in);
    for (int waited = 0; waited < 100 && waitpid(there.connection.ssh, nullptr, WNOHANG) == 0;
         waited++) {
        usleep(10000);
    }
    const std::string said = last_line(there.connection.errors);
    fail(there, said.empty() ? why : said);
}

// A file that has no name any more.
int nameless_file() {
    const char * folder = getenv("TMPDIR");
    std::string path =
        std::string(folder != nullptr && folder[0] == '/' ? folder : "/tmp") + "/llamafile-XXXXXX";
    const int file = mkstemp(path.data());
    if (file >= 0) {
        unlink(path.c_str());
        fcntl(file, F_SETFD, FD_CLOEXEC);
    }
    return file;
}

// `words`: with which the program is started there.
machine start_ssh(const std::string & name, const std::string & words) {
    machine out;
    out.name = name;
    int ends[2];
    const int errors = nameless_file();
    if (errors < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) {
        fail(out, strerror(errno));
    }
    for (const int end : ends) {
        fcntl(end, F_SETFD, FD_CLOEXEC);
    }
#ifdef SO_NOSIGPIPE
    const int yes = 1;
    setsockopt(ends[0], SOL_SOCKET, SO_NOSIGPIPE, &yes, sizeof(yes));
#endif
    const std::string there = std::string("exec /bin/sh -c '") + THERE + words + "'";
    const std::string interval = std::string("ServerAliveInterval=") + ALIVE;
    const char * const argv[] = { "ssh",
                                  "-T", // no terminal, agent or display of ours is for the worker
                                  "-a",          "-x",
                                  "-o",          "BatchMode=no",
                                  "-o",          "ConnectTimeout=10",
                                  "-o",          interval.c_str(),
                                  "-o",          "ServerAliveCountMax=2",
                                  "-o",          "ClearAllForwardings=yes",
                                  "--",          name.c_str(),
                                  there.c_str(), nullptr };
    posix_spawn_file_actions_t streams;
    posix_spawn_file_actions_init(&streams);
    posix_spawn_file_actions_adddup2(&streams, ends[1], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&streams, ends[1], STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&streams, errors, STDERR_FILENO);
    // Ctrl-C is for this program, which may go on; ssh ignores what it finds ignored.
    void (*before)(int) = signal(SIGINT, SIG_IGN);
    const int error =
        posix_spawnp(&out.connection.ssh, "ssh", &streams, nullptr, (char * const *)argv, environ);
    signal(SIGINT, before);
    posix_spawn_file_actions_destroy(&streams);
    close(ends[1]);
    out.connection.name = name;
    out.connection.in = out.connection.out = ends[0];
    out.connection.errors = errors;
    out.connection.patience = PATIENCE;
    if (error != 0) {
        close(ends[0]);
        throw std::runtime_error(name + ": ssh can't be started: " + strerror(error) +
                                 "; it is in the package openssh-client");
    }
    return out;
}

void put(const machine & there, const std::string & bytes) {
    for (size_t at = 0; at < bytes.size();) {
        const ssize_t count =
            send(there.connection.out, bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL);
        if (count < 0 && errno != EINTR) {
            lose(there, "the connection has ended");
        }
        at += count > 0 ? (size_t)count : 0;
    }
}

// What stands behind these words in the next line that begins with them; a shell may print others
// of its own. By character, for what follows is not all lines.
std::string line_with(const machine & there, const std::vector<std::string> & words,
                      size_t & which) {
    const size_t longest = 1000;
    for (std::string line;;) {
        pollfd waiting = { there.connection.in, POLLIN, 0 };
        const int came = poll(&waiting, 1, PATIENCE_AT_START * 1000);
        char c;
        if (came == 0) {
            lose(there, "no answer for " + std::to_string(PATIENCE_AT_START) + " seconds");
        }
        if (came < 0 || read(there.connection.in, &c, 1) != 1) {
            lose(there, "the connection has ended before the worker had started");
        }
        if (c != '\n') {
            line += line.size() < longest ? std::string(1, c) : "";
            continue;
        }
        for (which = 0; which < words.size(); which++) {
            if (line.rfind(words[which], 0) == 0) {
                return line.substr(words[which].size());
            }
        }
        line.clear();
    }
}

std::string target_of(const machine & there) {
    for (const auto & each : SYSTEMS) {
        if (there.system == each.uname) {
            return each.target;
        }
    }
    fail(there, "there is no worker for its system, " + there.system);
}

void send_program(const machine & there, const container & llamafile) {
    const std::string target = target_of(there);
    const auto program = find_program(llamafile, target);
    const std::string member =
        program && program->offset >= (int64_t)HEAD
            ? read_bytes(llamafile.path, program->offset, program->packed_size)
            : "";
    if (member.empty()) {
        fail(there, "this file has no program for its system, " + there.system +
                        "; one that has it is built with --target " + target + " as well");
    }
    fprintf(stderr, "%s: sending the program, %.1f MB\n", there.name.c_str(),
            (double)member.size() / 1e6);
    put(there, std::to_string(program->offset / BLOCK) + " " + std::to_string(member.size()) +
                   "\n" + member);
}

machine start_worker(const std::string & name, const container & llamafile,
                     const std::string & head, const std::string & words) {
    machine there = start_ssh(name, words);
    size_t which = 0;
    there.system = line_with(there, { "pyllamafile system " }, which);
    target_of(there);
    put(there, head);
    const std::vector<std::string> answers = { "pyllamafile worker ", "pyllamafile wants" };
    std::string line = line_with(there, answers, which);
    if (which == 1) {
        send_program(there, llamafile);
        line = line_with(there, { answers[0] }, which);
    }
    char * rest = nullptr;
    there.can.memory = strtod(line.c_str(), &rest);
    there.can.speed = rounded_speed(strtod(rest, nullptr));
    return there;
}

// What most of the bytes are of; of that the speed is measured.
std::string type_of(const std::vector<tensor_place> & tensors) {
    std::map<uint32_t, uint64_t> bytes;
    uint32_t most = GGML_TYPE_F16;
    for (const tensor_place & each : tensors) {
        bytes[each.type] += each.size;
        most = bytes[each.type] > bytes[most] ? each.type : most;
    }
    return ggml_type_name((ggml_type)most);
}

// Before the sandbox, as is all here.
capacity measure_here(const std::string & type) {
    const std::string folder = speed_folder_of(own_path());
    const int threads = threads_to_use(common_cpu_get_num_math());
    const ggml_backend_t backend = processor(threads);
    const double speed = speed_of(type, backend, threads, have_own_folder(folder) ? folder : "");
    if (backend != nullptr) {
        ggml_backend_free(backend);
    }
    return { free_memory(), speed };
}

std::string described(const capacity & can) {
    char out[80];
    const int end = snprintf(out, sizeof(out), "%.1f GB of memory free", can.memory / 1e9);
    if (can.speed > 0) {
        snprintf(out + end, sizeof(out) - (size_t)end, ", computes %g GB/s", can.speed);
    }
    return out;
}

void say(const std::string & who, int layers, int of, const capacity & can) {
    fprintf(stderr, "%s: %d of %d layers, %s\n", who.c_str(), layers, of, described(can).c_str());
}

// For llama.cpp the output is a layer of the last machine that has any, whatever else is where. It
// stays here where this machine computes at all: what it is made of is a few thousand numbers, and
// what it makes is one for each token of the vocabulary.
arguments words_for(const std::vector<int> & shared) {
    std::vector<int> there(shared.begin() + 1, shared.end());
    const bool output_is_here = shared[0] > 0;
    for (size_t i = there.size(); output_is_here && i-- > 0;) {
        if (there[i] > 0) {
            there[i]++;
            break;
        }
    }
    std::string split;
    for (const int each : there) {
        split += (split.empty() ? "" : "/") + std::to_string(each);
    }
    const int sum = std::accumulate(there.begin(), there.end(), 0);
    arguments out = { "-ngl", std::to_string(sum), "-ts", split };
    if (output_is_here) {
        out.insert(out.end(), { "-ot", "^(output|token_embd)[.]=CPU" });
    }
    return out;
}

} // namespace

arguments start_workers(const machines & asked, const container & llamafile,
                        const weights & model) {
    const std::string head = llamafile.path.empty() ? "" : read_bytes(llamafile.path, 0, HEAD);
    if (head.compare(0, 2, "#!") != 0 && head.compare(0, 2, "MZ") != 0) {
        throw std::runtime_error("--on needs a llamafile that begins with the launch script, which "
                                 "starts its programs on the other machines");
    }
    weights same;
    std::vector<tensor_place> tensors;
    const std::string problem = find_weights(model.name(), same, &tensors);
    if (!problem.empty()) {
        throw std::runtime_error(problem);
    }
    const std::string type = type_of(tensors);
    std::error_code error;
    same.path = fs::absolute(fs::u8path(same.path), error).u8string();
    const std::string words = type + " " + in_hex(same.name()) + " " + WORK;
    here = measure_here(type);
    std::vector<capacity> all = { here };
    for (size_t i = 0; i < asked.names.size(); i++) {
        try {
            started.push_back(start_worker(asked.names[i], llamafile, head, words));
        } catch (const std::runtime_error & problem) {
            throw machine_failed(i, problem.what());
        }
        all.push_back(started.back().can);
    }
    if (lost == nullptr) {
        void * shared =
            mmap(nullptr, MOST_MACHINES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        lost = shared != MAP_FAILED ? (bool *)shared : nullptr;
    }
    std::vector<peer> peers;
    for (size_t i = 0; i < started.size(); i++) {
        peers.push_back(started[i].connection);
        if (lost != nullptr) {
            lost[i] = false;
            peers.back().lost = &lost[i];
        }
    }
    connections_are(peers);
    if (!asked.upstreams.empty()) {
        for (const machine & each : started) {
            fprintf(stderr, "%s (%s): %s\n", each.name.c_str(), each.system.c_str(),
                    described(each.can).c_str());
        }
        return shares = asked.upstreams;
    }
    const int layers = (int)model.layers + 1; // the output counts as one to llama.cpp
    const std::vector<int> shared = asked.shares.empty()
                                        ? share_by_capacity(layers, model.size, all)
                                        : share_out(layers, asked.shares);
    say("this machine", shared[0], layers, here);
    for (size_t i = 0; i < started.size(); i++) {
        say(started[i].name + " (" + started[i].system + ")", shared[i + 1], layers, all[i + 1]);
    }
    return shares = words_for(shared);
}

// At a terminal: a bar, from when the first weights are sent, and the time that is left.
void say_loaded(size_t bytes, size_t of) {
    using clock = std::chrono::steady_clock;
    static const bool shows = !started.empty() && isatty(STDERR_FILENO) != 0;
    static clock::time_point began, said;
    static size_t before = 0;
    static bool stands = false;
    const clock::time_point now = clock::now();
    if (!shows || bytes_sent() < WORTH_A_BAR) {
        before = bytes;
        began = said = now;
    } else if (bytes >= of) {
        fputs(stands ? "\r\033[K" : "", stderr);
        stands = false;
    } else if (now - said > std::chrono::milliseconds(250) && bytes > before) {
        const double seconds = std::chrono::duration<double>(now - began).count();
        const long left = lround(seconds * (double)(of - bytes) / (double)(bytes - before));
        const int part = (int)(100 * (double)bytes / (double)of);
        const std::string full((size_t)(part * BAR / 100), '#');
        fprintf(stderr, "\rsending weights [%-*s] %d %%, %ld:%02ld left \033[K", BAR, full.c_str(),
                part, left / 60, left % 60);
        fflush(stderr);
        said = now;
        stands = true;
    }
}

void use_workers() {
    for (size_t i = 0; i < started.size(); i++) {
        std::string endpoint = started[i].name;
        std::replace(endpoint.begin(), endpoint.end(), ':', '.');
        endpoint += ":" + std::to_string(i); // transport.cpp goes by the number
        // as long as there is one of these, the connection is not made again
        ggml_backend_rpc_init(endpoint.c_str(), 0);
        ggml_backend_register(ggml_backend_rpc_add_server(endpoint.c_str()));
    }
}

int leave_workers(int words) {
    leave_connections();
    started.clear();
    return words - (int)shares.size();
}

void leave_to_others() {
    for (machine & each : started) {
        if (each.connection.in >= 0) {
            close(each.connection.in);
            close(each.connection.errors);
        }
        each.connection.in = -1;
    }
}

std::vector<size_t> lost_workers() {
    std::vector<size_t> out;
    for (size_t i = 0; lost != nullptr && i < started.size(); i++) {
        if (lost[i]) {
            out.push_back(i);
        }
    }
    return out;
}

// An ssh ends when its worker has; one that doesn't is of a machine that is lost.
void end_workers() {
    leave_to_others();
    int waited = 0;
    for (const machine & each : started) {
        while (waitpid(each.connection.ssh, nullptr, WNOHANG) == 0) {
            if (waited++ < 300) {
                usleep(10000);
            } else {
                kill(each.connection.ssh, SIGKILL);
                waitpid(each.connection.ssh, nullptr, 0);
                break;
            }
        }
    }
    started.clear();
    shares.clear();
}

double memory_of_all() {
    double out = started.empty() ? free_memory() : here.memory;
    for (const machine & each : started) {
        out += each.can.memory;
    }
    return out;
}

#endif
