// Included before upstream's server.cpp, which answers /embedding with a list, of rows that hold
// lists of vectors. Older llamafiles' servers answered with an object that holds a vector, or with
// one of results where several were asked for, and the clients that were made for them want that
// still: they find it at /llamafile/embedding.
#pragma once

#include "server-http.h"

#include <nlohmann/json.hpp>

static inline void embeddings_to_objects(const std::string & request, server_http_res & answer) {
    using nlohmann::json;
    const json asked = json::parse(request, nullptr, false);
    const json rows = json::parse(answer.data, nullptr, false);
    if (!rows.is_array() || rows.empty()) {
        return; // an error
    }
    json objects = json::array();
    for (const json & row : rows) {
        const json & vectors = row.at("embedding");
        objects.push_back({ { "embedding", vectors.size() == 1 ? vectors[0] : vectors } });
    }
    const bool several = asked.contains("content") && asked["content"].is_array();
    answer.data = (several ? json{ { "results", objects } } : objects.at(0)).dump();
}

struct llamafile_http_context : server_http_context {
    void post(const std::string & path, const handler_t & handler) const {
        server_http_context::post(path, handler);
        if (path == "/embedding") {
            server_http_context::post("/llamafile/embedding", [handler](const auto & request) {
                auto answer = handler(request);
                embeddings_to_objects(request.body, *answer);
                return answer;
            });
        }
    }
};

#define server_http_context llamafile_http_context
