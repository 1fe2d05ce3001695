#include "documents/library.h"

#include "../seams/documents.h"
#include "../seams/reading.h"

#include "common.h"
#include "log.h"
#include "own.h"
#include "system/threads.h"
#include "weights.h"

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string_view>
#include <unordered_set>

namespace {

const char * const ENTRY = ".documents";
const uint64_t MOST = 1 << 30;      // bytes; passages.py has the same limit
const size_t REPEATED = 200;        // passages that may say what a better one says
const size_t MOST_QUESTION = 16384; // bytes: of a pasted text the end counts
const char * const FIELD = "documents";

// The router's processes and that of a chat inherit it.
const char * const SWITCH = "PYLLAMAFILE_DOCUMENTS";

std::weak_ptr<library> & opened() {
    static std::weak_ptr<library> one;
    return one;
}

size_t room = MOST_PASSAGES;

// What the file has.
struct own_documents {
    passages texts;
    std::string embedder; // the name of the model; empty if there is none
};

own_documents read_own() {
    const container * zip = own_contents(SWITCH);
    const entry * member = zip != nullptr ? zip->find(ENTRY) : nullptr;
    if (member == nullptr) {
        return {};
    }
    const bool embeds = zip->find(EMBEDDER) != nullptr;
    try {
        return { read_passages(member->size <= MOST ? zip->content(*member) : ""),
                 embeds ? zip->path + "@" + EMBEDDER : "" };
    } catch (const std::runtime_error & problem) {
        throw std::runtime_error(std::string(ENTRY) + " of this file " + problem.what() +
                                 " (--no-documents leaves it out)");
    }
}

// It is checked at the start, and used by whichever process serves.
std::optional<own_documents> checked;

std::vector<std::string> searched(const passages & texts) {
    std::vector<std::string> out;
    for (const passage & each : texts.all) {
        out.push_back(texts.found_by(each));
    }
    return out;
}

std::vector<uint32_t> owners(const passages & texts) {
    std::vector<uint32_t> out;
    for (uint32_t i = 0; i < texts.all.size(); i++) {
        out.insert(out.end(), texts.all[i].parts, i);
    }
    return out;
}

std::string text_in(const common_json & content) {
    if (content.is_string()) {
        return content.get<std::string>();
    }
    std::string out;
    for (size_t i = 0; content.is_array() && i < content.size(); i++) {
        const common_json & part = content.at(i);
        if (part.is_object() && part.contains("text") && part.at("text").is_string()) {
            out += (out.empty() ? "" : "\n") + part.at("text").get<std::string>();
        }
    }
    return out;
}

// How many passages the request wants.
size_t wanted_by(common_json & body) {
    size_t most = PASSAGES;
    if (body.contains(FIELD) && !body.at(FIELD).is_null()) {
        const common_json & field = body.at(FIELD);
        const bool number = field.is_number_integer() && field.get<int64_t>() >= 0 &&
                            field.get<int64_t>() <= (int64_t)MOST_PASSAGES;
        if (!field.is_boolean() && !number) {
            throw std::invalid_argument(
                "\"documents\" is neither true or false nor a number of passages up to " +
                std::to_string(MOST_PASSAGES));
        }
        most =
            field.is_boolean() ? (field.get<bool>() ? PASSAGES : 0) : (size_t)field.get<int64_t>();
    }
    body.erase(FIELD);
    return std::min(most, room);
}

std::string in_front_of_question(const passages & texts, const std::vector<ranked> & found) {
    std::string out = "Passages from documents, each below its source:\n\n";
    for (const ranked & each : found) {
        const passage & one = texts.all[each.number];
        out += "[" + texts.label(one) + "]\n" + one.text + "\n\n";
    }
    return out +
           "Answer the following with these passages, as far as they help. Behind what you take "
           "from a passage, name its source in brackets as it stands above: [" +
           texts.label(texts.all[found.front().number]) + "].\n\n";
}

} // namespace

library::library(passages own, const std::string & embedder_name) : texts(std::move(own)) {
    words = std::async(std::launch::async, [this] { return word_index(searched(texts)); });
    if (texts.dimension == 0) {
        return;
    }
    const int threads = threads_to_use(common_cpu_get_num_math());
    try {
        if (embedder_name.empty()) {
            throw std::runtime_error(std::string(EMBEDDER) + " is missing in this file");
        }
        auto loaded = std::make_unique<embedder>(embedder_name, threads);
        if (loaded->dimension() != texts.dimension) {
            throw std::runtime_error(std::string(EMBEDDER) + " makes vectors of another length");
        }
        vectors =
            std::make_unique<vector_index>(texts.vectors, owners(texts), texts.dimension, threads);
        model = std::move(loaded);
    } catch (const std::exception & problem) {
        LOG_WRN("passages are found by their words alone: %s\n", problem.what());
    }
}

std::vector<ranked> library::find(const std::string & whole, size_t most) {
    std::string question =
        whole.size() > MOST_QUESTION ? whole.substr(whole.size() - MOST_QUESTION) : whole;
    while (!question.empty() && ((unsigned char)question[0] & 0xC0) == 0x80) {
        question.erase(0, 1); // the rest of a letter
    }
    const std::lock_guard<std::mutex> lock(mutex);
    if (!index) {
        index = std::make_unique<word_index>(words.get());
    }
    scores by_vectors;
    if (model && !words_of(question).empty()) {
        try {
            by_vectors = vectors->fit(model->vector_of(texts.query + question));
        } catch (const std::exception & problem) {
            LOG_WRN("this question is compared by its words alone: %s\n", problem.what());
        }
    }
    std::vector<ranked> found = merged(index->fit(question), by_vectors, most + REPEATED);
    std::unordered_set<std::string_view> said;
    std::stable_partition(found.begin(), found.end(), [&](const ranked & each) {
        return said.insert(texts.all[each.number].text).second;
    });
    found.resize(std::min(most, found.size()));
    return found;
}

std::shared_ptr<library> open_library() {
    check_documents();
    own_documents own = std::move(*checked);
    checked.reset();
    if (own.texts.all.empty()) {
        return nullptr;
    }
    const auto one = std::make_shared<library>(std::move(own.texts), own.embedder);
    opened() = one;
    return one;
}

std::shared_ptr<library> current_library() {
    return opened().lock();
}

void bound_passages(size_t most) {
    room = most;
}

void look_nothing_up() {
    leave_out(SWITCH);
}

void check_documents() {
    if (!checked) {
        checked = read_own();
    }
}

void put_passages_in(common_json & body) {
    const size_t most = wanted_by(body);
    const std::shared_ptr<library> own = current_library();
    if (!own || most == 0 || wants_nothing_in_front(body) || !body.contains("messages") ||
        !body.at("messages").is_array()) {
        return;
    }
    common_json & messages = body.at("messages");
    for (size_t i = messages.size(); i-- > 0;) {
        common_json & message = messages.at(i);
        if (!message.is_object() || !message.contains("role") || message.at("role") != "user" ||
            !message.contains("content")) {
            continue;
        }
        const common_json content = message.at("content");
        const std::vector<ranked> found = own->find(text_in(content), most);
        if (found.empty()) {
            return;
        }
        const std::string front = in_front_of_question(own->texts, found);
        if (content.is_string()) {
            message["content"] = front + content.get<std::string>();
        } else {
            common_json parts = common_json::array();
            parts.push_back({ { "type", "text" }, { "text", front } });
            parts.insert(content);
            message["content"] = parts;
        }
        return;
    }
}
