// The documents of the file over HTTP: POST /v1/search finds passages, GET /v1/documents lists the
// documents, and GET /v1/passages?cite=LABEL has those that an answer names. documents.js asks,
// too.

#include "../seams/documents-routes.h"

#include "documents/library.h"
#include "weights.h"

#include <nlohmann/json.hpp>

#include <algorithm>

namespace {

using json = nlohmann::json;

const size_t MOST_CITED = 200; // passages in one answer

server_http_res_ptr answer(int status, const json & body) {
    auto out = std::make_unique<server_http_res>();
    out->status = status;
    out->data = body.dump(-1, ' ', false, json::error_handler_t::replace);
    return out;
}

server_http_res_ptr refuse(int status, const std::string & why) {
    return answer(
        status,
        { { "error",
            { { "code", status }, { "message", why }, { "type", "invalid_request_error" } } } });
}

json described(const passages & texts, uint32_t number) {
    const passage & one = texts.all[number];
    json out = { { "object", "passage" },
                 { "index", number },
                 { "source", texts.sources[one.source] },
                 { "label", texts.label(one) },
                 { "heading", one.heading },
                 { "text", one.text } };
    out["page"] = one.page > 0 ? json(one.page) : json();
    return out;
}

json list_of(const json & data) {
    return { { "object", "list" }, { "data", data } };
}

server_http_res_ptr search(library & own, const server_http_req & request) {
    const json asked = json::parse(request.body, nullptr, false);
    if (!asked.is_object() || !asked.contains("query") || !asked["query"].is_string()) {
        return refuse(400, "\"query\" is missing, or isn't a string");
    }
    const json most = asked.value("top_k", json());
    const bool fine = most.is_number_integer() && most >= 1 && most <= (int)MOST_CITED;
    if (!most.is_null() && !fine) {
        return refuse(400, "\"top_k\" isn't a number from 1 to " + std::to_string(MOST_CITED));
    }
    json data = json::array();
    for (const ranked & each : own.find(asked["query"], fine ? most.get<size_t>() : PASSAGES)) {
        json one = described(own.texts, each.number);
        one["score"] = each.score;
        data.push_back(one);
    }
    return answer(200, list_of(data));
}

json documents(const passages & texts) {
    std::vector<size_t> counts(texts.sources.size());
    for (const passage & each : texts.all) {
        counts[each.source]++;
    }
    json data = json::array();
    for (size_t i = 0; i < counts.size(); i++) {
        data.push_back(
            { { "object", "document" }, { "id", texts.sources[i] }, { "passages", counts[i] } });
    }
    return data;
}

// A label as models write it: "Handbook.md, p.12" is "handbook.md, p. 12".
std::string letters_of(const std::string & label) {
    std::string out;
    for (const char c : label) {
        if (c != ' ') {
            out += c >= 'A' && c <= 'Z' ? (char)(c + 'a' - 'A') : c;
        }
    }
    return out;
}

template <typename Is> json those_that(const passages & texts, const Is & is) {
    json out = json::array();
    for (uint32_t i = 0; i < texts.all.size() && out.size() < MOST_CITED; i++) {
        if (is(texts.all[i])) {
            out.push_back(described(texts, i));
        }
    }
    return out;
}

// The passages that a label means; where there is no such place in a document, the document.
server_http_res_ptr cited(const passages & texts, const std::string & label) {
    const std::string wanted = letters_of(label);
    json data = those_that(
        texts, [&](const passage & each) { return wanted == letters_of(texts.label(each)); });
    if (data.empty()) {
        const std::string source = letters_of(label.substr(0, label.find(", ")));
        data = those_that(texts, [&](const passage & each) {
            return source == letters_of(texts.sources[each.source]);
        });
    }
    return data.empty() ? refuse(404, "no passage is called so") : answer(200, list_of(data));
}

server_http_res_ptr one_of(const passages & texts, const std::string & number) {
    const bool digits = !number.empty() && number.size() < 8 &&
                        number.find_first_not_of("0123456789") == std::string::npos;
    const size_t at = digits ? std::stoul(number) : texts.all.size();
    return at < texts.all.size() ? answer(200, described(texts, (uint32_t)at))
                                 : refuse(404, "there is no such passage");
}

} // namespace

void documents_routes(const server_http_context & http, const common_params & params) {
    // A passage has some 300 tokens, and half of the context is for the rest.
    weights model = {};
    const bool known = params.n_ctx == 0 && find_weights(params.model.path, model).empty();
    const size_t context = known ? model.context : (size_t)params.n_ctx;
    if (context > 0) {
        bound_passages(std::min(context / 600, MOST_PASSAGES));
    }
    const std::shared_ptr<library> own = open_library();
    http.get("/v1/documents", [own](const server_http_req &) {
        return answer(200, list_of(own ? documents(own->texts) : json::array()));
    });
    const auto with = [own](const auto & handler) {
        return [own, handler](const server_http_req & request) {
            try {
                return own ? handler(request) : refuse(404, "this file has no documents");
            } catch (const std::exception & problem) {
                return refuse(500, problem.what());
            }
        };
    };
    http.post("/v1/search", with([own](const auto & request) { return search(*own, request); }));
    http.get("/v1/passages", with([own](const auto & request) {
                 return cited(own->texts, request.get_param("cite"));
             }));
    http.get("/v1/passages/:id", with([own](const auto & request) {
                 return one_of(own->texts, request.get_param("id"));
             }));
}
