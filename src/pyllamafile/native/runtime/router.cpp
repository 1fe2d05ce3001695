#include "router.h"

#include "container.h"
#include "seams/presets.h"
#include "speculative.h"
#include "system/system.h"
#include "weights.h"

#include <cstdlib>
#include <filesystem>

extern container own_container; // main.cpp

namespace {

const auto MODEL = { "-m", "--model" };
const auto LORA = { "--lora", "--lora-scaled" };
const auto PROJECTOR = { "-mm", "--mmproj" };
const auto NO_PROJECTOR = { "--no-mmproj", "--no-mmproj-auto" };
const auto DRAFT = { "-md", "--model-draft", "--spec-draft-model" };

// Takes out of what `.args` say every occurrence whose value begins with @, which is how a file
// names its own weights.
void take_own(arguments & args, const flag_table & flags, flag_table::names names) {
    arguments out;
    for (size_t i = 0; i < args.size();) {
        const size_t end = std::min(i + 1 + flags.values(args[i]), args.size());
        const arguments option(args.begin() + i, args.begin() + end);
        if (option[0].from != origin::file || !flags.has(option, names) || option.size() < 2 ||
            option[1].compare(0, 1, "@") != 0) {
            out.insert(out.end(), option.begin(), option.end());
        }
        i = end;
    }
    args = out;
}

std::string without_gguf(const std::string & name) {
    const size_t length = name.size();
    return length > 5 && name.compare(length - 5, 5, ".gguf") == 0 ? name.substr(0, length - 5)
                                                                   : name;
}

// The model that was chosen, as a name for find_weights; empty if none was.
std::string chosen_model(const arguments & args, const flag_table & flags) {
    return flags.value(args, MODEL, "LLAMA_ARG_MODEL");
}

bool is_first_model(const std::string & name) {
    const std::vector<const entry *> models = models_in(own_container);
    weights found;
    std::error_code ignored;
    return !models.empty() && find_weights(name, found).empty() &&
           found.member == models[0]->name &&
           std::filesystem::equivalent(found.path, own_container.path, ignored);
}

// Values with commas between them, as llama.cpp reads them: quotes protect one, "" in them is one.
std::vector<std::string> split(const std::string & values) {
    std::vector<std::string> out(1);
    bool quoted = false;
    for (const char c : values) {
        if (c == '"') {
            quoted = !quoted;
        } else if (c == ',' && !quoted) {
            out.emplace_back();
        } else {
            out.back() += c;
        }
    }
    return out;
}

const char * const KINDS[] = { "a model", "a LoRA adapter", "a projector" };

// The weights that a flag names, which have to be of a kind.
weights partner(const word & flag, const std::string & name, weights_kind wanted) {
    weights found;
    const std::string problem = find_weights(name, found);
    if (!problem.empty()) {
        refuse(flag, flag + " " + problem);
    }
    if (found.kind != wanted) {
        refuse(flag, flag + " " + name + ": is " + KINDS[(int)found.kind] + ", not " +
                         KINDS[(int)wanted]);
    }
    return found;
}

// The flags behind which there are weights, and of what kind.
struct partner_flag {
    const char * name;
    weights_kind kind;
    const char * preset; // what it is called there
};

const char DRAFT_PRESET[] = "LLAMA_ARG_SPEC_DRAFT_MODEL";

const partner_flag PARTNER_FLAGS[] = {
    { "--lora", weights_kind::ADAPTER, "lora" },
    { "--lora-scaled", weights_kind::ADAPTER, "lora-scaled" },
    { "-mm", weights_kind::PROJECTOR, "LLAMA_ARG_MMPROJ" },
    { "--mmproj", weights_kind::PROJECTOR, "LLAMA_ARG_MMPROJ" },
    { "-md", weights_kind::MODEL, DRAFT_PRESET },
    { "--model-draft", weights_kind::MODEL, DRAFT_PRESET },
    { "--spec-draft-model", weights_kind::MODEL, DRAFT_PRESET },
};

// How a draft is used, where upstream doesn't find out by itself: it does for some kinds, but not
// for one that is a model like any. Empty if there is nothing to say.
std::string draft_type(const weights & draft) {
    return draft.architecture == "eagle3"                             ? "draft-eagle3"
           : common_speculative_types_from_gguf(draft.name()).empty() ? "draft-simple"
                                                                      : "";
}

} // namespace

void settle_partners(arguments & args, const flag_table & flags) {
    if (!flags.has(args, LORA, origin::file) && !flags.has(args, PROJECTOR, origin::file) &&
        !flags.has(args, DRAFT, origin::file)) {
        return;
    }
    const std::string model = chosen_model(args, flags);
    const bool others =
        model.empty() ? models_in(own_container).size() > 1 : !is_first_model(model);
    const bool blind = flags.has(args, NO_PROJECTOR);
    if (others || flags.has(args, LORA, origin::user)) {
        take_own(args, flags, LORA);
    }
    if (others || flags.has(args, PROJECTOR, origin::user) || blind) {
        take_own(args, flags, PROJECTOR);
    }
    if (others || flags.has(args, DRAFT, origin::user)) {
        take_own(args, flags, DRAFT);
    }
}

void check_partners(arguments & args, const flag_table & flags) {
    bool unaligned = false, drafts = false;
    std::string type;
    for (size_t i = 0; i + 1 < args.size(); i += 1 + flags.values(args[i])) {
        for (const partner_flag & flag : PARTNER_FLAGS) {
            if (args[i] != flag.name) {
                continue;
            }
            const bool adapter = flag.kind == weights_kind::ADAPTER;
            for (std::string name :
                 adapter ? split(args[i + 1]) : std::vector<std::string>{ args[i + 1] }) {
                if (args[i] == "--lora-scaled") {
                    name.resize(std::min(name.rfind(':'), name.size()));
                }
                const weights found = partner(args[i], name, flag.kind);
                if (flag.kind == weights_kind::MODEL) {
                    args[i + 1] = found.name();
                    drafts = true;
                    type = draft_type(found);
                    unaligned = !found.mappable();
                }
            }
        }
    }
    if (unaligned) {
        args.insert(args.end(), { "--load-mode", "none" });
    }
    // While one of the two computes, the other's threads would keep a processor busy with waiting.
    if (drafts && !flags.has(args, { "--poll" })) {
        args.insert(args.end(), { "--poll", "0" });
    }
    if (!type.empty() && !flags.has(args, { "--spec-type" }) &&
        getenv("LLAMA_ARG_SPEC_TYPE") == nullptr) {
        args.insert(args.end(), { "--spec-type", type });
    }
}

bool offers_models(const arguments & args, const flag_table & flags) {
    static const auto ELSEWHERE = { "-mu", "--model-url", "--models-dir", "--models-preset",
                                    "--server-base" };
    return chosen_model(args, flags).empty() && !flags.has(args, ELSEWHERE) &&
           models_in(own_container).size() > 1;
}

namespace {

// In front of a child's arguments, where upstream has room for one word.
const std::string CHILD = "--child-of=";

bool offers_projectors = true;

std::string name_of(const entry & model) {
    return without_gguf(model.name.substr(model.name.rfind('/') + 1));
}

// What `.args` have for the first model, put into its preset.
void add_partners(const common_preset_context & context, const container & zip,
                  common_preset & preset) {
    const arguments args = arguments_in(zip);
    for (size_t i = 0; i + 1 < args.size(); i++) {
        for (const partner_flag & flag : PARTNER_FLAGS) {
            const bool wanted = flag.kind != weights_kind::PROJECTOR || offers_projectors;
            if (spelled(args[i]) != flag.name || args[i + 1].compare(0, 1, "@") != 0 || !wanted) {
                continue;
            }
            // in its process @ means the same, and a path may have what separates values
            std::string value = (zip.path == own_container.path ? "" : zip.path) + args[i + 1];
            std::string before;
            weights draft;
            if (flag.kind == weights_kind::ADAPTER && preset.get_option(flag.preset, before)) {
                value.insert(0, before + ",");
            } else if (flag.preset == DRAFT_PRESET && find_weights(value, draft).empty()) {
                value = draft.name();
                const std::string type = draft_type(draft);
                if (!type.empty()) {
                    preset.set_option(context, "LLAMA_ARG_SPEC_TYPE", type);
                }
            }
            preset.set_option(context, flag.preset, value);
        }
    }
}

} // namespace

std::string offer_models(arguments & args, const flag_table & flags) {
    offers_projectors = !flags.has(args, NO_PROJECTOR);
    args.insert(args.end(), { "--models-dir", own_container.path });
    set_variable("LLAMA_APP_CMD", CHILD + own_container.path);
    std::string names;
    for (const entry * model : models_in(own_container)) {
        names += (names.empty() ? "" : ", ") + name_of(*model);
    }
    const std::string & path = own_container.path;
    return path.substr(path.rfind('/') + 1) + " (" + names + ")";
}

bool is_routers_child(arguments & args) {
    if (args.empty() || args[0].compare(0, CHILD.size(), CHILD) != 0) {
        return false;
    }
    own_container.path = args[0].substr(CHILD.size()); // what @NAME is in
    args.erase(args.begin());
    return true;
}

std::optional<common_presets> presets_of_llamafile(const common_preset_context & context,
                                                   const std::string & path) {
    container zip;
    if (std::filesystem::is_directory(path) || !read_container(path, zip)) {
        return {};
    }
    common_presets out;
    for (const entry * model : models_in(zip)) {
        weights found;
        common_preset preset;
        preset.name = out.count(name_of(*model)) == 0 ? name_of(*model) : model->name;
        preset.set_option(context, "LLAMA_ARG_MODEL", path + "@" + model->name);
        if (find_weights(path + "@" + model->name, found).empty()) {
            if (found.embeds) {
                preset.set_option(context, "LLAMA_ARG_EMBEDDINGS", "1");
            }
            if (!found.mappable()) {
                preset.set_option(context, "load-mode", "none");
            }
        }
        if (out.empty()) {
            add_partners(context, zip, preset);
        }
        out[preset.name] = preset;
    }
    return out;
}
