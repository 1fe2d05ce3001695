// In front of server.cpp, before object-embedding.h gives a type of its own another name:
// web/ollama-routes.cpp adds what Ollama's clients ask for.
#pragma once

#include "common.h"
#include "server-http.h"

void ollama_routes(const server_http_context & http, const common_params & params);
