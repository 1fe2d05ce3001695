#include "former.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace {

enum class how { SILENTLY, WITH_A_LINE };

struct former {
    const char * flag;
    size_t values;
    arguments now; // its values come behind them; nothing leaves it out
    how left_out = how::WITH_A_LINE;
};

// Out of the manuals llamafile(1) and llamafiler(1).
const former FORMER[] = {
    // what looks nobody misses
    { "--nologo", 0, {}, how::SILENTLY },
    { "--ascii", 0, {}, how::SILENTLY },
    { "--v2", 0, {}, how::SILENTLY },
    { "--log-enable", 0, {}, how::SILENTLY },
    { "--no-penalize-nl", 0, {}, how::SILENTLY }, // is so anyway
    // under other names
    { "--silent-prompt", 0, { "--no-display-prompt" } },
    { "--url-prefix", 1, { "--api-prefix" } },
    { "--no-mmap", 0, { "--load-mode", "none" } },
    { "--mlock", 0, { "--load-mode", "mlock" } },
    { "--memory-f32", 0, { "--cache-type-k", "f32", "--cache-type-v", "f32" } },
    { "--instruct", 0, { "--conversation" } },
    { "-ins", 0, { "--conversation" } },
    { "--chatml", 0, { "--conversation" } },
    { "-cml", 0, { "--conversation" } },
    { "-spf", 1, { "--system-prompt-file" } },
    { "--samplers-seq", 1, { "--sampling-seq" } },
    { "--draft", 1, { "--spec-draft-n-max" } },
    { "--p-split", 1, { "--spec-draft-p-split" } },
    { "-ps", 1, { "--spec-draft-p-split" } },
    { "--slots-endpoint-disable", 0, { "--no-slots" } },
    { "--workers", 1, { "--threads-http" } },
    { "--nothink", 0, { "--reasoning", "off" } },
    // how it computed
    { "--fast", 0, {} },
    { "--precise", 0, {} },
    { "--iq", 0, {} },
    { "--trap", 0, {} },
    { "--recompile", 0, {} },
    { "--nocompile", 0, {} },
    { "--no-mul-mat-q", 0, {} },
    { "-nommq", 0, {} },
    { "--tinyblas", 0, {} },
    // what llama.cpp had once
    { "--tfs", 1, {} },
    { "--cfg-negative-prompt", 1, {} },
    { "--cfg-negative-prompt-file", 1, {} },
    { "--cfg-scale", 1, {} },
    { "--logits-all", 0, {} },
    { "--p-accept", 1, {} },
    { "-pa", 1, {} },
    { "--lora-base", 1, {} },
    { "--random-prompt", 0, {} },
    { "--dump-kv-cache", 0, {} },
    { "-dkvc", 0, {} },
    { "--logdir", 1, {} },
    { "-ld", 1, {} },
    { "--log-test", 0, {} },
    { "--log-new", 0, {} },
    { "--log-append", 0, {} },
    // Cosmopolitan's
    { "--strace", 0, {} },
    { "--ftrace", 0, {} },
    // llamafiler's
    { "--keepalive", 1, {} },
    { "--db", 1, {} },
    { "--db-startup-sql", 1, {} },
    { "--trust", 1, {} },
    { "--ip-header", 1, {} },
    { "--token-rate", 1, {} },
    { "--token-burst", 1, {} },
    { "--token-cidr", 1, {} },
    { "--http-obuf-size", 1, {} },
    { "--http-ibuf-size", 1, {} },
    { "--completion-mode", 0, {} },
    { "--reserve-tokens", 1, {} },
};

// Switches once, which take a value now.
struct {
    const char * flag;
    const char * value;
} const SWITCHES[] = {
    { "--color", "on" },        { "-co", "on" }, { "--flash-attn", "on" }, { "-fa", "on" },
    { "--numa", "distribute" },
};

const former * look_up(const std::string & flag) {
    for (const former & known : FORMER) {
        if (flag == known.flag) {
            return &known;
        }
    }
    return nullptr;
}

bool is_number(const std::string & text) {
    char * end = nullptr;
    strtod(text.c_str(), &end);
    return end != text.c_str() && *end == '\0';
}

} // namespace

std::map<std::string, size_t> former_flags() {
    std::map<std::string, size_t> out;
    for (const former & known : FORMER) {
        out[known.flag] = known.values;
    }
    return out;
}

void complete_former(arguments & args, const flag_table & flags) {
    for (size_t i = 0; i < args.size(); i += 1 + flags.values(args[i])) {
        const std::string flag = spelled(args[i]);
        const bool last = i + 1 == args.size() || args[i + 1].empty() || args[i + 1][0] == '-';
        for (const auto & known : SWITCHES) {
            if (flag == known.flag && last) {
                args.insert(args.begin() + i + 1, word(known.value, args[i].from));
            }
        }
        if (flag == "--lora-scaled" && i + 2 < args.size() && is_number(args[i + 2]) &&
            args[i + 1].find(':') == std::string::npos) {
            args[i + 1] = args[i + 1] + ":" + args[i + 2];
            args.erase(args.begin() + i + 2);
        }
    }
}

void translate_former(arguments & args, const flag_table & flags, int tool) {
    for (size_t i = 0; i < args.size();) {
        const former * known = look_up(args[i]);
        const size_t end = std::min(i + 1 + flags.values(args[i]), args.size());
        if (known == nullptr) {
            i = end;
            continue;
        }
        const word flag = args[i];
        if (end - i - 1 < known->values) {
            refuse(flag, flag + " needs a value");
        }
        arguments now = known->now;
        if (!now.empty() && (tool < 0 || flags.knows(tool, now[0]))) {
            now.insert(now.end(), args.begin() + i + 1, args.begin() + end);
        } else {
            if (now.empty() && known->left_out == how::WITH_A_LINE) {
                fprintf(stderr, "note: %s, of Mozilla's llamafile, has no effect here\n",
                        flag.c_str());
            }
            now.clear();
        }
        for (word & each : now) {
            each.from = flag.from;
        }
        args.erase(args.begin() + i, args.begin() + end);
        args.insert(args.begin() + i, now.begin(), now.end());
        i += now.size();
    }
}
