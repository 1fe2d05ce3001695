#include "gpu.h"

// MISSING:
// - drivers that keep compiled shaders in the user's cache can't in the sandbox.

#include "backend.h"
#include "child.h"
#include "common.h"
#include "container.h"
#include "devices.h"
#include "findings.h"
#include "ggml-backend.h"
#include "room.h"
#include "system/sandbox.h"
#include "system/system.h"
#include "system/threads.h"
#include "trial.h"
#include "weights.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <sstream>
#include <stdexcept>
#include <tuple>

extern container own_container;

const char * const TRY_GPUS = "--try-gpus";

namespace {

const char * const SECONDS = "PYLLAMAFILE_GPU_SECONDS"; // for slow drivers, and for tests
const int PATIENCE = 60;

const char * const HANDED_DOWN = "PYLLAMAFILE_GPUS"; // to the router's processes

std::vector<int> used; // numbers of devices

int patience() {
    const char * given = getenv(SECONDS);
    const int seconds = given != nullptr ? atoi(given) : 0;
    return seconds > 0 ? seconds : PATIENCE;
}

// What a model does, as words of a command line

// Not that of whole numbers, which say which rows of others are taken.
bool has_products(ggml_type type) {
    return type == GGML_TYPE_F32 || ggml_get_type_traits(type)->to_float != nullptr;
}

// For each type the matrices that most bytes of it are in: a trial of all types would compile a
// hundred shaders. What has no matrices, or none to be found, does as most models do.
std::vector<gpu_work> work_of(const std::vector<std::string> & names) {
    std::vector<tensor_place> tensors;
    for (const std::string & name : names) {
        weights found;
        find_weights(name, found, &tensors);
    }
    std::map<uint32_t, std::map<std::pair<uint64_t, uint64_t>, uint64_t>> bytes;
    for (const tensor_place & each : tensors) {
        if (each.rows > 1 && each.columns > 1 && has_products((ggml_type)each.type)) {
            bytes[each.type][{ each.columns, each.rows }] += each.size;
        }
    }
    std::vector<gpu_work> out;
    for (const auto & [type, shapes] : bytes) {
        gpu_work work = { (ggml_type)type, 0, 0, 0 };
        uint64_t most = 0;
        for (const auto & [shape, size] : shapes) {
            work.bytes += size;
            if (size > most) {
                most = size;
                std::tie(work.columns, work.rows) = shape;
            }
        }
        out.push_back(work);
    }
    if (out.empty()) {
        out.push_back({ GGML_TYPE_F16, 4096, 4096, 1 << 30 });
    }
    return out;
}

std::string in_words(const std::vector<gpu_work> & all) {
    std::string out;
    for (const gpu_work & each : all) {
        out += (out.empty() ? "" : ",") + std::to_string(each.type) + ":" +
               std::to_string(each.columns) + ":" + std::to_string(each.rows) + ":" +
               std::to_string(each.bytes);
    }
    return out;
}

std::vector<gpu_work> work_in(std::string words) {
    std::replace_if(
        words.begin(), words.end(), [](char c) { return c == ',' || c == ':'; }, ' ');
    std::istringstream in(words);
    std::vector<gpu_work> out;
    gpu_work each = {};
    for (int type; in >> type >> each.columns >> each.rows >> each.bytes;) {
        each.type = (ggml_type)type;
        out.push_back(each);
    }
    return out;
}

std::string in_words(const std::vector<int> & numbers) {
    std::string out;
    for (const int each : numbers) {
        out += (out.empty() ? "" : ",") + std::to_string(each);
    }
    return out;
}

std::vector<int> numbers_in(const std::string & words) {
    std::istringstream in(words);
    std::vector<int> out;
    for (std::string each; std::getline(in, each, ',');) {
        out.push_back(atoi(each.c_str()));
    }
    return out;
}

// The trial, from outside

std::string how_it_ended(const child_end & how, int seconds) {
    return how.late ? "its driver did not answer within " + std::to_string(seconds) + " seconds"
           : !how.crash.empty() ? "its driver ended with " + how.crash
                                : "its driver ended with exit status " + std::to_string(how.code);
}

// A device that ends its process, or holds it up, is left out when the others are tried again.
gpu_findings try_all(const std::vector<std::string> & words) {
    const int seconds = patience();
    gpu_findings out;
    std::vector<int> left;
    do {
        std::vector<std::string> all = words;
        all.push_back(in_words(left));
        const child_end how = run_for(seconds, all);
        read_findings(how.said, out);
        if (!how.late && how.crash.empty() && how.code == 0) {
            break;
        }
        gpu_finding * failed = out.of(out.trying);
        if (failed == nullptr) {
            out.problem = how_it_ended(how, seconds);
            break;
        }
        failed->tried = true;
        failed->wrong = how_it_ended(how, seconds);
        left.clear();
        for (const gpu_finding & each : out.devices) {
            if (!each.tried) {
                left.push_back(each.number);
            }
        }
    } while (!left.empty());
    for (gpu_finding & each : out.devices) {
        if (!each.tried) {
            each.wrong =
                out.problem.empty() ? "its driver ended before it had computed" : out.problem;
        }
    }
    return out;
}

// Who asks for a GPU gets it, and who asks which there are hears of all that compute rightly.
bool is_too_slow(const gpu_finding & device, bool to_list) {
    return chosen_gpus() == gpus::AUTO && !to_list && device.slowness > 1;
}

// What upstream calls each of them: it hears of those alone that compute rightly, and counts them.
std::vector<std::string> names_of_upstreams(const gpu_findings & found) {
    std::vector<std::string> out;
    int right = 0;
    for (const gpu_finding & each : found.devices) {
        out.push_back(each.wrong.empty() ? GPU_DEVICE + std::to_string(right++) : "");
    }
    return out;
}

// Those that --gpu is about.
std::vector<gpu_finding> chosen(const gpu_findings & found) {
    const std::vector<std::string> names = names_of_upstreams(found);
    std::vector<gpu_finding> out;
    for (size_t i = 0; i < names.size(); i++) {
        if (is_chosen_gpu(found.devices[i].name, names[i])) {
            out.push_back(found.devices[i]);
        }
    }
    return out;
}

std::vector<int> usable(const gpu_findings & found, bool to_list) {
    std::vector<int> out;
    for (const gpu_finding & each : chosen(found)) {
        if (each.wrong.empty() && !is_too_slow(each, to_list)) {
            out.push_back(each.number);
        }
    }
    return out;
}

// Who needs one that was refused may have removed what was in its way; not who needs another one
// than there is.
bool is_worth_another_trial(const gpu_findings & found) {
    return chosen_gpus() == gpus::NEEDED && used.empty() &&
           (found.devices.empty() || !chosen(found).empty());
}

std::string all_there_are(const gpu_findings & found) {
    const std::vector<std::string> names = names_of_upstreams(found);
    std::string out;
    for (size_t i = 0; i < names.size(); i++) {
        out += (out.empty() ? "" : ", ") + found.devices[i].name;
        out += names[i].empty() ? "" : " (" + names[i] + ")";
    }
    return out;
}

// Why none of the devices is used: by the first.
std::string why_none(const gpu_findings & found) {
    if (found.devices.empty()) {
        return found.problem;
    }
    const std::vector<gpu_finding> all = chosen(found);
    if (all.empty()) {
        return "no GPU of this machine is called so: there is " + all_there_are(found);
    }
    const gpu_finding & first = all.front();
    char times[32];
    snprintf(times, sizeof(times), "%.*f", first.slowness < 10 ? 1 : 0, first.slowness);
    return first.name + ": " +
           (first.wrong.empty()
                ? std::string("the processor does ") + times + " times as much meanwhile"
                : first.wrong);
}

// The trial itself

// How slow a device is. Throws what is wrong with it.
double tried(ggml_backend_dev_t device, const std::vector<gpu_work> & work) {
    std::vector<ggml_type> types;
    for (const gpu_work & each : work) {
        types.push_back(each.type);
    }
    try_gpu(device, types, [](const verdict & found) {
        if (found.is_wrong()) {
            throw std::runtime_error("it computes wrongly: " + found.what);
        }
    });
    const auto most =
        std::max_element(work.begin(), work.end(),
                         [](const gpu_work & a, const gpu_work & b) { return a.bytes < b.bytes; });
    return slowness_of(device, ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU),
                       threads_to_use(common_cpu_get_num_math()), *most);
}

} // namespace

void allow_drivers(named & names, bool starts) {
    if (!used.empty() || starts) {
        name_gpu_drivers(names);
    }
}

void hand_down_gpus(const arguments & more) {
    std::string lines = in_words(used);
    for (const word & each : more) {
        lines += "\n" + each;
    }
    set_variable(HANDED_DOWN, lines);
}

void take_over_gpus(arguments & args) {
    const char * given = getenv(HANDED_DOWN);
    std::istringstream lines(given != nullptr ? given : "");
    std::string line;
    if (std::getline(lines, line)) {
        used = numbers_in(line);
    }
    while (std::getline(lines, line)) {
        args.push_back(line);
    }
}

bool try_gpus(const std::string & program, const std::string & llamafile,
              const std::vector<std::string> & weights, bool to_list) {
    if (chosen_gpus() == gpus::OFF) {
        return false;
    }
    const std::string missing = no_gpu_because();
    if (!missing.empty()) {
        if (chosen_gpus() == gpus::NEEDED) {
            say_no_gpu(missing);
        }
        return false;
    }
    const std::string work = in_words(work_of(weights));
    const std::string place = place_of_findings(program, gpu_drivers(), work);
    gpu_findings found;
    const bool recalled = recall_findings(place, found);
    used = usable(found, to_list);
    if (!recalled || is_worth_another_trial(found)) {
        try {
            found = try_all({ program, "--llamafile", llamafile, TRY_GPUS, work });
        } catch (const std::exception & problem) {
            say_no_gpu(std::string("it can't be tried: ") + problem.what());
            return false;
        }
        keep_findings(place, found);
        used = usable(found, to_list);
    }
    if (used.empty()) {
        say_no_gpu(why_none(found));
        return false;
    }
    for (const gpu_finding & each : chosen(found)) {
        if (!each.wrong.empty()) {
            fprintf(stderr, "GPU: not used: %s: %s\n", each.name.c_str(), each.wrong.c_str());
        }
    }
    return true;
}

std::string last_trial_of_gpus(const std::string & program) {
    const bool none = chosen_gpus() == gpus::OFF || !no_gpu_because().empty();
    const gpu_findings found = none ? gpu_findings() : last_findings(program, gpu_drivers());
    const std::vector<int> numbers = usable(found, false);
    std::string out;
    for (const gpu_finding & each : found.devices) {
        if (std::find(numbers.begin(), numbers.end(), each.number) != numbers.end()) {
            out += (out.empty() ? "GPU: " : ", ") + each.name;
        }
    }
    const bool tried = !found.devices.empty() || !found.problem.empty();
    return out.empty() && tried ? "GPU: not used: " + why_none(found) : out;
}

int trial_of_gpus(const arguments & user) {
    end_with_parent();
    named names;
    names.reads.push_back(own_container.path);
    name_gpu_drivers(names);
    sandbox_names(names, false);
    enter_sandbox(duty::COMPUTES);
    const auto say = [](const std::string & line) {
        fputs(line.c_str(), stdout);
        fflush(stdout);
    };
    try {
        const std::vector<gpu_work> work = user.size() > 1 ? work_in(user[1]) : work_of({});
        const std::string numbers = user.size() > 2 ? user[2] : "";
        const ggml_backend_reg_t gpus = start_gpu_drivers(numbers_in(numbers), gpu_duty::COMPUTES);
        const size_t count = ggml_backend_reg_dev_count(gpus);
        for (size_t i = 0; i < count; i++) {
            say(line_of_device(number_of_gpu(i),
                               ggml_backend_dev_description(ggml_backend_reg_dev_get(gpus, i))));
        }
        for (size_t i = 0; i < count; i++) {
            const int number = number_of_gpu(i);
            say(line_of_trying(number));
            try {
                say(line_of_right(number, tried(ggml_backend_reg_dev_get(gpus, i), work)));
            } catch (const std::exception & problem) {
                say(line_of_wrong(number, problem.what()));
            }
        }
    } catch (const std::exception & problem) {
        say(line_of_problem(problem.what()));
    }
    return 0;
}

static void start_gpus(gpu_duty duty) {
    if (used.empty()) {
        return;
    }
    // Which devices there are it would say aloud; the log has them again when the model is loaded.
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    std::string why_not;
    try {
        const ggml_backend_reg_t gpus = start_gpu_drivers(used, duty);
        for (size_t i = 0; i < ggml_backend_reg_dev_count(gpus); i++) {
            watch_gpu(ggml_backend_reg_dev_get(gpus, i));
        }
        ggml_backend_register(gpus);
    } catch (const std::runtime_error & problem) {
        why_not = problem.what();
    }
    ggml_log_set(nullptr, nullptr);
    if (!why_not.empty()) { // since it was tried
        say_none_is_used(why_not);
    }
}

void use_gpus() {
    start_gpus(gpu_duty::COMPUTES);
}

void list_gpus() {
    start_gpus(gpu_duty::LISTS);
    puts("Available devices:");
    const size_t mebibyte = 1024 * 1024;
    bool any = false;
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        const ggml_backend_dev_t device = ggml_backend_dev_get(i);
        if (ggml_backend_dev_type(device) != GGML_BACKEND_DEVICE_TYPE_CPU) {
            size_t available = 0, total = 0;
            ggml_backend_dev_memory(device, &available, &total);
            printf("  %s: %s (%zu MiB, %zu MiB free)\n", ggml_backend_dev_name(device),
                   ggml_backend_dev_description(device), total / mebibyte, available / mebibyte);
            any = true;
        }
    }
    if (!any) {
        puts("  (none)");
    }
}
