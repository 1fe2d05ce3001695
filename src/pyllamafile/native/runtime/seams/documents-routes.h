// In front of server.cpp: web/documents-routes.cpp adds the documents of the file, and the search
// in them.
#pragma once

#include "common.h"
#include "server-http.h"

void documents_routes(const server_http_context & http, const common_params & params);
