// Ollama's API: every route asks one of the server's own handlers, that of the router or that of a
// model, so that what holds for those (guards, keys, options, slots) holds here.

#include "../seams/ollama-routes.h"

#include "../weights.h"
#include "hash/hash.h"
#include "ollama.h"

#include <map>
#include <mutex>
#include <stdexcept>

using json = ollama_json;

namespace {

// The Ollama whose API this is: clients ask, and some refuse an older one.
const char * const VERSION = "0.12.0";

// What takes no keep_alive stays, and clients want a time.
const char * const NEVER = "2100-01-01T00:00:00Z";

struct no_such_model : std::runtime_error {
    using std::runtime_error::runtime_error;
};

server_http_res_ptr answer_with(const json & body, int status = 200) {
    auto answer = std::make_unique<server_http_res>();
    answer->status = status;
    answer->data = body.dump(-1, ' ', false, json::error_handler_t::replace);
    return answer;
}

server_http_res_ptr refuse(const std::string & why, int status) {
    return answer_with({ { "error", why } }, status);
}

// A request of ours to one of the server's handlers, and its answer, which may read from it.
struct exchange {
    server_http_req request;
    server_http_res_ptr answer;

    std::string all() {
        std::string text = answer->data;
        for (bool more = answer->is_stream(); more;) {
            std::string piece;
            more = answer->next(piece);
            text += piece;
        }
        answer->on_complete();
        return text;
    }
};

struct ollama_stream : server_http_res {
    std::shared_ptr<exchange> from;
    ollama_answer words;

    ollama_stream(std::shared_ptr<exchange> from, const ollama_answer & words)
        : from(std::move(from)), words(words) {
        content_type = "application/x-ndjson";
        next = [this](std::string & out) { return more(out); };
    }

    bool more(std::string & out) {
        std::string piece;
        const bool there_is = from->answer->next(piece);
        for (const json & line : words.take(piece)) {
            put(out, line);
        }
        if (!there_is) {
            put(out, words.last());
        }
        return there_is;
    }

    static void put(std::string & out, const json & line) {
        if (!line.is_null()) {
            out += line.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
        }
    }

    void on_complete() override {
        from->answer->on_complete();
    }
};

class api {
  public:
    api(const server_http_context & http, const common_params & params)
        : http(http), path(params.model.path), embeds(params.embedding) {}

    server_http_res_ptr tags(const server_http_req & request) const {
        json out = json::array();
        for (const json & model : models(request)) {
            out.push_back(listed(model));
        }
        return answer_with({ { "models", out } });
    }

    server_http_res_ptr running(const server_http_req & request) const {
        json out = json::array();
        for (const json & model : models(request)) {
            if (is_single() || model.at("status").at("value") == "loaded") {
                json row = listed(model);
                row["expires_at"] = NEVER;
                row["size_vram"] = 0;
                row["context_length"] = model.value("meta", json::object()).value("n_ctx", 0);
                out.push_back(row);
            }
        }
        return answer_with({ { "models", out } });
    }

    server_http_res_ptr show(const server_http_req & request) const {
        const json model = model_of(request, json::parse(request.body));
        const weights & facts = facts_of(model);
        const json meta = model.value("meta", json::object());
        const std::string at = facts.architecture + ".";
        const json props = json::parse(
            ask(request, "/props", "", { { "model", model.at("id") }, { "autoload", "false" } })
                ->all());
        const json known = props.contains("chat_template") ? props : json::object();
        const std::string chat_template = known.value("chat_template", "");
        json info = { { "general.architecture", facts.architecture },
                      { at + "context_length", meta.value("n_ctx_train", facts.context) } };
        if (!meta.empty()) {
            info["general.parameter_count"] = meta.value("n_params", (int64_t)0);
            info[at + "embedding_length"] = meta.value("n_embd", 0);
        }
        json can = json::array();
        const auto add = [&can](const char * what, bool it_can) {
            if (it_can) {
                can.push_back(what);
            }
        };
        const json caps = known.value("chat_template_caps", json::object());
        add("completion", !facts.embeds);
        add("embedding", facts.embeds || embeds);
        add("tools", caps.value("supports_tools", false));
        add("vision", known.value("modalities", json::object()).value("vision", false));
        add("thinking", chat_template.find("enable_thinking") != std::string::npos);
        const std::string context = std::to_string(meta.value("n_ctx", 0));
        return answer_with({ { "modelfile", "FROM " + model.at("id").get<std::string>() },
                             { "parameters", meta.empty() ? "" : "num_ctx " + context },
                             { "template", chat_template },
                             { "details", details(model) },
                             { "model_info", info },
                             { "capabilities", can },
                             { "modified_at", started } });
    }

    server_http_res_ptr say(ollama_kind kind, const server_http_req & request) const {
        const json asked = json::parse(request.body);
        const json model = model_of(request, asked);
        const std::string name = asked.value("model", ollama_name(model));
        ollama_request to = ollama_translate(kind, asked);
        if (to.path.empty()) {
            return load(request, kind, model, name, !ollama_lets_go(asked));
        }
        to.body["model"] = model.at("id");
        ollama_answer words(kind, name);
        const auto from = ask(request, to.path, to.body.dump());
        if (from->answer->status != 200 || !from->answer->is_stream()) {
            const int status = from->answer->status;
            return refuse(ollama_reason(from->all()), status);
        }
        if (asked.value("stream", true)) {
            return std::make_unique<ollama_stream>(from, words);
        }
        words.take(from->all());
        const json whole = words.whole();
        return answer_with(whole, whole.contains("error") ? 500 : 200);
    }

    // Ollama's route of today takes one text or several, and the one of old a single text.
    server_http_res_ptr embed(bool today, const server_http_req & request) const {
        const json asked = json::parse(request.body);
        const json model = model_of(request, asked);
        const json & input = asked.at(today ? "input" : "prompt");
        const json body = { { "model", model.at("id") }, { "input", input } };
        const auto start = std::chrono::steady_clock::now();
        json vectors = json::array();
        int tokens = 0;
        if (!input.empty()) {
            const auto from = ask(request, "/v1/embeddings", body.dump());
            const int status = from->answer->status;
            const std::string text = from->all();
            if (status != 200) {
                return refuse(ollama_reason(text), status);
            }
            const json answer = json::parse(text);
            const size_t dimensions = asked.value("dimensions", (size_t)0);
            for (const json & row : answer.at("data")) {
                vectors.push_back(ollama_shortened(row.at("embedding"), dimensions));
            }
            tokens = answer.at("usage").value("prompt_tokens", 0);
        }
        if (!today) {
            return answer_with({ { "embedding", vectors.empty() ? vectors : vectors[0] } });
        }
        const auto time = std::chrono::duration_cast<std::chrono::nanoseconds>(
            std::chrono::steady_clock::now() - start);
        return answer_with({ { "model", asked.value("model", ollama_name(model)) },
                             { "embeddings", vectors },
                             { "total_duration", time.count() },
                             { "load_duration", 0 },
                             { "prompt_eval_count", tokens } });
    }

  private:
    bool is_single() const {
        return !path.empty();
    }

    std::shared_ptr<exchange> ask(const server_http_req & request, const std::string & path,
                                  const std::string & body,
                                  const std::map<std::string, std::string> & params = {}) const {
        // The router sends the headers on, and ours are of another body. A length is not sent on.
        std::map<std::string, std::string> headers;
        for (const auto & [name, value] : request.headers) {
            if (name != "Content-Type" && name != "content-type") {
                headers[name] = value;
            }
        }
        headers["Content-Type"] = "application/json";
        auto out = std::make_shared<exchange>(exchange{
            { params, headers, http.path_prefix + path, "", body, {}, request.should_stop },
            nullptr });
        out->answer = http.handlers.at(path)(out->request);
        return out;
    }

    json models(const server_http_req & request) const {
        return json::parse(ask(request, "/v1/models", "")->all()).at("data");
    }

    // A file of one model has no other, and takes every name, as OpenAI's routes do.
    json model_of(const server_http_req & request, const json & asked) const {
        const std::string name = asked.value("model", asked.value("name", ""));
        const json all = models(request);
        const int found = is_single() ? 0 : ollama_find(all, name);
        if (found < 0) {
            throw no_such_model("model '" + name + "' not found; GET /api/tags lists what is here");
        }
        return all.at((size_t)found);
    }

    server_http_res_ptr load(const server_http_req & request, ollama_kind kind, const json & model,
                             const std::string & name, bool stays) const {
        if (!is_single()) { // a model that is there already, or not, is no error
            const json body = { { "model", model.at("id") } };
            ask(request, stays ? "/models/load" : "/models/unload", body.dump())->all();
        }
        json out = { { "model", name }, { "created_at", ollama_now() } };
        if (kind == ollama_kind::CHAT) {
            out["message"] = { { "role", "assistant" }, { "content", "" } };
        } else {
            out["response"] = "";
        }
        out["done"] = true;
        out["done_reason"] = stays ? "load" : "unload";
        return answer_with(out);
    }

    // Of a model that isn't loaded, its header knows something; it is read once.
    const weights & facts_of(const json & model) const {
        std::string from = path;
        const json arguments = model.value("status", json::object()).value("args", json::array());
        for (size_t i = 0; i + 1 < arguments.size(); i++) {
            if (!is_single() && (arguments[i] == "--model" || arguments[i] == "-m")) {
                from = arguments[i + 1];
            }
        }
        const std::lock_guard<std::mutex> lock(mutex);
        const auto [place, fresh] = facts.try_emplace(from);
        if (fresh && !find_weights(from, place->second).empty()) {
            place->second = {};
        }
        return place->second;
    }

    json details(const json & model) const {
        const std::string family = facts_of(model).architecture;
        const json meta = model.value("meta", json::object());
        const double millions = meta.value("n_params", 0.0) / 1e6;
        char size[32] = "";
        if (millions > 0) {
            snprintf(size, sizeof(size), millions < 1000 ? "%.2fM" : "%.1fB",
                     millions < 1000 ? millions : millions / 1000);
        }
        return { { "parent_model", "" },     { "format", "gguf" },
                 { "family", family },       { "families", json::array({ family }) },
                 { "parameter_size", size }, { "quantization_level", meta.value("ftype", "") } };
    }

    json listed(const json & model) const {
        const std::string name = ollama_name(model);
        const std::string known = name + "/" + std::to_string(facts_of(model).size);
        return { { "name", name },
                 { "model", name },
                 { "modified_at", started },
                 { "size", facts_of(model).size },
                 { "digest", hash_sha256_hex(known.data(), known.size()) }, // of no bytes
                 { "details", details(model) } };
    }

    const server_http_context & http;
    const std::string path; // of the one model; empty where there are several
    const bool embeds;
    const std::string started = ollama_now();
    mutable std::mutex mutex;
    mutable std::map<std::string, weights> facts;
};

// The server's handlers throw nothing, and neither may these.
server_http_context::handler_t safe(const server_http_context::handler_t & handler) {
    return [handler](const server_http_req & request) -> server_http_res_ptr {
        try {
            return handler(request);
        } catch (const no_such_model & error) {
            return refuse(error.what(), 404);
        } catch (const std::invalid_argument & error) {
            return refuse(error.what(), 400);
        } catch (const json::exception & error) {
            return refuse(std::string("this is no request of Ollama's: ") + error.what(), 400);
        } catch (const std::exception & error) {
            return refuse(error.what(), 500);
        }
    };
}

} // namespace

void ollama_routes(const server_http_context & http, const common_params & params) {
    const auto ours = std::make_shared<api>(http, params);
    http.get("/api/version", [](const server_http_req &) {
        return answer_with({ { "version", VERSION } });
    });
    http.get("/api/tags", safe([ours](const auto & request) { return ours->tags(request); }));
    http.get("/api/ps", safe([ours](const auto & request) { return ours->running(request); }));
    http.post("/api/show", safe([ours](const auto & request) { return ours->show(request); }));
    http.post("/api/chat",
              safe([ours](const auto & request) { return ours->say(ollama_kind::CHAT, request); }));
    http.post("/api/generate", safe([ours](const auto & request) {
                  return ours->say(ollama_kind::GENERATE, request);
              }));
    http.post("/api/embed",
              safe([ours](const auto & request) { return ours->embed(true, request); }));
    http.post("/api/embeddings",
              safe([ours](const auto & request) { return ours->embed(false, request); }));

    const auto refused = [](const server_http_req & request) {
        return refuse(request.path +
                          " can't be had: the models of a llamafile are in the file, and "
                          "`pyllamafile add` and `pyllamafile remove` change them",
                      501);
    };
    for (const char * path : { "/api/pull", "/api/push", "/api/create", "/api/copy" }) {
        http.post(path, refused);
    }
    http.del("/api/delete", refused);
}
